"""Measures a model on public few-shot sets, before and after test-time training; `make bench-model` runs it.

    python benchmarks/model.py DATA --json benchmarks/results/model.json --rows runs/model.rows.jsonl [--quick]

DATA is a folder with `open/<set>.jsonl`; the sets `test` and `policy` are the generator's and need none. Writes the
rows {"name", "value", "unit", "against", "goal", "holds"} with the machine, versions, commit and date; the measured
rows behind them, one per query and strategy, are written to --rows. Tasks are divided among --workers processes with
one core each, which append their rows to files next to --rows: an interrupted run continues from them. Two cores take
hours; --quick samples a few tasks of each set. Intervals are 90% bootstrap intervals over families.
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
"""The strategy that represents test-time training in the ratios, chosen beforehand; one attempt."""
STRATEGIES = ("in_context", "in_context_vote", "ttt_in_context", "ttt_augmented", "controller")
QUICK = 12
"""Tasks of each set in a short run."""
PER_DOMAIN = 20
"""Tasks per domain of a split of the generator, with two queries each."""
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
"""Sets, each with its goal for the share of queries right. arc_agi_1: the evaluation part, two attempts."""
SPLITS: tuple[Split, ...] = ("test", "policy")
"""Sets of generated tasks."""
SEED_OFFSETS = {"policy": 1000}
"""Added to the seed of a split's tasks: recipes were searched on the tasks of `policy` with small seeds."""
REPEATS = 2000
"""Bootstrap samples."""
RULES = ("capitalize", "lowercase", "choose_first")
"""Prefixes of the families of function_vectors that are rules rather than knowledge of the world."""
LOW = 0.1
"""Sets with a lower in-context accuracy have a ratio of their own."""


def tasks_of(name: str, data: Path, limit: int | None, seed: int) -> list[Task]:
    """The tasks of a set that are measured; the queries of one task have the same `group`."""
    if name in SPLITS:
        count = PER_DOMAIN if limit is None else max(1, limit // 4)
        seed += SEED_OFFSETS.get(name, 0)
        return [t for domain in domains() for t in draw_tasks(name, count, seed, domain, queries=2)]
    tasks = list(read_tasks([data / "open" / f"{name}.jsonl"]).tasks)
    if name == "function_vectors":
        tasks = [t for t in tasks if t.family.startswith(RULES)]
    if name == "arc_agi_1":
        tasks = [t for t in tasks if "/evaluation/" in t.id]
    if limit is None:
        return tasks
    groups = sorted({t.group for t in tasks})
    sample = set(random.Random(seed).sample(groups, min(limit, len(groups))))
    return [t for t in tasks if t.group in sample]


def part_of(tasks: list[Task], part: int, parts: int) -> list[Task]:
    """Every `parts`-th task with all of its queries, starting with number `part`."""
    order = {group: n for n, group in enumerate(dict.fromkeys((t.family.split("/")[0], t.group) for t in tasks))}
    return [t for t in tasks if order[t.family.split("/")[0], t.group] % parts == part]


def share(rows: list[Row], two: bool = False) -> float:
    """Share of queries right; with `two`, in one of two attempts (strategies that do not vote have only one)."""
    return sum(r.right or (two and r.second) for r in rows) / len(rows)


def cells_of(rows: list[Row], name: str) -> dict[str, dict[str, list[Row]]]:
    """Reported name -> the rows of each strategy: of a split, for each domain and for all."""
    of_set = [r for r in rows if r.dataset == (f"generator_{name}" if name in SPLITS else name)]
    parts = {name: of_set}
    if name in SPLITS:
        parts = {f"generator, {name}, {d}": [r for r in of_set if r.family.startswith(f"{d}/")] for d in domains()}
        parts[f"generator, {name}"] = of_set
    return {label: {s: [r for r in part if r.strategy == s] for s in STRATEGIES} for label, part in parts.items()}


def numbers(rows: list[Row], names: list[str]) -> list[dict[str, Any]]:
    """The results of all sets, from their rows."""
    results: list[dict[str, Any]] = []
    public: dict[str, np.ndarray] = {}
    for name in names:
        two = name == "arc_agi_1"
        for label, cells in cells_of(rows, name).items():
            values = {s: share(cell, two) for s, cell in cells.items()}
            work = {s: sum(r.work for r in cell) for s, cell in cells.items()}
            for strategy, value in values.items():
                low, high = accuracy_interval(cells[strategy])
                results.append({
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
            results.append({
                "name": f"{name}: best of {len(values)}, chosen afterwards ({best}){', two attempts' if two else ''}",
                "value": round(100 * values[best], 1),
                "unit": "% of queries", "queries": len(cells[best]), "against": "goal", "goal": 100 * goal,
                "holds": values[best] >= goal,
            })  # fmt: skip
        if name in SPLITS:
            continue
        public[name] = shares(cells, two)
        if goal is None:
            gain = 100 * (public[name][:, 1] - public[name][:, 0])
            results.append({
                "name": f"{name}: {TTT} beyond in_context", "value": round(float(gain[0]), 1), "unit": "points",
                "interval_90": bounds(gain), "queries": len(cells[TTT]), "against": "in_context", "goal": 0.0,
                "holds": bool(gain[0] > 0),
            })  # fmt: skip
    results += [ratio("all", public, 2.0)] if public else []
    low_sets = {n: v for n, v in public.items() if v[0, 0] < LOW}
    results += [ratio(f"under {LOW:.0%} in context", low_sets, 6.0)] if low_sets else []
    return results


def shares(cells: dict[str, list[Row]], two: bool) -> np.ndarray:
    """Shares of queries right in context and after training, [1 + REPEATS, 2]: as measured, then of each bootstrap
    sample of families."""
    families = {name: n for n, name in enumerate(sorted({r.family for r in cells[TTT]}))}
    queries, right = np.zeros(len(families)), np.zeros((len(families), 2))
    for column, strategy in enumerate(("in_context", TTT)):
        for row in cells[strategy]:
            right[families[row.family], column] += row.right or (two and row.second)
            queries[families[row.family]] += column
    samples = np.random.default_rng(0).multinomial(len(families), [1 / len(families)] * len(families), REPEATS)
    times = np.vstack([np.ones(len(families)), samples])
    return np.asarray((times @ right) / (times @ queries)[:, None])


def bounds(values: np.ndarray) -> list[float]:
    """The 90% interval of the bootstrap samples; the first value is the measured one."""
    return [round(float(b), 2) for b in np.quantile(values[1:], (0.05, 0.95))]


def ratio(which: str, public: dict[str, np.ndarray], goal: float) -> dict[str, Any]:
    """Mean accuracy of sets after training divided by that in context; None where no in-context answer was right."""
    before, after = np.mean(list(public.values()), 0).T
    value = round(float(after[0] / before[0]), 2) if before[0] else None
    return {
        "name": f"{which} ({', '.join(public)}): {TTT} over in_context, means of the sets", "value": value,
        "unit": "times", "interval_90": bounds(after / before) if before.all() else None, "against": "in_context",
        "goal": goal, "holds": value is not None and value >= goal,
    }  # fmt: skip


def commit() -> str:
    """The commit that is measured, with a + if the tree has changes."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def measure(controller: Controller, options: argparse.Namespace, part: int, file: Path) -> None:
    """Adds to `file` the rows of one process's part of the tasks."""
    for name in options.sets.split(","):
        tasks = tasks_of(name, options.data, QUICK if options.quick else None, options.seed)
        own = part_of(tasks, part, options.workers)
        evaluate(controller, own, STRATEGIES, seed=options.seed, file=file)
        print(f"process {part}: {name}, {len(own)} queries done", file=sys.stderr, flush=True)


def parse_options() -> argparse.Namespace:
    """The options of the command line; ends the process with an error for a set that is not available."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True, help="file of all rows; an interrupted run continues")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--model", default=None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, with one core each")
    parser.add_argument(
        "--continue-other-commit", action="store_true", help="continue rows of another commit; both are recorded"
    )
    parser.add_argument("--part", type=int, help="measure only this process's part (--workers starts such processes)")
    options = parser.parse_args()
    available = [*SPLITS, *(n for n in SETS if (options.data / "open" / f"{n}.jsonl").is_file())]
    if unavailable := [n for n in options.sets.split(",") if n not in available]:
        parser.error(f"no such set: {', '.join(unavailable)} (expected {options.data / 'open'}/NAME.jsonl)")
    return options


def begin(options: argparse.Namespace, controller: Controller, settings_file: Path, files: list[Path]) -> str:
    """Writes the settings of a new run, or checks that they are those of the interrupted one; returns the commits."""
    settings = {"commit": commit(), "model": controller.learner.base_hash, "policy": controller.policy.name}
    settings |= {"quick": options.quick, "seed": options.seed, "workers": options.workers}
    previous = json.loads(settings_file.read_text()) if settings_file.exists() else None
    if options.continue_other_commit and previous and {**previous, "commit": ""} == {**settings, "commit": ""}:
        settings["commit"] = " ".join(dict.fromkeys([*previous["commit"].split(), settings["commit"]]))
    elif previous != settings and (previous is not None or any(file.exists() for file in files)):
        raise SystemExit(
            f"{options.rows.with_suffix('')}.* hold rows of {previous}; this run has {settings}: remove these files to "
            "start again, or continue those of another commit with --continue-other-commit"
        )
    settings_file.write_text(json.dumps(settings) + "\n")
    return str(settings["commit"])


def run_parts(workers: int) -> None:
    """Runs this command once per part, in parallel with one thread each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *sys.argv]
    processes = [subprocess.Popen([*command, "--part", str(part)], env=environment) for part in range(workers)]
    try:
        codes = [process.wait() for process in processes]
        if any(codes):
            raise SystemExit("a process failed; its error is above. The same command continues after the rows so far.")
    finally:
        for process in processes:
            process.terminate()


def main() -> None:
    """Command line; see the module's docstring."""
    options = parse_options()
    names = options.sets.split(",")
    controller = Controller.from_pretrained(model=options.model)
    files = [options.rows.with_suffix(f".{part}.jsonl") for part in range(options.workers)]
    if options.part is not None:
        measure(controller, options, options.part, files[options.part])
        return
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    settings_file = options.rows.with_suffix(".settings.json")
    commits = begin(options, controller, settings_file, files)
    run_parts(options.workers)
    rows = list({(row.strategy, row.id): row for file in files for row in read_rows(file)}.values())
    facts = report(controller, rows, {"quick": options.quick, "seed": options.seed, "sets": names})
    del facts["rows"], facts["summary"]
    facts["machine"]["cores"] = os.cpu_count()
    facts |= {"commit": commits, "date": datetime.now(UTC).date().isoformat(), "rows": numbers(rows, names)}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(facts, indent=1) + "\n")
    options.rows.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    for file in (*files, settings_file):
        file.unlink(missing_ok=True)
    for row in facts["rows"]:
        goal = "" if row["goal"] is None else f"  goal {row['goal']:g}: {'reached' if row['holds'] else 'not reached'}"
        print(f"{row['name']:<58}{'-' if row['value'] is None else row['value']:>7} {row['unit']}{goal}")


if __name__ == "__main__":
    main()
