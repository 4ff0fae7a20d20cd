"""The commands that show policies say what holds for each of them, also for those that are for any model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from autottt.policies.bundle_card import BUNDLES, CARD, policies_folder, read_card
from autottt.policies.installed import installed_folder
from tests.controller.cli.commands import call, task, tasks_file

MODELS = read_card(BUNDLES / "any_model")["scorecard"]["models"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def install(name: str, source: str, released: bool = True) -> Path:
    """A copy of a shipped policy as one of the user's."""
    folder = policies_folder() / name
    shutil.copytree(BUNDLES / source, folder)
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, "released": released}))
    return folder


def states() -> dict[str, str]:
    """Name and folder of each policy, and what a list says of it."""
    code, out, err = call("policy", "list", "--json")
    assert code == 0, err
    return {f"{row['origin']} {row['name']}": row["state"] for row in json.loads(out)}


def test_a_policy_for_any_model_is_shown_as_a_scorecard_of_each_model_held_out():
    code, out, err = call("policy", "show", "--policy", "any_model")
    assert code == 0, err
    assert out.startswith("# Scorecard")
    for model, card in MODELS.items():
        section = out.split(f"## Model {model}, held out")[1].split("## Model")[0]
        policy = card["arms"]["policy"]
        assert f"| policy | {policy['accuracy']:.1%} | {policy['cost']:.1f}% |" in section
        assert f"({card['queries']} queries" in section
    assert "over the rule of thumb, all models: +0." in out
    assert "Released: yes" in out
    assert "x |" not in out, "costs are no multiples of the in-context cost"


def test_a_model_without_a_policy_of_its_own_is_shown_the_one_that_decides(model):
    code, out, err = call("policy", "show", "--model", model)
    assert code == 0, err
    assert out.startswith("# Scorecard\n\nPolicy for any model")


def test_a_policy_of_another_model_is_shown_by_its_name():
    code, out, err = call("policy", "show", "--policy", "smollm2-135m")
    assert code == 0, err
    assert "Released: no" in out
    assert read_card(BUNDLES / "smollm2-135m")["base_hash"] in out
    code, out, err = call("policy", "show", "--policy", "smollm2-135m", "--cost-weight", "0", "--json")
    assert (code, json.loads(out)["cost_weight"]) == (0, 0), err


def test_decisions_of_the_policy_for_any_model_are_explained(tmp_path, model):
    code, out, err = call("policy", "explain", tasks_file(tmp_path, task("t")), "--model", model)
    assert code == 0, err
    assert "contributions of features" in out


def test_a_comparison_gives_costs_with_their_units():
    code, out, err = call("policy", "compare", "any_model", "bundled")
    assert code == 0, err
    costs = next(line for line in out.splitlines() if "cost, policy" in line).split()[2:]
    assert [cost[-1] for cost in costs] == ["%"] * len(MODELS) + ["x"]
    assert "units of cost" in " ".join(out.split())


@pytest.mark.parametrize("command", [["policy", "show", "--policy"], ["policy", "compare"]])
def test_a_name_that_no_policy_has_is_answered_with_the_names_there_are(command):
    code, _, err = call(*command, "smollm2-135")
    said = " ".join(err.split())
    assert code == 2
    assert "any_model, bundled, gemma3-270m, public, smollm2-135m" in said
    assert "did you mean 'smollm2-135m'?" in said


def test_a_list_says_which_policy_a_model_gets():
    listed = states()
    assert "released, the default of models without one of their own" in listed["shipped any_model"]
    assert "released, the default of its model" in listed["shipped bundled"]
    assert "released, used with --policy public only" in listed["shipped public"]
    assert "not released, so not used by default" in listed["shipped smollm2-135m"]
    card = read_card(BUNDLES / "bundled")
    own = installed_folder(card["base_hash"], card["prompt_format"]).name
    install(own, "bundled")
    install("copy", "bundled")
    listed = states()
    assert "released, the default of its model" in listed[f"yours {own}"]
    assert "used with --policy copy only" in listed["yours copy"]
    assert "no default, since its model has yours" in listed["shipped bundled"]
    shutil.rmtree(policies_folder() / own)
    install(own, "bundled", released=False)
    assert f"not released, so its model always gets {card['ranking'][0]} by default" in states()[f"yours {own}"]


def test_a_list_calls_one_policy_for_any_model_the_default():
    default = "released, the default of models without one of their own"
    install("any_model", "any_model")
    listed = states()
    assert default in listed["yours any_model"]
    assert "released, no default, since yours of this name precedes it" in listed["shipped any_model"]
    shutil.rmtree(policies_folder() / "any_model")
    install("any_model", "any_model", released=False)
    listed = states()
    assert "not released, so no default" in listed["yours any_model"]
    assert default in listed["shipped any_model"]


def test_the_drift_of_a_model_without_a_policy_of_its_own_is_that_from_the_policy_for_any_model(tmp_path, model):
    log = str(tmp_path / "log.jsonl")
    code, _, err = call("solve", tasks_file(tmp_path, task("t"), task("u")), "--model", model, "--trace", "--out", log)
    assert code == 0, err
    free = read_card(BUNDLES / "any_model")["feature_names"]["0"]
    for options in ([], ["--policy", "any_model"]):
        code, out, err = call("policy", "monitor", log, *options)
        assert code == 0, err
        assert set(json.loads(out)["drift"]) == set(free)
    code, _, err = call("policy", "monitor", log, "--policy", "bundled")
    assert (code, "is for another model than the one that answered" in " ".join(err.split())) == (2, True)


def test_the_list_of_models_names_the_policy_of_the_user():
    card = read_card(BUNDLES / "smollm2-135m")
    own = installed_folder(card["base_hash"], card["prompt_format"]).name
    install(own, "smollm2-135m")
    code, out, err = call("models", "list")
    assert code == 0, err
    assert f"with --policy smollm2-135m; by default yours, {own}" in out
