"""Architectures by their shape: each answers in context, is trained, answers adapted, and is then what it was."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from autottt.ttt_core.learner import Learner
from autottt.ttt_core.model.memory import tokens_that_fit
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.augmentation import leave_one_out
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import VOCABULARY, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "n_positions": 1024,
    "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "is_decoder": True, "num_experts": 4,
    "num_local_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_LATENT = {
    "num_key_value_heads": 4, "head_dim": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1,
}  # fmt: skip
_LONG = {
    "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "transposed fused projections": ("gpt2", {}),
    "parallel attention and MLP": ("gptj", {}),
    "parallel attention, fused, with biases": ("gpt_neox", {}),
    "one head of keys, fused": ("falcon", {}),
    "biases of attention scores": ("bloom", {}),
    "fused projections of both parts": ("phi3", {"head_dim": None}),
    "biases on queries, keys and values": ("qwen2", {}),
    "norms of queries and keys": ("olmo2", {}),
    "tied head, soft caps, sliding windows": ("gemma2", {"tie_word_embeddings": True, "sliding_window": 8}),
    "layers of different sizes": ("gemma4_unified_text", {}),
    "sliding windows": ("mistral", {"sliding_window": 8}),
    "layers without positions": ("smollm3", {"no_rope_layers": [1, 0]}),
    "low-rank queries and keys": ("minicpm3", _LATENT),
    "low-rank attention with experts": ("deepseek_v3", _LATENT),
    "experts, and windows in some layers": ("mellum", {}),
    "experts that are not adapted": ("gpt_oss", {}),
    "rotary: linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
    "rotary: dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
    "rotary: yarn": (
        "llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}},
    ),
    "rotary: longrope": ("mistral", {"rope_parameters": _LONG}),
    "rotary: by frequency": (
        "llama", {"rope_parameters": {
            "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }},
    ),
}  # fmt: skip
RECIPE = Recipe(rank=2, alpha=4.0, dropout=0.0, max_steps=2, batch_size=2, learning_rate=1e-2)


def build(shape: str) -> PreTrainedModel:
    model_type, settings = SHAPES[shape]
    config_class = CONFIG_MAPPING[model_type]
    known = config_class.__dataclass_fields__
    settings = {k: v for k, v in {**_SIZES, **settings}.items() if k in known and v is not None}
    if "rope_parameters" in settings:
        settings["rope_parameters"] = {"rope_theta": 10000.0, **settings["rope_parameters"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config_class(**settings), dtype=torch.float32)
    return model.eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_trained_and_is_then_what_it_was(
    shape: str, task: Task, unchanged: Callable[..., AbstractContextManager[None]]
) -> None:
    model = build(shape)
    learner = Learner.wrap(model, tiny_tokenizer())
    with unchanged(model):
        before = learner.answer([task])
        adapter = learner.adapt(leave_one_out(task), RECIPE)
        learner.answer([task], adapter)
        learner.answerer.clear()
        assert learner.answer([task]) == before
        assert learner.verify(full=True).method == "full"
    record = adapter.training
    assert (record.steps, record.stop_reason, record.zero_update) == (2, "finished", False)
    assert all(up.any() for _, up in adapter.weights.pairs.values())
    assert record.left_out == {"experts that are not adapted": ("experts",)}.get(shape, record.left_out)


def test_memory_follows_the_widest_layer_where_the_configuration_names_a_width_for_each() -> None:
    model = build("norms of queries and keys")
    vars(model.config)["intermediate_size"] = [48, 96]  # as that of Gemma 3n
    numbers = 2 * 2 * 2 * 8 + 8 * 32 + 3 * 96 + 3 * VOCABULARY
    assert tokens_that_fit(model, 1 << 20) == (1 << 20) // (4 * numbers)


def test_memory_of_layers_that_differ_is_that_of_each() -> None:
    model = build("layers of different sizes")
    assert model.config.is_heterogeneous
    caches = [2 * layer.num_key_value_heads * layer.head_dim for layer in model.config.per_layer_config]
    assert len(set(caches)) == 2
    numbers = sum(caches) + 8 * 32 + 3 * 48 + 3 * VOCABULARY
    assert tokens_that_fit(model, 1 << 20) == (1 << 20) // (4 * numbers)
