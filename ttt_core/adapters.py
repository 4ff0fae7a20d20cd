"""Adapters as values, and where they are kept: in memory, then in a folder; knows nothing about how they are made.

Queries that share their demonstrations share what is learned from them, so a known one costs no training.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .crossfit import Evidence
from .lora import LoraWeights
from .recipes import Recipe
from .training import Training

FORMAT = 1
"""Of the files and of what keys mean; other formats' files are not found."""
ABANDONED = 3600.0
"""Seconds after which a file that was being written belongs to a process that is gone."""


@dataclass(frozen=True)
class Adapter:
    """What was learned from one task's demonstrations: a value, valid for the base it was trained on."""

    weights: LoraWeights
    """Of one adapter, or of several that were cross-fitted."""
    recipe: Recipe
    training: Training
    base_hash: str
    evidence: Evidence | None = None
    """Of a cross-fitted one: what held-out demonstrations say of it."""
    kind: str = ""
    """Of the task that it was learned from."""

    def save(self, file: Path) -> None:
        """Writes a safetensors file: whole, or not at all."""
        tensors = {}
        for name, (down, up) in self.weights.pairs.items():
            tensors[f"{name}.down"], tensors[f"{name}.up"] = down.cpu().contiguous(), up.cpu().contiguous()
        facts = {
            "recipe": asdict(self.recipe),
            "training": asdict(self.training),
            "evidence": None if self.evidence is None else asdict(self.evidence),
            "base_hash": self.base_hash,
            "scaling": self.weights.scaling,
            "kind": self.kind,
        }
        partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")
        try:
            save_file(tensors, partial, metadata={"adapter": json.dumps(facts)})
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, file: Path, device: torch.device | str = "cpu") -> Adapter:
        """Reads what `save` wrote. Raises `OSError` or `SafetensorError` where it cannot."""
        with safe_open(file, "pt", device=str(device)) as opened:
            facts: dict[str, Any] = json.loads(opened.metadata()["adapter"])
            names = sorted({key.rpartition(".")[0] for key in opened.keys()})  # noqa: SIM118 (not a mapping)
            pairs = {n: (opened.get_tensor(f"{n}.down"), opened.get_tensor(f"{n}.up")) for n in names}
        training = {**facts["training"], "losses": tuple(facts["training"]["losses"])}
        evidence: dict[str, Any] | None = facts["evidence"]
        if evidence is not None:
            evidence = {k: tuple(v) if isinstance(v, list) else v for k, v in evidence.items()}
        return cls(
            LoraWeights(pairs, facts["scaling"]), Recipe.from_settings(facts["recipe"]), Training(**training),
            facts["base_hash"], None if evidence is None else Evidence(**evidence), facts.get("kind", ""),
        )  # fmt: skip


class AdapterCache:
    """Adapters by key, the least recently used let go of first. Keys are values whose `repr` says all that they are.

    In `folder`, which several processes may share, adapters outlive the process; files are bounded by `disk_bytes`.
    """

    def __init__(self, memory_bytes: int = 1 << 27, folder: Path | None = None, disk_bytes: int = 1 << 30) -> None:
        self.memory_bytes = memory_bytes
        self.disk_bytes = disk_bytes
        self._folder = folder
        self._kept: OrderedDict[str, tuple[object, Adapter]] = OrderedDict()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for partial in folder.glob(".*.partial"):
                if _age(partial) > ABANDONED:
                    partial.unlink(missing_ok=True)

    def get(self, key: object, base_hash: str, device: torch.device | str = "cpu") -> Adapter | None:
        """The adapter kept under a key for a base, if there is one. A file that cannot be read counts as none."""
        name = _digest(key, base_hash)
        if self._folder is not None:
            file = self._folder / f"{name}.safetensors"
            try:
                if name not in self._kept:
                    self._keep(name, key, Adapter.load(file, device))
                os.utime(file)  # it is in use: another one is deleted first
            except (OSError, SafetensorError, KeyError, TypeError, ValueError):
                pass
        if name not in self._kept:
            return None
        adapter = self._kept[name][1]
        if adapter.weights.device.type != torch.device(device).type:
            adapter = replace(adapter, weights=adapter.weights.to(device))
        self._keep(name, key, adapter)
        return adapter

    def put(self, key: object, adapter: Adapter) -> None:
        """Keeps an adapter. A folder that cannot be written to is no error: the adapter is kept in memory."""
        name = _digest(key, adapter.base_hash)
        self._keep(name, key, adapter)
        if self._folder is not None:
            try:
                adapter.save(self._folder / f"{name}.safetensors")
                self._prune(self._folder)
            except (OSError, SafetensorError):
                pass

    def newest(self, count: int, suits: Callable[[Adapter], bool], device: torch.device | str = "cpu") -> list[Adapter]:
        """Up to `count` adapters that suit, the last used first: those in memory, then those in the folder.

        Looks at no more than `count` files beyond those that are in memory.
        """
        found = [a for _, a in reversed(self._kept.values()) if suits(a)][:count]
        if self._folder is not None and len(found) < count:
            files = [f for f in self._folder.glob("*.safetensors") if f.stem not in self._kept]
            for file in sorted(files, key=_age)[:count]:
                try:
                    adapter = Adapter.load(file, device)
                except (OSError, SafetensorError, KeyError, TypeError, ValueError):
                    continue
                found += [adapter] * suits(adapter)
        return found[:count]

    def clear(self) -> list[tuple[object, Adapter]]:
        """Lets go of what is in memory, and returns it with its keys."""
        kept = list(self._kept.values())
        self._kept.clear()
        return kept

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


def _age(file: Path) -> float:
    try:
        return time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return 0.0
