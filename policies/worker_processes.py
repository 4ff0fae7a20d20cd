"""Processes that work for this one and end with it. Knows nothing about what they do."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from ctypes import c_bool
from typing import Any

POLL = 0.5
"""Seconds between two looks at whether the parent still runs."""


@contextmanager
def worker_pool(
    workers: int, initializer: Callable[..., object] | None = None, *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """A pool of new processes, each of which begins with `initializer(*arguments)`. They ignore Ctrl-C, which this
    process receives too, and exit at once where the block raises or this process ends, however it ends."""
    context = multiprocessing.get_context("spawn")
    stop = context.RawValue(c_bool, False)  # no lock, which a dead worker might hold
    with ProcessPoolExecutor(workers, context, _start, (stop, initializer, arguments)) as pool:
        try:
            yield pool
        except BaseException:
            stop.value = True
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _start(stop: Any, initializer: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(stop,), daemon=True).start()
    if initializer is not None:
        initializer(*arguments)


def _exit_with_parent(stop: Any) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    while parent.is_alive() and not stop.value:
        time.sleep(POLL)
    os._exit(1)
