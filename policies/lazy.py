"""Libraries that are imported on first use, because importing them takes seconds: `lazy.pipeline.Pipeline`.

The only place of `policies` with lazy imports. Knows nothing about what they are used for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..ttt_core.lazy_modules import import_on_first_use

if TYPE_CHECKING:
    import sklearn as sklearn
    import skops as skops
    from scipy import stats as stats
    from sklearn import base as base
    from sklearn import dummy as dummy
    from sklearn import ensemble as ensemble
    from sklearn import linear_model as linear_model
    from sklearn import metrics as metrics
    from sklearn import model_selection as model_selection
    from sklearn import neighbors as neighbors
    from sklearn import pipeline as pipeline
    from sklearn import preprocessing as preprocessing
    from skops import io as io

_MODULES = {
    "base": "sklearn.base",
    "dummy": "sklearn.dummy",
    "ensemble": "sklearn.ensemble",
    "linear_model": "sklearn.linear_model",
    "metrics": "sklearn.metrics",
    "model_selection": "sklearn.model_selection",
    "neighbors": "sklearn.neighbors",
    "pipeline": "sklearn.pipeline",
    "preprocessing": "sklearn.preprocessing",
    "sklearn": "sklearn",
    "skops": "skops",
    "io": "skops.io",
    "stats": "scipy.stats",
}
__getattr__ = import_on_first_use(_MODULES, globals())
