"""Draws families of tasks of a split, and tasks of a family. Knows nothing about single primitives.

The names in a family's chain of primitives decide its split, whatever its scene:

- `policy`: a chain with a held-out primitive, or one whose joined names hash to 0 modulo 8;
- `test`: of the others, one whose joined names hash to 1 modulo 8;
- `pretrain`: all the rest, among them every single primitive that is not held out.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from ...tasks.task import Demonstration, Task
from .contamination import known_pairs
from .core import Domain, Family, Primitive, Reject, draw_pairs

Split = Literal["pretrain", "policy", "test"]
DEPTHS = ((1, 0.45), (2, 0.4), (3, 0.15))
"""Pairs: length of a chain, share."""
MIXTURE: Mapping[str, float] = {"lists": 0.42, "rows": 0.26, "grids": 0.18, "strings": 0.14}
"""Share of each domain in the tasks."""


@cache
def domains() -> Mapping[str, Domain]:
    """The domains by name."""
    from .grids import GRIDS
    from .lists import LISTS
    from .rows import ROWS
    from .strings import STRINGS

    return {d.name: d for d in (LISTS, ROWS, GRIDS, STRINGS)}


def split_of(family: Family) -> Split:
    """The split that a family belongs to."""
    if any(p.held_out for p in family.chain):
        return "policy"
    if len(family.chain) == 1:
        return "pretrain"
    bucket = zlib.crc32(">".join(p.name for p in family.chain).encode()) % 8
    return "policy" if bucket == 0 else "test" if bucket == 1 else "pretrain"


def draw_family(domain: Domain, split: Split, rng: random.Random) -> Family:
    """A random family of the split; primitives are sampled by their weights."""
    depths, shares = [d for d, _ in DEPTHS], [s for _, s in DEPTHS]
    pool, weights = _pool(domain.name)
    while True:
        depth = rng.choices(depths, shares)[0]
        chain: tuple[Primitive, ...] = tuple(rng.choices(pool, weights, k=depth))
        scene = rng.choice(chain[0].scenes or tuple(domain.scenes))
        family = Family(domain, scene, chain)
        if split_of(family) == split:
            return family


@cache
def _pool(name: str) -> tuple[tuple[Primitive, ...], tuple[float, ...]]:
    primitives = domains()[name].primitives
    return primitives, tuple(p.weight for p in primitives)


def draw_task_pairs(
    split: Split, count: int, rng: random.Random, domain: str | None = None, filtered: bool = True, strict: bool = False
) -> tuple[Family, list[tuple[Any, Any]]]:
    """A family of the split and `count` pairs of one of its tasks. The domain is sampled by `MIXTURE` unless given.

    With `filtered`, tasks that repeat a task of a public benchmark are sampled again; with `strict`, also tasks that
    are ambiguous or that a part of their chain solves.
    """
    name = domain or rng.choices(list(MIXTURE), list(MIXTURE.values()))[0]
    while True:
        family = draw_family(domains()[name], split, rng)
        try:
            pairs = draw_pairs(family, count, rng, strict)
        except Reject:
            continue
        if not (filtered and known_pairs().contaminates(family.domain.kind, pairs)):
            return family, pairs


def draw_tasks(
    split: Split, count: int, seed: int, domain: str | None = None, queries: int = 1, strict: bool = False
) -> list[Task]:
    """`count` tasks with `queries` queries each, as `count * queries` tasks in groups; deterministic for a seed.

    With `strict`, tasks that are ambiguous or that a part of their chain solves are left out.
    """
    rng = random.Random(f"autottt-tasks-{split}-{domain}-{seed}" + "-strict" * strict)
    tasks = []
    for index in range(count):
        demonstration_count = rng.randint(3, 9)
        family, pairs = draw_task_pairs(split, demonstration_count + queries, rng, domain, strict=strict)
        group = f"{split}-{domain or 'all'}-{seed}-{index:05d}"
        demonstrations = tuple(Demonstration(a, b) for a, b in pairs[:demonstration_count])
        for q, (query, answer) in enumerate(pairs[demonstration_count:]):
            name = group if queries == 1 else f"{group}#{q}"
            short = f"{family.domain.name}/" + ">".join(p.name for p in family.chain)
            tasks.append(
                Task(
                    family.domain.kind, demonstrations, query, answer,
                    id=name, family=short, dataset=f"generator_{split}", group=group,
                )
            )  # fmt: skip
    return tasks
