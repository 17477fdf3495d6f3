// The circuit explorer: data in, DOM out. explorer_graph.js and explorer_draw.js stand before this in one module, which
// serves the notebook and the HTML file (explorer.py).

const MOST_MARKS = 600; // by layer and position
const HINT = "Click a node for its edges, or a token of the prompt for the strongest path through the node that scores most " +
  "there.";
const GROUPS = ["#1f7fbf", "#c77b00", "#2a8f6f", "#b0569b", "#8a6d3b", "#6b6bd6"];

// address: keep the state in the page's address. live: {send, receive}, a kernel that runs the model.
export function explore(root, data, { address = false, live = null } = {}) {
  const nodes = [...data.sources, "logits"];
  const { places, levels, width, height } = layout(nodes);
  const state = { prompt: 0, method: 0, curve: 0, threshold: 0, sign: "both", view: "summed", trace: null, position: null,
    ablated: [], cut: [], marks: {}, query: "" };
  const prompt = () => data.prompts[state.prompt];
  const method = () => data.methods[state.method];
  const curve = () => method().curves[state.curve];
  const contributions = () => method().positions[state.prompt] ?? null;
  const inside = (edge) => edge.first <= state.size;
  const limit = (most) => (state.threshold / 100) ** 2 * most;
  const passes = (score, most) => Math.abs(score) >= limit(most) && SIGNS[state.sign](score);
  const visible = (edge) => inside(edge) && passes(edge.score, strongest);
  const labelOf = (name) => state.marks[name]?.label || name;
  let edges = [], strongest = 1, markCurve = null, path = null, measured = null, asked = 0, boxes = {};
  const looks = {};

  // The page, once.
  root.classList.add("gimkit-explorer");
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab would take the arrow keys for its cells
  const bar = add(root, "header");
  add(bar, "strong", {}, data.title);
  const search = add(add(bar, "label", {}, "Search "), "input", { type: "search", placeholder: "a2.h1, or a role" });
  const found = add(bar, "output", { class: "found" });
  const switches = add(bar, "div", { class: "switches" });
  const about = add(root, "section", { class: "about", "aria-label": "The prompt" });
  const controls = add(root, "div", { class: "sizes" });
  const sliders = add(controls, "div", { class: "sliders" });
  const slider = range("Size", 0);
  const kept = add(slider.row, "output", { class: "kept" });
  const threshold = range("Threshold", 100);
  const hidden = add(threshold.row, "output", { class: "drawn" });
  choice(threshold.row, "Show", { both: "for and against", for: "for the answer", against: "against it" }, "both",
    (value) => { state.sign = value; refresh(); }).classList.add("sign");
  const plot = add(controls, "div", { class: "plot" });
  const body = add(root, "div", { class: "body" });
  const picture = add(body, "div", { class: "picture" });
  const tools = add(picture, "div", { class: "tools" });
  const views = { summed: "Summed over positions", positions: "By position" };
  const tabs = Object.fromEntries(Object.entries(views).map(([key, text]) =>
    [key, button(tools, text, () => { state.view = key; refresh(); })]));
  const tracing = button(tools, "Trace from the input", () => trace(state.trace === "input" ? null : "input"));
  for (const [text, name, act] of [["+", "Zoom in", () => zoom().by(1.3)], ["−", "Zoom out", () => zoom().by(1 / 1.3)],
    ["0", "Show all", () => zoom().fit()]]) button(tools, text, act, { "aria-label": name, title: name, class: "zoom" });
  button(tools, "SVG", () => save("svg"), { title: "Save the picture as SVG" });
  button(tools, "PNG", () => save("png"), { title: "Save the picture as PNG" });
  button(tools, "JSON", () => save("json"), { title: "Save the edges shown, and your names and notes, as JSON" });
  const traced = add(picture, "output", { class: "trace" });
  const graph = canvas("summed", "The circuit. Arrow keys move between nodes, Enter lists a node's edges, Escape shows " +
    "all, + and − zoom, 0 shows the whole.");
  const lines = add(graph.inner, "g", { class: "edges" });
  boxes = Object.fromEntries(nodes.map((name) => [name, drawNode(graph.inner, name)]));
  graph.zoom = zoomable(graph.svg, graph.inner, graph.pinned, { width, height, onchange: remember });
  graph.inner.append(graph.pinned);
  for (const { name, y } of levels) add(graph.pinned, "text", { x: 4, y: y + 4 }, name);
  const map = canvas("positions", "Nodes by layer and position. Arrow keys move between marks, Enter selects a node.");
  const panel = add(body, "aside");
  const card = add(panel, "section", { class: "card", "aria-live": "polite", "aria-label": "The selected node" });
  const ablation = add(panel, "section", { class: "ablation", "aria-live": "polite", "aria-label": "Ablation" });
  const lists = add(panel, "section", { class: "lists", "aria-label": "Its edges" });
  const marked = add(panel, "section", { class: "marked", "aria-label": "Pinned and grouped nodes" });
  const footer = add(root, "footer");
  const zoom = () => (state.view === "summed" ? graph : map).zoom;

  function range(name, most) {
    const row = add(sliders, "div");
    const input = add(add(row, "label", {}, `${name} `), "input", { type: "range", min: 0, max: most, step: 1, value: 0 });
    return { row, input };
  }

  // A picture that zooms: the svg, the group that moves, and the group that keeps its place from left to right.
  function canvas(kind, label) {
    const svg = add(picture, "svg", { class: kind, role: "group", "aria-label": label });
    const inner = add(svg, "g", { class: "zoomed", "data-moved": "" });
    return { svg, inner, pinned: add(inner, "g", { class: "levels", "data-moved": "" }), zoom: null };
  }

  function drawNode(parent, name) {
    const { x, y } = places[name], wide = name === "input" || name === "logits";
    const w = wide ? width - 16 : BOX.width, role = data.roles[name], head = name[0] === "a";
    const box = add(parent, "g", { class: `node${role ? " role" : ""}`, role: "button", "data-name": name,
      transform: `translate(${x} ${y})` });
    add(box, "rect", { x: -w / 2, y: -BOX.height / 2, width: w, height: BOX.height, rx: 5 });
    add(box, "text", { class: "name", y: head ? 0 : 4 }, name);
    for (const port in head ? PORTS : {}) add(box, "text", { class: "port", x: PORTS[port], y: 10.5 }, port);
    box.addEventListener("click", () => select(name));
    box.addEventListener("focus", () => {
      boxes[state.current].setAttribute("tabindex", -1);
      state.current = name;
      box.setAttribute("tabindex", 0);
    });
    add(box, "circle", { class: "pin", cx: -w / 2, cy: -BOX.height / 2, r: 5 });
    add(box, "title");
    return box;
  }

  // Where an edge runs: input and logits are as wide as the picture, so their edges go straight up.
  function curveOf(edge) {
    const start = places[edge.source], end = places[edge.target];
    let x = start.x, to = end.x + (PORTS[edge.port] ?? 0);
    if (edge.source === "input") x = edge.target === "logits" ? MARGIN - 6 : to;
    if (edge.target === "logits") to = x;
    const y = start.y - BOX.height / 2, top = end.y + BOX.height / 2, bend = Math.max(20, 0.4 * (y - top));
    return `M${x} ${y}C${x} ${y - bend} ${to} ${top + bend} ${to} ${top}`;
  }

  function drawLine(edge) {
    const share = Math.abs(edge.score) / strongest, line = document.createElementNS(SVG, "path");
    const look = { d: curveOf(edge), class: side(edge.score), "stroke-width": (0.6 + 4.4 * share ** 0.7).toFixed(2),
      "stroke-opacity": (0.15 + 0.85 * share ** 0.5).toFixed(2) };
    for (const [key, value] of Object.entries(look)) line.setAttribute(key, value);
    add(line, "title", {}, `${nameOf(edge)}: ${signed(edge.score)}`);
    return line;
  }

  const nameOf = (edge) => `${edge.source} → ${edge.target}${edge.port && ` (${edge.port})`}`;

  function drawEdges() {
    const shown = edges.filter(visible), on = new Set(path?.edges ?? []);
    const mine = (edge) => (path ? on.has(edge)
      : !state.selected || edge.source === state.selected || edge.target === state.selected);
    // A line is made once; one edge more or less, or another node, moves and marks only the lines that it concerns.
    for (const edge of edges) if (edge.line?.isConnected && !visible(edge)) edge.line.remove();
    for (const edge of shown) {
      edge.line ??= drawLine(edge);
      edge.line.classList.toggle("other", !mine(edge));
      edge.line.classList.toggle("on-path", on.has(edge));
    }
    if (path || state.selected) {
      lines.append(...shown.filter((edge) => !edge.line.isConnected).map((edge) => edge.line));
      lines.append(...shown.filter(mine).map((edge) => edge.line));
    } else lines.replaceChildren(...shown.map((edge) => edge.line));
    const { sizes, faithfulness } = curve();
    kept.textContent = `${sizes[state.size]} of ${counted(data.total, "edge")}, faithfulness ` +
      faithfulness[state.size].toFixed(2);
    slider.input.setAttribute("aria-valuetext", kept.textContent);
    hidden.textContent = `|score| ≥ ${Number(limit(strongest).toPrecision(2))}: ${counted(shown.length, "edge")} drawn`;
    threshold.input.setAttribute("aria-valuetext", hidden.textContent);
    markCurve(state.size);
  }

  function drawNodes() {
    const query = state.query.trim().toLowerCase();
    const texts = (name) => [name, data.roles[name], ...Object.values(state.marks[name] ?? {}).filter((x) => x !== true)];
    const hits = nodes.filter((name) => texts(name).filter(Boolean).join(" ").toLowerCase().includes(query));
    const into = {}, out = {}, groups = groupNames();
    for (const edge of edges.filter(visible)) {
      into[edge.target] = (into[edge.target] ?? 0) + 1;
      out[edge.source] = (out[edge.source] ?? 0) + 1;
    }
    for (const [name, box] of Object.entries(boxes)) {
      const mark = state.marks[name] ?? {}, ablated = state.ablated.includes(name);
      const says = [name, mark.label, data.roles[name], `${into[name] ?? 0} in`, `${out[name] ?? 0} out`,
        ablated && "ablated", mark.pin && "pinned", mark.group && `group ${mark.group}`];
      const classes = { unused: !into[name] && !out[name], missed: query !== "" && !hits.includes(name), ablated,
        hit: query !== "" && hits.includes(name), pinned: mark.pin, grouped: mark.group };
      box.setAttribute("tabindex", name === state.current ? 0 : -1);
      box.setAttribute("aria-pressed", name === state.selected);
      const look = [...says, mark.note, ...Object.values(classes)].join("|");
      if (looks[name] === look) continue;
      looks[name] = look;
      for (const [kind, on] of Object.entries(classes)) box.classList.toggle(kind, Boolean(on));
      box.style.setProperty("--group", mark.group ? GROUPS[groups.indexOf(mark.group) % GROUPS.length] : "");
      box.setAttribute("aria-label", says.filter(Boolean).join(", "));
      box.querySelector(".name").textContent = clipped(labelOf(name), 8);
      box.classList.toggle("long", labelOf(name).length > 6);
      box.querySelector("title").textContent = [name, mark.label, data.roles[name], mark.note].filter(Boolean).join(": ");
    }
    found.textContent = query === "" ? "" : counted(hits.length, "node");
    return hits;
  }

  // The selected node: its role, effect, attention and scores by position; its edges stand below.
  function drawCard() {
    const name = state.selected, { tokens, effects, clean, attention } = prompt();
    card.replaceChildren();
    if (name === null) {
      add(card, "p", { class: "hint" },
        "Click a node, or go to one with Tab and the arrow keys and press Enter: its role, effect, attention and edges.");
      return;
    }
    add(card, "h3", {}, name);
    if (state.marks[name]?.label) add(card, "p", { class: "label" }, state.marks[name].label);
    if (data.roles[name]) add(card, "p", { class: "role" }, data.roles[name]);
    if (effects && name in effects) {
      add(card, "p", { class: "effect" }, `Exact effect: with the corrupt run's output in its place, the logit difference ` +
        `goes from ${signed(clean)} to ${signed(clean - effects[name])} (by ${signed(-effects[name])}).`);
    } else if (effects && name !== "logits") {
      add(card, "p", { class: "effect" }, "No effect was computed: no circuit shown has this node.");
    }
    const acts = add(card, "p", { class: "acts" });
    if (effects && name !== "logits" && (live || name in effects)) {
      button(acts, "Ablate", () => ablate(name), { "aria-pressed": state.ablated.includes(name), class: "ablate" });
    }
    button(acts, "Trace through it", () => trace(state.trace === name ? null : name), { "aria-pressed": state.trace === name });
    button(acts, "Pin", () => mark(name, { pin: !state.marks[name]?.pin }), { class: "pin",
      "aria-pressed": state.marks[name]?.pin === true });
    drawMark(name);
    const scores = contributions()?.[data.sources.indexOf(name)];
    if (scores) {
      const best = scores.map((score, at) => [score, at]).sort((a, b) => Math.abs(b[0]) - Math.abs(a[0])).slice(0, 3);
      add(card, "p", { class: "where" }, `By position (sum ${signed(scores.reduce((sum, x) => sum + x, 0))}): ` +
        best.map(([score, at]) => `“${tokens[at]}” (${at + 1}) ${signed(score)}`).join(", ") + ".");
    }
    const pattern = attention[name];
    if (!pattern) return;
    const last = pattern.at(-1).map((weight, at) => [weight, at]).sort((a, b) => b[0] - a[0]).slice(0, 3);
    add(card, "p", { class: "looks" }, `From the last token, “${tokens.at(-1)}”, to ` +
      last.map(([weight, at]) => `“${tokens[at]}” (${at + 1}) ${(weight / 1000).toFixed(2)}`).join(", ") + ".");
    drawAttention(card, tokens, pattern);
  }

  // Name, group and note of a node, typed by the reader.
  function drawMark(name) {
    const own = state.marks[name] ?? {}, fold = add(card, "details", { class: "mark" });
    fold.open = Boolean(own.label || own.group || own.note);
    add(fold, "summary", {}, "Name, group, note");
    for (const [key, title, kind] of [["label", "Name", "input"], ["group", "Group", "input"], ["note", "Note", "textarea"]]) {
      const field = add(add(fold, "label", {}, `${title} `), kind, kind === "input" ? { type: "text" } : { rows: 2 });
      field.maxLength = 500;
      field.value = own[key] ?? "";
      field.addEventListener("input", () => mark(name, { [key]: field.value }, false));
      field.addEventListener("keydown", (event) => event.stopPropagation());
    }
  }

  const groupNames = () => [...new Set(Object.values(state.marks).map((own) => own.group).filter(Boolean))];

  function mark(name, change, redraw = true) {
    const own = { ...state.marks[name], ...change };
    for (const key of Object.keys(own)) if (!own[key]) delete own[key];
    if (Object.keys(own).length) state.marks[name] = own;
    else delete state.marks[name];
    drawNodes(); drawMarked(); remember();
    if (redraw) { drawCard(); card.querySelector(".pin")?.focus(); }
  }

  function drawMarked() {
    marked.replaceChildren();
    const all = nodes.filter((name) => state.marks[name]);
    const sections = [["Pinned", all.filter((name) => state.marks[name].pin)],
      ...groupNames().map((group) => [`Group ${group}`, all.filter((name) => state.marks[name].group === group)])];
    for (const [title, names] of sections) {
      if (!names.length) continue;
      add(marked, "h4", {}, title);
      const list = add(marked, "ul", { "aria-label": title });
      for (const name of names) {
        const row = add(list, "li"), { label, note } = state.marks[name];
        button(row, label ? `${name} ${label}` : name, () => select(name, true), { class: "link" });
        if (note) add(row, "span", {}, ` ${note}`);
      }
    }
  }

  function drawLists() {
    lists.replaceChildren();
    if (state.selected === null) return;
    for (const [title, own, other] of [["Into", "target", "source"], ["Out of", "source", "target"]]) {
      const chosen = edges.filter((edge) => edge[own] === state.selected).reverse();
      if (chosen.length === 0) continue;
      const heading = `${title} ${state.selected}`, here = chosen.filter(inside);
      const list = add(lists, "div", { class: "list", tabindex: 0, role: "region", "aria-label": heading });
      const table = add(list, "table");
      add(table, "caption", {}, `${heading}: ${counted(here.length, "edge")} here, of ${chosen.length}`);
      const rows = add(table, "tbody");
      for (const edge of [...here, ...chosen.filter((e) => !inside(e))]) {
        const row = add(rows, "tr", inside(edge) ? {} : { class: "outside", title: "not in the circuit of this size" });
        const name = edge[other];
        button(add(row, "th", { scope: "row" }), labelOf(name), () => select(name, true), { class: "link" });
        add(row, "td", {}, edge.port ? `to ${edge.port}` : "");
        add(row, "td", { class: `score ${side(edge.score)}` }, signed(edge.score));
        if (!live || !prompt().effects) continue;
        const off = state.cut.some((ends) => String(ends) === String(edge.ends));
        button(add(row, "td"), "cut", () => cut(edge), { "aria-pressed": off, "aria-label": `cut ${nameOf(edge)}` });
      }
    }
  }

  // Ablation: a file has every single node's effect; a kernel runs the model without several nodes and edges.
  function ablate(name) {
    const on = state.ablated.includes(name);
    state.ablated = on ? state.ablated.filter((other) => other !== name) : live ? [...state.ablated, name] : [name];
    measure();
    card.querySelector(".ablate")?.focus();
  }

  function cut(edge) {
    const rest = state.cut.filter((ends) => String(ends) !== String(edge.ends));
    state.cut = rest.length < state.cut.length ? rest : [...rest, edge.ends];
    measure();
  }

  function measure() {
    const { clean, effects } = prompt(), [one] = state.ablated, request = ++asked;
    measured = null;
    if (effects && state.ablated.length === 1 && !state.cut.length && one in effects) measured = { value: clean - effects[one] };
    else if (effects && live && (state.ablated.length || state.cut.length)) {
      live.send({ request, prompt: state.prompt, nodes: state.ablated, edges: state.cut });
    }
    drawNodes(); drawCard(); drawLists(); drawAblations(); remember();
  }

  live?.receive((answer) => {
    if (answer.request !== asked) return; // of an earlier click
    measured = answer;
    drawAblations();
  });

  function drawAblations() {
    ablation.replaceChildren();
    const { clean, effects } = prompt();
    if (!effects || !(state.ablated.length || state.cut.length)) return;
    const edgeName = ([source, target]) => `${data.sources[source]}→${data.targets[target]}`;
    add(ablation, "h4", {}, `Without ${[...state.ablated, ...state.cut.map(edgeName)].join(", ")}`);
    const says = add(ablation, "p", { class: "result" });
    if (measured === null) says.textContent = live ? "The kernel runs the model …" : "Not computed when the file was made.";
    else if (measured.error) says.textContent = measured.error;
    else {
      says.textContent = `Logit difference: ${signed(clean)} before, ${signed(measured.value)} after.`;
      drawAblation(ablation, clean, measured.value, clean - effects.input);
    }
    add(ablation, "p", { class: "hint" }, live ? "Run by the kernel: add nodes, and edges with “cut”."
      : "Computed when the file was made, one node at a time. Several nodes and edges together need a notebook.");
    button(ablation, "Restore all", () => { state.ablated = []; state.cut = []; measure(); });
  }

  // The strongest path: from the input, through a node, or through the node that scores most at a token.
  function trace(start) {
    state.trace = start;
    if (start !== "token") state.position = null;
    refresh();
  }

  function tracePath() {
    const shown = edges.filter(visible), { tokens } = prompt();
    let via = state.trace, says = "the input";
    path = null;
    if (via === "token") {
      const used = new Set(shown.map((edge) => edge.source)), scores = contributions();
      const at = (name) => Math.abs(scores[data.sources.indexOf(name)][state.position]);
      via = scores && data.sources.filter((name) => name !== "input" && used.has(name) && at(name) > 0)
        .reduce((best, name) => (best === null || at(name) > at(best) ? name : best), null);
      const token = `“${tokens[state.position]}” (${state.position + 1})`;
      says = via ? `token ${token}, where ${via} scores most (${signed(scores[data.sources.indexOf(via)][state.position])})`
        : `token ${token}, where no node shown has a score` + (scores ? ": up to it the corrupt prompt is the same" : "");
    } else if (via && via !== "input") says = `the input through ${via}`;
    if (via) path = strongestPath(shown, nodes, via === "input" ? null : via);
    traced.textContent = !state.trace ? HINT : path ? `Strongest path from ${says}: ${pathText(path)}. Along it the product of ` +
      `each edge's part of the |score| into its node is ${(100 * path.share).toPrecision(2)} %.`
      : `No path from ${says}` + (via ? ": none leads from the input to the logits through the edges shown." : ".");
    tracing.setAttribute("aria-pressed", state.trace === "input");
  }

  const pathText = ({ edges: steps }) => [steps[0].source,
    ...steps.map(({ target, port }) => labelOf(target) + (port && ` (${port})`))].join(" → ");

  // Nodes by layer and position, strongest first; edges have no positions.
  function drawPositions() {
    const scores = contributions(), { tokens } = prompt();
    map.inner.replaceChildren();
    map.pinned.replaceChildren();
    const { marks, levels: rows, cell, width: wide, height: high, foot } = positionMarks(data.sources, tokens, scores);
    const most = largest(marks.map(({ score }) => score));
    const drawn = marks.filter(({ score }) => passes(score, most)).slice(0, MOST_MARKS);
    if (state.position !== null) {
      add(map.inner, "rect", { class: "column", x: MARGIN + state.position * cell, y: 0, width: cell, height: high });
    }
    for (const { y } of rows) add(map.inner, "line", { class: "grid", x1: MARGIN, x2: wide, y1: y, y2: y });
    tokens.forEach((token, i) => add(map.inner, "text", { class: "tick", x: MARGIN + (i + 0.5) * cell, y: high - foot + 16 },
      clipped(token, Math.max(8, Math.floor(cell / 7)))));
    tokens.forEach((_, i) => add(map.inner, "text", { class: "tick place", x: MARGIN + (i + 0.5) * cell, y: high - foot + 30 },
      i + 1));
    for (const spot of [...drawn].reverse()) {
      const { name, position, score, x, y } = spot, says = `${name} at “${tokens[position]}” (${position + 1}): ${signed(score)}`;
      const made = add(map.inner, "g", { class: `spot ${side(score)}${name === state.selected ? " mine" : ""}`, role: "button",
        "data-name": name, "data-position": position, transform: `translate(${x} ${y})`, "aria-label": says,
        "aria-pressed": name === state.selected, tabindex: spot === drawn[0] ? 0 : -1 });
      add(made, "circle", { r: (1.5 + 6 * Math.sqrt(Math.abs(score) / most)).toFixed(2) });
      add(made, "title", {}, says);
      made.addEventListener("click", () => { state.position = position; select(name, true); });
      spot.element = made;
    }
    const named = []; // the strongest, where there is room
    for (const { name, x, y } of drawn.slice(0, 40)) {
      if (named.some((other) => other.y === y && Math.abs(other.x - x) < 44)) continue;
      named.push({ x, y });
      add(map.inner, "text", { class: "tick", x, y: y - 12 }, clipped(labelOf(name), 8));
    }
    map.inner.append(map.pinned);
    for (const { name, y } of rows) add(map.pinned, "text", { x: 4, y: y + 4 }, name);
    map.drawn = drawn;
    const fresh = map.zoom === null;
    map.zoom ??= zoomable(map.svg, map.inner, map.pinned, { width: wide, height: high, most: 1000,
      onchange: remember });
    if (fresh && drawn.length) map.zoom.show(drawn[0]);
    traced.textContent = `${drawn.length} of ${counted(marks.length, "score")} by position, the strongest ` +
      `${signed(drawn[0]?.score ?? 0)}; larger circles score more, full ones for the answer, rings against it. ` +
      "Each node's scores add up to those of the edges that leave it, on this prompt.";
  }

  function refresh() {
    const positions = state.view === "positions" && contributions() !== null;
    if (!positions) state.view = "summed";
    for (const [key, tab] of Object.entries(tabs)) tab.setAttribute("aria-pressed", key === state.view);
    tabs.positions.disabled = contributions() === null;
    graph.svg.classList.toggle("away", positions);
    map.svg.classList.toggle("away", !positions);
    tracePath();
    drawPrompt(about, prompt(), method().attribution[state.prompt] ?? null, method().rules,
      { chosen: state.position, onchoose: token });
    drawEdges(); drawNodes(); drawLists(); drawCard(); drawAblations(); drawMarked();
    if (positions) drawPositions();
    remember();
  }

  function token(i) {
    const again = state.position === i && state.trace === "token";
    state.position = again ? null : i;
    trace(again ? null : "token");
    about.querySelectorAll(".token")[i].focus();
  }

  // Another method, ranking or prompt: its edges, sizes and curve.
  function show(saved = {}) {
    Object.assign(state, saved);
    const { sizes, larger } = curve();
    lines.replaceChildren();
    edges = edgesOf(data, curve());
    strongest = largest(edges.map((edge) => edge.score));
    state.size = Math.min(state.size ?? Math.floor(sizes.length / 2), sizes.length - 1);
    if (state.selected === undefined) state.selected = strongestNode(edges.filter(inside));
    state.current ??= state.selected ?? "logits";
    slider.input.max = sizes.length - 1;
    slider.input.value = state.size;
    threshold.input.value = state.threshold;
    threshold.row.querySelector(".sign").value = state.sign;
    plot.replaceChildren();
    markCurve = drawCurve(plot, curve());
    switches.replaceChildren();
    choice(switches, "Prompt", { ...data.prompts.map((one, i) => `${i + 1}: ${clipped(one.text, 40)}`) }, state.prompt,
      (i) => { state.position = null; if (state.trace === "token") state.trace = null; map.zoom = null;
        show({ prompt: Number(i) }); });
    choice(switches, "Scores", { ...data.methods.map((one) => one.label) }, state.method,
      (i) => show({ method: Number(i), curve: Math.min(state.curve, data.methods[i].curves.length - 1) }));
    choice(switches, "Ranked by", { ...method().curves.map((one) => ({ absolute: "|score| (absolute)",
      signed: "score (signed)" }[one.ranking] ?? one.ranking)) }, state.curve, (i) => show({ curve: Number(i) }));
    footer.textContent = "Blue lines help the answer, dashed orange ones hurt it; the thicker, the larger the " +
      `|score| (at most ${strongest.toPrecision(3)}). A thick frame: it has a role. Edges are sums over positions. ` +
      "Wheel or pinch with Ctrl, or after a click into the picture, zooms; dragging moves it." +
      (larger ? ` Not drawn: ${counted(larger, "circuit")} of more edges.` : "");
    refresh();
    measure();
  }

  function select(name, always = false) {
    state.selected = state.selected === name && !always ? null : name;
    state.current = name ?? state.current;
    if (always && name) graph.zoom.show(places[name]);
    if (state.view === "positions") { refresh(); return; }
    drawEdges(); drawNodes(); drawLists(); drawCard(); remember();
  }

  // Files: the picture as it stands, or its edges with the reader's names and notes.
  async function save(kind) {
    const name = `${data.title.replace(/[^a-z0-9]+/gi, "-").replace(/^-|-$/g, "")}.${kind}`;
    if (kind === "json") {
      download(name, new Blob([JSON.stringify(contents(), null, 1)], { type: "application/json" }));
      return;
    }
    const text = svgText((state.view === "summed" ? graph : map).svg, getComputedStyle(root).backgroundColor);
    download(name, kind === "svg" ? new Blob([text], { type: "image/svg+xml" }) : await pngOf(text));
  }

  function contents() {
    const shown = edges.filter(visible), used = new Set(shown.flatMap((edge) => [edge.source, edge.target]));
    const { effects } = prompt();
    return { title: data.title, scores: curve().label, prompt: prompt().text, edges_in_circuit: curve().sizes[state.size],
      faithfulness: curve().faithfulness[state.size], path: path ? path.edges.map(nameOf) : null,
      nodes: nodes.filter((name) => used.has(name) || state.marks[name]).map((name) => ({ name, role: data.roles[name] ?? "",
        effect: effects?.[name] ?? null, ...state.marks[name] })),
      edges: shown.reverse().map(({ source, target, port, score }) => ({ source, target, port, score })) };
  }

  // The state in the address of a file, so that it can be sent and come back to.
  let later = null, written = "";
  function remember() {
    if (!address) return;
    clearTimeout(later);
    later = setTimeout(() => {
      const { k, x, y } = graph.zoom.state;
      const kept = { zoom: [k, x, y].map((value) => Number(value.toFixed(3))) };
      for (const key of ["prompt", "method", "curve", "size", "threshold", "sign", "view", "selected", "trace", "position",
        "ablated", "marks"]) kept[key] = state[key];
      written = `#${encodeURIComponent(JSON.stringify(kept))}`;
      history.replaceState(null, "", written);
    }, 150);
  }

  function fromAddress() {
    try {
      return restored(JSON.parse(decodeURIComponent(location.hash.slice(1))), data);
    } catch {
      return {}; // no address of this page's
    }
  }

  slider.input.addEventListener("input", () => { state.size = Number(slider.input.value); refresh(); });
  threshold.input.addEventListener("input", () => { state.threshold = Number(threshold.input.value); refresh(); });
  search.addEventListener("input", () => { state.query = search.value; drawNodes(); });
  search.addEventListener("keydown", (event) => {
    const hits = event.key === "Enter" && state.query.trim() ? drawNodes() : [];
    if (hits.length) { select(hits[0], true); boxes[hits[0]].focus(); }
    event.stopPropagation(); // the notebook has shortcuts of its own
  });
  picture.addEventListener("keydown", (event) => {
    if (!event.target.closest("svg") || event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = { ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1 }[event.key];
    const sideways = /Left|Right/.test(event.key);
    if (event.key === "+" || event.key === "=") zoom().by(1.3);
    else if (event.key === "-") zoom().by(1 / 1.3);
    else if (event.key === "0") zoom().fit();
    else if (event.key === "Escape") { state.trace = state.position = null; state.selected = null; refresh(); }
    else if (event.key === "Enter" || event.key === " ") event.target.closest("[data-name]")?.dispatchEvent(new Event("click"));
    else if (arrow) step(event.target, arrow, sideways);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  // The nearest node or mark in the direction of an arrow key gets the focus, and comes into view.
  function step(target, direction, sideways) {
    const summed = state.view === "summed", own = target.closest(".spot");
    const all = summed ? nodes.map((name) => ({ ...places[name], element: boxes[name] })) : map.drawn;
    const here = summed ? places[state.current] : all.find(({ element }) => element === own) ?? all[0];
    const apart = (place) => Math.abs(place.x - here.x);
    let next = null;
    if (sideways) {
      next = all.filter((place) => place.row === here.row && direction * (place.x - here.x) > 0);
    } else {
      const beyond = all.filter((place) => direction * (place.row - here.row) > 0);
      const row = direction * Math.min(...beyond.map((place) => direction * place.row));
      next = beyond.filter((place) => place.row === row);
    }
    next = next.sort((a, b) => apart(a) - apart(b))[0];
    if (!next) return;
    zoom().show(next);
    if (!summed) for (const { element } of all) element.setAttribute("tabindex", element === next.element ? 0 : -1);
    next.element.focus();
  }

  const saved = address ? fromAddress() : {};
  show(saved);
  if (saved.zoom) {
    Object.assign(graph.zoom.state, { k: saved.zoom[0], x: saved.zoom[1], y: saved.zoom[2] });
    graph.zoom.put();
  } else if (state.selected) graph.zoom.show(places[state.selected]);
  if (address) addEventListener("hashchange", () => { if (location.hash !== written) show(fromAddress()); });
}

export default {
  render: ({ model, el }) => explore(el, model.get("data"), {
    live: { send: (message) => model.send(message), receive: (answer) => model.on("msg:custom", answer) },
  }),
};
