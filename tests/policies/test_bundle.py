"""A bundle gives back the policy that was saved, executes nothing, and says why when it is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from autottt.policies import bundle as bundle_module
from autottt.policies.bundle import ESTIMATORS, load_bundle, save_bundle
from autottt.policies.bundle_card import CARD
from autottt.policies.classifiers import (
    CANDIDATES,
    BinaryTarget,
    CalibratedClassifier,
    CostRegressor,
    fit_classifiers,
    fit_cost_regressor,
)
from autottt.policies.features import NAMES, Features
from autottt.policies.policy import LearnedPolicy
from autottt.policies.trained_policy import Change, TrainedPolicy
from autottt.ttt_core.errors import PolicyError
from tests.policies.synthetic import at, trained_small

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(120, len(NAMES[1])))
RIGHT = (ROWS[:, 0] + 0.3 * RNG.normal(size=120) > 0).astype(float)
FAMILIES = [f"f{i % 12}" for i in range(120)]


def head(name: str, stage: int, right=RIGHT) -> CalibratedClassifier:
    question = BinaryTarget(ROWS[:, : len(NAMES[stage])], right, np.array(FAMILIES))
    return fit_classifiers([question], 3, 0, (name,))[0][0]


def amount() -> CostRegressor:
    return fit_cost_regressor(ROWS[:, : len(NAMES[0])], 50 + ROWS[:, 1], FAMILIES, 3, 0)[0]


@pytest.fixture(scope="module")
def policy():
    free = len(NAMES[0])
    changes = {
        s: (
            Change(head("boosting", s), head("logistic", s)),
            Change(head("logistic", s, np.zeros(120)), head("blend", s)),
        )
        for s in NAMES
    }
    return TrainedPolicy(
        "base", ("in_context", "ttt_in_context", "never_right"), {s: head("logistic", s) for s in NAMES}, changes,
        {"": (1.0, 50.0, 7.0), "list": (1.0, 40.0, 6.0)}, 0.002, 0.8, ("ttt_in_context", "in_context", "never_right"),
        (-3.0,) * free, (3.0,) * free, (tuple(range(9)),) * len(NAMES[1]), ((0.5,) * 9,) * len(NAMES[1]),
        ("a", "b"), ("made",), 7, cost_models=(amount(), amount()), scorecard={"families": 2},
    )  # fmt: skip


@pytest.fixture(scope="module")
def saved(policy, tmp_path_factory):
    return save_bundle(policy, tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the bundle, to be changed."""
    return shutil.copytree(saved, tmp_path, dirs_exist_ok=True)


def alone(policy, heads):
    """A policy of one strategy, with a head for each stage."""
    return dataclasses.replace(
        policy, strategies=("in_context",), difficulty=heads, changes=dict.fromkeys(NAMES, ()), mean_costs={"": (1.0,)},
        ranking=("in_context",), cost_models=(),
    )  # fmt: skip


def edit_card(folder, **changed):
    card = json.loads((folder / CARD).read_text()) | changed
    (folder / CARD).write_text(json.dumps(card))


def replace_heads(folder, estimators):
    """What a forger would do: other heads, with the card's checksum made to fit."""
    skops.io.dump(estimators, folder / ESTIMATORS)
    edit_card(folder, estimators_sha256=hashlib.sha256((folder / ESTIMATORS).read_bytes()).hexdigest())


def test_a_saved_bundle_is_loaded(policy, folder):
    loaded = load_bundle(folder)
    for stage, names in NAMES.items():
        rows = ROWS[:, : len(names)]
        np.testing.assert_array_equal(loaded.probabilities(stage, rows), policy.probabilities(stage, rows))
    free = ROWS[:, : len(NAMES[0])]
    costs = policy.expected_costs(["list"] * 120, free)
    np.testing.assert_array_equal(loaded.expected_costs(["list"] * 120, free), costs)
    assert np.ptp(costs[:, 1]) > 0
    fitted: dict[str, Any] = {"difficulty": {}, "changes": {}, "cost_models": ()}
    assert dataclasses.replace(loaded, **fitted) == dataclasses.replace(policy, **fitted)


def test_a_policy_of_fewer_features_is_loaded_and_reads_them_by_name(policy, tmp_path):
    """A feature that was added to the package after training is ignored in serving."""
    names = {0: NAMES[0][1:], 1: NAMES[1][1:]}

    def smaller(stage: int) -> CalibratedClassifier:
        target = BinaryTarget(ROWS[:, 1 : len(NAMES[stage])], RIGHT, np.array(FAMILIES))
        return fit_classifiers([target], 3, 0, ("logistic",))[0][0]

    older = dataclasses.replace(
        alone(policy, {stage: smaller(stage) for stage in NAMES}), feature_names=names,
        feature_min=policy.feature_min[1:], feature_max=policy.feature_max[1:], deciles=policy.deciles[1:],
        cdf=policy.cdf[1:],
    )  # fmt: skip
    save_bundle(older, tmp_path)
    loaded = load_bundle(tmp_path)
    assert loaded.feature_names == names
    values = dict(zip(NAMES[1], ROWS[0].tolist(), strict=True))
    decision = LearnedPolicy(loaded).decide(Features(1, values), ["in_context"])
    expected = older.probabilities(1, ROWS[:1, 1:])[0, 0]
    assert decision.scores["in_context"] == pytest.approx(expected)


def test_every_candidate_consists_of_what_a_bundle_may_hold(policy, tmp_path):
    for name in CANDIDATES:
        made = {stage: head(name, stage) for stage in NAMES}
        save_bundle(alone(policy, made), tmp_path / name)
        assert load_bundle(tmp_path / name).difficulty.keys() == NAMES.keys()


@pytest.mark.parametrize("name", ["forest", "boosting", "cost"])
def test_a_tree_that_leads_nowhere_is_refused(policy, tmp_path, name):
    for broken in ("child", "feature"):
        made = {stage: head("logistic" if name == "cost" else name, stage) for stage in NAMES}
        whole = dataclasses.replace(policy, cost_models=(amount(), amount())) if name == "cost" else alone(policy, made)
        estimator = whole.cost_models[0].estimator if name == "cost" else made[1].estimator
        if name != "boosting":
            tree = estimator.estimators_[0].tree_
            array = tree.children_left if broken == "child" else tree.feature
            array[0] = 10**6
        else:
            nodes = estimator._predictors[0][0].nodes
            nodes["left" if broken == "child" else "feature_idx"][0] = 10**6
        folder = tmp_path / broken
        save_bundle(whole, folder)
        with pytest.raises(PolicyError, match="indices out of range"):
            load_bundle(folder)


@pytest.mark.parametrize("name", ["pipeline", "tree"])
def test_an_estimator_that_no_training_makes_is_refused(policy, tmp_path, name):
    """Of types that a bundle may hold, but put together so that nobody looked at the trees."""
    forest = head("forest", 1).estimator
    hidden = forest.estimators_[0] if name == "tree" else make_pipeline(StandardScaler().fit(ROWS), forest)
    save_bundle(alone(policy, {0: head("logistic", 0), 1: CalibratedClassifier(hidden)}), tmp_path)
    with pytest.raises(PolicyError, match="an estimator that no policy has"):
        load_bundle(tmp_path)


def test_the_card_can_be_read_by_people_and_programs(folder):
    card = json.loads((folder / CARD).read_text())
    assert card["base_hash"] == "base"
    assert card["feature_names"] == {str(stage): list(names) for stage, names in NAMES.items()}
    assert card["versions"].keys() == {"scikit-learn", "skops"}
    assert sorted(p.name for p in folder.iterdir()) == [CARD, ESTIMATORS]


def test_a_bundle_that_is_replaced_is_the_old_or_the_new_one_at_every_moment(policy, folder, monkeypatch):
    new = dataclasses.replace(policy, cost_weight=0.375)
    assert load_bundle(folder).cost_weight != 0.375
    replace, at, done = os.replace, 0, False

    def killed_at(count):
        """Replaces files until a kill before the given replacement."""
        calls = itertools.count(1)

        def replaced(source, target):
            if next(calls) == count:
                raise KeyboardInterrupt
            replace(source, target)

        return replaced

    while not done:
        at += 1
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", killed_at(at))
            patch.setattr(Path, "replace", os.replace)
            try:
                save_bundle(new, folder, over_released=True)
                done = True
            except KeyboardInterrupt:
                assert load_bundle(folder).cost_weight != 0.375
    assert at == 3
    assert load_bundle(folder).cost_weight == 0.375
    card = json.loads((folder / CARD).read_text())
    assert sorted(p.name for p in folder.iterdir()) == [CARD, card["files"][ESTIMATORS]]


def test_a_bundle_that_is_replaced_while_it_is_read_is_the_new_one(policy, folder, monkeypatch):
    read, new = bundle_module.read_card, dataclasses.replace(policy, cost_weight=0.375, seed=12345)

    def replaced(path):
        card = read(path)
        if card["seed"] != 12345:
            save_bundle(new, folder, over_released=True)
        return card

    monkeypatch.setattr(bundle_module, "read_card", replaced)
    assert load_bundle(folder).cost_weight == 0.375


@pytest.mark.parametrize("name", ["../other.skops", "card.json", 3, "estimators-0.skops"])
def test_a_card_names_only_files_of_estimators(folder, name):
    edit_card(folder, files={ESTIMATORS: name})
    with pytest.raises(PolicyError, match=r"files: expected names such as estimators\.skops; received"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "foreign",
    [
        make_pipeline(FunctionTransformer(np.exp), LogisticRegression()),
        np.random.RandomState(0),
        LogisticRegression,
        {"f": np.exp},
    ],
    ids=["function transformer", "random state", "a class", "a function"],
)
def test_heads_of_a_foreign_type_are_refused(folder, foreign):
    replace_heads(folder, {"0/in_context": foreign})
    with pytest.raises(PolicyError, match=r"has types that no policy has|Untrusted types"):
        load_bundle(folder)


def test_a_call_in_a_trusted_type_is_refused(folder):
    with zipfile.ZipFile(folder / ESTIMATORS) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(files["schema.json"])
    schema["__loader__"] = "OperatorFuncNode"
    with zipfile.ZipFile(folder / ESTIMATORS, "w") as archive:
        for name, data in (files | {"schema.json": json.dumps(schema).encode()}).items():
            archive.writestr(name, data)
    with pytest.raises(PolicyError, match="OperatorFuncNode"):
        load_bundle(folder)


def test_heads_that_the_card_does_not_describe_are_refused(folder):
    skops.io.dump({"0/in_context": StandardScaler()}, folder / ESTIMATORS)
    with pytest.raises(PolicyError, match=r"is not the file that card\.json describes"):
        load_bundle(folder)


def test_a_head_that_is_missing_is_named(folder):
    replace_heads(folder, {"0/in_context": HistGradientBoostingClassifier(max_iter=1).fit(ROWS, RIGHT)})
    with pytest.raises(PolicyError, match="has an invalid content"):
        load_bundle(folder)


@pytest.mark.parametrize("name", [CARD, ESTIMATORS])
def test_a_missing_file_is_named_with_the_remedy(folder, name):
    (folder / name).unlink()
    with pytest.raises(PolicyError, match=rf"{name} cannot be read.*train-policy"):
        load_bundle(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(PolicyError, match="cannot be read"):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [CARD, ESTIMATORS])
def test_a_damaged_file_is_refused(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(PolicyError, match=name):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"format_version": 99}, "not in version .*, but version 99"),
        ({"format_version": None, "format": 7}, "not in version .* train-policy"),
        ({"features_version": 99}, "features of version 99.*--ignore-mismatch"),
        ({"feature_names": {"0": ["other"], "1": ["other"]}}, "features that this package does not measure: other"),
        ({"mean_costs": None}, "has an invalid content"),
        ({"cost_weight": "high"}, "has an invalid content"),
        ({"calibration": {"0/in_context": [1]}}, "has an invalid content"),
        ({"feature_names": {"0": list(NAMES[0]), "1": [*NAMES[1], "new"]}}, "does not measure: new"),
        ({"feature_names": {"0": list(NAMES[0]), "1": list(NAMES[1][:-1])}}, "not a usable policy"),
        ({"feature_names": {"0": list(NAMES[0]), "1": list(NAMES[1][::-1])}}, "feature_names: invalid"),
        ({"feature_names": ["other"]}, "has no feature names of stage 0"),
        ({"feature_min": []}, "feature_min: invalid for a policy of 3 strategies"),
        ({"feature_max": [1.0]}, "feature_max: invalid"),
        ({"deciles": []}, "deciles: invalid"),
        ({"cdf": [[0.5] * 8] * len(NAMES[1])}, "cdf: invalid"),
        ({"cost_weight": float("nan")}, "cost_weight: invalid"),
        ({"cost_weight": -0.1}, "cost_weight: invalid"),
        ({"skip_probe_threshold": float("inf")}, "skip_probe_threshold: invalid"),
        ({"probe_margin": float("nan")}, "probe_margin: invalid"),
        ({"mean_costs": {"": [1.0]}}, "mean_costs: invalid"),
        ({"mean_costs": {"list": [1.0, 50.0, 7.0]}}, "mean_costs: invalid"),
        ({"ranking": ["nope"]}, "ranking: invalid"),
        ({"risk": 2.0}, "risk: invalid"),
        ({"feature_min": [], "cost_weight": float("nan")}, "feature_min, cost_weight: invalid"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(folder, changed, reason):
    edit_card(folder, **changed)
    with pytest.raises(PolicyError, match=reason):
        load_bundle(folder)


DEEP = json.loads("[" * 900 + "]" * 900)


VALUES = (None, True, 1.5, 10**400, "text", [[]], [10**30], {"a": 1}, {"": [[]]}, DEEP)


def reason_of(folder) -> str:
    """Why a bundle is refused; empty if it is loaded."""
    try:
        load_bundle(folder)
    except PolicyError as error:
        return str(error)
    return ""


def test_a_field_of_another_type_is_refused_unless_a_policy_may_have_it(folder):
    card = json.loads((folder / CARD).read_text())
    loaded = []
    for name in card.keys() - {"versions", "released", "prompt_format", "starting_adapter", "base_hash", "scorecard"}:
        for value in VALUES:
            edit_card(folder, **(card | {name: value}))
            reason = reason_of(folder)
            assert not reason or "not a usable policy" in reason
            assert len(reason) < 1000
            loaded += [] if reason else [(name, value)]
    assert sorted(loaded, key=str) == [
        ("accuracy_margin", 1.5), ("cost_weight", 1.5), ("evidence", None), ("familiarity", None),
        ("keep_threshold", 1.5), ("probe_answers", 1.5), ("probe_cost", 1.5), ("probe_margin", 1.5),
        ("probe_margin", None), ("probes_unfamiliar", True), ("risk", None), ("skip_probe_threshold", 1.5),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["familiarity", "evidence"])
def test_numbers_that_do_not_fit_the_features_are_refused(tmp_path, name):
    folder = save_bundle(trained_small(), tmp_path / "small")
    card = json.loads((folder / CARD).read_text())
    assert reason_of(folder) == ""
    for key, value in card[name].items():
        for wrong in (None, value[:-1] if isinstance(value, list) else "text"):
            edit_card(folder, **card | {name: {**card[name], key: wrong}})
            assert "not a usable policy" in reason_of(folder), (key, wrong)
    edit_card(folder, **card | {name: {**card[name], "names": ["no_feature"] * len(card[name]["names"])}})
    assert "not a usable policy" in reason_of(folder)


@pytest.mark.parametrize("name", ["strategies", "mean_costs", "risk", "scorecard", "calibration", "seed"])
def test_a_missing_field_is_named(folder, name):
    card = json.loads((folder / CARD).read_text())
    del card[name]
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(PolicyError, match=f"{name}: expected .* received nothing: the field is missing"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"scorecard": {"gain_over_sbs": [1]}}, "scorecard: expected"),
        ({"scorecard": {"gain_over_sbs": {"interval_90": [float("nan"), 1]}}}, "scorecard: expected"),
        ({"scorecard": {"gain_over_best_fixed": {"interval_90": ["a", "b"]}}}, "scorecard: expected"),
        ({"calibration": {}}, "calibration: expected '0/in_context'"),
        ({"cost_weight": 10**400}, "integers of at most 64 bits"),
        ({"families": ["a\ud800"]}, "families: expected texts that can be written as UTF-8"),
        ({"scorecard": {"deep": DEEP}}, "scorecard: expected at most 16 levels"),
        ({"deciles": [[True] * 9] * len(NAMES[1])}, "deciles: expected a list of lists of numbers"),
        ({"strategies": "in_context"}, "strategies: expected a list of texts"),
        ({"features_version": "9" * 5000}, "features of version '999"),
    ],
)
def test_a_card_with_invalid_values_is_refused(folder, changed, reason):
    edit_card(folder, **changed)
    with pytest.raises(PolicyError, match=reason):
        load_bundle(folder)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"format_version": ' + "9" * 5000 + "}", "\udcff", "", "null", " " * (17 << 20)]
)
def test_a_card_that_is_not_json_is_refused(folder, text):
    (folder / CARD).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(PolicyError, match=r"not a usable policy: card\.json"):
        load_bundle(folder)


def test_a_card_or_estimators_that_are_not_files_are_refused(folder):
    (folder / CARD).rename(folder / "kept.json")
    os.mkfifo(folder / CARD)
    with pytest.raises(PolicyError, match="it is not a file"):
        load_bundle(folder)
    (folder / "kept.json").replace(folder / CARD)
    with (folder / ESTIMATORS).open("r+b") as opened:
        opened.truncate(300 << 20)
    with pytest.raises(PolicyError, match="a file of at most 256 MiB"):
        load_bundle(folder)
    (folder / ESTIMATORS).unlink()
    os.mkfifo(folder / ESTIMATORS)
    with pytest.raises(PolicyError, match="a file of at most 256 MiB"):
        load_bundle(folder)


def test_estimators_that_unpack_to_much_more_are_refused_before_they_are_unpacked(folder):
    with (
        zipfile.ZipFile(folder / ESTIMATORS, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("schema.json", "w", force_zip64=True) as opened,
    ):
        for _ in range(130):
            opened.write(b" " * (1 << 20))
    with pytest.raises(PolicyError, match="128 MiB of schema"):
        load_bundle(folder)


def test_a_policy_that_has_decided_can_be_pickled() -> None:
    policy = LearnedPolicy(trained_small())
    features = at(0.5)
    allowed = list(policy.trained.strategies)
    before = policy.decide(features, allowed)
    assert pickle.loads(pickle.dumps(policy)).decide(features, allowed) == before
