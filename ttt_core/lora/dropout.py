"""Dropout that does not depend on the batch: the seed of a row decides its mask.

Knows nothing about adapters. Axes: B rows, T tokens, d features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_WHOLE = 1 << 64


@dataclass(frozen=True)
class Dropout:
    """Dropout masks that are a function of the row's seed, layer, token and feature, whatever the batch, micro-batch or
    thread."""

    probability: float
    """Of dropping an input, in [0, 1)."""
    row_seeds: Tensor
    """[B], int64."""

    def __call__(self, x: Tensor, layer: int) -> Tensor:
        """`x` [B, T, d], or [B * T, d], with dropped inputs 0 and the others scaled by 1 / (1 - probability)."""
        rows = x.reshape(len(self.row_seeds), -1, x.shape[-1])
        seed = _random_odd(_random_odd(self.row_seeds[:, None], 1) ^ layer, 1)
        # The product of two random odd numbers is one, whose upper bits are as random as theirs (Dietzfelbinger et al.
        # 1997, "A Reliable Randomized Algorithm for the Closest-Pair Problem"): one multiplication for each input.
        tokens = _random_odd(seed, rows.shape[1])[:, :, None]
        features = _random_odd(~seed, rows.shape[2])[:, None, :]
        mask = tokens * features >= int((2 * self.probability - 1) * (_WHOLE >> 1))
        scale = mask.view(torch.int8).to(x.dtype)  # converting from bool is several times slower on a CPU
        return (rows * scale / (1 - self.probability)).view_as(x)


def _random_odd(seed: Tensor, count: int) -> Tensor:
    """Random odd numbers [B, count] from seeds [B, 1]: SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom
    number generators"), in 64 bits that wrap around."""
    z = seed + torch.arange(1, count + 1, device=seed.device) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    return (z ^ _shift_right(z, 31)) | 1


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(z: int) -> int:
    """The same 64 bits as a signed integer."""
    return z - _WHOLE if z >> 63 else z
