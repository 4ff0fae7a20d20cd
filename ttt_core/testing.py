"""Test doubles for this package and for programs that embed it: tiny models with random weights, and tokenizers.

Downloads nothing, and nothing else in the package imports this module. Together they make a learner in milliseconds:

    Learner.wrap(tiny_model("llama"), tiny_tokenizer())
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

_SPECIAL = ("<eos>", "<bos>", "<pad>", "<|start|>", "<|end|>")
_FIRST = 256
"""Id of the first special token; the ids below are bytes."""
VOCABULARY = 264
"""Vocabulary size of the tiny models: the bytes, the special tokens, and a few ids that no text is encoded as."""
CONTEXT = 512
"""Context length of the tiny models, in tokens."""
WINDOW = 24
"""Sliding attention window of the tiny models that have one, in tokens."""

CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)

_TINY = {"vocab_size": VOCABULARY, "bos_token_id": _FIRST + 1, "eos_token_id": _FIRST, "initializer_range": 0.25}
_COMMON = {
    **_TINY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_GROUPED},
    "qwen3": {**_GROUPED, "head_dim": 8},
    "mistral": {**_GROUPED, "sliding_window": WINDOW},
    "gemma2": {
        **_GROUPED,
        "head_dim": 8,
        "sliding_window": WINDOW,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 6.0,
        "query_pre_attn_scalar": 8,
    },
    "gemma3_text": {**_GROUPED, "head_dim": 8, "sliding_window": WINDOW, "sliding_window_pattern": 2},
    "gpt2": {**_TINY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT},
    "gpt_neox": {**_COMMON},
    "phi": {**_COMMON},
}
ARCHITECTURES: tuple[str, ...] = tuple(_CONFIGS)
"""Architectures that `tiny_model` accepts."""


def tiny_model(architecture: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model with two layers and random weights, deterministic for a seed; in evaluation mode.

    The weights are large enough for its outputs to depend on every token of the prompt.
    """
    config = AutoConfig.for_model(architecture, **_CONFIGS[architecture])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.to(dtype).eval()


def tiny_tokenizer(*, bos: bool = True, pad: bool = True, chat: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer. `bos` prepends a BOS token to every text; `pad` and `chat` add a padding token and a chat
    template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate([*alphabet, *_SPECIAL])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True) for t in _SPECIAL])
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", _FIRST + _SPECIAL.index("<bos>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|end|>" if chat else "<eos>",
        bos_token="<bos>" if bos else None,
        pad_token="<pad>" if pad else None,
        chat_template=CHAT_TEMPLATE if chat else None,
        clean_up_tokenization_spaces=False,
    )
