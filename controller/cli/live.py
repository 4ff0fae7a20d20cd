"""Shows on the terminal what happens while tasks are solved: a bar of tasks, and one of the training steps.

Knows nothing about how tasks are solved; it reads the events of `Controller.solve_many`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .console import errors, in_words

Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress on the terminal.")]
_WORDS = {"measure": "measuring", "decide": "deciding", "judge": "judging", "revert": "proving the weights unchanged"}
"""Node of the graph -> what is shown while it runs; nodes of strategies are shown as `answering`."""


class LiveProgress:
    """Bars on standard error, where that is a terminal. They vanish at the end."""

    def __init__(self, total: int | None, *, description: str = "solving", hidden: bool = False) -> None:
        """`total` is the number of tasks; None where it is unknown."""
        self._shown = errors.is_terminal and not hidden
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"), console=errors, transient=True, disable=not self._shown,
        )  # fmt: skip
        self._tasks = self._bars.add_task(description, total=total, note="")
        self._work = self._bars.add_task("", total=None, visible=False, note="")
        self._strategy = ""

    def __enter__(self) -> LiveProgress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def refresh(self) -> None:
        """Draws the bars now; by itself this happens ten times a second."""
        self._bars.refresh()

    def advance(self, count: int = 1) -> None:
        """Counts tasks that are finished."""
        self._bars.advance(self._tasks, count)

    @property
    def listener(self) -> Callable[[Mapping[str, Any]], None] | None:
        """The argument `on_event` of what solves the tasks; None where nothing is shown."""
        return self.on_event if self._shown else None

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Shows an event of `Controller.stream`."""
        if event["event"] == "phase":
            self._show_phase(event["phase"], event["tasks"], event.get("expected_seconds"))
        elif event["event"] == "step":
            left = f", {event['seconds_left']:.0f} s left"
            self._bars.update(
                self._work, description=_described(event["strategy"], "training", event["tasks"]), visible=True,
                completed=event["step"], total=event["max_steps"], note=f"loss {event['loss']:.3f}{left}",
            )  # fmt: skip

    def _show_phase(self, phase: str, tasks: list[str], expected_seconds: float | None) -> None:
        if phase not in ("training", "answering"):
            self._strategy = "" if phase in _WORDS else phase
        text = _described(self._strategy, _WORDS.get(phase, phase if phase == "training" else "answering"), tasks)
        note = "" if expected_seconds is None else f"at most about {in_words(expected_seconds)}"
        self._bars.reset(self._work, description=text, visible=True, total=None, note=note)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Removes the bars while something else is printed on the terminal."""
        self._bars.stop()
        try:
            yield
        finally:
            self._bars.start()


def _described(strategy: str, phase: str, tasks: list[str]) -> str:
    """What is done, with which strategy, for which tasks."""
    text = f"{strategy}: {phase}" if strategy else phase
    return f"{tasks[0]}: {text}" if len(tasks) == 1 else f"{text} for {len(tasks)} tasks"
