# ruff: noqa: E501 - a template is one line
"""Chat prompts have the ids that the tokenizer's own template gives, for the shapes of template that are in use.

The templates are written for this test; each has the shape of a published family: its turns, its white space, where the
system's words go, how turns end, what it does to earlier answers and to thoughts.
"""

from __future__ import annotations

import datetime
import logging
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from autottt.ttt_core.errors import ModelError, TaskError
from autottt.ttt_core.model import template_process
from autottt.ttt_core.model.encoding import encode, prompt_digest, stop_ids
from autottt.ttt_core.model.loading import LoadedModel, wrap_model
from autottt.ttt_core.model.templates import SWITCHES, TemplateRenderer
from autottt.ttt_core.tasks.kinds import STANDARD, kind_of, make_task
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

SPECIAL = (
    "<unk>", "<s>", "</s>", "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eot|>",
    "<|usr|>", "<|ast|>", "<|sys|>", "<|fin|>", "<turn>", "</turn>", "<think>", "</think>", "[INST]", "[/INST]",
    "[SYS]", "[/SYS]", "<|sep|>", "<|role_start|>", "<|role_end|>", "<|START|>", "<|STOP|>", "<|USER|>", "<|BOT|>",
    "[gMASK]", "<sop>", "<|observe|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>",
)  # fmt: skip
SWALLOWS = ("<|usr|>", "<|ast|>", "<|sys|>", "<|fin|>")
"""Tokens that take the white space after them, as those of Phi-3 do."""
CORPUS = [
    "Input: [3, 1, 4]\nOutput: [4, 1, 3]\n\nuser\nassistant\nsystem\n\nA curious user asks. USER: x ASSISTANT: y",
    "### Instruction:\nSay it.\n\n### Response:\nThe answer is (A).\n\n0 1 2\n3 4 5\n\nthe word and the number",
]


def byte_level() -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(CORPUS * 3, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet))
    return core


def metaspace() -> Tokenizer:
    """As converted from SentencePiece: a space before the text, spaces as part of words, bytes for unknown characters."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    corpus = [" ".join(text.split()) for text in CORPUS * 3]  # line breaks become bytes
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<unk>", *(f"<0x{n:02X}>" for n in range(256))])
    core.train_from_iterator(corpus, trainer)
    return core


def prepending() -> Tokenizer:
    """As Llama 2's: the normalizer puts a space before every text between special tokens."""
    core = metaspace()
    core.pre_tokenizer = None
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return core


CORES: dict[str, Callable[[], Tokenizer]] = {"bytes": byte_level, "metaspace": metaspace, "prepending": prepending}


def tokenizer_with(template: str, core: str = "bytes", **special: str) -> PreTrainedTokenizerFast:
    built = CORES[core]()
    built.add_special_tokens([AddedToken(t, special=True, normalized=False, rstrip=t in SWALLOWS) for t in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=built, chat_template=template, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        clean_up_tokenization_spaces=False, **special,
    )  # fmt: skip


def wrapped(tokenizer: PreTrainedTokenizerBase, prompt_format: str | None = None) -> LoadedModel:
    model = tiny_model("llama")
    model.config.max_position_embeddings = 1 << 20
    return wrap_model(model, tokenizer, prompt_format=prompt_format)


@dataclass(frozen=True)
class Shape:
    """A template, and why it is not used where it is not."""

    template: str
    reason: str = ""
    system: bool = True
    """Whether it shows a system's turn."""
    moves_system: bool = False
    """Whether the system's words are elsewhere once the query is answered."""


LOOP = "{% for m in messages %}"
END = "{% endfor %}"
FIRST_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set sys = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set sys = '' %}{% set rest = messages %}{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
ALTERNATE = (
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
CHATML = LOOP + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}" + END
CHATML_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
THINKING = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set c = m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' else"
    " m.content %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ c + '<|im_end|>\n' }}{% endfor %}"
)
HEADS = (
    LOOP + "{{ '<|head|>' + m['role'] + '<|/head|>\n\n' + m['content'] | trim + '<|eot|>' }}" + END
    + "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)  # fmt: skip
PIPES = "{% if add_generation_prompt %}{{ '<|ast|>\n' }}{% else %}{{ eos_token }}{% endif %}"
SHAPES = {
    "ChatML": Shape(CHATML + CHATML_PROMPT),
    "ChatML with a default system": Shape(
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
        + CHATML + CHATML_PROMPT
    ),
    "ChatML with branches for tools": Shape(
        "{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% elif m.role == 'tool' %}"
        "{{ '<|observe|>' + m.content }}{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        "{% endif %}{% endfor %}" + CHATML_PROMPT
    ),
    "Llama 2": Shape(
        FIRST_SYSTEM + ALTERNATE
        + "{% for m in rest %}{% set c = '<<SYS>>\n' + sys + '\n<</SYS>>\n\n' + m.content if loop.first and sys else"
        " m.content %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + c.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "Llama 3": Shape("{{ bos_token }}" + HEADS),
    "Llama 3 with a date": Shape(
        "{{ bos_token + '<|head|>system<|/head|>\n\nToday Date: ' + strftime_now('%d %b %Y') + '\n\n' }}"
        "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% set messages = messages[1:] %}"
        "{% endif %}<|eot|>" + HEADS
    ),
    "Mistral 1": Shape(
        NO_SYSTEM + "{{ bos_token }}" + LOOP + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ m.content + eos_token + ' ' }}{% endif %}" + END, system=False,
    ),
    "Mistral 3": Shape(
        FIRST_SYSTEM + ALTERNATE + "{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}"
        "{% if loop.last and sys %}{{ '[INST] ' + sys + '\n\n' + m.content + '[/INST]' }}"
        "{% else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}", moves_system=True,
    ),
    "Mistral 7": Shape(
        FIRST_SYSTEM + "{{ bos_token }}{% if sys %}{{ '[SYS] ' + sys + '[/SYS]' }}{% endif %}{% for m in rest %}"
        "{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}"
        "{% endif %}{% endfor %}"
    ),
    "Phi 3": Shape(LOOP + "{% if m.role == 'system' %}{{ '<|sys|>\n' + m.content + '<|fin|>\n' }}"
        "{% elif m.role == 'user' %}{{ '<|usr|>\n' + m.content + '<|fin|>\n' }}"
        "{% else %}{{ '<|ast|>\n' + m.content + '<|fin|>\n' }}{% endif %}" + END + PIPES),
    "Phi 3 without tokens that take white space": Shape(
        LOOP + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}" + END
        + "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ '<|eos|>' }}{% endif %}"
    ),
    "Phi 4": Shape(
        LOOP + "{{ '<|im_start|>' + m.role + '<|sep|>' + m.content + '<|im_end|>' }}" + END
        + "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|sep|>' }}{% endif %}"
    ),
    "Gemma": Shape(
        "{{ bos_token }}" + NO_SYSTEM + LOOP
        + "{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '</turn>\n' }}"
        + END + "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}", system=False,
    ),
    "Zephyr": Shape(
        LOOP + "{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}" + END
        + "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "TinyLlama": Shape(
        LOOP + "{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}" + END,
    ),
    "Vicuna": Shape(
        FIRST_SYSTEM + "{{ bos_token + (sys or 'A curious user asks.') + ' ' }}{% for m in rest %}"
        "{% if m.role == 'user' %}{{ 'USER: ' + m.content.strip() + ' ' }}"
        "{% else %}{{ 'ASSISTANT: ' + m.content.strip() + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    "Vicuna with a space in its prompt": Shape(
        LOOP + "{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}{% elif m.role == 'assistant' %}"
        "{{ 'ASSISTANT: ' + m.content + eos_token }}{% else %}{{ m.content + ' ' }}{% endif %}" + END
        + "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}",
        reason="token .* of a chat",
    ),
    "Alpaca": Shape(
        FIRST_SYSTEM + "{{ sys }}{% for m in rest %}{% if m.role == 'user' %}"
        "{{ '### Instruction:\n' + m.content + '\n\n' }}{% else %}{{ '### Response:\n' + m.content + eos_token + '\n\n' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
    "Alpaca without an end": Shape(
        LOOP + "{% if m.role == 'user' %}{{ '\n\n### Instruction:\n' + m.content }}{% else %}"
        "{{ '\n\n### Response:\n' + m.content }}{% endif %}" + END
        + "{% if add_generation_prompt %}{{ '\n\n### Response:\n' }}{% endif %}",
        reason="does not mark the end of an answer",
    ),
    "Alpaca with line breaks as ends": Shape(
        LOOP + "{% if m.role == 'user' %}{{ '### Instruction:\n' + m.content + '\n\n' }}{% else %}"
        "{{ '### Response:\n' + m.content + '\n\n' }}{% endif %}" + END
        + "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}",
        reason="ends answers with white space only",
    ),
    "DeepSeek": Shape(
        "{{ bos_token }}" + LOOP + "{% if m.role == 'user' %}{{ 'User: ' + m.content + '\n\n' }}"
        "{% elif m.role == 'assistant' %}{{ 'Assistant: ' + m.content + eos_token }}"
        "{% else %}{{ m.content + '\n\n' }}{% endif %}" + END + "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    "DeepSeek 3 with markers": Shape(
        FIRST_SYSTEM + "{{ bos_token + sys }}{% for m in rest %}{% if m.role == 'user' %}{{ '<|USER|>' + m.content }}"
        "{% else %}{{ '<|BOT|></think>' + m.content + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|BOT|>' + ('<think>' if thinking else '</think>') }}{% endif %}"
    ),
    "DeepSeek R1": Shape(
        FIRST_SYSTEM + "{{ bos_token + sys }}{% for m in rest %}{% if m.role == 'user' %}{{ '<|USER|>' + m.content }}"
        "{% else %}{{ '<|BOT|>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|BOT|><think>\n' }}{% endif %}",
        reason="opens a thought",
    ),
    "Qwen 3": Shape(
        THINKING + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
    ),
    "QwQ": Shape(THINKING + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"),
    "thoughts left open": Shape(
        CHATML.replace("m.content", "('<think>\n' if m.role == 'assistant' else '') + m.content")
        + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}",
        reason="opens a thought",
    ),
    "answers after a thought the prompt does not open": Shape(
        THINKING + CHATML_PROMPT, reason="does not continue its generation prompt"
    ),
    "SmolLM 3": Shape(
        FIRST_SYSTEM + "{{ '<|im_start|>system\n## Metadata\n\nToday Date: ' + strftime_now('%d %B %Y') + '\n"
        "Reasoning Mode: ' + ('/think' if enable_thinking else '/no_think') + '\n\n' + sys + '<|im_end|>\n' }}"
        "{% for m in rest %}{% if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
        "{% else %}{% generation %}{{ '<|im_start|>assistant\n' + ('' if enable_thinking else '<think>\n\n</think>\n')"
        " + m.content.lstrip('\n') + '<|im_end|>\n' }}{% endgeneration %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' + ('' if enable_thinking else '<think>\n\n</think>\n') }}"
        "{% endif %}"
    ),
    "Granite": Shape(
        LOOP + "{{ '<|role_start|>' + m.role + '<|role_end|>' + m.content + '<|eos|>\n' }}"
        "{% if loop.last and add_generation_prompt %}{{ '<|role_start|>assistant<|role_end|>' }}{% endif %}" + END
    ),
    "Command R": Shape(
        FIRST_SYSTEM + "{{ bos_token }}{% if sys %}{{ '<|START|><|sys|>' + sys + '<|STOP|>' }}{% endif %}"
        "{% for m in rest %}{{ '<|START|>' + ('<|USER|>' if m.role == 'user' else '<|BOT|>') + m.content | trim + '<|STOP|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|START|><|BOT|>' }}{% endif %}"
    ),
    "Falcon": Shape(
        LOOP + "{% if not loop.first %}{{ '\n' }}{% endif %}{% if m.role == 'system' %}{{ m.content }}"
        "{% elif m.role == 'user' %}{{ 'User: ' + m.content }}{% else %}{{ 'Falcon: ' + m.content }}{% endif %}" + END
        + "{% if add_generation_prompt %}{{ '\nFalcon:' }}{% endif %}",
        reason="does not mark the end of an answer",
    ),
    "OLMo": Shape(
        "{{ bos_token }}" + LOOP + "{% if m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content + eos_token }}"
        "{% if not loop.last %}{{ '\n' }}{% endif %}{% else %}{{ '<|' + m.role + '|>\n' + m.content + '\n' }}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}" + END
    ),
    "GLM": Shape(
        "{{ '[gMASK]<sop>' }}" + LOOP + "{{ '<|' + m.role + '|>\n' + m.content }}" + END
        + "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        reason="does not mark the end of an answer",
    ),
    "GLM with thoughts": Shape(
        "{{ '[gMASK]<sop>' }}" + LOOP + "{% if m.role == 'user' %}{{ '<|usr|>' + m.content + '<|eos|>' }}"
        "{% elif m.role == 'assistant' %}{{ '<|BOT|><think></think>' + m.content + '<|eos|>' }}"
        "{% else %}{{ m.content }}{% endif %}" + END
        + "{% if add_generation_prompt %}{{ '<|BOT|>' + ('' if enable_thinking else '<think></think>') }}{% endif %}"
    ),
    "ChatGLM with numbered rounds": Shape(
        NO_SYSTEM + LOOP + "{% if m.role == 'user' %}{{ '[Round ' ~ (loop.index0 // 2 + 1) ~ ']\n\n' + m.content + '\n\n' }}"
        "{% else %}{{ 'A: ' + m.content + '<|eos|>\n\n' }}{% endif %}" + END
        + "{% if add_generation_prompt %}{{ 'A:' }}{% endif %}", system=False,
    ),
    "Harmony": Shape(
        LOOP + "{% if m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
        "{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}"
        "{% endif %}" + END + "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
        reason="does not continue its generation prompt",
    ),
    "another end for the last answer": Shape(
        LOOP + "{{ '<|start|>' + m.role + '<|message|>' + m.content + ('<|return|>' if loop.last and m.role == 'assistant'"
        " else '<|end|>') }}" + END + "{% if add_generation_prompt %}{{ '<|start|>assistant<|message|>' }}{% endif %}"
    ),
    "Nemotron": Shape(
        FIRST_SYSTEM + "{{ '<|START|>System\n' + sys + '\n' }}{% for m in rest %}{% if m.role == 'user' %}"
        "{{ '<|START|>User\n' + m.content + '\n' }}{% else %}{{ '<|START|>Assistant\n' + m.content + '\n<|STOP|>\n' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|START|>Assistant\n' }}{% endif %}"
    ),
    "StableLM": Shape(
        LOOP + "{{ '<|' + m.role + '|>\n' + m.content | trim + '<|eos|>\n' }}" + END
        + "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "pairs": Shape(
        NO_SYSTEM + "{% for n in range(0, messages | length, 2) %}{{ '<|USER|>' + messages[n].content + '<|STOP|>' }}"
        "{% if n + 1 < messages | length %}{{ '<|BOT|>' + messages[n + 1].content + '<|STOP|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|BOT|>' }}{% endif %}", system=False,
    ),
    "a bos token for each turn": Shape(
        LOOP + "{{ bos_token + m.role + '\n' + m.content + eos_token + '\n' }}" + END
        + "{% if add_generation_prompt %}{{ bos_token + 'assistant\n' }}{% endif %}"
    ),
    "two bos tokens": Shape("{{ bos_token + bos_token }}" + CHATML + CHATML_PROMPT),
    "no generation prompt": Shape(CHATML, reason="does not continue its generation prompt"),
    "an end after a space": Shape(
        LOOP + "{{ '<|USER|> ' + m.content + ' <|STOP|>' if m.role != 'assistant' else '<|BOT|> ' + m.content + ' <|STOP|>' }}"
        + END + "{% if add_generation_prompt %}{{ '<|BOT|>' }}{% endif %}"
    ),
    "earlier answers dropped": Shape(
        LOOP + "{% if m.role != 'assistant' or loop.last %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        "{% endif %}" + END + CHATML_PROMPT, reason="rewrites earlier turns",
    ),
    "one turn only": Shape(
        "{% if messages | length > 2 %}{{ raise_exception('One turn, please') }}{% endif %}" + CHATML + CHATML_PROMPT,
        reason="One turn, please",
    ),
    "a system's turn needed": Shape(
        "{% if messages[0].role != 'system' %}{{ raise_exception('A system turn, please') }}{% endif %}"
        + CHATML + CHATML_PROMPT, reason="A system turn, please",
    ),
    "contents in upper case": Shape(CHATML.replace("m.content", "m.content | upper") + CHATML_PROMPT, reason="changes the contents"),
    "contents escaped": Shape(CHATML.replace("m.content", "m.content | replace('&', '&amp;')") + CHATML_PROMPT, reason="changes the contents"),
    "a long history cut": Shape(
        "{% if messages | length > 7 %}{% set messages = messages[-7:] %}{% endif %}" + CHATML + CHATML_PROMPT,
        reason="rewrites earlier turns",
    ),
}  # fmt: skip


def _generation(text: str) -> str:
    return "{% if add_generation_prompt %}{{ '" + text + "' }}{% endif %}"


def _turns(text: str) -> str:
    return LOOP + "{{ " + text + " }}" + END


MORE_SHAPES = {
    "variables with defaults, a date and tools": Shape(
        "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
        "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
        "{%- endif %}{%- if messages[0]['role'] == 'system' %}{%- set sys = messages[0]['content'] | trim %}"
        "{%- set messages = messages[1:] %}{%- else %}{%- set sys = '' %}{%- endif %}{{- '<|head|>system<|/head|>\n\n' }}"
        "{%- if tools is not none %}{{- 'Environment: ipython\n' }}{%- endif %}"
        "{{- 'Cutting Knowledge Date: December 2023\nToday Date: ' + date_string + '\n\n' + sys + '<|eot|>' }}" + HEADS
    ),
    "the system's words in the first user turn": Shape(
        "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- if messages[0]['content'] is string -%}"
        "{%- set prefix = messages[0]['content'] + '\n\n' -%}{%- else -%}"
        "{%- set prefix = messages[0]['content'][0]['text'] + '\n\n' -%}{%- endif -%}{%- set rest = messages[1:] -%}"
        "{%- else -%}{%- set prefix = '' -%}{%- set rest = messages -%}{%- endif -%}" + ALTERNATE
        + "{%- for m in rest -%}{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\n'"
        " + (prefix if loop.first else '') }}{%- if m.content is string -%}{{ m.content | trim }}{%- else -%}"
        "{%- for item in m.content -%}{{ item.text | trim }}{%- endfor -%}{%- endif -%}{{ '</turn>\n' }}{%- endfor -%}"
        + _generation("<turn>model\n")
    ),
    "a default system with a date": Shape(
        FIRST_SYSTEM + "{{- bos_token + '[SYS]' + (sys or 'Today is ' + strftime_now('%Y-%m-%d')) + '[/SYS]' }}"
        "{%- for m in rest %}{%- if m.role == 'user' %}{{- '[INST]' + m.content + '[/INST]' }}"
        "{%- elif m.role == 'assistant' %}{{- m.content + eos_token }}{%- else %}{{- raise_exception('roles') }}"
        "{%- endif %}{%- endfor %}"
    ),
    "no gaps, and a token after the chat": Shape(
        LOOP + "{% if m.role == 'system' and 'tools' in m and m.tools is not none %}{{ m.tools }}{% endif %}"
        "{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}" + END
        + "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "roles as titles in text": Shape(
        "{{ bos_token }}" + _turns("'GPT Correct ' + m.role.title() + ': ' + m.content + '<|eot|>'")
        + _generation("GPT Correct Assistant:")
    ),
    "a space after a marker, none in the prompt": Shape(
        "{{ bos_token }}" + _turns("'<|role_start|><|' + m.role + '|> ' + m.content + '<|STOP|>'")
        + _generation("<|role_start|><|assistant|>")
    ),
    "an end for answers only": Shape(
        LOOP + "{% if loop.first and m.role != 'system' %}{{ '[SYS][/SYS]\n' }}{% endif %}{{ '[|' + m.role + '|]' + m.content }}"
        "{{ '\n' if m.role == 'user' else '<|eot|>\n' }}" + END + _generation("[|assistant|]")
    ),
    "no marker before answers": Shape(
        NO_SYSTEM + LOOP + "{% if m.role == 'user' %}{{ '<用户>' + m.content.strip() + '<AI>' }}"
        "{% else %}{{ m.content.strip() + eos_token }}{% endif %}" + END, system=False,
    ),
    "other tokens for each role": Shape(
        LOOP + "{% if loop.first and m.role != 'system' %}{{ '<|sys|>system<|sep|>You help<|im_end|>' }}{% endif %}"
        "{{ {'system': '<|sys|>', 'user': '<|USER|>', 'assistant': '<|BOT|>'}[m.role] + m.role + '<|sep|>' + m.content"
        " + '<|im_end|>' }}" + END + _generation("<|BOT|>assistant<|sep|>")
    ),
    "a bos token unless the system spoke": Shape(
        LOOP + "{% if m.role == 'system' %}{{ '<s>' + m.content + '<|sep|>' }}{% elif m.role == 'user' %}"
        "{{ ('' if loop.index0 == 1 and messages[0].role == 'system' else '<s>') + m.content + '<|eot|>' }}"
        "{% else %}{{ m.content + '<|eos|>' }}{% endif %}" + END
    ),
    "ends between spaces": Shape(
        FIRST_SYSTEM + "{% for m in rest %}{% if m.role == 'user' %}{{ 'human: ' + (sys + ' ' if loop.first and sys else '')"
        " + m.content + ' <|sep|> ' }}{% else %}{{ 'assistant: ' + m.content + ' <|sep|> ' }}{% endif %}{% endfor %}"
        + _generation("assistant:")
    ),
    "thoughts of earlier answers dropped": Shape(
        "{{ bos_token }}{% for m in messages %}{% set c = m.content %}{% if m.role == 'assistant' and not loop.last and"
        " '</think>' in c %}{% set c = c.split('</think>')[-1] | trim %}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\n' + c + '<|im_end|>\n' }}{% endfor %}" + CHATML_PROMPT
    ),
    "line breaks around statements": Shape(
        LOOP + "\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'].strip() + eos_token }}\n"
        "{% elif m['role'] == 'system' %}\n{{ '<|system|>\n' + m['content'].strip() + eos_token }}\n"
        "{% else %}\n{{ '<|assistant|>\n' + m['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n" + END
    ),
    "a macro": Shape(
        "{% macro turn(role, text) %}<|im_start|>{{ role }}\n{{ text }}<|im_end|>\n{% endmacro %}"
        + _turns("turn(m.role, m.content)") + CHATML_PROMPT
    ),
    "a block that is set": Shape(
        LOOP + "{% set body %}{{ m.role | capitalize }}: {{ m.content }}{% endset %}"
        "{{ '<|im_start|>' + body + '<|im_end|>' }}" + END + _generation("<|im_start|>Assistant:")
    ),
    "a switch after each user turn": Shape(
        _turns("'<|im_start|>' + m.role + '\n' + m.content + (' /no_think' if m.role == 'user' else '') + '<|im_end|>\n'")
        + CHATML_PROMPT
    ),
    "the year in each turn": Shape(
        _turns("'<|im_start|>' + m.role + ' (' + strftime_now('%Y') + ')\n' + m.content + '<|im_end|>\n'")
        + "{% if add_generation_prompt %}{{ '<|im_start|>assistant (' + strftime_now('%Y') + ')\n' }}{% endif %}"
    ),
    "contents as text or parts": Shape(
        LOOP + "{{ '<|im_start|>' + m.role + '\n' }}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}" + END + CHATML_PROMPT
    ),
    "a budget of thoughts": Shape(
        _turns("'<|bos|>' + m.role + '\n' + m.content + '<|eos|>'") + "{% if add_generation_prompt %}{{ '<|bos|>assistant\n' }}"
        "{% if thinking_budget is defined and thinking_budget == 0 %}{{ '<think></think>' }}{% endif %}{% endif %}"
    ),
    "a line break before the end": Shape(
        _turns("'<|im_start|>' + m.role + '\n' + m.content + '\n<|im_end|>\n'") + CHATML_PROMPT
    ),
    "line breaks around the end, and a token after the chat": Shape(
        _turns("'<|' + m.role + '|>' + m.content + '\n<|eot|>\n'")
        + "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "answers trimmed": Shape(
        _turns("'<|im_start|>' + m.role + '\n' + (m.content | trim if m.role == 'assistant' else m.content) + '<|im_end|>\n'")
        + CHATML_PROMPT
    ),
    "a line break after each line": Shape(
        LOOP + "{{ '<|im_start|>' + m.role + '\n' }}{% for l in m.content.split('\n') %}{{ l + '\n' }}{% endfor %}"
        "{{ '<|im_end|>\n' }}" + END + CHATML_PROMPT
    ),
    "ends removed from contents": Shape(
        CHATML.replace("m.content", "m.content | replace('<|im_end|>', '')") + CHATML_PROMPT
    ),
    "loop controls": Shape(
        LOOP + "{% if m.role == 'tool' %}{% continue %}{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        "{% if loop.index > 500 %}{% break %}{% endif %}" + END + CHATML_PROMPT
    ),
    "two turns of one role refused": Shape(
        LOOP + "{% if loop.previtem is defined and loop.previtem.role == m.role %}{{ raise_exception('one role') }}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}" + END + CHATML_PROMPT
    ),
    "the system's turn dropped": Shape(
        "{% for m in messages if m.role != 'system' %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        "{% endfor %}" + CHATML_PROMPT, system=False,
    ),
    "the system's words repeated": Shape(
        FIRST_SYSTEM + "{{ sys }}{% for m in rest %}{{ '<|im_start|>' + m.role + '\n'"
        " + (sys if sys and m.role == 'user' else '') + m.content + '<|im_end|>\n' }}{% endfor %}" + CHATML_PROMPT,
        system=False,
    ),
    "the system's words trimmed": Shape(
        FIRST_SYSTEM + "{% if sys %}{{ '<|im_start|>system\n' + sys.strip() + '<|im_end|>\n' }}{% endif %}"
        "{% for m in rest %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}" + CHATML_PROMPT
    ),
    "variables that are not given": Shape(
        "{{ '<|im_start|>system\n' + (custom_instructions or '') + '<|im_end|>\n' }}"
        + _turns("'<|im_start|>' + m.role + (' ' + m.name if m.name else '') + '\n' + m.content + '<|im_end|>\n'")
        + CHATML_PROMPT
    ),
    "a filter that formats": Shape(
        _turns("'<|im_start|>%s\n%s<|im_end|>\n' | format(m.role, m.content)") + CHATML_PROMPT
    ),
    "a method that formats": Shape(
        _turns("'<|im_start|>{}\n{}<|im_end|>\n'.format(m.role, m.content)") + CHATML_PROMPT
    ),
    "gaps only between turns": Shape(
        LOOP + "{% if loop.first %}{{ bos_token }}{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}"
        "{% if not loop.last %}{{ '\n' }}{% endif %}" + END + _generation("\n<|im_start|>assistant\n")
    ),
    "a line break that the prompt does not write": Shape(
        _turns("'<|' + m.role + '|>\n' + m.content + '<|eot|>'") + _generation("<|assistant|>")
    ),
    "a tab that the prompt does not write": Shape(
        _turns("'<|' + m.role + '|>\t' + m.content + '<|eot|>'") + _generation("<|assistant|>")
    ),
    "half of a gap in the prompt": Shape(
        _turns("'<|' + m.role + '|>\n\n' + m.content + '<|eot|>'") + _generation("<|assistant|>\n")
    ),
    "a prompt after every user turn": Shape(
        CHATML + "{{ '<|im_start|>assistant\n' if messages[-1].role == 'user' else '' }}"
    ),
    "a question without a prompt refused": Shape(
        "{% if not add_generation_prompt and messages[-1].role == 'user' %}{{ raise_exception('no prompt') }}{% endif %}"
        + CHATML + CHATML_PROMPT
    ),
    "no end": Shape(
        LOOP + "{% if m.role == 'user' %}{{ '### User:\n' + m.content + '\n\n' }}{% else %}"
        "{{ '### Assistant:\n' + m.content }}{% endif %}" + END + _generation("### Assistant:\n"),
        reason="does not mark the end of an answer",
    ),
    "a space at the end of the prompt": Shape(
        "{{ bos_token }}" + _turns("'<|' + m.role + '|> ' + m.content + '<|STOP|>'") + _generation("<|assistant|> "),
        reason="token .* of a chat",
    ),
    "a switch after the last user turn": Shape(
        LOOP + "{{ '<|im_start|>' + m.role + '\n' + m.content }}{% if loop.last and m.role == 'user' %}{{ ' /no_think' }}"
        "{% endif %}{{ '<|im_end|>\n' }}" + END + CHATML_PROMPT, reason="does not continue its generation prompt",
    ),
    "contents as parts only": Shape(
        LOOP + "{{ '<|im_start|>' + m.role + '\n' }}{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}"
        "{% endfor %}{{ '<|im_end|>\n' }}" + END + CHATML_PROMPT, reason="rewrites earlier turns",
    ),
    "a thought in brackets": Shape(
        _turns("'[INST]' + m.content + '[/INST]' if m.role == 'user' else m.content + eos_token") + _generation("[THINK]"),
        reason="opens a thought",
    ),
    "a thought in triangles": Shape(
        _turns("'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>'") + _generation("<|im_start|>assistant\n◁think▷"),
        reason="opens a thought",
    ),
    "a token after the chat only": Shape(
        _turns("'\n' + m.role + ': ' + m.content")
        + "{% if add_generation_prompt %}{{ '\nassistant:' }}{% else %}{{ eos_token }}{% endif %}",
        reason="does not mark the end of an answer",
    ),
    "contents indented": Shape(CHATML.replace("m.content", "m.content | indent(2)") + CHATML_PROMPT, reason="changes the white space"),
    "contents as JSON": Shape(CHATML.replace("m.content", "m.content | tojson") + CHATML_PROMPT, reason="does not continue"),
    "spaces collapsed": Shape(CHATML.replace("m.content", "m.content.split() | join(' ')") + CHATML_PROMPT, reason="changes the contents"),
    "long contents cut": Shape(CHATML.replace("m.content", "m.content[:1000]") + CHATML_PROMPT, reason="changes the contents"),
    "contents cut": Shape(CHATML.replace("m.content", "m.content[:20]") + CHATML_PROMPT, reason="changes the contents"),
    "turns counted": Shape("{{ '<s>' ~ messages | length ~ '\n' }}" + CHATML + CHATML_PROMPT, reason="token .* of a chat"),
    "words that only answers have": Shape(
        _turns("'<|im_start|>' + m.role + '\n' + ('Sure: ' if m.role == 'assistant' else '') + m.content + '<|im_end|>\n'")
        + CHATML_PROMPT, reason="does not continue its generation prompt",
    ),
    "tools needed": Shape("{% for t in tools %}{{ t }}{% endfor %}" + CHATML + CHATML_PROMPT, reason="refuses these messages"),
    "turns reversed": Shape(
        "{% for m in messages | reverse %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        + CHATML_PROMPT, reason="rewrites earlier turns",
    ),
    "user turns joined": Shape(
        NO_SYSTEM + "{{ '<|im_start|>' }}{% for m in messages if m.role == 'user' %}{{ m.content + '\n' }}{% endfor %}"
        "{{ '<|im_end|>' }}" + CHATML_PROMPT, reason="rewrites earlier turns",
    ),
    "another template included": Shape("{% include 'x' %}" + CHATML + CHATML_PROMPT, reason="refuses these messages"),
    "a token that the tokenizer lacks": Shape("{{ sep_token + bos_token }}" + CHATML + CHATML_PROMPT, reason="refuses these messages"),
    "the time of day": Shape("{{ strftime_now('%H:%M:%S.%f') }}" + CHATML + CHATML_PROMPT, reason="token .* of a chat"),
    "a date before the last end": Shape(
        LOOP + "{{ '<|im_start|>' + m.role + '\n' + m.content }}{% if loop.last %}{{ '\n' + strftime_now('%d %B') }}{% endif %}"
        "{{ '<|im_end|>\n' }}" + END + CHATML_PROMPT, reason="does not mark the end of an answer",
    ),
}  # fmt: skip
"""More shapes, for one kind of tokenizer."""
WORDS = [("cat", "tac"), (" two  words ", "Zwei Wörter"), ("a\nb\n", "(B)"), ("<b>&\"'</b>", "x y")]
LISTS = [([3, 1, 4], [4, 1, 3]), ([15], [15]), ([], []), ([-9, 26], [26, -9])]
GRIDS = [([[n, 0], [0, n]], [[0, n], [n, 0]]) for n in range(1, 5)]


def tasks_of(count: int) -> list[Task]:
    return [
        make_task(WORDS[:count], "dög", answer="göd"),
        make_task(WORDS[:count], " dog", answer="The end.", instruction="Reverse\nit. "),
        make_task(LISTS[:count], [5, 6], answer=[6, 5], instruction="Reverse."),
        make_task(GRIDS[:count], [[7, 0]], answer=[[0, 7], [7, 7]]),
    ]


def messages_of(task: Task, system: bool) -> list[dict[str, str]]:
    """The chat of a task, written independently of the package."""
    values = [v for d in task.demonstrations for v in (d.input, d.output)] + [task.query]
    contents = [kind_of(task).render(v, STANDARD) for v in values]
    turns = [{"role": ("user", "assistant")[n % 2], "content": c} for n, c in enumerate(contents)]
    if task.instruction and system:
        return [{"role": "system", "content": task.instruction}, *turns]
    if task.instruction:
        turns[0]["content"] = f"{task.instruction}\n\n{turns[0]['content']}"
    return turns


def template_ids(tokenizer: Any, messages: Sequence[dict[str, str]], generation: bool) -> list[int]:
    return list(
        tokenizer.apply_chat_template(
            messages, add_generation_prompt=generation, enable_thinking=False, return_dict=False
        )
    )


ALL_SHAPES = SHAPES | MORE_SHAPES
USED = {name: shape for name, shape in ALL_SHAPES.items() if not shape.reason}
CASES = [(name, core) for name in USED for core in (CORES if name in SHAPES else ["bytes"])]


@pytest.mark.parametrize(("name", "core"), CASES)
def test_prompts_and_answers_have_the_ids_of_the_template(name: str, core: str) -> None:
    shape = USED[name]
    tokenizer = tokenizer_with(shape.template, core)
    loaded = wrapped(tokenizer, "chat")
    assert loaded.format_reason == ""
    counts = range(1, 5) if core == "bytes" else (1, 3)
    for task in [t for count in counts for t in tasks_of(count)]:
        messages = messages_of(task, shape.system)
        prompt, answered = encode(loaded, task), encode(loaded, task, task.answer)
        shown = template_ids(tokenizer, messages, True)
        assert list(prompt.ids[: len(shown)]) == shown or name == "QwQ"
        assert (len(prompt.ids) == len(shown)) == (name != "QwQ")
        answer = {"role": "assistant", "content": kind_of(task).render(task.answer, STANDARD)}
        finished = template_ids(tokenizer, [*messages, answer], False)
        begin, end = answered.answers[-1]
        assert begin == len(prompt.ids)
        if shape.moves_system and task.instruction:
            answer_ids = list(answered.ids[begin - 1 : end])
            assert finished[-len(answer_ids) :] == answer_ids
        else:
            assert list(answered.ids[:end]) == finished[:end]
        assert answered.ids[: len(prompt.ids)] == prompt.ids
        outputs = [kind_of(task).render(d.output, STANDARD) for d in task.demonstrations]
        for (begin, end), text in zip(answered.answers, [*outputs, answer["content"]], strict=True):
            ids = list(answered.ids[begin:end])
            assert tokenizer.decode(ids[:-1]).strip() == text
            assert ids[-1] in stop_ids(loaded), "each answer ends with the token that ends the turn"
            assert not set(ids[:-1]) & stop_ids(loaded)


@pytest.mark.parametrize("name", [name for name, shape in ALL_SHAPES.items() if shape.reason])
def test_a_template_that_fails_the_check_is_replaced_by_plain_prompts(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tokenizer_with(ALL_SHAPES[name].template)
    loaded = wrapped(tokenizer)
    assert loaded.format.name == "standard"
    (warning,) = [r for r in caplog.records if r.name == "autottt"]
    assert warning.levelno == logging.WARNING
    assert re.search(ALL_SHAPES[name].reason, loaded.format_reason)
    assert loaded.format_reason in warning.getMessage()


def test_answers_in_other_formats_have_no_reason() -> None:
    assert wrapped(tiny_tokenizer()).format_reason == ""
    assert wrapped(tiny_tokenizer(chat=True), "standard").format_reason == ""


# --- thoughts, ends and dates ---------------------------------------------------------------------------------------


def test_a_thought_that_the_generation_prompt_opens_is_closed_as_the_template_closes_it() -> None:
    tokenizer = tokenizer_with(SHAPES["QwQ"].template)
    text = tokenizer.decode(list(encode(wrapped(tokenizer), tasks_of(1)[0]).ids))
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_a_space_before_an_answer_is_a_part_of_it() -> None:
    tokenizer = tokenizer_with(SHAPES["Mistral 7"].template, "metaspace")
    loaded = wrapped(tokenizer)
    task = make_task([("a", "the word")], "b", answer="the number")
    answered = encode(loaded, task, task.answer)
    for (begin, end), text in zip(answered.answers, ("the word", "the number"), strict=True):
        assert list(answered.ids[begin:end]) == [
            *tokenizer.encode(text, add_special_tokens=False),
            tokenizer.eos_token_id,
        ]
    assert loaded.format.read(task, " the number") == "the number"


@pytest.mark.parametrize("name", ["Alpaca with line breaks as ends"])
def test_where_a_line_break_ends_answers_those_over_several_lines_are_refused(name: str) -> None:
    template = SHAPES[name].template.replace("m.content + '\n\n'", "m.content + '\n'")
    loaded = wrapped(tokenizer_with(template), "chat")
    assert loaded.format.ends == ("\n",)
    grid, word = tasks_of(1)[3], tasks_of(1)[0]
    assert encode(loaded, word, word.answer).answers
    with pytest.raises(TaskError, match=r"contains '\\n', which ends an answer in the prompt format chat"):
        encode(loaded, grid)


def digest_of(loaded: LoadedModel) -> str:
    """The digest of the prompts in the only format of a model."""
    return prompt_digest(loaded, loaded.format)


class Clock(datetime.datetime):
    """A clock that a test sets."""

    today = datetime.datetime(2026, 3, 1, 23, 59)

    @classmethod
    def now(cls, tz: Any = None) -> datetime.datetime:
        return cls.today


def test_a_learner_has_one_date_for_life_and_another_date_is_another_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    monkeypatch.setattr(Clock, "today", datetime.datetime(2026, 3, 1, 23, 59))
    tokenizer = tokenizer_with(SHAPES["Llama 3 with a date"].template)
    before = wrapped(tokenizer, "chat")
    assert "01 Mar 2026" in tokenizer.decode(list(encode(before, tasks_of(1)[0]).ids))
    monkeypatch.setattr(Clock, "today", datetime.datetime(2026, 3, 2, 0, 1))
    assert "01 Mar 2026" in tokenizer.decode(list(encode(before, tasks_of(3)[0]).ids))
    after = wrapped(tokenizer, "chat")
    assert "02 Mar 2026" in tokenizer.decode(list(encode(after, tasks_of(1)[0]).ids))
    assert prompt_digest(before, before.format) != prompt_digest(after, after.format)


def test_the_digest_of_prompts_does_not_depend_on_the_day_without_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_with(SHAPES["Llama 3"].template)
    before = digest_of(wrapped(tokenizer, "chat"))
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    assert digest_of(wrapped(tokenizer, "chat")) == before
    tokenizer.chat_template = SHAPES["ChatML"].template
    assert digest_of(wrapped(tokenizer, "chat")) != before


# --- limits of a rendering ------------------------------------------------------------------------------------------

COSTLY = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops over a condition": "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "long text": "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    "one long text": "{{ 'x' * 10 ** 10 }}",
    "doubled text": "{% set ns = namespace(s='x') %}{% for a in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "centred text": "{{ 'x'.center(10 ** 10) }}",
    "formatted text": "{{ '%10000000000d' % 1 }}",
    "large number": "{{ 10 ** (10 ** 10) }}",
    "long list": "{{ ([0] * 10 ** 10) | length }}",
    "nested lists": "{% set ns = namespace(s=['x']) %}{% for a in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "a macro that calls itself": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "long after a while": "{% if messages | length > 6 %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}",
}


@pytest.fixture
def one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renderings may take half as long as usual, so that the tests do not."""
    monkeypatch.setattr(template_process, "MAX_SECONDS", 1)


@pytest.mark.usefixtures("one_second")
@pytest.mark.parametrize("name", COSTLY)
def test_a_template_that_takes_too_long_or_too_much_memory_is_replaced(name: str) -> None:
    tokenizer = tiny_tokenizer(chat=True)
    tokenizer.chat_template = COSTLY[name] + tokenizer.chat_template
    began = time.process_time()
    loaded = wrapped(tokenizer)
    assert loaded.format.name == "standard"
    assert loaded.format_reason
    assert time.process_time() - began < 2, "this process renders nothing"


def test_a_requested_template_that_is_too_costly_is_refused_with_the_remedy() -> None:
    tokenizer = tiny_tokenizer(chat=True)
    tokenizer.chat_template = COSTLY["loops"] + tokenizer.chat_template
    with pytest.raises(ModelError, match=r"more than 2 seconds or 512 MB; use prompt_format='standard'"):
        wrapped(tokenizer, "chat")


@pytest.mark.usefixtures("one_second")
def test_a_rendering_that_becomes_costly_later_is_refused() -> None:
    tokenizer = tiny_tokenizer(chat=True)
    tokenizer.chat_template = COSTLY["long after a while"].replace("> 6", "> 30") + tokenizer.chat_template
    loaded = wrapped(tokenizer)
    assert loaded.format.name == "chat"
    many = make_task([("a", "b")] * 20, "c")
    with pytest.raises(ModelError, match="more than 1 seconds"):
        encode(loaded, many)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("{{ messages[0].content.__class__.__mro__ }}", "SecurityError"),
        ("{{ '\\ud800' }}", "UnicodeEncodeError"),
        ("{% include 'other' %}", "TypeError"),
        ("", "rewrites earlier turns"),
    ],
)
def test_a_template_that_fails_is_replaced_with_the_reason(template: str, reason: str) -> None:
    tokenizer = tiny_tokenizer(chat=True)
    tokenizer.chat_template = template or " "
    loaded = wrapped(tokenizer)
    assert loaded.format.name == "standard"
    assert reason in loaded.format_reason
    with pytest.raises(ModelError, match=r"use prompt_format='standard'"):
        wrapped(tokenizer, "chat")


def test_a_tokenizer_with_several_templates_uses_the_default_or_none() -> None:
    tokenizer = tiny_tokenizer(chat=True)
    default = tokenizer.chat_template
    tokenizer.chat_template = {"default": default, "tool_use": "{{ tools }}"}
    assert wrapped(tokenizer).format.name == "chat"
    tokenizer.chat_template = {"tool_use": "{{ tools }}"}
    assert wrapped(tokenizer).format.name == "standard"


def test_a_template_is_rendered_once_for_a_number_of_demonstrations(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = wrapped(tiny_tokenizer(chat=True))
    task = make_task([("a", "b")] * 7, "c")
    first = encode(loaded, task)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("a process was started"))
    assert encode(loaded, task) == first
    assert encode(loaded, make_task([("d", "e")] * 7, "f")) != first


def test_a_renderer_writes_what_transformers_writes() -> None:
    template = (
        "{% for m in messages %}{%- if loop.index0 > 1 %}{% break %}{% endif -%} {{ m | tojson(indent=1) }} {% generation %}"
        "{{ m.content }}{% endgeneration %}{% endfor %}{{ dict(a=1) | length }}{{ tools }}{{ enable_thinking }}"
        "  {% if true %}\n  x\n  {% endif %}\n{{ bos_token }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    )
    tokenizer = tokenizer_with(template)
    messages = [
        {"role": "user", "content": "a <b> é"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **SWITCHES)
    assert TemplateRenderer(tokenizer)(messages, True) == expected
