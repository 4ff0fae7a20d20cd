"""What the proof that the weights of the base came back compared, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BLOCK = 2048
"""Bytes of each tensor that the cheap proof compares; those of `fingerprint`, whose import takes as long as torch."""
_POINTERS = (
    "of each of them the memory address, the version counter (which every change in place raises), the shape and "
    f"the type, and by checksum one block of {BLOCK:,} bytes (all of a smaller tensor; another block at each proof)"
)
_METHODS = {
    "pointers": (
        f"Compared with the state at load (method pointers): {_POINTERS}; and all modules and hooks. All were equal. "
        "Not every byte was compared: the content hash, {hash}, was computed at loading and not again"
    ),
    "full": (
        f"Compared with the state at load (method full): {_POINTERS}; all modules and hooks; and all bytes of all "
        "tensors, by their content hash, computed again: {hash}. All were equal"
    ),
}
"""What a proof compared, and its result."""


def proof_sentence(proof: Mapping[str, Any]) -> str:
    """What a proof compared, and the result."""
    how = _METHODS.get(proof["method"], "Method {method}; content hash {hash}").format(**proof)
    return f"{proof['tensors']} tensors (parameters and buffers) were compared after the answer. {how}"
