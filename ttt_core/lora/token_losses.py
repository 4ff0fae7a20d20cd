"""Cross entropy of single tokens that holds their logits once: large vocabularies make them most of a pass's memory.

Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CHUNK = 1 << 22
"""Logits that are exponentiated at a time."""
_VIEWS = ("SelectBackward0", "ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "SqueezeBackward1")
_KEEP_NO_OUTPUT = ("MmBackward0", "AddmmBackward0", "BmmBackward0", "MulBackward0", "DivBackward0", "ToCopyBackward0")
"""Operations of autograd that do not need their own result on the way back."""


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood [N] of the tokens `targets` [N] under `logits` [N, V], in nats.

    Equal to `cross_entropy(..., reduction="none")` but for rounding. Backward writes the gradient over the logits where
    nothing else needs them, so it may be called once; cross_entropy holds three or four tensors of this size.
    """
    losses: Tensor = _TokenLosses.apply(logits, targets, _may_overwrite(logits))  # type: ignore[no-untyped-call]
    return losses


def _may_overwrite(logits: Tensor) -> bool:
    """Whether the operation that computed the logits does not need them on its way back."""
    function = logits.grad_fn
    while function is not None and function.name() in _VIEWS:
        function = function.next_functions[0][0]
    return function is not None and function.name() in _KEEP_NO_OUTPUT


def _chunks(logits: Tensor) -> Iterator[slice]:
    """The rows, as many at a time as have `CHUNK` logits."""
    rows = max(1, CHUNK // max(1, logits.shape[-1]))
    return (slice(at, at + rows) for at in range(0, len(logits), rows))


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, overwrite: bool) -> Tensor:
        normalizers = logits.new_empty(len(logits))
        for rows in _chunks(logits):
            normalizers[rows] = torch.logsumexp(logits[rows], -1)
        ctx.save_for_backward(logits, normalizers, targets)
        ctx.overwrite = overwrite
        return normalizers - logits.gather(-1, targets[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        logits, normalizers, targets = ctx.saved_tensors
        out = logits.detach() if ctx.overwrite else torch.empty_like(logits)
        for rows in _chunks(logits):
            torch.sub(logits[rows], normalizers[rows, None], out=out[rows]).exp_().mul_(gradient[rows, None])
        out[torch.arange(len(targets), device=targets.device), targets] -= gradient
        return out, None, None
