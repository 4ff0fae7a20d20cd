"""The key-value cache of decoding: transformers' own, with room in it for tokens to come."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from ..errors import ModelError

ARGUMENTS = ("cache", "past_key_values")
"""What models call the cache: as of transformers 5.24, and before."""
ROOM = 64
"""Tokens that a layer makes room for at once, once tokens follow those that it was made with."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A layer in which a further token is written, where transformers' copies all tokens to add one."""

    _kept: tuple[Tensor, Tensor] | None = None
    """Keys and values [B, H, T, D], zeros where there is room; `keys` and `values` are views of their beginnings."""
    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if not self._fits(end):
            size = end + ROOM if begin else end
            kept = tuple(t.new_zeros(*t.shape[:-2], size, t.shape[-1]) for t in (key_states, value_states))
            if begin:
                kept[0][..., :begin, :] = self.keys
                kept[1][..., :begin, :] = self.values
            self._kept = kept[0], kept[1]
        assert self._kept is not None
        self._kept[0][..., begin:end, :] = key_states
        self._kept[1][..., begin:end, :] = value_states
        self.keys, self.values = self._kept[0][..., :end, :], self._kept[1][..., :end, :]
        return self.keys, self.values

    def _fits(self, end: int) -> bool:
        """Whether the tokens are still where they were put, rather than cropped away, repeated or selected from, and
        there is room up to `end`."""
        if self._kept is None or end > self._kept[0].shape[-2]:
            return False
        pairs = zip(self._kept, (self.keys, self.values), strict=True)
        return all(k.data_ptr() == t.data_ptr() and k.stride() == t.stride() for k, t in pairs)

    def reset(self) -> None:
        super().reset()
        self._kept = None


def check_cache(model: PreTrainedModel) -> None:
    """Raises `ModelError` for a model whose reading cannot be kept, cut back and repeated, as many answers to prompts
    with one beginning need: one without a cache of keys and values, or with a recurrent state beside it.
    """
    name = type(model).__name__
    layers = DynamicCache(config=model.config).layers
    if getattr(model, "_is_stateful", False) or any(isinstance(x, LinearAttentionCacheLayerMixin) for x in layers):
        raise ModelError(
            f"{name} keeps a recurrent state, which cannot be cut back to what prompts share; take a model whose "
            "layers all attend to keys and values"
        )
    if not any(known in inspect.signature(model.forward).parameters for known in ARGUMENTS):
        raise ModelError(
            f"{name} keeps no keys and values while it reads (no {' or '.join(ARGUMENTS)}); take a decoder that does"
        )


def cache_arguments(model: PreTrainedModel, cache: DynamicCache) -> dict[str, Any]:
    """The arguments with which a model reads behind what a cache holds, and adds to it."""
    known = inspect.signature(model.forward).parameters
    return {next(name for name in ARGUMENTS if name in known): cache, "use_cache": True}


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for a model. Layers of other kinds, such as sliding ones, are transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    return cache
