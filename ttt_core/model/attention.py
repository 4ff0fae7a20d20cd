"""Attention that is quick on a CPU for training on short rows and for decoding. Elsewhere it is PyTorch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "autottt_cpu"
MOST_WEIGHTS = 1 << 23
"""Attention weights in a layer (rows * heads * tokens * tokens) that are kept for the backward pass, at most: two bytes
each, so 16 MiB a layer. Beyond, SDPA is as quick."""


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Attention of queries [B, H, T, D] to keys [B, H/groups, T, D], with values [B, H/groups, T, V]: [B, T, H, V].

    For training on short rows, except in fp32, and for decoding a token, it is two matrix products and a softmax: in
    bf16 the backward pass of SDPA's kernel, and its pass for a single query, take several times as long
    (benchmarks/LOG.md).
    """
    plain = {"dropout", "scaling", "sliding_window", "is_causal", "position_ids", "cache_position", "use_cache"}
    rows, heads, length, size = query.shape
    few = length == key.shape[2] and rows * heads * length * length <= MOST_WEIGHTS
    short = few and query.requires_grad and query.dtype != torch.float32
    single = length == 1 and not query.requires_grad
    odd = [k for k, v in settings.items() if k not in plain and v is not None and v is not False]
    causal = settings.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    if not (short or single) or settings.get("dropout") or not causal or odd:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return output, None
    groups = heads // key.shape[1]
    if single:  # the queries of a group go side by side, as many to the same keys
        query = query.reshape(rows, key.shape[1], groups, size)
        key, value, attention_mask = _with_room(key, value, attention_mask)
    else:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    bias = _bias(attention_mask, length, key.shape[2], query)
    flat = [t.reshape(-1, *t.shape[2:]) for t in (query, key, value)]
    scaling = settings.get("scaling")
    scale = size**-0.5 if scaling is None else scaling
    scores = torch.baddbmm(bias, flat[0], flat[1].mT, alpha=scale)
    output = torch.bmm(scores.softmax(-1), flat[2]).view(*query.shape[:3], -1)  # the kernel sums in fp32
    return (output.reshape(rows, 1, heads, -1) if single else output.transpose(1, 2).contiguous()), None


def _bias(mask: Tensor | None, length: int, keys: int, query: Tensor) -> Tensor:
    """What is added to the scores [B * H, ., keys] of a query [B, H, ., D]: 0, or a number that hides; a finite one,
    since rows that see nothing are padding and have to stay numbers.
    """
    if mask is None:
        if length == 1:  # a single query sees all keys
            return query.new_zeros(1)
        mask = torch.ones(length, keys, dtype=torch.bool, device=query.device).tril()
    least = torch.finfo(query.dtype).min / 2  # so that a score below 0 stays a number, too
    if mask.dtype == torch.bool:
        mask = query.new_zeros(mask.shape).masked_fill_(~mask, least)
    else:
        mask = mask.clamp(min=least).to(query.dtype)
    if mask[..., 0, 0].numel() == 1:
        return mask.reshape(-1, keys)
    return mask.expand(*query.shape[:2], -1, -1).reshape(-1, *mask.shape[2:])


def _with_room(key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys and values with the room that a `GrowingLayer` keeps behind them, and a mask that hides it: products with
    the whole are several times as quick as those with its beginning, which is no block of memory.
    """
    spare = min(t.stride(1) // t.shape[3] - t.shape[2] for t in (key, value))
    if spare <= 0 or not all(t.stride() == _strides(t, spare) for t in (key, value)):
        return key, value, mask
    if mask is None:
        mask = torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool, device=key.device)
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    key, value = (t.as_strided((*t.shape[:2], t.shape[2] + spare, t.shape[3]), t.stride()) for t in (key, value))
    return key, value, nn.functional.pad(mask, (0, spare), value=hidden)


def _strides(tensor: Tensor, spare: int) -> tuple[int, ...]:
    """Of a [B, H, T, D] tensor in a block of memory with room for this number of tokens per head."""
    _, heads, length, size = tensor.shape
    return heads * (length + spare) * size, (length + spare) * size, size, 1


def use_cpu_attention(model: PreTrainedModel) -> None:
    """Lets a model that would use SDPA use `attention`. Changes what the model computes by rounding only."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
