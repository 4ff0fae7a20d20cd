"""The server's page in a real browser: a person draws a task, and watches the model train on it and answer."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator

import pytest
import uvicorn

from autottt import Controller
from autottt.controller.server.app import make_app
from autottt.controller.server.engine import Engine
from autottt.controller.server.guard import ApiKeys, Guard
from autottt.controller.server.limits import Limits
from autottt.controller.server.metrics import Metrics
from autottt.controller.server.serving import bind, url_of
from autottt.controller.tracing.recorder import TraceRecorder
from autottt.controller.tracing.store import TraceStore
from tests.browser.conftest import Opened

KEY = "a-key-for-the-page"
SECONDS = 120_000
"""Milliseconds that a run may take on a busy machine."""


@pytest.fixture(scope="module")
def servers(chromium, tmp_path_factory) -> Iterator[dict[str, str]]:
    """Two servers around the bundled model: `open`, and `keys`, which needs a key."""
    store = TraceStore(tmp_path_factory.mktemp("store") / "traces.sqlite")
    controller = Controller.from_pretrained(trace=TraceRecorder([store]))
    running = []
    urls = {}
    for name, keys in {"open": None, "keys": ApiKeys.read(f"person:{KEY}", "keys.txt")}.items():
        engine = Engine(Limits(), Metrics())
        engine.use(controller)
        bound = bind("127.0.0.1", 0)
        app = make_app(engine, model_name="autottt-bundled", guard=Guard(keys))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none", http="h11"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        running.append((server, thread))
        urls[name] = url_of(bound)
    yield urls
    for server, _ in running:
        server.should_exit = server.force_exit = True
    for _, thread in running:
        thread.join()


@pytest.fixture
def open_url(chromium):
    """A function that opens an address."""
    contexts = []

    def open_(url: str, width: int = 1600, scheme: str = "light") -> Opened:
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        opened = Opened(context.new_page())
        opened.tab.on("console", lambda message: opened.messages.append(message.text))
        opened.tab.on("pageerror", lambda error: opened.messages.append(str(error)))
        opened.tab.on("request", lambda request: opened.requests.append(request.url))
        opened.tab.goto(url)
        return opened

    yield open_
    for context in contexts:
        context.close()


def ready(opened: Opened) -> Opened:
    opened.tab.get_by_role("button", name="solve", exact=True).and_(opened.tab.locator(":enabled")).wait_for()
    return opened


@pytest.fixture
def opened(servers, open_url) -> Opened:
    return ready(open_url(servers["open"]))


def cell(opened: Opened, grid: str, row: int, column: int):
    return (
        opened.tab.get_by_role("grid", name=grid, exact=True).get_by_role("row").nth(row).locator(".cell").nth(column)
    )


def draw(opened: Opened, grid: str, rows: list[list[int]]) -> None:
    """Draws a grid cell by cell with the mouse."""
    tab = opened.tab
    for name, count in (("rows", len(rows)), ("columns", len(rows[0]))):
        field = tab.get_by_label(f"{name} of {grid}", exact=True)
        field.fill(str(count))
        field.press("Enter")
        field.dispatch_event("change")
    for colour in sorted({colour for row in rows for colour in row}):
        tab.get_by_role("radio", name=f"colour {colour}", exact=True).click()
        for y, row in enumerate(rows):
            for x, each in enumerate(row):
                if each == colour:
                    cell(opened, grid, y, x).click()


def colours(opened: Opened, grid: str) -> list[list[int]]:
    rows = opened.tab.get_by_role("grid", name=grid, exact=True).get_by_role("row").all()
    return [
        [int(c.get_attribute("aria-label").rsplit(" ", 1)[1]) for c in row.get_by_role("gridcell").all()]
        for row in rows
    ]


def run(opened: Opened, strategy: str = "") -> None:
    opened.tab.get_by_label("strategy").select_option(strategy)
    opened.tab.get_by_role("button", name="solve", exact=True).click()
    opened.tab.locator("#answer .card.final").wait_for(timeout=SECONDS)


# --- a run -----------------------------------------------------------------------------------------------------------


def test_a_drawn_task_is_trained_on_and_answered(opened, servers):
    tab = opened.tab
    task = [
        ([[1, 0], [0, 2]], [[0, 1], [2, 0]]),
        ([[3, 3], [0, 4]], [[3, 3], [4, 0]]),
        ([[5, 0], [6, 0]], [[0, 5], [0, 6]]),
    ]
    for number, (source, target) in enumerate(task, start=1):
        draw(opened, f"input {number}", source)
        draw(opened, f"output {number}", target)
    draw(opened, "query", [[7, 0], [8, 9]])
    assert colours(opened, "input 2") == [[3, 3], [0, 4]]
    with tab.expect_request("**/v1/solve") as request:
        run(opened, "ttt_in_context")
    sent = json.loads(request.value.post_data)
    assert sent["query"] == [[7, 0], [8, 9]]
    assert [(pair["input"], pair["output"]) for pair in sent["demonstrations"]] == task

    text = opened.text()
    assert "in context, before training" in text
    assert "Unchanged" in text
    assert "tensors were compared" in text
    assert tab.locator("#answer svg.grid").count() >= 2
    path = tab.locator("svg.graph").get_attribute("aria-label")
    assert path.startswith("graph; path taken: __start__ to measure to decide to ttt_in_context to judge")
    assert path.endswith("revert to __end__")
    assert "training loss: " in tab.locator("#training figcaption").inner_text()
    assert "ttt_in_context" in tab.locator("#candidates tr.marked").first.inner_text()

    tab.locator("#trace").wait_for()
    with opened.tab.context.expect_page() as opening:
        tab.locator("#trace").click()
    trace = opening.value
    trace.locator("#summary .fact").first.wait_for()
    assert trace.locator(".fact").count() == 5
    assert opened.messages == []
    assert {url.split("/", 3)[2] for url in opened.requests if url.startswith("http")} == {servers["open"][7:]}


def test_the_loss_is_drawn_while_training_goes_on(opened):
    tab = opened.tab
    tab.get_by_label("values").select_option("list")
    tab.evaluate("""window.seen = []; new MutationObserver(() => {
      const caption = document.querySelector('#training figcaption');
      if (caption && !document.querySelector('#answer .card.final')) window.seen.push(caption.innerText);
    }).observe(document.querySelector('#training'), { childList: true, subtree: true })""")
    run(opened, "ttt_in_context")
    assert len(set(tab.evaluate("seen"))) > 2
    assert opened.messages == []


def test_the_policy_s_candidates_are_shown_with_their_estimates(opened):
    opened.tab.get_by_label("values").select_option("list")
    run(opened)
    rows = opened.tab.locator("#candidates tbody tr")
    assert rows.count() > 2
    chosen = opened.tab.locator("#candidates tr.marked").first
    assert re.fullmatch(r"[01]\.\d{3}", chosen.locator(".bar").inner_text())
    assert opened.tab.locator("#candidates .reasons li").first.inner_text().startswith(("in_context", "ttt_"))


def test_a_run_can_be_stopped(opened):
    opened.tab.get_by_label("strategy").select_option("ttt_crossfit")
    opened.tab.get_by_role("button", name="solve", exact=True).click()
    opened.tab.get_by_role("button", name="stop").click()
    opened.tab.get_by_text("The run was stopped.").first.wait_for()
    ready(opened)
    run(opened, "in_context")
    assert opened.tab.get_by_text("The run was stopped.").count() == 0


# --- tasks -----------------------------------------------------------------------------------------------------------


def test_cells_are_drawn_with_the_keyboard(opened):
    cell(opened, "query", 0, 0).focus()
    for key in ("5", "ArrowRight", "6", "ArrowDown", "7", "ArrowUp", "ArrowUp", "ArrowLeft", "ArrowLeft", "Space"):
        opened.tab.keyboard.press(key)
    grid = colours(opened, "query")
    assert (grid[0][:2], grid[1][1]) == ([1, 6], 7)


def test_a_pointer_that_is_held_down_draws_a_line(opened):
    boxes = [cell(opened, "query", 2, column).bounding_box() for column in range(3)]
    points = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in boxes]
    opened.tab.get_by_role("radio", name="colour 4").click()
    cell(opened, "query", 2, 0).scroll_into_view_if_needed()
    boxes = [cell(opened, "query", 2, column).bounding_box() for column in range(3)]
    points = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in boxes]
    opened.tab.mouse.move(*points[0])
    opened.tab.mouse.down()
    for point in points[1:]:
        opened.tab.mouse.move(*point)
    opened.tab.mouse.up()
    assert colours(opened, "query")[2] == [4, 4, 4]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"train": [{"input": [[1, 2]], "output": [[2, 1]]}], "test": [{"input": [[3, 4], [5, 6]]}]}', "grid"),
        ('{"demonstrations": [{"input": [1, 2], "output": [2, 1]}], "query": [3, 4]}', "list"),
        ('{"demonstrations": [{"input": "ab", "output": "ba"}], "query": "<b>x</b>"}', "text"),
        ('{"demonstrations": [{"input": [[1, 2]], "output": [[2, 1]]}], "query": [[3, 4]]}', "grid1d"),
    ],
)
def test_a_task_in_json_is_pasted(opened, text, kind):
    opened.tab.get_by_text("Paste a task in JSON").click()
    opened.tab.get_by_label("task in JSON").fill(text)
    opened.tab.get_by_role("button", name="use this task").click()
    assert opened.tab.get_by_label("values").input_value() == kind
    assert opened.tab.locator(".pairs fieldset").count() == 1
    assert opened.messages == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"train": [], "query": null}',
        '{"train": [{"input": [[11]], "output": [[1]]}], "query": [[1]]}',
        '{"train": [{"input": "a", "output": [1]}], "query": [1]}',
        '{"train": [null], "query": [1]}',
    ],
)
def test_a_text_that_is_no_task_is_refused_with_the_reason(opened, text):
    opened.tab.get_by_text("Paste a task in JSON").click()
    opened.tab.get_by_label("task in JSON").fill(text)
    opened.tab.get_by_role("button", name="use this task").click()
    assert "expected" in opened.tab.locator("#task details [role=alert]").inner_text()
    assert opened.messages == []


def test_a_list_with_another_thing_than_integers_is_refused(opened):
    opened.tab.get_by_label("values").select_option("list")
    opened.tab.get_by_label("query", exact=True).fill("1, two")
    opened.tab.get_by_role("button", name="solve", exact=True).click()
    assert "query: expected integers" in opened.text()


def test_a_task_without_demonstrations_is_refused(opened):
    for button in reversed(opened.tab.get_by_role("button", name="remove demonstration").all()):
        button.click()
    opened.tab.get_by_role("button", name="solve", exact=True).click()
    assert "expected at least one demonstration" in opened.text()
    assert not [url for url in opened.requests if url.endswith("/v1/solve")]


def test_what_the_server_refuses_is_shown_in_its_words_and_the_next_run_is_possible(opened):
    tab = opened.tab
    tab.get_by_label("budget").fill("much")
    tab.get_by_role("button", name="solve", exact=True).click()
    tab.locator("#task > [role=alert]", has_text="much").wait_for()
    assert "budget" in tab.locator("#answer").inner_text()
    tab.get_by_label("budget").fill("50x")
    run(opened, "in_context")
    assert tab.locator("#task > [role=alert]").inner_text() == ""


# --- the key ---------------------------------------------------------------------------------------------------------


def test_the_page_asks_for_the_key_and_keeps_it_in_memory(servers, open_url):
    opened = open_url(servers["keys"])
    tab = opened.tab
    assert tab.get_by_role("button", name="solve", exact=True).is_disabled()
    assert opened.messages == []
    tab.get_by_label("key", exact=True).fill("not-the-key-of-a-person")
    tab.get_by_role("button", name="use the key").click()
    tab.get_by_text("expected a valid key").wait_for()
    tab.get_by_label("key", exact=True).fill(KEY)
    tab.keyboard.press("Enter")
    ready(opened)
    assert tab.get_by_label("key", exact=True).is_hidden()
    run(opened, "in_context")
    tab.locator("#trace").wait_for()
    stored = (
        "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, document.documentElement.outerHTML])"
    )
    assert KEY not in tab.evaluate(stored)
    assert not [url for url in opened.requests if KEY in url]
    tab.reload()
    assert tab.get_by_label("key", exact=True).is_visible()


# --- readable and accessible -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1000, 1320, 1600])
def test_axe_names_no_violation_before_and_after_a_run(servers, open_url, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="run `make test-browser`")
    opened = ready(open_url(servers["open"], width, scheme))
    for strategy in (None, "ttt_direct", ""):
        if strategy is not None:
            run(opened, strategy)
        results = axe.Axe().run(opened.tab)
        assert [(v["id"], v["nodes"][0]["html"][:200]) for v in results.response["violations"]] == []
        assert opened.tab.evaluate("document.documentElement.scrollWidth") <= width


def test_axe_names_no_violation_where_a_key_is_needed(servers, open_url):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="run `make test-browser`")
    results = axe.Axe().run(open_url(servers["keys"]).tab)
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in results.response["violations"]] == []
