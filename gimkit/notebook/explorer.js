// The circuit explorer: data in, DOM out. The same module serves the notebook and the HTML file (explorer.py).
// Texts enter the page as text nodes and attributes only, so nothing in the data is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";
const COLUMN = 108, ROW = 96; // room of a head and of a layer, in pixels
const BOX = { width: 48, height: 26 }; // narrower than half a column
const STAGGER = [0, 0.5, 0.25, 0.75]; // layers are moved aside, so that edges pass between the boxes above
const PORTS = { q: -14, k: 0, v: 14 };
const CELL = 12; // of the attention map

function add(parent, name, attributes = {}, text = null) {
  const element = document.createElementNS(name === "svg" ? SVG : parent.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  return parent.appendChild(element);
}

const signed = (score) => (score < 0 ? "−" : "+") + Math.abs(score).toPrecision(3);
const side = (edge) => (edge.score > 0 ? "for" : "against");
const counted = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

function count(edges, end) {
  const found = {};
  for (const edge of edges) found[edge[end]] = (found[edge[end]] ?? 0) + 1;
  return found;
}

// {name: {x, y, row}} of every node, and the picture's width and height; the input is below, the logits on top.
function layout(names) {
  const parts = names.map((name) => [name, ...(/^([am])(\d+)(?:\.h(\d+))?$/.exec(name) ?? []).slice(1)]);
  const layers = 1 + Math.max(-1, ...parts.map((part) => Number(part[2] ?? -1)));
  const heads = 1 + Math.max(-1, ...parts.map((part) => Number(part[3] ?? -1)));
  const width = (heads + 1.75) * COLUMN, height = layers * ROW + 96;
  const places = {};
  for (const [name, kind, layer, head] of parts) {
    if (!kind) {
      places[name] = { x: width / 2, y: name === "input" ? height - 22 : 22, row: name === "input" ? 0 : layers + 1 };
      continue;
    }
    const row = Number(layer), column = kind === "a" ? Number(head) : heads;
    const x = (column + 0.5 + STAGGER[row % 4]) * COLUMN;
    places[name] = { x, y: height - 76 - row * ROW - (kind === "m" ? ROW / 2 : 0), row: row + 1 };
  }
  return { places, width, height };
}

export function explore(root, data) {
  const nodes = [...data.sources, "logits"];
  const { places, width, height } = layout(nodes);
  const edges = data.edges.map(([source, target, score, first]) => {
    const [owner, port] = data.targets[target].replace(">", "").split("<");
    return { source: data.sources[source], target: owner, port: port ?? "", score, first };
  });
  const strongest = edges.reduce((most, edge) => Math.max(most, Math.abs(edge.score)), 0) || 1;
  const byStrength = [...edges].sort((a, b) => Math.abs(a.score) - Math.abs(b.score)); // the strongest on top
  const middle = Math.floor(data.sizes.length / 2);
  const opening = strongestNode(edges.filter((edge) => edge.first <= middle));
  const state = { size: middle, selected: opening, current: opening ?? "logits", query: "" };
  const inside = (edge) => edge.first <= state.size;

  root.classList.add("gimkit-explorer");
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab would take the arrow keys for its cells
  const bar = add(root, "header");
  add(bar, "strong", {}, data.title);
  const search = add(add(bar, "label", {}, "Search "), "input", { type: "search", placeholder: "a2.h1, or a role" });
  const found = add(bar, "output", { class: "found" });
  add(root, "p", { class: "prompt" }, `Prompt: “${data.prompt}”`);
  const sizes = add(root, "div", { class: "sizes" });
  const slider = add(add(sizes, "label", {}, "Size "), "input",
    { type: "range", min: 0, max: data.sizes.length - 1, step: 1, value: state.size });
  const kept = add(sizes, "output", { class: "kept" });
  const curve = drawCurve(sizes, data);
  const body = add(root, "div", { class: "body" });
  const picture = add(add(body, "div", { class: "picture" }), "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "The circuit. Arrow keys move between nodes, " +
      "Enter lists a node's edges, Escape shows all." });
  picture.style.maxWidth = `${1.25 * width}px`;
  picture.style.minWidth = `${0.6 * width}px`;
  const lines = add(picture, "g", { class: "edges" });
  const boxes = Object.fromEntries(nodes.map((name) => [name, drawNode(picture, name)]));
  const panel = add(body, "aside");
  const card = add(panel, "section", { class: "card", "aria-live": "polite" });
  const lists = add(panel, "section", { class: "lists" });
  add(root, "footer", {}, "Blue lines help the answer, dashed orange ones hurt it; the thicker, the larger the " +
    `|score| (at most ${strongest.toPrecision(3)}). A thick frame: it has a role. Scores are sums over positions.` +
    (data.larger ? ` Not drawn: ${counted(data.larger, "circuit")} of more edges.` : ""));

  function drawNode(parent, name) {
    const { x, y } = places[name], wide = name === "input" || name === "logits";
    const w = wide ? width - 16 : BOX.width, role = data.roles[name];
    const box = add(parent, "g", { class: `node${role ? " role" : ""}`, role: "button", "data-name": name,
      transform: `translate(${x} ${y})` });
    add(box, "rect", { x: -w / 2, y: -BOX.height / 2, width: w, height: BOX.height, rx: 5 });
    const head = name[0] === "a";
    add(box, "text", { y: head ? 0 : 4 }, name);
    for (const port in head ? PORTS : {}) add(box, "text", { class: "port", x: PORTS[port], y: 10.5 }, port);
    box.addEventListener("click", () => select(name));
    box.addEventListener("focus", () => { state.current = name; drawNodes(); });
    if (role) add(box, "title", {}, `${name}: ${role}`);
    return box;
  }

  // Where an edge runs: input and logits are as wide as the picture, so their edges go straight up.
  function path(edge) {
    const start = places[edge.source], end = places[edge.target];
    let x = start.x, to = end.x + (PORTS[edge.port] ?? 0);
    if (edge.source === "input") x = edge.target === "logits" ? 20 : to;
    if (edge.target === "logits") to = x;
    const y = start.y - BOX.height / 2, top = end.y + BOX.height / 2, bend = Math.max(20, 0.4 * (y - top));
    return `M${x} ${y}C${x} ${y - bend} ${to} ${top + bend} ${to} ${top}`;
  }

  function drawEdges() {
    const shown = byStrength.filter(inside);
    const mine = (edge) => !state.selected || edge.source === state.selected || edge.target === state.selected;
    lines.replaceChildren();
    for (const edge of [...shown.filter((e) => !mine(e)), ...shown.filter(mine)]) {
      const share = Math.abs(edge.score) / strongest, port = edge.port && ` (${edge.port})`;
      const line = add(lines, "path", { d: path(edge), class: side(edge) + (mine(edge) ? "" : " other"),
        "stroke-width": (0.6 + 4.4 * share ** 0.7).toFixed(2),
        "stroke-opacity": (0.15 + 0.85 * share ** 0.5).toFixed(2) });
      add(line, "title", {}, `${edge.source} → ${edge.target}${port}: ${signed(edge.score)}`);
    }
    kept.textContent = `${data.sizes[state.size]} of ${counted(data.total, "edge")}, faithfulness ` +
      data.faithfulness[state.size].toFixed(2);
    slider.setAttribute("aria-valuetext", kept.textContent);
    curve(state.size);
  }

  function drawNodes() {
    const query = state.query.trim().toLowerCase();
    const hits = nodes.filter((name) => `${name} ${data.roles[name] ?? ""}`.toLowerCase().includes(query));
    const shown = edges.filter(inside), into = count(shown, "target"), out = count(shown, "source");
    for (const [name, box] of Object.entries(boxes)) {
      const says = [name, data.roles[name], `${into[name] ?? 0} in`, `${out[name] ?? 0} out`];
      box.classList.toggle("unused", !into[name] && !out[name]);
      box.classList.toggle("missed", query !== "" && !hits.includes(name));
      box.classList.toggle("hit", query !== "" && hits.includes(name));
      box.setAttribute("tabindex", name === state.current ? 0 : -1);
      box.setAttribute("aria-pressed", name === state.selected);
      box.setAttribute("aria-label", says.filter(Boolean).join(", "));
    }
    found.textContent = query === "" ? "" : counted(hits.length, "node");
    return hits;
  }

  // The selected node's role and attention; its edges stand below.
  function drawCard() {
    const name = state.selected;
    card.replaceChildren();
    if (name === null) {
      add(card, "p", { class: "hint" },
        "Click a node, or go to one with Tab and the arrow keys and press Enter: its role, attention and edges.");
      return;
    }
    add(card, "h3", {}, name);
    if (data.roles[name]) add(card, "p", { class: "role" }, data.roles[name]);
    const pattern = data.attention[name];
    if (!pattern) return;
    const last = pattern.at(-1).map((weight, at) => [weight, at]).sort((a, b) => b[0] - a[0]).slice(0, 3);
    add(card, "p", {}, `From the last token, “${data.tokens.at(-1)}”, to ` +
      last.map(([weight, at]) => `“${data.tokens[at]}” (${at + 1}) ${weight.toFixed(2)}`).join(", ") + ".");
    drawAttention(card, data.tokens, pattern);
  }

  function drawLists() {
    lists.replaceChildren();
    if (state.selected === null) return;
    for (const [title, own, other] of [["Into", "target", "source"], ["Out of", "source", "target"]]) {
      const chosen = byStrength.filter((edge) => edge[own] === state.selected).reverse();
      if (chosen.length === 0) continue;
      const heading = `${title} ${state.selected}`, here = chosen.filter(inside);
      const list = add(lists, "div", { class: "list", tabindex: 0, role: "region", "aria-label": heading });
      const table = add(list, "table");
      add(table, "caption", {}, `${heading}: ${counted(here.length, "edge")} here, of ${chosen.length}`);
      const rows = add(table, "tbody");
      for (const edge of [...here, ...chosen.filter((e) => !inside(e))]) {
        const row = add(rows, "tr", inside(edge) ? {} : { class: "outside", title: "not in the circuit of this size" });
        const link = add(add(row, "th", { scope: "row" }), "button", { type: "button" }, edge[other]);
        link.addEventListener("click", () => select(edge[other], true));
        add(row, "td", {}, edge.port ? `to ${edge.port}` : "");
        add(row, "td", { class: `score ${side(edge)}` }, signed(edge.score));
      }
    }
  }

  function select(name, always = false) {
    state.selected = state.selected === name && !always ? null : name;
    state.current = name ?? state.current;
    drawEdges(); drawNodes(); drawLists(); drawCard();
  }

  slider.addEventListener("input", () => {
    state.size = Number(slider.value);
    drawEdges(); drawNodes(); drawLists();
  });
  search.addEventListener("input", () => { state.query = search.value; drawNodes(); });
  search.addEventListener("keydown", (event) => {
    const hits = event.key === "Enter" && state.query.trim() ? drawNodes() : [];
    if (hits.length) { select(hits[0], true); boxes[hits[0]].focus(); }
    event.stopPropagation(); // the notebook has shortcuts of its own
  });
  picture.addEventListener("keydown", (event) => {
    const here = places[state.current];
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1 }[event.key];
    const apart = (name) => Math.abs(places[name].x - here.x);
    const nearest = (names) => [...names].sort((a, b) => apart(a) - apart(b))[0];
    if (event.key === "Enter" || event.key === " ") select(state.current);
    else if (event.key === "Escape") select(null);
    else if (step) {
      const next = nearest(/Left|Right/.test(event.key)
        ? nodes.filter((name) => places[name].row === here.row && step * (places[name].x - here.x) > 0)
        : nodes.filter((name) => places[name].row === here.row + step));
      if (next) boxes[next].focus();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
  drawEdges(); drawNodes(); drawLists(); drawCard();
}

// The head or MLP whose edges have the largest sum of |score|; null where there are none.
function strongestNode(edges) {
  const sums = {};
  for (const edge of edges) {
    for (const name of [edge.source, edge.target]) sums[name] = (sums[name] ?? 0) + Math.abs(edge.score);
  }
  delete sums.input;
  delete sums.logits;
  return Object.keys(sums).sort((a, b) => sums[b] - sums[a])[0] ?? null;
}

// The faithfulness of every size, a step of the slider apart; returns what marks one of them.
function drawCurve(parent, { sizes, faithfulness }) {
  const width = 240, height = 70, low = Math.min(0, ...faithfulness), high = Math.max(1, ...faithfulness);
  const x = (i) => 30 + (width - 46) * (sizes.length > 1 ? i / (sizes.length - 1) : 0.5);
  const y = (f) => 8 + (height - 22) * (high - f) / (high - low);
  const values = sizes.map((size, i) => `${size} edges ${faithfulness[i].toFixed(2)}`);
  const plot = add(parent, "svg", { class: "curve", viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `Faithfulness by size: ${values.join(", ")}` });
  for (const f of [0, 1]) {
    add(plot, "line", { class: "grid", x1: 26, x2: width - 8, y1: y(f), y2: y(f) });
    add(plot, "text", { x: 20, y: y(f) + 3, "text-anchor": "end" }, f);
  }
  add(plot, "polyline", { points: faithfulness.map((f, i) => `${x(i)},${y(f)}`).join(" ") });
  faithfulness.forEach((f, i) => add(plot, "circle", { cx: x(i), cy: y(f), r: 2 }));
  add(plot, "text", { x: x(0), y: height - 4 }, sizes[0]);
  add(plot, "text", { x: x(sizes.length - 1), y: height - 4, "text-anchor": "end" }, counted(sizes.at(-1), "edge"));
  const point = add(plot, "circle", { class: "point", r: 5 });
  return (i) => { point.setAttribute("cx", x(i)); point.setAttribute("cy", y(faithfulness[i])); };
}

// A head's attention: a row per query, a column per position it looks at.
function drawAttention(parent, tokens, pattern) {
  const longest = Math.min(12, Math.max(...tokens.map((token) => token.length)));
  const margin = 8 + 6 * longest, size = tokens.length * CELL, whole = margin + size + 2;
  const plot = add(parent, "svg", { class: "attention", viewBox: `0 0 ${whole} ${whole}`, role: "img",
    "aria-label": "attention: a row per query, a column per position" });
  plot.style.maxWidth = `${whole}px`;
  const short = (token) => (token.length > 12 ? `${token.slice(0, 11)}…` : token);
  tokens.forEach((token, i) => {
    const at = margin + (i + 0.8) * CELL;
    add(plot, "text", { x: margin - 4, y: at, "text-anchor": "end" }, short(token));
    add(plot, "text", { transform: `translate(${at} ${margin - 4}) rotate(-90)` }, short(token));
  });
  add(plot, "rect", { class: "frame", x: margin, y: margin, width: size, height: size });
  pattern.forEach((row, i) => row.slice(0, i + 1).forEach((weight, j) => {
    const cell = add(plot, "rect", { class: "cell", x: margin + j * CELL, y: margin + i * CELL, width: CELL,
      height: CELL, "fill-opacity": weight });
    add(cell, "title", {}, `from “${tokens[i]}” (${i + 1}) to “${tokens[j]}” (${j + 1}): ${weight.toFixed(2)}`);
  }));
}

export default { render: ({ model, el }) => explore(el, model.get("data")) };
