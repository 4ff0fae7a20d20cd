"""Measures families of public tasks in context, and writes the families and the tasks that `autottt demo` draws from.

    python benchmarks/demo_families.py DATA --json FAMILIES.json --pool TASKS.jsonl

The shipped files are controller/cli/demo_families.json and controller/cli/demo_tasks.jsonl. DATA is a folder with
`open/<set>.jsonl`. The tasks of each family are divided in two by --seed: the first half is answered in context, which
gives the family's rate; the pool of the demo is sampled from the second half. No task is in both, and no strategy that
trains is run. Rows are appended to --rows: an interrupted run continues from them.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import RULES

from autottt import Controller
from autottt.controller.cli.demo import HARD, READ
from autottt.controller.evaluation import Row, evaluate
from autottt.ttt_core.tasks.prompts import COMPACT_FORMAT
from autottt.ttt_core.tasks.readers import read_tasks
from autottt.ttt_core.tasks.task import Task

SETS = ("arc_1d", "concept_arc", "function_vectors", "letter_string", "list_functions_rule", "mini_arc")
"""Of function_vectors, the families that are rules rather than knowledge of the world."""
MAX_CHARACTERS = 1200
"""Prompts that are longer are left out, so that the demo takes minutes."""
MIN_QUERIES = 4
"""A family with fewer measured queries has no rate of its own; such families of a set are merged."""
MERGED = "other"
"""Name of the merged families of a set."""
POOL = 8
"""Tasks of each family in the pool, with one query each."""


@dataclass(frozen=True)
class Halves:
    """A family's tasks: those that are measured, and those that the demo may show. Each has all of its queries."""

    measured: tuple[tuple[Task, ...], ...]
    shown: tuple[tuple[Task, ...], ...]


def length(task: Task) -> int:
    """Characters of the prompt in the bundled model's format."""
    return sum(len(piece.text) for piece in COMPACT_FORMAT.pieces(task))


def tasks_of(dataset: str, data: Path) -> dict[str, list[tuple[Task, ...]]]:
    """Family -> its tasks with their queries, without those whose prompts are too long."""
    groups: dict[tuple[str, str], list[Task]] = {}
    for task in read_tasks([data / "open" / f"{dataset}.jsonl"]).tasks:
        if dataset != "function_vectors" or task.family.startswith(RULES):
            groups.setdefault((task.family, task.group), []).append(task)
    families: dict[str, list[tuple[Task, ...]]] = {}
    for (family, _), queries in groups.items():
        if max(map(length, queries)) <= MAX_CHARACTERS:
            families.setdefault(family, []).append(tuple(queries))
    return families


def divide(name: str, tasks: Sequence[tuple[Task, ...]], seed: int) -> Halves:
    """Two halves of a family's tasks; the measured half has one more where the number is odd."""
    order = random.Random(f"{name}-{seed}").sample(tasks, len(tasks))
    middle = (len(order) + 1) // 2
    return Halves(tuple(order[:middle]), tuple(order[middle:]))


def divided(dataset: str, data: Path, seed: int) -> dict[str, Halves]:
    """The families of a set. Those without a task to show, or with too few measured queries, are merged."""
    families: dict[str, Halves] = {}
    rest: list[tuple[Task, ...]] = []
    for family, tasks in sorted(tasks_of(dataset, data).items()):
        halves = divide(f"{dataset}/{family}", tasks, seed)
        if halves.shown and sum(map(len, halves.measured)) >= MIN_QUERIES:
            families[f"{dataset}/{family}"] = halves
        else:
            rest += tasks
    merged = divide(f"{dataset}/{MERGED}", rest, seed)
    if merged.shown and sum(map(len, merged.measured)) >= MIN_QUERIES:
        families[f"{dataset}/{MERGED}"] = merged
    return families


def band_of(rate: float, hard: float = HARD) -> str | None:
    """The half of the demo that a family belongs to; None between the thresholds."""
    return "read" if rate >= READ else "hard" if rate < hard else None


def pool_of(name: str, halves: Halves, seed: int) -> list[Task]:
    """The tasks of a family that the demo may show, one query each."""
    rng = random.Random(f"pool-{name}-{seed}")
    return [rng.choice(queries) for queries in halves.shown[:POOL]]


def entry(name: str, halves: Halves, rows: dict[str, Row], pool: Sequence[Task]) -> dict[str, Any]:
    """A family's rate with the ids of its tasks."""
    queries = [query for task in halves.measured for query in task]
    right = sum(rows[query.id].right for query in queries)
    return {
        "name": name, "queries": len(queries), "right": right, "rate": round(right / len(queries), 3),
        "band": band_of(right / len(queries)), "measured": [task[0].group for task in halves.measured],
        "pool": [task.group for task in pool],
    }  # fmt: skip


def plain(task: Task) -> dict[str, Any]:
    """A task of the pool as a line of its file."""
    return {
        "id": task.group, "dataset": task.dataset, "family": task.family, "kind": task.kind,
        "demonstrations": [{"input": d.input, "output": d.output} for d in task.demonstrations],
        "query": task.query, "answer": task.answer,
    }  # fmt: skip


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--json", type=Path, required=True, help="file of the families")
    parser.add_argument("--pool", type=Path, required=True, help="file of the tasks that the demo draws from")
    parser.add_argument("--rows", type=Path, default=Path("runs/demo_families.rows.jsonl"))
    parser.add_argument("--seed", type=int, default=0, help="divides the tasks of each family")
    options = parser.parse_args()
    families = {name: halves for s in SETS for name, halves in divided(s, options.data, options.seed).items()}
    queries = [query for halves in families.values() for task in halves.measured for query in task]
    controller = Controller.from_pretrained()
    answered: list[Row] = []

    def on_row(row: Row) -> None:
        answered.append(row)
        if len(answered) % 50 == 0 or len(answered) == len(queries):
            print(f"{len(answered)} of {len(queries)} queries answered in context", file=sys.stderr, flush=True)

    options.rows.parent.mkdir(parents=True, exist_ok=True)
    evaluate(controller, queries, ["in_context"], seed=options.seed, file=options.rows, on_row=on_row)
    rows = {row.id: row for row in answered}
    pools = {name: pool_of(name, halves, options.seed) for name, halves in families.items()}
    entries = [entry(name, halves, rows, pools[name]) for name, halves in families.items()]
    facts = {
        "about": "In-context rates of the bundled model, by benchmarks/demo_families.py. A family's measured tasks and "
        "its pool, which the demo draws from, are disjoint halves of its tasks; no strategy that trains was run.",
        "model": controller.learner.base_hash, "seed": options.seed, "max_characters": MAX_CHARACTERS,
        "families": entries,
    }  # fmt: skip
    options.json.write_text(json.dumps(facts, indent=1) + "\n")
    shown = [task for one in entries if one["band"] for task in pools[one["name"]]]
    options.pool.write_text("".join(json.dumps(plain(task)) + "\n" for task in shown))
    for one in sorted(entries, key=lambda e: -e["rate"]):
        print(f"{one['name']:<50}{one['right']:>4} of {one['queries']:<4} {one['rate']:>6.1%}  {one['band'] or '-'}")


if __name__ == "__main__":
    main()
