// The page of a trace. `data` is what view.py makes of it.

const data = JSON.parse(document.getElementById("data").textContent);
const main = document.querySelector("main"), words = document.getElementById("words");
const kind = data.task.kind;

function section(id, title, ...children) {
  const node = html("section", { id, "aria-labelledby": `${id}-title` }, html("h2", { id: `${id}-title` }, title), ...children);
  main.insertBefore(node, words);
  return node;
}
const drawn = (draw, ...rest) => { const node = html("div"); draw(node, ...rest); return node; };

// --- the run at a glance ---

document.querySelector("header").append(html("p", { class: "dim" }, `run ${data.id}, ${data.time}`));

const card = (title, body, className = "") => html("figure", { class: `card ${className}` }, html("figcaption", {}, title), body);
function answerCard(row) {
  const label = html("span", {}, `${row.strategy}, ${row.moment}`, row.final ? html("span", { class: "tag" }, "answer of the run") : null, " ", markNode(row.right));
  const wrong = row.right === false && kind.startsWith("grid") ? data.task.answer : null;
  const body = row.error ? html("p", { class: "bad" }, row.error) : valueNode(kind, row.value, wrong);
  const said = row.error ? [] : row.said.map((text) => html("p", { class: "dim" }, text));
  return card(label, html("div", {}, body, said, row.candidates.length > 1 ? votesNode(row.candidates) : null), row.final ? "final" : "");
}
const sized = (value, size) => html("div", {}, valueNode(kind, value), size ? html("p", { class: "dim" }, size) : null);
const FEW = 5; // answers with votes that are shown at once

// All answers of a vote, and which place the right one has.
function votesNode(candidates) {
  const place = candidates.findIndex((each) => each.right);
  const said = place < 0 ? "" : `: the right answer has place ${place + 1}`;
  const rows = candidates.map((each) => html("li", {}, `${each.votes} `, markNode(each.right), " ", kind.startsWith("grid") && each.value ? gridNode(each.value, null, 80) : valueNode(kind, each.value)));
  return html("details", { open: place > 0 || candidates.length <= FEW ? "" : null }, html("summary", {}, `${candidates.length} answers had votes${said}`), html("ol", { class: "votes" }, rows));
}
const facts = data.summary.map((fact) => html("div", { class: `fact tone-${fact.tone}` },
  html("h3", {}, fact.name), html("p", { class: "headline" }, fact.headline), html("p", {}, fact.text)));
const cards = kind ? [
  card("query", sized(data.task.query, data.task.query_size)),
  data.task.answer === null ? null : card("right answer", sized(data.task.answer, data.task.size)),
  ...data.answers.map(answerCard),
] : [];
const isGrid = Boolean(kind?.startsWith("grid"));
const crosses = isGrid && data.answers.some((row) => row.right === false) && data.task.answer !== null
  ? html("p", { class: "dim" }, "A cross marks a cell that differs from the right answer.") : null;
const keyNode = () => (isGrid ? html("p", { class: "dim" }, "Colours of the numbers 0 to 9: ", gridNode([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]])) : null);
section("summary", "Summary", html("div", { class: "glance" }, facts), html("div", { class: "cards" }, cards), crosses, keyNode());

// --- the path, the timeline, and the step that is chosen ---

const details = html("div", { id: "details", "aria-live": "polite" });
const graph = html("div", { class: "scroll" }), timeline = html("div");
const path = section("path", "Path through the graph", graph, html("h3", {}, "Timeline"),
  html("p", { class: "dim" }, "A click, Enter or the arrow keys choose a step. Numbers give the order of the path; grey nodes were not visited. The in-context answer is made in measure."), timeline);
section("chosen", "Chosen step", details).tabIndex = 0;
let chosen = 0;
function choose(index, scroll = true) {
  chosen = index;
  markStep(path, index);
  drawStep(details, data.steps[index], kind);
  if (scroll && details.getBoundingClientRect().top > innerHeight) details.parentElement.scrollIntoView({ block: "nearest" });
}
const narrow = matchMedia("(max-width: 56rem)");
function drawPath() {
  drawGraph(graph, data.graph, { vertical: narrow.matches, choose });
  markStep(path, chosen);
}
narrow.addEventListener("change", drawPath);
drawTimeline(timeline, data.steps, (index) => choose(index, false));
drawPath();
choose(data.first_step, false);

// --- why this one ---

const lines = (texts) => texts.map((text) => html("p", {}, text));
section("candidates", "Why this one", data.candidates.length ? drawn(drawCandidates, data.candidates) : null, lines(data.why), html("p", { class: "dim" }, data.note));

// --- features ---

function featureTable(rows, label) {
  const known = rows.some((row) => row.difficulty !== null);
  const value = (number) => (number === null ? NONE : short(number));
  const cells = rows.map((row) => ({ cells: [row.name, row.meaning, value(row.value),
    ...(known ? [row.median === null ? NONE : `${short(row.median)} (${short(row.low)} to ${short(row.high)})`, signed(row.difficulty), ...(data.runner_up ? [signed(row.lead)] : []), row.unused || row.instead || "the same"] : [])] }));
  const heads = ["feature", "meaning", "value", "median in training (middle 80%)", "contribution to “in-context is wrong”",
    ...(data.runner_up ? [`contribution to the lead over ${data.runner_up}`] : []), "choice with the median"];
  return tableNode(known ? heads : heads.slice(0, 3), cells, label);
}
if (data.features.length) {
  const first = data.features.filter((row) => row.shown), rest = data.features.filter((row) => !row.shown);
  const title = first.some((row) => row.difficulty !== null) ? "Features that drove the decision" : "Features that the policy saw";
  section("features", title, lines(data.features_said), featureTable(first, title), html("p", { class: "dim" }, data.features_note),
    rest.length ? html("details", {}, html("summary", {}, `${rest.length} further features`), featureTable(rest, "further features")) : null);
}

// --- cost ---

if (data.costs.length) {
  const parts = data.costs.map((part) => ({ marked: part.name === "total",
    cells: [part.name, fixed(part.multiple, 1, "x"), part.tokens.toLocaleString("en"), seconds(part.seconds)] }));
  const unit = `1x is one in-context answer of which nothing is cached: ${data.in_context_tokens ?? NONE} tokens, prompt and answer. A token that is read backward counts twice, so a token of a training step, read forward and backward, counts three times. The parts add up to the total.`;
  section("costs", "Cost", tableNode(["part", "in-context answers", "tokens", "time"], parts, "cost"), html("p", { class: "dim" }, unit), lines(data.missed));
}

// --- training ---

function adapterNode(adapter) {
  const loss = { name: "training loss", points: adapter.losses };
  const best = adapter.cross_validation?.steps ?? null;
  const heldOut = { name: "held-out demonstrations right", points: adapter.held_out, unit: "%", low: 0, high: 100, mark: adapter.held_out.length ? best : null, markText: "best" };
  return html("div", {}, html("h3", {}, adapter.strategy), html("p", {}, `${adapter.steps} training steps, ${adapter.stopped}.`),
    html("div", { class: "curves" }, drawn(drawCurve, loss), drawn(drawCurve, heldOut)),
    adapter.cross_validation ? drawn(drawHeldOut, adapter.cross_validation) : null,
    [adapter.sentence, adapter.recipe].filter(Boolean).map((text) => html("p", {}, text)),
    html("details", {}, html("summary", {}, "all facts of the adapter"), factsNode({ ...adapter.identity, "modules, and how many of each": adapter.modules })));
}
section("training", "Training", data.training.length ? data.training.map(adapterNode) : html("p", { class: "dim" }, "No adapter was trained or used."));

// --- time, task, settings ---

const total = data.stages.reduce((sum, [, time]) => sum + time, 0) || 1;
const stages = data.stages.map(([name, time]) => ({ cells: [name, seconds(time), barNode(time / total, `${(100 * time / total).toFixed(1)}%`)] }));
section("stages", "Time by stage", html("p", { class: "dim" }, "Each stage without the stages inside it; graph is what lies between them; wait is the time for other tasks, with their shares of a batch."),
  tableNode(["stage", "seconds", "share"], stages, "time by stage"));

if (kind) {
  const demonstrations = data.task.demonstrations.map((each, index) => ({ cells: [String(index + 1), valueNode(kind, each.input), valueNode(kind, each.output)] }));
  section("task", "Demonstrations", data.task.instruction ? html("p", {}, data.task.instruction) : null,
    tableNode(["number", "input", "output"], demonstrations, "demonstrations"));
}
section("setup", "Settings of the run", factsNode(data.setup));
