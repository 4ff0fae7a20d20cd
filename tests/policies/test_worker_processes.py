"""Worker processes end with the process that started them, and where its block raises."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from autottt.policies.worker_processes import worker_pool

PATIENCE = 60
"""Seconds after which a process counts as one that does not end."""
PARENT = """
import os, time
from autottt.policies.worker_processes import worker_pool

if __name__ == "__main__":
    with worker_pool(2) as pool:
        busy = [pool.submit(os.getpid) for _ in range(8)]
        print(*sorted({one.result() for one in busy}), flush=True)
        pool.submit(time.sleep, 3600)
        time.sleep(3600)
"""


def ends(process: int) -> bool:
    """Whether a process ends in time."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_process_that_is_killed(tmp_path, kill):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(number) for number in parent.stdout.readline().split()]
        assert workers
        parent.send_signal(kill)
        assert all(map(ends, workers))


def test_a_block_that_raises_does_not_wait_for_the_work_of_its_pool():
    began = time.monotonic()

    def work() -> None:
        with worker_pool(1) as pool:
            pool.submit(time.sleep, 3600)
            raise LookupError

    with pytest.raises(LookupError):
        work()
    assert time.monotonic() - began < PATIENCE


def test_a_worker_begins_with_the_initializer():
    with worker_pool(1, os.putenv, "AUTOTTT_BEGAN", "1") as pool:
        assert pool.submit(os.system, 'test "$AUTOTTT_BEGAN" = 1').result() == 0
