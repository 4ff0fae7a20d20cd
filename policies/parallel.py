"""Collection with several processes, on one machine or on a Ray cluster. Knows nothing about what is measured.

Workers send their outcomes to the main process, the only one that writes: the store may be on its disk, and holds the
same rows for any number of workers.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from typing import Any, NamedTuple

from ..strategies.base import Strategy
from ..strategies.registry import get_strategy
from ..strategies.registry import strategies as registered
from ..ttt_core.errors import AutotttError, PolicyError
from ..ttt_core.learner import Learner
from ..ttt_core.model.loading import threads_in_use, use_threads
from ..ttt_core.tasks.task import Task
from .collect import ANOTHER_STORE, Batch, ModelIdentity, OnProgress, WorkItem, measure_batch, missing, missing_count
from .outcomes import Outcome, OutcomeStore
from .worker_processes import worker_pool


@dataclass(frozen=True)
class Source:
    """How a worker loads its model; see `Learner.load`."""

    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    prompt_format: str | None = None
    starting_adapter: str | None = None
    read_with_adapter: bool = False

    def load(self) -> Learner:
        """Loads the learner."""
        return Learner.load(
            self.model, device=self.device, dtype=self.dtype, prompt_format=self.prompt_format,
            starting_adapter=self.starting_adapter, read_with_adapter=self.read_with_adapter,
        )  # fmt: skip


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
    remedy: str = ANOTHER_STORE,
) -> None:
    """As `collect.collect`, with `workers` processes that load a model each: on this machine, or on the Ray cluster at
    `ray_address` (`local` starts one here). Raises `PolicyError` if Ray is requested and not installed.
    """
    if workers < 1:
        raise PolicyError(f"collecting needs at least one worker; received {workers}")
    jobs = Jobs(source, tasks, strategies, seeds, store, remedy)
    run = _on_this_machine(jobs, workers) if ray_address is None else _on_ray(jobs, workers, ray_address)
    with store.sealed():
        for outcomes, done, total in run:
            for outcome in outcomes:
                store.append(outcome)
            if on_progress is not None:
                on_progress(done, total)


class Jobs(NamedTuple):
    """What is to be collected, and into which store."""

    source: Source
    tasks: Sequence[Task]
    strategies: Sequence[Strategy]
    seeds: Sequence[int]
    store: OutcomeStore
    remedy: str = ANOTHER_STORE
    """What to do where outcomes must not be added to the store."""

    def missing(self, identity: ModelIdentity) -> tuple[list[Batch], int]:
        """See `collect.missing`."""
        return missing(identity, self.tasks, self.strategies, self.seeds, self.store, self.remedy)


Progress = Iterator[tuple[list[Outcome], int, int]]
"""New outcomes, the number of outcomes so far, and the number there will be."""
POLL = 0.5
"""Seconds between two checks for new outcomes."""


def _on_this_machine(jobs: Jobs, workers: int) -> Progress:
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    threads, done, total = max(1, threads_in_use() // workers), 0, 0
    with worker_pool(workers, _start, jobs.source, threads, queue) as pool:
        try:
            batches, total = jobs.missing(pool.submit(_identity).result())
            done = total - missing_count(batches)
            yield [], done, total
            waiting = {pool.submit(_measure, _packed(batch)) for batch in batches}
            while waiting:
                finished, waiting = wait(waiting, POLL, FIRST_COMPLETED)
                outcomes = _drained(queue)
                done += len(outcomes)
                yield outcomes, done, total
                for one in finished:
                    one.result()
        except (KeyboardInterrupt, BrokenProcessPool) as error:
            yield _drained(queue), done, total
            if isinstance(error, BrokenProcessPool):
                raise PolicyError(
                    "a worker process is gone: it was killed, or ran out of memory (try fewer --workers). The outcomes "
                    "so far are stored, and the same command continues after them"
                ) from None
            raise


def _drained(queue: SimpleQueue[Outcome]) -> list[Outcome]:
    """The outcomes in the queue."""
    outcomes = []
    while not queue.empty():
        outcomes.append(queue.get())
    return outcomes


_learner: Learner | AutotttError | None = None
"""The learner of a worker process, or the error that loading it raised."""
_queue: SimpleQueue[Outcome] | None = None
"""Where a worker process puts its outcomes."""


def _start(source: Source, threads: int, queue: SimpleQueue[Outcome]) -> None:
    """Loads the model of a worker process."""
    global _learner, _queue
    use_threads(threads)
    _queue = queue
    try:
        _learner = source.load()
    except AutotttError as error:
        _learner = error


def _loaded() -> Learner:
    assert _learner is not None
    if isinstance(_learner, AutotttError):
        raise _learner
    return _learner


def _identity() -> ModelIdentity:
    return ModelIdentity.of(_loaded())


Packed = list[tuple[Task, int, tuple[Strategy | str, ...], int | None]]
"""A batch as it is sent to another process: registered strategies by their names."""


def _packed(batch: Batch) -> Packed:
    return [(i.task, i.seed, tuple(_by_name(s) for s in i.strategies), i.in_context_tokens) for i in batch]


def _by_name(strategy: Strategy) -> Strategy | str:
    return strategy.name if registered().get(strategy.name) == strategy else strategy


def _unpacked(packed: Packed) -> Batch:
    return tuple(
        WorkItem(task, seed, tuple(get_strategy(s) if isinstance(s, str) else s for s in strategies), tokens)
        for task, seed, strategies, tokens in packed
    )


def _measure(packed: Packed) -> None:
    assert _queue is not None
    for outcome in measure_batch(_loaded(), _unpacked(packed)):
        _queue.put(outcome)


def _on_ray(jobs: Jobs, workers: int, address: str) -> Progress:
    try:
        import ray
    except ImportError:
        raise PolicyError("collecting on a Ray cluster needs ray: pip install 'autottt[ray]'") from None

    class Worker:
        def __init__(self) -> None:
            self.learner = jobs.source.load()

        def identity(self) -> ModelIdentity:
            return ModelIdentity.of(self.learner)

        def measure(self, packed: Packed) -> list[Outcome]:
            return list(measure_batch(self.learner, _unpacked(packed)))

    owns_ray = not ray.is_initialized()
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
        remote: Callable[..., Any] = ray.remote(num_cpus=1)(Worker).remote
        cpus = int(ray.available_resources().get("CPU", 1))  # further actors would never be scheduled
        actors = [remote() for _ in range(max(1, min(workers, cpus)))]
        batches, total = jobs.missing(ray.get(actors[0].identity.remote()))
        done = total - missing_count(batches)
        yield [], done, total
        remaining = iter(batches)
        running: dict[Any, Any] = {}

        def submit(actor: Any) -> None:
            batch = next(remaining, None)
            if batch is not None:
                running[actor.measure.remote(_packed(batch))] = actor

        for actor in actors:
            submit(actor)
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            outcomes = ray.get(ready)
            done += len(outcomes)
            submit(running.pop(ready))
            yield outcomes, done, total
    except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
        raise PolicyError(f"collecting on the Ray cluster at {address!r} failed: {error}") from error
    finally:
        if owns_ray:
            ray.shutdown()
