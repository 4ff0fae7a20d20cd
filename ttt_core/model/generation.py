"""Decoding: answers token by token, in batches, over a cached prefix that prompts share; knows nothing of training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from .encoding import Encoded, PaddedBatch, batches_by_tokens, forward, pad, pad_id_of, stop_ids
from .kv_cache import new_cache
from .loading import LoadedModel
from .memory import in_halves_on_out_of_memory

MAX_BATCH_TOKENS = 16384
"""Tokens that are read, or decoded after, side by side at most."""
FEWER = 0.75
"""Share of a batch's rows that are not done yet from which on the others are dropped."""
LOGITS = 1 << 26
"""Logits that checking guesses may take at most; beyond, there are no guesses."""
WORTH = 8
"""Tokens of a guess that have to be right for the rest of it to be tried after a wrong one."""
PrefixFilter = Callable[[str], bool]
"""Whether an answer that begins with a text can still be read."""


@dataclass(frozen=True)
class TokenScores:
    """What the model thought of each token of a text, in order."""

    log_probs: tuple[float, ...]
    """Natural logarithm of the probability of the token itself."""
    entropies: tuple[float, ...]
    """Entropy of the distribution it was drawn from, in nats."""
    margins: tuple[float, ...]
    """Log-probability of the likeliest token minus that of the second."""
    hits: tuple[bool, ...]
    """Whether the token is the likeliest one, and of several the one that greedy decoding takes."""

    @property
    def all_hit(self) -> bool:
        """Greedy decoding would have produced exactly this text."""
        return all(self.hits)

    @property
    def total(self) -> float:
        """Log-probability of the whole text, in nats."""
        return sum(self.log_probs)


def token_scores(logits: Tensor, ids: Tensor) -> TokenScores:
    """Scores of tokens `ids` [N] under `logits` [N, V]."""
    log_probs = logits.log_softmax(-1)
    chosen = log_probs.gather(-1, ids[:, None])[:, 0]
    entropies = -(log_probs.exp() * log_probs.clamp(min=-1e4)).sum(-1)
    top = log_probs.topk(2, dim=-1)
    return TokenScores(
        tuple(chosen.tolist()),
        tuple(entropies.tolist()),
        tuple((top.values[:, 0] - top.values[:, 1]).tolist()),
        tuple((logits.argmax(-1) == ids).tolist()),
    )


@dataclass(frozen=True)
class Generated:
    """What was decoded for one prompt."""

    text: str
    """Up to, and without, the end of the answer."""
    scores: TokenScores
    """Of every decoded token, the end included."""
    ended: bool
    """Whether the model ended the answer itself; otherwise it ran out of room, or into what cannot be read."""
    ids: tuple[int, ...]
    """Every decoded token, the end included."""
    rejected: int = 0
    """Tokens of a guess that were read and were wrong."""
    prompt_tokens: int = 0
    """Tokens of the prompt that were read for it, beyond those of a prefix."""


@dataclass(frozen=True)
class Prefix:
    """A prompt's shared beginning, already read; and, where it could be gone back on, the rest of that prompt."""

    ids: tuple[int, ...]
    cache: Any
    """Of `ids` and `rest`; a row for each attached adapter, or one."""
    demonstration_scores: tuple[TokenScores, ...]
    """Scores of each demonstration's answer given the demonstrations before it; by the first adapter of several."""
    remainder: tuple[int, ...] = ()
    logits: Tensor | None = None
    """After the rest, [A, V]."""

    def covers(self, prompt: Encoded) -> bool:
        """Whether the whole prompt was read, so that its answer can be decoded at once."""
        return bool(self.remainder) and prompt.ids == self.ids + self.remainder


def score_answers(
    loaded: LoadedModel, prompts: Sequence[Encoded], max_tokens: int = MAX_BATCH_TOKENS
) -> list[list[TokenScores]]:
    """Teacher-forced scores of every answer in each prompt, in order; of prompts of at most `most` tokens at once, and
    fewer where memory does not suffice.
    """
    found: list[list[TokenScores]] = [[] for _ in prompts]
    for group in batches_by_tokens([len(p.ids) for p in prompts], max_tokens):
        for some, scores in in_halves_on_out_of_memory(group, lambda g: _score_once(loaded, [prompts[i] for i in g])):
            for index, one in zip(some, scores, strict=True):
                found[index] = one
    return found


def _score_once(loaded: LoadedModel, prompts: Sequence[Encoded]) -> list[list[TokenScores]]:
    """As `score_answers`, all in one pass."""
    batch = pad([p.ids for p in prompts], pad_id_of(loaded), loaded.model.device, left=False)
    chosen = torch.zeros_like(batch.mask, dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        for begin, end in prompt.answers:
            chosen[i, max(0, begin - 1) : end - 1] = True
    logits = forward(loaded.model, batch, chosen)
    targets = batch.ids[:, 1:][chosen[:, :-1]]
    scores, at = [], 0
    for prompt in prompts:
        row = []
        for begin, end in prompt.answers:
            size = end - max(1, begin)
            row.append(token_scores(logits[at : at + size], targets[at : at + size]))
            at += size
        scores.append(row)
    return scores


def read_prefix(loaded: LoadedModel, prompt: Encoded, adapters: int = 1, to_the_end: bool = False) -> Prefix:
    """Reads the part of a prompt that depends on the demonstrations alone, with each of the attached adapters.

    `whole` asks for the rest of the prompt in the same pass, where the cache can forget it again.
    """
    ids = prompt.ids[: prompt.shared_prefix_length]
    cache = new_cache(loaded.model.config)
    if not ids:
        return Prefix(ids, cache, ())
    rest = (
        prompt.ids[prompt.shared_prefix_length :]
        if to_the_end and not any(layer.is_sliding for layer in cache.layers)
        else ()
    )
    batch = pad([ids + rest] * adapters, pad_id_of(loaded), loaded.model.device, left=True)
    spans = [s for s in prompt.answers if s[1] <= prompt.shared_prefix_length and s[0] > 0]
    chosen = torch.zeros_like(batch.mask, dtype=torch.bool)
    for begin, end in spans:
        chosen[0, begin - 1 : end - 1] = True
    chosen[:, -1] = True
    logits = forward(loaded.model, batch, chosen, cache=cache)
    reading, at = [], 0
    for begin, end in spans:
        reading.append(token_scores(logits[at : at + end - begin], batch.ids[0, begin:end]))
        at += end - begin
    return Prefix(ids, cache, tuple(reading), rest, logits[at:] if rest else None)


def decode(
    loaded: LoadedModel,
    prompts: Sequence[Encoded],
    max_new_tokens: Sequence[int],
    *,
    prefix: Prefix | None = None,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    adapters: int = 1,
    drafts: Sequence[Sequence[int]] = (),
    prefix_filters: Sequence[PrefixFilter] = (),
    max_tokens: int = MAX_BATCH_TOKENS,
    should_stop: Callable[[], bool] | None = None,
) -> list[Generated]:
    """Answers to the prompts, at most as many tokens as each one's room. Greedy, or sampled at a temperature above 0.
    With `readable`, one for each prompt, an answer stops at the first token after which it cannot be read. With `stop`,
    which is asked before every pass, all that are under way stop where they are once it is true.

    Prompts of at most `most` tokens go side by side. Of several attached `adapters`, the answers of the first to all
    prompts, then those of the second, ... With `prefix`, every prompt must begin with its ids. Guesses at the tokens of
    greedy answers, one for each prompt, are checked in one pass, and kept as far as they are what would have been
    decoded; what follows a wrong token is checked once more (Leviathan et al. 2023, "Fast inference from transformers
    via speculative decoding", with a guess for a draft).
    """
    if temperature > 0 or not drafts:
        drafts = [()] * len(prompts)
    known = len(prefix.ids) if prefix else 0
    found: list[dict[int, Generated]] = [{} for _ in range(adapters)]
    lengths = [len(p.ids) + room for p, room in zip(prompts, max_new_tokens, strict=True)]
    begun = prefix is not None and len(prompts) == 1 and not drafts[0] and prefix.covers(prompts[0])

    def answers(group: Sequence[int]) -> list[Generated]:
        rows = [prompts[i].ids[known:] for i in group]
        return _decode(
            loaded, rows, [max_new_tokens[i] for i in group], [prefix_filters[i] if prefix_filters else None for i in group],
            prefix, temperature, generator, adapters, [drafts[i] for i in group], begun, should_stop=should_stop,
        )  # fmt: skip

    for group in _groups(lengths, prompts, prefix, max_tokens // adapters, loaded.supports_padding):
        for some, written in in_halves_on_out_of_memory(group, answers):
            for adapter, one in enumerate(found):
                mine = written[adapter * len(some) : (adapter + 1) * len(some)]
                one |= dict(zip(some, mine, strict=True))
    return [one[i] for one in found for i in range(len(prompts))]


def decode_per_adapter(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[Encoded]],
    max_new_tokens: Sequence[Sequence[int]],
    prefix_filters: Sequence[Sequence[PrefixFilter]],
) -> list[list[Generated]]:
    """Greedy answers of A attached adapters to as many prompts each, [A][n]: all of them side by side."""
    rows = [p.ids for mine in prompts for p in mine]
    room, may = [r for mine in max_new_tokens for r in mine], [r for mine in prefix_filters for r in mine]
    found = iter(_decode(loaded, rows, room, may, None, 0.0, None, 1, [()] * len(rows), False, fixed=True))
    return [[next(found) for _ in mine] for mine in prompts]


def _groups(
    lengths: Sequence[int], prompts: Sequence[Encoded], prefix: Prefix | None, budget: int, pads: bool
) -> list[list[int]]:
    """Indices of the prompts to decode side by side; `lengths` are theirs, with the room of their answers.

    A sliding window counts places in the cache: padding between the prefix and a row would push tokens out of its
    sight. Where a window is shorter than what is read, and where padding does harm otherwise (not `pads`), only prompts
    of one length go together.
    """
    groups = batches_by_tokens(lengths, budget)
    layers = prefix.cache.layers if prefix is not None and prefix.ids else []
    if pads and all(layer.sliding_window >= max(lengths) for layer in layers if layer.is_sliding):
        return groups
    tokens = [len(p.ids) for p in prompts]
    return [list(same) for g in groups for _, same in groupby(sorted(g, key=tokens.__getitem__), tokens.__getitem__)]


def _decode(
    loaded: LoadedModel,
    rows: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    prefix_filters: Sequence[PrefixFilter | None],
    prefix: Prefix | None,
    temperature: float,
    generator: torch.Generator | None,
    adapters: int,
    drafts: Sequence[Sequence[int]],
    begun: bool,
    fixed: bool = False,
    should_stop: Callable[[], bool] | None = None,
) -> list[Generated]:
    """The answers to the rows by the first adapter, then by the second, ... `begun`: the prefix has read the row.
    `fixed`: a row's place in the batch says whose it is, also of one adapter.
    """
    device = loaded.model.device
    each = len(rows)
    cache = new_cache(loaded.model.config) if prefix is None else copy.deepcopy(prefix.cache)
    longest = max(len(guess) for guess in drafts)
    if any(layer.is_sliding for layer in cache.layers) or (
        each * adapters * longest * loaded.model.config.get_text_config().vocab_size > LOGITS
    ):
        drafts = [()] * each  # what slid out of sight cannot be brought back
    if prefix is not None and prefix.remainder and not begun:
        cache.crop(-len(prefix.remainder))
    batch = pad(list(rows) * adapters, pad_id_of(loaded), device, left=True)
    mask = batch.mask
    if prefix is not None and prefix.ids:
        if each > 1:
            cache.batch_repeat_interleave(each)
        mask = torch.cat([mask.new_ones(len(batch.ids), len(prefix.ids)), mask], dim=1)
        batch = PaddedBatch(batch.ids, batch.mask, batch.positions + len(prefix.ids))
    read = [0 if begun else len(row) for row in rows]
    writers = [
        _Writer(loaded, *one) for _ in range(adapters) for one in zip(max_new_tokens, prefix_filters, read, strict=True)
    ]
    pending: list[Sequence[int]] = [
        draft[:limit] for draft, limit in zip(drafts, max_new_tokens, strict=True)
    ] * adapters
    here = list(range(len(writers)))
    """Writers of the batch's rows."""
    known = prefix.logits if prefix is not None and begun else None
    while True:
        if should_stop is not None and should_stop():
            return [w.finish() for w in writers]
        batch, mask = _with_drafts(batch, mask, pending, pad_id_of(loaded))
        width = 1 + max(map(len, pending))
        last = torch.zeros_like(batch.ids, dtype=torch.bool)
        last[:, -width:] = True
        logits = forward(loaded.model, batch, last, mask, cache) if known is None else known
        known = None
        if temperature > 0:
            ids = torch.multinomial((logits / temperature).softmax(-1).cpu(), 1, generator=generator)[:, 0].to(device)
        else:
            ids = logits.argmax(-1)
        scores, tokens = token_scores(logits, ids), ids.view(-1, width).tolist()
        kept = [
            _check(writers[i], tokens[row], scores, row * width, draft)
            for row, (i, draft) in enumerate(zip(here, pending, strict=True))
        ]
        if all(w.done for w in writers):
            return [w.finish() for w in writers]
        # Drafts that were read in vain are hidden, and forgotten where no row has use for their places.
        begin = mask.shape[1] - width + 1
        for row, count in enumerate(kept):
            mask[row, begin + count :] = 0
        if unread := width - 1 - max(kept):
            cache.crop(-unread)
            mask = mask[:, :-unread]
        pending = [
            () if writers[i].done else _rest(draft, count) for i, draft, count in zip(here, pending, kept, strict=True)
        ]
        place = torch.tensor(kept, device=device)[:, None]
        going = torch.tensor([[not writers[i].done] for i in here], device=device)  # the others would leave the context
        positions = batch.positions[:, -width].unsqueeze(1) + place + going
        batch = PaddedBatch(ids.view(-1, width).gather(1, place), torch.ones_like(place), positions)
        live = [row for row, i in enumerate(here) if not writers[i].done]
        if temperature == 0 and adapters == 1 and not fixed and len(live) <= FEWER * len(here):
            rows_left = torch.tensor(live, device=device)
            cache.batch_select_indices(rows_left)
            batch = PaddedBatch(batch.ids[rows_left], batch.mask[rows_left], batch.positions[rows_left])
            mask, pending, here = mask[rows_left], [pending[row] for row in live], [here[row] for row in live]
        mask = torch.cat([mask, mask.new_ones(len(here), 1)], dim=1)


def _with_drafts(
    batch: PaddedBatch, mask: Tensor, drafts: Sequence[Sequence[int]], pad_id: int
) -> tuple[PaddedBatch, Tensor]:
    """The batch with each row's draft behind it, and the mask over the cache and all of it."""
    if not any(drafts):
        return batch, mask
    width, device = max(map(len, drafts)), mask.device
    ids = torch.tensor([[*draft, *[pad_id] * (width - len(draft))] for draft in drafts], device=device)
    seen = torch.tensor([[1] * len(draft) + [0] * (width - len(draft)) for draft in drafts], device=device).to(mask)
    positions = batch.positions[:, -1:] + seen.cumsum(1)
    whole = PaddedBatch(
        torch.cat([batch.ids, ids], 1), torch.cat([batch.mask, seen.to(batch.mask)], 1),
        torch.cat([batch.positions, positions.to(batch.positions)], 1),
    )  # fmt: skip
    return whole, torch.cat([mask, seen], 1)


def _check(writer: _Writer, ids: Sequence[int], scores: TokenScores, at: int, draft: Sequence[int]) -> int:
    """Takes the decoded tokens, whose scores begin at `at`, through the first that is not in the draft; returns how
    many of the draft's were right."""
    for kept, token in enumerate(ids):
        writer.add(token, scores, at + kept)
        if writer.done or kept == len(draft) or token != draft[kept]:
            writer.vain += len(draft) - kept
            return kept
    raise AssertionError("there is one more token than were guessed")


def _rest(draft: Sequence[int], kept: int) -> Sequence[int]:
    """What is guessed after so many right tokens and a wrong one: as if that alone was wrong, where the draft was worth
    it."""
    return draft[kept + 1 :] if kept >= WORTH else ()


class _Writer:
    """Collects one row's tokens until its answer ends, cannot be read any more, or has used up its room."""

    def __init__(self, loaded: LoadedModel, room: int, readable: PrefixFilter | None, read: int) -> None:
        self._tokenizer = loaded.tokenizer
        self._ends = loaded.format.ends
        self._stop_ids = stop_ids(loaded)
        self._room = room
        self._readable = readable
        self._read = read
        self._lost = False
        self._ids: list[int] = []
        self._decoded: list[int] = []
        self._scores: list[tuple[float, float, float, bool]] = []
        self.text = ""
        self.ended = False
        self.vain = 0

    @property
    def done(self) -> bool:
        return self.ended or self._lost or len(self._scores) >= self._room

    def add(self, token: int, scores: TokenScores, row: int) -> None:
        """Takes the next token, unless the answer is done."""
        if self.done:
            return
        self._decoded.append(token)
        self._scores.append((scores.log_probs[row], scores.entropies[row], scores.margins[row], scores.hits[row]))
        if token in self._stop_ids:
            self.ended = True
            return
        self._ids.append(token)
        self.text = self._tokenizer.decode(self._ids, skip_special_tokens=False)
        cuts = [at for end in self._ends if end and (at := self.text.find(end)) >= 0]
        if cuts:
            self.text = self.text[: min(cuts)]
            self.ended = True
        elif self._readable is not None:
            self._lost = not self._readable(self.text)

    def finish(self) -> Generated:
        columns = tuple(zip(*self._scores, strict=True)) or ((), (), (), ())
        return Generated(self.text, TokenScores(*columns), self.ended, tuple(self._decoded), self.vain, self._read)
