"""The clock that stands still while work is paused."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from autottt.ttt_core import clock


@pytest.fixture
def now(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_the_clock_is_late_by_the_pauses(now):
    paused = [0.0]
    with clock.without_pauses(lambda: paused[0]):
        assert clock.monotonic() == 100.0
        now[0], paused[0] = 107.0, 5.0
        assert clock.monotonic() == 102.0
    assert clock.monotonic() == 107.0


def test_a_reader_shows_the_same_time_in_another_thread(now):
    times = []
    with clock.without_pauses(lambda: 30.0):
        thread = threading.Thread(target=lambda read: times.extend([read(), clock.monotonic()]), args=[clock.reader()])
        thread.start()
        thread.join()
    assert times == [70.0, 100.0]


def test_without_pauses_it_is_the_clock_of_the_system():
    assert clock.reader() is time.monotonic
