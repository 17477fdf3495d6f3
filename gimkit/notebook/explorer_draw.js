// Pieces of the page: each draws data into a parent. Texts enter the page as text nodes and attributes only.

const SVG = "http://www.w3.org/2000/svg";
const CELL = 12; // of the attention map

function add(parent, name, attributes = {}, text = null) {
  const element = document.createElementNS(name === "svg" ? SVG : parent.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  return parent.appendChild(element);
}

const signed = (score) => (score < 0 ? "−" : "+") + Math.abs(score).toPrecision(3);
const side = (score) => (score > 0 ? "for" : "against");
const counted = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
const percent = (share) => (100 * share).toFixed(share < 0.00995 ? 2 : 1);
const clipped = (text, most = 12) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

function button(parent, text, onclick, attributes = {}) {
  const made = add(parent, "button", { type: "button", ...attributes }, text);
  made.addEventListener("click", onclick);
  return made;
}

// A choice among options {value: text}; returns its element, or null where there is nothing to choose.
function choice(parent, title, options, value, onchange) {
  const entries = Object.entries(options);
  if (entries.length < 2) return null;
  const select = add(add(parent, "label", {}, `${title} `), "select");
  for (const [key, text] of entries) add(select, "option", { value: key }, text);
  select.value = value;
  select.addEventListener("change", () => onchange(select.value));
  select.addEventListener("keydown", (event) => event.stopPropagation());
  return select;
}

// The prompt's tokens on grounds of their scores, each a button; a key of the colours; the answer and the next tokens.
function drawPrompt(parent, prompt, scores, rules, { chosen, onchoose }) {
  parent.replaceChildren();
  const text = add(parent, "p", { class: "prompt", role: "group", "aria-label": "Prompt; arrow keys move between tokens" });
  const most = largest(scores ?? [0]);
  prompt.tokens.forEach((token, i) => {
    const says = `token ${i + 1}, “${token}”` + (scores ? `: ${signed(scores[i])}` : "");
    const made = button(text, token, () => onchoose(i), { class: "token", title: says, "aria-label": says,
      "aria-pressed": chosen === i, tabindex: i === (chosen ?? 0) ? 0 : -1 });
    if (!scores) return;
    made.classList.add(side(scores[i]));
    made.style.setProperty("--share", `${(60 * Math.abs(scores[i]) / most).toFixed(1)}%`);
  });
  text.addEventListener("keydown", (event) => { // one stop of the Tab key
    const to = event.target[{ ArrowLeft: "previousSibling", ArrowRight: "nextSibling" }[event.key]];
    if (!to) return;
    event.target.setAttribute("tabindex", -1);
    to.setAttribute("tabindex", 0);
    to.focus();
    event.preventDefault();
    event.stopPropagation();
  });
  const answer = prompt.wrong === undefined ? `“${prompt.answer}”` : `“${prompt.answer}”, not “${prompt.wrong}”`;
  const key = add(parent, "p", { class: "key" });
  if (scores) {
    add(key, "span", {}, signed(-most));
    add(key, "span", { class: "ramp", role: "img",
      "aria-label": `colours from ${signed(-most)}, orange, to ${signed(most)}, blue` });
    add(key, "span", {}, `${signed(most)} logits: blue tokens speak for ${answer}, orange ones against, by ${rules}`);
  } else add(key, "span", {}, "The tokens have no colours: attribution needs the model's tokenizer.");
  add(parent, "p", { class: "answer" }, prompt.wrong === undefined
    ? `The model's next token is ${answer}. A prompt without a corrupt one has no effects and no scores by position.`
    : `Answer ${answer}: logit difference ${signed(prompt.clean)}.`);
  const next = add(parent, "ol", { class: "next", "aria-label": "The likeliest next tokens" });
  for (const [token, share] of prompt.top) {
    const row = add(next, "li");
    add(row, "span", { class: "word" }, clipped(token, 16));
    add(row, "span", { class: "bar" }).style.width = `${Math.max(1, 120 * share).toFixed(1)}px`;
    add(row, "span", { class: "share" }, `${percent(share)} %`);
  }
}

// The faithfulness of every size on a logarithmic axis of edges; returns what marks one of them.
function drawCurve(parent, { sizes, faithfulness }) {
  const width = 300, height = 84, low = Math.min(0, ...faithfulness), high = Math.max(1, ...faithfulness);
  const logs = sizes.map((size) => Math.log10(size)), from = logs[0], span = logs.at(-1) - from;
  const at = (log) => 34 + (width - 54) * (span ? (log - from) / span : 0.5);
  const y = (f) => 8 + (height - 36) * (high - f) / (high - low);
  const values = sizes.map((size, i) => `${size} edges ${faithfulness[i].toFixed(2)}`);
  const plot = add(parent, "svg", { class: "curve", viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `Faithfulness by number of edges, on a logarithmic axis: ${values.join(", ")}` });
  for (const f of [0, 1]) {
    add(plot, "line", { class: "grid", x1: 30, x2: width - 12, y1: y(f), y2: y(f) });
    add(plot, "text", { x: 25, y: y(f) + 3, "text-anchor": "end" }, f);
  }
  for (let power = 0; power <= 4; power++) {
    for (const step of [1, 2, 5]) {
      const log = Math.log10(step * 10 ** power);
      if (log < from - 1e-9 || log > from + span + 1e-9) continue;
      add(plot, "line", { class: "grid tick", x1: at(log), x2: at(log), y1: 8, y2: height - 28 });
      if (step === 1 || span < 1.5) add(plot, "text", { class: "tick", x: at(log), y: height - 16 }, step * 10 ** power);
    }
  }
  add(plot, "text", { class: "tick", x: width / 2, y: height - 4 }, "edges (log scale)");
  add(plot, "polyline", { points: faithfulness.map((f, i) => `${at(logs[i])},${y(f)}`).join(" ") });
  faithfulness.forEach((f, i) => add(plot, "circle", { cx: at(logs[i]), cy: y(f), r: 2 }));
  const point = add(plot, "circle", { class: "point", r: 5 });
  return (i) => { point.setAttribute("cx", at(logs[i])); point.setAttribute("cy", y(faithfulness[i])); };
}

// A head's attention: a row per query, a column per position it looks at. pattern: rows up to the query, in thousandths.
function drawAttention(parent, tokens, pattern) {
  const longest = Math.min(12, Math.max(...tokens.map((token) => token.length)));
  const margin = 8 + 6 * longest, size = tokens.length * CELL, whole = margin + size + 2;
  const plot = add(parent, "svg", { class: "attention", viewBox: `0 0 ${whole} ${whole}`, role: "img",
    "aria-label": "attention: a row per query, a column per position" });
  plot.style.maxWidth = `${whole}px`;
  tokens.forEach((token, i) => {
    const at = margin + (i + 0.8) * CELL;
    add(plot, "text", { x: margin - 4, y: at, "text-anchor": "end" }, clipped(token));
    add(plot, "text", { transform: `translate(${at} ${margin - 4}) rotate(-90)` }, clipped(token));
  });
  add(plot, "rect", { class: "frame", x: margin, y: margin, width: size, height: size });
  pattern.forEach((row, i) => row.forEach((weight, j) => {
    const cell = add(plot, "rect", { class: "cell", x: margin + j * CELL, y: margin + i * CELL, width: CELL,
      height: CELL, "fill-opacity": weight / 1000 });
    add(cell, "title", {}, `from “${tokens[i]}” (${i + 1}) to “${tokens[j]}” (${j + 1}): ${(weight / 1000).toFixed(2)}`);
  }));
}

// Three bars of the logit difference: as it is, ablated, and of the corrupt prompt.
function drawAblation(parent, clean, ablated, corrupt) {
  const bars = [["clean", clean], ["ablated", ablated], ["corrupt", corrupt]];
  const low = Math.min(0, clean, ablated, corrupt), span = Math.max(0, clean, ablated, corrupt) - low || 1;
  const x = (value) => 56 + 180 * (value - low) / span;
  const plot = add(parent, "svg", { class: "bars", viewBox: "0 0 290 58", role: "img",
    "aria-label": bars.map(([name, value]) => `${name} ${signed(value)}`).join(", ") });
  bars.forEach(([name, value], i) => {
    add(plot, "text", { x: 50, y: 14 + 18 * i, "text-anchor": "end" }, name);
    add(plot, "rect", { class: `bar ${side(value)}`, x: Math.min(x(0), x(value)), y: 5 + 18 * i,
      width: Math.abs(x(value) - x(0)), height: 12 });
    add(plot, "text", { x: Math.max(x(0), x(value)) + 4, y: 14 + 18 * i }, signed(value));
  });
  add(plot, "line", { class: "axis", x1: x(0), x2: x(0), y1: 2, y2: 56 });
}

// Zoom and pan of what is in `inner`; `pinned` keeps its place from left to right. The picture is never drawn anew:
// each step sets a transform. most: the width that is seen at first. Returns {state, by, put, fit, show}.
function zoomable(svg, inner, pinned, { width, height, most = width, onchange }) {
  const seen = { width: Math.min(width, most) }; // a tall or wide picture opens on a part of itself
  seen.height = Math.min(height, 0.9 * seen.width);
  const least = Math.min(1, seen.height / height, seen.width / width), state = { k: 1, x: 0, y: 0 };
  svg.setAttribute("viewBox", `0 0 ${seen.width} ${seen.height}`);

  function put() {
    state.k = Math.min(8, Math.max(least, state.k));
    for (const [axis, size, view] of [["x", width, seen.width], ["y", height, seen.height]]) {
      const room = view - size * state.k; // a smaller picture stands in the middle, a larger one leaves no gap
      state[axis] = room >= 0 ? room / 2 : Math.min(0, Math.max(room, state[axis]));
    }
    inner.setAttribute("transform", `translate(${state.x.toFixed(2)} ${state.y.toFixed(2)}) scale(${state.k.toFixed(4)})`);
    pinned.setAttribute("transform", `translate(${Math.max(0, -state.x / state.k).toFixed(2)} 0)`);
  }

  // Zoom by a factor around a point of the view, its middle where none is given.
  function by(factor, x = seen.width / 2, y = seen.height / 2) {
    const k = Math.min(8, Math.max(least, state.k * factor));
    state.x = x - (x - state.x) * k / state.k;
    state.y = y - (y - state.y) * k / state.k;
    state.k = k;
    put();
    onchange();
  }

  const point = (event) => {
    const box = svg.getBoundingClientRect(), scale = Math.min(box.width / seen.width, box.height / seen.height) || 1;
    return [(event.clientX - box.left - (box.width - seen.width * scale) / 2) / scale,
      (event.clientY - box.top - (box.height - seen.height * scale) / 2) / scale];
  };
  let from = null, moved = false;
  svg.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey && !svg.contains(document.activeElement)) return; // the page scrolls
    event.preventDefault();
    by(Math.exp(-Math.sign(event.deltaY) * Math.min(0.25, Math.abs(event.deltaY) / 400)), ...point(event));
  }, { passive: false });
  svg.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    moved = false;
    from = [...point(event), state.x, state.y];
  });
  svg.addEventListener("pointermove", (event) => {
    if (!from || !(event.buttons & 1)) return;
    const [x, y] = point(event);
    if (!moved && Math.hypot(x - from[0], y - from[1]) < 4) return;
    if (!moved) svg.setPointerCapture(event.pointerId);
    moved = true;
    state.x = from[2] + x - from[0];
    state.y = from[3] + y - from[1];
    put();
  });
  svg.addEventListener("pointerup", () => { from = null; if (moved) onchange(); });
  svg.addEventListener("click", (event) => { if (moved) event.stopPropagation(); moved = false; }, { capture: true });

  put();
  return {
    state, by, put,
    fit() { state.k = least; put(); onchange(); },
    // Move a point of the picture into view, where it is not already.
    show({ x, y }) {
      const [left, top] = [state.x + state.k * x, state.y + state.k * y];
      if (left > 40 && left < seen.width - 40 && top > 30 && top < seen.height - 30) return;
      state.x = seen.width / 2 - state.k * x;
      state.y = seen.height / 2 - state.k * y;
      put();
    },
  };
}

// A picture as the text of an SVG file: its styles written into it, the whole of it, whatever is zoomed to.
function svgText(svg, back) {
  const copy = svg.cloneNode(true), whole = svg.querySelector(".zoomed").getBBox();
  const kept = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "opacity",
    "font-family", "font-size", "font-weight", "text-anchor", "display", "text-decoration", "paint-order"];
  const [own, made] = [svg, copy].map((root) => [root, ...root.querySelectorAll("*")]);
  own.forEach((element, i) => {
    const style = getComputedStyle(element);
    for (const name of kept) made[i].style.setProperty(name, style.getPropertyValue(name));
    for (const name of ["class", "tabindex", "role", "aria-pressed"]) made[i].removeAttribute(name);
  });
  copy.setAttribute("viewBox", `${whole.x - 8} ${whole.y - 8} ${whole.width + 16} ${whole.height + 16}`);
  copy.setAttribute("width", whole.width + 16);
  copy.setAttribute("height", whole.height + 16);
  copy.style.background = back;
  for (const group of copy.querySelectorAll("[data-moved]")) group.removeAttribute("transform");
  return new XMLSerializer().serializeToString(copy);
}

async function pngOf(text) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [2 * image.width, 2 * image.height];
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

function download(name, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
