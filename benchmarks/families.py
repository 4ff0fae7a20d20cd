"""Compares the generator's primitives with public families, and with each other; prints tables.

    python benchmarks/families.py solved DATA...     # which families of public sets a single primitive solves
    python benchmarks/families.py coinciding         # which held-out primitives equal a training primitive
    python benchmarks/families.py shorter            # how often a chain has an operation that is not needed
    python benchmarks/families.py strict             # how often a strict draw rejects a task, and why

The marks in docs/primitives.md (`Domain.solves`) come from `solved`: a primitive is marked if it solves one in twenty
or more of a family's tasks; a star means that it is not marked yet. It solves a task if one draw of its parameters
gives the answers of all its pairs. Parameters are drawn at random, so all counts are lower bounds, which more --draws
raise. Tasks whose outputs equal their inputs are left out. DATA are files or folders that `autottt evaluate` reads.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from autottt.ttt_core.pretraining.generator.core import (
    OPERATION_ERRORS,
    Domain,
    Family,
    Operation,
    Primitive,
    Reject,
    draw_pairs,
    strict_fault,
)
from autottt.ttt_core.pretraining.generator.families import Split, domains, draw_family
from autottt.ttt_core.tasks.readers import read_tasks

Pairs = Sequence[tuple[Any, Any]]
"""Canonical values of inputs and outputs."""
Operations = Mapping[str, Sequence[Operation]]
"""Name of a primitive, and operations with random parameters."""
MIN_SHARE = 0.05
"""Share of a family's tasks that a primitive must solve to be marked."""
PAIRS = 8
"""Pairs of a task that the generator draws."""


def from_value(kind: str, value: Any) -> Any:
    """From a kind's canonical value to the representation that operations work on."""
    if kind == "grid":
        return [list(row) for row in value]
    return list(value[0]) if kind == "grid1d" else list(value) if kind == "list" else value


def solves(operations: Iterable[Operation], domain: Domain, pairs: Pairs) -> bool:
    """Whether the chain of operations maps every input to its output."""
    for source, target in pairs:
        value = from_value(domain.kind, source)
        try:
            for operation in operations:
                value = operation(value)
            if domain.to_value(value) != target:
                return False
        except OPERATION_ERRORS:
            return False
    return True


def draw_operations(primitives: Iterable[Primitive], draws: int, rng: random.Random) -> Operations:
    """Operations of each primitive under `draws` random parameters."""
    return {p.name: [p.draw(rng) for _ in range(draws)] for p in primitives}


def solvers(candidates: Operations, domain: Domain, pairs: Pairs) -> list[str]:
    """The primitives that solve a task alone."""
    return [name for name, draws in candidates.items() if any(solves([one], domain, pairs) for one in draws)]


def draw_tasks(family: Family, count: int, rng: random.Random) -> list[tuple[list[Operation], Pairs]]:
    """Tasks of a family: the operations of its chain, and pairs. Fewer than `count` where many draws are rejected."""
    tasks: list[tuple[list[Operation], Pairs]] = []
    for _ in range(20 * count):
        chain: list[Operation] = []

        def recording(primitive: Primitive, chain: list[Operation] = chain) -> Primitive:
            """The primitive, which adds its operation to the chain when its parameters are drawn."""

            def draw(rng: random.Random) -> Operation:
                chain.append(primitive.draw(rng))
                return chain[-1]

            return replace(primitive, draw=draw)

        try:
            pairs = draw_pairs(replace(family, chain=tuple(map(recording, family.chain))), PAIRS, rng)
        except Reject:
            continue
        tasks.append((chain, pairs))
        if len(tasks) == count:
            break
    return tasks


def coinciding(domain: Domain, tasks: int, draws: int, seed: int) -> dict[str, Counter[str]]:
    """For each held-out primitive: its tasks ("tasks"), those that a training primitive solves alone ("known"), and how
    many each of these solves, by name."""
    rng = random.Random(f"coinciding-{domain.name}-{seed}")
    training = draw_operations([p for p in domain.primitives if not p.held_out], draws, rng)
    results = {}
    for primitive in domain.primitives:
        if primitive.held_out:
            counts: Counter[str] = Counter()
            for _ in range(tasks):
                scene = rng.choice(primitive.scenes or tuple(domain.scenes))
                for _, pairs in draw_tasks(Family(domain, scene, (primitive,)), 1, rng):
                    names = solvers(training, domain, pairs)
                    counts.update([*names, "tasks", *["known"] * bool(names)])
            results[primitive.name] = counts
    return results


def shorter(domain: Domain, split: Split, tasks: int, draws: int, seed: int) -> dict[int, Counter[str]]:
    """For chains of two and three operations: tasks, those in which an operation can be left out, and those that a
    training primitive solves alone."""
    rng = random.Random(f"shorter-{domain.name}-{split}-{seed}")
    training = draw_operations([p for p in domain.primitives if not p.held_out], draws, rng)
    results: dict[int, Counter[str]] = {2: Counter(), 3: Counter()}
    for _ in range(tasks):
        sample: list[tuple[list[Operation], Pairs]] = []
        while not sample or len(sample[0][0]) < 2:
            sample = draw_tasks(draw_family(domain, split, rng), 1, rng)
        chain, pairs = sample[0]
        results[len(chain)] += Counter(
            tasks=1,
            left_out=any(solves(chain[:i] + chain[i + 1 :], domain, pairs) for i in range(len(chain))),
            alone=bool(draws and solvers(training, domain, pairs)),
        )
    return results


def faults(domain: Domain, split: Split, tasks: int, seed: int) -> Counter[str]:
    """Of random tasks of a split ("tasks"): those that a strict draw accepts ("drawn"), and rejects, by the reason."""
    rng = random.Random(f"strict-{domain.name}-{split}-{seed}")
    counts: Counter[str] = Counter()
    while counts["tasks"] < tasks:
        family = draw_family(domain, split, rng)
        for chain, pairs in draw_tasks(family, 1, rng):
            sources, targets = zip(*pairs, strict=True)
            inputs = [from_value(domain.kind, source) for source in sources]
            counts.update(["tasks", strict_fault(family, chain, inputs, targets, rng) or "drawn"])
    return counts


def solved(paths: Sequence[Path], draws: int, seed: int) -> dict[str, dict[str, Counter[str]]]:
    """Set -> family -> counts of tasks ("tasks"), of those that a primitive solves alone ("solved"), by primitive."""
    rng = random.Random(f"solved-{seed}")
    by_kind = {d.kind: (d, draw_operations(d.primitives, draws, rng)) for d in domains().values()}
    tasks: dict[tuple[str, str, str], tuple[str, list[tuple[Any, Any]]]] = {}
    for task in read_tasks(list(paths)).tasks:
        shown = [(d.input, d.output) for d in task.demonstrations]
        _, pairs = tasks.setdefault((task.dataset, task.family, task.group or task.id), (task.kind, shown))
        pairs.append((task.query, task.answer))
    results: dict[str, dict[str, Counter[str]]] = {}
    for (dataset, family, _), (kind, pairs) in tasks.items():
        if all(source == target for source, target in pairs):
            continue
        domain, candidates = by_kind[kind]
        names = solvers(candidates, domain, pairs)
        counts = results.setdefault(dataset, {}).setdefault(family, Counter())
        counts.update([*(f"{domain.name}/{n}" for n in names), "tasks", *["solved"] * bool(names)])
    return results


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["solved", "coinciding", "shorter", "strict"])
    parser.add_argument("data", nargs="*", type=Path)
    parser.add_argument("--draws", type=int, default=300, help="draws of each primitive's parameters")
    parser.add_argument("--tasks", type=int, default=100, help="tasks of each held-out primitive, or of each split")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.what == "solved":
        marked = {d.name: {p for names in d.solves.values() for p in names} for d in domains().values()}
        for dataset, families in solved(options.data, options.draws, options.seed).items():
            every: Counter[str] = sum(families.values(), Counter())
            print(f"{dataset}: {every['solved']} of {every['tasks']} tasks are solved by a single primitive")
            for family, counts in sorted(families.items()):
                if counts["solved"]:
                    print(f"  {family}: {counts['solved']} of {counts['tasks']}: {names_of(counts)}")
            for domain in domains().values():
                names = [
                    p.name
                    for p in domain.primitives
                    if any(0 < MIN_SHARE * c["tasks"] <= c[f"{domain.name}/{p.name}"] for c in families.values())
                ]
                if names:
                    print(f"  {domain.name}: {', '.join(n + '*' * (n not in marked[domain.name]) for n in names)}")
    for domain in domains().values():
        if options.what == "coinciding":
            for name, counts in coinciding(domain, options.tasks, options.draws, options.seed).items():
                print(f"{domain.name}/{name}: {counts['known']} of {counts['tasks']}: {names_of(counts)}")
        if options.what == "strict":
            for split in get_args(Split):
                print(f"{domain.name}, {split}: {dict(faults(domain, split, options.tasks, options.seed))}")
        if options.what == "shorter":
            for split in get_args(Split):
                for depth, counts in shorter(domain, split, options.tasks, options.draws, options.seed).items():
                    print(f"{domain.name}, {split}, chains of {depth}: {dict(counts)}")


def names_of(counts: Counter[str]) -> str:
    """The primitives among counts, most frequent first."""
    return ", ".join(f"{n} {k}" for n, k in counts.most_common() if n not in ("tasks", "solved", "known"))


if __name__ == "__main__":
    main()
