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
    prompts = leave_one_out(TASK)
    assert [pair(t) for t in prompts] == PAIRS
    for index, task in enumerate(prompts):
        assert [(d.input, d.output) for d in task.demonstrations] == PAIRS[:index] + PAIRS[index + 1 :]
        assert (task.instruction, task.id, task.kind) == ("Double.", "t", "list")


def test_single_pairs_have_no_demonstrations() -> None:
    prompts = single_pairs(TASK)
    assert [pair(t) for t in prompts] == PAIRS
    assert all(t.demonstrations == () for t in prompts)


def test_reordered_tasks_take_every_demonstration_as_the_query_in_turn() -> None:
    prompts = leave_one_out_orders(TASK, 15, random.Random(0))
    assert Counter(map(pair, prompts)) == dict.fromkeys(PAIRS, 3)
    for start in (0, 5, 10):
        assert {pair(t) for t in prompts[start : start + 5]} == set(PAIRS)
    for task in prompts:
        assert {(d.input, d.output) for d in task.demonstrations} | {pair(task)} == set(PAIRS)
        assert len(task.demonstrations) == 4
    assert len({t.demonstrations for t in prompts}) > 10
    assert (
        leave_one_out_orders(TASK, 15, random.Random(0)) == prompts != leave_one_out_orders(TASK, 15, random.Random(1))
    )


@pytest.mark.parametrize("make", [leave_one_out, single_pairs, lambda t: leave_one_out_orders(t, 4, random.Random(0))])
def test_no_demonstrations_make_no_examples(make: object) -> None:
    assert callable(make)
    assert make(TASK.with_demonstrations(())) == []


def test_one_demonstration_is_a_query_by_itself() -> None:
    prompts = leave_one_out_orders(TASK.with_demonstrations(TASK.demonstrations[:1]), 3, random.Random(0))
    assert [pair(t) for t in prompts] == PAIRS[:1] * 3


def test_the_query_is_in_no_example() -> None:
    for task in [*leave_one_out(TASK), *single_pairs(TASK), *leave_one_out_orders(TASK, 9, random.Random(0))]:
        assert (9,) not in {task.query, *(d.input for d in task.demonstrations)}
        assert task.answer != (9, 9)


def test_shuffling_changes_the_order_alone() -> None:
    prompts = [shuffled(TASK, random.Random(seed)) for seed in range(5)]
    assert all(set(t.demonstrations) == set(TASK.demonstrations) and pair(t) == pair(TASK) for t in prompts)
    assert len({t.demonstrations for t in prompts}) > 1


def test_transformations_take_turns_with_the_tasks_as_they_are() -> None:
    tasks = leave_one_out(TASK)
    back = ListTransformation(True, ())
    more = ListTransformation(False, ((0, 1), (1, 0)))
    assert transformed(tasks, [back, more]) == [
        tasks[0], tasks[1].map(back.apply), tasks[2].map(more.apply), tasks[3], tasks[4].map(back.apply),
    ]  # fmt: skip
    assert transformed(tasks, []) == tasks
