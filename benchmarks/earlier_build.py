"""Compares this checkout with an earlier one on a real model: right answers and seconds of each task.

    git worktree add --detach FOLDER REVISION
    python benchmarks/earlier_build.py MODEL TASKS... --checkout FOLDER --rows runs/earlier.rows.jsonl \
        --json benchmarks/results/earlier_build_MODEL.json

MODEL is what `--model` takes elsewhere (such as smollm2-135m), TASKS are files as `autottt tasks export` writes them.
Each checkout runs in a process of its own with its own defaults for the model, answers all queries of a task with one
strategy, which shares an adapter between them, and is timed; the two take turns task by task. Only the public interface
that both have is used. Rows are appended to --rows, and an interrupted run continues. Intervals are 90% bootstrap
intervals over families.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from model_folders import folder_of
from row_files import Row, percent_interval, read_rows, write_results

from autottt import Task, read_tasks

BUILDS = ("this checkout", "earlier checkout")
WORKER = """
import json, sys, time
from autottt import Controller, make_task
model, strategy = sys.argv[1:]
controller = Controller.from_pretrained(model)
print("ready", flush=True)
for line in sys.stdin:
    queries = json.loads(line)
    began, right = time.perf_counter(), []
    for q in queries:
        task = make_task(q["demonstrations"], q["query"], kind="text", answer=q["answer"], id=q["id"])
        right.append(controller.solve(task, strategy=strategy).answer == task.answer)
    print(json.dumps({"right": right, "seconds": time.perf_counter() - began}), flush=True)
"""
"""Reads the queries of a task from a line, and writes which were answered right, and the seconds for all."""


class Build:
    """A checkout with a model in a process of its own."""

    def __init__(self, checkout: Path, model: str, strategy: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, model, strategy], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=checkout, env=environment,
        )  # fmt: skip
        if self._read() != "ready":
            raise SystemExit(f"the checkout in {checkout} cannot load {model}")

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def solve(self, queries: Sequence[Task]) -> Row:
        """Which queries are answered right, and the seconds for all."""
        assert self._process.stdin is not None
        plain = [
            {
                "id": q.id, "query": q.query, "answer": q.answer,
                "demonstrations": [[d.input, d.output] for d in q.demonstrations],
            }
            for q in queries
        ]  # fmt: skip
        self._process.stdin.write(json.dumps(plain) + "\n")
        self._process.stdin.flush()
        return json.loads(self._read() or '{"right": [], "seconds": 0}')


def measure(options: argparse.Namespace, tasks: Sequence[Sequence[Task]]) -> None:
    """Appends the rows that the file lacks."""
    done = {row["group"] for row in read_rows(options.rows) if row["model"] == options.model}
    missing = [queries for queries in tasks if queries[0].group not in done]
    if not missing:
        return
    model, here = str(folder_of(options.model) or options.model), Path(__file__).resolve().parent.parent
    builds = [Build(folder.resolve(), model, options.strategy) for folder in (here, options.checkout)]
    for number, queries in enumerate(missing, 1):
        facts = {"model": options.model, "group": queries[0].group, "family": queries[0].family}
        measured = {name: build.solve(queries) for name, build in zip(BUILDS, builds, strict=True)}
        with options.rows.open("a") as file:
            file.write(json.dumps(facts | measured) + "\n")
        print(f"{number} of {len(missing)} tasks", file=sys.stderr, flush=True)


def summary(rows: Sequence[Row], model: str, strategy: str) -> list[Row]:
    """Accuracy of each checkout, and the ratio of their seconds."""
    both = [row for row in rows if row["model"] == model and all(row[name]["right"] for name in BUILDS)]
    results = []
    for name in BUILDS:
        right: dict[str, list[float]] = defaultdict(list)
        for row in both:
            right[row["family"]] += map(float, row[name]["right"])
        flat = [value for family in right.values() for value in family]
        results.append({
            "name": f"{model}: {strategy}, {name}", "value": round(100 * statistics.fmean(flat), 1),
            "unit": "% of queries", "interval_90": percent_interval(right), "queries": len(flat),
            "seconds_of_a_task": round(statistics.median(row[name]["seconds"] for row in both), 2),
        })  # fmt: skip
    ratio = statistics.median(row[BUILDS[0]]["seconds"] / row[BUILDS[1]]["seconds"] for row in both)
    results.append({
        "name": f"{model}: {strategy}, seconds of a task with its queries", "value": round(ratio, 3), "unit": "times",
        "against": BUILDS[1], "goal": 0.2, "holds": ratio <= 0.2, "tasks": len(both),
    })  # fmt: skip
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tasks", nargs="+", type=Path)
    parser.add_argument("--checkout", type=Path, required=True, help="folder with the earlier checkout")
    parser.add_argument("--strategy", default="ttt_in_context", help="the strategy that answers")
    parser.add_argument("--rows", type=Path, required=True, help="file for the measured rows")
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--limit", type=int, help="tasks at most")
    options = parser.parse_args()
    groups: dict[str, list[Task]] = defaultdict(list)
    for task in read_tasks(options.tasks).tasks:
        groups[task.group].append(task)
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    measure(options, list(groups.values())[: options.limit])
    rows = read_rows(options.rows)
    write_results(
        options.json, summary(rows, options.model, options.strategy), ("autottt", "torch", "transformers", "peft")
    )


if __name__ == "__main__":
    main()
