"use strict";
// The parts of pages. Each takes plain JSON and returns a node, or draws it into a node, again whenever it is called.

// --- elements ---

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}
const html = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

// --- numbers and texts ---

const NONE = "–";
const seconds = (value) =>
  value === null ? NONE : value >= 100 ? `${value.toFixed(0)} s` : value >= 1 ? `${value.toFixed(2)} s`
    : value >= 0.01 ? `${(1000 * value).toFixed(0)} ms` : value >= 0.0001 ? `${(1000 * value).toFixed(1)} ms` : "<0.1 ms";
const fixed = (value, digits, unit = "") => (value === null || value === undefined ? NONE : value.toFixed(digits) + unit);
const signed = (value) => (value === null || value === undefined ? NONE : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3));
const short = (value) => (Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4))));

const LONG = 400; // characters from which a text is collapsed
function textNode(text) {
  if (text.length <= LONG) return html("span", { class: "text" }, text);
  const start = text.slice(0, 60).replace(/\s+/g, " ");
  const summary = html("summary", {}, `${text.length.toLocaleString("en")} characters: ${start}…`);
  return html("details", {}, summary, html("pre", { tabindex: 0 }, text));
}

// --- values: grids as pictures, the rest as text ---

// The colours of the cells 0-9 as the public viewers of ARC draw them.
const ARC_COLOURS = ["#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25"];

const DARK = new Set([0, 1, 9]); // colours on which a number is white
const LEGIBLE = 16; // pixels of a cell from which its number is drawn

// A grid as a picture; cells that differ from those of `expected` are marked.
function gridNode(grid, expected = null, most = 200) {
  const height = grid.length, width = Math.max(0, ...grid.map((row) => row.length));
  const cell = Math.max(3, Math.min(18, most / Math.max(height, width, 1)));
  const cells = new Map();
  let marks = "";
  grid.forEach((row, y) => row.forEach((colour, x) => {
    cells.set(colour, `${cells.get(colour) || ""}M${x} ${y}h1v1h-1z`);
    if (expected && expected[y]?.[x] !== colour) marks += cell < LEGIBLE ? `M${x + 0.25} ${y + 0.25}l.5 .5m0 -.5l-.5 .5` : `M${x + 0.7} ${y + 0.08}l.24 .24m0 -.24l-.24 .24`;
  }));
  const paths = [...cells].map(([colour, d]) => svg("path", { fill: ARC_COLOURS[colour % 10], stroke: "#555", "stroke-width": 0.04, d }));
  if (marks) paths.push(svg("path", { class: "halo", d: marks }), svg("path", { class: "cross", d: marks }));
  if (cell >= LEGIBLE) paths.push(...grid.flatMap((row, y) => row.map((colour, x) =>
    svg("text", { class: DARK.has(colour % 10) ? "digit light" : "digit", x: x + 0.5, y: y + 0.72, "text-anchor": "middle" }, String(colour)))));
  const label = `grid ${height} by ${width}: ${grid.map((row) => row.join(" ")).join(" / ")}`;
  const size = { viewBox: `0 0 ${width} ${height}`, width: width * cell, height: height * cell };
  return svg("svg", { class: "grid", role: "img", "aria-label": label, "shape-rendering": "crispEdges", ...size }, paths);
}

function valueNode(kind, value, expected = null) {
  if (value === null || value === undefined) return html("em", {}, "none");
  if (kind === "grid" || kind === "grid1d") return gridNode(value, expected);
  return typeof value === "string" ? textNode(value) : html("code", {}, value.join(", ") || "(empty list)");
}

// Anything that JSON holds, as a table in which texts are collapsed.
function jsonNode(value, kind, name = "") {
  if (value === null || value === "") return html("span", { class: "dim" }, NONE);
  if (name === "value" || name === "answer") return valueNode(kind, value);
  if (typeof value === "number") return html("code", {}, short(value));
  if (typeof value === "string") return textNode(value);
  if (Array.isArray(value)) {
    if (value.every((item) => item === null || typeof item !== "object" && !(typeof item === "string" && item.length > 40)))
      return textNode(value.map((item) => (typeof item === "number" ? short(item) : String(item))).join(", ") || "none");
    return html("ol", {}, value.map((item) => html("li", {}, jsonNode(item, kind))));
  }
  if (typeof value !== "object") return html("code", {}, String(value));
  return factsNode(value, kind);
}

function factsNode(facts, kind) {
  const rows = Object.entries(facts).map(([name, value]) => [html("dt", {}, name.replaceAll("_", " ")), html("dd", {}, jsonNode(value, kind, name))]);
  return rows.length ? html("dl", { class: "facts" }, rows) : html("span", { class: "dim" }, "none");
}

function markNode(right) {
  if (right === null || right === undefined) return null;
  return html("span", { class: right ? "good" : "bad" }, right ? "✓ right" : "✗ wrong");
}

// --- tables ---

// `rows` are lists of cells, nodes or texts; the first cell of each is its heading. On a narrow page each row is a card.
function tableNode(heads, rows, label) {
  const row = ({ cells, marked }) => html("tr", { class: marked ? "marked" : null }, cells.map((cell, index) =>
    html(index ? "td" : "th", index ? { "data-head": heads[index] } : { scope: "row" }, cell)));
  const head = html("tr", {}, heads.map((text) => html("th", { scope: "col" }, text)));
  return html("table", { "aria-label": label, class: heads.length > 4 ? "wide" : null }, html("thead", {}, head), html("tbody", {}, rows.map(row)));
}

const barNode = (share, text) => html("span", { class: "bar", "--share": `${100 * Math.max(0, Math.min(1, share || 0))}%` }, html("span", {}, text));

// Candidates with what was estimated of them and what was measured.
function drawCandidates(node, candidates) {
  const rows = candidates.map((row) => ({ marked: row.chosen, cells: [
    html("span", {}, row.strategy, row.mark || row.chosen ? html("span", { class: "tag" }, row.mark || "chosen") : null),
    row.probability === null ? NONE : barNode(row.probability, fixed(row.probability, 3)),
    fixed(row.cost, 0, "x"), fixed(row.utility, 3), signed(row.gain), fixed(row.measured_cost, 1, "x"),
    row.answered || "not attempted",
  ] }));
  const heads = ["candidate", "P(right), estimated", "further cost, estimated", "utility", "utility over in_context", "further cost, measured", "attempt"];
  node.replaceChildren(tableNode(heads, rows, "candidates"));
}

// --- the graph ---

const BOX = { height: 42, gap: 14, end: 58 };

// Where each node is: in columns from left to right, or below each other.
function layOut(strategies, vertical) {
  const width = Math.max(110, 16 + 7.2 * Math.max(...strategies.map((name) => name.length)));
  const places = new Map();
  const row = BOX.height + BOX.gap;
  if (vertical) {
    const names = ["__start__", "measure", "decide", ...strategies, "judge", "revert", "__end__"];
    names.forEach((name, index) => places.set(name, { x: 70, y: 26 + index * row, width }));
    return { places, width: width + 170, height: names.length * row + 10 };
  }
  const height = Math.max(3, strategies.length) * row;
  const columns = [["__start__", BOX.end], ["measure", width], ["decide", width], [null, width], ["judge", width], ["revert", width], ["__end__", BOX.end]];
  let x = 2;
  for (const [name, size] of columns) {
    if (name) places.set(name, { x, y: height / 2, width: size });
    else strategies.forEach((strategy, index) => places.set(strategy, { x, y: row * (index + 0.5), width }));
    x += size + (name === "decide" || name === null ? 44 : 20);
  }
  return { places, width: x - 18, height: height + 34 };
}

// An edge of the graph: forward from side to side, and back to `decide` below everything, or at the right.
function edgePath(from, to, vertical, height) {
  const forward = vertical ? to.y > from.y : to.x > from.x;
  if (vertical) {
    const adjacent = forward && to.y - from.y <= BOX.height + BOX.gap && from.name !== "decide";
    if (adjacent) return `M${from.x + from.width / 2} ${from.y + BOX.height / 2}V${to.y - BOX.height / 2}`;
    const left = forward && from.name === "decide", x = left ? from.x : from.x + from.width;
    const reach = forward ? 24 + (to.y - from.y) / 12 : 92, side = left ? x - reach : x + reach;
    return `M${x} ${from.y}C${side} ${from.y} ${side} ${to.y} ${x} ${to.y}`;
  }
  if (!forward) {
    const start = from.x + from.width / 2, end = to.x + to.width / 2, foot = from.y + (height + 18 - from.y) / 0.75;
    return `M${start} ${from.y + BOX.height / 2}C${start} ${foot} ${end} ${foot} ${end} ${to.y + BOX.height / 2}`;
  }
  const start = from.x + from.width, middle = (start + to.x) / 2;
  return `M${start} ${from.y}C${middle} ${from.y} ${middle} ${to.y} ${to.x} ${to.y}`;
}

function nodeBox(name, place, graph, order, choose) {
  const visits = graph.visits[name] || [];
  const total = visits.reduce((sum, visit) => sum + (visit.seconds || 0), 0);
  const failed = visits.some((visit) => visit.status !== "ok");
  const numbers = order.get(name) || [];
  const title = name.replaceAll("__", ""), y = place.y - BOX.height / 2, middle = place.x + place.width / 2;
  const kind = `node${numbers.length ? " taken" : ""}${failed ? " failed" : ""}${graph.running === name ? " running" : ""}`;
  let next = 0;
  const select = () => choose(visits[next++ % visits.length].step);
  const button = visits.length && choose ? {
    tabindex: 0, role: "button", "data-step": visits[0].step, click: select,
    "aria-label": `${title}, ${numbers.map((number) => `step ${number}`).join(" and ")} of the path, ${seconds(total)}${failed ? ", failed" : ""}`,
    keydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); select(); } },
  } : {};
  const below = visits.length ? `${numbers.map((number) => `${number}.`).join(" ")} ${seconds(total)}` : "";
  return svg("g", { class: kind, ...button },
    svg("rect", { class: "box", x: place.x, y, width: place.width, height: BOX.height, rx: 8 }),
    svg("text", { x: middle, y: place.y + (below ? -3 : 5), "text-anchor": "middle" }, title),
    below ? svg("text", { class: "small", x: middle, y: place.y + 14, "text-anchor": "middle" }, below) : null);
}

// `graph`: names of strategies, the edges taken in order, and for each node its visits (step, seconds, status), and the node that
// runs at the moment, if one does. Without `choose` nodes are no buttons.
function drawGraph(node, graph, { vertical = false, choose = null } = {}) {
  const { places, width, height } = layOut(graph.strategies, vertical);
  places.set("__resume__", places.get("__start__"));
  const loops = graph.strategies.flatMap((name) => [["decide", name], [name, "judge"]]);
  const all = [["__start__", "measure"], ["measure", "decide"], ...loops, ["judge", "decide"], ["judge", "revert"], ["revert", "__end__"]];
  const known = graph.edges.filter(([from, to]) => places.has(from) && places.has(to));
  const taken = new Set(known.map(String));
  const order = new Map();
  known.forEach(([, to], index) => order.set(to, [...(order.get(to) || []), index + 1]));
  if (known.length) order.set("__start__", []).set(known[0][0], [0]);
  const edge = ([from, to], mark) => svg("path", { class: mark ? "edge taken" : "edge", "marker-end": mark ? "url(#arrow)" : null,
    d: edgePath({ name: from, ...places.get(from) }, places.get(to), vertical, height - 30) });
  const arrow = svg("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 4, markerHeight: 4, orient: "auto" },
    svg("path", { class: "arrow", d: "M0 0L8 4L0 8z" }));
  places.delete("__resume__");
  const path = known.length ? [known[0][0], ...known.map(([, to]) => to)].join(" to ") : "none";
  const edges = [...all.filter((each) => !taken.has(String(each))).map((each) => edge(each, false)), ...known.map((each) => edge(each, true))];
  const boxes = [...places].map(([name, place]) => nodeBox(name, place, graph, order, choose));
  const label = `graph; path taken: ${path}`;
  node.replaceChildren(svg("svg", { class: "graph", role: "group", "aria-label": label, viewBox: `0 0 ${width} ${height}`, width, height },
    svg("defs", {}, arrow), edges, boxes));
}

// --- curves ---

// `points` are pairs of step and value; `mark` is a step to point at, with `markText`.
function drawCurve(node, { name, points, unit = "", low = null, high = null, mark = null, markText = "" }) {
  if (!points.length) return node.replaceChildren();
  const every = Math.max(1, Math.floor(points.length / 1000));
  const shown = points.filter((_, index) => index % every === 0 || index === points.length - 1);
  const xs = points.map(([x]) => x).concat(mark === null ? [] : [mark]), ys = points.map(([, y]) => y);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)], [least, most] = [low ?? Math.min(...ys), high ?? Math.max(...ys)];
  const room = most > least ? 0 : Math.abs(most) / 10 || 1, [y0, y1] = [least - room, most + room];
  const size = { width: 520, height: 190, left: 58, right: 16, top: 14, bottom: 38 };
  const across = (x) => size.left + ((x - x0) / (x1 - x0 || 1)) * (size.width - size.left - size.right);
  const up = (y) => size.height - size.bottom - ((y - y0) / (y1 - y0 || 1)) * (size.height - size.top - size.bottom);
  const line = (x, y, toX, toY, kind) => svg("line", { class: kind, x1: x, y1: y, x2: toX, y2: toY });
  const text = (x, y, content, anchor) => svg("text", { x, y, "text-anchor": anchor }, content);
  const number = (value) => short(Number(value.toPrecision(3))) + unit;
  const parts = [0, 0.5, 1].flatMap((share) => {
    const value = y0 + share * (y1 - y0), y = up(value);
    return [line(size.left, y, size.width - size.right, y, "rule"), text(size.left - 6, y + 4, number(value), "end")];
  });
  parts.push(text(size.left, size.height - 20, String(x0), "middle"));
  if (x1 > x0) parts.push(text(size.width - size.right, size.height - 20, String(x1), "end"));
  parts.push(text((size.left + size.width) / 2, size.height - 4, "training step", "middle"));
  if (mark !== null) {
    parts.push(line(across(mark), size.top, across(mark), size.height - size.bottom, "mark"));
    const after = across(mark) > size.width / 2 ? ["end", -5] : ["start", 5];
    parts.push(text(across(mark) + after[1], size.top + 10, markText, after[0]));
  }
  parts.push(svg("polyline", { points: shown.map(([x, y]) => `${across(x).toFixed(1)},${up(y).toFixed(1)}`).join(" ") }));
  if (points.length <= 60) parts.push(...points.map(([x, y]) => svg("circle", { cx: across(x), cy: up(y), r: 3 })));
  const [first, last] = [points[0], points[points.length - 1]];
  const [markX, markY] = points.find(([x]) => x === mark) ?? [null, null];
  const marked = markX === null || markX === last[0] ? "" : `, ${markText} ${number(markY)} at step ${markX}`;
  const label = `${name}: ${number(first[1])} at step ${first[0]}` + (points.length > 1 ? `${marked} to ${number(last[1])} at step ${last[0]}` : "");
  node.replaceChildren(html("figure", {}, svg("svg", { class: "curve", role: "img", "aria-label": label, viewBox: `0 0 ${size.width} ${size.height}` }, parts),
    html("figcaption", {}, label)));
}

// --- held-out demonstrations ---

function drawHeldOut(node, { before, after, steps }) {
  const cells = (name, right) => ({ cells: [name, ...right.map((hit) => html("span", { class: hit ? "good" : "bad" }, hit ? "✓" : "✗")),
    html("b", {}, `${right.filter(Boolean).length}/${right.length}`)] });
  const heads = ["held-out demonstration", ...before.map((_, index) => String(index + 1)), "right"];
  const best = steps ? `The weights of step ${steps} were the best on them; the adapter has those.` : "No step was better on them than the untrained adapter (step 0), whose weights were used.";
  const table = html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "held-out demonstrations" },
    tableNode(heads, [cells("before training", before), cells("after training", after)], "held-out demonstrations"));
  table.firstChild.className = "compact";
  const unlike = "The chart has the scores of all folds at each step. In the table each demonstration is scored at the step that the other folds choose, so that it does not choose its own; the two may differ.";
  node.replaceChildren(table, html("p", {}, best), html("p", { class: "dim" }, unlike));
}

// --- steps ---

// A timeline of steps (name, depth, at, seconds, status); arrow keys move between them.
function drawTimeline(node, steps, choose = () => {}) {
  const whole = steps[0]?.seconds || Math.max(1e-9, ...steps.map((step) => step.at + (step.seconds || 0)));
  const buttons = steps.map((step, index) => html("button", {
    class: "step", type: "button", "data-step": index, tabindex: index ? -1 : 0, "--depth": step.depth,
    "--from": `${100 * Math.max(0, step.at) / whole}%`, "--long": `${100 * (step.seconds || 0) / whole}%`, click: () => choose(index),
  }, html("span", { class: "name" }, step.name, step.status === "ok" ? null : html("span", { class: "bad" }, ` ${step.status}`)),
  html("span", { class: "number" }, seconds(step.seconds)), html("span", { class: "track" }, html("i"))));
  const keys = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, Home: -steps.length, End: steps.length };
  const move = (event) => {
    const at = buttons.indexOf(event.target);
    if (at < 0 || !(event.key in keys)) return;
    event.preventDefault();
    const to = Math.max(0, Math.min(steps.length - 1, at + keys[event.key]));
    buttons[to].focus();
    choose(to);
  };
  node.replaceChildren(html("div", { class: "steps", role: "group", "aria-label": "steps; arrow keys move between them", keydown: move }, buttons));
}

// Marks a step in everything that has a button for it.
function markStep(root, index) {
  for (const element of root.querySelectorAll("[data-step]")) {
    const same = element.dataset.step === String(index);
    element.toggleAttribute("data-chosen", same);
    if (element.tagName === "BUTTON") {
      element.setAttribute("aria-pressed", String(same));
      element.tabIndex = same ? 0 : -1;
    }
  }
}

// What a step recorded.
function drawStep(node, step, kind) {
  const facts = html("p", { class: "dim" }, `${seconds(step.seconds)}, ${seconds(step.at)} after the beginning, ${step.status}`);
  const error = step.error ? html("p", { class: "bad" }, step.error) : null;
  node.replaceChildren(html("h3", {}, step.name), facts, ...(error ? [error] : []), factsNode(step.attributes, kind));
}
