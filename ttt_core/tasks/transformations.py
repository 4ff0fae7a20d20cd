"""Invertible changes of representation: symmetries of grids, permutations of colours and of the integers in lists.

Knows nothing about models or prompts. `autottt.ttt_core.tasks.kinds` says which of them a kind of task has.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass
from typing import Protocol

from .task import Task, Value, as_grid

IDENTITY_COLOURS = tuple(range(10))


class Transformation(Protocol):
    """A change of representation that can be undone: `invert(apply(value)) == value` for every value of the kind."""

    @property
    def name(self) -> str: ...
    def apply(self, value: Value) -> Value: ...
    def invert(self, value: Value) -> Value: ...


@dataclass(frozen=True)
class IdentityTransformation:
    """Leaves values as they are."""

    name: str = "identity"

    def apply(self, value: Value) -> Value:
        return value

    def invert(self, value: Value) -> Value:
        return value


@dataclass(frozen=True)
class GridTransformation:
    """An element of the dihedral group (quarter turns, then a left-right flip) and a permutation of the colours.

    A grid of one row has only the flip and the colours: its `quarter_turns` is 0.
    """

    quarter_turns: int
    """Clockwise, 0-3."""
    flip: bool
    colours: tuple[int, ...]
    """`colours[c]` is the colour that c becomes."""

    @property
    def name(self) -> str:
        parts = [f"turn{90 * self.quarter_turns}"] * bool(self.quarter_turns) + ["flip"] * self.flip
        if self.colours != IDENTITY_COLOURS:
            parts.append("colours" + "".join(map(str, self.colours)))
        return "+".join(parts) or "identity"

    def apply(self, value: Value) -> Value:
        grid = as_grid(value)
        for _ in range(self.quarter_turns):
            grid = tuple(zip(*grid[::-1], strict=True))
        if self.flip:
            grid = tuple(row[::-1] for row in grid)
        return tuple(tuple(self.colours[c] for c in row) for row in grid)

    def invert(self, value: Value) -> Value:
        inverse = [self.colours.index(c) for c in range(10)]
        grid = tuple(tuple(inverse[c] for c in row) for row in as_grid(value))
        if self.flip:
            grid = tuple(row[::-1] for row in grid)
        for _ in range(-self.quarter_turns % 4):
            grid = tuple(zip(*grid[::-1], strict=True))
        return grid


@dataclass(frozen=True)
class ListTransformation:
    """Reversal, and a permutation of the integers that occur in the task (others stay as they are)."""

    reverse: bool
    symbols: tuple[tuple[int, int], ...]
    """Pairs (from, to): a permutation of the integers on the left."""

    @property
    def name(self) -> str:
        return "+".join(["reverse"] * self.reverse + ["symbols"] * bool(self.symbols)) or "identity"

    def apply(self, value: Value) -> Value:
        table = dict(self.symbols)
        mapped = tuple(table.get(x, x) for x in value)  # type: ignore[arg-type]
        return mapped[::-1] if self.reverse else mapped

    def invert(self, value: Value) -> Value:
        table = {b: a for a, b in self.symbols}
        mapped = tuple(table.get(x, x) for x in value)  # type: ignore[arg-type]
        return mapped[::-1] if self.reverse else mapped


def draw_grid_transformations(count: int, rng: random.Random, *, one_row: bool) -> list[Transformation]:
    """Up to `count` different transformations of grids (with `one_row`, of single rows); never the identity."""
    symmetries = [(turns, flip) for turns in range(1 if one_row else 4) for flip in (False, True)]
    rng.shuffle(symmetries)
    transformations: dict[Transformation, None] = {}
    for index in range(4 * count):
        turns, flip = symmetries[index % len(symmetries)]
        symmetry_alone = index < len(symmetries) and (turns or flip)
        colours = IDENTITY_COLOURS if symmetry_alone else _colour_permutation(rng)
        if turns or flip or colours != IDENTITY_COLOURS:
            transformations[GridTransformation(turns, flip, colours)] = None
        if len(transformations) == count:
            break
    return list(transformations)


def draw_list_transformations(task: Task, count: int, rng: random.Random) -> list[Transformation]:
    """Up to `count` different transformations of the task's lists, reversal first; never the identity."""
    values = [value for d in task.demonstrations for value in (d.input, d.output)] + [task.query]
    integers: list[int] = sorted({x for value in values for x in value})  # type: ignore[misc]
    transformations: dict[Transformation, None] = {ListTransformation(True, ()): None}
    possible = 2 * math.factorial(len(integers)) - 1
    for index in itertools.count():
        if len(transformations) >= min(count, possible):
            break
        permuted = rng.sample(integers, len(integers))
        if permuted != integers:
            symbols = tuple(zip(integers, permuted, strict=True))
            transformations[ListTransformation(index % 2 == 1, symbols)] = None
    return list(transformations)[:count]


def _colour_permutation(rng: random.Random) -> tuple[int, ...]:
    """A permutation of 0-9 that fixes colour 0, the background of most tasks."""
    order = list(range(1, 10))
    rng.shuffle(order)
    return (0, *order)
