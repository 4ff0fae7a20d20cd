"""Bundles: a trained policy as a folder that is loaded without executing anything.

`card.json` describes the policy for people and programs; `estimators.skops` holds the fitted estimators. The types that
the latter may contain are a literal list here: a file that names any other type or loader is refused before any object
is built. Where all estimators have a fast form, `estimators.npz` holds their arrays, and a policy is loaded from these
without scikit-learn. Knows nothing about how policies are trained.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from ..ttt_core.errors import PolicyError, shortened
from ..ttt_core.file_writing import explained, write_whole
from . import lazy
from .bundle_card import CARD, read_card, unusable_bundle
from .card_fields import FIELDS, read_field
from .classifiers import CalibratedClassifier, CostRegressor
from .fast_inference import fast_form
from .features import FEATURES_VERSION, NAMES
from .outcomes import BASE
from .packed_estimators import read_packed, write_packed
from .trained_policy import Change, Familiarity, TrainedPolicy
from .versions import BUNDLE_VERSION

ESTIMATORS = "estimators.skops"
PACKED = "estimators.npz"
_FILE_NAME = re.compile(r"estimators(-[0-9a-f]{16})?\.(skops|npz)")
"""The names that files of estimators have."""
MAX_REPLACED = 3
"""How often a bundle may be replaced while it is read."""
MAX_FILE_BYTES, MAX_UNPACKED_BYTES, MAX_SCHEMA_BYTES = 256 << 20, 1 << 30, 128 << 20
"""Largest file of estimators, its content and its schema; those of the shipped policies have 4, 27 and 19 MiB."""
COST = "0/cost/"
"""Prefix of the names of cost models, which read the free features."""

TRUSTED = ("sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor", "sklearn.tree._tree.Tree")
"""Types that skops does not trust by default: the trees of boosting and of forests. Prediction follows their arrays of
node indices unchecked, so `_check_estimator` checks them first."""
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
"""Every type that the estimators consist of."""
LOADERS = frozenset({
    "DictNode", "JsonNode", "ListNode", "LossNode", "NdArrayNode", "ObjectNode", "RandomGeneratorNode", "TreeNode",
    "TupleNode", "TypeNode",
})  # fmt: skip
"""The skops loaders that build them; none of them calls a function that the file names."""


def save_bundle(policy: TrainedPolicy, folder: str | os.PathLike[str], *, over_released: bool = False) -> Path:
    """Writes the bundle, replacing one that is there, and returns its folder.

    A released policy for the same model is replaced by one that is not released only with `over_released`: else the new
    one goes to the neighbouring folder `...-unreleased`, which is returned.
    """
    path = Path(folder)
    if not (over_released or policy.released) and _released(path, policy.base_hash):
        path = path.parent / f"{path.name or 'policy'}-unreleased"
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
        _write_bundle(policy, path)
    return path


def _write_bundle(policy: TrainedPolicy, path: Path) -> None:
    """Writes the files of the estimators, then the card that names them, then deletes what it does not name: whoever
    reads or is killed in between finds the bundle before or after."""
    named = _classifiers(policy)
    fitted: dict[str, Any] = {name: classifier.estimator for name, classifier in named.items()}
    costs = zip(policy.strategies[1:], policy.cost_models, strict=False)
    fitted |= {f"{COST}{name}": model.estimator for name, model in costs}
    card = card_of(policy) | {"calibration": {name: [c.slope, c.intercept] for name, c in named.items()}}
    beside = (path / CARD).exists()
    files = {}

    def add(name: str, key: str, write: Callable[[Path], None]) -> None:
        """Adds a file to the bundle. Beside the files of another bundle, the name has its digest."""
        partial = path / f"_{name}.partial"
        try:
            write(partial)
            card[key] = _sha256(partial)
            stem, _, suffix = name.partition(".")
            files[name] = f"{stem}-{card[key][:16]}.{suffix}" if beside else name
            partial.replace(path / files[name])
        finally:
            partial.unlink(missing_ok=True)

    add(ESTIMATORS, "estimators_sha256", lambda file: _write_estimators(file, fitted))
    forms = _fast_forms(fitted, {stage: len(names) for stage, names in policy.feature_names.items()})
    if forms is not None:
        add(PACKED, "packed_sha256", lambda file: write_packed(file, forms))
    if beside:
        card["files"] = files
    write_whole(path / CARD, json.dumps(card, indent=1, allow_nan=False) + "\n")
    for file in path.iterdir():
        if _FILE_NAME.fullmatch(file.name) and file.name not in files.values():
            file.unlink(missing_ok=True)


def _write_estimators(file: Path, fitted: Mapping[str, Any]) -> None:
    lazy.io.dump(fitted, file, compression=zipfile.ZIP_DEFLATED, compresslevel=9)


def _fast_forms(fitted: Mapping[str, Any], counts: Mapping[int, int]) -> dict[str, list[Any]] | None:
    """The fast forms of fitted estimators; None where one of them has none. `counts` is the number of features of each
    stage."""
    forms = {
        name: [fast_form(part, counts[_stage_of(name)]) for part in (one if isinstance(one, list) else [one])]
        for name, one in fitted.items()
    }
    return None if any(form is None for some in forms.values() for form in some) else forms


def bundle_file(card: Mapping[str, Any], name: str) -> str:
    """The name of the file that stands in a bundle for `ESTIMATORS` or `PACKED`. Raises `ValueError` for another name
    than `save_bundle` gives."""
    files = card.get("files", {})
    file = files.get(name, name) if isinstance(files, dict) else files
    if not isinstance(file, str) or not _FILE_NAME.fullmatch(file):
        raise ValueError(f"files: expected names such as {name}; received {shortened(file)}")
    return file


def _stage_of(name: str) -> int:
    """The stage whose features an estimator reads."""
    return 0 if name.startswith("0/") else 1


class TrainedFor(NamedTuple):
    """What a policy was trained for."""

    base_hash: str
    prompt_format: str
    recipes: Mapping[str, str]
    """`NAME/KIND` -> digest of the strategy's recipe."""
    starting_adapter: str = ""
    """Digest of the adapter that training started from; empty if it started from zero."""

    @classmethod
    def of(cls, policy: TrainedPolicy) -> TrainedFor:
        """What a policy was trained for."""
        return cls(policy.base_hash, policy.prompt_format, policy.recipes, policy.starting_adapter)

    @classmethod
    def of_card(cls, folder: str | os.PathLike[str]) -> TrainedFor:
        """What the policy in a folder was trained for, from its card alone: the estimators take a second to read.
        Raises `PolicyError` as `load_bundle`."""
        path = Path(folder)
        card = read_card(path)
        try:
            return cls(*(read_field(card, name) for name in cls._fields))
        except ValueError as error:
            raise unusable_bundle(path, f"{CARD} has an invalid content: {error}") from None


def load_bundle(folder: str | os.PathLike[str], ignore_mismatch: bool = False) -> TrainedPolicy:
    """Loads the policy in a folder without executing anything of its content.

    `ignore_mismatch` accepts features of another version that have the same names. Raises `PolicyError` with the reason
    and the remedy.
    """
    path = Path(folder)
    card = read_card(path)
    for _ in range(MAX_REPLACED):
        try:
            return _load(path, card, ignore_mismatch)
        except PolicyError:
            before, card = card, read_card(path)
            if card == before:
                raise
    return _load(path, card, ignore_mismatch)


def _load(path: Path, card: dict[str, Any], ignore_mismatch: bool) -> TrainedPolicy:
    """The policy of a card. Raises `PolicyError`, also where the bundle was replaced after its card was read."""
    _check_features(path, card, ignore_mismatch)
    try:
        names = {stage: tuple(card["feature_names"][str(stage)]) for stage in NAMES}
        values = {name: read_field(card, name) for name in FIELDS}
        counts = {stage: len(some) for stage, some in names.items()}
        if "packed_sha256" in card and (path / bundle_file(card, PACKED)).is_file():
            estimators = _read_packed_estimators(path, card, counts)
        else:
            file = path / bundle_file(card, ESTIMATORS)
            estimators = _read_estimators(file, card.get("estimators_sha256"), counts)
        policy = _from_card(values, names, estimators)
        _check(policy)
        return policy
    except PolicyError:
        raise
    except ValueError as error:
        raise unusable_bundle(path, f"{CARD} has an invalid content: {error}") from None


def _from_card(
    values: dict[str, Any], feature_names: Mapping[int, tuple[str, ...]], estimators: Mapping[str, Any]
) -> TrainedPolicy:
    """The policy of the fields of a card and of estimators. Raises `ValueError` naming what is missing."""
    strategies, calibration = values["strategies"], values.pop("calibration")
    classifiers = {
        name: CalibratedClassifier(_named(estimators, name, ESTIMATORS), *pair) for name, pair in calibration.items()
    }

    def classifier(stage: int, name: str) -> CalibratedClassifier:
        return cast(CalibratedClassifier, _named(classifiers, f"{stage}/{name}", "calibration"))

    return TrainedPolicy(
        difficulty={stage: classifier(stage, BASE) for stage in NAMES},
        changes={
            stage: tuple(
                Change(classifier(stage, f"{name}/fixes"), classifier(stage, f"{name}/breaks"))
                for name in strategies[1:]
            )
            for stage in NAMES
        },
        cost_models=tuple(
            CostRegressor(estimators[f"{COST}{name}"]) for name in strategies[1:] if f"{COST}{name}" in estimators
        ),
        feature_names=feature_names,
        **values,
    )


def _named(values: Mapping[str, Any], name: str, where: str) -> Any:
    """The value of a name. Raises `ValueError` if there is none."""
    if name not in values:
        raise ValueError(f"{where}: expected {shortened(name)}; received nothing of this name")
    return values[name]


def card_of(policy: TrainedPolicy) -> dict[str, Any]:
    """The card without checksums and calibration: description and evaluation of a policy, as plain JSON."""
    return {
        "format_version": BUNDLE_VERSION,
        "features_version": FEATURES_VERSION,
        "feature_names": {str(stage): names for stage, names in policy.feature_names.items()},
        "base_hash": policy.base_hash,
        "strategies": policy.strategies,
        "mean_costs": policy.mean_costs,
        "cost_weight": policy.cost_weight,
        "skip_probe_threshold": policy.skip_probe_threshold,
        "probe_margin": policy.probe_margin,
        "probe_cost": policy.probe_cost,
        "ranking": policy.ranking,
        "seed": policy.seed,
        "keep_threshold": policy.keep_threshold,
        "risk": policy.risk,
        "prompt_format": policy.prompt_format,
        "starting_adapter": policy.starting_adapter,
        "recipes": policy.recipes,
        "familiarity": None if policy.familiarity is None else asdict(policy.familiarity),
        "evidence": None if policy.evidence is None else asdict(policy.evidence),
        "probes_unfamiliar": policy.probes_unfamiliar,
        "probe_plans": policy.probe_plans,
        "probe_answers": policy.probe_answers,
        "models": policy.models,
        "accurate": policy.accurate,
        "accuracy_margin": policy.accuracy_margin,
        "utility_margins": policy.utility_margins,
        "sure_thresholds": policy.sure_thresholds,
        "released": policy.released,
        "versions": {name: version(name) for name in ("scikit-learn", "skops")},
        "scorecard": policy.scorecard,
        "datasets": policy.datasets,
        "families": policy.families,
        "feature_min": policy.feature_min,
        "feature_max": policy.feature_max,
        "deciles": policy.deciles,
        "cdf": policy.cdf,
    }


def _check(policy: TrainedPolicy) -> None:
    """Raises `ValueError` for names, lengths or numbers that training cannot produce."""
    names, free, all_stages = policy.strategies, *(len(policy.feature_names[stage]) for stage in sorted(NAMES))
    invalid = {
        "strategies": names[:1] != (BASE,) or len(set(names)) < len(names),
        "ranking": sorted(policy.ranking) != sorted(names),
        "mean_costs": "" not in policy.mean_costs or any(len(c) != len(names) for c in policy.mean_costs.values()),
        "feature_names": policy.feature_names[1][:free] != policy.feature_names[0],
        "feature_min": len(policy.feature_min) != free,
        "feature_max": len(policy.feature_max) != free,
        "deciles": [len(nine) for nine in policy.deciles] != [9] * all_stages,
        "cdf": [len(nine) for nine in policy.cdf] != [9] * all_stages,
        "risk": policy.risk is not None and not 0 < policy.risk < 1,
        "cost_weight": policy.cost_weight < 0,
        "cost_models": len(policy.cost_models) not in (0, len(names) - 1),
        "accurate": bool(policy.accurate) and policy.accurate not in names,
        "familiarity": policy.familiarity is not None and not _fits(policy.familiarity, policy.feature_names[0]),
        "evidence": policy.evidence is not None and not _fits_evidence(policy),
    }
    numbers: dict[str, Iterable[float]] = {
        "cost_weight": [policy.cost_weight],
        "skip_probe_threshold": [policy.skip_probe_threshold],
        "probe_margin": [policy.probe_margin or 0.0, policy.probe_cost, policy.probe_answers],
        "probe_plans": [number for plan in policy.probe_plans for number in (plan.cost, plan.margin or 0.0)],
        "keep_threshold": [policy.keep_threshold],
        "mean_costs": chain(*policy.mean_costs.values()),
        "feature_min": policy.feature_min,
        "feature_max": policy.feature_max,
        "deciles": chain(*policy.deciles),
        "cdf": chain(*policy.cdf),
        "margins": [policy.accuracy_margin, *policy.utility_margins, *policy.sure_thresholds],
        "calibration": chain(*((c.slope, c.intercept) for c in _classifiers(policy).values())),
    }
    keys = [name for name, is_invalid in invalid.items() if is_invalid]
    keys += [name for name, values in numbers.items() if not np.isfinite(list(values)).all()]
    if keys:
        raise ValueError(f"{', '.join(dict.fromkeys(keys))}: invalid for a policy of {len(names)} strategies")


def _fits(familiarity: Familiarity, free: Sequence[str]) -> bool:
    """Whether a familiarity is one of these free features."""
    count, rows = len(familiarity.names), familiarity.precision
    lengths = [len(familiarity.mean), len(familiarity.scale), len(rows), *map(len, rows)]
    numbers = [*familiarity.mean, *familiarity.scale, *chain(*rows), familiarity.threshold]
    return (
        set(familiarity.names) <= set(free) and set(lengths) == {count} and bool(np.isfinite(numbers).all())
        and min(familiarity.scale) > 0
    )  # fmt: skip


def _fits_evidence(policy: TrainedPolicy) -> bool:
    """Whether a policy's evidence is of its features and strategies."""
    evidence = policy.evidence
    if evidence is None:
        return True
    shares = [*evidence.fixes, *evidence.breaks, evidence.sure]
    lengths = len(evidence.fixes), len(evidence.breaks), len(evidence.weights)
    others = len(policy.strategies) - 1
    return (
        set(evidence.names) <= set(policy.feature_names[1]) and lengths == (others, others, len(evidence.names))
        and bool(np.isfinite([*evidence.weights, evidence.intercept]).all()) and all(0 <= x <= 1 for x in shares)
    )  # fmt: skip


def _released(path: Path, base_hash: str) -> bool:
    """Whether a folder holds a released policy for a model."""
    try:
        card = json.loads((path / CARD).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(card, dict) and card.get("released") is True and card.get("base_hash") == base_hash


def _classifiers(policy: TrainedPolicy) -> dict[str, CalibratedClassifier]:
    """Name in the bundle -> classifier."""
    named = {f"{stage}/{BASE}": classifier for stage, classifier in policy.difficulty.items()}
    for stage, changes in policy.changes.items():
        for name, change in zip(policy.strategies[1:], changes, strict=True):
            named |= {f"{stage}/{name}/fixes": change.fixes, f"{stage}/{name}/breaks": change.breaks}
    return named


def _check_features(path: Path, card: Mapping[str, Any], ignore_mismatch: bool) -> None:
    """Refuses a policy that reads features which this package does not measure, or in another version."""
    names = card.get("feature_names")
    for stage, known in NAMES.items():
        received = names.get(str(stage)) if isinstance(names, dict) else None
        if not isinstance(received, list) or not received:
            raise unusable_bundle(path, f"{CARD} has no feature names of stage {stage}")
        unknown = [name if isinstance(name, str) else shortened(name) for name in received if name not in known]
        if unknown or len(set(received)) < len(received):
            shown = ", ".join(unknown[:3] or received[:3]) + (f" and {len(unknown) - 3} more" if unknown[3:] else "")
            raise unusable_bundle(path, f"it was trained on features that this package does not measure: {shown}")
    if card.get("features_version") != FEATURES_VERSION and not ignore_mismatch:
        raise unusable_bundle(
            path,
            f"it was trained on features of version {shortened(card.get('features_version'))}, and this package "
            f"measures version {FEATURES_VERSION} under the same names; --ignore-mismatch (ignore_mismatch=True) "
            "accepts them",
        )


_READ: dict[tuple[str, tuple[tuple[int, int], ...]], Mapping[str, Any]] = {}
"""The estimators of the last bundles, by the SHA-256 of their file and the numbers of features."""
MAX_READ = 4
"""How many bundles' estimators are held."""


def _read_estimators(file: Path, sha256: object, counts: Mapping[int, int]) -> Mapping[str, Any]:
    """The estimators in the file of a bundle; `counts` is the number of features of each stage.

    Those of the last bundles are held: reading a thousand trees takes seconds, and they are never changed.
    """
    path, name = file.parent, file.name
    try:
        if not file.is_file() or file.stat().st_size > MAX_FILE_BYTES:
            file.stat()  # raises for a file that is missing
            raise ValueError(f"expected a file of at most {MAX_FILE_BYTES >> 20} MiB")
        content = file.read_bytes()
        key = hashlib.sha256(content).hexdigest(), tuple(sorted(counts.items()))
        if key[0] == sha256 and key in _READ:
            return _READ[key]
        _refuse_foreign_types(file, content)
        if key[0] != sha256:
            raise unusable_bundle(path, f"{name} is not the file that {CARD} describes (its SHA-256 differs)")
        estimators: Mapping[str, Any] = lazy.io.loads(content, trusted=list(TRUSTED))
        for place, estimator in estimators.items():
            for one in estimator if isinstance(estimator, list) else [estimator]:
                _check_estimator(one, counts[_stage_of(place)])
    except OSError as error:
        raise unusable_bundle(path, f"{name} cannot be read ({error.strerror})") from None
    except PolicyError:
        raise
    except Exception as error:  # whatever zipfile, json and skops raise on a damaged archive
        raise unusable_bundle(path, f"{name} is damaged ({type(error).__name__}: {error})") from error
    while len(_READ) >= MAX_READ:
        _READ.pop(next(iter(_READ)), None)
    _READ[key] = estimators
    return estimators


def _read_packed_estimators(path: Path, card: Mapping[str, Any], counts: Mapping[int, int]) -> Mapping[str, Any]:
    """The fast forms of a bundle's estimators. The file of the estimators themselves must be the card's too."""
    plain, packed = bundle_file(card, ESTIMATORS), bundle_file(card, PACKED)
    try:
        for name, key in ((plain, "estimators_sha256"), (packed, "packed_sha256")):
            if (path / name).stat().st_size > MAX_FILE_BYTES or _sha256(path / name) != card.get(key):
                raise unusable_bundle(path, f"{name} is not the file that {CARD} describes (its SHA-256 differs)")
        return read_packed((path / packed).read_bytes(), lambda name: counts[_stage_of(name)])
    except OSError as error:
        raise unusable_bundle(path, f"the estimators cannot be read ({error.strerror})") from None
    except PolicyError:
        raise
    except Exception as error:  # whatever zipfile and numpy raise on a damaged archive
        raise unusable_bundle(path, f"{packed} is damaged ({type(error).__name__}: {error})") from error


def _refuse_foreign_types(file: Path, content: bytes) -> None:
    """Raises `PolicyError` for an archive with types that no policy has, `ValueError` for one that is too large."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        sizes = {one.filename: one.file_size for one in archive.infolist()}
        if sizes["schema.json"] > MAX_SCHEMA_BYTES or sum(sizes.values()) > MAX_UNPACKED_BYTES:
            raise ValueError(
                f"expected at most {MAX_UNPACKED_BYTES >> 20} MiB of content and {MAX_SCHEMA_BYTES >> 20} MiB of "
                "schema.json"
            )
        nodes = list(_nodes(json.loads(archive.read("schema.json"))))
    foreign = {f"{n.get('__module__')}.{n.get('__class__')}" for n in nodes} - TYPES
    foreign |= {str(n.get("__loader__")) for n in nodes} - LOADERS
    if foreign:
        raise unusable_bundle(file.parent, f"{file.name} has types that no policy has: {', '.join(sorted(foreign))}")


def _check_estimator(estimator: Any, features: int) -> None:
    """Raises `ValueError` for an estimator that training cannot produce, and for a tree whose child or feature indices
    are out of range."""
    match estimator:
        case lazy.ensemble.RandomForestClassifier() | lazy.ensemble.RandomForestRegressor():
            for one in estimator.estimators_:
                nodes = one.tree_.__getstate__()["nodes"]
                _check_tree(nodes, nodes["left_child"] < 0, ("left_child", "right_child", "feature"), features)
        case lazy.ensemble.HistGradientBoostingClassifier():
            for tree in (tree for trees in estimator._predictors for tree in trees):
                if tree.nodes["is_categorical"].any():
                    raise ValueError("a tree with categorical features, which no policy has")
                _check_tree(tree.nodes, tree.nodes["is_leaf"] > 0, ("left", "right", "feature_idx"), features)
        case lazy.pipeline.Pipeline(
            steps=[
                (_, lazy.preprocessing.StandardScaler()),
                (_, lazy.linear_model.LogisticRegression() | lazy.neighbors.KNeighborsRegressor()),
            ]
        ):
            pass
        case lazy.dummy.DummyClassifier():
            pass
        case _:
            raise ValueError(f"an estimator that no policy has: {type(estimator).__name__}")


def _check_tree(nodes: Any, leaf: Any, names: tuple[str, str, str], features: int) -> None:
    inner, index = nodes[~leaf], np.flatnonzero(~leaf)
    left, right, feature = (inner[name].astype(np.int64) for name in names)
    descends = (left > index) & (right > index) & (left < len(nodes)) & (right < len(nodes))
    if not (len(nodes) and descends.all() and ((feature >= 0) & (feature < features)).all()):
        raise ValueError("a tree with child or feature indices out of range")


def _nodes(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Every part of a skops schema that names an object to build."""
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
