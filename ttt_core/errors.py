"""The exceptions of this package. Each also derives from a standard exception, so that a caller can catch either.

A message says what was received, what was expected, and what to do.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class AutotttError(Exception):
    """Base class of every error that this package raises on purpose."""


class TaskError(AutotttError, ValueError):
    """A task or a file of tasks is invalid."""


class ParseError(AutotttError, ValueError):
    """The text of an answer is not a value of the task's kind."""


class TooLongError(AutotttError, ValueError):
    """A task does not fit in the model's context. Prompts are never truncated."""


class ModelError(AutotttError, ValueError):
    """A model or its tokenizer cannot be used."""


class AdaptationError(AutotttError, RuntimeError):
    """Training an adapter failed: a loss that is not finite, not enough memory, or no training examples."""


class BaseChangedError(AutotttError, RuntimeError):
    """The weights of the base model changed after it was loaded; the learner refuses all further work."""


class Cancelled(AutotttError):
    """The caller cancelled the request. The model is unchanged."""


class DeadlineError(AutotttError, TimeoutError):
    """The deadline passed before the work was complete. The model is unchanged."""


class QueueFullError(AutotttError, RuntimeError):
    """As many queries wait as may wait; `retry_after` seconds later there may be room."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ClosedError(AutotttError, RuntimeError):
    """A scheduler or controller was closed, and takes no more queries."""


class StateError(AutotttError, ValueError):
    """A state of the graph cannot be continued, since its numbers are of another model, policy, task or seed."""


class StrategyError(AutotttError, LookupError):
    """A strategy is unknown, or cannot be used on this task."""


class FileError(AutotttError, OSError):
    """A file cannot be written, such as on a full disk."""


class PolicyError(AutotttError, ValueError):
    """A policy bundle cannot be read, or was trained for another model."""


class BudgetError(AutotttError, ValueError):
    """A budget is invalid."""


class TraceError(AutotttError, LookupError):
    """A trace does not exist, cannot be read, or lacks what a command needs."""


class SettingsError(AutotttError, ValueError):
    """An option, an environment variable or a key of the configuration file is invalid."""


def shortened(value: object) -> str:
    """The `repr` of a value in at most 60 characters, for error messages."""
    if isinstance(value, (str, bytes)):
        value = value[:64]  # of a long text its beginning, which is longer than what is shown
    try:
        text = repr(value)
    except Exception:  # a number of thousands of digits; lists thousands deep
        return f"a value of type {type(value).__name__} that cannot be printed"
    return text if len(text) <= 60 else text[:57] + "..."


def described(error: BaseException) -> str:
    """The class and the message of an exception, whose own code may fail to give one."""
    try:
        message = str(error)
    except Exception:
        message = "its message cannot be read"
    return f"{type(error).__name__}: {message}"


def is_interruption(error: BaseException) -> bool:
    """Whether the user ends the program. Code of others may raise `SystemExit` and the like for reasons of its own."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(KeyboardInterrupt) is not None
    return isinstance(error, KeyboardInterrupt)


@contextmanager
def ignoring_errors() -> Iterator[None]:
    """While inside, whatever is raised ends the code without a word, except an interruption by the user: for what code
    of others fails at now, and again, where it is reported."""
    try:
        yield
    except BaseException as error:
        if is_interruption(error):
            raise


def first_line(error: BaseException) -> str:
    """The first line of what a library says, with the type where that alone says little."""
    line = (str(error).strip().splitlines() or [""])[0][:500]
    plain = isinstance(error, (OSError, ValueError, ImportError, RuntimeError)) and line
    return line if plain else f"{type(error).__name__}: {line}".rstrip(": ")


def is_exception(text: str) -> bool:
    """Whether a text is the class and the message of an exception, such as `ValueError: no such key`."""
    name, separator, _ = text.partition(": ")
    return bool(separator) and name.isidentifier() and name[:1].isupper()


def without_messages(text: str, errors: Iterable[str]) -> str:
    """The class of an exception, where the text is one, as `is_exception` says; else the text in which the class of
    each of `errors` that is an exception replaces it. Messages of exceptions of other code may quote a task."""
    if is_exception(text.removeprefix("failed: ")):
        return text.removeprefix("failed: ").partition(":")[0]
    for error in sorted(filter(is_exception, errors), key=len, reverse=True):
        text = text.replace(error, error.partition(":")[0])
    return text
