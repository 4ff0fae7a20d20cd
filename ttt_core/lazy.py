"""Libraries that are imported on first use, because importing them takes longer than torch: `lazy.peft.LoraConfig`.

The only place of `ttt_core` with lazy imports of libraries. Knows nothing about what they are used for. `transformers`
is not here: it imports its own modules on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy_modules import import_on_first_use

if TYPE_CHECKING:
    import peft as peft
    from peft.tuners import tuners_utils as tuners_utils
    from peft.utils import other as other
    from peft.utils import transformers_weight_conversion as transformers_weight_conversion
    from transformers import pytorch_utils as pytorch_utils

_MODULES = {
    "peft": "peft",
    "tuners_utils": "peft.tuners.tuners_utils",
    "other": "peft.utils.other",
    "transformers_weight_conversion": "peft.utils.transformers_weight_conversion",
    "pytorch_utils": "transformers.pytorch_utils",
}
__getattr__ = import_on_first_use(_MODULES, globals())
