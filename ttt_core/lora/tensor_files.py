"""Files of tensors in the safetensors format, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..file_writing import FREE_SPACE, replacing


def save_tensors(
    tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str], remedy: str = FREE_SPACE
) -> None:
    """Writes a safetensors file. Raises `FileError`, with the file and the remedy, where it cannot be written."""
    with replacing(file, remedy) as partial:
        try:
            partial.touch()  # with the permissions of a new file: those of safetensors' own are for its owner alone
            permissions = partial.stat().st_mode
            save_file(dict(tensors), partial, metadata=dict(metadata))
            partial.chmod(permissions)
        except SafetensorError as error:  # what the library makes of an error of the system
            raise OSError(str(error)) from error
