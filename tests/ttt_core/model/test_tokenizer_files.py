"""Tokenizers in the form that transformers reads fastest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from autottt.ttt_core.model.tokenizer_files import CONFIG, save_tokenizer

VOCABULARY = {token: n for n, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"▁abc<x>", "ab"])}
TEXTS = ["ab c", "a  b", "<bos>ab<eos>", " <mask>", "<xy> a"]


def gemma() -> Any:
    """A tokenizer whose class rebuilds its vocabulary when it is read."""
    tokenizer = transformers.GemmaTokenizer(vocab=VOCABULARY, merges=[("a", "b")])
    tokenizer.add_tokens([transformers.AddedToken("<xy>", lstrip=True, normalized=False)])
    return tokenizer


def general() -> Any:
    backend = Tokenizer(models.BPE(VOCABULARY, [("a", "b")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Digits(individual_digits=True)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    return tokenizer


@pytest.mark.parametrize("make", [gemma, general])
def test_a_saved_tokenizer_is_read_as_it_was(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make()
    save_tokenizer(tokenizer, tmp_path)
    parsed: list[str] = []
    load = json.load
    monkeypatch.setattr(json, "load", lambda stream, **how: (parsed.append(stream.name), load(stream, **how))[1])
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert not [name for name in parsed if name.endswith("tokenizer.json")]
    for text in TEXTS:
        assert read(text) == tokenizer(text)
        assert read.decode(read.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert (read.padding_side, read.special_tokens_map) == (tokenizer.padding_side, tokenizer.special_tokens_map)
    assert read.chat_template == tokenizer.chat_template


def test_a_class_that_the_general_one_does_not_replace_is_kept(tmp_path: Path) -> None:
    tokenizer = gemma()
    tokenizer.model_input_names = ["input_ids"]
    save_tokenizer(tokenizer, tmp_path)
    settings = json.loads((tmp_path / CONFIG).read_text("utf-8"))
    assert settings["tokenizer_class"] == "GemmaTokenizer"
    assert "added_tokens_decoder" not in settings


def seamless() -> Any:
    tokens = ["<pad>", "<unk>", "<s>", "</s>", *"▁abc"]
    return transformers.SeamlessM4TTokenizer(vocab={token: place for place, token in enumerate(tokens)}, merges=[])


def clip() -> Any:
    tokens = ["<|startoftext|>", "<|endoftext|>", *"abc", "a</w>", "b</w>", "c</w>"]
    return transformers.CLIPTokenizer(vocab={token: place for place, token in enumerate(tokens)}, merges=[])


@pytest.mark.parametrize("make", [seamless, clip])
def test_a_class_with_methods_of_its_own_is_kept(make: Any, tmp_path: Path) -> None:
    tokenizer = make()
    save_tokenizer(tokenizer, tmp_path)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(read) is type(tokenizer)
    for text in ("a b", "ab c"):
        assert read(text).input_ids == tokenizer(text).input_ids
        assert read.decode(read.encode(text)) == tokenizer.decode(tokenizer.encode(text))
