"""Low-rank updates of parameters that no linear layer holds, such as experts, by hooks on the module that holds them.

While the module computes, an attribute of the instance hides the parameter: `W + scaling * up @ down`. The parameter
itself is neither replaced nor written to. Axes: A adapters, E experts, r rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import ModelError


class ParameterUpdates:
    """The hooks of one module whose parameters get updates."""

    def __init__(self, pairs: Mapping[str, tuple[Tensor, Tensor]], scaling: float) -> None:
        """`pairs` are the down- and up-projections of A adapters by the name of the parameter."""
        self._pairs, self._scaling = pairs, scaling
        self._adapters = next(iter(pairs.values()))[0].shape[0]

    def attach(self, module: nn.Module) -> list[RemovableHandle]:
        """Registers the hooks. After an exception, `remove_updates` removes what they may have left."""
        if self._adapters == 1:
            return [
                module.register_forward_pre_hook(self._before),
                module.register_forward_hook(self._after, always_call=True),
            ]
        return [module.register_forward_hook(self._each_adapter, with_kwargs=True)]

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._update(module, 0)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        remove_updates(module, self._pairs)

    def _each_adapter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The outputs for A equal groups of rows, each computed with its adapter, in place of those of the base."""
        rows = next(t.shape[0] for t in args if isinstance(t, Tensor))
        if rows % self._adapters:
            raise ModelError(f"{self._adapters} adapters need as many equal groups of rows; received {rows} rows")

        def group(value: Any, index: int) -> Any:
            is_per_row = isinstance(value, Tensor) and value.dim() and value.shape[0] == rows
            return value.chunk(self._adapters)[index] if is_per_row else value

        outputs = []
        try:
            for index in range(self._adapters):
                self._update(module, index)
                mine = {name: group(value, index) for name, value in kwargs.items()}
                outputs.append(module.forward(*(group(value, index) for value in args), **mine))
                remove_updates(module, self._pairs)
        finally:
            remove_updates(module, self._pairs)
        if isinstance(output, Tensor):
            return torch.cat(outputs)
        return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))

    def _update(self, module: nn.Module, index: int) -> None:
        """Hides each parameter by its value with the update of an adapter."""
        for name, (down, up) in self._pairs.items():
            value: Tensor = getattr(module, name)  # with the updates of adapters that were attached before
            product = torch.addmm if value.dim() == 2 else torch.baddbmm
            low_rank = up[index].to(value.dtype), down[index].to(value.dtype)
            vars(module)[name] = product(value, *low_rank, alpha=self._scaling)


def remove_updates(module: nn.Module, names: Iterable[str]) -> None:
    """Removes the attributes that hide parameters of these names."""
    for name in names:
        vars(module).pop(name, None)
