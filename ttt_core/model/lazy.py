"""Modules of this package that extend classes of transformers, imported on first use: `lazy.kv_cache.new_cache`.

Importing them loads the model code of transformers, which takes as long as torch. Knows nothing about what they do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_modules import import_on_first_use

if TYPE_CHECKING:
    from . import attention as attention
    from . import kv_cache as kv_cache

_MODULES = {
    "attention": ".attention",
    "kv_cache": ".kv_cache",
}
__getattr__ = import_on_first_use(_MODULES, globals())
