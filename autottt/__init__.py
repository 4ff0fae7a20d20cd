"""A language model that knows when to learn: in-context answers where they are right, test-time training where it pays.

>>> from autottt import make_task
>>> make_task([([1, 2], [2, 1]), ([3, 4, 5], [5, 4, 3])], [6, 7]).kind
'list'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .controller.budget import Budget as Budget
    from .controller.controller import Controller as Controller
    from .controller.integrations.langchain import ChatAutottt as ChatAutottt
    from .controller.results import Result as Result
    from .policies.policy import Decision as Decision
    from .policies.policy import FixedPolicy as FixedPolicy
    from .strategies.base import Attempt as Attempt
    from .strategies.base import Cost as Cost
    from .strategies.registry import register as register
    from .ttt_core.engine.adapter_cache import AdapterCache as AdapterCache
    from .ttt_core.errors import AutotttError as AutotttError
    from .ttt_core.errors import BaseChangedError as BaseChangedError
    from .ttt_core.errors import Cancelled as Cancelled
    from .ttt_core.errors import TooLongError as TooLongError
    from .ttt_core.learner import Learner as Learner
    from .ttt_core.recipes import Recipe as Recipe
    from .ttt_core.tasks.kinds import make_task as make_task
    from .ttt_core.tasks.readers import read_tasks as read_tasks
    from .ttt_core.tasks.task import Demonstration as Demonstration
    from .ttt_core.tasks.task import Task as Task

__version__ = "0.1.0"

_HOMES = {
    "AdapterCache": "ttt_core.engine.adapter_cache",
    "Attempt": "strategies.base",
    "AutotttError": "ttt_core.errors",
    "BaseChangedError": "ttt_core.errors",
    "Budget": "controller.budget",
    "Cancelled": "ttt_core.errors",
    "ChatAutottt": "controller.integrations.langchain",
    "Controller": "controller.controller",
    "Cost": "strategies.base",
    "Decision": "policies.policy",
    "Demonstration": "ttt_core.tasks.task",
    "FixedPolicy": "policies.policy",
    "Learner": "ttt_core.learner",
    "Recipe": "ttt_core.recipes",
    "Result": "controller.results",
    "Task": "ttt_core.tasks.task",
    "TooLongError": "ttt_core.errors",
    "make_task": "ttt_core.tasks.kinds",
    "read_tasks": "ttt_core.tasks.readers",
    "register": "strategies.registry",
}
__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `import autottt` stays quick and does not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'autottt' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
