"""Fitted estimators as arrays in one NumPy archive: all that predictions need, read without scikit-learn.

A thousand trees are read in milliseconds; scikit-learn's own objects take seconds. The archive holds numbers and names
only, and every index in it is checked. Knows nothing about what the estimators predict.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .fast_inference import FastEstimator, LinearModel, PackedForest

MAX_BYTES = 64 << 20
"""Largest archive, unpacked; that of the shipped policies has 5 MiB."""
_TREES = ("roots", "feature", "threshold", "left", "right", "value")
_ARRAYS = {
    "names": "U", "linear": "i", "weights": "f", "biases": "f", "forests": "i", "roots": "i", "feature": "i",
    "threshold": "f", "left": "i", "right": "i", "value": "f",
}  # fmt: skip
"""Name of each array, and the kind of its elements."""


def write_packed(file: Path, estimators: Mapping[str, Sequence[FastEstimator]]) -> None:
    """Writes the parts of each named estimator; those of one are averaged."""
    parts = [(place, part) for place, some in enumerate(estimators.values()) for part in some]
    linear = [(place, part) for place, part in parts if isinstance(part, LinearModel)]
    forests = [(place, part) for place, part in parts if isinstance(part, PackedForest)]
    arrays: dict[str, Any] = {
        "names": np.array(list(estimators)),
        "linear": np.array([[place, len(part.weights)] for place, part in linear], dtype=np.int64).reshape(-1, 2),
        "weights": np.concatenate([part.weights for _, part in linear] or [np.zeros(0)]),
        "biases": np.array([part.bias for _, part in linear], dtype=np.float64),
        "forests": np.array(
            [[place, len(part.roots), len(part.value), part.depth] for place, part in forests], dtype=np.int64
        ).reshape(-1, 4),
    }
    for name in _TREES:
        columns = [getattr(part, name) for _, part in forests]
        arrays[name] = np.concatenate(columns or [np.zeros(0)])
        if name not in ("threshold", "value"):
            arrays[name] = arrays[name].astype(np.int32)
    with file.open("wb") as opened:
        np.savez_compressed(opened, **arrays)


def read_packed(content: bytes, features_of: Callable[[str], int]) -> dict[str, Any]:
    """The estimators in an archive by name: one part, or a list of several. `features_of` gives the number of features
    that an estimator may read. Raises `ValueError` for an archive that is damaged, too large, or has an index out of
    range."""
    arrays = _arrays(content)
    names: list[str] = arrays["names"].tolist()
    parts: dict[str, list[FastEstimator]] = {name: [] for name in names}
    if len(parts) != len(names):
        raise ValueError("a name that is there twice")
    at = 0
    for (place, count), bias in zip(arrays["linear"].tolist(), arrays["biases"].tolist(), strict=True):
        name = names[_checked(place, len(names))]
        weights = arrays["weights"][at : at + _checked(count, len(arrays["weights"]) + 1)]
        if len(weights) != features_of(name):
            raise ValueError(f"{name}: {len(weights)} weights for {features_of(name)} features")
        parts[name].append(LinearModel(weights, bias))
        at += count
    tree_at = node_at = 0
    for place, trees, nodes, depth in arrays["forests"].tolist():
        name = names[_checked(place, len(names))]
        own = slice(node_at, node_at + nodes)
        roots = arrays["roots"][tree_at : tree_at + trees].astype(np.intp)
        feature, left, right = (arrays[key][own].astype(np.intp) for key in ("feature", "left", "right"))
        forest = PackedForest(roots, feature, arrays["threshold"][own], left, right, arrays["value"][own], depth)
        _check_forest(forest, trees, nodes, features_of(name))
        parts[name].append(forest)
        tree_at, node_at = tree_at + trees, node_at + nodes
    if not all(parts.values()):
        raise ValueError("an estimator without parts")
    return {name: some[0] if len(some) == 1 else some for name, some in parts.items()}


def _arrays(content: bytes) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(one.file_size for one in archive.infolist()) > MAX_BYTES:
            raise ValueError(f"expected at most {MAX_BYTES >> 20} MiB of content")
    with np.load(io.BytesIO(content), allow_pickle=False) as loaded:
        arrays = {name: loaded[name] for name in _ARRAYS}
    for name, kind in _ARRAYS.items():
        dimensions = 2 if name in ("linear", "forests") else 1
        if arrays[name].dtype.kind != kind or arrays[name].ndim != dimensions:
            raise ValueError(f"{name}: an array of another type or shape")
        if kind == "f" and not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name}: a number that is not finite")
    return arrays


def _checked(number: int, end: int) -> int:
    if not 0 <= number < end:
        raise ValueError("indices out of range")
    return number


def _check_forest(forest: PackedForest, trees: int, nodes: int, features: int) -> None:
    """Raises `ValueError` unless every node leads further down in its forest, or is a leaf and leads to itself."""
    sizes = {len(each) for each in (forest.feature, forest.threshold, forest.left, forest.right, forest.value)}
    complete = trees > 0 and nodes > 0 and len(forest.roots) == trees and sizes == {nodes}
    if not (complete and 0 <= forest.depth <= nodes and _leads_down(forest, features)):
        raise ValueError("a tree with child or feature indices out of range")


def _leads_down(forest: PackedForest, features: int) -> bool:
    nodes = len(forest.value)
    index = np.arange(nodes)
    inner = (forest.left > index) & (forest.right > index) & (forest.left < nodes) & (forest.right < nodes)
    leaf = (forest.left == index) & (forest.right == index)
    roots = (forest.roots >= 0) & (forest.roots < nodes)
    read = (forest.feature >= 0) & (forest.feature < features)
    return bool((inner | leaf).all() and roots.all() and read.all())
