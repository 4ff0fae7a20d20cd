"""A key-value cache of transformers that reserves space for further tokens. Knows no model by name."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from ..errors import ModelError

ARGUMENTS = ("cache", "past_key_values")
"""Names of the cache argument: since transformers 5.24, and before."""
RESERVED_TOKENS = 64
"""Tokens by which a layer grows at once when a token is appended."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer that writes an appended token into reserved space; that of transformers copies all tokens."""

    _buffers: tuple[Tensor, Tensor] | None = None
    """Keys and values [B, H, T, D], zeros in the reserved space; `keys` and `values` are views of the first tokens."""
    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if not self._fits(end):
            size = end + RESERVED_TOKENS if begin else end
            buffers = tuple(t.new_zeros(*t.shape[:-2], size, t.shape[-1]) for t in (key_states, value_states))
            if begin:
                buffers[0][..., :begin, :] = self.keys
                buffers[1][..., :begin, :] = self.values
            self._buffers = buffers[0], buffers[1]
        assert self._buffers is not None
        self._buffers[0][..., begin:end, :] = key_states
        self._buffers[1][..., begin:end, :] = value_states
        self.keys, self.values = self._buffers[0][..., :end, :], self._buffers[1][..., :end, :]
        return self.keys, self.values

    def _fits(self, end: int) -> bool:
        """Whether `keys` and `values` are still views of the buffers (not cropped, repeated or selected) and these
        have space up to `end`."""
        if self._buffers is None or end > self._buffers[0].shape[-2]:
            return False
        pairs = zip(self._buffers, (self.keys, self.values), strict=True)
        return all(k.data_ptr() == t.data_ptr() and k.stride() == t.stride() for k, t in pairs)

    def reset(self) -> None:
        super().reset()
        self._buffers = None


def check_cache(model: PreTrainedModel) -> None:
    """Raises `ModelError` for a model whose cache cannot be cropped to a shared prefix and repeated: one without a
    key-value cache, or with a recurrent state.
    """
    name = type(model).__name__
    layers = DynamicCache(config=model.config).layers
    if getattr(model, "_is_stateful", False) or any(isinstance(x, LinearAttentionCacheLayerMixin) for x in layers):
        raise ModelError(
            f"{name} has a recurrent state, which cannot be cropped to the prefix that prompts share; use a model "
            "whose layers all attend to keys and values"
        )
    if not any(known in forward_parameters(model) for known in ARGUMENTS):
        raise ModelError(
            f"{name} has no key-value cache (its forward has no {' or '.join(ARGUMENTS)}); use a decoder that has one"
        )


def forward_parameters(model: PreTrainedModel) -> set[str]:
    """Names of the arguments of a model's forward pass. Where it takes any keyword, as in a subclass that passes them
    on, those of the forward passes that it overrides as well."""
    forwards = [model.forward, *(vars(kind)["forward"] for kind in type(model).__mro__ if "forward" in vars(kind))]
    names = set[str]()
    for forward in forwards:
        parameters = inspect.signature(forward).parameters
        names |= parameters.keys()
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return names


def cache_arguments(model: PreTrainedModel, cache: DynamicCache) -> dict[str, Any]:
    """The arguments with which a forward pass continues after what a cache holds, and appends to it."""
    known = forward_parameters(model)
    return {next(name for name in ARGUMENTS if name in known): cache, "use_cache": True}


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for a model. Layers of other kinds, such as sliding ones, are transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    return cache
