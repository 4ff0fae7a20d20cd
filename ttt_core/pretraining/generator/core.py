"""Defines primitives, domains and families, and draws the input-output pairs of a task. Knows no primitive itself.

A domain (lists, rows, grids, strings) has scenes, which sample inputs, and primitives, which sample one operation each.
A family is a scene and a chain of primitives; a task is a family with sampled parameters and inputs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Operation = Callable[[Any], Any]
"""Maps a value to a value. Raises `Reject` if it is not defined for the value."""


class Reject(Exception):
    """The sampled task is not usable (an empty selection, an output too large); sample again."""


OPERATION_ERRORS = (Reject, ArithmeticError, LookupError, TypeError, ValueError)
"""Errors that an operation may raise on an input from a scene that is not one of its own."""
ALTERNATIVE_DRAWS = 8
"""Further draws of a chain's parameters that a strict task is compared with, to detect ambiguity."""


@dataclass(frozen=True)
class Primitive:
    """One parametrised operation; `draw` samples the parameters."""

    name: str
    """Unique within the domain, such as `rotate`."""
    draw: Callable[[random.Random], Operation]
    """Samples the parameters of one task and returns the operation, which must be deterministic."""
    scenes: tuple[str, ...] = ()
    """Scenes with suitable inputs; empty: all."""
    held_out: bool = False
    """Excluded from pre-training and reserved for policy training."""
    weight: float = 1.0
    """Relative frequency within its domain."""
    also_benchmark: str = ""
    """The public benchmark with a family of this kind, if any; `Domain.solves` has what was measured."""
    about: str = ""
    """What it does, if its name does not say it."""


@dataclass(frozen=True)
class Domain:
    """The scenes and primitives of one kind of task."""

    name: str
    kind: str
    """The kind of its tasks (see `autottt.ttt_core.tasks.kinds`)."""
    scenes: Mapping[str, Callable[[random.Random], Callable[[], Any]]]
    """Name -> function that samples the settings of a task (such as a range of values); returns a sampler of inputs."""
    primitives: tuple[Primitive, ...]
    to_value: Callable[[Any], Any]
    """From the domain's own representation to the kind's canonical value."""
    valid: Callable[[Any], bool]
    """Whether a value is small enough and of the right form to be an input or an output."""
    origin: str = ""
    """Source of its scenes and primitives."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Scene -> description of its inputs."""
    also_benchmark: Mapping[str, str] = field(default_factory=dict)
    """Scene -> the public benchmark with inputs of this form, and its families, if any."""
    solves: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Public set -> primitives that alone solve tasks of its open part, as measured by benchmarks/families.py."""


@dataclass(frozen=True)
class Family:
    """A scene and a chain of primitives."""

    domain: Domain
    scene: str
    chain: tuple[Primitive, ...]

    @property
    def name(self) -> str:
        return f"{self.domain.name}/{self.scene}/" + ">".join(p.name for p in self.chain)


def draw_pairs(family: Family, count: int, rng: random.Random, strict: bool = False) -> list[tuple[Any, Any]]:
    """`count` input-output pairs of one task of the family, as canonical values; all inputs are different.

    Raises `Reject` if the task is trivial (outputs equal to inputs), constant, or has too few valid inputs; with
    `strict`, also if it is ambiguous or a part of its chain solves it (see `strict_fault`).
    """
    sample = family.domain.scenes[family.scene](rng)
    operations = [p.draw(rng) for p in family.chain]
    inputs: list[Any] = []
    pairs: dict[Any, Any] = {}
    unchanged = 0
    for _ in range(4 * count + 8):
        value = sample()
        source = family.domain.to_value(value)
        if source in pairs:
            continue
        try:
            result = apply_chain(operations, value)
        except Reject:
            continue
        if not family.domain.valid(result):
            continue
        target = family.domain.to_value(result)
        if target == source:
            unchanged += 1
            if unchanged > 1 + count // 2:
                raise Reject("trivial")
        pairs[source] = target
        inputs.append(value)
        if len(pairs) == count:
            break
    else:
        raise Reject("too few valid inputs")
    if len(set(pairs.values())) <= max(1, count // 3):
        raise Reject("constant")
    if strict and (fault := strict_fault(family, operations, inputs, list(pairs.values()), rng)):
        raise Reject(fault)
    return list(pairs.items())


def apply_chain(operations: Sequence[Operation], value: Any) -> Any:
    """Applies the operations in order. Raises `Reject` if one of them does."""
    for operation in operations:
        value = operation(value)
    return value


def strict_fault(
    family: Family, operations: Sequence[Operation], inputs: Sequence[Any], targets: Sequence[Any], rng: random.Random
) -> str | None:
    """Why the pairs of a task do not determine its rule, or None.

    "needless": without one of its operations the chain gives the same outputs, so the task belongs to a shorter chain.
    "ambiguous": without one of its operations, or with other parameters (`ALTERNATIVE_DRAWS` draws), the chain gives
    all outputs but one; with that pair as the query, the demonstrations would not tell the two rules apart.
    """
    shorter = [[o for k, o in enumerate(operations) if k != left_out] for left_out in range(len(operations))]
    redrawn = [[p.draw(rng) for p in family.chain] for _ in range(ALTERNATIVE_DRAWS)]
    for alternatives in (shorter, redrawn):
        for alternative in alternatives:
            differences = 0
            for value, target in zip(inputs, targets, strict=True):
                differences += not _maps_to(alternative, family.domain, value, target)
                if differences > 1:
                    break
            if differences == 1:
                return "ambiguous"
            if differences == 0 and alternatives is shorter:
                return "needless"
    return None


def _maps_to(operations: Sequence[Operation], domain: Domain, value: Any, target: Any) -> bool:
    try:
        return bool(domain.to_value(apply_chain(operations, value)) == target)
    except OPERATION_ERRORS:
        return False
