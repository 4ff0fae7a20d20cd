"""What tracing adds to an answer, how large pages and stores may become, and whether runs can be repeated.

    python benchmarks/tracing.py --json benchmarks/results/trace.json --rows runs/trace.rows.jsonl [--quick]
        [--model smollm2-135m] [--chromium PATH]

Run by `make bench-trace`. Every run without tracing is paired with one that a local store records and one that is sent
to an OTLP endpoint, a process that answers 200; the three take turns on the same queries, whose demonstrations were
read before. Replays are of the shortest tasks of `autottt demo`. What was measured is in the file of rows: an
interrupted run continues.
Writes rows {"name", "value", "unit", "against", "goal", "holds"} with the machine, versions, commit and date.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from row_files import Row, read_rows, resumed, write_results

from autottt import Controller, FixedPolicy, Learner
from autottt.controller.replay import replay
from autottt.controller.tracing.page import page_of
from autottt.controller.tracing.recorder import TraceRecorder
from autottt.controller.tracing.statistics import statistics_of
from autottt.controller.tracing.store import Filter, TraceStore
from autottt.controller.tracing.telemetry import TelemetryTarget
from autottt.controller.tracing.trace import Trace, find_spans
from autottt.strategies.registry import strategies
from autottt.ttt_core.model.loading import load_model
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.readers import read_tasks
from autottt.ttt_core.tasks.task import Task

TASKS = Path(__file__).parents[1] / "controller" / "cli" / "demo_tasks.jsonl"
GOALS = {"local": 2.0, "otlp": 3.0}
"""Milliseconds added to an easy query."""
PAGE_BYTES, PAGE_SECONDS, STORE_SECONDS = 2_000_000, 1.0, 2.0
STEPS, PROMPTS, PROMPT_TOKENS = 250, 10, 8192
COLLECTOR = """
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *values):
        pass

server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""
"""An OTLP endpoint that keeps nothing, in a process of its own."""


def demo_tasks() -> tuple[Task, ...]:
    """The tasks of `autottt demo`."""
    return tuple(read_tasks(TASKS).tasks)


# --- what tracing adds -----------------------------------------------------------------------------------------------


@contextmanager
def endpoint() -> Iterator[str]:
    """The URL of an OTLP endpoint."""
    process = subprocess.Popen([sys.executable, "-c", COLLECTOR], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()


def easy_tasks() -> list[Task]:
    """Short lists to reverse: the bundled model answers them in context."""
    demonstrations: list[tuple[object, object]] = [([3, 1, 4], [4, 1, 3]), ([2, 7], [7, 2]), ([5, 0, 8], [8, 0, 5])]
    queries = itertools.permutations(range(1, 6), 3)
    return [make_task(demonstrations, query, answer=query[::-1]) for query in queries]


def paired(
    works: dict[str, Callable[[Task], object]], tasks: Sequence[Task], pairs: int
) -> dict[str, list[tuple[float, float]]]:
    """Elapsed seconds and those of the thread's processor, of each work on the same tasks; the works take turns, and
    begin in turn."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    names = list(works)
    for number, task in zip(range(-5, pairs), itertools.cycle(tasks), strict=False):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            began, processor = time.perf_counter(), time.thread_time()
            works[name](task)
            if number >= 0:  # those before fill the caches of the process
                seconds[name].append((time.perf_counter() - began, time.thread_time() - processor))
    return seconds


def median_interval(values: Sequence[float], repeats: int = 1000) -> list[float]:
    """90% interval of the median, by bootstrap."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(repeats))
    return [round(medians[int(share * repeats)], 3) for share in (0.05, 0.95)]


def overhead(folder: Path, pairs: int) -> list[Row]:
    """Milliseconds that the local store and OTLP add to an easy query."""
    learner = Learner.load()
    with endpoint() as url:
        target = TelemetryTarget(url)
        recorders = {
            "off": "off", "local": TraceRecorder([TraceStore(folder / "paired.sqlite")]),
            "otlp": TraceRecorder([target]),
        }  # fmt: skip
        policy = FixedPolicy("in_context")
        works = {name: Controller(learner, policy, trace=recorder).solve for name, recorder in recorders.items()}
        seconds = paired(works, easy_tasks(), pairs)
        assert target.flush(30)
    rows = []
    for name, goal in GOALS.items():
        both = zip(seconds[name], seconds["off"], strict=True)
        added, processor = zip(
            *([1000 * (b - a) for a, b in zip(off, on, strict=True)] for on, off in both), strict=True
        )
        value, base = statistics.median(added), 1000 * statistics.median(elapsed for elapsed, _ in seconds["off"])
        rows.append(
            {
                "name": f"{name}: added to an easy query", "value": round(value, 2), "unit": "ms",
                "interval_90": median_interval(added), "against": f"{base:.1f} ms without tracing", "goal": goal,
                "holds": value <= goal, "pairs": pairs, "processor_ms": round(statistics.median(processor), 2),
            }
        )  # fmt: skip
    return rows


# --- pages and stores ------------------------------------------------------------------------------------------------


class Memory:
    """A target that keeps traces."""

    def __init__(self) -> None:
        self.traces: list[Trace] = []

    def write(self, trace: Trace) -> None:
        self.traces.append(trace.as_stored())


def trace_of(learner: Learner, task: Task, strategy: str, *, content: bool = True) -> Trace:
    """The trace of one run."""
    memory = Memory()
    Controller(learner, FixedPolicy(strategy), trace=TraceRecorder([memory], content=content)).solve(task)
    return memory.traces[0]


def large_trace(learner: Learner, task: Task) -> Trace:
    """The trace of a real run, with its training and decoding enlarged to many steps and long prompts."""
    trace = trace_of(learner, task, "ttt_crossfit")
    plain = copy.deepcopy(trace.plain)
    (training,) = find_spans(plain["root"], "train")
    rng = random.Random(0)
    seconds = training["seconds"] / STEPS
    training["events"] = [
        {"at": round(step * seconds, 6), "step": step, "loss": 2.0 / step + rng.random() / 50}
        for step in range(1, STEPS + 1)
    ]
    decoding = find_spans(plain["root"], "decode")[-1]["attributes"]
    decoding["prompts"] = [long_prompt(learner, rng) for _ in range(PROMPTS)]
    decoding["prompt_tokens"] = [PROMPT_TOKENS] * PROMPTS
    for name in ("texts", "ids", "log_probs", "ended", "rejected"):
        decoding[name] = list(itertools.islice(itertools.cycle(decoding[name]), PROMPTS))
    return Trace(plain)


def long_prompt(learner: Learner, rng: random.Random) -> str:
    """Text of at least `PROMPT_TOKENS` tokens: lines of digits, as prompts have."""
    tokenizer, text = learner.loaded.tokenizer, ""
    while len(tokenizer.encode(text)) < PROMPT_TOKENS:
        text += "".join(f"{' '.join(str(rng.randrange(10)) for _ in range(20))}\n" for _ in range(50))
    return text


def page_rows(folder: Path, chromium: str) -> list[Row]:
    """Bytes of a large page, the seconds to make it, and those that a browser takes to open it."""
    learner = Learner.load()
    trace = large_trace(learner, easy_tasks()[0])
    began = time.perf_counter()
    text = page_of(trace, list(strategies()))
    made = time.perf_counter() - began
    size = len(text.encode())
    what = f"page of {STEPS} training steps and {PROMPTS} prompts of {PROMPT_TOKENS} tokens"
    rows: list[Row] = [
        {"name": f"{what}: size", "value": size, "unit": "bytes", "against": "", "goal": PAGE_BYTES,
         "holds": size < PAGE_BYTES},
        {"name": f"{what}: seconds to make it", "value": round(made, 3), "unit": "s", "against": "", "goal": None,
         "holds": None},
    ]  # fmt: skip
    if chromium:
        (folder / "page.html").write_text(text, "utf-8")
        (folder / "empty.html").write_text("<!DOCTYPE html><title>empty</title>", "utf-8")
        pages = [[browser_seconds(chromium, folder / name) for name in ("page.html", "empty.html")] for _ in range(7)]
        value = statistics.median(page - empty for page, empty in pages)
        rows.append(
            {
                "name": f"{what}: opens in Chromium", "value": round(value, 3), "unit": "s",
                "against": "an empty page, with the start of the browser", "goal": PAGE_SECONDS,
                "holds": value < PAGE_SECONDS,
            }
        )  # fmt: skip
    return rows


def browser_seconds(chromium: str, file: Path) -> float:
    """Seconds until a headless browser has started, opened a page, run its scripts and printed its elements."""
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", file.as_uri()]
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True, timeout=120)
    return time.perf_counter() - began


def store_rows(folder: Path, count: int) -> list[Row]:
    """Seconds of `list` and `stats` over many traces, and whether a bound holds."""
    plain = trace_of(Learner.load(), easy_tasks()[0], "in_context", content=False).plain
    names, now = list(strategies()), datetime.now(UTC)
    store = TraceStore(folder / "many.sqlite", max_bytes=1 << 30)
    began = time.perf_counter()
    for number in range(count):
        store.write(other_trace(plain, number, names, now))
    written = time.perf_counter() - began
    stored, size = store.size()
    store.close()
    began = time.perf_counter()
    listed = store.summaries(Filter(strategy=names[0], since=(now - timedelta(days=10)).timestamp()), 20)
    list_seconds = time.perf_counter() - began
    began = time.perf_counter()
    runs = statistics_of(store).runs
    stats_seconds = time.perf_counter() - began
    assert (len(listed), runs, stored) == (20, count, count)
    bounded = TraceStore(folder / "bounded.sqlite", max_bytes=4 << 20)
    for number in range(min(count, 8000)):
        bounded.write(other_trace(plain, number, names, now))
    kept, bytes_ = bounded.size()
    what = f"store of {count:,} traces"
    rows: list[Row] = [
        {"name": f"{what}: {name}", "value": round(value, 3), "unit": "s", "against": f"{size / 2**20:.0f} MiB",
         "goal": STORE_SECONDS, "holds": value < STORE_SECONDS}
        for name, value in (("`list`", list_seconds), ("`stats`", stats_seconds))
    ]  # fmt: skip
    holds = bytes_ <= 1.1 * (4 << 20) + (4 << 20) and 0 < kept < min(count, 8000)
    return [
        *rows,
        {"name": f"{what}: to write a trace", "value": round(1000 * written / count, 3), "unit": "ms", "against": "",
         "goal": None, "holds": None},
        {"name": "a store of at most 4 MiB stays below its bound and the 4 MiB of its log", "value": holds,
         "unit": "yes/no", "against": f"{bytes_ / 2**20:.1f} MiB, {kept:,} traces", "goal": True, "holds": holds},
    ]  # fmt: skip


def other_trace(plain: dict[str, Any], number: int, names: Sequence[str], now: datetime) -> Trace:
    """A trace as of another run, within the last 20 days."""
    result = {**plain["root"]["attributes"]["result"], "strategy": names[number % len(names)]}
    root = {**plain["root"], "attributes": {**plain["root"]["attributes"], "result": result}}
    at = (now - timedelta(days=20) * (number % 997) / 997).isoformat(timespec="microseconds")
    return Trace({**plain, "id": f"{number:012x}", "time": at, "root": root})


# --- replays ---------------------------------------------------------------------------------------------------------


def replay_rows(file: Path, model: str, runs: int) -> list[Row]:
    """How many replays of runs, with every strategy in turn, are identical or have the same tokens."""
    label = model or "bundled"
    done = {(row["strategy"], row["task"]): row for row in read_rows(file) if row.get("replayed") == label}
    names, tasks = list(strategies()), sorted(demo_tasks(), key=lambda task: len(str(task.demonstrations)))
    cases = [(names[n % len(names)], tasks[n // len(names) % len(tasks)]) for n in range(runs)]
    missing = [(name, task) for name, task in cases if (name, task.id) not in done]
    if missing:
        learner = Learner(load_model(model)) if model else Learner.load()
        with file.open("a", encoding="utf-8") as out:
            for name, task in missing:
                row = {"replayed": label, "strategy": name, "task": task.id, **replayed(learner, name, task)}
                done[name, task.id] = row
                print(json.dumps(row), file=out, flush=True)
    verdicts = Counter(done[name, task.id]["verdict"] for name, task in cases)
    same = verdicts["identical"] + verdicts["same tokens"]
    return [
        {
            "name": f"{label}: replays with the same tokens, of every strategy", "value": same, "unit": f"of {runs}",
            "against": f"{verdicts['identical']} identical, {verdicts['different']} different", "goal": runs,
            "holds": same == runs, **verdicts,
        }
    ]  # fmt: skip


def replayed(learner: Learner, strategy: str, task: Task) -> Row:
    """Solves a task and replays the run, each from empty caches."""
    learner.clear()
    trace = trace_of(learner, task, strategy)
    learner.clear()
    repeated = replay(Controller(learner, FixedPolicy(strategy)), trace)
    same = "same tokens" if repeated.has_same_answers else "different"
    verdict = "identical" if repeated.is_identical else same
    return {"verdict": verdict, "differences": [str(difference) for difference in repeated.differences[:5]]}


# --- everything ------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the rows")
    parser.add_argument("--rows", type=Path, required=True, help="file of what was measured, which is continued")
    parser.add_argument("--model", default="", help="a model to replay as well, fetched before")
    parser.add_argument("--model-runs", type=int, default=100, help="replays with that model")
    parser.add_argument("--chromium", default="", help="path of Chromium, to open the page")
    parser.add_argument("--quick", action="store_true", help="few runs and traces")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    pairs, traces, runs = (20, 2000, 8) if options.quick else (1000, 100_000, 100)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = resumed(options.rows, "overhead", lambda: overhead(folder, pairs))
        rows += resumed(options.rows, "page", lambda: page_rows(folder, options.chromium))
        rows += resumed(options.rows, "store", lambda: store_rows(folder, traces))
    rows += replay_rows(options.rows, "", runs)
    if options.model:
        rows += replay_rows(options.rows, options.model, min(runs, options.model_runs))
    write_results(options.json, rows, ("torch", "transformers", "opentelemetry-sdk", "autottt"))


if __name__ == "__main__":
    main()
