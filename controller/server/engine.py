"""The engine of the server: the controller, loaded in a thread, and the scheduler that solves what requests ask.

What the HTTP side calls is `run`: it hands over work and receives its events. Imports no model library itself.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, aclosing, suppress
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ...ttt_core.errors import BaseChangedError, Cancelled, described
from .api_errors import ApiError, shutting_down
from .limits import Limits
from .metrics import Metrics
from .work_queue import WorkQueue

if TYPE_CHECKING:
    from ...ttt_core.model.fingerprint import RevertProof
    from ..controller import Controller
    from ..scheduler.scheduler import Scheduler

Event: TypeAlias = Any
"""A dictionary for progress; anything else is the result, which is the last event."""
Work: TypeAlias = "Callable[[Scheduler], AsyncGenerator[Event, None]]"
State = Literal["loading", "ready", "failed", "stopping", "stopped"]
LOAD_RETRY_SECONDS = 5
"""Seconds after which a client may ask again while the model is being loaded."""
BATCH = 16
"""Adapters that are trained at once."""
_LOG = logging.getLogger("autottt.server")


class Engine:
    """Runs the work of requests on one controller. `load` and all coroutines belong to one event loop."""

    def __init__(self, limits: Limits, metrics: Metrics, *, share_adapters: bool = False) -> None:
        """With `share_adapters` clients reuse each other's adapters of the same demonstrations."""
        self.limits = limits
        self.share_adapters = share_adapters
        self.metrics = metrics
        self.state: State = "loading"
        self.error: BaseException | None = None
        """Why the controller could not be loaded, or what the last check of the base model raised."""
        self.proof: RevertProof | None = None
        """That the base model is what was loaded, once `stop` has checked it."""
        self.queue = WorkQueue(limits)
        self.scheduler: Scheduler | None = None
        """Of the loaded controller."""
        self._controller: Controller | None = None
        self._runs: set[asyncio.Task[None]] = set()
        metrics.watch(
            lambda: 0 if self.scheduler is None else self.scheduler.waiting,
            lambda: 0 if self.scheduler is None else self.scheduler.running,
        )

    async def load(self, load: Callable[[], Controller]) -> None:
        """Loads the controller in a thread, and is ready for work afterwards."""
        try:
            await _in_daemon_thread(lambda: self.use(load()))
        except Exception as error:
            self.state, self.error = "failed", error

    def use(self, controller: Controller) -> None:
        """Takes a loaded controller."""
        self.scheduler = controller.scheduler(queue=self.limits.queue, batch=BATCH)
        self.scheduler.lanes.on_wait = self.metrics.waited
        self._controller = controller
        cache = controller.learner.adapters.cache
        cache.per_scope = self.limits.adapters_per_client
        self.metrics.watch_cache(lambda: cache.adapter_count, lambda: cache.used_bytes)
        if self.state == "loading":
            self.state = "ready"

    @property
    def controller(self) -> Controller:
        """The loaded controller. Raises `ApiError` while there is none, and once the server stops."""
        if self.state == "stopping" or self.state == "stopped":
            raise shutting_down()
        if self.state == "failed":
            raise ApiError(503, "the model could not be loaded, or is not what was loaded", code="not_ready")
        if self._controller is None:
            message = "the model is being loaded; /readyz says when it is ready"
            raise ApiError(503, message, code="loading", retry_after=LOAD_RETRY_SECONDS)
        return self._controller

    async def run(
        self, client: str, work: Work, idle_seconds: float, *, uses_model: bool = True
    ) -> AsyncGenerator[Event, None]:
        """The events of work, and None whenever there is none for `idle_seconds`.

        Closing the iterator cancels the work. Raises what the work raises, and `ApiError` where a limit is reached.
        """
        _ = self.controller  # raises where there is none
        assert self.scheduler is not None
        scheduler = self.scheduler.for_scope("" if self.share_adapters else client)
        events: asyncio.Queue[tuple[str, Event]] = asyncio.Queue()
        place = self.queue.place_of(client) if uses_model else self.queue.beside(self._expected_seconds())
        task = asyncio.create_task(self._work(place, work(scheduler), events))
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)
        has_result = False
        try:
            while True:
                try:
                    kind, event = await asyncio.wait_for(events.get(), idle_seconds)
                except TimeoutError:
                    yield None
                    continue
                if kind == "error":
                    raise event
                if kind == "end":
                    return
                has_result = not isinstance(event, dict)
                yield event
        finally:
            if not has_result:
                task.cancel()  # it gives the model back by itself; a cancelled request cannot wait for that

    async def _work(
        self, place: AbstractContextManager[None], work: AsyncGenerator[Event, None],
        events: asyncio.Queue[tuple[str, Event]],
    ) -> None:  # fmt: skip
        """Does the work and publishes its events, then `end` or `error`."""
        limit = asyncio.timeout(self.limits.seconds)
        try:
            with place:
                async with limit, aclosing(work) as running:
                    async for event in running:
                        events.put_nowait(("event", event))
            events.put_nowait(("end", None))
        except asyncio.CancelledError:
            self.metrics.failed(Cancelled())
            events.put_nowait(("error", Cancelled("the run was cancelled")))
            raise
        except BaseException as raised:  # that of a plug-in would end the event loop, or leave the client waiting
            error = raised if isinstance(raised, Exception) else RuntimeError(described(raised))
            self.metrics.failed(error)
            if isinstance(error, BaseChangedError):
                self.metrics.reverted(False)
                self.state = "failed"
            is_late = isinstance(error, TimeoutError) and limit.expired()  # and not one of the work itself
            events.put_nowait(("error", self._too_late() if is_late else error))

    def _too_late(self) -> ApiError:
        """The error for work that has exceeded the time limit."""
        message = f"there was no answer within {self.limits.seconds:g} seconds, the limit of this server"
        return ApiError(503, message, code="timeout", retry_after=self._expected_seconds())

    def _expected_seconds(self) -> float:
        """Seconds until a request that came now would be answered."""
        return 0.0 if self.scheduler is None else self.scheduler.expected_seconds

    async def stop(self) -> None:
        """Refuses new work, lets what runs or waits finish within the limit, cancels the rest, and proves the base."""
        if self.state in ("stopping", "stopped"):
            return
        self.state = "stopping"
        if self._runs:
            await asyncio.wait(set(self._runs), timeout=self.limits.shutdown_seconds)
        for task in self._runs:
            task.cancel()
        if self._runs:
            _LOG.warning("%d requests were cancelled: they did not finish in time", len(self._runs))
            await asyncio.wait(set(self._runs))
        if self._controller is not None and self.scheduler is not None:
            await asyncio.to_thread(self.scheduler.close, cancel=True)
            try:
                proof = self.proof = await asyncio.to_thread(self._controller.learner.verify, full=True)
                _LOG.info("the base model is what was loaded (%d tensors, %s)", proof.tensors, proof.hash[:12])
            except Exception as error:
                self.error = error
                changed = isinstance(error, BaseChangedError)
                _LOG.error("the base model is not what was loaded" if changed else "the base model cannot be checked")
        self.state = "stopped"


async def _in_daemon_thread(work: Callable[[], None]) -> None:
    """Does work in a thread that does not keep the process alive. Raises what it raises."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(set_outcome: Callable[[Any], None], outcome: Any) -> None:
        if not done.cancelled():
            set_outcome(outcome)

    def run() -> None:
        try:
            work()
            outcome: tuple[Callable[[Any], None], Any] = (done.set_result, None)
        except BaseException as error:
            outcome = (done.set_exception, error)
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name="autottt-load", daemon=True).start()
    await done
