"""Measures a model on public few-shot sets, before and after test-time training; `make bench-model` runs it.

    python benchmarks/model.py DATA --json benchmarks/results/model.json --rows runs/model.rows.jsonl [--quick]

DATA is a folder with `open/<set>.jsonl`; the sets `test` and `policy` are the generator's and need none. Writes the
rows {"name", "value", "unit", "against", "goal", "holds"} with the machine, versions, commit and date; what they were
worked out from goes to --rows, a line for each query and strategy. Tasks are shared out to --workers processes with a
core each, which keep their rows in files beside --rows: an interrupted run goes on from there. Two cores take hours;
--quick draws a few tasks of each set and says so. Intervals are of 90%, families drawn anew.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from autottt import Controller
from autottt.controller.evaluation import Row, accuracy_interval, evaluate, read_rows, report
from autottt.ttt_core.pretraining.generator.families import Split, domains, draw_tasks
from autottt.ttt_core.tasks.readers import read_tasks
from autottt.ttt_core.tasks.task import Task

TTT = "ttt_augmented"
"""The strategy that stands for test-time training in the ratios, named beforehand; one attempt."""
STRATEGIES = ("in_context", "in_context_vote", "ttt_in_context", "ttt_augmented", "controller")
QUICK = 12
"""Tasks of each set in a short run."""
DRAWN = 20
"""Tasks of each domain that are drawn from a split of the generator, with two queries each."""
SETS: dict[str, float | None] = {
    "arc_1d": 0.60,
    "list_functions_rule": 0.60,
    "mini_arc": 0.30,
    "concept_arc": 0.30,
    "arc_agi_1": 0.12,
    "letter_string": None,
    "function_vectors": None,
    "test": None,
    "policy": None,
}
"""Sets and the goal for the share of queries right. arc_agi_1: the evaluation part, two attempts."""
SPLITS: tuple[Split, ...] = ("test", "policy")
"""Sets that the generator draws."""
FRESH = {"policy": 1000}
"""Added to the seed of a split's tasks: those of `policy` under small seeds are what recipes were searched on."""
REPEATS = 2000
"""Draws of the bootstrap."""
RULES = ("capitalize", "lowercase", "choose_first")
"""How the families of function_vectors begin that are rules, rather than knowledge of the world."""
LOW = 0.1
"""In-context accuracy under which a set counts as one that the model cannot do by reading."""


def tasks_of(name: str, data: Path, limit: int | None, seed: int) -> list[Task]:
    """The tasks of a set that are measured; the queries of one share `group`."""
    if name in SPLITS:
        each = DRAWN if limit is None else max(1, limit // 4)
        return [t for domain in domains() for t in draw_tasks(name, each, seed + FRESH.get(name, 0), domain, queries=2)]
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


def part_of(tasks: list[Task], part: int, parts: int) -> list[Task]:
    """Every `parts`-th task with all of its queries, from `part` on."""
    places = {group: n for n, group in enumerate(dict.fromkeys((t.family.split("/")[0], t.group) for t in tasks))}
    return [t for t in tasks if places[t.family.split("/")[0], t.group] % parts == part]


def share(rows: list[Row], two: bool = False) -> float:
    """Share of queries right; with `two`, in one of two attempts (strategies that do not vote have but one)."""
    return sum(r.right or (two and r.second) for r in rows) / len(rows)


def cells_of(rows: list[Row], name: str) -> dict[str, dict[str, list[Row]]]:
    """The rows of a set by strategy, under the names that they are reported by: a split's domains each, then all."""
    here = [r for r in rows if r.dataset == (f"generator_{name}" if name in SPLITS else name)]
    parts = {name: here}
    if name in SPLITS:
        parts = {f"generator, {name}, {d}": [r for r in here if r.family.startswith(f"{d}/")] for d in domains()}
        parts[f"generator, {name}"] = here
    return {label: {s: [r for r in some if r.strategy == s] for s in STRATEGIES} for label, some in parts.items()}


def numbers(rows: list[Row], names: list[str]) -> list[dict[str, Any]]:
    """What the rows of all sets amount to."""
    found: list[dict[str, Any]] = []
    public: dict[str, np.ndarray] = {}
    for name in names:
        two = name == "arc_agi_1"
        for label, cells in cells_of(rows, name).items():
            values = {s: share(cell, two) for s, cell in cells.items()}
            work = {s: sum(r.work for r in cell) for s, cell in cells.items()}
            for strategy, value in values.items():
                low, high = accuracy_interval(cells[strategy])
                found.append({
                    "name": f"{label}: {strategy}", "value": round(100 * value, 1), "unit": "% of queries",
                    "interval_90": None if two else [round(100 * low, 1), round(100 * high, 1)],
                    "queries": len(cells[strategy]), "over_long": sum(r.status == "refused" for r in cells[strategy]),
                    "work": round(work[strategy] / max(1, work["in_context"]), 1),
                    "adapted": round(sum(r.adapted for r in cells[strategy]) / len(cells[strategy]), 3),
                    "against": "in_context", "against_value": round(100 * values["in_context"], 1),
                    "goal": None, "holds": None,
                })  # fmt: skip
        goal, best = SETS[name], max(values, key=values.__getitem__)
        if goal is not None:
            found.append({
                "name": f"{name}: best of {len(values)}, chosen afterwards ({best}){', two attempts' if two else ''}",
                "value": round(100 * values[best], 1),
                "unit": "% of queries", "queries": len(cells[best]), "against": "goal", "goal": 100 * goal,
                "holds": values[best] >= goal,
            })  # fmt: skip
        if name in SPLITS:
            continue
        public[name] = shares(cells, two)
        if goal is None:
            gained = 100 * (public[name][:, 1] - public[name][:, 0])
            found.append({
                "name": f"{name}: {TTT} beyond in_context", "value": round(float(gained[0]), 1), "unit": "points",
                "interval_90": bounds(gained), "queries": len(cells[TTT]), "against": "in_context", "goal": 0.0,
                "holds": bool(gained[0] > 0),
            })  # fmt: skip
    found += [ratio("all", public, 2.0)] if public else []
    low_sets = {n: v for n, v in public.items() if v[0, 0] < LOW}
    found += [ratio(f"under {LOW:.0%} in context", low_sets, 6.0)] if low_sets else []
    return found


def shares(cells: dict[str, list[Row]], two: bool) -> np.ndarray:
    """Shares of queries right in context and after training, [1 + REPEATS, 2]: as measured, then with families drawn
    anew."""
    families = {name: n for n, name in enumerate(sorted({r.family for r in cells[TTT]}))}
    asked, right = np.zeros(len(families)), np.zeros((len(families), 2))
    for column, strategy in enumerate(("in_context", TTT)):
        for row in cells[strategy]:
            right[families[row.family], column] += row.right or (two and row.second)
            asked[families[row.family]] += column
    again = np.random.default_rng(0).multinomial(len(families), [1 / len(families)] * len(families), REPEATS)
    times = np.vstack([np.ones(len(families)), again])
    return np.asarray((times @ right) / (times @ asked)[:, None])


def bounds(drawn: np.ndarray) -> list[float]:
    """The 90% interval of what was drawn anew; the first is as measured."""
    return [round(float(b), 2) for b in np.quantile(drawn[1:], (0.05, 0.95))]


def ratio(which: str, public: dict[str, np.ndarray], goal: float) -> dict[str, Any]:
    """Mean accuracy after training over that before it, on some sets; None where nothing was right."""
    before, after = np.mean(list(public.values()), 0).T
    value = round(float(after[0] / before[0]), 2) if before[0] else None
    return {
        "name": f"{which} ({', '.join(public)}): {TTT} over in_context, means of the sets", "value": value,
        "unit": "times", "interval_90": bounds(after / before) if before.all() else None, "against": "in_context",
        "goal": goal, "holds": value is not None and value >= goal,
    }  # fmt: skip


def commit() -> str:
    """The commit that is measured, with a + where the tree has changes."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def measure(controller: Controller, given: argparse.Namespace, part: int, file: Path) -> None:
    """Adds to `file` the rows of one process's share of the tasks."""
    for name in given.sets.split(","):
        tasks = tasks_of(name, given.data, QUICK if given.quick else None, given.seed)
        mine = part_of(tasks, part, given.workers)
        evaluate(controller, mine, STRATEGIES, seed=given.seed, file=file)
        print(f"process {part}: {name}, {len(mine)} queries done", file=sys.stderr, flush=True)


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
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, a core each")
    parser.add_argument("--go-on", action="store_true", help="go on with rows of another commit; both are named")
    parser.add_argument("--part", type=int, help="measure only this process's share (what --workers starts)")
    given = parser.parse_args()
    names = given.sets.split(",")
    known = [*SPLITS, *(n for n in SETS if (given.data / "open" / f"{n}.jsonl").is_file())]
    if odd := [n for n in names if n not in SETS or n not in known]:
        parser.error(f"no such set: {', '.join(odd)} (looked for {given.data / 'open'}/NAME.jsonl)")
    controller = Controller.from_pretrained(model=given.model)
    files = [given.rows.with_suffix(f".{part}.jsonl") for part in range(given.workers)]
    if given.part is not None:
        measure(controller, given, given.part, files[given.part])
        return
    given.rows.parent.mkdir(parents=True, exist_ok=True)
    about = {"commit": commit(), "model": controller.learner.base_hash, "policy": controller.policy.name}
    about |= {"quick": given.quick, "seed": given.seed, "workers": given.workers}
    first = given.rows.with_suffix(".about.json")
    begun = json.loads(first.read_text()) if first.exists() else None
    if given.go_on and begun is not None and {**begun, "commit": ""} == {**about, "commit": ""}:
        about["commit"] = " ".join(dict.fromkeys([*begun["commit"].split(), about["commit"]]))
        begun = about
    if begun != about and (begun is not None or any(file.exists() for file in files)):
        kept = f"{given.rows.with_suffix('')}.*"
        parser.error(
            f"{kept} were begun with {begun}, and this is {about}: remove all of them to begin anew, or go on with"
            " those of another commit: --go-on"
        )
    first.write_text(json.dumps(about) + "\n")
    shared = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, *sys.argv, "--part", str(part)], env=shared) for part in range(given.workers)
    ]
    try:
        codes = [process.wait() for process in processes]
        if any(codes):
            raise SystemExit("a process failed; its error is above. The same command goes on from what is done.")
    finally:
        for process in processes:
            process.terminate()
    rows = list({(row.strategy, row.id): row for file in files for row in read_rows(file)}.values())
    facts = report(controller, rows, {"quick": given.quick, "seed": given.seed, "sets": names})
    del facts["rows"], facts["summary"]
    facts["machine"]["cores"] = os.cpu_count()
    facts |= {"commit": about["commit"], "date": datetime.now(UTC).date().isoformat(), "rows": numbers(rows, names)}
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(facts, indent=1) + "\n")
    given.rows.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    for file in (*files, first):
        file.unlink(missing_ok=True)
    for row in facts["rows"]:
        goal = "" if row["goal"] is None else f"  goal {row['goal']:g}: {'holds' if row['holds'] else 'does not hold'}"
        print(f"{row['name']:<58}{'-' if row['value'] is None else row['value']:>7} {row['unit']}{goal}")


if __name__ == "__main__":
    main()
