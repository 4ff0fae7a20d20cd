"""Text tasks of the generator that trained the bundled model: a primitive on short texts, or a chain of several."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache

from ..errors import TaskError
from ..pretraining.generator.contamination import known_pairs
from ..pretraining.generator.core import Family, Primitive, Reject, draw_pairs
from ..pretraining.generator.families import domains
from .base import REFERENCE_PAIRS, REFERENCE_SEED, DrawnTask, Pair, SourceFamily, derived_seed, splits_of

VERSION = 1
"""Changes with every change of what a seed gives."""
CHAINS = ("1", "2", "3")
"""Difficulties: primitives in the chain of a task."""
TRIES = 500
"""Draws of parameters after which a chain counts as unusable."""


class Generated:
    """Operations on short texts, alone and in chains of up to three; every task has parameters of its own.

    A family is the first primitive of a chain; the further ones are of the same split.
    """

    name = "generated"

    @property
    def version(self) -> str:
        return f"generated {VERSION}"

    def families(self) -> Mapping[str, SourceFamily]:
        return _families()

    def draw(
        self, family: str, difficulty: str, tasks: int, demonstrations: int, queries: int, seed: int
    ) -> list[DrawnTask]:
        size = demonstrations + queries
        drawn = []
        for number in range(tasks):
            pairs = _pairs(_primitives()[family], int(difficulty), size, derived_seed(seed, difficulty, number))
            drawn.append(DrawnTask(tuple(pairs[:demonstrations]), tuple(pairs[demonstrations:])))
        return drawn


@cache
def _primitives() -> Mapping[str, Primitive]:
    return {primitive.name: primitive for primitive in domains()["strings"].primitives}


def _pairs(first: Primitive, length: int, count: int, seed: int) -> list[Pair]:
    """Pairs of one task that the shown part of a public benchmark does not contain. Raises `TaskError`."""
    rng, domain = random.Random(seed), domains()["strings"]
    split = _families()[first.name].split if length > 1 else ""
    others = [p for name, p in _primitives().items() if length > 1 and _families()[name].split == split]
    for _ in range(TRIES):
        chain = (first, *rng.choices(others, k=length - 1)) if length > 1 else (first,)
        try:
            family = Family(domain, rng.choice(first.scenes or tuple(domain.scenes)), chain)
            pairs = draw_pairs(family, count, rng, strict=True)
        except Reject:
            continue
        if not known_pairs().contaminates("text", pairs):
            return pairs
    raise TaskError(f"generated:{first.name}: no task with {count} different inputs in {TRIES} draws")


@cache
def _families() -> Mapping[str, SourceFamily]:
    references: dict[str, list[Pair]] = {}
    for name, primitive in _primitives().items():
        references[name] = [
            pair for n in range(4) for pair in _pairs(primitive, 1, REFERENCE_PAIRS // 4, n + REFERENCE_SEED)
        ]
    splits = splits_of(references)
    return {
        name: SourceFamily(name, "text", splits[name][1], CHAINS, primitive.about)
        for name, primitive in _primitives().items()
    }  # fmt: skip
