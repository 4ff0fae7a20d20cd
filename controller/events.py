"""Events of runs while they happen: nodes, phases and training steps, also of adapters that are trained in a batch.

Knows nothing about who reads them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from types import TracebackType
from typing import Any

from ..ttt_core import clock
from ..ttt_core.engine.adapter_plan import AdapterPlan
from ..ttt_core.engine.adapter_provider import Prefetched, PrefetchedLoss
from ..ttt_core.engine.cost import Cost
from ..ttt_core.errors import BaseChangedError, Cancelled
from ..ttt_core.spans import NoSpan, Span
from ..ttt_core.tasks.task import Task
from .plain_tasks import Plain
from .state import Context, State

_LOG = logging.getLogger("autottt")
OnEvent = Callable[[Plain], None]
"""Receives each event as a dictionary; see `Controller.stream`."""


class CallbackErrors:
    """A context manager that raises again what callbacks of the caller have raised inside, the same object.

    Strategies and LangGraph, which lie between, would take it for a failure of their own, or make another error of it:
    a `Cancelled` goes through them in its place. Only a changed base is raised before it.
    """

    def __init__(self) -> None:
        self._first: BaseException | None = None

    def watch(self, callback: Callable[..., None]) -> Callable[..., None]:
        """The callback, which is not called again once one has raised."""

        def watched(*arguments: Any) -> None:
            if self._first is None:
                try:
                    return callback(*arguments)
                except BaseException as error:
                    self._first = error
            raise Cancelled(f"a callback of the caller raised {type(self._first).__name__}") from self._first

        return watched

    def watch_events(self, on_event: OnEvent | None) -> OnEvent | None:
        """The caller's `on_event`, watched, if there is one."""
        return None if on_event is None else self.watch(on_event)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        first = self._first
        if first is None or isinstance(error, BaseChangedError):
            return
        context = first.__context__
        try:
            raise first
        finally:
            first.__context__ = context  # not what went through in its place


def watched(context: Context, tasks: Sequence[Task], on_event: OnEvent | None) -> Context:
    """The context of a run of tasks whose phases and training steps `on_event` receives; None: as it is."""
    if on_event is None:
        return context
    ids = [task.id for task in tasks]

    def on_step(step: Plain) -> None:
        on_event({"event": "step", "tasks": ids, **step})

    def on_phase(name: str, expected_seconds: float) -> None:
        expected = {"expected_seconds": round(expected_seconds, 3)} if expected_seconds else {}
        on_event({"event": "phase", "tasks": ids, "phase": name, **expected})

    return replace(context, on_event=on_step, on_phase=on_phase)


def last_state(stream: Iterable[Any], task: Task, on_event: OnEvent | None) -> State:
    """Reads LangGraph's stream to its end and returns the last state. With `on_event`, which receives each finished
    node, the stream has the modes `updates` and `values`, else only `values`."""
    state: State = {}
    for part in stream:
        if on_event is None:
            state = part
            continue
        mode, data = part
        if mode == "values":
            state = data
            continue
        for node, update in data.items():
            if node != "__interrupt__":
                on_event({"event": "node", "tasks": [task.id], "node": node, "update": update})
    return state


def _now() -> tuple[float, float]:
    """The time of spans, and that of `clock.monotonic`."""
    return time.perf_counter(), clock.monotonic()


def seconds_per_token(cost: Cost) -> float:
    """Seconds that a token equivalent took."""
    return cost.seconds / max(1, cost.token_equivalents)


def step_facts(strategy: str, step: int, loss: float, max_steps: int, began: float, ends: float = math.inf) -> Plain:
    """What is published of a training step, with the estimated seconds until the last step, or until `ends`; both
    `began` and `ends` are times of `clock.monotonic`."""
    now = clock.monotonic()
    left = max(0.0, min((max_steps - step) * (now - began) / step, ends - now))
    return {"strategy": strategy, "step": step, "loss": loss, "max_steps": max_steps, "seconds_left": round(left, 3)}


@dataclass(frozen=True)
class PlannedRun:
    """The plan of the adapter that a paused run will use."""

    plan: AdapterPlan
    task: Task
    waiting: Span | NoSpan
    """In the run's trace: the wait in which the training of the adapter begins."""
    publish: OnEvent | None = None
    """Receives the steps of this run's adapter alone."""


@dataclass(eq=False)
class PrefetchProgress:
    """Publishes the training steps of adapters that are trained in batches, and records them in the traces of the runs
    that will use them."""

    runs: Sequence[PlannedRun]
    publish: OnEvent | None
    """Receives each step, with the ids of all tasks whose adapters were trained in it."""
    _began: tuple[float, float] = field(default_factory=_now)
    """When the batch began, in the times of spans and of `clock.monotonic`."""
    _last_step: tuple[float, float] = field(default_factory=_now)
    _shared_by: int = 1
    """Runs whose adapters are trained in the batch; several may share an adapter."""
    _spans: dict[int, Span | NoSpan] = field(default_factory=dict)
    """By the id of the plan."""

    def on_step(self, step: int, losses: Sequence[PrefetchedLoss]) -> None:
        """Publishes and records one step of a batch; an `OnPrefetchStep`."""
        runs = self._runs_of([plan for each in losses for plan in each.plans])
        if step == 1:
            self._began, self._shared_by = self._last_step, len(runs)
        self._last_step = _now()
        if not losses:
            return
        for each in losses:
            for run in self._runs_of(each.plans):
                self._span_of(run).event(step=step, loss=each.loss)
                if run.publish is not None:
                    steps = each.recipe.max_steps
                    run.publish(step_facts(run.plan.strategy, step, each.loss, steps, self._began[1]))
        loss, max_steps = fmean(each.loss for each in losses), max(each.recipe.max_steps for each in losses)
        names = ", ".join(run.task.id for run in runs)
        _LOG.debug("%s: trained together, step %d of at most %d: mean loss %.4f", names, step, max_steps, loss)
        if self.publish is None:
            return
        strategies = ", ".join(dict.fromkeys(run.plan.strategy for run in runs))
        facts = step_facts(strategies, step, loss, max_steps, self._began[1])
        self.publish({**facts, "tasks": [run.task.id for run in runs]})

    def finish(self, trained: Sequence[Prefetched]) -> None:
        """Records how the trainings ended. A training that was interrupted has ended with its last step."""
        for each in trained:
            for run in self._runs_of(each.plans):
                record = each.training
                self._span_of(run).set(
                    recipe=asdict(each.recipe), stop_reasons=[record.stop_reason], tokens=record.tokens
                )  # fmt: skip
        for span in self._spans.values():
            if isinstance(span, Span):
                span.end_at_last_event()

    def _runs_of(self, plans: Sequence[AdapterPlan]) -> list[PlannedRun]:
        known = {id(plan) for plan in plans}
        return [run for run in self.runs if id(run.plan) in known]

    def _span_of(self, run: PlannedRun) -> Span | NoSpan:
        """The span of a run's training; it begins with the batch."""
        if id(run.plan) not in self._spans:
            plan, waiting = run.plan, run.waiting
            facts = {"strategy": plan.strategy, "seeds": [plan.seed], "shared_by": self._shared_by}
            span = waiting.child("train", prefetched=True, **facts) if isinstance(waiting, Span) else waiting
            if isinstance(span, Span):
                span.began = self._began[0]
            self._spans[id(run.plan)] = span
        return self._spans[id(run.plan)]
