"""Encoded prompts: token ids with the places of their answers, and batches of them as tensors.

Knows nothing about adapters or training. Axes: B rows, T tokens, V vocabulary, N chosen positions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import ModelError, TooLongError
from ..tasks.task import Task, Value
from . import lazy
from .loading import LoadedModel
from .probe import accepts_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Span = tuple[int, int]
"""First token and one past the last."""


@dataclass(frozen=True)
class Encoded:
    """A prompt as token ids."""

    ids: tuple[int, ...]
    answers: tuple[Span, ...]
    """Where each answer and its end stand, in the order of the prompt."""
    shared_prefix_length: int
    """Leading tokens that depend on the demonstrations alone, not on the query."""


def start_ids(loaded: LoadedModel) -> tuple[int, ...]:
    """What the tokenizer puts before every text by itself (a BOS token, or nothing)."""
    if loaded.format.name == "chat":
        return ()
    first = loaded.tokenizer.bos_token_id
    return (first,) if first is not None and first in loaded.tokenizer("").input_ids else ()


def stop_ids(loaded: LoadedModel) -> set[int]:
    """Tokens that end a sequence by the model's own settings."""
    found = {loaded.tokenizer.eos_token_id}
    for config in (loaded.model.generation_config, loaded.model.config):
        ids = getattr(config, "eos_token_id", None)
        found.update(ids if isinstance(ids, list) else [ids])
    return {int(i) for i in found if i is not None}


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of all that decides which ids a prompt becomes: vocabulary, merges, special tokens, chat template."""
    start = tokenizer("").input_ids  # first: it undoes the cutting and padding that a call of the host may have left on
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    says = (rules, start, sorted(tokenizer.special_tokens_map.items()), tokenizer.chat_template)
    return hashlib.blake2b(repr(says).encode(), digest_size=16).hexdigest()


def encode(loaded: LoadedModel, task: Task, answer: Value | None = None, max_new_tokens: int = 0) -> Encoded:
    """The task's prompt; with `answer`, through its end. `max_new_tokens` more tokens must fit in the context.

    Raises `TooLongError` with the lengths.
    """
    ids = list(start_ids(loaded))
    stops = stop_ids(loaded)
    answers: list[Span] = []
    begin = shared = len(ids)
    for piece in loaded.format.pieces(task, answer):
        new = loaded.tokens(piece.text)
        if piece.role == "answer":
            begin = len(ids)
        ids += new
        if piece.role == "end":
            # Decoding stops at a token that ends a sequence; what the template puts after it belongs to no answer.
            after = next((len(new) - 1 - i for i, token in enumerate(new) if token in stops), 0)
            answers.append((begin, len(ids) - after))
            if len(answers) <= len(task.demonstrations):
                shared = len(ids)
    if len(ids) + max_new_tokens > loaded.context_length:
        answered = (
            f" and its answer takes at least {max_new_tokens}"
            if max_new_tokens
            else ""
            if answer is None
            else " with its answer"
        )
        raise TooLongError(
            f"{task.id}: the prompt has {len(ids)} tokens{answered}, more than the "
            f"{loaded.context_length} tokens of the context of {loaded.name}; give fewer or smaller demonstrations, "
            "or use a model with a longer context"
        )
    if not ids:
        raise ModelError(
            f"{task.id}: the prompt has no tokens; the tokenizer needs a BOS token for a task without demonstrations"
        )
    return Encoded(tuple(ids), tuple(answers), min(shared, len(ids) - 1))


@dataclass(frozen=True)
class PaddedBatch:
    """Rows of token ids."""

    ids: Tensor
    """[B, T]"""
    mask: Tensor
    """[B, T]; 1 on tokens, 0 on padding."""
    positions: Tensor
    """[B, T]; each token's place in its own row."""


def pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device, *, left: bool) -> PaddedBatch:
    """Rows of ids, padded to the longest."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        at = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, at] = torch.tensor(row)
        mask[i, at] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return PaddedBatch(ids.to(device), mask.to(device), positions.to(device))


def pad_id_of(loaded: LoadedModel) -> int:
    """Any id will do for padding, since padding is masked; the tokenizer's own where it has one."""
    found = loaded.tokenizer.pad_token_id
    return int(found) if found is not None else 0


@contextmanager
def logits_only_at(model: PreTrainedModel, chosen: Tensor) -> Iterator[None]:
    """While inside, the output head sees the `chosen` positions (boolean, [B, T]) only: logits are [1, N, V].

    For a large vocabulary this is most of the memory of a pass. Whatever a model does to its logits afterwards
    (scaling, soft caps) still happens.
    """

    def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][chosen][None], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def forward(
    model: PreTrainedModel, batch: PaddedBatch, logit_positions: Tensor, mask: Tensor | None = None, cache: Any = None
) -> Tensor:
    """Logits [N, V] in fp32 at `logit_positions`. `mask` covers the cache as well, where there is one."""
    extra: dict[str, Any] = {"position_ids": batch.positions} if accepts_positions(model) else {}
    extra |= {"use_cache": False} if cache is None else lazy.kv_cache.cache_arguments(model, cache)
    with logits_only_at(model, logit_positions):
        output = model(input_ids=batch.ids, attention_mask=batch.mask if mask is None else mask, **extra)
    logits: Tensor = output.logits[0].float()
    return logits


def batches_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices grouped so that longest * count of each group is within `budget` tokens; similar lengths together."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    groups: list[list[int]] = []
    for index in order:
        if groups and lengths[index] * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
