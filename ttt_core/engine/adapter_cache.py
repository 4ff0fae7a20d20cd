"""A cache of adapters: in memory, and in a folder that several processes may share.

Knows nothing about how adapters are trained.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

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

    def __init__(
        self, memory_bytes: int = 1 << 27, folder: Path | None = None, disk_bytes: int = 1 << 30,
        per_scope: int | None = None,
    ) -> None:  # fmt: skip
        """`per_scope` is how many adapters of one base model each scope may have: of more, its least recently used ones
        are deleted, from the folder too, whichever process saved them."""
        self.memory_bytes = memory_bytes
        self.disk_bytes = disk_bytes
        self.per_scope = per_scope
        self._folder = folder
        self._entries: OrderedDict[str, tuple[object, Adapter]] = OrderedDict()
        self._owners: dict[str, tuple[str, str]] = {}
        """By the name of a file: the scope and the base hash of its adapter. Read where scopes are bounded."""
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
                        self._store(name, key, _load(file, base_hash, device))
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
                    adapter.save(self._folder / f"{name}.safetensors", name)
                    if self.per_scope is not None:
                        self._bound_files(self._folder, adapter, self.per_scope)
                    self._prune(self._folder)
                except OSError as error:
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
                        adapter = _load(file, None, device)
                        adapters += [adapter] * suits(adapter)
            return adapters[:count]

    @property
    def is_empty(self) -> bool:
        """Whether it holds no adapter in memory and has no folder."""
        return self._folder is None and not self._entries

    @property
    def adapter_count(self) -> int:
        """The number of adapters in memory."""
        return len(self._entries)

    @property
    def used_bytes(self) -> int:
        """Bytes of the adapters in memory."""
        with self._lock:
            return sum(adapter.weights.nbytes for _, adapter in self._entries.values())

    def clear(self) -> list[tuple[object, Adapter]]:
        """Removes all adapters from memory and returns them with their keys. Files stay."""
        with self._lock:
            entries = list(self._entries.values())
            self._entries.clear()
            return entries

    def _clean(self, folder: Path) -> None:
        """Deletes abandoned partial files; warns about files of other formats."""
        _delete_abandoned(folder)
        others = [f for f in _own_files(folder, ".safetensors") if not f.stem.endswith(_SUFFIX)]
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
        while self.used_bytes > self.memory_bytes and len(self._entries) > 1:
            self._entries.popitem(last=False)
        if self.per_scope is not None:
            self._bound_scope((adapter.scope, adapter.base_hash), self.per_scope)

    def _bound_scope(self, owner: tuple[str, str], limit: int) -> None:
        """Deletes the adapters in memory of a scope and base hash beyond a limit, the least recently used first."""
        names = [name for name, (_, each) in self._entries.items() if (each.scope, each.base_hash) == owner]
        for name in names[: max(0, len(names) - limit)]:
            del self._entries[name]
            if self._folder is not None:
                with suppress(OSError):
                    (self._folder / f"{name}.safetensors").unlink(missing_ok=True)

    def _bound_files(self, folder: Path, adapter: Adapter, limit: int) -> None:
        """Deletes the files of an adapter's scope and base model beyond a limit, the least recently used first; among
        files of one time those that are not in memory. A file that cannot be read counts for no scope."""
        places = {name: place for place, name in enumerate(self._entries)}
        owners, files = {}, []
        for file in _own_files(folder, ".safetensors"):
            with suppress(OSError, ModelError):  # another process deleted it, or it is damaged or in another format
                owners[file.stem] = owner = self._owners.get(file.stem) or _owner_of(file)
                if owner == (adapter.scope, adapter.base_hash):
                    files.append((file.stat().st_mtime, places.get(file.stem, -1), file))
        self._owners = owners
        for _, _, file in sorted(files)[: max(0, len(files) - limit)]:
            self._entries.pop(file.stem, None)
            with suppress(OSError):
                file.unlink(missing_ok=True)

    def _prune(self, folder: Path) -> None:
        """Deletes abandoned partial files, then the least recently used files until the rest, with partial ones, is
        within `disk_bytes`. A file that cannot be deleted, or is a folder, stays."""
        _delete_abandoned(folder)
        files = []
        for file in _own_files(folder, ".safetensors", ".partial"):
            with suppress(OSError):  # another process deleted it
                status = file.stat()
                if stat.S_ISREG(status.st_mode):
                    files.append((status.st_mtime, status.st_size, file))
        total = sum(size for _, size, _ in files)
        adapters = sorted(entry for entry in files if entry[2].suffix == ".safetensors")
        for _, size, file in adapters[:-1]:
            if total <= self.disk_bytes:
                break
            with suppress(OSError):
                file.unlink(missing_ok=True)
                total -= size


@dataclass(frozen=True)
class CachedFile:
    """One adapter file of a shared folder."""

    file: Path
    size: int
    """Bytes."""
    age: float
    """Seconds since it was last used."""
    key: str
    """Hash of the key that it is cached under, from inside the file; empty where it cannot be read."""
    base_hash: str
    """Content hash of the model that it was trained on; empty where the file cannot be read."""
    problem: str
    """Why the file is not used; empty where it is sound."""
    strategy: str = ""
    """Strategy that it was trained for; empty where it is unknown."""
    kind: str = ""
    """Kind of the task that it was trained on; empty where the file cannot be read."""
    outdated: bool = False
    """Whether another version of this package wrote the file, in another format; it may be sound there."""


def cached_files(folder: Path) -> list[CachedFile]:
    """Reads and verifies every adapter file of a folder, most recently used first."""
    files = sorted(_own_files(folder, ".safetensors"), key=_age)
    return [entry for file in files if (entry := _read_entry(file)) is not None]


def set_aside_damaged(folder: Path) -> list[CachedFile]:
    """Renames every damaged file to `<name>.damaged`, deletes abandoned partial files, and returns the files that were
    renamed, with their problems. Files in the format of another version stay."""
    _delete_abandoned(folder)
    damaged = []
    for entry in cached_files(folder):
        if entry.problem and not entry.outdated:
            with suppress(FileNotFoundError):  # another process deleted it
                entry.file.rename(entry.file.with_name(f"{entry.file.name}.damaged"))
                damaged.append(entry)
    return damaged


def delete_cached(folder: Path) -> int:
    """Deletes adapter files, those set aside, and partial files of processes that no longer run; returns how many."""
    files = [f for f in _own_files(folder, ".safetensors", ".damaged") if f.is_file()]
    files += [f for f in _own_files(folder, ".partial") if f.is_file() and _age(f) > ABANDONED_AFTER]
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)


def partial_files(folder: Path) -> list[Path]:
    """The files that are being written, or that a process left when it was killed."""
    return _own_files(folder, ".partial")


def _own_files(folder: Path, *suffixes: str) -> list[Path]:
    """The files whose names this cache gives, of any format: the folder may hold files of others."""
    return [f for f in folder.iterdir() if f.suffix in suffixes and _OWN_NAME.match(f.name)]


def _read_entry(file: Path) -> CachedFile | None:
    """The entry of a file; None if another process has deleted it."""
    try:
        age, size = _age(file), file.stat().st_size
    except FileNotFoundError:
        return None
    except OSError as error:
        return CachedFile(file, 0, 0.0, "", "", f"{file}: cannot be read ({error.strerror})")
    if not file.stem.endswith(_SUFFIX):
        problem = f"{file}: is in the format of another version; this version reads format {FORMAT}"
        return CachedFile(file, size, age, "", "", problem, outdated=True)
    try:
        adapter = _load(file, None, "cpu", warn=False)
    except ModelError as error:
        return CachedFile(file, size, age, "", "", str(error))
    return CachedFile(file, size, age, file.stem, adapter.base_hash, "", adapter.strategy, adapter.kind)


def _load(file: Path, base_hash: str | None, device: torch.device | str, warn: bool = True) -> Adapter:
    """Reads an adapter whose file holds the name that it has, and the base model that is expected. Raises `ModelError`,
    also for a file that was renamed; logs a warning for any file that is there and cannot be used."""
    try:
        _refuse_no_file(file)
        adapter, name = Adapter.load_named(file, device)
        if name != file.stem or (base_hash is not None and adapter.base_hash != base_hash):
            raise ModelError(f"{file}: was saved as {name!r}; a renamed adapter file is not used: delete it")
    except ModelError as error:
        if warn and file.exists():
            _log.warning("%s; the adapter is trained again when needed", error)
        raise
    return adapter


def _owner_of(file: Path) -> tuple[str, str]:
    """Scope and base hash of the adapter in a file. Raises `ModelError` where it cannot be read."""
    _refuse_no_file(file)
    return Adapter.owner_of(file)


def _refuse_no_file(file: Path) -> None:
    """Raises `ModelError` for anything but a file: opening a named pipe would wait for a writer."""
    if file.exists() and not file.is_file():
        raise ModelError(f"{file}: cannot be read as an adapter: it is not a file")


def _delete_abandoned(folder: Path) -> None:
    """Deletes partial files of processes that no longer run."""
    for partial in _own_files(folder, ".partial"):
        if _age(partial) > ABANDONED_AFTER:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


_OWN_NAME = re.compile(r"\.?[0-9a-f]{40}(-v\d+)?\.")
_SUFFIX = f"-v{FORMAT}"
"""Of the names of files in this version's format."""


def _entry_name(key: object, base_hash: str) -> str:
    """Name of an adapter's file, without its extension."""
    return hashlib.sha256(repr((FORMAT, base_hash, key)).encode()).hexdigest()[:40] + _SUFFIX


def _age(file: Path) -> float:
    """Seconds since the file was last used."""
    try:
        return time.time() - file.stat().st_mtime
    except OSError:  # deleted meanwhile, or a link to itself
        return 0.0
