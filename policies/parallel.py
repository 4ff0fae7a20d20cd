"""Collecting with several processes, on one machine or on a Ray cluster. Knows nothing about what is measured.

Workers measure, and hand what they found to the process that began: it alone writes, so that the store may lie on its
disk and holds the same rows whatever the workers.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from ctypes import c_bool
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from typing import Any

from ..strategies.base import Strategy, get_strategy
from ..strategies.base import strategies as registered
from ..ttt_core.errors import AutotttError, PolicyError
from ..ttt_core.learner import Learner
from ..ttt_core.model.loading import threads_in_use, use_threads
from ..ttt_core.tasks.task import Task
from .collect import Batch, ModelIdentity, OnProgress, WorkItem, measured, missing, missing_count
from .outcomes import Outcome, OutcomeStore


@dataclass(frozen=True)
class Source:
    """How a worker loads its model; see `Learner.load`."""

    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    prompt_format: str | None = None

    def load(self) -> Learner:
        """The learner."""
        return Learner.load(self.model, device=self.device, dtype=self.dtype, prompt_format=self.prompt_format)


def collect_with_workers(
    source: Source,
    tasks: Sequence[Task],
    strategies: Sequence[Strategy],
    seeds: Sequence[int],
    store: OutcomeStore,
    *,
    workers: int,
    ray_address: str | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """As `collect.collect`, by `workers` processes with a model each: on this machine, or on the Ray cluster at
    `ray_address` (`local` starts one here). Raises `PolicyError` where Ray is asked for and not installed.
    """
    if workers < 1:
        raise PolicyError(f"collecting takes at least one worker; received {workers}")
    run = _on_this_machine if ray_address is None else _on_ray
    try:
        for outcomes, done, total in run(source, tasks, strategies, seeds, store, workers, ray_address):
            for outcome in outcomes:
                store.append(outcome)
            if on_progress is not None:
                on_progress(done, total)
    finally:
        store.seal()


Progress = Iterator[tuple[list[Outcome], int, int]]
"""What was measured since, how many outcomes there are with it, and how many there will be."""
Stop = Any
"""A shared `c_bool`: whether workers are to end."""
POLL = 0.5
"""Seconds between two looks at what workers have measured."""


def _on_this_machine(
    source: Source, tasks: Sequence[Task], strategies: Sequence[Strategy], seeds: Sequence[int], store: OutcomeStore,
    workers: int, _: str | None,
) -> Progress:  # fmt: skip
    context = multiprocessing.get_context("spawn")
    found, stop = context.SimpleQueue(), context.RawValue(c_bool, False)  # no lock, which a dead worker might hold
    threads, done, total = max(1, threads_in_use() // workers), 0, 0
    with ProcessPoolExecutor(workers, context, _begin, (source, threads, os.getpid(), found, stop)) as pool:
        try:
            batches, total = missing(pool.submit(_identity).result(), tasks, strategies, seeds, store)
            done = total - missing_count(batches)
            yield [], done, total
            waiting = {pool.submit(_measured, _packed(batch)) for batch in batches}
            while waiting:
                finished, waiting = wait(waiting, POLL, FIRST_COMPLETED)
                outcomes = _drained(found)
                done += len(outcomes)
                yield outcomes, done, total
                for one in finished:
                    one.result()
        except BaseException as error:
            stop.value = True
            if isinstance(error, KeyboardInterrupt | BrokenProcessPool):
                yield _drained(found), done, total
            if isinstance(error, BrokenProcessPool):
                raise PolicyError(
                    "a worker process is gone: it was killed, or ran out of memory (try fewer --workers). What was "
                    "measured is kept, and the same command goes on from there"
                ) from None
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _drained(found: SimpleQueue[Outcome]) -> list[Outcome]:
    """What workers have handed over."""
    outcomes = []
    while not found.empty():
        outcomes.append(found.get())
    return outcomes


_learner: Learner | AutotttError | None = None
"""Of a worker process; or why it has none."""
_found: SimpleQueue[Outcome] | None = None
"""Where a worker process hands over what it measures."""


def _begin(source: Source, threads: int, parent: int, found: SimpleQueue[Outcome], stop: Stop) -> None:
    """Loads the model of a worker process, which ends when it is told to, or when its parent does."""
    global _learner, _found
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted as well, and says what to do
    threading.Thread(target=_end_with, args=(parent, stop), daemon=True).start()
    use_threads(threads)
    _found = found
    try:
        _learner = source.load()
    except AutotttError as error:
        _learner = error


def _end_with(parent: int, stop: Stop) -> None:
    while os.getppid() == parent and not stop.value:
        time.sleep(POLL)
    os._exit(1)


def _loaded() -> Learner:
    assert _learner is not None
    if isinstance(_learner, AutotttError):
        raise _learner
    return _learner


def _identity() -> ModelIdentity:
    return ModelIdentity.of(_loaded())


Packed = list[tuple[Task, int, tuple[Strategy | str, ...], int | None]]
"""A batch as what crosses to another process: strategies by their names, where they are those of the registry."""


def _packed(batch: Batch) -> Packed:
    return [(u.task, u.seed, tuple(_by_name(s) for s in u.strategies), u.in_context_work) for u in batch]


def _by_name(strategy: Strategy) -> Strategy | str:
    return strategy.name if registered().get(strategy.name) == strategy else strategy


def _unpacked(packed: Packed) -> Batch:
    return tuple(
        WorkItem(task, seed, tuple(get_strategy(s) if isinstance(s, str) else s for s in strategies), work)
        for task, seed, strategies, work in packed
    )


def _measured(packed: Packed) -> None:
    assert _found is not None
    for outcome in measured(_loaded(), _unpacked(packed)):
        _found.put(outcome)


def _on_ray(
    source: Source, tasks: Sequence[Task], strategies: Sequence[Strategy], seeds: Sequence[int], store: OutcomeStore,
    workers: int, address: str | None,
) -> Progress:  # fmt: skip
    try:
        import ray
    except ImportError:
        raise PolicyError("collecting on a Ray cluster needs ray: pip install 'autottt[ray]'") from None

    class Worker:
        def __init__(self) -> None:
            self.learner = source.load()

        def identity(self) -> ModelIdentity:
            return ModelIdentity.of(self.learner)

        def measured(self, packed: Packed) -> list[Outcome]:
            return list(measured(self.learner, _unpacked(packed)))

    began = not ray.is_initialized()
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
        remote: Callable[..., Any] = ray.remote(num_cpus=1)(Worker).remote
        room = int(ray.available_resources().get("CPU", 1))  # more would wait for a processor, and be waited for
        actors = [remote() for _ in range(max(1, min(workers, room)))]
        batches, total = missing(ray.get(actors[0].identity.remote()), tasks, strategies, seeds, store)
        done = total - missing_count(batches)
        yield [], done, total
        left = iter(batches)
        under_way: dict[Any, Any] = {}

        def give(actor: Any) -> None:
            batch = next(left, None)
            if batch is not None:
                under_way[actor.measured.remote(_packed(batch))] = actor

        for actor in actors:
            give(actor)
        while under_way:
            (ready,), _ = ray.wait(list(under_way), num_returns=1)
            outcomes = ray.get(ready)
            done += len(outcomes)
            give(under_way.pop(ready))
            yield outcomes, done, total
    except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
        raise PolicyError(f"collecting on the Ray cluster at {address!r} failed: {error}") from error
    finally:
        if began:
            ray.shutdown()
