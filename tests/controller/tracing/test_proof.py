"""What a proof compared, in words."""

from __future__ import annotations

import pytest

from autottt.controller.tracing import proof
from autottt.controller.tracing.proof import proof_sentence
from autottt.ttt_core.model import fingerprint


def test_a_block_has_the_bytes_that_a_proof_compares():
    assert proof.BLOCK == fingerprint.BLOCK


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (
            "pointers",
            "All were equal. Not every byte was compared: the content hash, 0bbf, was computed at loading",
        ),
        ("full", "all bytes of all tensors, by their content hash, computed again: 0bbf. All were equal"),
    ],
)
def test_a_proof_says_what_it_compared_and_with_what_result(method, words):
    text = proof_sentence({"method": method, "tensors": 58, "hash": "0bbf"})
    assert text.startswith("58 tensors")
    assert f"one block of {proof.BLOCK:,} bytes" in text
    assert words in text
