"""The smallest models of several classes, which the parts of the soak solve tasks with. Knows nothing about faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from autottt.strategies.registry import strategies
from autottt.ttt_core.testing import VOCABULARY, tiny_tokenizer

_SPECIAL = {"vocab_size": VOCABULARY, "eos_token_id": 256, "bos_token_id": 257, "initializer_range": 0.25}
_COMMON = {
    **_SPECIAL, "pad_token_id": 258, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
}  # fmt: skip
_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _COMMON,
    "qwen3": {**_COMMON, "head_dim": 8},
    "gemma2": {**_COMMON, "head_dim": 8, "sliding_window": 24, "query_pre_attn_scalar": 8},
    "phi3": _COMMON,  # fused projections
    "qwen3_moe": {
        **_COMMON, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
        "decoder_sparse_step": 1,
    },
    "gpt2": {**_SPECIAL, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 512},
}  # fmt: skip
CLASSES = tuple(_CONFIGS)
QUICK = {"rank": 2, "alpha": 2, "dropout": 0, "max_steps": 1, "batch_size": 2, "views": 2, "transformations": 1}
"""Settings of a recipe of one step."""


def smallest_model(name: str) -> PreTrainedModel:
    """A model of one layer with random weights, always the same for a name; in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, **_CONFIGS[name])
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def write_model(name: str, folder: Path) -> None:
    """Writes the folder of a model with recipes of one step for every strategy."""
    folder.mkdir(parents=True, exist_ok=True)
    smallest_model(name).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    settings = {"prompt_format": "compact", "recipes": dict.fromkeys(strategies(), QUICK)}
    (folder / "autottt.json").write_text(json.dumps(settings))
