"""Many callers: throughput of hard queries, latency of easy ones, what HTTP adds, start-up, overload and kills.

    python benchmarks/serving.py --json benchmarks/results/serve.json --rows runs/serve.rows.jsonl [--quick]
        [--model smollm2-135m] [--minutes 30] [--kills 100] [--only throughput --only kill]

Run by `make bench-serve`. What is compared takes turns, so that other load on the machine affects both alike. What was
measured is in the file of rows: an interrupted run continues with the next part.

| part | what is measured |
|---|---|
| `throughput` | 16 queries that need training, without and with a budget: by the scheduler, and by `solve` in turns |
| `latency` | an easy query through the scheduler: alone, and while 16 hard ones train |
| `http` | an easy query over HTTP, and by `solve` |
| `capacity` | queries a second of one process and of two, easy, hard and mixed; their memory |
| `startup` | from the start of `autottt serve` to `/readyz`, and a process that only loads the model |
| `soak` | twice the requests that the server can answer: each is answered or refused, and memory does not grow |
| `kill` | a server that is killed with SIGKILL under load and started again: answers and adapters stay right |

Writes rows {"name", "value", "unit", "against", "goal", "holds"} with the machine, versions, commit and date.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from row_files import Row, resumed, write_results
from serving_capacity import capacity
from serving_rows import HARD, HARD_EVERY, STRATEGY, row, seconds_of, task

from autottt import Controller, FixedPolicy, Learner
from autottt.controller.server.app import make_app
from autottt.controller.server.engine import Engine
from autottt.controller.server.limits import Limits
from autottt.controller.server.metrics import Metrics
from autottt.controller.server.serving import bind, url_of
from autottt.ttt_core.engine.adapter_cache import cached_files
from autottt.ttt_core.model.loading import BUNDLED
from autottt.ttt_core.tasks.task import Task

LOOSE_BUDGET = "1000s"
"""So long that no training is cut short."""
LOADING = (
    "import torch, transformers; "
    f"transformers.AutoModelForCausalLM.from_pretrained({str(BUNDLED)!r}); "
    f"transformers.AutoTokenizer.from_pretrained({str(BUNDLED)!r})"
)
"""What start-up is compared with."""


# --- in this process --------------------------------------------------------------------------------------------------


def throughput(controller: Controller, rounds: int, label: str) -> list[Row]:
    """Hard queries of 16 threads, by `solve` in turns and through the scheduler; a row for each budget."""
    times: dict[tuple[str | None, bool], list[float]] = {}
    with controller.scheduler() as scheduler, ThreadPoolExecutor(HARD) as threads:
        for number in range(rounds):
            tasks = [task(100 * number + n) for n in range(HARD)]
            for budget in (None, LOOSE_BUDGET):
                for solver in (controller, scheduler):
                    controller.learner.clear()
                    solve = partial(solver.solve, strategy=STRATEGY, budget=budget)
                    seconds = seconds_of(partial(all_results, threads, solve, tasks))
                    times.setdefault((budget, solver is scheduler), []).append(seconds)
    rows = []
    for budget, name in ((None, ""), (LOOSE_BUDGET, " with a budget that does not bind")):
        turns, shared = (statistics.median(times[budget, is_shared]) for is_shared in (False, True))
        rows.append(row(
            f"{HARD} concurrent hard queries{name}, {label}", turns / shared, "times the throughput",
            "calls that take turns", 1.2, at_least=True, seconds=round(shared, 2), seconds_in_turns=round(turns, 2),
        ))  # fmt: skip
    return rows


def all_results(threads: ThreadPoolExecutor, solve: Callable[[Task], Any], tasks: Sequence[Task]) -> list[Any]:
    """The results of tasks that are solved in threads, one each; none was cut short by its budget."""
    results = list(threads.map(solve, tasks))
    assert not any(result.adaptation and result.adaptation.stop_reason == "deadline" for result in results)
    return results


def latency(controller: Controller, count: int, label: str) -> list[Row]:
    """Easy queries one after the other, alone and while hard ones train."""
    controller.learner.clear()
    with controller.scheduler() as scheduler:
        solve = partial(scheduler.solve, strategy="in_context")
        solve(task(9_999))
        alone = [seconds_of(partial(solve, task(10_000 + n))) for n in range(count)]
        beside: list[float] = []
        batch = 0
        while len(beside) < count:
            began, batch = threading.Event(), batch + 1

            def on_event(event: dict[str, Any], began: threading.Event = began) -> None:
                if event["event"] == "step":
                    began.set()

            hard = [task(20_000 + 100 * batch + n) for n in range(HARD)]
            futures = [scheduler.submit(t, strategy=STRATEGY, on_event=on_event) for t in hard]
            began.wait()
            while len(beside) < count and not all(future.done() for future in futures):
                beside.append(seconds_of(partial(solve, task(15_000 + len(beside)))))
            for future in futures:
                future.cancel()
    ninety_fifth = [sorted(times)[int(0.95 * len(times))] for times in (alone, beside)]
    medians = [statistics.median(times) for times in (alone, beside)]
    return [
        row(f"easy query while {HARD} hard ones train, {name}, {label}", pair[1] / pair[0], "times", "alone", goal,
            milliseconds=round(1000 * pair[1], 1), milliseconds_alone=round(1000 * pair[0], 1), queries=count)
        for name, pair, goal in (("median", medians, 3.0), ("95th percentile", ninety_fifth, 6.0))
    ]  # fmt: skip


def plain(each: Task, **how: Any) -> bytes:
    """The body of a request for a task."""
    pairs = [{"input": d.input, "output": d.output} for d in each.demonstrations]
    return json.dumps({"demonstrations": pairs, "query": each.query, **how}).encode()


class Connection:
    """A client that keeps its connection open."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=120)

    def solve(self, each: Task, **how: Any) -> tuple[int, Any]:
        """Status and body of a response."""
        self._connection.request("POST", "/v1/solve", plain(each, **how), {"content-type": "application/json"})
        response = self._connection.getresponse()
        return response.status, json.loads(response.read())


def added_by_http(controller: Controller, count: int) -> list[Row]:
    """Milliseconds between an easy query over HTTP and the same by `solve`."""
    engine = Engine(Limits(), Metrics())
    engine.use(controller)
    app, bound = make_app(engine, model_name="bundled"), bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none", http="h11"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    connection, differences, directs = Connection(url_of(bound)), [], []
    try:
        for number in range(count + 3):
            each = task(30_000 + number)
            controller.learner.clear()
            direct = seconds_of(lambda each=each: controller.solve(each, strategy="in_context"))
            controller.learner.clear()
            served = seconds_of(lambda each=each: connection.solve(each, strategy="in_context"))
            if number >= 3:
                directs.append(direct)
                differences.append(served - direct)
    finally:
        server.should_exit = True
        thread.join()
        assert engine.scheduler is not None
        engine.scheduler.close()
    return [row(
        "HTTP and scheduler, added to an easy query", 1000 * statistics.median(differences), "ms", "solve", 5.0,
        milliseconds_of_solve=round(1000 * statistics.median(directs), 1), queries=count,
    )]  # fmt: skip


# --- in processes of their own ----------------------------------------------------------------------------------------


class Server:
    """`autottt serve` with the bundled model, in a process of its own."""

    def __init__(self, *options: str) -> None:
        self.began = time.perf_counter()
        command = [sys.executable, "-m", "autottt", "serve", "--port", "0", "--trace-store", "off", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        line = next(line for line in self.process.stderr if "listening on " in line)
        self.url = line.split("listening on ")[1].split(";")[0].strip()
        threading.Thread(target=lambda: [None for _ in self.process.stderr or ()], daemon=True).start()

    def wait(self) -> float:
        """Seconds from the start of the process until it is ready."""
        while True:
            connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=60)
            with suppress(OSError):
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    return time.perf_counter() - self.began
            connection.close()
            time.sleep(0.01)

    def memory(self) -> int:
        """Bytes that the process holds."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal, and returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(120)


def startup(rounds: int) -> list[Row]:
    """From process start to readiness, in turns with the libraries and the model alone."""
    ready, loading = [], []
    for number in range(rounds + 1):
        alone = seconds_of(lambda: subprocess.run([sys.executable, "-c", LOADING], check=True, capture_output=True))
        server = Server()
        seconds = server.wait()
        server.end()
        if number:  # the first round fills the file cache
            ready.append(seconds)
            loading.append(alone)
    medians = statistics.median(ready), statistics.median(loading)
    return [row(
        "process start to readyz, bundled model", medians[0] / medians[1], "times",
        "importing torch and transformers and loading the model", 1.5, seconds=round(medians[0], 2), rounds=rounds,
    )]  # fmt: skip


def mixed(number: int) -> tuple[Task, str]:
    """A request of a load: one in eight trains."""
    return task(40_000 + number), "ttt_direct" if number % HARD_EVERY == 0 else "in_context"


def soak(minutes: float) -> list[Row]:
    """Requests at twice the rate that the server can answer; each is answered, or refused with 429 or 503."""
    server, statuses, memory = Server("--max-requests", "64", "--max-queue", "32"), Counter[int](), list[int]()
    server.wait()
    local = threading.local()

    def ask(number: int) -> None:
        if not hasattr(local, "connection"):
            local.connection = Connection(server.url)
        each, strategy = mixed(number % 512)
        try:
            status, _ = local.connection.solve(each, strategy=strategy)
        except Exception:
            status, local.connection = 0, Connection(server.url)
        statuses[status] += 1

    with ThreadPoolExecutor(96) as threads:
        sustainable = 64 / seconds_of(lambda: list(threads.map(ask, range(64))))
        statuses.clear()
        ends, number = time.monotonic() + 60 * minutes, 0
        pending: list[Future[None]] = []
        while time.monotonic() < ends:
            if threads._work_queue.qsize() < 96:
                pending.append(threads.submit(ask, number))
                number += 1
            time.sleep(1 / (2 * sustainable))
            if number % 20 == 0:
                memory.append(server.memory())
                pending = [future for future in pending if not future.done()]
    code = server.end()
    half = memory[len(memory) // 2 :]
    growth = 100 * (max(half) / half[0] - 1)
    others = sum(count for status, count in statuses.items() if status not in (200, 429, 503))
    counts = {str(status): count for status, count in sorted(statuses.items())}
    return [
        row("requests neither answered nor refused, at twice the sustainable load", others, "requests", "all requests",
            0, statuses=counts, minutes=minutes, requests_per_second=round(2 * sustainable, 1)),
        row("growth of memory in the second half", growth, "%", "its beginning", 5.0, minutes=minutes),
        row("exit code after the load, with the base proven equal", code, "", "success", 0),
    ]  # fmt: skip


def kill(kills: int) -> list[Row]:
    """Kills under load: after each, the adapters of the folder are sound, and answers are those of before."""
    requests = [mixed(number) for number in range(16)]
    expected: dict[int, Any] = {}
    wrong, unsound, rng = 0, 0, random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(kills + 1):
            server = Server("--adapters", folder)
            server.wait()
            connection = Connection(server.url)
            if not number:
                for place, (each, strategy) in enumerate(requests):
                    expected[place] = connection.solve(each, strategy=strategy)[1]["answer"]
            stop = threading.Event()
            wrongs: list[int] = []

            def load(
                seed: int, url: str = server.url, stop: threading.Event = stop, wrongs: list[int] = wrongs
            ) -> None:
                mine, own = random.Random(seed), Connection(url)
                with suppress(OSError, http.client.HTTPException, ValueError):
                    while not stop.is_set():
                        place = mine.randrange(len(requests))
                        each, strategy = requests[place]
                        status, body = own.solve(each, strategy=strategy)
                        if status == 200 and body["answer"] != expected[place]:
                            wrongs.append(place)

            threads = [threading.Thread(target=load, args=[n]) for n in range(6)]
            for thread in threads:
                thread.start()
            time.sleep(rng.uniform(0.05, 1.5))
            server.end(signal.SIGKILL)
            stop.set()
            for thread in threads:
                thread.join()
            wrong += len(wrongs)
            unsound += sum(bool(entry.problem) for entry in cached_files(Path(folder)))
    return [
        row("wrong answers of a server that is killed and started again", wrong, "answers", "before", 0, kills=kills),
        row("unsound adapter files after kills", unsound, "files", "all files", 0, kills=kills),
    ]


def controller_of(model: str) -> Controller:
    """A controller that answers in context unless a strategy is named."""
    learner = Learner.load(model or None)
    return Controller(learner, FixedPolicy("in_context"))


def measured(options: argparse.Namespace) -> list[Row]:
    """The rows of all parts that are asked for."""
    quick, model = options.quick, options.model
    parts: dict[str, Callable[[], list[Row]]] = {
        "throughput": lambda: throughput(controller_of(""), 1 if quick else 5, "bundled model"),
        "latency": lambda: latency(controller_of(""), 20 if quick else 300, "bundled model"),
        "http": lambda: added_by_http(controller_of(""), 20 if quick else 300),
        "capacity": lambda: capacity("", "bundled model", quick=quick),
        "startup": lambda: startup(2 if quick else 7),
        "kill": lambda: kill(2 if quick else options.kills),
        "soak": lambda: soak(0.5 if quick else options.minutes),
    }
    if model:
        parts[f"latency of {model}"] = lambda: latency(controller_of(model), 10 if quick else 60, model)
        parts[f"capacity of {model}"] = lambda: capacity(model, model, quick=quick)
    chosen: Sequence[str] = options.only or list(parts)
    return [each for name in chosen for each in resumed(options.rows, name, parts[name])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the rows")
    parser.add_argument("--rows", type=Path, required=True, help="file of what was measured, which is continued")
    parser.add_argument("--model", default="", help="a model to measure as well, fetched before")
    parser.add_argument("--minutes", type=float, default=30.0, help="length of the overload")
    parser.add_argument("--kills", type=int, default=100, help="how often the server is killed")
    parser.add_argument("--only", action="append", help="a part; may be given several times")
    parser.add_argument("--quick", action="store_true", help="few queries, kills and minutes")
    options = parser.parse_args()
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    rows = measured(options)
    write_results(options.json, rows, ("torch", "transformers", "uvicorn", "autottt"))


if __name__ == "__main__":
    main()
