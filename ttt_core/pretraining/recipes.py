"""The recipes of the bundled model, which `pretrain --export` writes into its folder. Knows nothing about training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..recipes import Recipe

_SMALL = Recipe(
    rank=16, alpha=16.0, dropout=0.0, learning_rate=3e-3, max_steps=24, batch_size=8, max_tokens_per_step=2048,
    early_stop_loss=0.01,
)  # fmt: skip

_ANY_KIND: dict[str, Recipe] = {
    "in_context_vote": replace(_SMALL, views=8),
    "ttt_direct": replace(_SMALL, loss="last"),
    "ttt_in_context": _SMALL,
    "ttt_warm": _SMALL,
    "ttt_augmented": replace(_SMALL, transformations=7, views=8),
    "ttt_crossfit": replace(_SMALL, transformations=7, views=4),
    "ttt_race": replace(_SMALL, transformations=7, views=4),
}

BUNDLED_RECIPES: Mapping[str, Recipe] = _ANY_KIND | {
    f"{name}/{kind}": replace(_ANY_KIND[name], max_steps=12)
    for name in ("ttt_direct", "ttt_in_context", "ttt_warm", "ttt_augmented")
    for kind in ("list", "text")
}
"""From searches on held-out families of the generator. Which differences were measured, and which are choices among
equals, is in benchmarks/LOG.md."""
