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
from ..tasks.kinds import kind_of
from ..tasks.prompts import Piece, PromptFormat
from ..tasks.task import Demonstration, Task, Value
from . import lazy
from .chat_prompts import ChatEncoder, Span
from .loading import LoadedModel, end_of_sequence_ids
from .probe import accepts_positions, without_router_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Encoded:
    """A prompt as token ids."""

    ids: tuple[int, ...]
    answers: tuple[Span, ...]
    """Where each answer and its end stand, in the order of the prompt."""
    shared_prefix_length: int
    """Leading tokens that depend on the demonstrations alone, not on the query."""
    ends: tuple[str, ...] = ()
    """Texts that end an answer."""


def start_ids(loaded: LoadedModel, prompt_format: PromptFormat) -> tuple[int, ...]:
    """What the tokenizer puts before every text by itself: a BOS token, other special tokens, or nothing."""
    if prompt_format.name == "chat":
        return ()
    text = loaded.tokens(_ANY_TEXT)
    whole = tuple(loaded.tokenizer(_ANY_TEXT).input_ids)
    begin = next((n for n in range(len(whole)) if text and whole[n : n + len(text)] == text), 0)
    return whole[:begin]


_ANY_TEXT = "Input"


def stop_ids(loaded: LoadedModel) -> frozenset[int]:
    """Tokens that end an answer: those of the model's settings, and those that end a turn of its chat template."""
    return end_of_sequence_ids(loaded.model, loaded.tokenizer) | loaded.turn_end_ids


def prompt_digest(loaded: LoadedModel, prompt_format: PromptFormat) -> str:
    """Hash of all that decides which ids a prompt becomes: vocabulary, merges, special tokens, and what the chat
    template writes between messages, the date included."""
    tokenizer = loaded.tokenizer
    start = tokenizer("").input_ids  # first: it undoes truncation and padding that a call of the host may have left on
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    pieces = prompt_format.pieces(_DIGEST_TASK, _DIGEST_TASK.answer)
    content = (rules, start, sorted(tokenizer.special_tokens_map.items()), tokenizer.chat_template, pieces)
    return hashlib.blake2b(repr(content).encode(), digest_size=16).hexdigest()


_DIGEST_TASK = Task("list", (Demonstration((1, 2), (2, 1)),) * 2, (3, 4), (4, 3), "Reverse the list.")
"""A task whose prompt shows all that a format writes around values."""


def encode(loaded: LoadedModel, task: Task, answer: Value | None = None, max_new_tokens: int = 0) -> Encoded:
    """The task's prompt; with `answer`, through its end. `max_new_tokens` more tokens must fit in the context.

    Raises `TooLongError` with the lengths.
    """
    refuse_oversized(loaded, task)
    prompt_format = loaded.format_of(task)
    pieces = prompt_format.pieces(task, answer)
    encoded = _encode_chat if prompt_format.name == "chat" else _encode_pieces
    ids, answers, shared = encoded(loaded, task, pieces, answer, max_new_tokens)
    if len(ids) + max_new_tokens > loaded.context_length:
        raise _too_long(loaded, task, str(len(ids)), answer, max_new_tokens)
    if not ids:
        raise ModelError(
            f"{task.id}: the prompt has no tokens; the tokenizer needs a BOS token for a task without demonstrations"
        )
    return Encoded(tuple(ids), tuple(answers), min(shared, len(ids) - 1), prompt_format.ends)


def refuse_oversized(loaded: LoadedModel, task: Task) -> None:
    """Raises `TooLongError` for a task far longer than the context, before its values are written out in full.

    A task within reach of the context costs nothing here: its values are counted, not encoded.
    """
    demonstrations, limit = task.demonstrations, 2 * loaded.context_length
    if len(demonstrations) > loaded.context_length:
        raise _too_long(loaded, task, f"at least {len(demonstrations)}", None, 0)
    values = [task.query, task.instruction or "", *(v for d in demonstrations for v in (d.output, d.input))]
    if sum(_size(value) for value in values) <= _CHARACTERS_PER_TOKEN * limit:
        return
    kind, count = kind_of(task), 0
    for value in values:
        if isinstance(value, str):
            count += len(_ids_up_to(loaded, value, limit))
        elif value:
            part: Any = tuple(v[: limit + 1] if isinstance(v, tuple) else v for v in value[: limit + 1])
            count += len(loaded.tokens(kind.render(part, loaded.format_of(task).notation)))
        if count > limit:
            raise _too_long(loaded, task, f"more than {limit}", None, 0)


def _size(value: Value) -> int:
    """Characters of a text, numbers of a list, cells of a grid."""
    rows = isinstance(value, tuple) and value and isinstance(value[0], tuple)
    return len(value) * len(value[0]) if rows else len(value)  # type: ignore[arg-type]


def _encode_pieces(
    loaded: LoadedModel, task: Task, pieces: Sequence[Piece], answer: Value | None, max_new_tokens: int
) -> tuple[list[int], list[Span], int]:
    """Ids, answer spans and length of the shared prefix. Each piece is encoded separately, so no token spans two.

    Raises `TooLongError` at twice the context: the tokens of a longer prompt are not counted.
    """
    ids = list(start_ids(loaded, loaded.format_of(task)))
    stops = stop_ids(loaded)
    answers: list[Span] = []
    begin = shared = len(ids)
    for number, piece in enumerate(pieces):
        new = _ids_up_to(loaded, piece.text, 2 * loaded.context_length, begins=number == 0)
        if piece.role == "answer":
            begin = len(ids)
        ids += new
        if piece.role == "end":
            # Decoding stops at a token that ends a sequence; what the template puts after it belongs to no answer.
            after = next((len(new) - 1 - i for i, token in enumerate(new) if token in stops), 0)
            answers.append((begin, len(ids) - after))
            if len(answers) <= len(task.demonstrations):
                shared = len(ids)
        if len(ids) > 2 * loaded.context_length:
            raise _too_long(loaded, task, f"more than {len(ids) - 1}", answer, max_new_tokens)
    return ids, answers, shared


def _encode_chat(
    loaded: LoadedModel, task: Task, pieces: Sequence[Piece], answer: Value | None, max_new_tokens: int
) -> tuple[list[int], list[Span], int]:
    """Ids, answer spans and length of the shared prefix; the text is encoded as one. Raises as `_encode_pieces`."""
    limit = 2 * loaded.context_length
    if sum(len(piece.text) for piece in pieces) > _CHARACTERS_PER_TOKEN * limit:
        text = "".join(piece.text for piece in pieces)
        if len(ids := _ids_up_to(loaded, text, limit)) > limit:
            raise _too_long(loaded, task, f"more than {limit}", answer, max_new_tokens)
        del ids
    encoder = ChatEncoder(loaded.tokenizer, stop_ids(loaded), loaded.tokens)
    chat = encoder(pieces, answered=answer is not None)
    return chat.ids, chat.answers, chat.shown_length


_CHARACTERS_PER_TOKEN = 8
"""A text with this many characters for each token is first encoded in part."""


def _ids_up_to(loaded: LoadedModel, text: str, limit: int, begins: bool = True) -> Sequence[int]:
    """The ids of a text; of one that has more than `limit`, possibly those of its beginning, also more than `limit`.
    A text that does not begin the prompt continues another one."""
    tokens = loaded.tokens if begins else loaded.continuing_tokens
    length = _CHARACTERS_PER_TOKEN * limit
    while length < len(text):
        ids = tokens(text[:length])
        if len(ids) > limit + 8:  # more than the cut can have added
            return ids
        length *= 4
    return tokens(text)


def _too_long(loaded: LoadedModel, task: Task, count: str, answer: Value | None, max_new_tokens: int) -> TooLongError:
    """The error for a prompt of `count` tokens (a number, perhaps after `at least` or `more than`)."""
    answered = f" and its answer takes at least {max_new_tokens}" if max_new_tokens else ""
    answered = answered or (" with its answer" if answer is not None else "")
    return TooLongError(
        f"{task.id}: the prompt is too long: it has {count} tokens{answered}, more than the "
        f"{loaded.context_length} tokens of the context of {loaded.name}; give fewer or smaller demonstrations, "
        "or use a model with a longer context"
    )


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
    ids = torch.full((len(rows), longest), pad_id, device="cpu")
    mask = torch.zeros((len(rows), longest), dtype=torch.long, device="cpu")
    for i, row in enumerate(rows):
        at = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, at] = torch.tensor(row, device="cpu")
        mask[i, at] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return PaddedBatch(ids.to(device), mask.to(device), positions.to(device))


def pad_id_of(loaded: LoadedModel) -> int:
    """Any id that the model has an embedding for will do for padding, since padding is masked; the tokenizer's own
    where it is one. A padding token that a host added to the tokenizer often is none: the embeddings are as before."""
    pad_id, known = loaded.tokenizer.pad_token_id, loaded.model.get_input_embeddings().num_embeddings
    return int(pad_id) if pad_id is not None and pad_id < known else 0


@contextmanager
def logits_only_at(model: PreTrainedModel, chosen: Tensor) -> Iterator[list[nn.Module]]:
    """While inside, the output head sees the `chosen` positions (boolean, [B, T]) only: logits are [1, N, V].

    For a large vocabulary this is most of the memory of a pass. Whatever a model does to its logits afterwards
    (scaling, soft caps) still happens. Gives a list that holds the head once the model has called it: one that computes
    its logits otherwise gives them at all positions.
    """
    called: list[nn.Module] = []

    def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        called.append(module)
        return (args[0][chosen][None], *args[1:])

    head = model.get_output_embeddings()
    handle = None if head is None else head.register_forward_pre_hook(select)
    try:
        yield called
    finally:
        if handle is not None:
            handle.remove()


def forward(
    model: PreTrainedModel, batch: PaddedBatch, logit_positions: Tensor, mask: Tensor | None = None, cache: Any = None
) -> Tensor:
    """Logits [N, V] in fp32 at `logit_positions`. `mask` covers the cache as well, where there is one."""
    extra: dict[str, Any] = {"position_ids": batch.positions} if accepts_positions(model) else {}
    extra |= without_router_logits(model)
    extra |= {"use_cache": False} if cache is None else lazy.kv_cache.cache_arguments(model, cache)
    with logits_only_at(model, logit_positions) as called:
        output = model(input_ids=batch.ids, attention_mask=batch.mask if mask is None else mask, **extra)
    logits: Tensor = output.logits[0] if called else output.logits[logit_positions]
    return logits.float()


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
