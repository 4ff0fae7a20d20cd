"""LoRA adapters as values: low-rank updates with a leading adapter axis, attached to a frozen model by hooks.

Nothing of the base model is replaced or written to. Axes: A adapters, B rows, T tokens, E experts, r rank. Hu et al.
2021, "LoRA: Low-Rank Adaptation of Large Language Models"; saved in the file format of the PEFT library.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import ModelError
from ..recipes import Recipe
from .dropout import Dropout
from .modules import module_sizes, target_modules, target_parameters
from .parameter_updates import ParameterUpdates, remove_updates
from .peft_folder import read_folder, write_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pair = tuple[Tensor, Tensor]
"""Down-projection [A, r, d_in] and up-projection [A, d_out, r]; of experts [A, E, r, d_in] and [A, E, d_out, r]."""


@dataclass(frozen=True)
class LoraWeights:
    """The weights of A adapters of one shape, in fp32."""

    pairs: Mapping[str, Pair]
    """Path of a linear layer, or of a parameter -> its down- and up-projection."""
    scaling: float
    """What the update is multiplied by: alpha / rank."""

    @classmethod
    def initial(cls, model: PreTrainedModel, recipe: Recipe, seeds: Sequence[int]) -> LoraWeights:
        """New adapters, one per seed: down-projections Kaiming-uniform as in PEFT, up-projections zero."""
        pairs: dict[str, Pair] = {}
        generators = [torch.Generator("cpu").manual_seed(s) for s in seeds]
        modules = target_modules(model, recipe.target_modules, recipe.layers_to_transform).items()
        parameters = target_parameters(model, recipe.target_modules, recipe.layers_to_transform).items()
        shapes: dict[str, tuple[tuple[int, ...], int, int, int]]
        shapes = {n: ((), recipe.rank, *module_sizes(m)) for n, m in modules}
        shapes |= {n: (p.stack, recipe.rank * p.rank_factor, *p.sizes) for n, p in parameters}
        for name, (stack, rank, d_in, d_out) in shapes.items():
            down = torch.empty(len(seeds), *stack, rank, d_in, dtype=torch.float32, device="cpu")
            for row, generator in zip(down, generators, strict=True):
                nn.init.kaiming_uniform_(row.view(-1, d_in), a=math.sqrt(5), generator=generator)
            up = torch.zeros(len(seeds), *stack, d_out, rank, dtype=torch.float32, device="cpu")
            pairs[name] = down.to(model.device), up.to(model.device)
        return cls(pairs, recipe.alpha / recipe.rank)

    @property
    def adapter_count(self) -> int:
        """Number of adapters, A."""
        return next(iter(self.pairs.values()))[0].shape[0]

    @property
    def tensors(self) -> list[Tensor]:
        return [t for pair in self.pairs.values() for t in pair]

    def finite(self) -> list[bool]:
        """Of each adapter, whether all its weights are numbers."""
        finite = torch.stack([t.isfinite().flatten(1).all(1) for t in self.tensors])
        return [bool(sound) for sound in finite.all(0)]

    def zero_updates(self) -> list[bool]:
        """Of each adapter, whether its update is exactly zero in every layer, so that it changes no output."""
        if self.scaling == 0:
            return [True] * self.adapter_count
        # A rank adds to the update where neither its row of the down- nor its column of the up-projection is zero.
        effective = [(down.any(-1) & up.any(-2)).flatten(1).any(1) for down, up in self.pairs.values()]
        return [not bool(changes) for changes in torch.stack(effective).any(0)]

    def digest(self) -> str:
        """What tells these weights from others, whatever their device: twelve hexadecimal digits."""
        digest = hashlib.blake2b(repr(self.scaling).encode(), digest_size=6)
        for name, pair in sorted(self.pairs.items()):
            digest.update(repr((name, [tuple(t.shape) for t in pair])).encode())
            for tensor in pair:
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tensors[0].device

    def to(self, device: torch.device | str) -> LoraWeights:
        """The same weights on a device."""
        return LoraWeights({n: (a.to(device), b.to(device)) for n, (a, b) in self.pairs.items()}, self.scaling)

    @property
    def shape_key(self) -> object:
        """What adapters that are put side by side have in common: layers and parameters, sizes, and scaling."""
        return self.scaling, tuple((n, a.shape[1:], b.shape[1:]) for n, (a, b) in self.pairs.items())

    @property
    def nbytes(self) -> int:
        """Memory, in bytes."""
        return sum(t.nbytes for t in self.tensors)

    def select(self, index: int) -> LoraWeights:
        """One of the adapters, on its own; its memory is its own."""
        return LoraWeights(
            {n: (a[index : index + 1].clone(), b[index : index + 1].clone()) for n, (a, b) in self.pairs.items()},
            self.scaling,
        )

    @classmethod
    def stacked(cls, parts: Sequence[LoraWeights]) -> LoraWeights:
        """Adapters of one shape side by side, in memory of their own and without gradients."""
        names = parts[0].pairs
        pairs = {n: tuple(torch.cat([p.pairs[n][i].detach() for p in parts]) for i in (0, 1)) for n in names}
        return cls({n: (down, up) for n, (down, up) in pairs.items()}, parts[0].scaling)

    def detached(self) -> LoraWeights:
        """The same weights without gradients."""
        return LoraWeights({n: (a.detach(), b.detach()) for n, (a, b) in self.pairs.items()}, self.scaling)

    def copied(self) -> LoraWeights:
        """The same weights without gradients, in memory of their own."""
        return LoraWeights(
            {n: (a.detach().clone(), b.detach().clone()) for n, (a, b) in self.pairs.items()}, self.scaling
        )

    @contextmanager
    def attached(self, model: nn.Module, dropout: Dropout | None = None) -> Iterator[None]:
        """While inside, `model` answers with these adapters. With A > 1, rows come in A equal groups, in order.

        `dropout` is of the rows that come, and acts on the inputs of linear layers where gradients are taken.
        """
        modules = dict(model.named_modules())
        of_parameters: dict[str, dict[str, Pair]] = {}
        handles: list[RemovableHandle] = []
        batch = _BatchShape()
        try:
            if self.adapter_count > 1:
                handles.append(model.register_forward_pre_hook(batch.begin, with_kwargs=True))
                handles.append(model.register_forward_hook(batch.end))
            for name, (down, up) in self.pairs.items():
                owner, _, parameter = name.rpartition(".")
                if name in modules:
                    chosen = partial(dropout, layer=zlib.crc32(name.encode())) if dropout else None
                    hook = _Update(name, down, up, self.scaling, chosen, batch)
                    handles.append(modules[name].register_forward_hook(hook, with_kwargs=True))
                elif owner in modules and parameter in modules[owner]._parameters:
                    of_parameters.setdefault(owner, {})[parameter] = down, up
                else:
                    raise ModelError(f"the adapter does not fit: {type(model).__name__} has no layer {name!r}")
            for owner, pairs in of_parameters.items():
                handles += ParameterUpdates(pairs, self.scaling).attach(modules[owner])
            yield
        finally:
            for handle in handles:
                handle.remove()
            for owner, pairs in of_parameters.items():
                remove_updates(modules[owner], pairs)

    def save(self, folder: Path, recipe: Recipe, base: str = "") -> None:
        """Writes one adapter (A = 1) as a PEFT adapter folder, which `peft.PeftModel.from_pretrained` loads."""
        if self.adapter_count != 1:
            raise ModelError(f"one adapter is saved at a time; received {self.adapter_count}")
        write_folder(folder, {n: (down[0], up[0]) for n, (down, up) in self.pairs.items()}, recipe, base)

    @classmethod
    def load(
        cls, folder: Path, device: torch.device | str = "cpu", model: PreTrainedModel | None = None
    ) -> LoraWeights:
        """Reads a PEFT LoRA adapter folder with safetensors weights. Raises `ModelError` for other kinds of adapter.

        One that adapts parameters, such as experts, is read with the `model` that holds them.
        """
        pairs, scaling = read_folder(folder, device, model)
        return cls({n: (down[None], up[None]) for n, (down, up) in pairs.items()}, scaling)


class _BatchShape:
    """The shape of the tokens in a pass of the whole model, for as long as it runs."""

    def __init__(self) -> None:
        self._shape: tuple[int, ...] | None = None

    def begin(self, model: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named.get("input_ids", args[0] if args else None)
        self._shape = tuple(ids.shape) if isinstance(ids, Tensor) and ids.dim() == 2 else None

    def end(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._shape = None

    def keeps_order(self, x: Tensor) -> bool:
        """Whether a layer's input has the rows or tokens of the batch in their order, as far as its shape says."""
        if self._shape is None:
            return True
        rows, tokens = self._shape
        return x.shape[0] % rows == 0 if x.dim() > 2 else x.shape[0] == rows * tokens


class _Update:
    """The forward hook that adds one layer's low-rank update."""

    def __init__(
        self, name: str, down: Tensor, up: Tensor, scaling: float, dropout: Callable[[Tensor], Tensor] | None,
        batch: _BatchShape,
    ) -> None:  # fmt: skip
        self._name, self._batch = name, batch
        self._down, self._up, self._scaling, self._dropout = down, up, scaling, dropout
        self._ready: Pair | None = None
        """Transposed and in the model's precision, for as long as nothing is trained."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        if not isinstance(output, Tensor):  # a router's choice, which is no projection to add to
            return output
        x: Tensor = args[0] if args else next(iter(named.values()))
        training = torch.is_grad_enabled()
        if self._dropout and training:
            x = self._dropout(x)
        if self._ready is None or training:
            up = self._up if self._scaling == 1 else self._up * self._scaling
            pair = self._down.to(x.dtype).mT, up.to(x.dtype).mT
            self._ready = None if training else pair
        else:
            pair = self._ready
        down, up = pair
        if down.shape[0] == 1:
            rows = x.reshape(-1, x.shape[-1])
            return torch.addmm(output.reshape(-1, output.shape[-1]), rows @ down[0], up[0]).view_as(output)
        if not self._batch.keeps_order(x):
            raise ModelError(
                f"{self._name} is given {x.shape[0]} of the batch's tokens, as an expert that they are routed to: "
                f"{down.shape[0]} adapters cannot be used side by side on it; name target_modules without experts, or "
                "use a strategy that trains one adapter"
            )
        if x.shape[0] % down.shape[0]:
            raise ModelError(f"{down.shape[0]} adapters need as many equal groups of rows; received {x.shape[0]} rows")
        grouped = x.reshape(down.shape[0], -1, x.shape[-1])
        return output + (grouped @ down @ up).view_as(output)
