"""LoRA adapters as values: low-rank updates with a leading adapter axis, attached to a frozen model by hooks.

Nothing of the base model is replaced or written to. Axes: A adapters, B rows, T tokens, r rank. Hu et al. 2021,
"LoRA: Low-Rank Adaptation of Large Language Models"; saved in the file format of the PEFT library.
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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import lazy
from ..errors import ModelError
from ..recipes import Recipe
from .dropout import Dropout
from .modules import module_sizes, target_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pair = tuple[Tensor, Tensor]
"""Down-projection [A, r, d_in] and up-projection [A, d_out, r]."""


@dataclass(frozen=True)
class LoraWeights:
    """The weights of A adapters of one shape, in fp32."""

    pairs: Mapping[str, Pair]
    """Module path -> its down- and up-projection."""
    scaling: float
    """What the update is multiplied by: alpha / rank."""

    @classmethod
    def initial(cls, model: PreTrainedModel, recipe: Recipe, seeds: Sequence[int]) -> LoraWeights:
        """New adapters, one per seed: down-projections Kaiming-uniform as in PEFT, up-projections zero."""
        pairs: dict[str, Pair] = {}
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        for name, module in target_modules(model, recipe.target_modules).items():
            d_in, d_out = module_sizes(module)
            down = torch.empty(len(seeds), recipe.rank, d_in)
            for row, generator in zip(down, generators, strict=True):
                nn.init.kaiming_uniform_(row, a=math.sqrt(5), generator=generator)
            up = torch.zeros(len(seeds), d_out, recipe.rank)
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
        effective = [(down.any(2) & up.any(1)).any(1) for down, up in self.pairs.values()]
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
        """What adapters that are put side by side have in common: layers, sizes and scaling."""
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

        `dropout` is of the rows that come, and acts where gradients are taken.
        """
        modules = dict(model.named_modules())
        handles = []
        try:
            for name, (down, up) in self.pairs.items():
                if name not in modules:
                    raise ModelError(f"the adapter does not fit: {type(model).__name__} has no layer {name!r}")
                chosen = partial(dropout, layer=zlib.crc32(name.encode())) if dropout else None
                hook = _Update(down, up, self.scaling, chosen)
                handles.append(modules[name].register_forward_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def save(self, folder: Path, recipe: Recipe, base: str = "") -> None:
        """Writes one adapter (A = 1) as a PEFT adapter folder, which `peft.PeftModel.from_pretrained` loads."""
        if self.adapter_count != 1:
            raise ModelError(f"one adapter is saved at a time; received {self.adapter_count}")
        folder.mkdir(parents=True, exist_ok=True)
        config = lazy.peft.LoraConfig(
            r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.dropout, target_modules=sorted(self.pairs),
            task_type="CAUSAL_LM", base_model_name_or_path=base, inference_mode=True,
        )  # fmt: skip
        config.save_pretrained(str(folder))
        named = {}
        for name, (down, up) in self.pairs.items():
            named[f"base_model.model.{name}.lora_A.weight"] = down[0].detach().cpu().contiguous()
            named[f"base_model.model.{name}.lora_B.weight"] = up[0].detach().cpu().contiguous()
        save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> LoraWeights:
        """Reads a PEFT LoRA adapter folder with safetensors weights. Raises `ModelError` for other kinds of adapter."""
        weights = folder / "adapter_model.safetensors"
        if not (folder / "adapter_config.json").is_file() or not weights.is_file():
            raise ModelError(f"{folder}: expected a folder with adapter_config.json and adapter_model.safetensors")
        config: Any = lazy.peft.PeftConfig.from_pretrained(str(folder))
        raw = load_file(weights, device=str(device))
        names = {k.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for k in raw}
        expected = {f"base_model.model.{n}.lora_{part}.weight" for n in names for part in "AB"}
        if config.peft_type != lazy.peft.PeftType.LORA or _beyond_plain(config) or raw.keys() != expected:
            raise ModelError(
                f"{folder}: only plain LoRA adapters can be loaded (no DoRA, rsLoRA, bias, modules_to_save, patterns "
                "of ranks or alphas, embeddings, or starts that change the base model)"
            )
        pairs = {
            n: (
                raw[f"base_model.model.{n}.lora_A.weight"].float()[None],
                raw[f"base_model.model.{n}.lora_B.weight"].float()[None],
            )
            for n in sorted(names)
        }
        return cls(pairs, config.lora_alpha / config.r)


_BEYOND_PLAIN = (
    "use_dora", "use_rslora", "use_qalora", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern",
    "layer_replication", "trainable_token_indices", "target_parameters", "alora_invocation_tokens",
)  # fmt: skip


def _beyond_plain(config: Any) -> bool:
    """Whether a LoRA configuration of PEFT means more than `x + scaling * up(down(x))` in every layer."""
    harmless = config.init_lora_weights in (True, False, "gaussian", "eva", "orthogonal")
    return not harmless or config.bias != "none" or any(getattr(config, name, None) for name in _BEYOND_PLAIN)


class _Update:
    """The forward hook that adds one layer's low-rank update."""

    def __init__(self, down: Tensor, up: Tensor, scaling: float, dropout: Callable[[Tensor], Tensor] | None) -> None:
        self._down, self._up, self._scaling, self._dropout = down, up, scaling, dropout
        self._ready: Pair | None = None
        """Transposed and in the model's precision, for as long as nothing is trained."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, Tensor):  # a router's choice, which is no projection to add to
            return output
        x: Tensor = args[0]
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
        if x.shape[0] % down.shape[0]:
            raise ModelError(f"{down.shape[0]} adapters need as many equal groups of rows; received {x.shape[0]} rows")
        grouped = x.reshape(down.shape[0], -1, x.shape[-1])
        return output + (grouped @ down @ up).view_as(output)
