"""What a proof compared, in words."""

from __future__ import annotations

import pytest

from autottt.controller.tracing import proof
from autottt.controller.tracing.proof import proof_sentence, weights_sentence
from autottt.ttt_core.model import fingerprint
from tests.controller.tracing.sample_traces import LIST, failed_trace, trace_of


def test_a_block_has_the_bytes_that_a_proof_compares():
    assert proof.BLOCK == fingerprint.BLOCK


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (
            "pointers",
            "All were equal. The other bytes were not compared: the content hash, 0bbf, was computed at loading",
        ),
        ("full", "all bytes of all tensors, by their content hash, computed again: 0bbf. All were equal"),
    ],
)
def test_a_proof_says_what_it_compared_and_with_what_result(method, words):
    text = proof_sentence({"method": method, "tensors": 58, "hash": "0bbf"})
    assert text.startswith("58 tensors")
    assert (f"one block of {proof.BLOCK:,} bytes" in text) == (method == "pointers")
    assert words in text


def test_a_proof_says_how_many_bytes_it_compared():
    proof = {"method": "pointers", "tensors": 58, "hash": "0bbf", "compared_bytes": 1024, "bytes": 4096}
    assert ": 1,024 of 4,096 bytes, 25.0%. All were equal" in proof_sentence(proof)


def test_a_run_says_whether_an_adapter_was_detached_or_nothing_was_trained():
    trained, kept = trace_of("ttt_direct", LIST), trace_of("in_context", LIST)
    assert "was detached before the proof" in weights_sentence(trained)
    assert weights_sentence(kept).startswith("Nothing was trained in this run")
    for trace in (trained, kept, failed_trace()):
        assert "tensors (parameters and buffers) were compared" in weights_sentence(trace)
    assert " of " in weights_sentence(kept).partition("another block at each proof): ")[2]
