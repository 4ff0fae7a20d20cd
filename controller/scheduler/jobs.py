"""What a scheduler works on: a query of a task, or a call that uses the model for a short time.

Knows nothing about queues or threads.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context as Variables
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ...ttt_core.learner import Learner
from ...ttt_core.tasks.task import Task
from ..events import OnEvent
from ..runs import PausedRun
from ..state import Context

if TYPE_CHECKING:
    from ..task_graph import TaskGraph

Phase = Literal["waits_for_reading", "reading", "waits_for_training", "training", "answering", "done"]
"""`training`: in a batch, and its run is paused; `answering`: the training lane advances its run."""


@dataclass(frozen=True)
class Query:
    """A task, and how it is solved."""

    task: Task
    seed: int
    context: Context
    on_event: OnEvent | None


@dataclass(eq=False)
class Job:
    """A query or a call, from its arrival to its result."""

    work: Query | Callable[[], Any]
    priority: int = 0
    ends: float = math.inf
    """Time of `time.monotonic` at which its deadline passes."""
    cancel: threading.Event | None = None
    """Set by the caller, from any thread."""
    future: Future[Any] = field(default_factory=Future)
    stop: threading.Event = field(default_factory=threading.Event)
    """Ends the work on it before its next step or token."""
    arrived: float = field(default_factory=time.monotonic)
    variables: Variables = field(default_factory=copy_context)
    """Of the caller; the work is done with them."""
    phase: Phase = "waits_for_reading"
    run: PausedRun | None = None
    """Of a query whose work has begun."""
    is_late: bool = False
    """Whether its deadline has passed."""
    in_lane: bool = False
    """Whether a thread works on it."""
    lane: threading.RLock = field(default_factory=threading.RLock)
    """Held by the thread that works on it: a lane that hands it over has left its variables before the other enters."""
    error: BaseException | None = None
    """What its future raises."""

    @property
    def can_end_early(self) -> bool:
        """Whether a deadline or an event of its caller may end it."""
        return self.ends < math.inf or self.cancel is not None

    @property
    def is_wanted(self) -> bool:
        """Whether the adapter that a batch trains for it is still of use."""
        return self.phase == "training" and not self.stop.is_set()

    def begin(self, graph: TaskGraph, learner: Learner, thread: str) -> PausedRun:
        """Begins the run of a query."""
        assert isinstance(self.work, Query)
        query = self.work
        context = replace(query.context, learner=learner, stops=(*query.context.stops, self.stop))
        self.run = PausedRun(graph, query.task, context, query.seed, thread, query.on_event)
        return self.run

    def decided(self) -> PausedRun:
        """The run of a query whose strategy is decided."""
        assert self.run is not None
        return self.run

    def keep_in_context(self, reason: str) -> PausedRun:
        """The run, decided for the in-context answer, which nothing stops any more."""
        run = self.decided()
        run.context = replace(run.context, stops=())
        run.decide_for_in_context(reason)
        return run

    @property
    def has_decision(self) -> bool:
        """Whether it has an in-context answer, and a strategy was decided on."""
        return self.run is not None and bool(self.run.state.get("decision"))
