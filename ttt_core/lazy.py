"""Libraries that are imported on first use, because importing them takes longer than torch: `lazy.peft.LoraConfig`.

The only place of `ttt_core` with lazy imports of libraries. Knows nothing about what they are used for. `transformers`
is not here: it imports its own modules on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import peft as peft
    from peft.tuners import tuners_utils as tuners_utils
    from transformers import pytorch_utils as pytorch_utils

_MODULES = {
    "peft": "peft",
    "tuners_utils": "peft.tuners.tuners_utils",
    "pytorch_utils": "transformers.pytorch_utils",
}


def __getattr__(name: str) -> Any:
    """Imports a module of the table on first use; later uses find it among the globals."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_MODULES[name], __package__)
    globals()[name] = module
    return module
