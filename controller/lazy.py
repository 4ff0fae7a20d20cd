"""Modules that are imported on first use, because importing LangGraph takes seconds: `lazy.graph.build_graph`.

The only place of `controller` with lazy imports, except for `tracing.lazy`, and that each command imports what it
needs. Knows nothing about what they do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..ttt_core.lazy_modules import import_on_first_use

if TYPE_CHECKING:
    from langgraph.checkpoint import memory as memory
    from langsmith import run_helpers as run_helpers

    from . import graph as graph
    from . import nodes as nodes
    from . import task_graph as task_graph

_MODULES = {
    "memory": "langgraph.checkpoint.memory",
    "run_helpers": "langsmith.run_helpers",
    "graph": ".graph",
    "nodes": ".nodes",
    "task_graph": ".task_graph",
}
__getattr__ = import_on_first_use(_MODULES, globals())


def import_all() -> None:
    """Imports them now: an import cannot be cancelled, so a call that can be must not have to wait for one."""
    for name in _MODULES:
        __getattr__(name)
