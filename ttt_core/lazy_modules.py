"""Modules that are imported on first use: the `__getattr__` that each package's `lazy.py` has.

Knows nothing about what is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def import_on_first_use(modules: Mapping[str, str], namespace: dict[str, Any]) -> Callable[[str], Any]:
    """The `__getattr__` of the module whose globals are `namespace`. `modules` maps each name to the module that it
    stands for; a path that begins with a dot is relative to the package."""

    def get(name: str) -> Any:
        """Imports a module of the table; later uses find it among the globals."""
        if name not in modules:
            raise AttributeError(f"module {namespace['__name__']!r} has no attribute {name!r}")
        module = import_module(modules[name], namespace["__package__"])
        namespace[name] = module
        return module

    return get
