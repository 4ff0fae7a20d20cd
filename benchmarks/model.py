"""Measures a model on public few-shot sets, before and after test-time training; `make bench-model` runs it.

    python benchmarks/model.py DATA --json benchmarks/results/model.json --rows runs/model.rows.jsonl [--quick]

DATA is a folder with `open/<set>.jsonl`. Writes the rows {"name", "value", "unit", "against", "goal", "holds"} with the
machine, versions, commit and date. An interrupted run goes on from its --rows file. Two cores take hours; --quick draws
a few tasks of each set and says so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autottt import Controller
from autottt.controller.evaluation import Row, accuracy_interval, evaluate, report
from autottt.ttt_core.readers import read_tasks
from autottt.ttt_core.tasks import Task

TTT = "ttt_augmented"
"""The strategy that stands for test-time training in the ratio, named beforehand; one attempt."""
STRATEGIES = ("in_context", "in_context_vote", "ttt_in_context", "ttt_augmented", "controller")
QUICK = 12
"""Tasks of each set in a short run."""
SETS: dict[str, float | None] = {
    "arc_1d": 0.60,
    "list_functions_rule": 0.60,
    "mini_arc": 0.30,
    "concept_arc": 0.30,
    "arc_agi_1": 0.12,
    "letter_string": None,
    "function_vectors": None,
}
"""Sets and the goal for the share of queries right. arc_agi_1: the evaluation part, two attempts."""
RULES = ("capitalize", "lowercase", "choose_first")
"""How the families of function_vectors begin that are rules, rather than knowledge of the world."""


def tasks_of(name: str, data: Path, limit: int | None, seed: int) -> list[Task]:
    """The tasks of a set that are measured."""
    tasks = list(read_tasks([data / "open" / f"{name}.jsonl"]).tasks)
    if name == "function_vectors":
        tasks = [t for t in tasks if t.family.startswith(RULES)]
    if name == "arc_agi_1":
        tasks = [t for t in tasks if "/evaluation/" in t.id]
    if limit is None:
        return tasks
    groups = sorted({t.group for t in tasks})
    kept = set(random.Random(seed).sample(groups, min(limit, len(groups))))
    return [t for t in tasks if t.group in kept]


def share(rows: list[Row], two: bool = False) -> float:
    """Share of queries right; with `two`, in one of two attempts (strategies that do not vote have but one)."""
    return sum(r.right or (two and r.second) for r in rows) / len(rows)


def numbers(rows: list[Row], names: list[str]) -> list[dict[str, Any]]:
    """What the rows of all sets amount to."""
    found: list[dict[str, Any]] = []
    plain = adapted = 0.0
    for name in names:
        two = name == "arc_agi_1"
        cells = {s: [r for r in rows if (r.dataset, r.strategy) == (name, s)] for s in STRATEGIES}
        values = {s: share(cell, two) for s, cell in cells.items()}
        for strategy, value in values.items():
            low, high = accuracy_interval(cells[strategy])
            found.append({
                "name": f"{name}: {strategy}", "value": round(100 * value, 1), "unit": "% of queries",
                "interval_90": None if two else [round(100 * low, 1), round(100 * high, 1)],
                "queries": len(cells[strategy]), "against": "in_context",
                "against_value": round(100 * values["in_context"], 1), "goal": None, "holds": None,
            })  # fmt: skip
        goal, best = SETS[name], max(values, key=values.__getitem__)
        if goal is not None:
            found.append({
                "name": f"{name}: best of {len(values)}, chosen afterwards ({best}){', two attempts' if two else ''}",
                "value": round(100 * values[best], 1),
                "unit": "% of queries", "queries": len(cells[best]), "against": "goal", "goal": 100 * goal,
                "holds": values[best] >= goal,
            })  # fmt: skip
        plain += share(cells["in_context"])
        adapted += share(cells[TTT])
    ratio = adapted / plain if plain else float("nan")
    found.append({
        "name": f"mean of {len(names)} sets: {TTT} over in_context", "value": round(ratio, 2), "unit": "times",
        "against": "in_context", "goal": 2.0, "holds": ratio >= 2.0,
    })  # fmt: skip
    return found


def commit() -> str:
    """The commit that is measured, with a + where the tree has changes."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True, help="rows as they come; an interrupted run goes on")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--model", default=None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    names = given.sets.split(",")
    if odd := [n for n in names if n not in SETS or not (given.data / "open" / f"{n}.jsonl").is_file()]:
        parser.error(f"no such set: {', '.join(odd)} (looked for {given.data / 'open'}/NAME.jsonl)")
    controller = Controller.from_pretrained(model=given.model)
    given.rows.parent.mkdir(parents=True, exist_ok=True)
    about = {"commit": commit(), "model": controller.learner.base_hash, "policy": controller.policy.name}
    about |= {"quick": given.quick, "seed": given.seed}
    first = given.rows.with_suffix(".about.json")
    if given.rows.exists() and json.loads(first.read_text()) != about:
        parser.error(f"{given.rows} was begun with {first.read_text()}, and this is {about}: remove it to begin anew")
    first.write_text(json.dumps(about) + "\n")
    rows: list[Row] = []

    def tell(row: Row) -> None:
        print(f"{row.dataset} {row.id} {row.strategy}: {row.status}", file=sys.stderr, flush=True)

    for name in names:
        tasks = tasks_of(name, given.data, QUICK if given.quick else None, given.seed)
        rows += evaluate(controller, tasks, STRATEGIES, seed=given.seed, file=given.rows, on_row=tell)
    facts = report(controller, rows, {"quick": given.quick, "seed": given.seed, "sets": names})
    del facts["rows"], facts["summary"]
    facts["machine"]["cores"] = os.cpu_count()
    facts |= {"commit": about["commit"], "date": datetime.now(UTC).date().isoformat(), "rows": numbers(rows, names)}
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(facts, indent=1) + "\n")
    given.rows.unlink()
    first.unlink()
    for row in facts["rows"]:
        goal = "" if row["goal"] is None else f"  goal {row['goal']:g}: {'holds' if row['holds'] else 'does not hold'}"
        print(f"{row['name']:<58}{row['value']:>7} {row['unit']}{goal}")


if __name__ == "__main__":
    main()
