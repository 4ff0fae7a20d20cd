"""A cache of adapters: in memory, and in a folder that several processes may share.

Knows nothing about how adapters are trained.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError

from ..errors import ModelError
from ..lora.adapter import FORMAT, Adapter

ABANDONED_AFTER = 3600.0
"""Seconds after which a partial file is taken to belong to a process that no longer runs."""
_log = logging.getLogger("autottt")


class AdapterCache:
    """Adapters by key; the least recently used are evicted first. Keys are values whose `repr` identifies them.

    In `folder`, which several processes may share, adapters outlive the process; files are bounded by `disk_bytes`.
    Where the folder cannot be created or written to, one warning is logged and adapters are cached in memory only.
    The methods are safe to call from several threads.
    """

    def __init__(self, memory_bytes: int = 1 << 27, folder: Path | None = None, disk_bytes: int = 1 << 30) -> None:
        self.memory_bytes = memory_bytes
        self.disk_bytes = disk_bytes
        self._folder = folder
        self._entries: OrderedDict[str, tuple[object, Adapter]] = OrderedDict()
        self._lock = threading.RLock()
        self._warned = False
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._clean(folder)
            except OSError as error:
                self._warn(error)

    def get(self, key: object, base_hash: str, device: torch.device | str = "cpu") -> Adapter | None:
        """The adapter of a key for a base model; None where there is none, or its file cannot be read."""
        name = _entry_name(key, base_hash)
        with self._lock:
            if self._folder is not None:
                file = self._folder / f"{name}.safetensors"
                with suppress(ModelError, OSError):
                    if name not in self._entries:
                        self._store(name, key, Adapter.load(file, device))
                    os.utime(file)  # marks the file as recently used
            if name not in self._entries:
                return None
            adapter = self._entries[name][1]
            if adapter.weights.device.type != torch.device(device).type:
                adapter = adapter.to(device)
            self._store(name, key, adapter)
            return adapter

    def put(self, key: object, adapter: Adapter) -> None:
        """Adds an adapter to memory, and to the folder where it can be written to."""
        name = _entry_name(key, adapter.base_hash)
        with self._lock:
            self._store(name, key, adapter)
            if self._folder is not None:
                try:
                    adapter.save(self._folder / f"{name}.safetensors")
                    self._prune(self._folder)
                except (OSError, SafetensorError) as error:
                    self._warn(error)

    def most_recent(
        self, count: int, suits: Callable[[Adapter], bool], device: torch.device | str = "cpu"
    ) -> list[Adapter]:
        """Up to `count` adapters for which `suits` is true, most recently used first: from memory, then the folder.

        Reads at most `count` files of adapters that are not in memory.
        """
        with self._lock:
            adapters = [a for _, a in reversed(self._entries.values()) if suits(a)][:count]
            if self._folder is not None and len(adapters) < count:
                files = [f for f in self._folder.glob(f"*{_SUFFIX}.safetensors") if f.stem not in self._entries]
                for file in sorted(files, key=_age)[:count]:
                    with suppress(ModelError):
                        adapter = Adapter.load(file, device)
                        adapters += [adapter] * suits(adapter)
            return adapters[:count]

    def clear(self) -> list[tuple[object, Adapter]]:
        """Removes all adapters from memory and returns them with their keys. Files stay."""
        with self._lock:
            entries = list(self._entries.values())
            self._entries.clear()
            return entries

    def _clean(self, folder: Path) -> None:
        """Deletes abandoned partial files; warns about files of other formats."""
        for partial in folder.glob(".*.partial"):
            if _age(partial) > ABANDONED_AFTER:
                partial.unlink(missing_ok=True)
        others = [f for f in folder.glob("*.safetensors") if not f.stem.endswith(_SUFFIX)]
        if others:
            _log.warning(
                "%s: %d adapters have another file format than %d and are not used; they are trained again when "
                "needed. Delete the files to free their space",
                folder,
                len(others),
                FORMAT,
            )

    def _warn(self, error: Exception) -> None:
        """Logs once that the folder cannot be used."""
        if not self._warned:
            self._warned = True
            _log.warning("adapters cannot be saved in %s (%s); they are cached in memory only", self._folder, error)

    def _store(self, name: str, key: object, adapter: Adapter) -> None:
        """Puts an adapter last in memory, and evicts from the front what exceeds the bound."""
        self._entries[name] = key, adapter
        self._entries.move_to_end(name)
        while sum(a.weights.nbytes for _, a in self._entries.values()) > self.memory_bytes and len(self._entries) > 1:
            self._entries.popitem(last=False)

    def _prune(self, folder: Path) -> None:
        """Deletes the least recently used files until the rest is within `disk_bytes`."""
        files = []
        for file in folder.glob("*.safetensors"):
            try:
                stat = file.stat()
            except FileNotFoundError:  # another process deleted it
                continue
            files.append((stat.st_mtime, stat.st_size, file))
        total = sum(size for _, size, _ in files)
        for _, size, file in sorted(files)[:-1]:
            if total <= self.disk_bytes:
                break
            file.unlink(missing_ok=True)
            total -= size


_SUFFIX = f"-v{FORMAT}"
"""Of the names of files in this version's format."""


def _entry_name(key: object, base_hash: str) -> str:
    """Name of an adapter's file, without its extension."""
    return hashlib.sha256(repr((FORMAT, base_hash, key)).encode()).hexdigest()[:40] + _SUFFIX


def _age(file: Path) -> float:
    """Seconds since the file was last used."""
    try:
        return time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return 0.0
