"""One tree of errors. Each has a parent in the standard library, so that a host program can catch either.

A message gives what was received, what was expected, and what to do.
"""


class AutotttError(Exception):
    """The root of every error this package raises on purpose."""


class TaskError(AutotttError, ValueError):
    """A task, or a file of tasks, is not what it has to be."""


class ParseError(AutotttError, ValueError):
    """A model's text is not a value of the kind asked for."""


class TooLongError(AutotttError, ValueError):
    """A task does not fit in the model's context. Nothing is ever truncated instead."""


class ModelError(AutotttError, ValueError):
    """A model or its tokenizer cannot be used."""


class AdaptationError(AutotttError, RuntimeError):
    """Training an adapter failed: a loss that is not a number, no memory, nothing to train on."""


class BaseChangedError(AutotttError, RuntimeError):
    """The base model is not what it was when it was loaded; the learner refuses to go on."""


class Cancelled(AutotttError):
    """Whoever asked wants no answer any more; the model is as it was."""


class StrategyError(AutotttError, LookupError):
    """A strategy is unknown, or cannot be used on this task."""


class PolicyError(AutotttError, ValueError):
    """A policy bundle cannot be read, or belongs to another model."""


class BudgetError(AutotttError, ValueError):
    """A budget cannot be understood."""
