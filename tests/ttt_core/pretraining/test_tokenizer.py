"""The bundled model's tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autottt.ttt_core.pretraining.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()


@settings(derandomize=True, database=None, max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_is_decoded_exactly(text):
    if not any(special in text for special in TOKENIZER.all_special_tokens):
        assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("number", range(100))
def test_a_number_after_a_space_is_one_token(number):
    assert len(TOKENIZER.encode(f" {number}", add_special_tokens=False)) == 1


def test_larger_numbers_and_leading_zeros_are_digits():
    assert len(TOKENIZER.encode(" 148", add_special_tokens=False)) == 4
    assert len(TOKENIZER.encode(" 07", add_special_tokens=False)) == 3


def test_texts_begin_with_bos():
    assert TOKENIZER("").input_ids == [TOKENIZER.bos_token_id]
