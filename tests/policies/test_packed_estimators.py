"""Policies loaded from arrays decide as the fitted estimators do, and an archive with wrong numbers is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from autottt.policies import lazy
from autottt.policies.bundle import CARD, ESTIMATORS, PACKED, load_bundle, save_bundle
from autottt.policies.classifiers import BinaryTarget, CalibratedClassifier, CostRegressor, fit_classifiers
from autottt.policies.classifiers import fit_cost_regressor as fit_costs
from autottt.policies.features import NAMES
from autottt.policies.trained_policy import Change, TrainedPolicy
from autottt.ttt_core.errors import PolicyError
from tests.policies.synthetic import trained_small

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(120, len(NAMES[1])))
RIGHT = (ROWS[:, 0] + 0.3 * RNG.normal(size=120) > 0).astype(float)
FAMILIES = [f"f{i % 12}" for i in range(120)]


def classifier(name: str, stage: int, right: Any = RIGHT) -> CalibratedClassifier:
    target = BinaryTarget(ROWS[:, : len(NAMES[stage])], right, np.array(FAMILIES))
    return fit_classifiers([target], 3, 0, (name,))[0][0]


def cost() -> CostRegressor:
    return fit_costs(ROWS[:, : len(NAMES[0])], 50 + ROWS[:, 1], FAMILIES, 3, 0)[0]


@pytest.fixture(scope="module")
def policy() -> TrainedPolicy:
    """Forests, logistic regressions, averages of both, a constant, and forests that predict costs."""
    small = trained_small()
    kinds = ("forest", "blend", "logistic_free")
    changes = {
        stage: tuple(
            Change(classifier(name, stage), classifier("logistic", stage, RIGHT if name == "blend" else np.zeros(120)))
            for name in kinds[: len(small.strategies) - 1]
        )
        for stage in NAMES
    }
    models = tuple(cost() for _ in small.strategies[1:])
    return dataclasses.replace(
        small, difficulty={stage: classifier("blend", stage) for stage in NAMES}, changes=changes, cost_models=models
    )


@pytest.fixture
def folder(policy: TrainedPolicy, tmp_path: Path) -> Path:
    return save_bundle(policy, tmp_path / "bundle")


def rewrite(folder: Path, **changed: Any) -> None:
    """Other arrays in the archive, with the card's checksum made to fit."""
    with np.load(folder / PACKED) as archive:
        arrays = {**archive, **changed}
    with (folder / PACKED).open("wb") as file:
        np.savez_compressed(file, **arrays)
    card = json.loads((folder / CARD).read_text())
    card["packed_sha256"] = hashlib.sha256((folder / PACKED).read_bytes()).hexdigest()
    (folder / CARD).write_text(json.dumps(card))


def test_a_policy_from_arrays_estimates_what_the_estimators_do_without_scikit_learn(
    policy: TrainedPolicy, folder: Path
) -> None:
    with mock.patch.object(lazy, "__getattr__", side_effect=AssertionError("a library was imported")):
        loaded = load_bundle(folder)
    (folder / PACKED).unlink()
    slow = load_bundle(folder)
    for stage, names in NAMES.items():
        rows = ROWS[:, : len(names)]
        np.testing.assert_allclose(loaded.probabilities(stage, rows), policy.probabilities(stage, rows), atol=1e-12)
        np.testing.assert_allclose(slow.probabilities(stage, rows), policy.probabilities(stage, rows), atol=1e-12)
    free, kinds = ROWS[:, : len(NAMES[0])], ["list"] * len(ROWS)
    np.testing.assert_array_equal(loaded.expected_costs(kinds, free), policy.expected_costs(kinds, free))
    assert np.ptp(loaded.expected_costs(kinds, free)[:, 1]) > 0


@pytest.mark.parametrize("name", ["nearest_families", "boosting"])
def test_a_policy_with_an_estimator_without_fast_form_has_no_arrays(
    policy: TrainedPolicy, folder: Path, name: str
) -> None:
    other = dataclasses.replace(policy, difficulty={stage: classifier(name, stage) for stage in NAMES})
    assert (folder / PACKED).exists()
    assert save_bundle(other, folder, over_released=True) == folder
    assert not (folder / PACKED).exists()
    assert load_bundle(folder).probabilities(1, ROWS) == pytest.approx(other.probabilities(1, ROWS))


@pytest.mark.parametrize("name", [ESTIMATORS, PACKED])
def test_a_file_that_is_not_the_cards_is_refused(folder: Path, name: str) -> None:
    with (folder / name).open("r+b") as file:
        file.write(b"other")
    with pytest.raises(PolicyError, match=f"{name} is not the file that card.json describes"):
        load_bundle(folder)


def changed(array: Any, place: int, value: float) -> Any:
    copied = np.array(array)
    copied.reshape(-1)[place] = value
    return copied


@pytest.mark.parametrize(
    ("name", "place", "value", "reason"),
    [
        ("left", 0, -1, "indices out of range"),
        ("left", 0, 10**6, "indices out of range"),
        ("right", 5, 0, "indices out of range"),
        ("feature", 0, 10**4, "indices out of range"),
        ("roots", 0, -5, "indices out of range"),
        ("forests", 0, 99, "indices out of range"),
        ("forests", 1, 0, "indices out of range"),
        ("forests", 2, 10**6, "indices out of range"),
        ("forests", 3, 10**6, "indices out of range"),
        ("linear", 0, -1, "indices out of range"),
        ("linear", 1, 3, "3 weights for"),
        ("value", 0, np.nan, "not finite"),
        ("biases", 0, np.inf, "not finite"),
    ],
)
def test_an_archive_with_wrong_numbers_is_refused(
    folder: Path, name: str, place: int, value: float, reason: str
) -> None:
    with np.load(folder / PACKED) as archive:
        array = changed(archive[name], place, value)
    rewrite(folder, **{name: array})
    with pytest.raises(PolicyError, match=f"{PACKED} is damaged .*{reason}"):
        load_bundle(folder)


@pytest.mark.parametrize("array", [np.zeros(3), np.array([[1]], dtype=object), np.zeros((2, 2), dtype=np.int64)])
def test_an_array_of_another_kind_is_refused(folder: Path, array: Any) -> None:
    rewrite(folder, roots=array)
    with pytest.raises(PolicyError, match=f"{PACKED} is damaged"):
        load_bundle(folder)
