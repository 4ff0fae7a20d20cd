"""Recipes: what they refuse, and that equal ones have equal digests."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autottt.strategies.base import recipe_for
from autottt.strategies.registry import get_strategy, strategies
from autottt.ttt_core.errors import ModelError
from autottt.ttt_core.model import loading
from autottt.ttt_core.pretraining.recipes import BUNDLED_RECIPES
from autottt.ttt_core.recipes import Recipe, recipe_digest, recipes_for_model
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

CARD = Path(__file__).parents[2] / "policies" / "bundles" / "bundled" / "card.json"
COUNTS = ("rank", "max_steps", "batch_size", "views", "max_tokens_per_step", "transformations")
NUMBERS = ("alpha", "dropout", "learning_rate", "warmup_ratio", "weight_decay", "max_grad_norm", "early_stop_loss")


def test_equal_recipes_have_equal_digests_whatever_type_their_numbers_came_in() -> None:
    whole = {"alpha": 16, "dropout": 0, "learning_rate": 1, "warmup_ratio": 1, "weight_decay": 0, "max_grad_norm": 2}
    whole["early_stop_loss"] = 0
    one, other = Recipe.from_settings(whole), Recipe(**{name: float(value) for name, value in whole.items()})  # type: ignore[arg-type]
    assert one == other
    assert recipe_digest(one) == recipe_digest(other)
    assert recipe_digest(replace(one, rank=np.int64(4), alpha=np.float32(0.5))) == recipe_digest(
        replace(one, rank=4, alpha=0.5)
    )
    assert all(type(getattr(one, name)) is float for name in NUMBERS)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [-1, 4.5, 4.0, "4", None, True, [4]])
def test_counts_are_integers(name: str, value: Any) -> None:
    with pytest.raises(ModelError, match=rf"{name}: expected an integer of at least [01]; received "):
        Recipe(**{name: value})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, "0.1", None, True, [0.1]])
def test_the_other_numbers_are_numbers(name: str, value: Any) -> None:
    with pytest.raises(ModelError, match=rf"{name}: expected a number.*; received "):
        Recipe(**{name: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1}, r"dropout: expected a number in \[0, 1\); received 1"),
        ({"dropout": -0.1}, r"dropout: expected a number in \[0, 1\); received -0.1"),
        ({"learning_rate": 0.0}, r"learning_rate: expected a number above 0; received 0.0"),
        ({"learning_rate": -1e-3}, r"learning_rate: expected a number above 0; received -0.001"),
        ({"warmup_ratio": 10}, r"warmup_ratio: expected a number in \[0, 1\]; received 10"),
        ({"loss": "lsat"}, r"loss: expected one of all, last, inputs; received 'lsat'"),
        ({"target_modules": "q_proj"}, r"target_modules: expected a tuple of names .*; received 'q_proj'"),
        ({"target_modules": []}, r"target_modules: expected a tuple of names"),
        ({"target_modules": [3]}, r"target_modules: expected a tuple of names .*; received \(3,\)"),
        (
            {"layers_to_transform": [-1]},
            r"layers_to_transform: expected a tuple of numbers of layers.*received \(-1,\)",
        ),
        ({"layers_to_transform": 3}, r"layers_to_transform: expected a tuple of numbers of layers.*received 3"),
        ({"rnak": 3}, r"unknown recipe settings \['rnak'\]; known are .*'rank'"),
        ([], r"a recipe is an object of settings; received \[\]"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_expected(settings: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Recipe.from_settings(settings)


DEFAULTS = [s.default_recipe for s in strategies().values() if s.default_recipe is not None]


@pytest.mark.parametrize("recipe", [*BUNDLED_RECIPES.values(), *DEFAULTS])
def test_a_recipe_comes_back_from_its_settings(recipe: Recipe) -> None:
    settings = {**asdict(recipe), "target_modules": list(recipe.target_modules)}
    assert Recipe.from_settings(settings) == recipe
    assert recipe_digest(Recipe.from_settings(settings)) == recipe_digest(recipe)


def test_recipes_for_other_layers_have_other_digests_whatever_the_order() -> None:
    one, other, same = (Recipe.from_settings({"layers_to_transform": n}) for n in ([1, 2], [2], [2, 1, 2]))
    assert one == same
    assert len({recipe_digest(recipe) for recipe in (Recipe(), one, other)}) == 3


def test_the_shipped_policy_knows_the_shipped_recipes_by_their_digests() -> None:
    written = json.loads(CARD.read_text())["recipes"]
    assert written
    for place, digest in written.items():
        name, kind = place.split("/")
        assert digest == recipe_digest(recipe_for(get_strategy(name), BUNDLED_RECIPES, kind))


@pytest.mark.parametrize("value", [10**400, 10**4000, -(10**400), [], {}, "high", None, math.nan])
@pytest.mark.parametrize("name", [*COUNTS, *NUMBERS, "loss", "target_modules"])
def test_a_huge_number_or_another_type_is_refused_with_the_setting(name: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"a recipe's {name}: expected ") as refusal:
        Recipe.from_settings({name: value})
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize("settings", [[], 10**4000, None, {"a" * 10_000: 1}, {3: 1, "rnak": 2}])
def test_settings_that_are_no_settings_are_refused_in_few_words(settings: Any) -> None:
    with pytest.raises(ModelError, match=r"recipe (is an object of )?settings") as refusal:
        Recipe.from_settings(settings)
    assert len(str(refusal.value)) < 600


@pytest.mark.parametrize(
    ("parameters", "small"), [(4_600_000, False), (10**8, True), (135 * 10**6, True), (10**9 - 1, True), (10**9, False)]
)
def test_models_of_a_tenth_to_one_billion_parameters_have_recipes_of_their_own(parameters: int, small: bool) -> None:
    recipes = recipes_for_model(parameters, "llama")
    assert bool(recipes) == small
    if small:
        trained = [name for name, strategy in strategies().items() if strategy.cost_class == "train"]
        assert set(recipes) == set(trained)
        one, vote = recipes["ttt_in_context"], recipes["ttt_augmented"]
        assert (one.max_steps, one.batch_size, one.learning_rate, one.rank) == (3, 1, 2e-3, 16)
        assert (vote.max_steps, vote.batch_size, vote.learning_rate, vote.rank) == (2, 3, 2e-3, 16)


@pytest.mark.parametrize(("model_type", "rate"), [("llama", 2e-3), ("gemma3_text", 5e-4), ("qwen3", 5e-4), ("", 5e-4)])
def test_the_learning_rate_is_that_of_the_architecture(model_type: str, rate: float) -> None:
    recipes = recipes_for_model(270 * 10**6, model_type)
    assert {recipe.learning_rate for recipe in recipes.values()} == {rate}
    assert set(recipes) == set(recipes_for_model(135 * 10**6, "llama"))


def test_a_loaded_model_gets_the_recipes_of_its_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(loading, "recipes_for_model", lambda *model: calls.append(model) or {})
    model = tiny_model("llama")
    loading.wrap_model(model, tiny_tokenizer())
    assert calls == [(sum(p.numel() for p in model.parameters()), "llama")]


def test_a_recipe_of_the_folder_precedes_that_of_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    ones = {"a": Recipe(rank=1), "b": Recipe(rank=1)}
    monkeypatch.setattr(loading, "recipes_for_model", lambda parameters, model_type: ones)
    loaded = loading.wrap_model(tiny_model("llama"), tiny_tokenizer(), recipes={"b": Recipe(rank=2)})
    assert {name: recipe.rank for name, recipe in loaded.recipes.items()} == {"a": 1, "b": 2}
