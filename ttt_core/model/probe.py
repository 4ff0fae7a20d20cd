"""What a model's architecture allows, tried out on a dozen tokens when it is wrapped. Knows no architecture by name.

Answering reads what prompts share once, keeps it, and puts rows of unlike lengths behind it, with padding between. A
model that counts places in the cache, rather than positions, would answer wrongly there without any error.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ModelError
from . import lazy
from .fingerprint import restoring
from .locks import lock_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARED, OWN, PADDING = 5, 5, 8
"""Tokens of the probe: those that are kept, those that follow them, and padding in front of these."""
NOISE, NOISE_16 = 0.02, 0.15
"""Of the spread of the logits: differences that rounding may make, in fp32 and in 16 bits."""


def can_pad(model: PreTrainedModel) -> bool:
    """Whether padding, in front of a prompt or between what was kept and what follows, changes nothing.

    Raises `ModelError` for a model that does not read from left to right, or that reads otherwise with what it kept.
    """
    lazy.kv_cache.check_cache(model)
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ModelError(f"{name} has an encoder; take a model that only decodes (AutoModelForCausalLM)")
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.tensor([[(7 * n + 3) % vocabulary for n in range(SHARED + OWN)]], device=model.device)
    with lock_of(model).compute, restoring(model), torch.inference_mode(False), torch.no_grad():
        model.eval()
        try:
            anew, kept = _logits(model, ids), _behind(model, ids, 0)
            padded, front = _behind(model, ids, PADDING), _logits(model, ids, PADDING)
            other = ids.clone()
            other[0, -1] = (other[0, -1] + 1) % vocabulary
            foretold = _logits(model, other)
        except Exception as error:
            raise ModelError(
                f"{name} cannot read a dozen tokens in two parts: {type(error).__name__}: {error}"
            ) from error
    spread = float(anew.std())
    if _apart(foretold[:-1], anew[:-1]) > 0.25 * spread:
        raise ModelError(f"{name} sees the tokens to come, so it cannot foretell them; take a causal model")
    if _apart(kept, anew[SHARED:]) > 0.25 * spread:
        raise ModelError(f"{name} reads otherwise behind tokens that it kept than when it reads all of them anew")
    local = "local" in getattr(model.config, "attention_layers", ())  # a window of places, too wide for a probe
    noise = NOISE if model.dtype == torch.float32 else NOISE_16
    return max(_apart(padded, anew[SHARED:]), _apart(front, anew)) <= noise * spread and not local


def accepts_positions(model: PreTrainedModel) -> bool:
    """Whether the model takes explicit positions (some derive them from the mask)."""
    return "position_ids" in inspect.signature(model.forward).parameters


def _logits(model: PreTrainedModel, ids: Tensor, padding: int = 0) -> Tensor:
    """[T, V] of tokens [1, T], after so much padding."""
    padded = torch.cat([ids[:, :1].repeat(1, padding), ids], 1)
    mask = torch.ones_like(padded)
    mask[:, :padding] = 0
    logits: Tensor = model(input_ids=padded, attention_mask=mask, use_cache=False, **_positions(model, mask)).logits
    return logits[0, padding:].float()


def _behind(model: PreTrainedModel, ids: Tensor, padding: int) -> Tensor:
    """[OWN, V] of the last tokens, read behind the first ones, which were kept, and so much padding."""
    cache = lazy.kv_cache.new_cache(model.config)
    first, last = ids[:, :SHARED], torch.cat([ids[:, :1].repeat(1, padding), ids[:, SHARED:]], 1)
    begun = torch.ones_like(first)
    model(
        input_ids=first, attention_mask=begun, **lazy.kv_cache.cache_arguments(model, cache), **_positions(model, begun)
    )
    mask = torch.ones(1, SHARED + padding + OWN, dtype=torch.long, device=ids.device)
    mask[:, SHARED : SHARED + padding] = 0
    places = _positions(model, mask, SHARED)
    logits: Tensor = model(
        input_ids=last, attention_mask=mask, **lazy.kv_cache.cache_arguments(model, cache), **places
    ).logits
    return logits[0, padding:].float()


def _positions(model: PreTrainedModel, mask: Tensor, begin: int = 0) -> dict[str, Tensor]:
    places = (mask.cumsum(1) - 1).clamp(min=0)[:, begin:]
    return {"position_ids": places} if accepts_positions(model) else {}


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())
