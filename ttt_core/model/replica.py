"""Replicas of a model: modules of their own over the same weights, so that two threads can use one model at a time.

A replica takes no memory for weights. Hooks, modes and gradients are its own. Knows nothing about what it is used for.
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .fingerprint import HOOKS, overridden_methods, state_tensors
from .host_modes import without_host_modes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOG = logging.getLogger("autottt")
CHECKED_TOKENS = 4
"""Tokens of the pass that compares a replica with its model."""


def replica_of(model: PreTrainedModel) -> PreTrainedModel | None:
    """A replica of a model, in evaluation mode and without gradients. None where the model has none: where a part of it
    cannot be copied, or where a copy uses modules of the model itself or gives other logits.

    The caller has the model's lock. Hooks that are on the model are called by the replica too.
    """
    if any(type(p) is not nn.Parameter for p in model.parameters()) or any(map(overridden_methods, model.modules())):
        return None  # quantized weights; methods that were replaced may hold on to the model's own modules
    lasting = {id(tensor) for tensor in state_tensors(model).values()}
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    memo |= {id(b): b.detach() if id(b) in lasting else b.detach().clone() for b in model.buffers()}
    memo |= {id(hook): hook for m in model.modules() for kind in HOOKS for hook in getattr(m, kind).values()}
    try:
        replica = copy.deepcopy(model, memo).eval()
    except Exception as error:
        _LOG.debug("no replica of %s: %s", type(model).__name__, error)
        return None
    return replica if _shares_weights(model, replica) and _is_equivalent(model, replica) else None


def _shares_weights(model: nn.Module, replica: nn.Module) -> bool:
    """Whether each lasting tensor of the replica is the model's memory."""
    own, other = state_tensors(model), state_tensors(replica)
    return own.keys() == other.keys() and all(own[n].data_ptr() == other[n].data_ptr() for n in own)


def _is_equivalent(model: PreTrainedModel, replica: PreTrainedModel) -> bool:
    """Whether the replica computes the model's logits, each module of it instead of the model's own."""
    ids = torch.arange(CHECKED_TOKENS, device=model.device)[None] % model.get_input_embeddings().num_embeddings
    (expected, names, _), (logits, own, foreign) = (
        _pass(m, other, ids) for m, other in ((model, replica), (replica, model))
    )
    return own == names and not foreign and torch.equal(logits, expected)


def _pass(model: nn.Module, other: nn.Module, ids: Tensor) -> tuple[Tensor, set[str], set[str]]:
    """Logits of a pass, the names of the modules of `model` that it called, and those of `other`."""
    called: tuple[set[str], set[str]] = (set(), set())
    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name, names=names: names.add(name))
        for names, owner in zip(called, (model, other), strict=True)
        for name, module in owner.named_modules()
    ]
    try:
        with without_host_modes(ids.device):
            return model(input_ids=ids, use_cache=False).logits, *called
    finally:
        for handle in handles:
            handle.remove()
