"""Modules that are imported on first use, because importing LangGraph takes seconds: `lazy.graph.build_graph`.

The only place of `controller` with lazy imports, except that each command imports what it needs. Knows nothing about
what they do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langgraph.checkpoint import memory as memory

    from . import graph as graph

_MODULES = {
    "memory": "langgraph.checkpoint.memory",
    "graph": ".graph",
}


def __getattr__(name: str) -> Any:
    """Imports a module of the table on first use; later uses find it among the globals."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_MODULES[name], __package__)
    globals()[name] = module
    return module
