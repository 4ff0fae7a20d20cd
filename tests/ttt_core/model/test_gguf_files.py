"""GGUF files that the tests write themselves: conversion, cache, tokenizers, damage."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers

from autottt.controller.controller import Controller
from autottt.policies.policy import FixedPolicy
from autottt.ttt_core.errors import ModelError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.model import file_hashes, gguf_files
from autottt.ttt_core.model.gguf_files import FACTS, GgufFile, converted_folder
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.testing import tiny_model

TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<eos>", "<bos>", "12", "<pad>", "<x>", "<y>", "<z>", "<w>"]
BLOCKS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in the order of llama.cpp's rotary embedding."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write(
    path: Path,
    model: Any,
    pre: str = "gpt-2",
    architecture: str = "llama",
    halved: bool = False,
    without: str = "",
    parts: int = 0,
    template: str = "",
) -> Path:
    """The model as a GGUF file, without the tensors whose name begins with `without`; with `parts`, as one of them."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    if pre:
        writer.add_tokenizer_pre(pre)
    if template:
        writer.add_chat_template(template)
    if parts:
        writer.add_uint16("split.count", parts)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token.startswith("<") and len(token) > 1 else 1 for token in TOKENS])
    writer.add_token_merges(["1 2"])
    writer.add_eos_token_id(TOKENS.index("<eos>"))
    writer.add_bos_token_id(TOKENS.index("<bos>"))
    writer.add_add_bos_token(False)
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}

    def add(name: str, array: np.ndarray) -> None:
        matrix = array.ndim > 1
        if not without or not name.startswith(without):
            writer.add_tensor(f"{name}.weight", array.astype(np.float16 if halved and matrix else np.float32))

    add("token_embd", state["model.embed_tokens.weight"])
    add("output_norm", state["model.norm.weight"])
    add("output", state["lm_head.weight"])
    for block in range(config.num_hidden_layers):
        for name, module in BLOCKS.items():
            array = state[f"model.layers.{block}.{module}.weight"]
            if name in ("attn_q", "attn_k"):
                heads = config.num_attention_heads if name == "attn_q" else config.num_key_value_heads
                array = permuted(array, heads)
            add(f"blk.{block}.{name}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(gguf_files, "cache_folder", lambda: folder)
    return folder


@pytest.fixture
def file(tmp_path: Path, model: Any, cache: Path) -> Path:
    return write(tmp_path / "tiny.gguf", model)


def same_logits(one: Any, two: Any) -> bool:
    ids = torch.tensor([[5, 9, 200, 7, 30]])
    with torch.no_grad():
        return torch.allclose(one(ids).logits.float(), two(ids).logits.float(), atol=1e-5)


@pytest.mark.parametrize("by", ["file", "folder"])
def test_a_file_or_its_folder_is_a_model(file: Path, model: Any, by: str) -> None:
    learner = Learner.load(file if by == "file" else file.parent, dtype="fp32")
    assert learner.loaded.name == str(file)
    assert same_logits(learner.loaded.model, model)
    assert learner.loaded.tokens("a12b") == tuple(map(TOKENS.index, ("a", "12", "b")))
    task = make_task([([1, 2], [2, 1]), ([3, 4], [4, 3])], [5, 6])
    assert Controller(learner, FixedPolicy("ttt_in_context")).solve(task, budget="1000s").adapted


@pytest.mark.parametrize("name", ["tiny.GGUF", "sha256-0a1b"])
def test_the_name_of_a_file_does_not_matter(file: Path, model: Any, name: str) -> None:
    renamed = file.rename(file.with_name(name))
    assert same_logits(Learner.load(renamed, dtype="fp32").loaded.model, model)
    if name.endswith("GGUF"):
        assert Learner.load(renamed.parent).loaded.name == str(renamed)


def test_a_file_is_converted_once(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = converted_folder(GgufFile(file))
    monkeypatch.setattr(gguf_files, "_convert", lambda *_: pytest.fail("converted again"))
    assert converted_folder(GgufFile(file)) == first
    moved = file.rename(file.with_name("other.gguf"))
    assert converted_folder(GgufFile(moved)) == first, "the content is the key"


def test_an_unchanged_file_is_not_hashed_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "SETTLED_NS", -1)
    first = converted_folder(GgufFile(file))
    monkeypatch.setattr(file_hashes, "sha256_of", lambda path: pytest.fail(f"{path} was read again"))
    assert converted_folder(GgufFile(file)) == first


def test_another_content_is_another_model(file: Path, cache: Path) -> None:
    first = converted_folder(GgufFile(file))
    write(file, tiny_model("llama", seed=1))
    assert converted_folder(GgufFile(file)) != first


def test_the_model_is_a_plain_one(file: Path, tmp_path: Path) -> None:
    loaded = Learner.load(file, dtype="fp32").loaded.model
    loaded.float().save_pretrained(tmp_path / "again")
    assert not hasattr(loaded, "hf_quantizer")
    assert not hasattr(loaded.config, "quantization_config")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)
    assert same_logits(loaded, again)


@pytest.mark.parametrize(("halved", "precision"), [(False, "float32"), (True, "float16")])
def test_the_precision_keeps_what_the_file_holds(
    tmp_path: Path, model: Any, cache: Path, halved: bool, precision: str
) -> None:
    folder = converted_folder(GgufFile(write(tmp_path / "x.gguf", model, halved=halved)))
    assert json.loads((folder / FACTS).read_text())["precision"] == precision


SPLIT = ("a", "1", "2", "\u010a", "1", "2")
WHOLE = ("a", "12", "\u010a", "12")


@pytest.mark.parametrize(
    ("pre", "tokens"),
    [("smollm", SPLIT), ("qwen2", SPLIT), ("gpt-2", WHOLE), ("llama-bpe", WHOLE), ("starcoder", SPLIT)],
)
def test_text_is_split_as_the_file_says(
    tmp_path: Path, model: Any, cache: Path, pre: str, tokens: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    learner = Learner.load(write(tmp_path / "x.gguf", model, pre=pre))
    assert learner.loaded.tokens("a12\n12") == tuple(map(TOKENS.index, tokens))
    assert "unknown" not in caplog.text


def test_an_unknown_way_to_split_is_a_warning_at_every_load(
    tmp_path: Path, model: Any, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "x.gguf", model, pre="nobody-knows")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "autottt"):
            converted_folder(GgufFile(file))
        assert "'nobody-knows' is unknown" in caplog.text


def test_a_byte_level_file_that_names_no_way_to_split_is_a_warning(
    tmp_path: Path, model: Any, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    converted_folder(GgufFile(write(tmp_path / "x.gguf", model, pre="")))
    assert "it names no pre-tokenizer" in caplog.text


@pytest.mark.parametrize(("pre", "whole"), [("llama-bpe", True), ("gpt-2", False)])
def test_tokens_that_no_merge_gives_are_found_where_the_model_was_trained_so(
    tmp_path: Path, model: Any, cache: Path, pre: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [{"<w>": "abc", "<z>": "ab"}.get(token, token) for token in TOKENS]
    monkeypatch.setattr(sys.modules[__name__], "TOKENS", tokens)
    learner = Learner.load(write(tmp_path / "x.gguf", model, pre=pre))
    assert learner.loaded.tokens("abc") == tuple(map(tokens.index, ["abc"] if whole else "abc"))


def test_the_original_tokenizer_in_the_folder_of_the_file_is_used(file: Path, model: Any, cache: Path) -> None:
    first = converted_folder(GgufFile(file))
    tokenizer = transformers.AutoTokenizer.from_pretrained(first)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(file.parent)
    learner = Learner.load(file)
    assert learner.loaded.tokens("12") == tuple(map(TOKENS.index, "12"))


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.99])
def test_a_torn_file_is_a_model_error(file: Path, cache: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=r"tiny\.gguf"):
        Learner.load(file)
    assert not [p for p in cache.glob("*") if p.is_dir()], "nothing is left behind"


@pytest.mark.parametrize("name", ["tokenizer.ggml.token_type", "tokenizer.ggml.tokens", "tokenizer.ggml.model"])
@pytest.mark.parametrize("length", [1 << 40, (1 << 64) - 1])
def test_a_length_beyond_the_end_of_the_file_is_a_model_error(file: Path, cache: Path, name: str, length: int) -> None:
    content = bytearray(file.read_bytes())
    at = content.index(name.encode()) + len(name)
    kind = int.from_bytes(content[at : at + 4], "little")
    at += 8 if kind == 9 else 4  # behind the type, and the type of an array's elements
    content[at : at + 8] = length.to_bytes(8, "little")
    file.write_bytes(content)
    with pytest.raises(ModelError, match="a damaged GGUF file"):
        Learner.load(file)
    assert not list(cache.rglob("model.safetensors"))


def test_a_file_of_another_format_is_a_model_error(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGML and more")
    with pytest.raises(ModelError, match="not a GGUF file"):
        Learner.load(tmp_path / "x.gguf")
    with pytest.raises(ModelError, match="no such file"):
        Learner.load(tmp_path / "y.gguf")


def test_an_unsupported_architecture_is_a_model_error(tmp_path: Path, model: Any, cache: Path) -> None:
    with pytest.raises(ModelError, match="not supported"):
        Learner.load(write(tmp_path / "x.gguf", model, architecture="unheard-of"))


@pytest.mark.parametrize("name", ["blk.1.ffn_up", "token_embd", "output_norm"])
def test_missing_tensors_are_a_model_error(tmp_path: Path, model: Any, cache: Path, name: str) -> None:
    file = write(tmp_path / "x.gguf", model, without=name)
    for _ in range(2):
        with pytest.raises(ModelError, match=r"lacks 1 tensors of the model.*which would be random"):
            Learner.load(file)


def test_warnings_of_loading_name_the_file(
    tmp_path: Path, model: Any, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "x.gguf", model, template="{{ raise_exception('no') }}")
    Learner.load(file)
    assert f"{file}: the tokenizer's chat template refuses these messages" in caplog.text


def test_a_part_of_a_split_model_is_a_model_error(tmp_path: Path, model: Any, cache: Path) -> None:
    with pytest.raises(ModelError, match="one of 3 parts of a model"):
        Learner.load(write(tmp_path / "x.gguf", model, parts=3))


def test_several_files_in_a_folder_are_a_model_error(file: Path) -> None:
    file.with_name("second.gguf").write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match="holds 2 GGUF files"):
        Learner.load(file.parent)


def test_too_little_disk_is_a_model_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(ModelError, match="free"):
        Learner.load(file)


def test_without_the_library_the_remedy_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_files, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"autottt\[gguf\]"):
        Learner.load(file)


def test_several_callers_convert_once(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = gguf_files._convert, []
    monkeypatch.setattr(gguf_files, "_convert", lambda *args: calls.append(1) or real(*args))
    threads = [threading.Thread(target=converted_folder, args=(GgufFile(file),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_the_cache_is_bounded_and_partial_conversions_are_removed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = converted_folder(GgufFile(write(tmp_path / "a.gguf", tiny_model("llama", seed=1))))
    os.utime(first, (1, 1))
    (cache / ("0" * 32 + ".partial-killed")).mkdir()
    monkeypatch.setattr(gguf_files, "MAX_CACHE_BYTES", 1000)
    second = converted_folder(GgufFile(write(tmp_path / "b.gguf", tiny_model("llama", seed=2))))
    assert [p for p in cache.iterdir() if p.is_dir()] == [second]
