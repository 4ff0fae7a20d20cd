"""Checks on a dozen tokens what a model's architecture allows, when it is wrapped. Knows no architecture by name.

Answering caches the prefix that prompts share and continues it with padded rows of different lengths. A model that
numbers positions by their place in the cache would answer wrongly there without any error.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ModelError
from . import lazy
from .fingerprint import restoring
from .host_modes import without_host_modes
from .locks import lock_of

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

SHARED, OWN, PADDING = 5, 5, 8
"""Tokens of the check: the cached prefix, the continuation, and the padding between them."""
NOISE, NOISE_16 = 0.005, 0.1
"""Largest root mean square of rounding differences as a share of the standard deviation of the logits, in fp32 and in
16 bits. Among the logits of a large vocabulary some differ by a multiple of it; positions that are counted otherwise
change all of them."""


_RULED_OUT = -1e30
"""Logits below this are of tokens that a model never gives: minus infinity, or the least number of a precision."""


def refuse_unnamed_outputs(model: PreTrainedModel) -> None:
    """Raises `ModelError` for a model that returns tuples."""
    if getattr(model.config, "return_dict", True) is False:
        name = type(model).__name__
        raise ModelError(f"{name}: config.return_dict is False, so its outputs have no names: set it to True")


def can_pad(model: PreTrainedModel) -> bool:
    """Whether padding in front of a prompt, or between a cached prefix and its continuation, changes no logits.

    Raises `ModelError` for a model that is not causal, or whose logits after a cached prefix differ.
    """
    lazy.kv_cache.check_cache(model)
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ModelError(f"{name} has an encoder; use a decoder-only model (AutoModelForCausalLM)")
    refuse_unnamed_outputs(model)
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.tensor([[(7 * n + 3) % vocabulary for n in range(SHARED + OWN)]], device=model.device)
    with lock_of(model).compute, restoring(model), without_host_modes(model.device):
        model.eval()
        try:
            other = ids.clone()
            other[0, -1] = (other[0, -1] + 1) % vocabulary
            whole, changed = _plain_logits(model, torch.cat([ids, other]))
            (left_padded,) = _logits(model, ids, PADDING)
            cache = _prefix(model, ids)
            padded = _continued(model, copy.deepcopy(cache), ids, PADDING)
            continued = _continued(model, cache, ids, 0)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"{name} cannot process a dozen tokens in two parts: {type(error).__name__}: {error}{_mixed(model)}"
            ) from error
    spread = float(whole.std())
    if _difference(changed[:-1], whole[:-1]) > 0.25 * spread:
        raise ModelError(f"{name} is not causal (it attends to future tokens); use a decoder-only model")
    if _difference(continued, whole[SHARED:]) > 0.25 * spread:
        raise ModelError(
            f"{name} gives other logits after a cached prefix, with positions from 0, than for the whole prompt; use a "
            "decoder with a cache whose positions begin at 0"
        )
    local = "local" in getattr(
        model.config, "attention_layers", ()
    )  # a window over cache slots, too wide for this check
    noise = NOISE if model.dtype == torch.float32 else NOISE_16
    rounding = max(_mean_difference(padded, whole[SHARED:]), _mean_difference(left_padded, whole))
    return rounding <= noise * spread and not local


def _mixed(model: PreTrainedModel) -> str:
    """What may be the reason of an error where weights are in several precisions; else an empty text."""
    precisions = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()}
    if len(precisions) < 2:
        return ""
    return (
        f" (its weights are in {' and '.join(sorted(precisions))}; if it computes inside torch.autocast only, which "
        "has no effect here, convert it to one precision, as with model.to(torch.bfloat16))"
    )


def accepts_positions(model: PreTrainedModel) -> bool:
    """Whether the model takes explicit positions (some derive them from the mask)."""
    return "position_ids" in lazy.kv_cache.forward_parameters(model)


def without_router_logits(model: PreTrainedModel) -> dict[str, bool]:
    """The argument with which a pass gives no logits of routers where the configuration asks for them, as for training
    of the experts: the loss that transformers computes of them fails after a cached prefix."""
    asks = getattr(model.config.get_text_config(), "output_router_logits", False)
    return {"output_router_logits": False} if asks else {}


def _plain_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits [B, T, V] of tokens [B, T], whose positions the model counts itself."""
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    logits: object = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"{type(model).__name__} gives a {type(output).__name__} without logits: load a model with an output head "
            "(AutoModelForCausalLM)"
        )
    if logits.shape[:2] != ids.shape:
        raise ModelError(
            f"{type(model).__name__} gives logits of the shape {list(logits.shape)} for tokens of the shape "
            f"{list(ids.shape)}: use a model that gives logits at every token"
        )
    return _finite(logits.float())


def _logits(model: PreTrainedModel, ids: Tensor, padding: int) -> Tensor:
    """Logits [B, T, V] of tokens [B, T] after `padding` padding tokens."""
    padded = torch.cat([ids[:, :1].repeat(1, padding), ids], 1)
    mask = torch.ones_like(padded)
    mask[:, :padding] = 0
    logits: Tensor = model(input_ids=padded, attention_mask=mask, use_cache=False, **_arguments(model, mask)).logits
    return _finite(logits[:, padding:].float())


def _prefix(model: PreTrainedModel, ids: Tensor) -> DynamicCache:
    """A cache of the first tokens."""
    cache = lazy.kv_cache.new_cache(model.config)
    first = ids[:, :SHARED]
    mask = torch.ones_like(first)
    arguments = {**lazy.kv_cache.cache_arguments(model, cache), **_arguments(model, mask)}
    model(input_ids=first, attention_mask=mask, **arguments)
    return cache


def _continued(model: PreTrainedModel, cache: DynamicCache, ids: Tensor, padding: int) -> Tensor:
    """Logits [OWN, V] of the last tokens after the cached first ones and `padding` padding tokens."""
    last = torch.cat([ids[:, :1].repeat(1, padding), ids[:, SHARED:]], 1)
    mask = torch.ones(1, SHARED + padding + OWN, dtype=torch.long, device=ids.device)
    mask[:, SHARED : SHARED + padding] = 0
    arguments = {**lazy.kv_cache.cache_arguments(model, cache), **_arguments(model, mask, SHARED)}
    logits: Tensor = model(input_ids=last, attention_mask=mask, **arguments).logits
    return _finite(logits[0, padding:].float())


def _finite(logits: Tensor) -> Tensor:
    """The logits with 0 in place of those of tokens that the model rules out."""
    return logits.masked_fill(logits < _RULED_OUT, 0.0)


def _arguments(model: PreTrainedModel, mask: Tensor, begin: int = 0) -> dict[str, Any]:
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, begin:]
    return without_router_logits(model) | ({"position_ids": positions} if accepts_positions(model) else {})


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _mean_difference(one: Tensor, other: Tensor) -> float:
    """The root mean square."""
    return float((one - other).square().mean().sqrt())
