"""Every transformation can be undone, and no two of them have the same effect."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import strategies as st

from autottt.ttt_core.tasks.kinds import KINDS, make_task
from autottt.ttt_core.tasks.task import Task, Value
from autottt.ttt_core.tasks.transformations import GridTransformation, IdentityTransformation, ListTransformation
from tests.ttt_core.tasks.values import VALUES, every_kind, for_all, grids


@st.composite
def tasks(draw: st.DrawFn, kind: str) -> Task:
    values = VALUES[kind]
    inputs = values.filter(lambda value: kind != "text" or bool(str(value).strip()))  # an empty pair is refused
    pairs = draw(st.lists(st.tuples(inputs, values), max_size=3))
    return make_task(pairs, draw(values), kind=kind)


def values_of(task: Task) -> list[Value]:
    return [v for d in task.demonstrations for v in (d.input, d.output)] + [task.query]


@every_kind
@for_all(data=st.data(), count=st.integers(0, 8), seed=st.integers(0, 99))
def test_every_transformation_can_be_undone(kind, data, count, seed):
    task = data.draw(tasks(kind))
    others = [KINDS[kind].check(raw) for raw in data.draw(st.lists(VALUES[kind], max_size=3))]
    for transformation in KINDS[kind].transformations(task, count, random.Random(seed)):
        for value in values_of(task) + others:
            changed = transformation.apply(value)
            assert KINDS[kind].check(changed) == changed
            assert transformation.invert(changed) == value


@every_kind
@for_all(data=st.data())
def test_the_same_seed_gives_the_same_transformations(kind, data):
    task = data.draw(tasks(kind))
    first, second = (KINDS[kind].transformations(task, 5, random.Random(3)) for _ in range(2))
    assert first == second


def effect(apply: Callable[[Value], Value], kind: str, task: Task) -> tuple[Value, ...]:
    """What tells one transformation from another: where each symbol goes, and where each place goes."""
    if kind == "list":
        numbers = sorted({x for v in values_of(task) for x in v} | {0, 1})
        return (apply(tuple(numbers)), *(apply((x,)) for x in numbers))
    shape = (tuple(range(5)), tuple(range(5, 10))) if kind == "grid" else (tuple(range(10)),)
    return (apply(shape), *(apply(((c,),)) for c in range(10)))


@pytest.mark.parametrize("kind", ["grid", "grid1d", "list"])
@for_all(data=st.data(), count=st.integers(0, 12), seed=st.integers(0, 99))
def test_transformations_differ_from_each_other_and_from_the_identity(kind, data, count, seed):
    task = data.draw(tasks(kind))
    transformations = KINDS[kind].transformations(task, count, random.Random(seed))
    effects = [effect(t.apply, kind, task) for t in transformations]
    assert len(set(effects)) == len(effects) <= count
    assert effect(IdentityTransformation().apply, kind, task) not in effects
    assert "identity" not in [t.name for t in transformations]


class Unshuffled(random.Random):
    """A generator that leaves every order as it is."""

    def shuffle(self, x):
        pass


def test_a_colour_permutation_that_changes_nothing_is_left_out():
    for kind in ("grid", "grid1d"):
        transformations = KINDS[kind].transformations(make_task([], [[1]], kind=kind), 6, Unshuffled())
        assert "identity" not in [t.name for t in transformations]


@for_all(data=st.data(), count=st.integers(0, 12), seed=st.integers(0, 99))
def test_a_grid_has_the_requested_number_of_transformations(data, count, seed):
    for kind in ("grid", "grid1d"):
        assert len(KINDS[kind].transformations(data.draw(tasks(kind)), count, random.Random(seed))) == count


@for_all(data=st.data(), count=st.integers(0, 12), seed=st.integers(0, 99))
def test_a_list_has_as_many_transformations_as_its_numbers_allow(data, count, seed):
    task = data.draw(tasks("list"))
    numbers = {x for v in values_of(task) for x in v}
    possible = 2 * math.factorial(len(numbers)) - 1
    assert len(KINDS["list"].transformations(task, count, random.Random(seed))) == min(count, possible)


@for_all(task=tasks("text"))
def test_a_text_has_no_transformations(task):
    assert KINDS["text"].transformations(task, 4, random.Random(0)) == []


@for_all(grid=grids(), turns=st.integers(0, 3), flip=st.booleans(), colours=st.permutations(range(10)))
def test_a_grid_transformation_with_any_settings_can_be_undone(grid, turns, flip, colours):
    transformation = GridTransformation(turns, flip, tuple(colours))
    value = KINDS["grid"].check(grid)
    assert transformation.invert(transformation.apply(value)) == value


def test_a_grid_transformation_turns_clockwise_then_flips_then_recolours():
    value = ((1, 2), (3, 4))
    plain, swapped = tuple(range(10)), (0, 2, 1, *range(3, 10))
    assert GridTransformation(1, False, plain).apply(value) == ((3, 1), (4, 2))
    assert GridTransformation(0, True, plain).apply(value) == ((2, 1), (4, 3))
    assert GridTransformation(1, True, swapped).apply(value) == ((2, 3), (1, 4))


def test_background_keeps_its_colour():
    task = make_task([], [[0, 3]])
    assert all(t.apply(((0,),)) == ((0,),) for t in KINDS["grid"].transformations(task, 20, random.Random(0)))


def test_a_transformation_is_named_after_what_it_does():
    plain = tuple(range(10))
    assert GridTransformation(0, False, plain).name == "identity"
    assert GridTransformation(1, True, plain).name == "turn90+flip"
    assert GridTransformation(2, False, (0, 2, 1, *range(3, 10))).name == "turn180+colours0213456789"
    assert ListTransformation(True, ()).name == "reverse"
    assert ListTransformation(True, ((1, 2), (2, 1))).name == "reverse+symbols"
    assert ListTransformation(False, ()).name == IdentityTransformation().name == "identity"


def test_a_list_transformation_leaves_other_numbers_as_they_are():
    swap = ListTransformation(True, ((1, 2), (2, 1)))
    assert swap.apply((1, 2, 9)) == (9, 1, 2)
    assert swap.invert((9, 1, 2)) == (1, 2, 9)
