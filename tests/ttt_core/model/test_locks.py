"""Turns at a model: nesting, waiting, other threads, signals at any instruction, and forked processes."""

from __future__ import annotations

import contextvars
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from torch import nn

from autottt.ttt_core.errors import ModelError
from autottt.ttt_core.model.locks import ModelLock, lock_of


class Stop(Exception):
    pass


def is_free(lock: ModelLock) -> bool:
    """Whether another thread gets its turn within a second."""
    taken = threading.Event()

    def take() -> None:
        with lock.exclusive():
            taken.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(1)
    return taken.is_set()


def test_learners_around_one_model_share_its_lock() -> None:
    model, other = nn.Linear(1, 1), nn.Linear(1, 1)
    assert lock_of(model) is lock_of(model)
    assert lock_of(model) is not lock_of(other)


def test_a_turn_excludes_other_threads_and_nests_in_its_own_context() -> None:
    lock = ModelLock()
    with lock.exclusive():
        with lock.exclusive():
            assert not is_free(lock)
        assert not is_free(lock), "the inner turn ended, the outer one did not"
        inherited = contextvars.copy_context()

        def is_nested() -> None:
            with lock.exclusive():
                pass

        nested = threading.Thread(target=lambda: inherited.run(is_nested))
        nested.start()
        nested.join(1)
        assert not nested.is_alive(), "a node in another thread belongs to the turn of its run"
    assert is_free(lock)


def test_callers_inside_one_turn_wait_for_each_other() -> None:
    lock = ModelLock()
    with lock.exclusive():
        inherited = contextvars.copy_context()
        began, ends = threading.Event(), threading.Event()

        def take() -> None:
            with lock.exclusive():
                with lock.exclusive():
                    began.set()
                ends.wait(5)

        thread = threading.Thread(target=lambda: inherited.run(take))
        thread.start()
        assert began.wait(5)
        with pytest.raises(Stop), lock.exclusive(_stop):
            pytest.fail("the other caller's turn has not ended")
        ends.set()
        thread.join()
        with lock.exclusive():
            assert not is_free(lock)
    assert is_free(lock)


def test_an_inner_turn_that_outlives_the_outer_one_still_excludes_others() -> None:
    lock = ModelLock()
    began, ends = threading.Event(), threading.Event()

    def take() -> None:
        with lock.exclusive():
            began.set()
            ends.wait(5)

    with lock.exclusive():
        thread = threading.Thread(target=contextvars.copy_context().run, args=[take])
        thread.start()
        assert began.wait(5)
    assert not is_free(lock)
    with pytest.raises(Stop), lock.exclusive(_stop):
        pytest.fail("the inner turn has not ended")
    ends.set()
    thread.join()
    assert is_free(lock)


def test_a_waiting_caller_may_give_up() -> None:
    lock = ModelLock()
    calls: list[int] = []

    def give_up() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Stop

    def wait() -> None:
        with pytest.raises(Stop), lock.exclusive(give_up):
            pytest.fail("the turn is held")

    with lock.exclusive():
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(2)
    assert len(calls) == 2
    assert is_free(lock)


def test_a_generator_that_is_closed_in_another_thread_leaves_no_owner() -> None:
    lock = ModelLock()

    def stream() -> Iterator[int]:
        with lock.exclusive():
            yield 1
            yield 2

    events = stream()
    next(events)
    thread = threading.Thread(target=events.close)  # type: ignore[attr-defined]
    thread.start()
    thread.join()
    assert is_free(lock)
    blocker = threading.Event()

    def hold() -> None:
        with lock.exclusive():
            blocker.wait(5)

    holder = threading.Thread(target=hold)
    holder.start()
    while lock.owner() is None:
        time.sleep(0.001)
    with pytest.raises(Stop), lock.exclusive(_stop):
        pytest.fail("this thread's turn ended when the generator was closed")
    blocker.set()
    holder.join()


def _stop() -> None:
    raise Stop


def test_a_caller_is_told_whether_others_wait_for_its_turn() -> None:
    lock, other, seen = ModelLock(), ModelLock(), list[bool]()
    with lock.exclusive():
        assert lock.is_held_by_caller()
        assert not other.is_held_by_caller()
        outside = threading.Thread(target=lambda: seen.append(lock.is_held_by_caller()))
        outside.start()
        outside.join()
    assert seen == [False]
    assert not lock.is_held_by_caller()


def test_a_turn_that_is_dropped_without_an_end_is_worth_nothing() -> None:
    lock = ModelLock()
    turn = lock.exclusive()
    contextvars.copy_context().run(turn.__enter__)
    assert not is_free(lock)
    del turn
    assert is_free(lock)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
def test_a_signal_at_any_instruction_leaves_the_lock_free() -> None:
    lock, kept = ModelLock(), []

    def interrupt(*_: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGALRM, interrupt)
    interrupted, ends = 0, time.monotonic() + 4
    try:
        for number in range(1_000_000):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + number % 97 * 1e-6)
                for _ in range(60):
                    with lock.exclusive():
                        pass
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Stop as error:
                kept[:] = [error]  # its traceback keeps all frames
                interrupted += 1
                assert lock.owner() is None
            if time.monotonic() > ends:
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 500
    assert is_free(lock)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("computing", [False, True])
def test_a_forked_process_does_not_wait_for_a_thread_that_it_has_not(computing: bool) -> None:
    model = nn.Linear(1, 1)
    lock = lock_of(model)
    holds, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock.exclusive():
            if computing:
                with lock.compute:
                    holds.set()
                    done.wait(10)
            holds.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    holds.wait()
    child = os.fork()
    if child == 0:
        try:
            with lock.exclusive():
                os._exit(10)
        except ModelError as error:
            os._exit(11 if "forked while another thread used the model" in str(error) else 12)
        finally:
            os._exit(13)
    ends = time.monotonic() + 10
    status = (0, 0)
    while status[0] == 0 and time.monotonic() < ends:
        status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    done.set()
    thread.join()
    if status[0] == 0:
        os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(status[1]) == (11 if computing else 10)
    assert is_free(lock)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("model", "threads"), [("nn.Linear(1, 1)", 1), ("None", 2)])
def test_a_process_that_is_forked_after_a_model_was_used_computes_with_one_thread(model: str, threads: int) -> None:
    """The threads of PyTorch's pool end with the fork: work for them would wait for ever."""
    code = f"""
import os, torch
from torch import nn
from autottt.ttt_core.model.locks import lock_of
torch.set_num_threads(2)
model = {model}
lock = model and lock_of(model)
child = os.fork()
if child == 0:
    os._exit(10 + torch.get_num_threads())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.get_num_threads())
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout.split()) == (0, [str(10 + threads), "2"]), run.stderr
