// The circuit as data: edges of a view, places of nodes, the strongest node and path. No DOM.

const COLUMN = 108; // room of a head, in pixels
const BOX = { width: 48, height: 26 }; // narrower than half a column
const STAGGER = [0, 0.5, 0.25, 0.75]; // layers are moved aside, so that edges pass between the boxes above
const PORTS = { q: -14, k: 0, v: 14 };
const MARGIN = 56; // left of the picture, for the names of the layers
const SIGNS = { both: () => true, for: (score) => score > 0, against: (score) => score <= 0 };

const partsOf = (name) => (/^([am])(\d+)(?:\.h(\d+))?$/.exec(name) ?? []).slice(1);

// {name: {x, y, row}} of every node, the layers' heights, and the picture's size; the input is below, the logits on top.
function layout(names) {
  const parts = names.map((name) => [name, ...partsOf(name)]);
  const layers = 1 + Math.max(-1, ...parts.map((part) => Number(part[2] ?? -1)));
  const heads = 1 + Math.max(-1, ...parts.map((part) => Number(part[3] ?? -1)));
  const room = layers > 12 ? 76 : 96; // of a layer
  const width = (heads + 1.75) * COLUMN + MARGIN, height = layers * room + 96;
  const places = {}, levels = [];
  for (let layer = 0; layer < layers; layer++) levels.push({ name: `layer ${layer}`, y: height - 76 - layer * room });
  for (const [name, kind, layer, head] of parts) {
    if (!kind) {
      const top = name !== "input";
      places[name] = { x: width / 2, y: top ? 22 : height - 22, row: top ? layers + 1 : 0 };
      continue;
    }
    const row = Number(layer), column = kind === "a" ? Number(head) : heads;
    const x = MARGIN + (column + 0.5 + STAGGER[row % 4]) * COLUMN;
    places[name] = { x, y: levels[row].y - (kind === "m" ? room / 2 : 0), row: row + 1 };
  }
  return { places, levels, width, height };
}

// The edges of one curve as objects, the weakest first, so that the strongest are drawn on top.
function edgesOf(data, curve) {
  return curve.edges.map(([source, target, score, first]) => {
    const [owner, port] = data.targets[target].replace(">", "").split("<");
    return { source: data.sources[source], target: owner, port: port ?? "", score, first, ends: [source, target] };
  }).sort((a, b) => Math.abs(a.score) - Math.abs(b.score));
}

const largest = (numbers) => numbers.reduce((most, x) => Math.max(most, Math.abs(x)), 0) || 1;

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

// The path from the input to the logits, through a node if one is given, along which the product of shares is largest:
// an edge's share is its part of the |score| that enters its node. {edges, share}, or null where no path leads there.
function strongestPath(edges, order, via = null) {
  const into = {}, place = Object.fromEntries(order.map((name, i) => [name, i]));
  for (const edge of edges) into[edge.target] = (into[edge.target] ?? 0) + Math.abs(edge.score);
  const upward = [...edges].sort((a, b) => place[a.source] - place[b.source]); // a source's own edges come before it
  function between(start, end) {
    const best = { [start]: { share: 1, edge: null } };
    for (const edge of upward) {
      const share = (best[edge.source]?.share ?? 0) * Math.abs(edge.score) / into[edge.target];
      if (share > (best[edge.target]?.share ?? 0)) best[edge.target] = { share, edge };
    }
    if (!best[end]) return null;
    const found = [];
    for (let { edge } = best[end]; edge; edge = best[edge.source].edge) found.unshift(edge);
    return { edges: found, share: best[end].share };
  }
  if (via === null || via === "input" || via === "logits") return between("input", "logits");
  const [before, after] = [between("input", via), between(via, "logits")];
  return before && after && { edges: [...before.edges, ...after.edges], share: before.share * after.share };
}

// The picture by layer and position: a mark {name, position, score, x, y, row} for each contribution, the strongest
// first, and its size. A cell has a slot for each head of the layer and one for the MLP.
function positionMarks(sources, tokens, contributions) {
  const parts = sources.map(partsOf);
  const layers = 1 + Math.max(-1, ...parts.map((part) => Number(part[1] ?? -1)));
  const heads = 1 + Math.max(-1, ...parts.map((part) => Number(part[2] ?? -1)));
  const slot = 14, cell = Math.max(64, (heads + 1) * slot + 6), room = 56, top = 8, foot = 42;
  const height = top + (layers + 1) * room + foot, width = MARGIN + tokens.length * cell + 8;
  const marks = [], levels = [{ name: "input", y: height - foot - room / 2 }];
  for (let layer = 0; layer < layers; layer++) levels.push({ name: `layer ${layer}`, y: levels[0].y - (layer + 1) * room });
  sources.forEach((name, i) => {
    const [kind, layer, head] = parts[i], row = kind ? Number(layer) + 1 : 0;
    const at = kind ? ((kind === "a" ? Number(head) : heads) - heads / 2) * slot : 0;
    contributions[i].forEach((score, position) => {
      if (!score) return;
      marks.push({ name, position, score, row, x: MARGIN + (position + 0.5) * cell + at, y: levels[row].y });
    });
  });
  marks.sort((a, b) => Math.abs(b.score) - Math.abs(a.score));
  return { marks, levels, cell, width, height, foot };
}

// What an address or an earlier page says, reduced to what this data knows; anything else is left out.
function restored(saved, data) {
  const found = {}, given = saved && typeof saved === "object" ? saved : {};
  const names = [...data.sources, "logits"], known = (name) => names.includes(name);
  const whole = (key, most) => { if (Number.isInteger(given[key]) && given[key] >= 0 && given[key] <= most) found[key] = given[key]; };
  whole("prompt", data.prompts.length - 1);
  whole("method", data.methods.length - 1);
  whole("curve", data.methods[found.method ?? 0].curves.length - 1);
  whole("size", (data.methods[found.method ?? 0].curves[found.curve ?? 0]?.sizes.length ?? 1) - 1);
  whole("threshold", 100);
  whole("position", data.prompts[found.prompt ?? 0].tokens.length - 1);
  if (given.sign in SIGNS) found.sign = given.sign;
  if (["summed", "positions"].includes(given.view)) found.view = given.view;
  if (given.selected === null || known(given.selected)) found.selected = given.selected;
  if (given.trace === "input" || given.trace === "token" || known(given.trace)) found.trace = given.trace;
  if (Array.isArray(given.ablated)) found.ablated = given.ablated.filter(known).slice(0, names.length);
  if (Array.isArray(given.zoom) && given.zoom.length === 3 && given.zoom.every(Number.isFinite)) found.zoom = given.zoom;
  found.marks = {};
  for (const [name, mark] of Object.entries(given.marks ?? {})) {
    if (!known(name) || !mark || typeof mark !== "object") continue;
    found.marks[name] = { pin: mark.pin === true };
    for (const key of ["label", "group", "note"]) {
      if (typeof mark[key] === "string" && mark[key]) found.marks[name][key] = mark[key].slice(0, 500);
    }
  }
  return found;
}
