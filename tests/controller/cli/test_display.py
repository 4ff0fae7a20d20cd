"""Results and traces as a terminal shows them."""

from __future__ import annotations

from rich.console import Console, RenderableType

from autottt.controller.cli.display import show_result
from autottt.controller.cli.trace_display import show_trace
from autottt.controller.plain_tasks import task_to_plain
from autottt.controller.results import Result
from autottt.controller.tracing.trace import Trace
from autottt.strategies.base import Attempt, Cost
from autottt.ttt_core.tasks.kinds import make_task

TASK = make_task([("one", "Uno"), ("two", "Dos")], query="three", answer="Tres", comparison="ignore_case")


def shown(what: RenderableType) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def result() -> Result:
    first, last = Attempt("in_context", "TRES", "TRES", 0.5), Attempt("ttt_direct", "tres", "tres", 0.5)
    return Result(
        task=TASK, status="answered", answer="tres", text="tres", strategy="ttt_direct", reason="", difficulty=0.0,
        scores={}, features={}, in_context=first, attempts=(last,), adaptation=None, cost=Cost(), relative_seconds=1.0,
        proof=None, trace=(),
    )  # fmt: skip


def test_a_result_is_judged_by_the_comparison_of_its_task() -> None:
    text = shown(show_result(result()))
    assert (text.count("right"), text.count("wrong")) == (2, 0)


def test_the_answers_of_a_trace_are_judged_by_the_comparison_of_its_task() -> None:
    plain = result().to_plain(content=True)
    span = {"at": 0.0, "seconds": 1.0, "status": "ok"}
    facts = {"in_context": plain["in_context"], "attempt": plain["attempts"][0]}
    node = {"name": "measure", **span, "attributes": {"node": "measure", **facts}}
    attributes = {"task": task_to_plain(TASK), "result": plain}
    root = {"name": "run", **span, "attributes": attributes, "children": [node]}
    trace = Trace({"version": 1, "id": "0", "time": "2026-01-01", "content": True, "root": root})
    (text,) = [shown(part) for part in show_trace(trace.as_stored()).renderables if "right answer" in shown(part)]
    assert (text.count("right"), text.count("wrong")) == (3, 0)
