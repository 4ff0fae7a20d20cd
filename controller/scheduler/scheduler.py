"""The object that programs with many callers hold: `with controller.scheduler() as scheduler: scheduler.submit(task)`.

Threads and coroutines share it. Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import copy
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol, TypeVar

from ...policies.policy import Decision
from ...ttt_core.errors import SettingsError
from ...ttt_core.learner import Learner
from ...ttt_core.model.fingerprint import RevertProof
from ...ttt_core.tasks.fields import check_seed
from ...ttt_core.tasks.task import Task
from .. import lazy
from ..background import EVENT_LIMIT
from ..budget import Budget
from ..events import OnEvent
from ..results import Result
from ..runs import require_task
from ..state import Context
from .jobs import Job, Query
from .lanes import Lanes

T = TypeVar("T")


class Solver(Protocol):
    """What a scheduler needs of a `Controller`."""

    learner: Learner
    seed: int
    langsmith: bool
    scope: str

    def context(
        self, budget: Budget | str | float | None = None, cancel: threading.Event | None = None,
        strategy: str | None = None,
    ) -> Context:  # fmt: skip
        """What the nodes of a run work with."""
        ...

    def decide(
        self, task: Task, *, budget: Budget | str | float | None = None, seed: int | None = None,
        cancel: threading.Event | None = None,
    ) -> tuple[Decision, RevertProof]:  # fmt: skip
        """The decision on a task, which is not answered."""
        ...


class Scheduler:
    """Solves queries of many threads and coroutines by one controller. A context manager; made by
    `Controller.scheduler`.

    Queries are measured and decided on, and answered in context, in the order of their priority. Those that need
    training wait for it and share batches. Training pauses, in the middle of its passes, while there is a query to
    measure: it takes at most four of five parts of the time from the others. Where a model cannot be used by two
    threads, a warning says so, and queries wait for the end of a training.
    """

    def __init__(self, controller: Solver, *, queue: int = 64, batch: int = 16) -> None:
        """`queue` is how many queries may wait; with 0 a query is taken only if it can be read at once. `batch` is how
        many adapters are trained at once at most. Starts threads: `close` ends them. Raises `ValueError` for a
        negative `queue`, and a `batch` below 1."""
        for name, value, least in (("queue", queue, 0), ("batch", batch, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected a whole number of at least {least}; received {value!r}")
        lazy.import_all()
        self.controller = controller
        self.lanes = Lanes(controller.learner, limit=queue, batch=batch, langsmith=controller.langsmith)

    @property
    def learner(self) -> Learner:
        """The controller's learner."""
        return self.controller.learner

    @property
    def waiting(self) -> int:
        """Queries that wait, for their first look or for training."""
        return self.lanes.waiting

    @property
    def running(self) -> int:
        """Queries that are worked on."""
        return self.lanes.running

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, or the base was changed, and no query is left."""
        return self.lanes.is_closed

    @property
    def expected_seconds(self) -> float:
        """Estimated seconds until a query that came now would have its result."""
        return self.lanes.expected_seconds

    def for_scope(self, scope: str) -> Scheduler:
        """The same scheduler for queries that reuse only adapters of one scope; see `Controller.for_scope`."""
        scoped, controller = copy.copy(self), copy.copy(self.controller)
        controller.scope, scoped.controller = scope, controller
        return scoped

    def submit(
        self,
        task: Task,
        *,
        strategy: str | None = None,
        budget: Budget | str | float | None = None,
        seed: int | None = None,
        priority: int = 0,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
        on_event: OnEvent | None = None,
    ) -> Future[Result]:
        """Takes a query and returns at once; the future has its result.

        `strategy`, `budget`, `seed` and `on_event` are as in `Controller.solve`; `on_event` is called by the threads of
        the scheduler and must be quick. A query of a lower `priority` goes first, and none waits for ever: each level
        is worth sixteen places in the queue. The `budget` bounds the query's own work; waiting, and pauses of its
        training, do not count, and of the seconds of a batch its share, in proportion to tokens. Where the next step of
        the batch might exceed it, the query's training ends and the others continue.

        `deadline` is seconds from now, all waiting included. When they have passed, the query's in-context answer is
        its result at once, and `reason` says so; a query that has none yet raises `DeadlineError`.
        `Future.cancel`, or setting `cancel`, ends the query at once, also while it is trained in a batch; then the
        future raises `CancelledError` or `Cancelled`. Otherwise it raises what `Controller.solve` raises.

        Raises `QueueFullError`, with the seconds after which to try again, `ClosedError`, and `BaseChangedError` from
        the moment that the base model was found changed.
        """
        require_task(task)
        context = self.controller.context(budget, cancel, strategy)
        if context.on_event is None and on_event is None:
            context = replace(context, on_event=lazy.task_graph.parent_stream_writer())
        query = Query(task, check_seed(self.controller.seed if seed is None else seed), context, on_event)
        return self._add(query, priority, deadline, cancel)

    def solve(self, task: Task, **how: Any) -> Result:
        """Submits a query and waits for its result; the arguments are those of `submit`. Raises `SettingsError` where a
        callback of one of its queries calls it: it would wait for itself."""
        if self.lanes.include_caller:
            raise SettingsError(
                "Scheduler.solve was called inside a callback of one of its queries, and would wait for ever: use "
                "submit, and read the result outside"
            )
        return _result(self.submit(task, **how))

    async def asolve(self, task: Task, **how: Any) -> Result:
        """Submits a query and waits for its result. Cancelling the coroutine cancels the query."""
        return await asyncio.wrap_future(self.submit(task, **how))

    async def astream(self, task: Task, **how: Any) -> AsyncGenerator[dict[str, Any] | Result, None]:
        """The events of `Controller.stream`, and the result. Closing the iterator cancels the query."""
        events = _AsyncEvents()
        future = self.submit(task, **how, on_event=events.put)
        future.add_done_callback(lambda future: events.wake())
        try:
            while not future.done():
                for event in await events.read():
                    yield event
            for event in events.take():
                yield event
            yield future.result()
        finally:
            future.cancel()

    def call(
        self, work: Callable[[], T], *, priority: int = 0, deadline: float | None = None,
        cancel: threading.Event | None = None,
    ) -> Future[T]:  # fmt: skip
        """Has `work`, which uses the learner for a short time, done between two queries, while training pauses. The
        other arguments, and what is raised, are as in `submit`; `work` itself must end soon after `cancel` is set."""
        return self._add(work, priority, deadline, cancel)

    async def adecide(
        self, task: Task, *, budget: Budget | str | float | None = None, seed: int | None = None
    ) -> tuple[Decision, RevertProof]:
        """As `Controller.decide`. Cancelling the coroutine cancels the work."""
        require_task(task)
        stop = threading.Event()
        controller = self.controller
        try:
            return await asyncio.wrap_future(
                self.call(lambda: controller.decide(task, budget=budget, seed=seed, cancel=stop))
            )
        finally:
            stop.set()

    def close(self, *, cancel: bool = False) -> None:
        """Takes no more queries, waits for those that were taken, or cancels them, and ends the threads.

        Called by a callback of a query, or while the caller holds the model that a query waits for, it does not wait:
        the queries may wait for the caller. They end afterwards, and the threads after them; `close` outside waits for
        both.
        """
        self.lanes.close(cancel=cancel)

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cancel=error is not None)

    def _add(
        self, work: Query | Callable[[], Any], priority: int, deadline: float | None, cancel: threading.Event | None
    ) -> Future[Any]:
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise TypeError(f"priority: expected a whole number, the lower the sooner; received {priority!r}")
        if deadline is not None and not (isinstance(deadline, (int, float)) and deadline > 0):
            raise ValueError(f"deadline: expected seconds from now, above 0; received {deadline!r}")
        if not isinstance(cancel, (threading.Event, type(None))):
            raise TypeError(f"cancel: expected a threading.Event; received {cancel!r}")
        ends = math.inf if deadline is None else time.monotonic() + deadline
        job = Job(work, priority, ends, cancel)
        self.lanes.add(job)
        return job.future


def _result(future: Future[T]) -> T:
    """The result of a future; an interrupted wait cancels it."""
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


class _AsyncEvents:
    """Events from threads for one coroutine. The oldest of more than `EVENT_LIMIT` unread steps are dropped."""

    def __init__(self) -> None:
        self._loop, self._changed = asyncio.get_running_loop(), asyncio.Event()
        self._events: deque[dict[str, Any]] = deque()
        self._steps: deque[dict[str, Any]] = deque()
        self._lock = threading.Lock()

    def put(self, event: dict[str, Any]) -> None:
        """Adds an event, from any thread."""
        with self._lock:
            self._events.append(event)
            if event["event"] == "step":
                self._steps.append(event)
                if len(self._steps) > EVENT_LIMIT:
                    self._events.remove(self._steps.popleft())
        self.wake()

    def wake(self) -> None:
        """Ends `read`."""
        with suppress(RuntimeError):  # the loop was closed
            self._loop.call_soon_threadsafe(self._changed.set)

    def take(self) -> list[dict[str, Any]]:
        """The unread events."""
        with self._lock:
            events = list(self._events)
            self._events.clear()
            self._steps.clear()
            return events

    async def read(self) -> list[dict[str, Any]]:
        """The unread events, once there are any or `wake` was called."""
        await self._changed.wait()
        self._changed.clear()
        return self.take()
