"""Dropout that does not depend on the batch: a row's own number decides what is dropped, not where or when it is read.

Knows nothing about adapters. Axes: B rows, T tokens, d features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_WHOLE = 1 << 64


@dataclass(frozen=True)
class Dropout:
    """Which inputs are dropped in training: a row's number, the layer, the token and the feature decide, whatever else
    is in the batch, in which pass it goes, or in which thread."""

    probability: float
    """Of the inputs, in [0, 1)."""
    row_seeds: Tensor
    """A number for each row, [B], int64."""

    def __call__(self, x: Tensor, layer: int) -> Tensor:
        """`x` [B, T, d], or with B and T in one, with some of it 0 and the rest scaled up to the same mean."""
        rows = x.reshape(len(self.row_seeds), -1, x.shape[-1])
        seed = _drawn(_drawn(self.row_seeds[:, None], 1) ^ layer, 1)
        # The product of two random odd numbers is one, whose upper bits are as random as theirs (Dietzfelbinger et al.
        # 1997, "A Reliable Randomized Algorithm for the Closest-Pair Problem"): one multiplication for each input.
        tokens = _drawn(seed, rows.shape[1])[:, :, None]
        features = _drawn(~seed, rows.shape[2])[:, None, :]
        kept = tokens * features >= int((2 * self.probability - 1) * (_WHOLE >> 1))
        scale = kept.view(torch.int8).to(x.dtype)  # a bool becomes a number several times as slowly on a CPU
        return (rows * scale / (1 - self.probability)).view_as(x)


def _drawn(seed: Tensor, count: int) -> Tensor:
    """Random odd numbers [B, count] from seeds [B, 1]: SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom
    number generators"), in 64 bits that wrap around."""
    z = seed + torch.arange(1, count + 1, device=seed.device) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return (z ^ _shifted(z, 31)) | 1


def _shifted(z: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(z: int) -> int:
    """The same 64 bits as a signed number."""
    return z - _WHOLE if z >> 63 else z
