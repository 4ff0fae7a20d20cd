"""The queue by priority, and the precedence of reading over training."""

from __future__ import annotations

import threading

import pytest

from autottt.controller.scheduler.precedence import AGEING, Precedence, PriorityQueue
from autottt.ttt_core import clock


def in_order(queue):
    return list(iter(queue.take, None))


def test_entries_come_by_priority_and_then_by_arrival():
    queue = PriorityQueue()
    for item, priority in (("usual", 0), ("later", 1), ("usual too", 0), ("first", -1), ("last", 2)):
        queue.put(item, priority)
    assert queue.items() == in_order(queue) == ["first", "usual", "usual too", "later", "last"]


@pytest.mark.parametrize("levels", [1, 3])
def test_an_entry_is_overtaken_by_so_many_later_ones_and_no_more(levels):
    queue, order = PriorityQueue(), []
    queue.put("patient", levels)
    for number in range(10 * AGEING):
        queue.put(number)
        queue.put(f"also {number}")
        order.append(queue.take())
        if order[-1] == "patient":
            break
    overtook = [item for item in [*order, *queue.items()] if item != "patient"]
    assert order[-1] == "patient"
    assert len(order) - 1 <= levels * AGEING < len(overtook)


def test_the_first_entries_are_taken_together():
    queue = PriorityQueue()
    for item in (3, 4, 5, 7, 9):
        queue.put(item)
    assert queue.take_up_to(3) == [3, 4, 5]
    assert queue.items() == [7, 9]
    assert not queue.remove(3)
    assert queue.remove(9)
    assert queue.take_up_to(3) == [7]
    assert queue.take_up_to(3) == []


def test_training_pauses_while_there_is_something_to_read_and_the_clock_stands_still():
    precedence, passed = Precedence(), threading.Event()
    precedence.pause()
    precedence.begin_reading()
    with clock.without_pauses(precedence.paused_seconds):
        read = clock.reader()

    def train():
        precedence.pause()
        passed.set()

    threads = [threading.Thread(target=train) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not precedence.is_training_paused:
        threading.Event().wait(0.001)
    before = read()
    assert not passed.wait(0.2)
    assert read() == pytest.approx(before, abs=0.01)
    precedence.end_reading()
    for thread in threads:
        thread.join()
    assert precedence.paused_seconds() >= 0.2
    assert precedence.pauses >= 1
    after = precedence.paused_seconds()
    precedence.pause()
    assert precedence.paused_seconds() == after


def test_training_continues_for_a_while_although_there_is_something_to_read():
    precedence, passes = Precedence(), []
    precedence.begin_reading()

    def train():
        for _ in range(3):
            precedence.pause()
            passes.append(precedence.is_training_paused)

    thread = threading.Thread(target=train)
    thread.start()
    while thread.is_alive():
        precedence.let_through(0.01)
    assert len(passes) == 3
