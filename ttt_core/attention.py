"""Attention whose backward pass is quick on a CPU. Elsewhere, and without gradients, it is PyTorch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "autottt_cpu"
MOST_WEIGHTS = 1 << 23
"""Attention weights in a layer (rows * heads * tokens * tokens) that are kept for the backward pass, at most: in bf16
they take six bytes each, so 48 MiB a layer."""


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Attention of queries [B, H, T, D] to keys and values [B, H/groups, T, D]; returns [B, T, H, D].

    For training on short rows it is two matrix products and a softmax: in bf16 on a CPU the backward pass of SDPA's
    kernel takes several times as long as those (benchmarks/LOG.md).
    """
    plain = {"dropout", "scaling", "sliding_window", "is_causal", "position_ids", "cache_position"}
    rows, heads, length, _ = query.shape
    fits = length == key.shape[2] and rows * heads * length * length <= MOST_WEIGHTS and query.requires_grad
    odd = [k for k, v in settings.items() if k not in plain and v is not None and v is not False]
    causal = settings.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    if not fits or settings.get("dropout") or not causal or odd:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return output, None
    groups = heads // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scaling = settings.get("scaling")
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is None:
        attention_mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    if attention_mask.dtype == torch.bool:
        # Rows that see nothing are padding; a finite value keeps them numbers.
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    else:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), None


def use_cpu_attention(model: PreTrainedModel) -> None:
    """Lets a model that would use SDPA use `attention`. Changes what the model computes by rounding only."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
