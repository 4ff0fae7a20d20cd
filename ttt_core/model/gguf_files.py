"""Converts GGUF files to safetensors, once each, in a bounded cache that processes share.

The tensors are unpacked by transformers. What it leaves wrong is mended here: marks of quantization on plain weights,
and pre-tokenizers that the file names but transformers does not set. Knows nothing about prompts or adapters.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import shutil
import struct
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from tokenizers import Regex, pre_tokenizers

from ..errors import ModelError, first_line
from .file_hashes import recorded_sha256, remove_stale_records, sha256_of
from .source_check import GGUF_SUFFIX, gguf_files_in
from .tokenizer_files import save_tokenizer

CONVERSION = 3
"""Changes with what a conversion writes; part of the key."""
MAX_CACHE_BYTES = 20 << 30
"""Of converted models; the least recently used ones are removed."""
FACTS = "gguf.json"
"""File of a converted model with what the GGUF file said."""
_MAGIC = b"GGUF"
_LOG = logging.getLogger("autottt")

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS = {"llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3, "qwen2": _QWEN2, "deepseek-r1-qwen": _QWEN2}
"""`tokenizer.ggml.pre` -> regular expression that text is split by before byte-level BPE."""
_SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
"""Names of pre-tokenizers that split every digit off and then split as GPT-2 does."""
_GPT2 = ("gpt-2", "gpt2")
_WHOLE_TOKENS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken")
"""Names of pre-tokenizers whose parts are single tokens where the vocabulary has them, whatever the merges give."""


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, and where its tokenizer is if that is not in the file."""

    path: Path
    tokenizer: Path | None = None
    """Folder with the original tokenizer of the model."""

    @classmethod
    def of(cls, source: Path) -> GgufFile | None:
        """The GGUF file that a path names: the file itself, whatever its name, or the only one of a folder without a
        config.json. None for any other path. Raises `ModelError` for a folder with several."""
        if source.is_file() or source.suffix.lower() == GGUF_SUFFIX:
            path = source
        elif source.is_dir() and not (source / "config.json").is_file():
            candidates = gguf_files_in(source)
            if len(candidates) > 1:
                names = ", ".join(c.name for c in candidates[:5])
                raise ModelError(f"{source} holds {len(candidates)} GGUF files ({names}); name one of them")
            if not candidates:
                return None
            path = candidates[0]
        else:
            return None
        return cls(path, path.parent if (path.parent / "tokenizer.json").is_file() else None)

    def key(self, records: Path | None = None) -> str:
        """SHA-256 over the file, the tokenizer in its folder, and `CONVERSION`; its first 32 hexadecimal digits.

        With `records`, a folder, files that did not change since an earlier call are not read again.
        """
        digest = hashlib.sha256(f"{CONVERSION}".encode())
        for path in (self.path, *(() if self.tokenizer is None else (self.tokenizer / "tokenizer.json",))):
            content = sha256_of(path) if records is None else recorded_sha256(path, records)
            digest.update(bytes.fromhex(content))
        return digest.hexdigest()[:32]


def cache_folder() -> Path:
    """Where converted models are kept: `gguf` in the user's cache folder of this package."""
    return user_cache_path("autottt") / "gguf"


def converted_folder(file: GgufFile, cache: Path | None = None) -> Path:
    """The folder with config.json, tokenizer and safetensors weights of a GGUF file; converts it at the first use.

    Several processes may ask at the same time: one converts, the others wait. Raises `ModelError` for a file that is
    missing, broken, or of an architecture that transformers does not read, without the `gguf` extra, and where the
    disk has no room.
    """
    _check_is_gguf(file.path)
    cache = cache_folder() if cache is None else cache
    try:
        folder = cache / file.key(cache)
        if not (folder / FACTS).is_file():
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / f"{folder.name}.lock"):
                if not (folder / FACTS).is_file():
                    _convert(file, folder)
                    _prune(cache, folder)
        os.utime(folder)
    except OSError as error:
        raise ModelError(f"{file.path}: cannot be converted to {cache}: {error.strerror or error}") from error
    for warning in json.loads((folder / FACTS).read_text("utf-8"))["warnings"]:
        _LOG.warning("%s: %s", file.path.name, warning)
    return folder


def remove_conversion(file: GgufFile, cache: Path | None = None) -> None:
    """Deletes the converted folder of a GGUF file, if there is one."""
    cache = cache_folder() if cache is None else cache
    folder = cache / file.key(cache)
    if folder.is_dir():
        with FileLock(cache / f"{folder.name}.lock"):
            shutil.rmtree(folder)


def _check_is_gguf(path: Path) -> None:
    """Raises `ModelError` for what is no GGUF file, and without the library that reads one."""
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file; expected a GGUF file")
    with path.open("rb") as stream:
        if (start := stream.read(4)) != _MAGIC:
            raise ModelError(f"{path}: not a GGUF file: it begins with {start!r} and not with {_MAGIC!r}")
    if find_spec("gguf") is None:
        raise ModelError(f"{path}: reading GGUF files needs the library gguf: pip install 'autottt[gguf]'")


def _convert(file: GgufFile, folder: Path) -> None:
    """Writes the folder of a file; it appears whole or not at all."""
    metadata, precision, needed = _read_header(file.path)
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise ModelError(
            f"{file.path}: its conversion takes {needed / 1e9:.1f} GB in {folder.parent}, where {free / 1e9:.1f} GB "
            "are free; make room there, or set XDG_CACHE_HOME to a folder on another disk"
        )
    _LOG.warning("%s: converting to safetensors, once; this may take a minute", file.path.name)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.partial-", dir=folder.parent) as place:
        partial = Path(place) / "model"
        model, tokenizer, warnings = _read(file, metadata, Path(place))
        remove_quantization_marks(model)
        model.to(precision).save_pretrained(partial)
        save_tokenizer(tokenizer, partial)
        facts: dict[str, Any] = {
            "file": file.path.name,
            "warnings": warnings,
            "precision": str(precision).removeprefix("torch."),
        }
        facts |= {name: metadata.get(key) for name, key in _SHOWN.items()}
        (partial / FACTS).write_text(json.dumps(facts, indent=1), "utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)


def _read(file: GgufFile, metadata: Mapping[str, Any], place: Path) -> tuple[Any, Any, list[str]]:
    """The model in fp32, the tokenizer, and what the user must know about it. `place` is an empty folder.

    Raises `ModelError`, also where the file lacks tensors of the model, which transformers fills with random numbers.
    """
    source = file.path
    if source.suffix != GGUF_SUFFIX:  # transformers reads no other name
        source = place / f"model{GGUF_SUFFIX}"
        source.symlink_to(file.path.resolve())
    try:
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
        tokenizer, warnings = _tokenizer_of(file, source, metadata)
    except Exception as error:
        raise ModelError(f"{file.path}: cannot be read as a causal language model: {first_line(error)}") from error
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"{file.path}: this file lacks {len(missing)} tensors of the model, {missing[0]!r} among them, which would "
            "be random: it is incomplete, or a part of a split model"
        )
    return model, tokenizer, warnings


_SHOWN = {"name": "general.name", "architecture": "general.architecture", "license": "general.license"}


def _read_header(path: Path) -> tuple[Mapping[str, Any], torch.dtype, int]:
    """Metadata without arrays, the precision that keeps what the file holds, and the bytes of its weights in that.

    Quantized weights have at most 8 bits, so bf16 rounds them by less than their quantization did. Raises `ModelError`.
    """
    import gguf

    try:
        _check_array_lengths(path)
        reader = gguf.GGUFReader(path)
        metadata = {
            name: part.contents() for name, part in reader.fields.items() if gguf.GGUFValueType.ARRAY not in part.types
        }
        matrices = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
        count = sum(int(tensor.n_elements) for tensor in reader.tensors)
    except Exception as error:
        raise ModelError(f"{path}: a damaged GGUF file ({type(error).__name__}: {error}); download it again") from error
    if (parts := int(metadata.get("split.count") or 1)) > 1:
        raise ModelError(
            f"{path}: this file is one of {parts} parts of a model; merge them into one file, as `llama-gguf-split "
            "--merge` does"
        )
    if not matrices:
        raise ModelError(f"{path}: this GGUF file holds no weights")
    precision = torch.float32 if "F32" in matrices else torch.float16 if matrices == {"F16"} else torch.bfloat16
    return metadata, precision, count * precision.itemsize


_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a value in the metadata -> its size, for the types of fixed size (GGUF specification, versions 2 and 3)."""
_STRING, _ARRAY = 8, 9


def _check_array_lengths(path: Path) -> None:
    """Raises `ValueError` where a text or an array of the metadata is longer than the file: the library would read
    elements behind the end of the file one by one. Other damage is left to the library."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        order = "<" if 0 < struct.unpack_from("<I", content, 4)[0] < 1 << 16 else ">"

        def number(code: str, at: int) -> int:
            value: int = struct.unpack_from(order + code, content, at)[0]
            return value

        def end_of(kind: int, at: int) -> int:
            """The place behind a value that begins at a place."""
            if kind == _STRING:
                return at + 8 + number("Q", at)
            if kind != _ARRAY:
                return at + _SCALAR_BYTES[kind]
            inner, length, at = number("I", at), number("Q", at + 4), at + 12
            if inner in _SCALAR_BYTES:
                return at + _SCALAR_BYTES[inner] * length
            for _ in range(length):
                at = checked(end_of(inner, at))
            return at

        def checked(at: int) -> int:
            if at > len(content):
                raise ValueError(f"its metadata ends at byte {at:,} of {len(content):,}")
            return at

        at = 24
        for _ in range(number("Q", 16)):
            at = checked(end_of(_STRING, at))
            at = checked(end_of(number("I", at), at + 4))


def remove_quantization_marks(model: Any) -> None:
    """Makes a model that transformers unpacked a plain one: its parameters are, but `.float()`, `save_pretrained` and
    Trainer refuse a model that is marked as quantized."""
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    model.is_quantized = False
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "quantization_config"):
            del config.quantization_config


def _tokenizer_of(file: GgufFile, source: Path, metadata: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The tokenizer, and what the user must know about it. `source` is the file by a name that transformers reads."""
    if file.tokenizer is not None:
        return transformers.AutoTokenizer.from_pretrained(file.tokenizer, trust_remote_code=False), []
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        source.parent, gguf_file=source.name, trust_remote_code=False
    )
    if metadata.get("tokenizer.ggml.model") != "gpt2":  # SentencePiece splits nothing before its merges
        return tokenizer, []
    name = metadata.get("tokenizer.ggml.pre") or ("gpt-2" if metadata.get("general.architecture") == "gpt2" else "")
    backend = tokenizer.backend_tokenizer
    if name in _WHOLE_TOKENS:
        backend.model.ignore_merges = True
    if (pre_tokenizer := _pre_tokenizer(name)) is not None:
        backend.pre_tokenizer = pre_tokenizer
    elif isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):  # the default: transformers set none by this name
        problem = f"its pre-tokenizer {name!r} is unknown" if name else "it names no pre-tokenizer"
        return tokenizer, [
            f"{problem}, so text may be split otherwise than the model was trained on; put the model's original "
            "tokenizer.json beside the file"
        ]
    return tokenizer, []


def _pre_tokenizer(name: str) -> Any:
    """The pre-tokenizer of a byte-level BPE that a file names in `tokenizer.ggml.pre`; None for an unknown name."""
    byte_level = pre_tokenizers.ByteLevel
    if name in _GPT2:
        return byte_level(add_prefix_space=False)
    if name in _SINGLE_DIGITS:
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), byte_level(add_prefix_space=False)]
        )
    if name in _SPLITS:
        split = pre_tokenizers.Split(Regex(_SPLITS[name]), behavior="isolated")
        return pre_tokenizers.Sequence([split, byte_level(add_prefix_space=False, use_regex=False)])
    return None


def _prune(cache: Path, newest: Path) -> None:
    """Removes converted models, the least recently used first, until the others fit in `MAX_CACHE_BYTES`, what killed
    conversions left behind, and records of files that are gone."""
    folders = sorted((p for p in cache.iterdir() if (p / FACTS).is_file()), key=lambda p: p.stat().st_mtime)
    sizes = {folder: sum(p.stat().st_size for p in folder.iterdir() if p.is_file()) for folder in folders}
    total = sum(sizes.values())
    for folder in folders:
        if total > MAX_CACHE_BYTES and folder != newest:
            shutil.rmtree(folder, ignore_errors=True)
            total -= sizes[folder]
    for partial in cache.glob("*.partial-*"):
        with suppress(Timeout), FileLock(cache / f"{partial.name.split('.')[0]}.lock", blocking=False):
            shutil.rmtree(partial, ignore_errors=True)
    remove_stale_records(cache)
