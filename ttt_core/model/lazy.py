"""Modules of this package that extend classes of transformers, imported on first use: `lazy.kv_cache.new_cache`.

Importing them loads the model code of transformers, which takes as long as torch. Knows nothing about what they do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import attention as attention
    from . import kv_cache as kv_cache

_MODULES = {
    "attention": ".attention",
    "kv_cache": ".kv_cache",
}


def __getattr__(name: str) -> Any:
    """Imports a module of the table on first use; later uses find it among the globals."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_MODULES[name], __package__)
    globals()[name] = module
    return module
