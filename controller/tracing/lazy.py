"""The recorder, imported on first use: `lazy.recorder.TraceRecorder`. Where recording is off it is never imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...ttt_core.lazy_modules import import_on_first_use

if TYPE_CHECKING:
    from . import recorder as recorder

_MODULES = {"recorder": ".recorder"}
__getattr__ = import_on_first_use(_MODULES, globals())
