"""Writes tokenizers in the form that transformers reads fastest: tokenizer.json as it is, with no class that rebuilds
its vocabulary, and the added tokens in tokenizer_config.json, so that Python does not parse tokenizer.json for them.
Knows nothing about models."""

from __future__ import annotations

import json
from pathlib import Path
from types import FunctionType
from typing import Any

import transformers

CONFIG = "tokenizer_config.json"
_SAME = ("model_input_names", "padding_side", "truncation_side", "model_max_length", "special_tokens_map",
         "chat_template", "clean_up_tokenization_spaces", "all_special_ids")  # fmt: skip
"""Attributes in which two tokenizers with the same backend could still differ."""


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Saves a tokenizer. The class in its configuration is the general one of transformers
    where that is proven to read the same from the folder; else it is the tokenizer's own."""
    tokenizer.save_pretrained(folder)
    if _own_methods(type(tokenizer)):
        return
    config = folder / CONFIG
    own = config.read_text("utf-8")
    settings = json.loads(own) | {
        "tokenizer_class": transformers.PreTrainedTokenizerFast.__name__,
        "padding_side": tokenizer.padding_side,
        "added_tokens_decoder": {
            str(place): {name: getattr(token, name) for name in _ADDED} | {"content": token.content}
            for place, token in tokenizer.added_tokens_decoder.items()
        },
    }
    config.write_text(json.dumps(settings, indent=2, ensure_ascii=False), "utf-8")
    if not _reads_as(folder, tokenizer):
        config.write_text(own, "utf-8")


def _own_methods(kind: type) -> set[str]:
    """Methods and properties that a class adds to the general one, except for `__init__`: it may encode or decode in
    Python what its backend does otherwise."""
    general = transformers.PreTrainedTokenizerFast.__mro__
    names = {
        name
        for one in kind.__mro__
        if one not in general
        for name, value in vars(one).items()
        if isinstance(value, (FunctionType, classmethod, staticmethod, property))
    }
    return names - {"__init__"}


_ADDED = ("single_word", "lstrip", "rstrip", "normalized", "special")
"""Attributes of an added token beside its text."""


def _reads_as(folder: Path, tokenizer: Any) -> bool:
    """Whether transformers reads a tokenizer from the folder that equals this one."""
    try:
        read = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        backends = [one.backend_tokenizer.to_str() for one in (read, tokenizer)]
    except Exception:  # such as a tokenizer in Python
        return False
    return backends[0] == backends[1] and all(getattr(read, n, None) == getattr(tokenizer, n, None) for n in _SAME)
