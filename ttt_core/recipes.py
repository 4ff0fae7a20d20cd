"""Recipes: how an adapter is trained. Knows nothing about tasks.

Each strategy has a default recipe, and models of 0.1 to 1 billion parameters have others (`recipes_for_model`). A model
folder may carry its own in `autottt.json`; the bundled model does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from math import inf
from numbers import Integral
from types import MappingProxyType
from typing import Any, Literal, get_args

from .arguments import as_number
from .errors import ModelError, shortened

Loss = Literal["all", "last", "inputs"]

_WHOLE = {
    "rank": 1, "max_steps": 1, "batch_size": 1, "views": 1, "max_tokens_per_step": 0, "transformations": 0,
}  # fmt: skip
"""Settings that count something, and the least of each."""
_LARGEST = 2**31 - 1
"""The largest count."""
_NUMBERS: Mapping[str, tuple[str, Callable[[float], bool]]] = {
    "alpha": ("a number", lambda x: -inf < x < inf),
    "dropout": ("a number in [0, 1)", lambda x: 0 <= x < 1),
    "learning_rate": ("a number above 0", lambda x: 0 < x < inf),
    "warmup_ratio": ("a number in [0, 1]", lambda x: 0 <= x <= 1),
    "weight_decay": ("a number of at least 0", lambda x: 0 <= x < inf),
    "max_grad_norm": ("a number above 0", lambda x: 0 < x < inf),
    "early_stop_loss": ("a number of at least 0", lambda x: 0 <= x < inf),
}
"""The other numbers: what each has to be, in words and as a test."""


@dataclass(frozen=True)
class Recipe:
    """How one adapter is trained."""

    rank: int = 64
    alpha: float = 64.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.05
    """On the adapter's inputs, as in LoRA."""
    target_modules: tuple[str, ...] = ("all-linear",)
    """Names of the modules that get an adapter; `all-linear` is every linear layer but the output head."""
    learning_rate: float = 1e-4
    max_steps: int = 8
    batch_size: int = 5
    """Examples (prompts) in a step."""
    max_tokens_per_step: int = 0
    """Tokens in a step at most, but for a single prompt: where prompts are long, a step has fewer; 0 sets no limit."""
    warmup_ratio: float = 0.1
    """Share of the steps over which the rate rises linearly; then it falls by a cosine to 0."""
    weight_decay: float = 0.0
    loss: Loss = "all"
    """Tokens that are learned: every answer from the second on, the last answer, or inputs as well."""
    transformations: int = 0
    """Invertible transformations of the task that examples are also drawn from."""
    views: int = 1
    """Prompts that vote on the answer."""
    max_grad_norm: float = 1.0
    """Largest norm of the gradient."""
    early_stop_loss: float = 0.0
    """Training stops early once two steps in a row had a loss below this, in nats; 0 takes every step."""
    layers_to_transform: tuple[int, ...] = ()
    """Numbers (from 0) of the layers whose modules get an adapter, as in PEFT; empty: all layers."""

    def __post_init__(self) -> None:
        """Raises `ModelError` for a setting that is not what it has to be. Numbers become `int` or `float`: equal
        recipes are to have equal digests."""
        for name, least in _WHOLE.items():
            count: object = getattr(self, name)
            if not isinstance(count, Integral) or isinstance(count, bool) or count < least:
                raise _refused(name, f"an integer of at least {least}", count)
            if int(count) > _LARGEST:
                raise _refused(name, f"an integer of at most {_LARGEST}", count)
            object.__setattr__(self, name, int(count))
        for name, (expected, suits) in _NUMBERS.items():
            number: object = getattr(self, name)
            if not suits(as_number(number)):
                raise _refused(name, expected, number)
            object.__setattr__(self, name, as_number(number))
        if not isinstance(self.loss, str) or self.loss not in get_args(Loss):
            raise _refused("loss", f"one of {', '.join(get_args(Loss))}", self.loss)
        targets: object = self.target_modules
        if not isinstance(targets, tuple) or not targets or not all(isinstance(t, str) for t in targets):
            raise _refused("target_modules", "a tuple of names of modules, or ('all-linear',)", targets)
        layers: object = self.layers_to_transform
        if not isinstance(layers, tuple) or not all(type(n) is int and 0 <= n <= _LARGEST for n in layers):
            raise _refused("layers_to_transform", "a tuple of numbers of layers, each at least 0", layers)
        object.__setattr__(self, "layers_to_transform", tuple(sorted(set(layers))))

    @property
    def shape(self) -> tuple[object, ...]:
        """What an adapter's weights depend on beside the model."""
        return self.rank, self.alpha, tuple(sorted(set(self.target_modules))), self.layers_to_transform

    @property
    def batching_key(self) -> tuple[object, ...]:
        """What the recipes of adapters that are trained side by side have in common."""
        return *self.shape, self.dropout, self.loss

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Recipe:
        """A recipe from a mapping as JSON gives it. Raises `ModelError` naming unknown settings and wrong ones."""
        if not isinstance(settings, Mapping):
            raise ModelError(f"a recipe is an object of settings; received {shortened(settings)}")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(map(shortened, settings.keys() - known)):
            raise ModelError(f"unknown recipe settings [{', '.join(unknown[:5])}]; known are {sorted(known)}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
        }
        return replace(cls(), **values)


def _refused(name: str, expected: str, received: object) -> ModelError:
    return ModelError(f"a recipe's {name}: expected {expected}; received {shortened(received)}")


SMALL_MODELS = (100_000_000, 1_000_000_000)
"""Parameters, from and below, of the models that `recipes_for_model` has recipes for."""
_SMALL = Recipe(
    rank=16, alpha=16.0, dropout=0.0, learning_rate=5e-4, max_steps=2, batch_size=3,
    target_modules=("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj", "o_proj"),
)  # fmt: skip
MEASURED_RATES: Mapping[str, float] = {"llama": 2e-3, "gemma3_text": 5e-4}
"""Architecture (`model_type` of transformers) -> the learning rate for its models of these sizes, searched on one each;
other ones get the lowest, at which both of these models gain (docs/models.md)."""


@cache
def _small_recipes(learning_rate: float) -> Mapping[str, Recipe]:
    thorough = replace(_SMALL, learning_rate=learning_rate)
    quick = replace(thorough, max_steps=3, batch_size=1)
    vote = replace(thorough, transformations=8, views=3)
    return MappingProxyType({
        "ttt_direct": replace(thorough, loss="last"), "ttt_in_context": quick, "ttt_warm": quick,
        "ttt_augmented": vote, "ttt_crossfit": vote, "ttt_race": vote,
    })  # fmt: skip


def recipes_for_model(parameters: int, model_type: str = "") -> Mapping[str, Recipe]:
    """Strategy -> its recipe for a model of this number of parameters and architecture (`model_type` in its
    config.json); empty for sizes without recipes of their own.

    Three steps of one prompt, which holds all demonstrations and whose loss is on every answer; two steps of 3 prompts
    where the loss is on the last answer, or where examples come from transformations as well. The rate is that of
    `MEASURED_RATES`: what SmolLM2 gains most by harms Gemma 3 270M. Measured in docs/models.md; the published recipes
    are for 1 to 8 billion parameters.
    """
    if not SMALL_MODELS[0] <= parameters < SMALL_MODELS[1]:
        return {}
    return _small_recipes(MEASURED_RATES.get(model_type, _SMALL.learning_rate))


def recipes_for_each(recipe: Recipe | Sequence[Recipe], count: int) -> list[Recipe]:
    """One recipe per adapter, for `count` adapters that are trained in one batch. Raises `ModelError`
    for another number of them, or several forms.
    """
    recipes = [recipe] * count if isinstance(recipe, Recipe) else list(recipe)
    if len(recipes) != count:
        raise ModelError(f"expected one recipe for all {count} adapters, or one for each; received {len(recipes)}")
    if len({one.batching_key for one in recipes}) > 1:
        forms = ", ".join(map(repr, dict.fromkeys(one.batching_key for one in recipes)))
        raise ModelError(
            "adapters that are trained side by side have one rank, alpha, target_modules, layers_to_transform, dropout "
            f"and loss; received "
            f"{forms}: train them in groups"
        )
    return recipes


def recipe_digest(recipe: Recipe) -> str:
    """What tells a recipe from others: twelve hexadecimal digits.

    A recipe for all layers has the digest that it had before recipes could name layers: outcomes and policies keep it.
    """
    content = repr(recipe).replace(", layers_to_transform=()", "")
    return hashlib.blake2b(content.encode(), digest_size=6).hexdigest()
