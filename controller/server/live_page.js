// The page at `/`: a person draws or pastes a task, and watches its run. The API key, where one is needed, is only in memory.

const settings = JSON.parse(document.getElementById("data").textContent);
const main = document.querySelector("main");
let apiKey = "";
const runColumn = html("div", { id: "run" });

function section(id, title, ...children) {
  const node = html("section", { id, "aria-labelledby": `${id}-title` }, html("h2", { id: `${id}-title` }, title), ...children);
  (runColumn.isConnected ? runColumn : main).append(node);
  return node;
}
const labelled = (text, control) => html("label", {}, html("span", {}, text), control);
const button = (text, click, more = {}) => html("button", { type: "button", click, ...more }, text);
const options = (node, names) => node.replaceChildren(...names.map(([value, text]) => html("option", { value }, text)));

// --- the server ---

// A response; raises an error with the server's own words and its status.
async function ask(path, body = null, signal = null) {
  const headers = { ...(apiKey ? { authorization: `Bearer ${apiKey}` } : {}), ...(body ? { "content-type": "application/json" } : {}) };
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, credentials: "omit", cache: "no-store" });
  if (response.ok) return response;
  const error = (await response.json().catch(() => null))?.error;
  throw Object.assign(new Error(error?.message || `the server answered with status ${response.status}`), { status: response.status });
}

// Calls `receive` with the data of each server-sent event until the stream ends.
async function readEvents(response, receive) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    for (const part of parts) if (part.startsWith("data: ") && part !== "data: [DONE]") receive(JSON.parse(part.slice(6)));
  }
}

// --- the key ---

// No password field: browsers would offer to store the key.
const keyField = html("input", { type: "text", class: "secret", autocomplete: "off", autocapitalize: "off", spellcheck: "false", id: "key" });
const keyProblem = html("p", { class: "bad", role: "alert" });
const keySection = section("access", "API key", html("p", {}, "This server needs an API key. It stays in the memory of this page and is gone when the page is closed."),
  html("div", { class: "row" }, labelled("key", keyField), button("use the key", useKey)), keyProblem);
keyField.addEventListener("keydown", (event) => { if (event.key === "Enter") useKey(); });
function useKey() {
  apiKey = keyField.value.trim();
  keyField.value = "";
  connect();
}
function askForKey(problem) {
  apiKey = "";
  keyProblem.textContent = problem;
  keySection.hidden = false;
  keyField.focus();
}

// --- editors of values: each has `node`, and `value`, which raises what is wrong ---

let colour = 1;
const palette = html("div", { class: "palette", role: "radiogroup", "aria-label": "colour to draw with" });
const swatches = ARC_COLOURS.map((fill, index) => html("button", { class: "swatch", type: "button", role: "radio", "aria-label": `colour ${index}`, "--fill": fill, click: () => pick(index), keydown: pickByKey }, String(index)));
palette.append(...swatches);
function pick(index) {
  colour = index;
  swatches.forEach((swatch, each) => { swatch.setAttribute("aria-checked", String(each === index)); swatch.tabIndex = each === index ? 0 : -1; });
}
function pickByKey(event) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  pick((colour + step + 10) % 10);
  swatches[colour].focus();
}
pick(1);

const MOST_CELLS = 30; // cells of a side, as in ARC
let drawing = false;
addEventListener("pointerup", () => { drawing = false; });

// A grid of cells: a pointer draws, arrow keys move, digits and the space bar colour a cell.
function gridEditor(name, start, maxHeight = MOST_CELLS) {
  let grid = start.map((row) => [...row]), at = [0, 0];
  const cells = html("div", { class: "cells", role: "grid", "aria-label": name });
  const size = (text, most, change) => labelled(text, html("input", { type: "number", min: 1, max: most, "aria-label": `${text} of ${name}`, change }));
  const [rows, columns] = [size("rows", maxHeight, resize), size("columns", MOST_CELLS, resize)];
  const numberOf = (label) => label.querySelector("input");
  const describe = (y, x) => `row ${y + 1}, column ${x + 1}: colour ${grid[y][x]}`;
  function paint(y, x, value) {
    grid[y][x] = value;
    const cell = cells.children[y].children[x];
    cell.style.setProperty("--fill", ARC_COLOURS[value]);
    cell.setAttribute("aria-label", describe(y, x));
  }
  function focusCell(y, x) {
    cells.children[at[0]].children[at[1]].tabIndex = -1;
    at = [Math.max(0, Math.min(grid.length - 1, y)), Math.max(0, Math.min(grid[0].length - 1, x))];
    const cell = cells.children[at[0]].children[at[1]];
    cell.tabIndex = 0;
    cell.focus();
  }
  function keys(event) {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (move) focusCell(at[0] + move[0], at[1] + move[1]);
    else if (/^[0-9]$/.test(event.key)) paint(...at, Number(event.key));
    else if (event.key === " " || event.key === "Enter") paint(...at, colour);
    else return;
    event.preventDefault();
  }
  function resize() {
    const limit = (label, most) => Math.max(1, Math.min(most, Math.floor(Number(numberOf(label).value)) || 1));
    const [height, width] = [limit(rows, maxHeight), limit(columns, MOST_CELLS)];
    grid = Array.from({ length: height }, (_, y) => Array.from({ length: width }, (_, x) => grid[y]?.[x] ?? 0));
    draw();
  }
  function draw() {
    at = [0, 0];
    numberOf(rows).value = grid.length;
    numberOf(columns).value = grid[0].length;
    cells.style.setProperty("--size", `${Math.max(12, Math.min(28, Math.floor(224 / Math.max(grid.length, grid[0].length))))}px`);
    cells.replaceChildren(...grid.map((row, y) => html("div", { role: "row" }, row.map((value, x) => html("div", {
      class: "cell", role: "gridcell", tabindex: y || x ? -1 : 0, "--fill": ARC_COLOURS[value], "aria-label": describe(y, x),
      pointerdown: (event) => { event.preventDefault(); drawing = true; focusCell(y, x); paint(y, x, colour); },
      pointerenter: () => { if (drawing) paint(y, x, colour); },
    })))));
  }
  cells.addEventListener("keydown", keys);
  draw();
  return { node: html("div", { class: "editor" }, html("div", { class: "row" }, maxHeight > 1 ? rows : null, columns), cells), value: () => grid };
}

function listEditor(name, start) {
  const field = html("input", { type: "text", inputmode: "numeric", "aria-label": name, value: start.join(", "), placeholder: "1, 2, 3" });
  const value = () => {
    const items = field.value.split(/[\s,]+/).filter(Boolean);
    const wrong = items.find((item) => !/^[+-]?\d+$/.test(item) || !Number.isSafeInteger(Number(item)));
    if (wrong !== undefined) throw new Error(`${name}: expected integers, such as 1, 2, 3; received ${wrong.slice(0, 40)}`);
    return items.map(Number);
  };
  return { node: field, value };
}

function textEditor(name, start) {
  const field = html("textarea", { rows: 2, "aria-label": name }, start);
  return { node: field, value: () => field.value };
}

const KINDS = {
  grid: { text: "grids", make: gridEditor, empty: () => [[0, 0, 0], [0, 0, 0], [0, 0, 0]] },
  grid1d: { text: "rows of a grid", make: (name, start) => gridEditor(name, start, 1), empty: () => [[0, 0, 0, 0, 0]] },
  list: { text: "lists of integers", make: listEditor, empty: () => [] },
  text: { text: "texts", make: textEditor, empty: () => "" },
};
const EXAMPLES = {
  list: { demonstrations: [[[1, 1, 5], [1, 1, 5, 3]], [[4, 4, 9, 3], [4, 4, 9, 3, 4]], [[0, 9, 2, 6, 6, 8, 5], [0, 9, 2, 6, 6, 8, 5, 7]], [[7, 8, 4, 0, 0, 5, 7], [7, 8, 4, 0, 0, 5, 7, 7]], [[6, 6, 8, 2, 8], [6, 6, 8, 2, 8, 5]]], query: [3, 3, 0, 2] },
  grid: { demonstrations: [[[[1, 0, 0], [0, 2, 0], [0, 0, 0]], [[0, 0, 1], [0, 2, 0], [0, 0, 0]]], [[[3, 3, 0], [0, 0, 0], [4, 0, 0]], [[0, 3, 3], [0, 0, 0], [0, 0, 4]]], [[[0, 5, 0], [6, 0, 0], [6, 0, 7]], [[0, 5, 0], [0, 0, 6], [7, 0, 6]]]], query: [[8, 0, 0], [8, 1, 0], [0, 0, 2]] },
  grid1d: { demonstrations: [[[[1, 0, 0, 2, 0]], [[0, 2, 0, 0, 1]]], [[[0, 3, 3, 0, 4]], [[4, 0, 3, 3, 0]]], [[[5, 6, 0, 0, 0]], [[0, 0, 0, 6, 5]]]], query: [[7, 0, 8, 8, 0]] },
  text: { demonstrations: [["cat", "tac"], ["dog", "god"], ["owl", "lwo"]], query: "fox" },
};

// --- the task ---

const kindPicker = html("select", { change: () => setTask(EXAMPLES[kindPicker.value]) });
options(kindPicker, Object.entries(KINDS).map(([name, { text }]) => [name, text]));
const modelPicker = html("select"), strategyPicker = html("select"), budgetField = html("input", { type: "text", placeholder: "none", size: 8, "aria-describedby": "budget-help" });
const pairsNode = html("div", { class: "pairs" }), queryNode = html("div"), problem = html("p", { class: "bad", role: "alert" });
let pairs = [], query = null;

function editorOf(name, value) {
  return KINDS[kindPicker.value].make(name, value ?? KINDS[kindPicker.value].empty());
}
function drawPairs() {
  pairsNode.replaceChildren(...pairs.map((pair, index) => html("fieldset", {}, html("legend", {}, `demonstration ${index + 1}`),
    html("div", { class: "pair" }, html("div", {}, html("h3", {}, "input"), pair.input.node), html("div", {}, html("h3", {}, "output"), pair.output.node)),
    button("remove", () => { pairs.splice(index, 1); drawPairs(); }, { "aria-label": `remove demonstration ${index + 1}` }))));
}
let made = 0;
function addPair(input, output) {
  made += 1;
  pairs.push({ input: editorOf(`input ${made}`, input), output: editorOf(`output ${made}`, output) });
}
function setTask(task) {
  pairs = [];
  made = 0;
  task.demonstrations.forEach(([input, output]) => addPair(input, output));
  query = editorOf("query", task.query);
  queryNode.replaceChildren(query.node);
  palette.hidden = !kindPicker.value.startsWith("grid");
  drawPairs();
}

// A task in JSON: demonstrations and a query, or ARC's train and test.
function parseTask(text) {
  let task;
  try { task = JSON.parse(text); } catch (error) { throw new Error(`expected a task in JSON; ${error.message}`); }
  const examples = task?.demonstrations ?? task?.train, value = task?.query ?? task?.test?.[0]?.input;
  if (!Array.isArray(examples) || value === undefined || !examples.every((each) => each && "input" in each && "output" in each))
    throw new Error('expected {"demonstrations": [{"input", "output"}, ...], "query"}, or "train" and "test" as in ARC\'s files');
  const kind = kindOf(value);
  for (const each of examples.flatMap(({ input, output }) => [input, output]))
    if (kindOf(each) !== kind) throw new Error("expected values of one kind: grids (rows of digits 0-9, at most 30 by 30), lists of integers, or texts");
  const one = kind === "grid" && [value, ...examples.flatMap(({ input, output }) => [input, output])].every((grid) => grid.length === 1);
  return { kind: kind === "grid" && (task.kind === "grid1d" || (one && task.kind !== "grid")) ? "grid1d" : kind, query: value, demonstrations: examples.map(({ input, output }) => [input, output]) };
}
function kindOf(value) {
  if (typeof value === "string") return "text";
  if (!Array.isArray(value)) return null;
  if (value.every(Number.isSafeInteger)) return "list";
  const digits = (row) => Array.isArray(row) && row.length && row.length === value[0].length && row.length <= MOST_CELLS && row.every((cell) => Number.isInteger(cell) && cell >= 0 && cell <= 9);
  return value.length <= MOST_CELLS && value.every(digits) ? "grid" : null;
}
const pasteField = html("textarea", { rows: 5, "aria-label": "task in JSON", spellcheck: "false" });
const pasteProblem = html("p", { class: "bad", role: "alert" });
function paste() {
  pasteProblem.textContent = "";
  try {
    const task = parseTask(pasteField.value);
    kindPicker.value = task.kind;
    setTask(task);
  } catch (error) { pasteProblem.textContent = error.message; }
}

const solveButton = button("solve", solve, { class: "main" }), stopButton = button("stop", () => running?.abort(), { disabled: "" });
const taskSection = section("task", "Task",
  html("div", { class: "row" }, labelled("values", kindPicker), labelled("model", modelPicker), labelled("strategy", strategyPicker), labelled("budget", budgetField)),
  html("p", { class: "dim", id: "budget-help" }, "A budget is a number of seconds, such as 10s, or of in-context answers, such as 50x."),
  html("details", {}, html("summary", {}, "Paste a task in JSON"), pasteField, button("use this task", paste), pasteProblem),
  palette, pairsNode, button("add a demonstration", () => { addPair(); drawPairs(); }),
  html("fieldset", {}, html("legend", {}, "query"), queryNode),
  html("div", { class: "row" }, solveButton, stopButton), problem);

// --- the run ---

const status = html("p", { role: "status" }, "Nothing runs yet."), bar = html("progress", { max: 1, value: 0, "aria-label": "training steps", hidden: "" });
const graphNode = html("div", { class: "scroll" }), candidatesNode = html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "table of candidates" }), estimatesNode = html("p", { class: "dim" }), reasonsNode = html("ol", { class: "reasons" }), curveNode = html("div"), trainingText = html("p", { class: "dim" }, "No training step yet."), answerNode = html("div");
main.append(runColumn);
const pathSection = section("path", "Path through the graph", status, bar, graphNode);
section("answer", "Answer", answerNode);
section("training", "Training", trainingText, curveNode);
section("candidates", "Candidates", candidatesNode, estimatesNode, reasonsNode);

let strategies = [], running = null, run = null;
const narrow = matchMedia("(max-width: 56rem)");
narrow.addEventListener("change", () => drawRun());

function newRun() {
  return { edges: [], visits: {}, at: "__start__", began: 0, phase: "", decisions: [], points: [], step: null, trained: "", answered: new Set() };
}
function drawRun() {
  const names = [...new Set([...strategies, ...(run?.decisions.map((each) => each.strategy) ?? [])])];
  if (names.length) drawGraph(graphNode, { strategies: names, edges: run?.edges ?? [], visits: run?.visits ?? {}, running: run?.phase ?? "" }, { vertical: narrow.matches });
}
function drawDecisions() {
  const estimate = run.decisions.find((each) => Object.keys(each.utilities).length) ?? run.decisions[0];
  const names = [...new Set([...Object.keys(estimate.scores), ...run.decisions.map((each) => each.strategy)])];
  const value = (table, name) => table[name] ?? null, base = value(estimate.utilities, "in_context");
  drawCandidates(candidatesNode, names.map((strategy) => {
    const utility = value(estimate.utilities, strategy);
    return { strategy, chosen: run.decisions.some((each) => each.strategy === strategy), probability: value(estimate.scores, strategy), cost: value(estimate.costs, strategy), utility,
      gain: utility === null || base === null ? null : utility - base, measured_cost: null, answered: run.answered.has(strategy) ? "attempted" : strategy === "in_context" ? "answered before the decision" : "" };
  }));
  estimatesNode.textContent = base === null ? "The policy did not estimate the other strategies."
    : "Estimated before the choice. Costs are those after the in-context answer, as multiples of its tokens; utility weighs P(right) against them.";
  reasonsNode.replaceChildren(...run.decisions.map((each) => html("li", {}, html("b", {}, each.strategy), `: ${each.reason}`)));
}
function drawTraining(step) {
  run.step = step;
  trainingText.textContent = `${step.strategy}: step ${step.step} of at most ${step.max_steps}, loss ${fixed(step.loss, 3)}, about ${seconds(step.seconds_left)} left`;
  drawCurve(curveNode, { name: "training loss", points: run.points });
  bar.max = step.max_steps;
  bar.value = step.step;
}
// What is left of the progress once training has ended.
function endTraining() {
  bar.hidden = true;
  if (run.step) trainingText.textContent = `${run.step.strategy}: ${run.step.step} of at most ${run.step.max_steps} steps, last loss ${fixed(run.step.loss, 3)}`;
}

// Shows an event of the stream.
function onProgress(event) {
  const now = performance.now();
  if (event.event === "phase" && (event.phase === "training" || event.phase === "answering")) {
    status.textContent = `${run.phase}: ${event.phase}`;
    bar.hidden = event.phase !== "training";
    if (event.phase === "answering") endTraining();
  } else if (event.event === "phase") {
    run.edges.push([run.at, event.phase]);
    Object.assign(run, { at: event.phase, phase: event.phase, began: now });
    status.textContent = `${event.phase} …`;
    drawRun();
  } else if (event.event === "step") {
    if (run.trained !== event.strategy || run.points.at(-1)?.[0] >= event.step) Object.assign(run, { trained: event.strategy, points: [] });
    if (event.loss !== null) run.points.push([event.step, event.loss]);
    drawTraining(event);
  } else if (event.event === "node") {
    (run.visits[event.node] ??= []).push({ step: 0, seconds: (now - run.began) / 1000, status: "ok" });
    run.phase = "";
    if (strategies.includes(event.node)) run.answered.add(event.node);
    if (event.scores) run.decisions.push(event);
    else if (event.action) reasonsNode.append(html("li", {}, html("b", {}, "judge"), `: ${event.reason}`));
    if (run.decisions.length && (event.scores || run.answered.has(event.node))) drawDecisions();
    drawRun();
  }
}

// The answer, before and after training, with its cost and the proof of the base weights.
function onResult(result, task) {
  const facts = result.autottt, kind = kindPicker.value;
  run.edges.push([run.at, "__end__"]);
  drawRun();
  const card = (title, value, final) => html("figure", { class: final ? "card final" : "card" }, html("figcaption", {}, title), valueNode(kind, value));
  const fact = (name, headline, text, tone) => html("div", { class: `fact tone-${tone}` }, html("h3", {}, name), html("p", { class: "headline" }, headline), html("p", {}, text));
  const adapted = facts.adaptation, proof = facts.proof;
  const training = !adapted ? fact("Training", "None", "The answer is that of the unadapted model.", "plain")
    : fact("Training", `${adapted.steps} steps`, `Loss ${fixed(adapted.first_loss, 3)} to ${fixed(adapted.last_loss, 3)} in ${seconds(adapted.seconds)}${adapted.from_cache ? "; the adapter was cached" : ""}.`, "plain");
  const weights = proof ? fact("Base weights", "Unchanged", `${proof.tensors} tensors were compared with the state at load ${proof.method === "full" ? "byte by byte" : "by address, version and one block of bytes each"}; all were equal. Content hash ${proof.hash}.`, "good")
    : fact("Base weights", "Not verified", "The run ended without a proof.", "bad");
  answerNode.replaceChildren(
    html("div", { class: "cards" }, card("query", task.query), card("in context, before training", facts.in_context_answer, false), card(html("span", {}, facts.strategy, html("span", { class: "tag" }, "answer of the run")), result.answer, true)),
    html("div", { class: "glance" }, fact("Decision", facts.strategy, facts.reason, facts.status === "answered" ? "good" : "bad"), training,
      fact("Cost", seconds(facts.cost.seconds), `${facts.cost.forward_tokens.toLocaleString("en")} tokens read forward and ${facts.cost.backward_tokens.toLocaleString("en")} backward.`, "plain"), weights),
    traceNode(facts.trace_id));
  status.textContent = facts.status === "answered" ? `Answered by ${facts.strategy} in ${seconds(facts.cost.seconds)}.` : "No valid answer was found.";
}

// A link to the page of the run's trace, or why there is none.
let hasTraces = false, traceUrl = "";
function traceNode(id) {
  if (!hasTraces || !id) return html("p", { class: "dim" }, "The run has no page of its trace: the server stores no traces with content (--trace-content).");
  const place = html("p", {}, "The trace of the run is being read.");
  ask(`/v1/traces/${id}`).then((response) => response.blob()).then((page) => {
    URL.revokeObjectURL(traceUrl);
    traceUrl = URL.createObjectURL(page); // a link could not send the key
    place.replaceChildren("Why this answer: ", html("a", { href: traceUrl, target: "_blank", id: "trace" }, `trace ${id}`), " opens in a new tab.");
  }).catch((error) => place.replaceChildren(html("span", { class: "bad" }, error.message)));
  return place;
}

async function solve() {
  problem.textContent = "";
  let task;
  try {
    if (!pairs.length) throw new Error("expected at least one demonstration");
    task = { kind: kindPicker.value, demonstrations: pairs.map((pair) => ({ input: pair.input.value(), output: pair.output.value() })), query: query.value(), model: modelPicker.value };
    if (strategyPicker.value) task.strategy = strategyPicker.value;
    if (budgetField.value.trim()) task.budget = budgetField.value.trim();
  } catch (error) { problem.textContent = error.message; return; }
  running = new AbortController();
  run = newRun();
  solveButton.disabled = true;
  stopButton.disabled = false;
  answerNode.replaceChildren(html("p", { class: "dim" }, "The run has no answer yet."));
  for (const node of [candidatesNode, estimatesNode, reasonsNode, curveNode]) node.replaceChildren();
  trainingText.textContent = "No training step yet.";
  Object.assign(bar, { value: 0, hidden: true });
  pathSection.scrollIntoView({ block: "start" });
  status.textContent = "The task waits for its turn.";
  drawRun();
  try {
    let ended = false;
    await readEvents(await ask("/v1/solve", { ...task, stream: true }, running.signal), (data) => {
      if (data.error) throw new Error(data.error.message);
      if (data.object === "autottt.progress") return onProgress(data.autottt);
      ended = true;
      onResult(data, task);
    });
    if (!ended) throw new Error("the server ended the stream before the answer");
  } catch (error) {
    const text = error.name === "AbortError" ? "The run was stopped." : error.message;
    run.phase = "";
    endTraining();
    drawRun();
    status.textContent = text;
    answerNode.replaceChildren(html("p", { class: "bad" }, text));
    if (error.status === 401) askForKey(error.message);
    else problem.textContent = text;
  }
  running = null;
  solveButton.disabled = false;
  stopButton.disabled = true;
}

// --- the start ---

const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
async function connect() {
  try {
    const offered = await (await ask("/page/settings")).json();
    keySection.hidden = true;
    keyProblem.textContent = "";
    if (offered.state === "loading") {
      status.textContent = "The model is being loaded.";
      await wait(1000);
      return connect();
    }
    ({ strategies, traces: hasTraces } = offered);
    options(modelPicker, offered.models.map((name) => [name, name]));
    options(strategyPicker, [["", "the policy decides"], ...strategies.map((name) => [name, name])]);
    status.textContent = offered.state === "ready" ? "Nothing runs yet." : `The server is ${offered.state}.`;
    solveButton.disabled = offered.state !== "ready";
    drawRun();
  } catch (error) {
    if (error.status === 401) askForKey(error.message);
    else status.textContent = error.message;
  }
}
setTask(EXAMPLES.grid);
solveButton.disabled = true;
keySection.hidden = !settings.needs_key;
if (!settings.needs_key) connect();
