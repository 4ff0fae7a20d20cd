"""Recipes: how an adapter is trained. Knows nothing about tasks; strategies hold one recipe each.

`PUBLISHED` are the recipes of Akyürek et al. 2025 (see docs/strategies.md) for large models. A model folder may carry
its own in `autottt.json`; the bundled model does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from .errors import ModelError

Loss = Literal["all", "last", "inputs"]


@dataclass(frozen=True)
class Recipe:
    """How one adapter is trained."""

    rank: int = 64
    alpha: float = 64.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.05
    """On the adapter's inputs, as in LoRA."""
    targets: tuple[str, ...] = ("all-linear",)
    """Names of the modules that get an adapter; `all-linear` is every linear layer but the output head."""
    learning_rate: float = 1e-4
    steps: int = 8
    batch: int = 5
    """Examples (prompts) in a step."""
    tokens: int = 0
    """Tokens in a step at most, but for a single prompt: where prompts are long, a step has fewer; 0 sets no limit."""
    warmup: float = 0.1
    """Share of the steps over which the rate rises linearly; then it falls by a cosine to 0."""
    weight_decay: float = 0.0
    loss: Loss = "all"
    """Tokens that are learned: every answer from the second on, the last answer, or inputs as well."""
    transformations: int = 0
    """Invertible transformations of the task that examples are also drawn from."""
    views: int = 1
    """Prompts that vote on the answer."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    stop_loss: float = 0.0
    """Training stops early once two steps in a row had a loss below this, in nats; 0 takes every step."""

    def __post_init__(self) -> None:
        if min(self.rank, self.steps, self.batch, self.views) < 1:
            raise ModelError(f"a recipe's rank, steps, batch and views are at least 1; received {self}")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Recipe:
        """A recipe from a mapping as JSON gives it. Raises `ModelError` naming unknown settings."""
        known = {f.name for f in fields(cls)}
        if odd := sorted(settings.keys() - known):
            raise ModelError(f"unknown recipe settings {odd}; known are {sorted(known)}")
        values = dict(settings)
        if "targets" in values:
            values["targets"] = tuple(values["targets"])
        try:
            return replace(cls(), **values)
        except TypeError as error:
            raise ModelError(f"a recipe's settings are of the wrong type ({error}); received {values}") from None


_SMALL = Recipe(rank=16, alpha=16.0, dropout=0.0, learning_rate=3e-3, steps=24, batch=8, tokens=2048, stop_loss=0.01)

_ANY_KIND: dict[str, Recipe] = {
    "in_context_vote": replace(_SMALL, views=8),
    "ttt_direct": replace(_SMALL, loss="last"),
    "ttt_in_context": _SMALL,
    "ttt_warm": _SMALL,
    "ttt_augmented": replace(_SMALL, transformations=7, views=8),
    "ttt_crossfit": replace(_SMALL, transformations=7, views=4),
}

BUNDLED: Mapping[str, Recipe] = _ANY_KIND | {
    f"{name}/{kind}": replace(_ANY_KIND[name], steps=12)
    for name in ("ttt_direct", "ttt_in_context", "ttt_warm", "ttt_augmented")
    for kind in ("list", "text")
}
"""For the bundled model, from searches on held-out families of the generator. Which differences were seen, and which
are choices among equals, is in benchmarks/LOG.md."""

_QV_MLP = ("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj")

PUBLISHED: Mapping[str, Recipe] = {
    "ttt_in_context": Recipe(64, 64.0, 0.05, (*_QV_MLP, "o_proj"), 1e-4, steps=8, batch=5),
    "ttt_warm": Recipe(64, 64.0, 0.05, (*_QV_MLP, "o_proj"), 1e-4, steps=8, batch=5),
    "ttt_direct": Recipe(64, 64.0, 0.05, (*_QV_MLP, "o_proj"), 1e-4, steps=8, batch=5, loss="last"),
    "ttt_augmented": Recipe(128, 16.0, 0.0, _QV_MLP, 1e-4, steps=250, batch=2, transformations=16, views=10),
    "ttt_crossfit": Recipe(128, 16.0, 0.0, _QV_MLP, 1e-4, steps=250, batch=2, transformations=16, views=10),
    "in_context_vote": Recipe(views=10),
}
"""The settings of Akyürek et al., ICML 2025, for models of 1 to 8 billion parameters."""


def recipe_for(recipes: Mapping[str, Recipe], strategy: str, kind: str = "") -> Recipe:
    """A model's recipe for a strategy and kind of task, or for any kind, or the general default."""
    return recipes.get(f"{strategy}/{kind}") or recipes.get(strategy, Recipe())


def digest_of(recipe: Recipe) -> str:
    """What tells a recipe from others: twelve hexadecimal digits."""
    return hashlib.blake2b(repr(recipe).encode(), digest_size=6).hexdigest()
