"""What an adapter is trained on: every demonstration in turn, never the query."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from autottt.ttt_core.tasks.augmentation import leave_one_out, leave_one_out_orders, shuffled, single_pairs, transformed
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.tasks.transformations import ListTransformation

TASK = make_task([([i], [i, i]) for i in range(5)], [9], answer=[9, 9], instruction="Double.", id="t")


def pair(task: Task) -> tuple[object, object]:
    return task.query, task.answer


PAIRS = [(d.input, d.output) for d in TASK.demonstrations]


def test_each_demonstration_is_left_out_once() -> None:
    found = leave_one_out(TASK)
    assert [pair(t) for t in found] == PAIRS
    for index, task in enumerate(found):
        assert [(d.input, d.output) for d in task.demonstrations] == PAIRS[:index] + PAIRS[index + 1 :]
        assert (task.instruction, task.id, task.kind) == ("Double.", "t", "list")


def test_single_pairs_have_no_demonstrations() -> None:
    found = single_pairs(TASK)
    assert [pair(t) for t in found] == PAIRS
    assert all(t.demonstrations == () for t in found)


def test_reordered_tasks_take_every_demonstration_as_the_query_in_turn() -> None:
    found = leave_one_out_orders(TASK, 15, random.Random(0))
    assert Counter(map(pair, found)) == dict.fromkeys(PAIRS, 3)
    for start in (0, 5, 10):
        assert {pair(t) for t in found[start : start + 5]} == set(PAIRS)
    for task in found:
        assert {(d.input, d.output) for d in task.demonstrations} | {pair(task)} == set(PAIRS)
        assert len(task.demonstrations) == 4
    assert len({t.demonstrations for t in found}) > 10
    assert leave_one_out_orders(TASK, 15, random.Random(0)) == found != leave_one_out_orders(TASK, 15, random.Random(1))


@pytest.mark.parametrize("make", [leave_one_out, single_pairs, lambda t: leave_one_out_orders(t, 4, random.Random(0))])
def test_no_demonstrations_make_no_examples(make: object) -> None:
    assert callable(make)
    assert make(TASK.with_demonstrations(())) == []


def test_one_demonstration_is_a_query_by_itself() -> None:
    found = leave_one_out_orders(TASK.with_demonstrations(TASK.demonstrations[:1]), 3, random.Random(0))
    assert [pair(t) for t in found] == PAIRS[:1] * 3


def test_the_query_is_in_no_example() -> None:
    for task in [*leave_one_out(TASK), *single_pairs(TASK), *leave_one_out_orders(TASK, 9, random.Random(0))]:
        assert (9,) not in {task.query, *(d.input for d in task.demonstrations)}
        assert task.answer != (9, 9)


def test_shuffling_changes_the_order_alone() -> None:
    found = [shuffled(TASK, random.Random(seed)) for seed in range(5)]
    assert all(set(t.demonstrations) == set(TASK.demonstrations) and pair(t) == pair(TASK) for t in found)
    assert len({t.demonstrations for t in found}) > 1


def test_transformations_take_turns_with_the_tasks_as_they_are() -> None:
    tasks = leave_one_out(TASK)
    back = ListTransformation(True, ())
    more = ListTransformation(False, ((0, 1), (1, 0)))
    assert transformed(tasks, [back, more]) == [
        tasks[0], tasks[1].map(back.apply), tasks[2].map(more.apply), tasks[3], tasks[4].map(back.apply),
    ]  # fmt: skip
    assert transformed(tasks, []) == tasks
