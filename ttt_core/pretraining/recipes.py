"""The recipes of the bundled model, which `pretrain --export` writes into its folder. Knows nothing about training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..recipes import Recipe

_EIGHT_PROMPTS = Recipe(
    rank=16, alpha=16.0, dropout=0.0, learning_rate=3e-3, max_steps=24, batch_size=8, max_tokens_per_step=2048,
    early_stop_loss=0.01,
)  # fmt: skip
_TWO_PROMPTS = replace(_EIGHT_PROMPTS, learning_rate=1.5e-3, batch_size=2, max_tokens_per_step=512)

_ANY_KIND: dict[str, Recipe] = {
    "in_context_vote": replace(_EIGHT_PROMPTS, views=8),  # it trains nothing
    "ttt_direct": replace(_TWO_PROMPTS, loss="last"),
    "ttt_in_context": _TWO_PROMPTS,
    "ttt_warm": _TWO_PROMPTS,
    "ttt_augmented": replace(_TWO_PROMPTS, transformations=7, views=8),
    "ttt_crossfit": replace(_TWO_PROMPTS, transformations=7, views=4),
    "ttt_race": replace(_TWO_PROMPTS, transformations=7, views=4),
}
_GRIDS: dict[str, Recipe] = {
    f"{name}/grid": replace(_EIGHT_PROMPTS, transformations=7, views=_ANY_KIND[name].views)
    for name in ("ttt_augmented", "ttt_crossfit", "ttt_race")
}
"""The transformations of a grid make many different tasks; a step of two prompts sees too few of them."""
_SHORT: dict[str, Recipe] = {
    f"{name}/{kind}": replace(_ANY_KIND[name], max_steps=12)
    for name in ("ttt_direct", "ttt_in_context", "ttt_warm", "ttt_augmented")
    for kind in ("list", "text")
}

BUNDLED_RECIPES: Mapping[str, Recipe] = _ANY_KIND | _SHORT | _GRIDS
"""From searches on held-out families of the generator. Which differences were measured, and which are choices among
equals, is in benchmarks/LOG.md."""
