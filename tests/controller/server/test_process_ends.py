"""Process groups of children, and shutdowns that are bounded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from autottt.controller.server.process_ends import children_in_own_groups, finish

PARENT = """
import os, signal, subprocess, sys
from autottt.controller.server.process_ends import children_in_own_groups

def child():
    command = [sys.executable, "-c", "print('up', flush=True); input(); print('ended in order', flush=True)"]
    return subprocess.Popen(command, stdin=-1, stdout=-1, text=True, preexec_fn=lambda: None)

def stop(*_):
    print(*(each.communicate("\\n")[0].strip() or each.returncode for each in (inside, outside)), flush=True)
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
with children_in_own_groups():
    inside = child()
outside = child()
for each in (inside, outside):
    each.stdout.readline()
print("ready", flush=True)
signal.pause()
"""


@pytest.mark.skipif(not hasattr(os, "setpgrp"), reason="there are no process groups")
def test_a_signal_to_the_group_leaves_children_with_groups_of_their_own_to_their_parent():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    os.killpg(parent.pid, signal.SIGTERM)
    printed, _ = parent.communicate(timeout=60)
    assert printed == f"ended in order {-signal.SIGTERM}\n"
    assert parent.returncode == 0


@pytest.mark.skipif(not hasattr(os, "setpgrp"), reason="there are no process groups")
def test_children_after_the_body_stay_in_the_group():
    with children_in_own_groups():
        pass
    command = [sys.executable, "-c", "import os; print(os.getpgrp())"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, preexec_fn=lambda: None)
    assert int(done.stdout) == os.getpgrp()


def test_work_that_is_done_is_waited_for_and_its_error_is_raised():
    done = threading.Event()
    assert finish(done.set, seconds=60, is_possible=lambda: True)
    assert done.is_set()
    with pytest.raises(ValueError, match="no such application"):
        finish(
            lambda: (_ for _ in ()).throw(ValueError("no such application")).__next__(), seconds=60, is_possible=bool
        )


@pytest.mark.parametrize(("seconds", "is_possible"), [(0.0, True), (600.0, False)])
def test_work_is_given_up_after_its_time_or_when_it_is_not_possible(seconds, is_possible):
    release = threading.Event()
    try:
        assert not finish(release.wait, seconds=seconds, is_possible=lambda: is_possible)
    finally:
        release.set()
