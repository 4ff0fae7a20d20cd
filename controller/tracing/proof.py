"""What the proof that the weights of the base came back compared, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .trace import Trace, find_spans

BLOCK = 2048
"""Bytes of each tensor that the cheap proof compares; those of `fingerprint`, whose import takes as long as torch."""
_STATE = (
    "the memory address, the version counter (which every change in place raises), the shape and the type of each, all "
    "modules and all hooks"
)
_METHODS = {
    "pointers": (
        f"Compared with the state at load: {_STATE}; and by checksum one block of {BLOCK:,} bytes of each tensor (all "
        "of a smaller one; another block at each proof){share}. All were equal. The other bytes were not compared: the "
        "content hash, {hash}, was computed at loading and not again"
    ),
    "full": (
        f"Compared with the state at load: {_STATE}; and all bytes of all tensors{{share}}, by their content hash, "
        "computed again: {hash}. All were equal"
    ),
}
"""What a proof compared, and its result."""


def weights_sentence(trace: Trace) -> str:
    """What was trained, and what the proof after the answer compared; empty without a proof."""
    proof = proof_of(trace)
    return f"{_adapters(trace)}. {proof_sentence(proof)}" if proof else ""


def proof_of(trace: Trace) -> Mapping[str, Any]:
    """The proof of a run, with the bytes that it compared where they are known; empty without one."""
    after_failure = [s for s in trace.root.get("children", ()) if s["name"] == "verify" and s["status"] == "ok"]
    in_run = [s for node in trace.nodes if node["name"] == "revert" for s in find_spans(node, "verify")]
    spans = in_run if trace.result.get("proof") else after_failure
    attributes: Mapping[str, Any] = spans[-1].get("attributes", {}) if spans else {}
    return {**attributes, **(trace.result.get("proof") or {})}


def proof_sentence(proof: Mapping[str, Any]) -> str:
    """What a proof compared, and the result."""
    share = ""
    if compared := proof.get("compared_bytes"):
        share = f": {compared:,} of {proof['bytes']:,} bytes, {compared / proof['bytes']:.1%}"
    facts = {**proof, "share": share}
    how = _METHODS.get(proof["method"], "Method {method}; content hash {hash}").format(**facts)
    return f"{proof['tensors']} tensors (parameters and buffers) were compared after the answer. {how}"


def _adapters(trace: Trace) -> str:
    """Whether there was an adapter, and that it is no longer attached: the proof compares all modules and hooks."""
    if find_spans(trace.root, "adapter"):
        return (
            "The adapter was used beside the weights of the base, which are frozen, and was detached before the proof, "
            "which would find its hooks"
        )
    return "Nothing was trained in this run and no adapter was attached; the proof was made all the same"
