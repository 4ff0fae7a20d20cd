"""Runs of the graph that pause before the node of a strategy, so that several can be advanced together, and by others.

Knows nothing about who advances them, or in which order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from ..strategies.registry import get_strategy, strategies
from ..ttt_core.learner import Learner
from ..ttt_core.spans import OFF, NoSpan, Span, inside
from ..ttt_core.tasks.task import Task
from . import lazy
from .events import CallbackErrors, OnEvent, last_state, watched
from .plain_tasks import task_from_plain, task_to_plain
from .results import Result, result_of
from .session import session_of
from .state import Context, Progress, Queries, State

if TYPE_CHECKING:
    from .task_graph import TaskGraph


def require_task(task: object) -> None:
    """Raises `TypeError` for anything but a task."""
    if not isinstance(task, Task):
        raise TypeError(f"expected a Task, such as make_task gives; received a {type(task).__name__}")


def queries_of_call(tasks: Sequence[object]) -> dict[str, Queries]:
    """By the digest of a task: how many tasks have its demonstrations. Anything but tasks is left out."""
    groups: dict[object, list[Task]] = {}
    for task in tasks:
        if isinstance(task, Task):
            groups.setdefault((task.kind, task.instruction, task.demonstrations), []).append(task)
    return {
        task.digest: Queries(len(group), len(group) - place)
        for group in groups.values() for place, task in enumerate(group)
    }  # fmt: skip


def input_of(learner: Learner, task: Task, seed: int) -> State:
    """The input of the graph. Raises `TypeError` for anything but a task, and `TooLongError`."""
    require_task(task)
    learner.window.refuse_oversized(task)
    return {"task": task_to_plain(task), "seed": seed}


def begun(context: Context, task: object, seed: object) -> Context:
    """The context of a run that begins now, with its task in the root of its trace."""
    if context.recorder is not None:
        session = session_of(lazy.task_graph.parent_config())
        context = context.recorder.begin(replace(context, session=session))
    if context.root is not None and isinstance(task, Task):
        context.root.set(task=task_to_plain(task), seed=seed)
    return context


@contextmanager
def recorded(context: Context, task: object, seed: object) -> Iterator[Context]:
    """The context of a run whose trace ends with the body."""
    if context.recorder is None:
        yield context
        return
    recorder, error = context.recorder, None
    context = begun(context, task, seed)
    try:
        with inside(context.root):
            yield context
    except BaseException as raised:
        error = raised
        raise
    finally:
        recorder.finish(context, error)


class PausedRun:
    """One task's run of a graph that has a checkpointer; it pauses before the nodes of strategies."""

    def __init__(
        self, graph: TaskGraph, task: Task, context: Context, seed: int, thread: str, on_event: OnEvent | None
    ) -> None:
        self.task = task
        self.callback_errors = CallbackErrors()
        """What `on_event` raises, also where others call it."""
        on_event = self.callback_errors.watch_events(on_event)
        self.context = watched(begun(context, task, seed), [task], on_event)
        """What the run's nodes work with from now on."""
        self.state: State = {}
        """The last state; empty before the first part of the run."""
        self.waiting: Span | NoSpan = OFF
        """The span of the time since the run was advanced last."""
        self.seed, self.thread = seed, thread
        self._graph, self._on_event = graph, on_event
        self._config: Any = {"configurable": {"thread_id": thread}}
        self._begin_waiting()

    @property
    def root(self) -> Span | None:
        """The root of the run's trace; None where none is recorded."""
        return self.context.root

    @property
    def strategy(self) -> str:
        """Name of the strategy that was decided on last."""
        return str(self.state["decision"]["strategy"])

    @property
    def formatted_task(self) -> Task:
        """The task with its prompt format; only after the decision."""
        return task_from_plain(self.state["task"])

    @property
    def training_seconds(self) -> float:
        """Seconds of the budget that training may take; only after the decision."""
        progress, strategy = Progress.of(self.state), get_strategy(self.strategy)
        left = progress.seconds_left(self.context.budget)
        return lazy.nodes.training_seconds(strategy, self.context.learner, progress, left)

    @property
    def is_finished(self) -> bool:
        """Whether the run has its result."""
        return bool(self.state.get("result"))

    def to_the_decision(self) -> tuple[str, Task]:
        """Measures and decides; returns the name of the strategy, and the task with its prompt format."""
        with self.ended_by_errors():
            self.advance(list(strategies()))
        return self.strategy, self.formatted_task

    def to_the_end(self) -> Result:
        """Runs the strategy and everything after it."""
        with self.ended_by_errors():
            self.advance()
            return self.finish()

    def advance(self, stops: Sequence[str] = ()) -> None:
        """Runs until the node of one of the strategies `stops` comes next, or to the end."""
        self._end_waiting()
        start = None if self.state else input_of(self.context.learner, self.task, self.seed)
        mode: Any = "values" if self._on_event is None else ["updates", "values"]
        with inside(self.root), self.callback_errors:
            parts = self._graph.stream(
                start, self._config, context=self.context, stream_mode=mode, interrupt_before=list(stops),
                durability="exit",
            )  # fmt: skip
            self.state = last_state(parts, self.task, self._on_event) or self.state
        if not self.is_finished:
            self._begin_waiting()

    def decide_for_in_context(self, reason: str) -> None:
        """Replaces the last decision by one for the in-context answer, after which no other strategy is tried."""
        state = self._graph.get_state(self._config).values  # newer than `self.state` where a part of the run raised
        decision = {**state["decision"], "strategy": "in_context", "reason": reason, "exclusive": True}
        self._graph.update_state(self._config, {"decision": decision}, as_node="decide")
        self.state = cast(State, {**state, "decision": decision})

    def finish(self) -> Result:
        """The result of a run that is finished; ends its trace."""
        self.end()
        return result_of(self.task, self.state)

    def end(self, error: BaseException | None = None) -> None:
        """Ends the trace of the run, unless it has ended."""
        self._end_waiting()
        if self.context.recorder is not None:
            self.context.recorder.finish(self.context, error)

    def _begin_waiting(self) -> None:
        self.waiting = OFF if self.root is None else self.root.child("wait")

    def _end_waiting(self) -> None:
        if isinstance(self.waiting, Span) and self.waiting.seconds is None:
            for training in self.waiting.children:  # of a batch that continues without this run
                training.end_at_last_event()
            self.waiting.end()

    @contextmanager
    def ended_by_errors(self) -> Iterator[None]:
        """A part of the run, with which its trace ends where it raises."""
        try:
            yield
        except BaseException as error:
            self.end(error)
            raise
