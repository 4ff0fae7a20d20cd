"""The user's policies: found by the model, the prompt format and the starting adapter, before the shipped ones."""

from __future__ import annotations

import dataclasses

import pytest

from autottt.policies import policy as policy_module
from autottt.policies.bundle import save_bundle
from autottt.policies.bundle_card import bundles, policies_folder
from autottt.policies.installed import installed_folder, remove_policy
from autottt.policies.outcome_table import build_outcome_table
from autottt.policies.policy import FixedPolicy, HeuristicPolicy, LearnedPolicy, load_policy
from autottt.policies.trained_policy import TrainedPolicy
from autottt.ttt_core.errors import PolicyError
from tests.policies.synthetic import ALL, SMALL, thumb, trained_small


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def released(**changes: object) -> TrainedPolicy:
    sure = {"strategy": "x", "value": 0.05, "interval_90": [0.01, 0.1]}
    card = {**trained_small().scorecard, "gain_over_sbs": sure, "gain_over_best_fixed": sure}
    return dataclasses.replace(trained_small(), scorecard=card, **changes)


def test_an_installed_policy_is_the_default_of_its_model_alone() -> None:
    save_bundle(released(prompt_format="chat"), installed_folder("base", "chat"))
    assert isinstance(load_policy(base_hash="base", prompt_format="chat"), LearnedPolicy)
    assert isinstance(load_policy(base_hash="base", prompt_format="standard"), HeuristicPolicy)
    assert isinstance(load_policy(base_hash="other", prompt_format="chat"), HeuristicPolicy)


def test_it_precedes_the_shipped_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(policy_module, "BUNDLED", tmp_path / "bundles" / "bundled")
    save_bundle(released(datasets=("theirs",)), tmp_path / "bundles" / "bundled")
    assert load_policy(base_hash="base").card()["datasets"] == ("theirs",)
    save_bundle(released(datasets=("mine",)), installed_folder("base", ""))
    assert load_policy(base_hash="base").card()["datasets"] == ("mine",)


def test_every_shipped_policy_but_public_may_be_the_default_of_its_model(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(policy_module, "BUNDLED", tmp_path / "bundles" / "bundled")
    save_bundle(released(base_hash="first"), tmp_path / "bundles" / "bundled")
    save_bundle(released(base_hash="second"), tmp_path / "bundles" / "second-model")
    save_bundle(released(base_hash="third"), tmp_path / "bundles" / "public")
    assert isinstance(load_policy(base_hash="second"), LearnedPolicy)
    assert isinstance(load_policy(base_hash="third"), HeuristicPolicy)


def test_one_that_is_not_released_gives_way_to_the_best_fixed_strategy() -> None:
    save_bundle(dataclasses.replace(trained_small(), scorecard={}), installed_folder("base", ""))
    policy = load_policy(base_hash="base")
    assert isinstance(policy, FixedPolicy)
    reason = policy.decide(thumb(0.5), ALL).reason
    assert "your policy for this model is neither significantly better nor as good and cheaper" in reason


@pytest.mark.parametrize(("trained_with", "now"), [("", "abc"), ("abc", ""), ("abc", "abd")])
def test_a_policy_of_another_starting_adapter_is_as_of_another_model(trained_with, now, tmp_path) -> None:
    save_bundle(released(starting_adapter=trained_with), tmp_path / "named")
    with pytest.raises(PolicyError, match=r"training that starts from .*; here it starts from"):
        load_policy(tmp_path / "named", base_hash="base", starting_adapter=now)
    loaded = load_policy(tmp_path / "named", base_hash="base", starting_adapter=trained_with)
    assert loaded.card()["starting_adapter"] == trained_with
    save_bundle(released(starting_adapter=trained_with), installed_folder("base", "", now))
    other = load_policy(base_hash="base", starting_adapter=now)
    assert isinstance(other, HeuristicPolicy)
    assert "starts from" in other.decide(thumb(0.5), ALL).reason


def test_outcomes_of_two_starting_adapters_are_not_mixed() -> None:
    mixed = [dataclasses.replace(o, starting_adapter="abc" if n % 2 else "") for n, o in enumerate(SMALL)]
    with pytest.raises(PolicyError, match=r"outcomes of 2 starting adapters \(none, abc\)"):
        build_outcome_table(mixed)


def test_names_of_own_policies_are_sources_and_can_be_removed() -> None:
    folder = installed_folder("base", "chat")
    save_bundle(released(), folder)
    assert isinstance(load_policy(folder.name, base_hash="base"), LearnedPolicy)
    assert (folder.name, folder) in list(bundles())
    assert not remove_policy("../policies/" + folder.name)
    assert remove_policy(folder.name)
    assert not remove_policy(folder.name)
    assert not any(place.parent == policies_folder() for _, place in bundles())
