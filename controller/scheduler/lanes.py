"""The two lanes of a scheduler, a thread each: one reads, decides and answers in context; the other trains.

The training lane computes on a replica of the model, and pauses in the middle of its passes while there is something to
read. Where the model has no replica, one thread does both in turns.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from ...strategies.adapter_training import PlansAdapter, has_adapter
from ...strategies.base import is_plugin
from ...strategies.registry import get_strategy, plugin_proofs, strategies
from ...ttt_core import clock
from ...ttt_core.engine.adapter_plan import AdapterPlan
from ...ttt_core.engine.adapter_provider import Prefetched
from ...ttt_core.errors import BaseChangedError, Cancelled, ClosedError, DeadlineError, QueueFullError, ignoring_errors
from ...ttt_core.learner import Learner, learner_of_replica
from ...ttt_core.model.fingerprint import RevocableChangeError
from ...ttt_core.spans import inside
from .. import lazy
from ..events import PlannedRun, PrefetchProgress
from ..runs import PausedRun
from .jobs import Job, Query
from .precedence import Precedence, PriorityQueue

if TYPE_CHECKING:
    from ..task_graph import TaskGraph

ANSWERS_BEFORE_TRAINING = 4
"""Jobs of the reading lane, one right after the other, after which paused training continues for as long as one of them
takes."""
SWEEP_SECONDS = 0.01
"""How often deadlines and events of callers are looked at while work is under way."""
FRONT = -1_000_000
"""Priority of a query whose deadline has passed: its in-context answer takes no time."""
LATE = "the deadline passed before {} was trained and had answered; the in-context answer is the fallback"
EXIT_SECONDS = 5.0
"""How long the end of the interpreter waits for a lane."""
_LOG = logging.getLogger("autottt")
_OPEN: WeakSet[Lanes] = WeakSet()
"""Whose threads run."""


@atexit.register
def _end_lanes() -> None:
    """Ends the threads that were not closed: one that the interpreter stopped inside torch would abort the process."""
    for lanes in list(_OPEN):
        lanes.close(cancel=True, timeout=EXIT_SECONDS)


class _Thread(threading.local):
    """What is known of the current thread."""

    lanes: tuple[Lanes, ...] = ()
    """Whose work it does; callbacks are part of that."""


_THREAD = _Thread()


class Lanes:
    """The threads, queues and jobs of a scheduler."""

    def __init__(self, learner: Learner, *, limit: int, batch: int, langsmith: bool) -> None:
        """`limit` is how many jobs may wait, `batch` how many adapters are trained at once at most."""
        self.learner = learner
        self.precedence = Precedence()
        self._limit, self._batch, self._langsmith = limit, batch, langsmith
        self._changed = threading.Condition(threading.RLock())
        self._to_read, self._to_train = PriorityQueue[Job](), PriorityQueue[Job]()
        self._jobs: set[Job] = set()
        self._error: Exception | None = None
        """Why no job is taken any more."""
        self._process = os.getpid()
        self._numbers, self._next_sweep = count(), 0.0
        self.on_wait: Callable[[float], None] = lambda seconds: None
        """Receives the seconds that each job waited before the work on it began."""
        self._in_a_row = 0
        """Jobs that were read while training was paused, since it last continued."""
        self._seconds_per_job, self._last_end = 1.0, 0.0
        self._memory = lazy.memory.InMemorySaver()
        self._graphs: tuple[tuple[str, ...], TaskGraph] | None = None
        self._trainer = self._training_learner()
        loops = [self._read_all, self._train_all] if self._trainer is not learner else [self._take_turns]
        self._threads = [
            threading.Thread(target=self._run, args=[loop], name=f"autottt-{loop.__name__}", daemon=True)
            for loop in loops
        ]
        for thread in self._threads:
            thread.start()
        _OPEN.add(self)

    def _run(self, loop: Callable[[], None]) -> None:
        with self._at_work():
            loop()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """While inside, the current thread does the work of these lanes."""
        before, _THREAD.lanes = _THREAD.lanes, (*_THREAD.lanes, self)
        try:
            yield
        finally:
            _THREAD.lanes = before

    @property
    def include_caller(self) -> bool:
        """Whether the current thread does the work of these lanes, which callbacks are part of: they wait for it."""
        return self in _THREAD.lanes

    def _training_learner(self) -> Learner:
        """The learner of the training lane."""
        replica = learner_of_replica(self.learner)
        if replica is None:
            _LOG.warning(
                "%s has no replica, so it trains and answers in turns: a query may wait for the training of others",
                self.learner.loaded.name,
            )
            return self.learner
        replica.guarded.pause = self._pause
        return replica

    # --- what callers do ---------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return len(self._to_read) + len(self._to_train)

    @property
    def is_closed(self) -> bool:
        """Whether no job is taken any more, and none is left."""
        return self._is_over

    @property
    def running(self) -> int:
        """Jobs that a lane works on."""
        return len(self._jobs) - self.waiting

    @property
    def expected_seconds(self) -> float:
        """Seconds until a job that came now would have its result."""
        return self._seconds_per_job * (len(self._jobs) + 1)

    def add(self, job: Job) -> None:
        """Takes a job. Raises `QueueFullError`, `ClosedError`, and `BaseChangedError` once the base was changed."""
        with self._changed:
            self._refuse()
            self._jobs.add(job)
            self._to_read.put(job, job.priority)
            self.precedence.begin_reading()
            self._changed.notify_all()
        job.future.add_done_callback(lambda future: self._on_done(job))

    def _refuse(self) -> None:
        if os.getpid() != self._process:
            raise ClosedError("this process was forked from the one with the scheduler; create another one here")
        if self._error is not None:
            raise type(self._error)(*self._error.args)
        taken_at_once = not any(job.phase == "reading" for job in self._jobs)
        if self.waiting + 1 - taken_at_once > self._limit:
            seconds = self.expected_seconds
            raise QueueFullError(
                f"{self.waiting} queries wait, which is the limit; try again in about {seconds:.0f} seconds", seconds
            )

    def _wait_for_caller(self) -> bool:
        """Whether a job waits for a turn at the model that the caller is inside of, and the job is not."""
        lock = self.learner.guarded.lock
        return lock.is_held_by_caller() and not all(lock.is_open_to(job.variables) for job in list(self._jobs))

    def close(self, *, cancel: bool, timeout: float | None = None) -> None:
        """Ends both lanes, after the jobs that were taken; with `cancel` these are cancelled. Waits up to `timeout`
        seconds for each lane, but not where the lanes may wait for the caller: where the caller does the work of a
        scheduler, or holds the model that a job waits for."""
        with self._changed:
            if self._error is None:
                self._error = ClosedError("this scheduler is closed")
            self._changed.notify_all()
        if os.getpid() != self._process:
            return
        if cancel:
            self._cancel_all(lambda: Cancelled("the scheduler was closed; this query has no answer"))
        if _THREAD.lanes or self._wait_for_caller():
            return
        for thread in self._threads:
            thread.join(timeout)
        _OPEN.discard(self)

    def _cancel_all(self, make_error: Callable[[], BaseException]) -> None:
        for job in list(self._jobs):
            job.stop.set()
            self._settle(job, error=make_error())

    # --- the life of a job -------------------------------------------------------------------------------------------

    def _on_done(self, job: Job) -> None:
        """A future that its caller cancelled ends its job."""
        if job.future.cancelled():
            job.stop.set()
            self._settle(job, error=Cancelled("cancelled by the caller; this query has no answer"))

    def _settle(self, job: Job, result: Any = None, error: BaseException | None = None) -> None:
        """Ends a job, once."""
        with self._changed:
            if job.phase == "done":
                return
            job.phase, job.error = "done", error
            self._remove(job)
            self._jobs.discard(job)
            now = time.monotonic()
            self._seconds_per_job += 0.1 * (min(now - self._last_end, 60.0) - self._seconds_per_job)
            self._last_end = now
            self._changed.notify_all()
        if not job.in_lane:
            self._forget(job)
        with self._at_work():  # this may be a thread of PyTorch, which pauses in the middle of a backward pass
            self._give(job, result, error)

    @staticmethod
    def _give(job: Job, result: Any, error: BaseException | None) -> None:
        """Gives a job's future its result, which calls back."""
        if not job.future.set_running_or_notify_cancel():
            return
        if error is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)

    def _remove(self, job: Job) -> None:
        """Takes a job out of the queue that it waits in."""
        if not self._to_read.remove(job):
            self._to_train.remove(job)

    def _forget(self, job: Job) -> None:
        """Drops the checkpoints of a job that has ended, and ends its trace."""
        with self._changed:
            run, job.run = job.run, None  # its learner may be the replica
        if run is not None:
            run.end(job.error)
            self._memory.delete_thread(run.thread)

    def sweep(self) -> None:
        """Ends jobs that their callers cancelled, and those whose deadline has passed."""
        now = time.monotonic()
        if now < self._next_sweep:
            return
        self._next_sweep = now + SWEEP_SECONDS
        with self._changed:
            jobs = [job for job in self._jobs if job.can_end_early]
        for job in jobs:
            if job.cancel is not None and job.cancel.is_set():
                job.stop.set()
                self._settle(job, error=Cancelled("cancelled by the caller; this query has no answer"))
            elif now >= job.ends and not job.is_late:
                self._end_late(job)

    def _end_late(self, job: Job) -> None:
        """What happens to a job when its deadline passes: with an in-context answer, that becomes its result."""
        with self._changed:
            job.is_late = True
            if job.phase in ("waits_for_training", "training"):
                self._remove(job)
                self._queue_to_read(job, FRONT)
                return
            if job.phase != "waits_for_reading":
                return job.stop.set()
        self._settle(job, error=_too_late())

    def _queue_to_read(self, job: Job, priority: int) -> None:
        job.phase = "waits_for_reading"
        self._to_read.put(job, priority)
        self.precedence.begin_reading()
        self._changed.notify_all()

    # --- the reading lane --------------------------------------------------------------------------------------------

    def _read_all(self) -> None:
        while (job := self._next_to_read(wait=True)) is not None:
            began = time.monotonic()
            self._work(job, self._read)
            self._in_a_row += self.precedence.is_training_paused
            if self._in_a_row >= ANSWERS_BEFORE_TRAINING and len(self._to_read):
                self.precedence.let_through(time.monotonic() - began)
                self._in_a_row = 0

    def _next_to_read(self, *, wait: bool) -> Job | None:
        """The next job to read; None once there will be none, or where there is none and the caller does not `wait`."""
        with self._changed:
            while (job := self._to_read.take()) is None:
                self.precedence.end_reading()
                self._in_a_row = 0
                if not wait or self._is_over:
                    return None
                self._changed.wait()
            job.phase = "reading"
            return job

    @property
    def _is_over(self) -> bool:
        return self._error is not None and not self._jobs

    def _read(self, job: Job) -> None:
        """Answers a job as far as that takes no training."""
        if not isinstance(job.work, Query):
            return self._settle(job, job.work())
        if job.is_late:
            if not job.has_decision:
                raise _too_late()
            return self._finish_in_context(job, self.learner)
        run = job.run or job.begin(self._graph, self.learner, str(next(self._numbers)))
        with self._part(job, self.learner):
            trained = [name for name in strategies() if name != "in_context"]
            run.advance(trained)
            while not run.is_finished and self._is_trained(job):
                run.advance(trained)
        if run.is_finished:
            return self._settle(job, run.finish())
        with self._changed:
            if job.phase == "reading":
                job.phase = "waits_for_training"
                self._to_train.put(job, job.priority)
                self._changed.notify_all()

    def _is_trained(self, job: Job) -> bool:
        """Whether the adapter that a paused run needs exists, so that answering takes no longer than in context."""
        run = job.decided()
        strategy = get_strategy(run.strategy)
        if is_plugin(strategy):
            return False
        with suppress(Exception), self.learner.adapters.scoped(run.context.scope):
            return has_adapter(self.learner, strategy, run.formatted_task, run.seed)
        return False

    # --- the training lane -------------------------------------------------------------------------------------------

    def _train_all(self) -> None:
        while jobs := self._next_to_train():
            self._train(jobs)
        self._trainer = self.learner  # the replica goes

    def _take_turns(self) -> None:
        """Both lanes in one thread: what can be read goes first."""
        while True:
            self._read_waiting()
            with self._changed:
                if not len(self._to_read) and not len(self._to_train):
                    if self._is_over:
                        return
                    self._changed.wait()
                    continue
            if not len(self._to_read):
                self._train(self._next_to_train())

    def _read_waiting(self) -> None:
        while (job := self._next_to_read(wait=False)) is not None:
            self._work(job, self._read)

    def _next_to_train(self) -> list[Job]:
        """The next jobs that are trained together; empty once there will be none."""
        with self._changed:
            while not len(self._to_train):
                if self._is_over:
                    return []
                self._changed.wait()
            jobs = self._to_train.take_up_to(self._batch)
            for job in jobs:
                job.phase = "training"
            return jobs

    def _pause(self) -> None:
        """Called in the middle of training."""
        self.sweep()
        self.precedence.pause()

    def _train(self, jobs: Sequence[Job]) -> None:
        """Trains the adapters of jobs in one batch, and answers each."""
        try:
            if len(jobs) > 1:
                self._prefetch(jobs)
            for job in jobs:
                with self._changed:
                    if job.phase != "training":
                        continue
                    job.phase = "answering"
                self._work(job, self._answer)
                if self._trainer is self.learner:
                    self._read_waiting()
        finally:
            self._release()

    def _release(self) -> None:
        try:
            with plugin_proofs(self._trainer):
                self._trainer.adapters.release_prefetched()
        except BaseChangedError as error:
            self._fail(error)

    def _prefetch(self, jobs: Sequence[Job]) -> None:
        """Trains the adapters that strategies plan for jobs. A job whose adapter fails here trains by itself."""
        trainer = self._trainer

        def should_stop() -> bool:
            self.sweep()
            if not any(job.is_wanted for job in jobs):
                raise Cancelled("nobody waits for these adapters any more")
            return False

        try:
            with self._clock(trainer), plugin_proofs(trainer), trainer.guarded.stop_when(should_stop):
                planned = self._planned(jobs)
                progress, trained = PrefetchProgress([run for run, _ in planned], None), list[Prefetched]()
                owners = {id(run.plan): job for run, job in planned}

                def is_wanted(plan: AdapterPlan) -> bool:
                    return owners[id(plan)].is_wanted

                try:
                    plans = [run.plan for run, _ in planned]
                    trained = trainer.adapters.prefetch(plans, progress.on_step, is_wanted)
                finally:
                    progress.finish(trained)
                trainer.verify()
        except BaseChangedError as error:
            self._fail(error)
        except Exception as error:
            _LOG.debug("a batch of %d trainings ended: %s", len(jobs), type(error).__name__)

    def _planned(self, jobs: Sequence[Job]) -> list[tuple[PlannedRun, Job]]:
        """The plans of the jobs whose strategies plan an adapter; their training begins."""
        planned = []
        for job in jobs:
            run = job.run
            if run is None:  # it was cancelled just now
                continue
            strategy = get_strategy(run.strategy)
            if isinstance(strategy, PlansAdapter):
                with ignoring_errors():  # a mistake in a strategy is raised again, and reported, when it runs
                    plan = strategy.plan(self._trainer, run.formatted_task, run.seed)
                    plan = replace(plan, scope=run.context.scope, max_seconds=run.training_seconds)
                    planned.append((PlannedRun(plan, run.task, run.waiting, self._publisher(job, run)), job))
                    self._call_back(job, run, partial(run.context.begin_phase, "training"))
        return planned

    def _publisher(self, job: Job, run: PausedRun) -> Callable[[dict[str, Any]], None] | None:
        """What receives the training steps of a job."""
        publish = run.context.on_event
        if publish is None:
            return None

        def publish_step(step: dict[str, Any]) -> None:
            if job.is_wanted:
                self._call_back(job, run, partial(publish, step))

        return publish_step

    def _call_back(self, job: Job, run: PausedRun, callback: Callable[[], None]) -> None:
        """Calls a callback of a job while a batch is trained. What it raises ends this job only."""
        try:
            with run.callback_errors:
                callback()
        except BaseException as error:
            job.stop.set()
            self._settle(job, error=error)

    def _answer(self, job: Job) -> None:
        """Runs what remains of a run: with the adapter that the batch has trained, or with its own training."""
        run = job.decided()
        run.context = replace(run.context, learner=self._trainer)
        with self._part(job, self._trainer):
            run.advance()
        self._settle(job, run.finish())

    def _finish_in_context(self, job: Job, learner: Learner) -> None:
        """The in-context answer as the result of a run that is late."""
        run = job.keep_in_context(LATE.format(job.decided().strategy))
        run.context = replace(run.context, learner=learner)
        with self._part(job, learner):
            run.advance()
        self._settle(job, run.finish())

    # --- what both lanes share ---------------------------------------------------------------------------------------

    @property
    def _graph(self) -> TaskGraph:
        names = tuple(strategies())
        if self._graphs is None or self._graphs[0] != names:
            self._graphs = names, lazy.graph.build_graph(self._memory)
        return self._graphs[1]

    def _work(self, job: Job, work: Callable[[Job], None]) -> None:
        """Works on a job; what is raised ends this job only, unless the base was changed."""
        learner = self.learner if work == self._read else self._trainer
        with job.lane:
            job.in_lane = True
            try:
                self.sweep()
                if job.phase != "done":
                    if job.run is None:
                        self.on_wait(time.monotonic() - job.arrived)
                    job.variables.run(work, job)
            except BaseException as error:
                self._on_error(job, learner, error)
            finally:
                job.in_lane = False
                if job.phase == "done":
                    self._forget(job)

    def _on_error(self, job: Job, learner: Learner, error: BaseException) -> None:
        try:
            if isinstance(error, BaseChangedError):
                raise error
            with plugin_proofs(learner):
                learner.verify()
            if isinstance(error, Cancelled) and job.is_late and job.phase != "done":
                if not job.has_decision:
                    raise _too_late() from None
                job.variables.run(self._finish_in_context, job, learner)
            else:
                self._settle_with_trace(job, error)
        except BaseChangedError as changed:
            self._fail(changed, job)
        except BaseException as other:
            self._settle_with_trace(job, other)

    def _settle_with_trace(self, job: Job, error: BaseException) -> None:
        """Ends a job with an error that names the trace of its run: the trace ends first."""
        if job.run is not None:
            job.run.end(error)
        self._settle(job, error=error)

    def _fail(self, error: BaseChangedError, job: Job | None = None) -> None:
        """Ends all jobs, and refuses those to come; one job, where the caller can set back what was changed."""
        if isinstance(error, RevocableChangeError):
            if job is not None:
                self._settle(job, error=error)
            return
        with self._changed:
            self._error = BaseChangedError(*error.args)
        self._cancel_all(lambda: BaseChangedError(*error.args))

    @contextmanager
    def _part(self, job: Job, learner: Learner) -> Iterator[None]:
        """A part of a run: the model is reserved, and neither the run nor its wait is part of a surrounding one."""
        run = job.decided()

        def check() -> None:
            self.sweep()
            run.context.raise_if_cancelled()

        sent = nullcontext() if self._langsmith else lazy.run_helpers.tracing_context(enabled=False)
        apart = lazy.task_graph.no_parent_run()
        with self._clock(learner), apart, sent, inside(None), learner.guarded.lock.exclusive(check):
            yield

    def _clock(self, learner: Learner) -> AbstractContextManager[None]:
        """While the training lane is paused, budgets and costs stand still."""
        is_replica = learner is not self.learner
        return clock.without_pauses(self.precedence.paused_seconds) if is_replica else nullcontext()


def _too_late() -> DeadlineError:
    return DeadlineError("the deadline passed before the query had an in-context answer; allow more time, or try later")
