"""How processes that belong together end: groups of their own for children, and a shutdown that is bounded.

Knows nothing about Ray, which needs both.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_POLL_SECONDS = 0.5
_in_own_group = False
_is_registered = False


@contextmanager
def children_in_own_groups() -> Iterator[None]:
    """Processes that are started in the body with a `preexec_fn` lead process groups of their own.

    A signal to this process's group, as shells and supervisors send it, then reaches this process alone, which ends its
    children in order.
    """
    global _in_own_group, _is_registered
    if not _is_registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_lead_a_group)
        _is_registered = True
    _in_own_group = True
    try:
        yield
    finally:
        _in_own_group = False


def _lead_a_group() -> None:
    """Called in each child between fork and exec."""
    if _in_own_group:
        os.setpgrp()


def finish(work: Callable[[], object], *, seconds: float, is_possible: Callable[[], bool]) -> bool:
    """Does work in a thread and returns whether it was done. Raises what it raises.

    It is given up after `seconds`, or once `is_possible` says so: the thread, which does not keep the process alive, is
    then left behind.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="autottt-finish", daemon=True)
    ends = time.monotonic() + seconds
    thread.start()
    while thread.is_alive():
        thread.join(max(0.0, min(_POLL_SECONDS, ends - time.monotonic())))
        if thread.is_alive() and (time.monotonic() >= ends or not is_possible()):
            return False
    if errors:
        raise errors[0]
    return True
