"""Adapters as values, and where they are kept: in memory, then in a folder; knows nothing about how they are made.

Queries that share their demonstrations share what is learned from them, so a known one costs no training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import ModelError
from ..recipes import Recipe
from .cross_validation import CrossValidationResult
from .training import TrainingRecord
from .weights import LoraWeights

FORMAT = 3
"""Of the files and of what keys mean; other formats' files are not found."""
ABANDONED = 3600.0
"""Seconds after which a file that was being written belongs to a process that is gone."""


@dataclass(frozen=True)
class Adapter:
    """What was learned from one task's demonstrations: a value, valid for the base it was trained on."""

    weights: LoraWeights
    """Of one adapter, or of several that were cross-fitted."""
    recipe: Recipe
    training: TrainingRecord
    base_hash: str
    cross_validation: CrossValidationResult | None = None
    """Of a cross-fitted one: what held-out demonstrations say of it."""
    kind: str = ""
    """Of the task that it was learned from."""

    def matches(self, recipe: Recipe) -> bool:
        """Whether it is one alone, with the shape and the scale that the recipe asks for."""
        mine = self.recipe
        same = (mine.rank, mine.alpha, mine.target_modules) == (recipe.rank, recipe.alpha, recipe.target_modules)
        return self.weights.adapter_count == 1 and same

    def save(self, file: Path) -> None:
        """Writes a safetensors file: whole, or not at all."""
        tensors = {}
        for name, (down, up) in self.weights.pairs.items():
            tensors[f"{name}.down"], tensors[f"{name}.up"] = down.cpu().contiguous(), up.cpu().contiguous()
        facts = {
            "recipe": asdict(self.recipe),
            "training": asdict(self.training),
            "cross_validation": None if self.cross_validation is None else asdict(self.cross_validation),
            "base_hash": self.base_hash,
            "scaling": self.weights.scaling,
            "kind": self.kind,
        }
        text = json.dumps(facts)
        partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")
        try:
            save_file(tensors, partial, metadata={"adapter": text, "checksum": _checksum(text, tensors)})
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, file: Path, device: torch.device | str = "cpu") -> Adapter:
        """Reads what `save` wrote. Raises `ModelError` for anything else, and where a bit is not as it was."""
        try:
            found = cls._read(file)
        except Exception as error:  # there is no end to what a file can hold
            raise ModelError(f"{file}: cannot be read as an adapter ({type(error).__name__}: {error})") from error
        return found.to(device)

    @classmethod
    def _read(cls, file: Path) -> Adapter:
        with safe_open(file, "pt") as opened:
            about: dict[str, str] = opened.metadata()
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a mapping)
        if about["checksum"] != _checksum(about["adapter"], tensors):
            raise ValueError(f"the checksum is not that of what it holds, in format {FORMAT}")
        facts: dict[str, Any] = json.loads(about["adapter"])
        names = sorted({key.rpartition(".")[0] for key in tensors})
        pairs = {n: (tensors[f"{n}.down"], tensors[f"{n}.up"]) for n in names}
        training = {**facts["training"], "losses": tuple(facts["training"]["losses"])}
        evidence: dict[str, Any] | None = facts["cross_validation"]
        if evidence is not None:
            evidence = {k: tuple(v) if isinstance(v, list) else v for k, v in evidence.items()}
        return cls(
            LoraWeights(pairs, facts["scaling"]), Recipe.from_settings(facts["recipe"]), TrainingRecord(**training),
            facts["base_hash"], None if evidence is None else CrossValidationResult(**evidence), facts["kind"],
        )  # fmt: skip

    def to_peft(self, folder: Path, base: str = "") -> None:
        """Writes a folder in PEFT's format, which names the `base` model. Raises `ModelError` where this is several."""
        if self.weights.adapter_count != 1:
            raise ModelError(
                f"PEFT's format holds one adapter; this one is {self.weights.adapter_count} that were cross-fitted: export one "
                "of them, with `replace(adapter, weights=adapter.weights.select(0))`"
            )
        self.weights.save(folder, self.recipe, base)

    @classmethod
    def from_peft(cls, folder: Path, model: PreTrainedModel, base_hash: str) -> Adapter:
        """Reads a folder in PEFT's format. Raises `ModelError` where it holds anything but plain LoRA for the layers of
        the model. What a folder does not say of its training is not in the recipe.
        """
        try:
            weights = LoraWeights.load(folder, model.device)
            config: Any = PeftConfig.from_pretrained(str(folder))
            rank, alpha, dropout = config.r, config.lora_alpha, config.lora_dropout
        except ModelError:
            raise
        except Exception as error:  # there is no end to what a folder can hold
            raise ModelError(f"{folder}: cannot be read as a PEFT adapter ({type(error).__name__}: {error})") from error
        layers = LoraWeights.initial(model, Recipe(rank=1), [0]).pairs
        if odd := sorted(weights.pairs.keys() - layers.keys()):
            raise ModelError(
                f"{folder}: adapts {odd[0]!r}, which is no linear layer of this {type(model).__name__} below its head; "
                f"those are called as {next(iter(layers))!r} is"
            )
        if not weights.pairs:
            raise ModelError(f"{folder}: expected the weights of an adapter; received none")
        for name, (down, up) in weights.pairs.items():
            wide = (rank, layers[name][0].shape[-1]), (layers[name][1].shape[1], rank)
            found = tuple(down.shape[1:]), tuple(up.shape[1:])
            if found != wide:
                raise ModelError(
                    f"{folder}: for {name!r} of this model at rank {rank}, expected weights A and B of {wide}; "
                    f"received {found}"
                )
        ordered = LoraWeights({n: weights.pairs[n] for n in layers if n in weights.pairs}, weights.scaling)
        every = len(ordered.pairs) == len(layers)
        targets = ("all-linear",) if every else tuple(sorted({name.rpartition(".")[2] for name in ordered.pairs}))
        recipe = Recipe(rank=rank, alpha=alpha, dropout=dropout, target_modules=targets)
        return cls(ordered, recipe, TrainingRecord(0, (), 0.0, 0, "finished"), base_hash)

    def to(self, device: torch.device | str) -> Adapter:
        """The same adapter with its weights on a device."""
        return replace(self, weights=self.weights.to(device))


class AdapterCache:
    """Adapters by key, the least recently used let go of first. Keys are values whose `repr` says all that they are.

    In `folder`, which several processes may share, adapters outlive the process; files are bounded by `disk_bytes`. A
    folder that cannot be made or written to is no error, but told once in the log. Threads may share a cache.
    """

    def __init__(self, memory_bytes: int = 1 << 27, folder: Path | None = None, disk_bytes: int = 1 << 30) -> None:
        self.memory_bytes = memory_bytes
        self.disk_bytes = disk_bytes
        self._folder = folder
        self._kept: OrderedDict[str, tuple[object, Adapter]] = OrderedDict()
        self._lock = threading.RLock()
        self._warned = False
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                for partial in folder.glob(".*.partial"):
                    if _age(partial) > ABANDONED:
                        partial.unlink(missing_ok=True)
            except OSError as error:
                self._warn(error)

    def get(self, key: object, base_hash: str, device: torch.device | str = "cpu") -> Adapter | None:
        """The adapter kept under a key for a base, if there is one. A file that cannot be read counts as none."""
        name = _digest(key, base_hash)
        with self._lock:
            if self._folder is not None:
                file = self._folder / f"{name}.safetensors"
                with suppress(ModelError, OSError):
                    if name not in self._kept:
                        self._keep(name, key, Adapter.load(file, device))
                    os.utime(file)  # it is in use: another one is deleted first
            if name not in self._kept:
                return None
            adapter = self._kept[name][1]
            if adapter.weights.device.type != torch.device(device).type:
                adapter = adapter.to(device)
            self._keep(name, key, adapter)
            return adapter

    def put(self, key: object, adapter: Adapter) -> None:
        """Keeps an adapter. A folder that cannot be written to is no error: the adapter is kept in memory."""
        name = _digest(key, adapter.base_hash)
        with self._lock:
            self._keep(name, key, adapter)
            if self._folder is not None:
                try:
                    adapter.save(self._folder / f"{name}.safetensors")
                    self._prune(self._folder)
                except (OSError, SafetensorError) as error:
                    self._warn(error)

    def most_recent(
        self, count: int, suits: Callable[[Adapter], bool], device: torch.device | str = "cpu"
    ) -> list[Adapter]:
        """Up to `count` adapters that suit, the last used first: those in memory, then those in the folder.

        Looks at no more than `count` files beyond those that are in memory.
        """
        with self._lock:
            found = [a for _, a in reversed(self._kept.values()) if suits(a)][:count]
            if self._folder is not None and len(found) < count:
                files = [f for f in self._folder.glob("*.safetensors") if f.stem not in self._kept]
                for file in sorted(files, key=_age)[:count]:
                    with suppress(ModelError):
                        adapter = Adapter.load(file, device)
                        found += [adapter] * suits(adapter)
            return found[:count]

    def clear(self) -> list[tuple[object, Adapter]]:
        """Lets go of what is in memory, and returns it with its keys."""
        with self._lock:
            kept = list(self._kept.values())
            self._kept.clear()
            return kept

    def _warn(self, error: Exception) -> None:
        """Says once that adapters are not kept in the folder."""
        if not self._warned:
            self._warned = True
            logging.getLogger("autottt").warning(
                "adapters cannot be kept in %s (%s); they are kept in memory alone", self._folder, error
            )

    def _keep(self, name: str, key: object, adapter: Adapter) -> None:
        self._kept[name] = key, adapter
        self._kept.move_to_end(name)
        while sum(a.weights.nbytes for _, a in self._kept.values()) > self.memory_bytes and len(self._kept) > 1:
            self._kept.popitem(last=False)

    def _prune(self, folder: Path) -> None:
        """Deletes the files that were used longest ago until the rest is within bounds."""
        found = []
        for file in folder.glob("*.safetensors"):
            try:
                facts = file.stat()
            except FileNotFoundError:  # another process was quicker
                continue
            found.append((facts.st_mtime, facts.st_size, file))
        total = sum(size for _, size, _ in found)
        for _, size, file in sorted(found)[:-1]:
            if total <= self.disk_bytes:
                break
            file.unlink(missing_ok=True)
            total -= size


def _digest(key: object, base_hash: str) -> str:
    return hashlib.sha256(repr((FORMAT, base_hash, key)).encode()).hexdigest()[:40]


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Of all that a file holds, and of how it is written."""
    digest = hashlib.blake2b(repr((FORMAT, text)).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _age(file: Path) -> float:
    try:
        return time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return 0.0
