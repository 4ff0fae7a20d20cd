"""What a primitive, a domain and a family are, and how a task is drawn from a family. Knows no primitive itself.

A domain (lists, rows, grids, strings) offers scenes, which draw inputs, and primitives, which draw one operation.
A family is a named scene and chain of primitives; a task is a family with its parameters and inputs drawn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Operation = Callable[[Any], Any]
"""From one value to another. Raises `Reject` where it makes no sense on this value."""


class Reject(Exception):
    """This draw makes no sense (an empty selection, an output too large); draw again."""


BEYOND = (Reject, ArithmeticError, LookupError, TypeError, ValueError)
"""What an operation may raise on an input that no scene of its own draws."""
RIVALS = 8
"""Other draws of a chain's parameters that a task is held against where it must not be ambiguous."""


@dataclass(frozen=True)
class Primitive:
    """One general operation with its parameters still open."""

    name: str
    """Unique within the domain, such as `rotate`."""
    draw: Callable[[random.Random], Operation]
    """Draws the parameters of one task and returns the operation, which must be deterministic."""
    scenes: tuple[str, ...] = ()
    """Scenes whose inputs suit it, where not all do."""
    held_out: bool = False
    """Never used in pre-training: kept for policy training."""
    weight: float = 1.0
    """How often it is drawn, against the others of its domain."""
    also_benchmark: str = ""
    """The public benchmark that has a family of this kind, where one does; `Domain.solves` says what was measured."""
    about: str = ""
    """What it does, where its name misleads."""


@dataclass(frozen=True)
class Domain:
    """Everything drawn for one kind of task."""

    name: str
    kind: str
    """The kind of task (see `autottt.ttt_core.tasks.kinds`) that its values become."""
    scenes: Mapping[str, Callable[[random.Random], Callable[[], Any]]]
    """Name -> draws what is common to a task (such as a range of values), returns a sampler of inputs."""
    primitives: tuple[Primitive, ...]
    to_value: Callable[[Any], Any]
    """From the domain's own representation to the kind's canonical value."""
    valid: Callable[[Any], bool]
    """Whether a value is small enough and of the right form to be an input or an output."""
    origin: str = ""
    """Where its scenes and primitives come from."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Scene -> what its inputs are."""
    also_benchmark: Mapping[str, str] = field(default_factory=dict)
    """Scene -> the public benchmark with inputs of this form, and its families, where there is one."""
    solves: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Public set -> primitives that solve tasks of its open part alone, as benchmarks/families.py found."""


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
    """`count` input-output pairs of one task of the family, in canonical values, all inputs different.

    Raises `Reject` when the task is trivial (outputs equal to inputs), constant, or cannot be drawn; where `strict`,
    also when it is ambiguous, or is what a part of its chain does alone (see `rejected_as`).
    """
    sample = family.domain.scenes[family.scene](rng)
    operations = [p.draw(rng) for p in family.chain]
    inputs: list[Any] = []
    pairs: dict[Any, Any] = {}
    unchanged = 0
    for _ in range(4 * count + 8):
        given = sample()
        source = family.domain.to_value(given)
        if source in pairs:
            continue
        try:
            value = applied(operations, given)
        except Reject:
            continue
        if not family.domain.valid(value):
            continue
        target = family.domain.to_value(value)
        if target == source:
            unchanged += 1
            if unchanged > 1 + count // 2:
                raise Reject("trivial")
        pairs[source] = target
        inputs.append(given)
        if len(pairs) == count:
            break
    else:
        raise Reject("too few valid inputs")
    if len(set(pairs.values())) <= max(1, count // 3):
        raise Reject("constant")
    if strict and (fault := rejected_as(family, operations, inputs, list(pairs.values()), rng)):
        raise Reject(fault)
    return list(pairs.items())


def applied(operations: Sequence[Operation], value: Any) -> Any:
    """What operations, one after the other, make of a value. Raises `Reject` where one of them does."""
    for operation in operations:
        value = operation(value)
    return value


def rejected_as(
    family: Family, operations: Sequence[Operation], inputs: Sequence[Any], targets: Sequence[Any], rng: random.Random
) -> str | None:
    """Why the pairs of a task do not tell what is asked of whoever reads them; None where nothing is found.

    "needless": without one of its operations the chain gives the same outputs, so it is a shorter task by another name.
    "ambiguous": without one of its operations, or with other parameters (`RIVALS` draws), it gives all outputs but one,
    so that if this one were asked for, the others would not tell between the two.
    """
    shorter = [[o for k, o in enumerate(operations) if k != left_out] for left_out in range(len(operations))]
    rivals = [[p.draw(rng) for p in family.chain] for _ in range(RIVALS)]
    for parts in (shorter, rivals):
        for rival in parts:
            wrong = 0
            for given, target in zip(inputs, targets, strict=True):
                wrong += not _gives(rival, family.domain, given, target)
                if wrong > 1:
                    break
            if wrong == 1:
                return "ambiguous"
            if wrong == 0 and parts is shorter:
                return "needless"
    return None


def _gives(operations: Sequence[Operation], domain: Domain, value: Any, target: Any) -> bool:
    try:
        return bool(domain.to_value(applied(operations, value)) == target)
    except BEYOND:
        return False
