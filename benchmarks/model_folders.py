"""Finds the weights of a model that a benchmark names. Used by real_models.py and earlier_build.py."""

from __future__ import annotations

from pathlib import Path

from autottt.ttt_core.model.catalogue import resolve
from autottt.ttt_core.model.gguf_files import GgufFile, converted_folder


def folder_of(source: str) -> Path | None:
    """The folder with the safetensors weights of a fetched model, a GGUF file or a local folder; else None."""
    path = Path(resolve(source) or source)
    gguf = GgufFile.of(path)
    folder = path if gguf is None else converted_folder(gguf)
    return folder if folder.is_dir() else None
