"""The page of a trace: what it says, that it is well-formed and small, and that nothing in a task is code in it."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from autottt.controller.controller import Controller
from autottt.controller.tracing.drawing import curve_svg, graph_svg
from autottt.controller.tracing.page import page_of
from autottt.controller.tracing.recorder import TraceRecorder
from autottt.controller.tracing.trace import TRACE_VERSION, Trace
from autottt.policies.policy import FixedPolicy
from autottt.strategies.registry import strategies
from autottt.ttt_core.errors import TraceError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

VOID = {"meta", "link", "br", "path", "rect", "polyline", "line"}
QUICK = Recipe(rank=2, alpha=2.0, dropout=0.0, max_steps=3, batch_size=2, transformations=2, views=3)


class Checker(HTMLParser):
    """Collects the elements, and refuses one that is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def elements_of(page: str) -> list[tuple[str, dict[str, str | None]]]:
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    return checker.elements


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """The page of a run of a task, by its kind."""
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer(), prompt_format="compact")
    learner.loaded = replace(learner.loaded, recipes=dict.fromkeys(strategies(), QUICK))
    traces: list[Trace] = []

    class Target:
        def write(self, trace: Trace) -> None:
            traces.append(trace)

    controller = Controller(learner, FixedPolicy("ttt_crossfit"), trace=TraceRecorder([Target()]))
    grid = make_task([([[1, 2], [0, 3]], [[2, 1], [3, 0]])] * 3, [[5, 6], [7, 8]], answer=[[6, 5], [8, 7]])
    text = make_task([("<script>alert(1)</script>", "b"), ("c", "d"), ("e", "f")], "</pre><img src=x>", id="<b>")
    for task in (grid, text):
        controller.solve(task)
    return {kind: page_of(trace, list(strategies())) for kind, trace in zip(("grid", "text"), traces, strict=True)}


@pytest.mark.parametrize("kind", ["grid", "text"])
def test_a_page_is_well_formed_and_loads_nothing(pages, kind):
    elements = elements_of(pages[kind])
    assert not [tag for tag, attributes in elements if "src" in attributes or tag in ("img", "iframe")]
    links = [a["href"] for tag, a in elements if tag == "link"]
    assert links == ["data:,"]
    assert len([tag for tag, _ in elements if tag == "script"]) == 1


def test_a_page_shows_grids_path_losses_and_candidates(pages):
    page = pages["grid"]
    assert 'aria-label="grid 2 by 2: 5 6 / 7 8"' in page
    assert "path taken: __start__ to measure to decide to ttt_crossfit to judge" in page
    assert "training loss: " in page
    assert "held-out demonstrations right" in page
    assert "ttt_crossfit (chosen)" in page
    assert "The weights are unchanged" in page


def test_every_step_has_a_button_and_details(pages):
    elements = elements_of(pages["grid"])
    buttons = {a["data-span"] for tag, a in elements if tag == "button"}
    details = {a["data-details"] for tag, a in elements if "data-details" in a}
    assert buttons == details
    nodes = {a["data-span"] for tag, a in elements if tag == "g" and "data-span" in a}
    assert len(nodes) == 5
    assert nodes <= details


def span(name: str, **more):
    return {"name": name, "at": 0.0, "seconds": 1.0, "status": "ok", **more}


def test_a_page_of_a_long_run_is_below_two_megabytes():
    losses = [{"at": n / 100, "step": n, "loss": 1 / n} for n in range(1, 251)]
    prompts = ["word " * 8000 for _ in range(10)]
    decoding = span("decode", attributes={"prompts": prompts, "texts": ["x"] * 10})
    adapter = span("adapter", attributes={"strategy": "ttt_direct"}, children=[span("train", events=losses)])
    node = span("ttt_direct", attributes={"node": "ttt_direct"}, children=[adapter, decoding])
    task = {
        "kind": "text", "demonstrations": [{"input": p, "output": "x"} for p in prompts[:3]], "query": "q",
        "answer": None, "id": "long",
    }  # fmt: skip
    root = span("run", attributes={"task": task, "edges": [["__start__", "ttt_direct"]]}, children=[node])
    trace = Trace({"version": TRACE_VERSION, "id": "1", "time": "2026-01-31", "content": True, "root": root})
    page = page_of(trace, ["ttt_direct"])
    assert len(page) < 2 << 20
    assert page.count("word word") >= 10
    elements_of(page)


def test_a_trace_without_content_has_no_page():
    trace = Trace({"version": TRACE_VERSION, "id": "1", "time": "", "content": False, "root": span("run")})
    with pytest.raises(TraceError, match="without the content"):
        page_of(trace, [])


def test_only_edges_that_were_taken_are_marked():
    drawn = graph_svg(["a", "b"], [("__start__", "measure"), ("measure", "decide"), ("decide", "b")], {"b": 3})
    assert drawn.count('class="edge taken"') == 3
    assert drawn.count("data-span") == 1


def test_a_curve_names_its_first_and_last_value():
    assert "training loss: 2 at step 1 to 0.5 at step 9" in curve_svg("training loss", [(1, 2.0), (9, 0.5)])
    assert curve_svg("training loss", []) == ""
    assert "at step 5000" in curve_svg("x", [(n, 1.0) for n in range(1, 5001)])
