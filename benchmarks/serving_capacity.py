"""What one process of a server answers, what it holds, and what a second process adds: the part `capacity`.

Measured in processes of their own, which load the model and answer queries by the scheduler, without HTTP: one process
with two threads, and two with one thread each. They take turns, so that other load on the machine affects both alike.
Knows nothing about the other parts of the serving benchmark.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from row_files import Row
from serving_rows import HARD, HARD_EVERY, STRATEGY, row, seconds_of, task

from autottt import Controller, FixedPolicy, Learner
from autottt.ttt_core.engine.adapter_cache import AdapterCache, cached_files

WORKLOADS = {
    "easy": "easy queries",
    "hard": "hard queries",
    "cached": "queries whose adapter is cached",
    "mixed": f"queries of which one in {HARD_EVERY} is hard",
}
"""Name of a workload in rows and in docs/capacity.md -> its queries in words."""
FIRST_SEED = 50_000
"""Of tasks; each is asked once, but for those of `cached`."""


# --- a process that answers -------------------------------------------------------------------------------------------


class Worker:
    """A process that has loaded a model and answers the queries that it is told to, from several threads."""

    def __init__(self, model: str, threads: int, folder: Path) -> None:
        """`folder` has the adapters."""
        self.threads = threads
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, __file__, model, str(folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self.result()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._input.close()
        self._process.wait(120)
        self._output.close()

    def begin(self, workload: str, seeds: Sequence[int], callers: int) -> None:
        """Starts a workload; `result` waits for its end."""
        self._input.write(json.dumps([workload, list(seeds), callers]) + "\n")
        self._input.flush()

    def result(self) -> dict[str, float]:
        """What `answer` returned. Raises `RuntimeError` where the process has ended."""
        line = self._output.readline()
        if not line:
            raise RuntimeError(f"a process that answers queries ended with exit code {self._process.wait()}")
        return dict(json.loads(line))

    def memory(self, *fields: str) -> int:
        """Bytes that the process holds now: the sum of fields of `smaps_rollup`."""
        lines = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text().splitlines()
        return sum(1024 * int(line.split()[1]) for line in lines if line.partition(":")[0] in fields)


def answer(controller: Controller, workload: str, seeds: Sequence[int], callers: int) -> dict[str, float]:
    """Seconds in which callers have asked the tasks of the seeds, and the bytes of a cached adapter."""

    def ask(place: int) -> None:
        is_hard = workload in ("hard", "cached") or (workload == "mixed" and place % HARD_EVERY == 0)
        result = scheduler.solve(task(seeds[place]), strategy=STRATEGY if is_hard else "in_context")
        trained = result.adaptation is not None and not result.attempts[-1].from_cache
        assert trained == (is_hard and workload != "cached"), f"{workload}: {result.reason}"

    with controller.scheduler() as scheduler, ThreadPoolExecutor(callers) as threads:
        seconds = seconds_of(lambda: list(threads.map(ask, range(len(seeds)))))
    cache = controller.learner.adapters.cache
    return {"seconds": seconds, "adapter_bytes": cache.used_bytes / max(cache.adapter_count, 1)}


def work(model: str, folder: Path, commands: TextIO) -> Iterator[dict[str, float]]:
    """Loads the model, answers a query, then whatever each line of `commands` says."""
    learner = Learner.load(model or None, adapters=AdapterCache(folder=folder))
    controller = Controller(learner, FixedPolicy("in_context"))
    yield answer(controller, "easy", [FIRST_SEED - 1], 1)
    for line in commands:
        workload, seeds, callers = json.loads(line)
        yield answer(controller, workload, seeds, callers)


# --- what is measured -------------------------------------------------------------------------------------------------


def rate_of(workers: Sequence[Worker], workload: str, seeds: Sequence[int]) -> float:
    """Queries a second of workers that share the tasks of the seeds and `HARD` callers, all at the same time."""
    shares = [seeds[n :: len(workers)] for n in range(len(workers))]

    def run() -> None:
        for worker, share in zip(workers, shares, strict=True):
            worker.begin(workload, share, HARD // len(workers))
        for worker in workers:
            worker.result()

    return len(seeds) / seconds_of(run)


def rates(alone: Worker, pair: Sequence[Worker], counts: dict[str, int], rounds: int) -> dict[str, tuple[float, float]]:
    """Queries a second of each workload, by one process and by two: medians of rounds in which they take turns."""
    fresh = itertools.count(FIRST_SEED)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in counts}
    for number in range(rounds):
        hard: dict[int, list[int]] = {}
        for name, count in counts.items():
            both = {}
            for workers in ([alone], list(pair))[:: 1 if number % 2 == 0 else -1]:
                seeds = hard[len(workers)][:count] if name == "cached" else [next(fresh) for _ in range(count)]
                both[len(workers)] = rate_of(workers, name, seeds)
                if name == "hard":
                    hard[len(workers)] = seeds
            found[name].append((both[1], both[2]))
    return {name: tuple(map(statistics.median, zip(*pairs, strict=True))) for name, pairs in found.items()}  # type: ignore[misc]


def warm_up(workers: Sequence[Worker]) -> None:
    """Every process trains one adapter, which is not measured: the first training of a process takes longer."""
    for number, worker in enumerate(workers):
        worker.begin("hard", [FIRST_SEED - 2 - number], 1)
    for worker in workers:
        worker.result()


def capacity(model: str, label: str, *, quick: bool) -> list[Row]:
    """Rates of one process and of two, and their memory: the rows of the part. `quick` takes few queries and one
    round; so does a model that is named, which takes seconds for a query."""
    scale, rounds = (1, 1) if quick or model else (4, 3)
    counts = {"easy": 16 * scale, "hard": HARD, "cached": HARD, "mixed": 2 * HARD_EVERY * (1 if quick else 2 * scale)}
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        start = partial(Worker, model, folder=folder)
        alone = stack.enter_context(start(threads=2))
        held = alone.memory("Rss")
        pair = [stack.enter_context(start(threads=1)) for _ in range(2)]
        added = pair[1].memory("Private_Clean", "Private_Dirty")
        warm_up([alone, *pair])
        found = rates(alone, pair, counts, rounds)
        working = alone.memory("Rss")
        alone.begin("cached", [], 1)
        adapter = alone.result()["adapter_bytes"]
        sizes = [each.size for each in cached_files(folder)]
    facts: dict[str, Any] = {"model": label, "rounds": rounds}
    return [
        *rate_rows(found, counts, facts),
        row(f"memory after loading and an easy answer, {label}", held / 1e6, "MB", "", None, quantity="held", **facts),
        row(f"memory that a second process adds, {label}", added / 1e6, "MB", "", None, quantity="added", **facts),
        row(f"memory after batches of {HARD} adapters, {label}", working / 1e6, "MB", "", None, quantity="working",
            **facts),
        row(f"memory of a cached adapter, {label}", adapter / 1e6, "MB", "", None, quantity="adapter", **facts,
            file_megabytes=round(statistics.fmean(sizes) / 1e6, 3)),
    ]  # fmt: skip


def rate_rows(found: dict[str, tuple[float, float]], counts: dict[str, int], facts: dict[str, Any]) -> list[Row]:
    """The rates of one process, and those of two processes as multiples; that of the mixture with the rate that follows
    from easy and hard queries."""
    rows = []
    label = facts["model"]
    predicted = 1 / ((1 - 1 / HARD_EVERY) / found["easy"][0] + 1 / HARD_EVERY / found["hard"][0])
    for name, (one, two) in found.items():
        against = f"{predicted:.3g} by the rates of easy and hard ones" if name == "mixed" else ""
        rows.append(row(
            f"{WORKLOADS[name]}, one process with two threads, {label}", one, "queries/s", against, None,
            quantity=name, queries=counts[name], of_two_processes=round(two, 3), **facts,
        ))  # fmt: skip
    rows += [
        row(f"{WORKLOADS[name]}, two processes with one thread each, {label}", two / one, "times the throughput",
            "one process with two threads", None, quantity=f"{name}, two processes", **facts)
        for name, (one, two) in found.items()
    ]  # fmt: skip
    return rows


if __name__ == "__main__":
    for result in work(sys.argv[1], Path(sys.argv[2]), sys.stdin):
        print(json.dumps(result), flush=True)
