"""An adapter as a value with its recipe and training record, and its files: safetensors, and PEFT's format.

Knows nothing about how adapters are trained or cached.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from .. import lazy
from ..errors import ModelError
from ..file_writing import FREE_SPACE
from ..recipes import Recipe
from ..tasks.task import as_tuples
from .cross_validation import CrossValidationResult
from .modules import (
    coverage,
    expert_parameters,
    linear_modules,
    module_sizes,
    target_paths,
)
from .tensor_files import save_tensors
from .training import TrainingRecord
from .weights import LoraWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMAT = 6
"""Version of the file format and of cache keys. Files of other versions are not used."""


@dataclass(frozen=True)
class Adapter:
    """A trained adapter: a value that is valid for the base model it was trained on."""

    weights: LoraWeights
    """One adapter, or one for each fold of a cross-validation."""
    recipe: Recipe
    training: TrainingRecord
    base_hash: str
    """Content hash of the base model."""
    cross_validation: CrossValidationResult | None = None
    """Held-out results, for adapters of a cross-validation."""
    kind: str = ""
    """Kind of the task that it was trained on."""
    strategy: str = ""
    """Name of the strategy that it was trained for; empty if unknown."""
    scope: str = ""
    """Whose tasks it may be used for: adapters of other scopes are neither reused nor a start of training."""

    def matches(self, recipe: Recipe, model: PreTrainedModel) -> bool:
        """Whether this is a single adapter with the rank and alpha of the recipe, on the modules of the model that the
        recipe names, whichever way it names them. Raises `ModelError` as `target_modules` does."""
        if self.weights.adapter_count != 1 or (self.recipe.rank, self.recipe.alpha) != (recipe.rank, recipe.alpha):
            return False
        named = recipe.target_modules, recipe.layers_to_transform
        return self.weights.pairs.keys() == target_paths(model, *named)

    def save(self, file: Path, name: str = "", remedy: str = FREE_SPACE) -> None:
        """Writes a safetensors file atomically: the whole file, or none. `name` is stored inside, for a cache that
        looks adapters up by file name. Raises `FileError` with the remedy."""
        tensors = {}
        for layer, (down, up) in self.weights.pairs.items():
            tensors[f"{layer}.down"], tensors[f"{layer}.up"] = down.cpu().contiguous(), up.cpu().contiguous()
        metadata = {
            "recipe": asdict(self.recipe),
            "training": asdict(self.training),
            "cross_validation": None if self.cross_validation is None else asdict(self.cross_validation),
            "base_hash": self.base_hash,
            "scaling": self.weights.scaling,
            "kind": self.kind,
            "strategy": self.strategy,
            "scope": self.scope,
            "name": name,
        }
        text = json.dumps(metadata)
        header = {"format": str(FORMAT), "adapter": text, "checksum": _checksum(text, tensors)}
        save_tensors(tensors, file, header, remedy)

    @classmethod
    def load(cls, file: Path, device: torch.device | str = "cpu") -> Adapter:
        """Reads a file that `save` wrote. Raises `ModelError` for any other file, format or checksum."""
        return cls.load_named(file, device)[0]

    @classmethod
    def load_named(cls, file: Path, device: torch.device | str = "cpu") -> tuple[Adapter, str]:
        """As `load`, with the name that was given to `save`."""
        try:
            adapter, name = cls._read(file)
        except Exception as error:  # a damaged file may make the libraries raise anything
            raise _unreadable(file, error) from error
        return adapter.to(device), name

    @classmethod
    def owner_of(cls, file: Path) -> tuple[str, str]:
        """The scope and the base hash that a file names. Reads no weights, so the checksum is not verified. Raises
        `ModelError` for a file that names none, or has another format."""
        try:
            with safe_open(file, "pt") as opened:
                header: dict[str, str] = opened.metadata()
            _check_format(header)
            metadata: dict[str, Any] = json.loads(header["adapter"])
            return str(metadata.get("scope", "")), str(metadata["base_hash"])
        except Exception as error:  # a damaged file may make the libraries raise anything
            raise _unreadable(file, error) from error

    @classmethod
    def _read(cls, file: Path) -> tuple[Adapter, str]:
        with safe_open(file, "pt") as opened:
            header: dict[str, str] = opened.metadata()
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a mapping)
        _check_format(header)
        if header["checksum"] != _checksum(header["adapter"], tensors):
            raise ValueError("the checksum does not match the content: train the adapter again")
        metadata: dict[str, Any] = json.loads(header["adapter"])
        names = sorted({key.rpartition(".")[0] for key in tensors})
        pairs = {n: (tensors[f"{n}.down"], tensors[f"{n}.up"]) for n in names}
        training = {key: as_tuples(value) for key, value in metadata["training"].items()}
        held_out: dict[str, Any] | None = metadata["cross_validation"]
        if held_out is not None:
            held_out = {key: as_tuples(value) for key, value in held_out.items()}
        adapter = cls(
            weights=LoraWeights(pairs, metadata["scaling"]),
            recipe=Recipe.from_settings(metadata["recipe"]),
            training=TrainingRecord(**training),
            base_hash=metadata["base_hash"],
            cross_validation=None if held_out is None else CrossValidationResult(**held_out),
            kind=metadata["kind"],
            strategy=str(metadata.get("strategy", "")),
            scope=str(metadata.get("scope", "")),
        )
        return adapter, str(metadata["name"])

    def to_peft(self, folder: Path, base: str = "") -> None:
        """Writes a folder in PEFT's format, with `base` as the name of the base model.

        Raises `ModelError` for the adapters of a cross-validation, which are several.
        """
        if self.weights.adapter_count != 1:
            raise ModelError(
                f"PEFT's format holds one adapter; this one is {self.weights.adapter_count} adapters of a "
                "cross-validation: export one of them, with `replace(adapter, weights=adapter.weights.select(0))`"
            )
        self.weights.save(folder, self.recipe, base)

    @classmethod
    def from_peft(cls, folder: Path, model: PreTrainedModel, base_hash: str) -> Adapter:
        """Reads a folder in PEFT's format. Its recipe holds what the folder says: rank, alpha, dropout, target modules.

        Raises `ModelError` where the folder holds anything but plain LoRA for linear layers and experts of the model.
        """
        try:
            weights = LoraWeights.load(folder, model.device, model)
            config: Any = lazy.peft.PeftConfig.from_pretrained(str(folder))
            rank, alpha, dropout = config.r, config.lora_alpha, config.lora_dropout
        except ModelError:
            raise
        except Exception as error:  # a damaged folder may make the libraries raise anything
            raise ModelError(f"{folder}: cannot be read as a PEFT adapter ({type(error).__name__}: {error})") from error
        modules, parameters = linear_modules(model), expert_parameters(model)
        layers = {name: (rank, *module_sizes(module)) for name, module in modules.items()}
        layers |= {n: (rank * p.rank_factor, *p.sizes) for n, p in parameters.items()}
        _check_fits(folder, weights, layers, type(model).__name__)
        ordered = LoraWeights({n: weights.pairs[n] for n in layers if n in weights.pairs}, weights.scaling)
        every = len(ordered.pairs) == len(layers)
        names = (name.removesuffix(".weight").rpartition(".")[2] for name in ordered.pairs)
        targets = ("all-linear",) if every else tuple(sorted(set(names)))
        chosen = target_paths(model, targets)
        if chosen != ordered.pairs.keys():  # only some modules of a name
            targets = tuple(sorted(ordered.pairs))
        recipe = Recipe(rank=rank, alpha=alpha, dropout=dropout, target_modules=targets)
        record = TrainingRecord(
            0, (), 0.0, 0, "finished", zero_update=all(ordered.zero_updates()),
            **coverage(model, ordered.pairs)._asdict(),
        )  # fmt: skip
        return cls(ordered, recipe, record, base_hash)

    def to(self, device: torch.device | str) -> Adapter:
        """A copy with its weights on a device."""
        return replace(self, weights=self.weights.to(device))


def _check_format(header: Mapping[str, str]) -> None:
    """Raises `ValueError` for the metadata of a file in another format."""
    if (version := header.get("format", "3 or older")) != str(FORMAT):
        raise ValueError(f"its format is {version}; this version reads format {FORMAT}: train the adapter again")


def _unreadable(file: Path, error: Exception) -> ModelError:
    return ModelError(f"{file}: cannot be read as an adapter ({type(error).__name__}: {error})")


def _check_fits(
    folder: Path, weights: LoraWeights, layers: Mapping[str, tuple[int, int, int]], model_type: str
) -> None:
    """Raises `ModelError` where weights from a folder are not those of layers of the model, of (rank, d_in, d_out)."""
    if unknown := sorted(weights.pairs.keys() - layers.keys()):
        raise ModelError(
            f"{folder}: adapts {unknown[0]!r}, which is not a linear layer of this {model_type} below its output head; "
            f"expected names such as {next(iter(layers))!r}"
        )
    if not weights.pairs:
        raise ModelError(f"{folder}: expected the weights of an adapter; received none")
    for name, (down, up) in weights.pairs.items():
        rank, d_in, d_out = layers[name]
        expected = (rank, d_in), (d_out, rank)
        received = tuple(down.shape[-2:]), tuple(up.shape[-2:])
        if received != expected:
            raise ModelError(
                f"{folder}: for {name!r} of this model at rank {rank}, expected weights A and B of {expected}; "
                f"received {received}"
            )


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Hash of the format version, the metadata and all tensors."""
    digest = hashlib.blake2b(repr((FORMAT, text)).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().view(torch.uint8).numpy().data)
    return digest.hexdigest()
