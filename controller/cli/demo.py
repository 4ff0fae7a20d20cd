"""The demonstration: shipped example tasks, solved and shown one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

from ...ttt_core.tasks.readers import read_tasks
from ...ttt_core.tasks.task import Task
from ..controller import Controller
from ..results import Result
from .display import show_result, show_task

TASKS = Path(__file__).parent / "demo_tasks.jsonl"
"""Public tasks that nothing was trained on; sources and licences in docs/tasks.md."""


def demo_tasks() -> tuple[Task, ...]:
    """The shipped example tasks."""
    return read_tasks([TASKS]).tasks


def run_demo(controller: Controller, tasks: Sequence[Task], screen: Console) -> list[Result]:
    """Solves and shows the tasks, and a line that sums up."""
    found: list[Result] = []
    for number, task in enumerate(tasks, 1):
        screen.print(Rule(f"{number}/{len(tasks)}  {task.id} ({task.kind})", align="left"))
        screen.print(show_task(task))
        result = controller.solve_many([task])[0]
        screen.print(show_result(result) if result.status != "refused" else f"refused: {result.error}")
        found.append(result)
    before = sum(r.in_context is not None and r.in_context.value == r.task.answer for r in found)
    seconds = sum(r.cost.seconds for r in found)
    proof = controller.learner.verify(full=True)
    screen.print(Rule(align="left"))
    screen.print(
        f"{len(found)} tasks: {before} right in context, {sum(bool(r.right) for r in found)} right as decided; "
        f"{sum(r.adapted for r in found)} learned from; {seconds:.0f} s. "
        f"The model's {proof.tensors} tensors have the content hash they were loaded with ({proof.hash[:12]})."
    )
    return found
