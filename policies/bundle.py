"""Bundles: a trained policy as a folder that executes nothing when it is read.

`card.json` is for people and programs; `heads.skops` holds the fitted heads. What the second may consist of is a
literal list here: a file that names any other type, or any other way to build one, is refused before anything is built.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import skops
import skops.io
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from ..ttt_core.errors import PolicyError
from .classifiers import CalibratedClassifier, CostRegressor
from .features import FEATURES_VERSION, NAMES
from .outcomes import BASE
from .trained import Change, TrainedPolicy

FORMAT = 7
CARD, HEADS = "card.json", "heads.skops"
COST = "0/cost/"
"""What the names of estimators of costs begin with; they read the free features."""

TRUSTED = ("sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor", "sklearn.tree._tree.Tree")
"""What skops does not trust by itself: the trees of boosting and of forests. They are arrays of numbers, but ones that
are followed without looking: `_check_estimator` looks first."""
TYPES = frozenset({
    "builtins.dict", "builtins.list", "builtins.str", "builtins.tuple",
    "numpy.float64", "numpy.int64", "numpy.ndarray", "numpy.random._generator.Generator", "numpy.uint64",
    "sklearn._loss._loss.CyHalfBinomialLoss", "sklearn._loss.link.Interval", "sklearn._loss.link.LogitLink",
    "sklearn._loss.loss.HalfBinomialLoss", "sklearn.dummy.DummyClassifier",
    "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
    "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoostingClassifier",
    "sklearn.ensemble._forest.RandomForestClassifier", "sklearn.ensemble._forest.RandomForestRegressor",
    "sklearn.tree._classes.DecisionTreeRegressor", "sklearn.linear_model._logistic.LogisticRegression",
    "sklearn.neighbors._regression.KNeighborsRegressor", "sklearn.pipeline.Pipeline",
    "sklearn.preprocessing._data.StandardScaler", "sklearn.preprocessing._label.LabelEncoder",
    "sklearn.tree._classes.DecisionTreeClassifier", *TRUSTED,
})  # fmt: skip
"""Everything that the heads consist of."""
LOADERS = frozenset({
    "DictNode", "JsonNode", "ListNode", "LossNode", "NdArrayNode", "ObjectNode", "RandomGeneratorNode", "TreeNode",
    "TupleNode", "TypeNode",
})  # fmt: skip
"""The ways in which skops builds them; none calls a function that the file names."""


def save_bundle(policy: TrainedPolicy, folder: str | os.PathLike[str], *, over_released: bool = False) -> Path:
    """Writes the folder, and returns it; what was in these two files before is replaced.

    But a released policy for the same model gives way to one that is not released only where told so: else the new one
    goes to a folder beside, `...-unreleased`, which is returned.
    """
    path = Path(folder)
    if not (over_released or policy.released) and _released(path, policy.base_hash):
        path = path.parent / f"{path.name or 'policy'}-unreleased"
    path.mkdir(parents=True, exist_ok=True)
    named = _named(policy)
    heads = path / f"_{HEADS}.partial"
    skops.io.dump(
        {name: head.estimator for name, head in named.items()}
        | {f"{COST}{n}": amount.estimator for n, amount in zip(policy.strategies[1:], policy.cost_models, strict=False)},
        heads, compression=zipfile.ZIP_DEFLATED, compresslevel=9,
    )  # fmt: skip
    card = card_of(policy) | {
        "calibration": {name: [head.slope, head.intercept] for name, head in named.items()},
        "heads_sha256": _sha256(heads),
    }
    written = path / f"_{CARD}.partial"
    written.write_text(json.dumps(card, indent=1, allow_nan=False) + "\n")
    heads.replace(path / HEADS)
    written.replace(path / CARD)
    return path


def load_bundle(folder: str | os.PathLike[str], ignore_mismatch: bool = False) -> TrainedPolicy:
    """The policy in a folder. Raises `PolicyError` with the reason and the remedy; executes nothing of the folder's.

    `anyway` takes features of another version for those of this one, as long as they have the same names.
    """
    path = Path(folder)
    card = _read_card(path, ignore_mismatch)
    estimators = _read_heads(path, card.get("heads_sha256"))
    try:
        heads = {
            name: CalibratedClassifier(estimators[name], *map(float, pair))
            for name, pair in card["calibration"].items()
        }
        policy = TrainedPolicy(
            base_hash=str(card["base_hash"]),
            strategies=tuple(card["strategies"]),
            difficulty={stage: heads[f"{stage}/{BASE}"] for stage in NAMES},
            changes={
                stage: tuple(
                    Change(heads[f"{stage}/{name}/mends"], heads[f"{stage}/{name}/spoils"])
                    for name in card["strategies"][1:]
                )
                for stage in NAMES
            },
            mean_costs={kind: tuple(map(float, costs)) for kind, costs in card["costs"].items()},
            cost_weight=float(card["price"]),
            skip_probe_threshold=float(card["enough"]),
            ranking=tuple(card["ranking"]),
            feature_min=tuple(map(float, card["lowest"])),
            feature_max=tuple(map(float, card["highest"])),
            deciles=tuple(tuple(map(float, nine)) for nine in card["deciles"]),
            cdf=tuple(tuple(map(float, nine)) for nine in card["below"]),
            families=tuple(card["families"]),
            datasets=tuple(card["datasets"]),
            seed=int(card["seed"]),
            cost_models=tuple(
                CostRegressor(estimators[f"{COST}{name}"])
                for name in card["strategies"][1:]
                if f"{COST}{name}" in estimators
            ),
            keep_threshold=float(card["keep"]),
            risk=None if card["risk"] is None else float(card["risk"]),
            prompt_format=str(card["prompt_format"]),
            recipes={str(name): str(digest) for name, digest in card["recipes"].items()},
            scorecard=dict(card["scorecard"]),
        )
        _check(policy)
        return policy
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _refused(path, f"{CARD} is not what it has to be: {type(error).__name__}: {error}") from None


def card_of(policy: TrainedPolicy) -> dict[str, Any]:
    """What a policy is and how it was judged: the card without what only the files need."""
    return {
        "format": FORMAT,
        "features_version": FEATURES_VERSION,
        "features": NAMES[max(NAMES)],
        "base_hash": policy.base_hash,
        "strategies": policy.strategies,
        "costs": policy.mean_costs,
        "price": policy.cost_weight,
        "enough": policy.skip_probe_threshold,
        "ranking": policy.ranking,
        "seed": policy.seed,
        "keep": policy.keep_threshold,
        "risk": policy.risk,
        "prompt_format": policy.prompt_format,
        "recipes": policy.recipes,
        "released": policy.released,
        "versions": {"scikit-learn": sklearn.__version__, "skops": skops.__version__},
        "scorecard": policy.scorecard,
        "datasets": policy.datasets,
        "families": policy.families,
        "lowest": policy.feature_min,
        "highest": policy.feature_max,
        "deciles": policy.deciles,
        "below": policy.cdf,
    }


def _check(policy: TrainedPolicy) -> None:
    """Raises `ValueError` for names, lengths or numbers that no training makes."""
    names, free, all_stages = policy.strategies, len(NAMES[0]), len(NAMES[max(NAMES)])
    wrong = {
        "strategies": names[:1] != (BASE,) or len(set(names)) < len(names),
        "ranking": sorted(policy.ranking) != sorted(names),
        "costs": "" not in policy.mean_costs or any(len(costs) != len(names) for costs in policy.mean_costs.values()),
        "lowest": len(policy.feature_min) != free,
        "highest": len(policy.feature_max) != free,
        "deciles": [len(nine) for nine in policy.deciles] != [9] * all_stages,
        "below": [len(nine) for nine in policy.cdf] != [9] * all_stages,
        "risk": policy.risk is not None and not 0 < policy.risk < 1,
        "price": policy.cost_weight < 0,
        "spending": len(policy.cost_models) not in (0, len(names) - 1),
    }
    numbers: dict[str, Iterable[float]] = {
        "price": [policy.cost_weight], "enough": [policy.skip_probe_threshold], "keep": [policy.keep_threshold],
        "costs": chain(*policy.mean_costs.values()), "lowest": policy.feature_min, "highest": policy.feature_max,
        "deciles": chain(*policy.deciles), "below": chain(*policy.cdf),
        "calibration": chain(*((head.slope, head.intercept) for head in _named(policy).values())),
    }  # fmt: skip
    found = [name for name, is_wrong in wrong.items() if is_wrong]
    found += [name for name, values in numbers.items() if not np.isfinite(list(values)).all()]
    if found:
        raise ValueError(f"{', '.join(dict.fromkeys(found))}: not what a training makes of {len(names)} strategies")


def _released(path: Path, base_hash: str) -> bool:
    """Whether a folder holds a released policy for a model."""
    try:
        card = json.loads((path / CARD).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(card, dict) and card.get("released") is True and card.get("base_hash") == base_hash


def _named(policy: TrainedPolicy) -> dict[str, CalibratedClassifier]:
    named = {f"{stage}/{BASE}": head for stage, head in policy.difficulty.items()}
    for stage, changes in policy.changes.items():
        for name, change in zip(policy.strategies[1:], changes, strict=True):
            named |= {f"{stage}/{name}/mends": change.fixes, f"{stage}/{name}/spoils": change.breaks}
    return named


def _read_card(path: Path, anyway: bool) -> Mapping[str, Any]:
    try:
        card = json.loads((path / CARD).read_text("utf-8"))
    except OSError as error:
        raise _refused(path, f"{CARD} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise _refused(path, f"{CARD} is not JSON ({error})") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        received = card.get("format", "none") if isinstance(card, dict) else f"no object but a {type(card).__name__}"
        raise _refused(path, f"{CARD} is not of format {FORMAT}, but {received}")
    known, features = NAMES[max(NAMES)], card.get("features")
    if features != list(known):
        names = features if isinstance(features, list) else []
        odd = [f"without {n}" for n in known if n not in names] + [f"with {n}" for n in names if n not in known]
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        shown = ", ".join(odd[:3]) + more if odd else "in another order"
        raise _refused(path, f"it was trained on other features than this package measures: {shown}")
    if card.get("features_version") != FEATURES_VERSION and not anyway:
        raise _refused(
            path,
            f"it was trained on features of version {card.get('features_version')}, and this package measures "
            f"version {FEATURES_VERSION}, of the same names; --ignore-mismatch (ignore_mismatch=True) takes one for the other",
        )
    return card


def _read_heads(path: Path, sha256: object) -> Mapping[str, Any]:
    file = path / HEADS
    try:
        with zipfile.ZipFile(file) as archive:
            nodes = list(_nodes(json.loads(archive.read("schema.json"))))
        odd = {f"{n.get('__module__')}.{n.get('__class__')}" for n in nodes} - TYPES
        odd |= {str(n.get("__loader__")) for n in nodes} - LOADERS
        if odd:
            raise _refused(path, f"{HEADS} holds what no policy consists of: {', '.join(sorted(odd))}")
        if _sha256(file) != sha256:
            raise _refused(path, f"{HEADS} is not the one that {CARD} describes")
        estimators: Mapping[str, Any] = skops.io.load(file, trusted=list(TRUSTED))
        for name, estimator in estimators.items():
            for one in estimator if isinstance(estimator, list) else [estimator]:
                _check_estimator(one, len(NAMES[0 if name.startswith("0/") else 1]))
        return estimators
    except OSError as error:
        raise _refused(path, f"{HEADS} cannot be read ({error.strerror})") from None
    except PolicyError:
        raise
    except Exception as error:  # whatever a damaged archive makes of zipfile, json and skops
        raise _refused(path, f"{HEADS} is damaged ({type(error).__name__}: {error})") from error


def _check_estimator(estimator: Any, features: int) -> None:
    """Raises `ValueError` for one that no training makes, and for a tree whose way down leaves it, or reads a feature
    that there is not."""
    match estimator:
        case RandomForestClassifier() | RandomForestRegressor():
            for one in estimator.estimators_:
                nodes = one.tree_.__getstate__()["nodes"]
                _check_tree(nodes, nodes["left_child"] < 0, ("left_child", "right_child", "feature"), features)
        case HistGradientBoostingClassifier():
            for tree in (tree for trees in estimator._predictors for tree in trees):
                if tree.nodes["is_categorical"].any():
                    raise ValueError("a tree with categories, which no policy has")
                _check_tree(tree.nodes, tree.nodes["is_leaf"] > 0, ("left", "right", "feature_idx"), features)
        case Pipeline(steps=[(_, StandardScaler()), (_, LogisticRegression() | KNeighborsRegressor())]):
            pass
        case DummyClassifier():
            pass
        case _:
            raise ValueError(f"an estimator that no policy has: {type(estimator).__name__}")


def _check_tree(nodes: Any, leaf: Any, names: tuple[str, str, str], features: int) -> None:
    inner, place = nodes[~leaf], np.flatnonzero(~leaf)
    left, right, feature = (inner[name].astype(np.int64) for name in names)
    onwards = (left > place) & (right > place) & (left < len(nodes)) & (right < len(nodes))
    if not (len(nodes) and onwards.all() and ((feature >= 0) & (feature < features)).all()):
        raise ValueError("a tree whose nodes lead nowhere")


def _nodes(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Every part of a skops schema that says what to build."""
    if isinstance(schema, dict):
        if schema.keys() & {"__class__", "__module__", "__loader__"}:
            yield schema
        for value in schema.values():
            yield from _nodes(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _nodes(value)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _refused(path: Path, reason: str) -> PolicyError:
    return PolicyError(
        f"{path}: not a policy that can be used: {reason}. Make one with `autottt train-policy STORE --out {path}`"
    )
