"""The page of a trace in a real browser: drawn without a network and without errors, used by mouse and by keyboard."""

from __future__ import annotations

import pytest

from autottt.controller.tracing.trace import Trace
from autottt.policies.feature_glossary import GLOSSARY
from autottt.ttt_core.tasks.kinds import make_task
from tests.controller.tracing.sample_traces import (
    GRID,
    HOSTILE,
    LIST,
    failed_trace,
    long_trace,
    page,
    span,
    trace_of,
    trace_with,
)

RUNS = {
    "crossfit": lambda: trace_of("ttt_crossfit", GRID),
    "vote": lambda: trace_of("in_context_vote", LIST),
    "heuristic": lambda: trace_of("heuristic", LIST),
    "hostile": lambda: trace_of("ttt_direct", HOSTILE),
    "row": lambda: trace_of("in_context", make_task([([[1, 2]], [[2, 1]]), ([[3, 4]], [[4, 3]])], [[5, 6]])),
    "failed": failed_trace,
    "empty": lambda: trace_with(span("run", attributes={"edges": []})),
    "long": long_trace,
}
WIDTHS = (400, 900, 1320, 1600)
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def traces(chromium) -> dict[str, Trace]:
    """A trace of every sort of run."""
    return {name: make() for name, make in RUNS.items()}


@pytest.fixture
def opened(traces, open_page):
    """The page of the run by `ttt_crossfit`."""
    return open_page(page(traces["crossfit"]))


# --- drawing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_a_page_is_drawn_without_network_and_without_a_message_in_the_console(traces, open_page, name):
    opened = open_page(page(traces[name]))
    sections = opened.tab.locator("section h2").all_inner_texts()
    expected = {"Summary", "Path through the graph", "Chosen step", "Why this one", "Training", "Time by stage"}
    assert expected <= set(sections)
    assert opened.tab.locator(".fact").count() == 5
    assert opened.tab.locator("svg.graph .node").count() >= 13
    assert opened.messages == []
    assert opened.requests == []


def test_what_a_page_forbids_itself_is_blocked(opened):
    opened.tab.evaluate("fetch('http://127.0.0.1:9/').catch(() => 0)")
    opened.tab.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'hit = 1'}))"
    )
    assert opened.tab.evaluate("typeof hit") == "undefined"
    assert len([m for m in opened.messages if "Content Security Policy" in m]) >= 2


def test_texts_of_a_task_are_shown_and_not_run(traces, open_page):
    opened = open_page(page(traces["hostile"]))
    assert opened.tab.locator("img").count() == 0
    assert "<script>alert(1)</script>" in opened.text()


def test_the_answer_decision_cost_and_proof_are_seen_without_scrolling(opened):
    for name in ("Answer", "Decision", "Cost", "Training", "Base weights"):
        box = opened.tab.locator(".fact", has=opened.tab.locator("h3", has_text=name)).bounding_box()
        assert box["y"] + box["height"] < 900


def test_grids_are_pictures_with_their_rows_as_text(opened):
    labels = opened.tab.locator("svg.grid").evaluate_all("grids => grids.map(grid => grid.getAttribute('aria-label'))")
    assert "grid 2 by 2: 5 6 / 7 8" in labels
    assert labels.count("grid 2 by 2: 1 2 / 0 3") == 3


def test_the_edges_taken_are_lit_and_the_nodes_have_their_order(traces, opened):
    trace = traces["crossfit"]
    graph = opened.tab.locator("svg.graph")
    assert graph.get_attribute("aria-label") == (
        "graph; path taken: " + " to ".join([trace.edges[0][0], *(target for _, target in trace.edges)])
    )
    assert graph.locator(".edge.taken").count() == len(trace.edges)
    judge = graph.locator(".node[role=button]", has_text="judge")
    order = [number for number, (_, target) in enumerate(trace.edges, start=1) if target == "judge"]
    assert judge.locator("text.small").inner_html().startswith(" ".join(f"{number}." for number in order))
    assert not graph.locator(".node.taken", has_text="ttt_warm").count()


def test_curves_name_their_first_and_last_value(traces, opened):
    losses = traces["crossfit"].attempts[0]["training_record"]["losses"]
    caption = opened.tab.locator("#training figcaption").first.inner_text()
    assert caption.startswith("training loss: ")
    assert caption.endswith(f"at step {len(losses)}")
    values = [float(word) for word in caption.replace(":", "").split() if word.replace(".", "").isdigit()]
    assert values[::2] == pytest.approx([losses[0], losses[-1]], rel=0.01)


def test_held_out_demonstrations_are_shown_before_and_after_training(traces, opened):
    held_out = traces["crossfit"].attempts[0]["cross_validation"]
    rows = opened.tab.locator("table[aria-label='held-out demonstrations'] tbody tr").all_inner_texts()
    assert rows[0].split()[-1] == f"{sum(held_out['before'])}/3"
    assert rows[1].split()[-1] == f"{sum(held_out['after'])}/3"


def test_the_cost_is_a_table_whose_parts_add_up(traces, opened):
    rows = opened.tab.locator("#costs tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.children].map(cell => cell.innerText))"
    )
    tokens = [int(row[2].replace(",", "")) for row in rows]
    cost = traces["crossfit"].result["cost"]
    assert rows[-1][0] == "total"
    assert sum(tokens[:-1]) == tokens[-1] == cost["forward_tokens"] + 2 * cost["backward_tokens"]


def test_every_feature_has_its_meaning(traces, open_page):
    opened = open_page(page(traces["crossfit"]))
    opened.tab.locator("#features summary").click()
    rows = opened.tab.locator("#features tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.children].slice(0, 2).map(cell => cell.innerText))"
    )
    assert {name for name, _ in rows} == set(traces["crossfit"].features)
    assert all(meaning == GLOSSARY[name].meaning.replace("`", "") for name, meaning in rows)


def test_a_cell_that_differs_from_the_right_answer_is_marked(opened):
    crosses = "grid => gridNode(grid, [[1, 2], [3, 4]]).querySelector('.cross')?.getAttribute('d').split('M').length"
    assert opened.tab.evaluate(f"({crosses})([[1, 2], [3, 4]])") is None
    assert opened.tab.evaluate(f"({crosses})([[1, 0], [0, 4]])") == 3


def test_cells_have_their_numbers_where_they_are_large_enough_and_the_page_has_a_colour_key(opened):
    key = opened.tab.locator("#summary svg.grid[aria-label='grid 1 by 10: 0 1 2 3 4 5 6 7 8 9'] text")
    assert key.evaluate_all("texts => texts.map(text => text.textContent).join('')") == "0123456789"
    numbers = "size => gridNode(Array(size).fill(Array(size).fill(3))).querySelectorAll('text').length"
    assert [opened.tab.evaluate(numbers, size) for size in (2, 30)] == [4, 0]


def test_cards_say_whether_an_answer_is_from_before_or_after_training(opened):
    titles = " ".join(opened.tab.locator(".card figcaption").all_inner_texts())
    assert "in_context, before training" in titles
    assert "ttt_crossfit, after training" in titles


# --- mouse and keyboard ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [400, 1600])
def test_a_click_on_a_node_shows_its_details(traces, open_page, width):
    opened = open_page(page(traces["crossfit"]), width)
    opened.tab.locator("svg.graph .node", has_text="measure").click()
    details = opened.tab.locator("#details")
    assert details.locator("h3").inner_text() == "measure"
    assert "answer entropy max" in details.inner_text()
    assert opened.tab.locator(".step[aria-pressed=true] .name").inner_text() == "measure"
    assert opened.tab.locator("#details h3").bounding_box()["y"] < 900


def test_clicks_on_a_node_that_was_visited_twice_show_every_visit(traces, open_page):
    trace = traces["heuristic"]
    opened = open_page(page(trace))
    decide = opened.tab.locator("svg.graph .node[role=button]", has_text="decide")
    details = []
    for _ in trace.decisions:
        decide.click()
        details.append(" ".join(opened.tab.locator("#details").inner_text().split()))
    assert len(trace.decisions) > 1
    assert all(decision["reason"] in text for decision, text in zip(trace.decisions, details, strict=True))


def test_enter_on_a_node_shows_its_details(opened):
    opened.tab.locator("svg.graph .node", has_text="revert").focus()
    opened.tab.keyboard.press("Enter")
    assert opened.tab.locator("#details h3").inner_text() == "revert"


def test_arrow_keys_move_between_steps(opened):
    first = opened.tab.locator(".step").first
    first.focus()
    names = []
    for key in ("ArrowDown", "ArrowRight", "ArrowUp", "Home", "ArrowUp", "End"):
        opened.tab.keyboard.press(key)
        names.append(opened.tab.locator("#details h3").inner_text())
        assert opened.tab.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert names == ["measure", "read", "measure", "run", "run", "verify"]


def test_the_steps_are_one_stop_of_the_tab_key(opened):
    opened.tab.locator(".step[aria-pressed=true]").focus()
    opened.tab.keyboard.press("Tab")
    assert opened.tab.evaluate("document.activeElement.classList.contains('step')") is False


def test_a_long_prompt_is_collapsed_until_it_is_opened(traces, open_page):
    opened = open_page(page(traces["long"]))
    assert len(opened.text()) < 20_000
    opened.tab.locator(".step", has_text="decode").click()
    prompt = opened.tab.locator("#details details").first
    assert prompt.locator("pre").is_visible() is False
    assert "characters: prompt0" in prompt.locator("summary").inner_text()
    prompt.locator("summary").click()
    assert len(prompt.locator("pre").inner_text()) > 30_000


# --- readable and accessible -----------------------------------------------------------------------------------------

SMALLEST_TEXT = """[...document.querySelectorAll('svg text, p, td, dd, button')]
  .filter(node => node.getClientRects().length)
  .map(node => parseFloat(getComputedStyle(node).fontSize) * (node.getScreenCTM ? node.getScreenCTM().a : 1))
  .reduce((one, other) => Math.min(one, other))"""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", RUNS)
def test_a_page_is_as_wide_as_the_window_and_its_texts_are_large_enough(traces, open_page, name, width):
    opened = open_page(page(traces[name]), width)
    assert opened.tab.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.tab.evaluate(SMALLEST_TEXT) >= 9.5


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("name", RUNS)
def test_axe_names_no_violation(traces, open_page, name, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="run `make test-browser`")
    opened = open_page(page(traces[name]), width, scheme)
    results = axe.Axe().run(opened.tab)
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in results.response["violations"]] == []
    assert len(results.response["passes"]) > 10


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_page_follows_the_colour_scheme(traces, open_page, scheme):
    opened = open_page(page(traces["crossfit"]), scheme=scheme)
    colour = opened.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, colour[4:-1].split(","))) > 384) == (scheme == "light")


def test_a_page_of_a_long_run_opens_within_a_second(traces, open_page):
    text = page(traces["long"])
    assert len(text.encode()) < 2 << 20
    drawn = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"
    times = [open_page(text).tab.evaluate(drawn) for _ in range(3)]
    assert min(times) < 1000, times  # the machine may be busy


# --- components, as a page uses them while a run goes on -------------------------------------------------------------

NODE = "document.getElementById('live') || document.body.appendChild(html('div', {id: 'live'}))"


def test_the_graph_is_drawn_again_as_the_run_proceeds(opened):
    draw = (
        f"data => {{ const node = {NODE}; drawGraph(node, data); return node.querySelectorAll('.edge.taken').length }}"
    )
    graph = {"strategies": ["in_context", "vote"], "edges": [["__start__", "measure"]], "visits": {}}
    first = opened.tab.evaluate(draw, graph)
    graph["edges"] += [["measure", "decide"], ["decide", "vote"]]
    second = opened.tab.evaluate(draw, graph)
    assert (first, second) == (1, 3)
    assert opened.tab.locator("#live svg.graph").count() == 1


def test_a_curve_grows_and_begins_empty(opened):
    text = "node.querySelector('figcaption')?.innerText || ''"
    draw = f"data => {{ const node = {NODE}; drawCurve(node, data); return {text} }}"
    texts = [
        opened.tab.evaluate(draw, {"name": "loss", "points": points})
        for points in ([], [[1, 2.0]], [[1, 2.0], [2, 0.5]])
    ]
    assert texts == ["", "loss: 2 at step 1", "loss: 2 at step 1 to 0.5 at step 2"]


def test_a_resumed_run_begins_where_it_was_paused(opened):
    draw = (
        f"data => {{ const node = {NODE}; drawGraph(node, data); return node.firstChild.getAttribute('aria-label') }}"
    )
    graph = {"strategies": ["vote"], "edges": [["__resume__", "judge"], ["judge", "revert"]], "visits": {}}
    label = opened.tab.evaluate(draw, graph)
    assert label == "graph; path taken: __resume__ to judge to revert"
    assert opened.tab.locator("#live .edge.taken").count() == 2
