"""Modules that are imported on first use, because importing LangGraph takes seconds: `lazy.graph.build_graph`.

The only place of `controller` with lazy imports, except that each command imports what it needs. Knows nothing about
what they do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langgraph.checkpoint import memory as memory
    from langsmith import run_helpers as run_helpers

    from . import graph as graph
    from . import task_graph as task_graph

_MODULES = {
    "memory": "langgraph.checkpoint.memory",
    "run_helpers": "langsmith.run_helpers",
    "graph": ".graph",
    "task_graph": ".task_graph",
}


def __getattr__(name: str) -> Any:
    """Imports a module of the table on first use; later uses find it among the globals."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_MODULES[name], __package__)
    globals()[name] = module
    return module
