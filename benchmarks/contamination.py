"""Draws pairs from the generator and looks for pairs of public benchmarks among them; prints a table.

    python benchmarks/contamination.py DATA... --pairs 10000000 --json benchmarks/results/contamination.json
    python benchmarks/contamination.py DATA... --write     # what the generator leaves out: known_pairs.bin

DATA are files or folders that `autottt evaluate` reads; --write takes all of them, since it replaces the file. The
sample is drawn without the generator's filter, which says how often chance repeats a benchmark. `left` counts the
tasks that the filter lets through all the same: it must be 0, or the run ends with an error. What is to be expected by
chance is counted beside it: hits on as many tasks that the generator has drawn before, in place of the benchmarks'.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from pathlib import Path

from autottt.ttt_core.generator.contamination import FILE, KnownPairs, Pair, known_pairs
from autottt.ttt_core.generator.families import draw_task_pairs
from autottt.ttt_core.readers import read_tasks


def benchmark_tasks(paths: list[Path]) -> list[tuple[str, list[Pair]]]:
    """Kind and pairs, demonstrations and queries, of every task."""
    found: dict[str, tuple[str, list[Pair]]] = {}
    reading = read_tasks(paths)
    if reading.problems:
        raise SystemExit(f"{len(reading.problems)} tasks cannot be read, the first: {reading.problems[0]}")
    for task in reading.tasks:
        _, pairs = found.setdefault(f"{task.dataset}/{task.group or task.id}", (task.kind, []))
        if not pairs:
            pairs += [(d.input, d.output) for d in task.demonstrations]
        pairs.append((task.query, task.answer))
    return list(found.values())


def stand_ins(tasks: list[tuple[str, list[Pair]]], seed: int) -> KnownPairs:
    """As many tasks of each kind, with as many pairs (up to 14), drawn by the generator from its own families."""
    rng = random.Random(f"stand-ins-{seed}")
    names = {"list": "lists", "grid": "grids", "grid1d": "rows", "text": "strings"}
    return KnownPairs.of(
        (kind, draw_task_pairs("pretrain", min(14, len(pairs)), rng, names[kind], filtered=False)[1])
        for kind, pairs in tasks
    )


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--pairs", type=int, default=10_000_000, help="generated pairs to look at")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name} and stop")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    benchmarks = benchmark_tasks(given.data)
    known = KnownPairs.of(benchmarks)
    print(f"{len(known):,} different pairs of benchmarks, symmetries counted")
    if given.write:
        known.save()
        return
    others = stand_ins(benchmarks, given.seed)
    rng = random.Random(f"contamination-{given.seed}")
    tasks: Counter[str] = Counter()
    left: Counter[str] = Counter()
    drawn: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    chance: Counter[str] = Counter()
    began = time.monotonic()
    while drawn.total() < given.pairs:
        family, pairs = draw_task_pairs("pretrain", rng.randint(4, 14), rng, filtered=False)
        name, kind = family.domain.name, family.domain.kind
        tasks[name] += 1
        drawn[name] += len(pairs)
        hits[name] += len(known.hits(kind, pairs))
        chance[name] += len(others.hits(kind, pairs))
        repeats = known.contaminates(kind, pairs)
        bad[name] += repeats
        left[name] += repeats and not known_pairs().contaminates(kind, pairs)
    seconds = time.monotonic() - began
    print(f"{drawn.total():,} pairs in {seconds:.0f} s")
    rows = [
        {
            "domain": n,
            "tasks": tasks[n],
            "pairs": drawn[n],
            "known_pairs": hits[n],
            "share_known": round(hits[n] / drawn[n], 6),
            "share_of_stand_ins": round(chance[n] / drawn[n], 6),
            "contaminated_tasks": bad[n],
            "left": left[n],
        }
        for n in sorted(drawn)
    ]
    for row in rows:
        print(row)
    if given.json:
        given.json.write_text(json.dumps({"seed": given.seed, "seconds": seconds, "rows": rows}, indent=1) + "\n")
    if left.total():
        raise SystemExit("the filter lets tasks through: run with --write, with all of the benchmarks")


if __name__ == "__main__":
    main()
