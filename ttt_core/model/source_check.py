"""Checks what a user names as a model without loading it, so that a mistake is an error before anything slow begins.

Knows nothing about what a model computes, and imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from ..errors import ModelError, shortened
from .catalogue import nearest_name, resolve

_HUB_ID = re.compile(r"[\w-][\w.-]{0,95}(/[\w-][\w.-]{0,95})?")
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
GGUF_SUFFIX = ".gguf"
_EXPECTED = "expected a folder with config.json, a tokenizer and safetensors weights, or a GGUF file"


def gguf_files_in(folder: Path) -> list[Path]:
    """The GGUF files of a folder, by their names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == GGUF_SUFFIX)


def check_source(source: str | os.PathLike[str] | None) -> None:
    """Raises `ModelError` for a folder or file that cannot be a model, for a model of the catalogue that was not
    fetched, and for what is no name on the hub. Whether the hub has the name, only loading can say."""
    if source is None:
        return
    name = os.fspath(source)
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        _check_folder(path)
    elif path.is_file():
        _check_gguf(path)
    elif name == "bundled":
        raise ModelError("model: the bundled model is the one that is loaded where no model is named: leave it out")
    elif resolve(name) is None and not _HUB_ID.fullmatch(name):
        expected = f"{_EXPECTED}, or the name of a model on the hub{nearest_name(name)}"
        raise ModelError(f"model: there is no {shortened(name)}: {expected}")


def _check_folder(folder: Path) -> None:
    if not (config := folder / "config.json").is_file():
        files = gguf_files_in(folder)
        if len(files) != 1:
            raise ModelError(f"model: {folder} has no config.json and {len(files)} GGUF files: {_EXPECTED}")
        _check_gguf(files[0])
        return
    try:
        content = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"model: {config} cannot be read as JSON ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise ModelError(f"model: {config} names no model_type: {_EXPECTED}")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"model: {folder} has no weights in *.safetensors: {_EXPECTED}")
    if not any((folder / tokenizer).is_file() for tokenizer in _TOKENIZERS):
        raise ModelError(f"model: {folder} has no tokenizer: {_EXPECTED}")


def _check_gguf(file: Path) -> None:
    try:
        with file.open("rb") as opened:
            start = opened.read(4)
    except OSError as error:
        raise ModelError(f"model: {file} cannot be read ({error.strerror})") from None
    if start != b"GGUF":
        raise ModelError(f"model: {file} is no GGUF file: {_EXPECTED}")
