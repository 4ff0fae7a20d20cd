"""AdamW for many adapters at once: their weights in one tensor, with gradients and moments.

Knows nothing about models, rows or schedules. Axes: A adapters, P parameters of each, S shards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..recipes import Recipe
from .weights import LoraWeights


class BatchedAdamW:
    """The weights of A adapters in one tensor, with their gradients and AdamW's moments.

    Clipping gradients, or removing adapters, takes a few operations whatever the number of layers. Each adapter has its
    own learning rate, weight decay and clipping (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization").
    """

    def __init__(self, weights: LoraWeights, recipes: Sequence[Recipe], shards: int = 1) -> None:
        self._shapes = {name: (down.shape[1:], up.shape[1:]) for name, (down, up) in weights.pairs.items()}
        self._scaling = weights.scaling
        self._max_grad_norms = [recipe.max_grad_norm for recipe in recipes]
        self.values = torch.cat([t.flatten(1) for t in weights.tensors], 1)
        """[A, P], fp32."""
        self.gradients = self.values.new_zeros(shards, *self.values.shape)
        """[S, A, P]; each micro-batch adds to its own shard, so that threads do not write to the same memory."""
        groups = [
            {"params": [row], "weight_decay": r.weight_decay} for row, r in zip(self.values, recipes, strict=True)
        ]
        self._optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), fused=True)

    @property
    def nbytes(self) -> int:
        """Memory of the weights, their gradients and their moments, in bytes."""
        return self.values.nbytes * (3 + self.gradients.shape[0])

    def weights(self, begin: int = 0, end: int | None = None) -> LoraWeights:
        """Views of adapters `begin` to `end`."""
        return self._views(self.values[begin:end])

    def leaves(self, begin: int, end: int, dtype: torch.dtype) -> LoraWeights:
        """Adapters `begin` to `end` in the precision of a model, as leaves that require gradients."""
        weights = self._views(self.values[begin:end].to(dtype))
        for tensor in weights.tensors:
            tensor.requires_grad_(True)
        return weights

    def accumulate(self, gradients: Sequence[Tensor], begin: int, end: int, shard: int) -> None:
        """Adds the gradients of the tensors of adapters `begin` to `end` to a shard."""
        for target, gradient in zip(self._views(self.gradients[shard, begin:end]).tensors, gradients, strict=True):
            target += gradient

    def _views(self, rows: Tensor) -> LoraWeights:
        """Rows [a, P] as tensors by layer."""
        offset, pairs = 0, {}
        for name, shapes in self._shapes.items():
            views = []
            for shape in shapes:
                views.append(rows[:, offset : offset + shape.numel()].view(-1, *shape))
                offset += shape.numel()
            pairs[name] = views[0], views[1]
        return LoraWeights(pairs, self._scaling)

    def step(self, learning_rates: Sequence[float]) -> None:
        """Clips each gradient to its recipe's `max_grad_norm` and takes an AdamW step at its learning rate."""
        gradient = self.gradients[0]
        for other in self.gradients[1:]:
            gradient += other
        clip_gradients(gradient, self._max_grad_norms)
        for group, rate, mine in zip(self._optimizer.param_groups, learning_rates, gradient, strict=True):
            (row,) = group["params"]
            row.grad, group["lr"] = mine, rate
        self._optimizer.step()
        self.gradients.zero_()

    def keep_adapters(self, adapters: Sequence[int], shards: int) -> None:
        """Removes all other adapters."""
        groups = self._optimizer.param_groups
        self._optimizer.param_groups = [groups[a] for a in adapters]
        self._max_grad_norms = [self._max_grad_norms[a] for a in adapters]
        self._select(self.values[list(adapters)], slice(None), shards)

    def drop_layers(self, layers: Collection[str]) -> None:
        """Removes the weights of all adapters at these layers."""
        sizes = {name: down.numel() + up.numel() for name, (down, up) in self._shapes.items()}
        remaining = torch.cat([torch.full((size,), name not in layers, device="cpu") for name, size in sizes.items()])
        index = remaining.nonzero().flatten().to(self.values.device)
        self._select(self.values[:, index], index, self.gradients.shape[0])
        self._shapes = {name: shapes for name, shapes in self._shapes.items() if name not in layers}

    def _select(self, values: Tensor, columns: Tensor | slice, shards: int) -> None:
        """Continues with these weights [a, p] and the same columns of their moments."""
        self.values = values
        self.gradients = values.new_zeros(shards, *values.shape)
        old_states, self._optimizer.state = self._optimizer.state, defaultdict(dict)
        for row, group in zip(values, self._optimizer.param_groups, strict=True):
            (old_row,) = group["params"]
            group["params"] = [row]
            state = old_states.get(old_row, {})
            self._optimizer.state[row] = {k: v[columns] if v.dim() else v for k, v in state.items()}


def clip_gradients(gradients: Tensor, limits: Sequence[float]) -> None:
    """Scales each row of [A, P] to a norm of at most its limit."""
    norms = gradients.norm(dim=1)
    bounds = gradients.new_tensor(limits)
    gradients.mul_((bounds / norms.clamp(min=1e-12)).clamp(max=1.0)[:, None])
