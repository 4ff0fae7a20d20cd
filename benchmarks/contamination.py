"""Counts pairs of public benchmarks among pairs that the generator draws; prints a table.

    python benchmarks/contamination.py DATA... --pairs 10000000 --json benchmarks/results/contamination.json
    python benchmarks/contamination.py DATA... --write     # writes known_pairs.bin, which the generator leaves out

DATA are files or folders that `autottt evaluate` reads; --write needs all of them, since it replaces the file. One
sample is drawn without the generator's filter, to estimate how often a benchmark would be repeated, and one with it, as
in pre-training: `left` counts the tasks of the second that still repeat a benchmark. If it is not 0, the run ends with
an error. For comparison, matches with as many other tasks of the generator (`stand_ins`) are counted in the same way;
they show how often the generator repeats itself and are no bound on chance.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from autottt.ttt_core.pretraining.generator.contamination import FILE, KnownPairs, Pair
from autottt.ttt_core.pretraining.generator.families import draw_task_pairs
from autottt.ttt_core.tasks.readers import read_tasks


def benchmark_tasks(paths: list[Path]) -> list[tuple[str, list[Pair]]]:
    """Kind and pairs, demonstrations and queries, of every task."""
    tasks: dict[str, tuple[str, list[Pair]]] = {}
    loaded = read_tasks(paths)
    if loaded.problems:
        raise SystemExit(f"{len(loaded.problems)} tasks cannot be read, the first: {loaded.problems[0]}")
    for task in loaded.tasks:
        _, pairs = tasks.setdefault(f"{task.dataset}/{task.group or task.id}", (task.kind, []))
        if not pairs:
            pairs += [(d.input, d.output) for d in task.demonstrations]
        pairs.append((task.query, task.answer))
    return list(tasks.values())


def stand_ins(tasks: list[tuple[str, list[Pair]]], seed: int) -> KnownPairs:
    """As many tasks of each kind, with as many pairs (up to 14), drawn by the generator from its own families."""
    rng = random.Random(f"stand-ins-{seed}")
    names = {"list": "lists", "grid": "grids", "grid1d": "rows", "text": "strings"}
    return KnownPairs.of(
        (kind, draw_task_pairs("pretrain", min(14, len(pairs)), rng, names[kind], filtered=False)[1])
        for kind, pairs in tasks
    )


def sample(count: int, seed: int, filtered: bool) -> Iterator[tuple[str, str, list[Pair]]]:
    """Domain, kind and pairs of tasks of the split `pretrain`, until `count` pairs have been drawn."""
    rng = random.Random(f"contamination-{'filtered-' * filtered}{seed}")
    while count > 0:
        family, pairs = draw_task_pairs("pretrain", rng.randint(4, 14), rng, filtered=filtered)
        count -= len(pairs)
        yield family.domain.name, family.domain.kind, pairs


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--pairs", type=int, default=10_000_000, help="generated pairs in each sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name} and stop")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    benchmarks = benchmark_tasks(options.data)
    benchmark_pairs = KnownPairs.of(benchmarks)
    print(f"{len(benchmark_pairs):,} different pairs of benchmarks, symmetries counted")
    if options.write:
        benchmark_pairs.save()
        return
    others = stand_ins(benchmarks, options.seed)
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    began = time.monotonic()
    for name, kind, pairs in sample(options.pairs, options.seed, filtered=False):
        counts[name] += Counter(
            tasks=1,
            pairs=len(pairs),
            known_pairs=len(benchmark_pairs.hits(kind, pairs)),
            stand_ins=len(others.hits(kind, pairs)),
            contaminated_tasks=benchmark_pairs.contaminates(kind, pairs),
        )
    for name, kind, pairs in sample(options.pairs, options.seed, filtered=True):
        repeats = benchmark_pairs.contaminates(kind, pairs)
        counts[name] += Counter(tasks_filtered=1, pairs_filtered=len(pairs), left=repeats)
    seconds = time.monotonic() - began
    print(f"{options.pairs:,} pairs without the filter, and as many with it, in {seconds:.0f} s")
    rows = [
        {
            "domain": name,
            **{k: one[k] for k in ("tasks", "pairs", "known_pairs", "contaminated_tasks")},
            "share_known": round(one["known_pairs"] / one["pairs"], 6),
            "share_of_stand_ins": round(one["stand_ins"] / one["pairs"], 6),
            **{k: one[k] for k in ("tasks_filtered", "pairs_filtered", "left")},
        }
        for name, one in sorted(counts.items())
    ]
    for row in rows:
        print(row)
    if options.json:
        options.json.write_text(json.dumps({"seed": options.seed, "seconds": seconds, "rows": rows}, indent=1) + "\n")
    if sum(one["left"] for one in counts.values()):
        raise SystemExit("the filter misses tasks: run with --write and all benchmarks as DATA")


if __name__ == "__main__":
    main()
