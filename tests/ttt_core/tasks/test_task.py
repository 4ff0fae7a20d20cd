"""Tasks are values: every change gives a new one."""

from __future__ import annotations

import dataclasses

import pytest

from autottt.ttt_core.tasks.task import Demonstration, Task

TASK = Task(
    kind="list",
    demonstrations=(Demonstration((1,), (2,)), Demonstration((3,), (4,)), Demonstration((5,), (6,))),
    query=(7,),
    answer=(8,),
    instruction="Add one.",
    id="add#0",
    family="add",
    dataset="mine",
    group="add",
)


def negated(value):
    return tuple(-x for x in value)


def test_a_demonstration_is_mapped_on_both_sides():
    assert Demonstration((1,), (2,)).map(negated) == Demonstration((-1,), (-2,))


def test_a_task_is_mapped_in_every_value_and_in_nothing_else():
    mapped = TASK.map(negated)
    assert mapped.demonstrations[2] == Demonstration((-5,), (-6,))
    assert (mapped.query, mapped.answer) == ((-7,), (-8,))
    assert mapped.map(negated) == TASK


def test_an_unknown_answer_stays_unknown_when_mapped():
    assert dataclasses.replace(TASK, answer=None).map(negated).answer is None


def test_an_empty_answer_is_an_answer():
    assert dataclasses.replace(TASK, answer=()).map(negated).answer == ()


def test_replacing_demonstrations_changes_nothing_else():
    changed = TASK.with_demonstrations(TASK.demonstrations[:1])
    assert changed.demonstrations == (Demonstration((1,), (2,)),)
    assert changed.with_demonstrations(TASK.demonstrations) == TASK


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_demonstration_left_out_becomes_the_query(index):
    held = TASK.leave_out(index)
    assert Demonstration(held.query, held.answer) == TASK.demonstrations[index]
    assert set(held.demonstrations) == set(TASK.demonstrations) - {TASK.demonstrations[index]}
    assert len(held.demonstrations) == 2
    assert (held.kind, held.instruction, held.family, held.group) == ("list", "Add one.", "add", "add")


def test_the_only_demonstration_can_be_left_out():
    assert TASK.with_demonstrations(TASK.demonstrations[:1]).leave_out(0).demonstrations == ()


def test_leaving_out_a_demonstration_that_is_not_there_is_an_index_error():
    with pytest.raises(IndexError):
        TASK.leave_out(3)


def test_a_task_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TASK.id = "other"


def test_equal_tasks_are_interchangeable():
    assert len({TASK, dataclasses.replace(TASK)}) == 1
