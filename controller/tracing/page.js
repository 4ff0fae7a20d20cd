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
  const label = html("span", {}, row.strategy, row.final ? html("span", { class: "tag" }, "answer of the run") : null, " ", markNode(row.right));
  const wrong = row.right === false && kind.startsWith("grid") ? data.task.answer : null;
  const isVote = row.candidates.length > 1;
  const certain = isVote ? `${percent(row.candidates[0].share)} of the votes` : `probability ${fixed(row.confidence, 2)} by the model itself`;
  const body = [row.error ? html("p", { class: "bad" }, row.error) : valueNode(kind, row.value, wrong), html("p", { class: "dim" }, row.error ? "" : certain)];
  return card(label, html("div", {}, body, isVote ? votesNode(row.candidates) : null), row.final ? "final" : "");
}
const percent = (share) => `${(100 * share).toFixed(0)}%`;

// All answers of a vote, and which place the right one has.
function votesNode(candidates) {
  const place = candidates.findIndex((each) => each.right);
  const said = place < 0 ? "" : `: the right answer has place ${place + 1}`;
  const rows = candidates.map((each) => html("li", {}, `${percent(each.share)} `, markNode(each.right), " ", valueNode(kind, each.value)));
  return html("details", { open: place > 0 ? "" : null }, html("summary", {}, `${candidates.length} answers had votes${said}`), html("ol", { class: "votes" }, rows));
}
const facts = data.summary.map((fact) => html("div", { class: `fact tone-${fact.tone}` },
  html("h3", {}, fact.name), html("p", { class: "headline" }, fact.headline), html("p", {}, fact.text)));
const cards = kind ? [
  card("query", valueNode(kind, data.task.query)),
  data.task.answer === null ? null : card("right answer", valueNode(kind, data.task.answer)),
  ...data.answers.map(answerCard),
] : [];
const crosses = kind?.startsWith("grid") && data.answers.some((row) => row.right === false) && data.task.answer !== null
  ? html("p", { class: "dim" }, "A cross marks a cell that differs from the right answer.") : null;
section("summary", "Summary", html("div", { class: "glance" }, facts), html("div", { class: "cards" }, cards), crosses);

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

const features = Object.keys(data.features).length
  ? html("details", {}, html("summary", {}, `${Object.keys(data.features).length} features that the policy saw`), factsNode(data.features)) : null;
section("candidates", "Why this one", data.candidates.length ? drawn(drawCandidates, data.candidates) : null, html("p", { class: "dim" }, data.note), features);

// --- training ---

function adapterNode(adapter) {
  const loss = { name: "training loss", points: adapter.losses };
  const best = adapter.cross_validation?.steps ?? null;
  const heldOut = { name: "held-out demonstrations right", points: adapter.held_out, unit: "%", low: 0, high: 100, mark: adapter.held_out.length ? best : null, markText: "best" };
  return html("div", {}, html("h3", {}, adapter.strategy), html("p", {}, `${adapter.steps} training steps, ${adapter.stopped}.`),
    html("div", { class: "curves" }, drawn(drawCurve, loss), drawn(drawCurve, heldOut)),
    adapter.cross_validation ? drawn(drawHeldOut, adapter.cross_validation) : null,
    html("details", {}, html("summary", {}, adapterLine(adapter)), factsNode({ ...adapter.identity, "modules, and how many of each": adapter.modules })));
}
function adapterLine({ identity, modules }) {
  const adapters = identity.folds > 1 ? `${identity.folds} LoRA adapters` : "the LoRA adapter";
  const size = identity.bytes ? `, ${(identity.bytes / 1e6).toFixed(1)} MB` : "";
  return `${adapters}: rank ${identity.rank ?? NONE} on ${Object.keys(modules).length} kinds of modules${size}`;
}
section("training", "Training", data.training.length ? data.training.map(adapterNode) : html("p", { class: "dim" }, "No adapter was trained or used."));

// --- time, task, settings ---

const total = data.stages.reduce((sum, [, time]) => sum + time, 0) || 1;
const stages = data.stages.map(([name, time]) => ({ cells: [name, seconds(time), barNode(time / total, `${(100 * time / total).toFixed(1)}%`)] }));
section("stages", "Time by stage", html("p", { class: "dim" }, "Each stage without the stages inside it; graph is what lies between them."),
  tableNode(["stage", "seconds", "share"], stages, "time by stage"));

if (kind) {
  const demonstrations = data.task.demonstrations.map((each, index) => ({ cells: [String(index + 1), valueNode(kind, each.input), valueNode(kind, each.output)] }));
  section("task", "Demonstrations", data.task.instruction ? html("p", {}, data.task.instruction) : null,
    tableNode(["number", "input", "output"], demonstrations, "demonstrations"));
}
section("setup", "Settings of the run", factsNode(data.setup));
