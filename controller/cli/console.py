"""Where the commands print: two consoles that escape control characters and never wrap lines off a terminal."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

if TYPE_CHECKING:
    from ...ttt_core.tasks.readers import Problem

UNWRAPPED_WIDTH = 100_000
"""Columns of a console that is not a terminal: no line is so long."""
_ESCAPED = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories of characters that may change how a terminal shows the text around them."""
_JOINERS = "\u200c\u200d"
"""Format characters that spelling needs: they join letters and emoji."""


def escaped(text: str, keep: str = "\n") -> str:
    """The text with control characters, text-direction marks and other invisible characters written as `\\uXXXX`.

    >>> escaped("id\\x1b[31m")
    'id\\\\u001b[31m'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or not _needs_escape(c) else _escape(c) for c in text)


def _needs_escape(character: str) -> bool:
    return unicodedata.category(character) in _ESCAPED and character not in _JOINERS


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class SafeConsole(Console):
    """A console whose text is `escaped`, and whose lines are wrapped on a terminal only."""

    @property
    def size(self) -> ConsoleDimensions:
        """The size of the terminal; off a terminal, one that wraps nothing."""
        return super().size if self.is_terminal else ConsoleDimensions(UNWRAPPED_WIDTH, 25)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable, escaped."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escaped(segment.text), segment.style)


screen = SafeConsole(markup=False, emoji=False, highlight=False)
errors = SafeConsole(markup=False, emoji=False, highlight=False, stderr=True)


def warn(text: str) -> None:
    """Prints one line on standard error."""
    errors.print(Text(escaped(text, keep=""), style="yellow"), soft_wrap=True)


def note(text: str) -> None:
    """Prints text on standard error."""
    errors.print(Text(text), soft_wrap=True)


def line(text: str) -> None:
    """Prints text on standard output as it is, without markup."""
    screen.print(Text(text), soft_wrap=True)


def print_error(error: Exception) -> None:
    """Prints an error as the name of its class and its message."""
    text = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{escaped(str(error.filename), keep='')}: {error.strerror}"
    errors.print(Text.assemble(("error:", "bold red"), f" {type(error).__name__}: {text}"), soft_wrap=True)


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints a traceback, escaped; a `sys.excepthook`."""
    note("".join(traceback.format_exception(kind, error, trace)).rstrip())


def print_problems(problems: Iterable[Problem]) -> None:
    """Prints one line for each problem."""
    for problem in problems:
        warn(f"problem: {problem}")


class _ConsoleHandler(logging.Handler):
    """Prints the records of a logger as warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


def quiet() -> None:
    """Keeps libraries from writing between our lines, and prints the package's warnings as ours."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", module=r"(transformers|torch|langgraph|langchain_core)\b.*")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logger = logging.getLogger("autottt")
    if not logger.handlers:
        logger.addHandler(_ConsoleHandler(logging.WARNING))


def progress(*, hidden: bool = False) -> Progress:
    """A progress bar on standard error, if that is a terminal."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=errors, transient=True, disable=hidden or not errors.is_terminal,
        speed_estimate_period=3600,  # one task may take minutes
    )  # fmt: skip


@contextmanager
def reporting(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (done, total): it moves a bar, or prints a line each minute off a terminal."""
    with progress() as bars:
        bar, last_line = bars.add_task(description, total=None), -math.inf

        def report(done: int, total: int) -> None:
            nonlocal last_line
            bars.update(bar, completed=done, total=total)
            if not errors.is_terminal and time.monotonic() > last_line + 60:
                last_line = time.monotonic()
                note(f"{description}: {done} of {total}")

        yield report


def in_words(seconds: float) -> str:
    """A duration: in seconds below two minutes, in minutes below two hours, else in hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Terminated(KeyboardInterrupt):
    """SIGTERM, which batch systems and `timeout` send: it ends a command in the way of Ctrl-C."""


@contextmanager
def interruptible(remedy: str | Callable[[], str]) -> Iterator[None]:
    """Adds to an interruption, by Ctrl-C or SIGTERM, what remains on disk and how to continue; a function says what it
    is by then. A second SIGTERM ends the process at once."""

    def terminate(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    is_own = threading.current_thread() is threading.main_thread()
    is_own = is_own and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # and not one of the program around it
    if is_own:
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt as interruption:
        raise type(interruption)(remedy if isinstance(remedy, str) else remedy()) from None
    finally:
        if is_own:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def install_excepthook() -> None:
    """Makes tracebacks escaped as well."""
    sys.excepthook = print_traceback
