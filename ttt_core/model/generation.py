"""Decoding: answers token by token, in batches, over cached prefixes of the prompts.

Knows nothing about tasks or training. Axes: A adapters, N tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..errors import DeadlineError
from . import lazy
from .encoding import Encoded, PaddedBatch, batches_by_tokens, forward, pad, pad_id_of, stop_ids
from .loading import LoadedModel
from .memory import HalvingQueue

MAX_BATCH_TOKENS = 16384
"""Largest number of tokens in a batch, prompts and answers together."""
COMPACTION_SHARE = 0.75
"""Finished rows are removed from a batch once the share of unfinished rows is at most this."""
MAX_DRAFT_LOGITS = 1 << 26
"""Largest number of logits in one verification of drafts; larger batches are decoded without drafts."""
MIN_ACCEPTED = 8
"""Accepted tokens of a draft after which its remainder is verified again behind a rejected token."""
LOG_PROB_FLOOR = -20.0
"""Log-probabilities of tokens, in nats, are clipped here where they are averaged: lower ones carry no more information,
and one impossible token must not outweigh all others."""
PrefixFilter = Callable[[str], bool]
"""Whether a text can be the beginning of a valid answer."""


def floored(log_prob: float) -> float:
    """The log-probability, at least `LOG_PROB_FLOOR`; that floor for NaN, which a damaged model computes."""
    return max(LOG_PROB_FLOOR, log_prob)  # in this order max() gives the floor for NaN


@dataclass(frozen=True)
class TokenScores:
    """Scores of the tokens of a text under the model, in order."""

    log_probs: tuple[float, ...]
    """Natural logarithm of the probability of the token itself."""
    entropies: tuple[float, ...]
    """Entropy of the distribution over the vocabulary, in nats."""
    margins: tuple[float, ...]
    """Log-probability of the most likely token minus that of the second."""
    hits: tuple[bool, ...]
    """Whether greedy decoding takes this token, or at the end of an answer any other one that ends it."""
    ranks: tuple[int, ...] = ()
    """How many tokens of the vocabulary are likelier; empty for decoded tokens."""

    @property
    def all_hit(self) -> bool:
        """Whether greedy decoding produces exactly this answer."""
        return all(self.hits)

    @property
    def total(self) -> float:
        """Log-probability of the whole text, in nats."""
        return sum(self.log_probs)


def token_scores(logits: Tensor, ids: Tensor) -> TokenScores:
    """Scores of tokens `ids` [N] under `logits` [N, V]."""
    log_probs = logits.log_softmax(-1)
    token_log_probs = log_probs.gather(-1, ids[:, None])[:, 0]
    entropies = -(log_probs.exp() * log_probs.clamp(min=-1e4)).sum(-1)
    top = log_probs.topk(2, dim=-1)
    ranks = (logits > logits.gather(-1, ids[:, None])).sum(-1)
    return TokenScores(
        tuple(token_log_probs.tolist()),
        tuple(entropies.tolist()),
        tuple((top.values[:, 0] - top.values[:, 1]).tolist()),
        tuple((logits.argmax(-1) == ids).tolist()),
        tuple(ranks.tolist()),
    )


@dataclass(frozen=True)
class Generated:
    """The answer that was decoded for one prompt."""

    text: str
    """Without the end marker."""
    scores: TokenScores
    """Of every decoded token, end tokens included."""
    ended: bool
    """Whether the model ended the answer; otherwise a limit, the prefix filter or `should_stop` did."""
    ids: tuple[int, ...]
    """Every decoded token, end tokens included."""
    rejected: int = 0
    """Draft tokens that the model read and rejected."""
    prompt_tokens: int = 0
    """Prompt tokens that were read, without those of the shared prefix."""


@dataclass(frozen=True)
class Prefix:
    """The shared prefix of prompts in a cache; optionally with the remainder of one prompt."""

    ids: tuple[int, ...]
    cache: Any
    """Of `ids` and `remainder`; one row for each attached adapter, or a single row."""
    demonstration_scores: tuple[TokenScores, ...]
    """Scores of each demonstration's answer after the demonstrations before it; by the first attached adapter."""
    remainder: tuple[int, ...] = ()
    """Tokens of the prompt behind the shared prefix."""
    logits: Tensor | None = None
    """Behind the remainder, [A, V]."""

    @property
    def length(self) -> int:
        """Tokens of a prompt that need not be read."""
        return len(self.ids)

    def covers(self, prompt: Encoded) -> bool:
        """Whether the cache holds the whole prompt."""
        return bool(self.remainder) and prompt.ids == self.ids + self.remainder

    def cache_for(self, prompts: Sequence[int], whole: bool = False) -> Any:
        """A copy of the cache with a row for each of the prompts, given by their numbers, and each attached adapter;
        with `whole`, that of the single prompt and its remainder."""
        cache = copy.deepcopy(self.cache)
        if self.remainder and not whole:
            cache.crop(-len(self.remainder))
        if self.ids and len(prompts) > 1:
            cache.batch_repeat_interleave(len(prompts))
        return cache


@dataclass(frozen=True)
class PromptPrefixes:
    """The shared prefixes of several prompts, which have one length, in a cache: other queries of the same
    demonstrations continue them."""

    ids: tuple[tuple[int, ...], ...]
    """Of each prompt."""
    cache: Any
    """The prefixes of all prompts with the first attached adapter, then with the second, ..."""
    adapters: int = 1

    @property
    def length(self) -> int:
        """Tokens of a prompt that need not be read."""
        return len(self.ids[0])

    def cache_for(self, prompts: Sequence[int], whole: bool = False) -> Any:
        """A copy of the cache with a row for each of the prompts, given by their numbers, and each attached adapter."""
        cache, count = copy.deepcopy(self.cache), len(self.ids)
        if list(prompts) != list(range(count)):
            rows = [a * count + prompt for a in range(self.adapters) for prompt in prompts]
            cache.batch_select_indices(torch.tensor(rows, device=cache.layers[0].keys.device))
        return cache


def score_answers(
    loaded: LoadedModel, prompts: Sequence[Encoded], max_tokens: int = MAX_BATCH_TOKENS
) -> list[list[TokenScores]]:
    """Teacher-forced scores of every answer in each prompt, in order.

    A batch holds at most `max_tokens` tokens, and fewer where memory runs out.
    """
    scores: list[list[TokenScores]] = [[] for _ in prompts]
    groups = HalvingQueue(batches_by_tokens([len(p.ids) for p in prompts], max_tokens))
    for group in groups:
        with groups.halving(group):
            for index, row in zip(group, _score_once(loaded, [prompts[i] for i in group]), strict=True):
                scores[index] = row
    return scores


def _score_once(loaded: LoadedModel, prompts: Sequence[Encoded]) -> list[list[TokenScores]]:
    """As `score_answers`, in one forward pass."""
    batch = pad([p.ids for p in prompts], pad_id_of(loaded), loaded.model.device, left=False)
    positions = torch.zeros_like(batch.mask, dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        for begin, end in prompt.answers:
            positions[i, max(0, begin - 1) : end - 1] = True
    logits = forward(loaded.model, batch, positions)
    targets = batch.ids[:, 1:][positions[:, :-1]]
    scores, offset = [], 0
    for prompt in prompts:
        row = []
        for begin, end in prompt.answers:
            size = end - max(1, begin)
            at = slice(offset, offset + size)
            row.append(_answer_scores(loaded, prompt, logits[at], targets[at]))
            offset += size
        scores.append(row)
    return scores


def _answer_scores(loaded: LoadedModel, prompt: Encoded, logits: Tensor, ids: Tensor) -> TokenScores:
    """Scores of an answer of a prompt with its end, `ids` [N], under `logits` [N, V]. A model may end it otherwise than
    the prompt does, with two line ends as two tokens where the prompt has one for both, or with a token of its own."""
    scores = token_scores(logits, ids)
    if scores.all_hit:
        return scores
    answer = ids.tolist()
    begin = _begin_of_end(loaded, answer, prompt.ends)
    if begin == len(answer) or scores.hits[begin]:
        return scores
    text = loaded.tokenizer.decode(answer[:begin], skip_special_tokens=False)
    if not _ends_answer(loaded, int(logits[begin].argmax()), text, prompt.ends):
        return scores
    return replace(scores, hits=(*scores.hits[:begin], *[True] * (len(answer) - begin)))


def _begin_of_end(loaded: LoadedModel, answer: Sequence[int], ends: Sequence[str]) -> int:
    """The index at which the end of an answer begins; its length where it has none."""
    if answer and answer[-1] in stop_ids(loaded):
        return len(answer) - 1
    longest = max(map(len, ends), default=0)
    for begin in range(len(answer) - 1, -1, -1):
        text = loaded.tokenizer.decode(answer[begin:], skip_special_tokens=False)
        if text in ends:
            return begin
        if len(text) > longest:
            break
    return len(answer)


def _ends_answer(loaded: LoadedModel, token: int, answer: str, ends: Sequence[str]) -> bool:
    """Whether a token behind an answer ends it: one at which decoding stops, the text of an end, or white space with
    which an end begins and which the answer itself does not contain, such as the line end between the rows of a grid.
    """
    if token in stop_ids(loaded):
        return True
    text = loaded.tokenizer.decode([token], skip_special_tokens=False)
    begins = bool(text) and text.isspace() and text not in answer
    return any(text.startswith(end) or (begins and end.startswith(text)) for end in ends if end)


def read_prefix(loaded: LoadedModel, prompt: Encoded, adapters: int = 1, to_the_end: bool = False) -> Prefix:
    """Reads the shared prefix of a prompt with each of the attached adapters.

    With `to_the_end` the same pass reads the remainder of the prompt as well, where the cache can be cropped again.
    """
    ids = prompt.ids[: prompt.shared_prefix_length]
    cache = lazy.kv_cache.new_cache(loaded.model.config)
    if not ids:
        return Prefix(ids, cache, ())
    remainder: tuple[int, ...] = ()
    if to_the_end and not any(layer.is_sliding for layer in cache.layers):
        remainder = prompt.ids[prompt.shared_prefix_length :]
    batch = pad([ids + remainder] * adapters, pad_id_of(loaded), loaded.model.device, left=True)
    spans = [s for s in prompt.answers if s[1] <= prompt.shared_prefix_length and s[0] > 0]
    positions = torch.zeros_like(batch.mask, dtype=torch.bool)
    for begin, end in spans:
        positions[0, begin - 1 : end - 1] = True
    positions[:, -1] = True
    logits = forward(loaded.model, batch, positions, cache=cache)
    scores, offset = [], 0
    for begin, end in spans:
        at = slice(offset, offset + end - begin)
        scores.append(_answer_scores(loaded, prompt, logits[at], batch.ids[0, begin:end]))
        offset += end - begin
    return Prefix(ids, cache, tuple(scores), remainder, logits[offset:] if remainder else None)


def read_prefixes(loaded: LoadedModel, prompts: Sequence[Encoded], adapters: int = 1) -> PromptPrefixes:
    """Reads the shared prefixes of several prompts, of one length above 0, with each of the attached adapters."""
    ids = tuple(prompt.ids[: prompt.shared_prefix_length] for prompt in prompts)
    cache = lazy.kv_cache.new_cache(loaded.model.config)
    batch = pad(list(ids) * adapters, pad_id_of(loaded), loaded.model.device, left=True)
    forward(loaded.model, batch, _last_positions(batch.ids, 1), cache=cache)
    return PromptPrefixes(ids, cache, adapters)


def decode(
    loaded: LoadedModel,
    prompts: Sequence[Encoded],
    max_new_tokens: Sequence[int],
    *,
    prefix: Prefix | PromptPrefixes | None = None,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    adapters: int = 1,
    drafts: Sequence[Sequence[int]] = (),
    prefix_filters: Sequence[PrefixFilter] = (),
    max_tokens: int = MAX_BATCH_TOKENS,
    should_stop: Callable[[], bool] | None = None,
) -> list[Generated]:
    """Answers to the prompts, of at most `max_new_tokens` each; greedy, or sampled at a temperature above 0.

    With several attached `adapters`: the answers of the first to all prompts, then those of the second, ... With
    `prefix`, every prompt must begin with its ids, or with those of its own prefix. With `prefix_filters`, one for each
    prompt, an answer stops at the first token after which it cannot be valid. `should_stop` is called before every
    pass; once it is true, all answers of the batch stop. A batch holds at most `max_tokens` tokens, and fewer where
    memory runs out.

    `drafts` of greedy answers, one for each prompt, are verified in one pass and accepted up to the first token that
    differs from the decoded one (Leviathan et al. 2023, "Fast inference from transformers via speculative decoding").
    """
    if temperature > 0 or not drafts:
        drafts = [()] * len(prompts)
    prefix_length = prefix.length if prefix else 0
    whole = prefix if isinstance(prefix, Prefix) and len(prompts) == 1 and not drafts[0] else None
    whole = whole if whole is not None and whole.covers(prompts[0]) else None
    lengths = [len(p.ids) + limit for p, limit in zip(prompts, max_new_tokens, strict=True)]
    groups = HalvingQueue(_groups(lengths, prompts, prefix, max_tokens // adapters, loaded.supports_padding))
    answers: dict[int, Generated] = {}
    for group in groups:
        with groups.halving(group):
            generated = _BatchDecoder(
                loaded=loaded, rows=[prompts[i].ids[prefix_length:] for i in group],
                ends=[prompts[i].ends for i in group],
                max_new_tokens=[max_new_tokens[i] for i in group],
                prefix_filters=[prefix_filters[i] if prefix_filters else None for i in group],
                drafts=[drafts[i] for i in group], prefix_length=prefix_length,
                prefix_cache=prefix.cache_for(group, whole is not None) if prefix else None,
                prefix_logits=None if whole is None else whole.logits, adapters=adapters,
                temperature=temperature, generator=generator, should_stop=should_stop,
            ).run()  # fmt: skip
            answers |= zip([a * len(prompts) + i for a in range(adapters) for i in group], generated, strict=True)
    return [answers[i] for i in range(adapters * len(prompts))]


def decode_per_adapter(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[Encoded]],
    max_new_tokens: Sequence[Sequence[int]],
    prefix_filters: Sequence[Sequence[PrefixFilter]],
) -> list[list[Generated]]:
    """Greedy answers of A attached adapters to equally many prompts each, [A][n], in one batch."""
    rows = [p.ids for mine in prompts for p in mine]
    decoder = _BatchDecoder(
        loaded=loaded,
        rows=rows,
        ends=[p.ends for mine in prompts for p in mine],
        max_new_tokens=[limit for mine in max_new_tokens for limit in mine],
        prefix_filters=[accepts for mine in prefix_filters for accepts in mine],
        drafts=[()] * len(rows),
        rows_belong_to_adapters=True,
    )
    answers = iter(decoder.run())
    return [[next(answers) for _ in mine] for mine in prompts]


def _groups(
    lengths: Sequence[int],
    prompts: Sequence[Encoded],
    prefix: Prefix | PromptPrefixes | None,
    budget: int,
    supports_padding: bool,
) -> list[list[int]]:
    """Indices of the prompts of each batch; `lengths` are those of prompts and answers together.

    A sliding window counts places in the cache: padding between the prefix and a row would push tokens out of it. Where
    a window is shorter than the batch, or the model does not support padding, a batch holds prompts of one length.
    """
    groups = batches_by_tokens(lengths, budget)
    layers = prefix.cache.layers if prefix is not None and prefix.length else []
    if supports_padding and all(layer.sliding_window >= max(lengths) for layer in layers if layer.is_sliding):
        return groups
    tokens = [len(p.ids) for p in prompts]
    return [list(same) for g in groups for _, same in groupby(sorted(g, key=tokens.__getitem__), tokens.__getitem__)]


@dataclass(kw_only=True)
class _BatchDecoder:
    """Decodes one batch: the answers to the rows by the first adapter, then by the second, ..."""

    loaded: LoadedModel
    rows: Sequence[Sequence[int]]
    """Token ids of the prompts behind the prefix."""
    ends: Sequence[tuple[str, ...]]
    """Texts that end the answer of each row."""
    max_new_tokens: Sequence[int]
    prefix_filters: Sequence[PrefixFilter | None]
    drafts: Sequence[Sequence[int]]
    prefix_length: int = 0
    """Tokens of each prompt before its row."""
    prefix_cache: Any = None
    """The cache of these tokens, which is changed."""
    prefix_logits: Tensor | None = None
    """Behind the row, where the cache holds that (single) row as well."""
    adapters: int = 1
    """Attached adapters that each answer all rows."""
    rows_belong_to_adapters: bool = False
    """Whether a row's place in the batch decides its adapter, so that no row may be removed."""
    temperature: float = 0.0
    generator: torch.Generator | None = None
    should_stop: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        rows, covered, cache = self.rows, self.prefix_logits is not None, self.prefix_cache
        if cache is None:
            cache = lazy.kv_cache.new_cache(self.loaded.model.config)
        logits = len(rows) * self.adapters * max(map(len, self.drafts)) * self.loaded.vocabulary_size
        holes = len(rows) * self.adapters > 1 and not self.loaded.supports_padding
        if any(layer.is_sliding for layer in cache.layers) or logits > MAX_DRAFT_LOGITS or holes:
            # A sliding layer cannot be cropped; rows that accept different numbers of tokens leave masked places.
            self.drafts = [()] * len(rows)
        batch = pad(list(rows) * self.adapters, pad_id_of(self.loaded), self.loaded.model.device, left=True)
        mask = batch.mask
        if self.prefix_length:
            mask = torch.cat([mask.new_ones(len(batch.ids), self.prefix_length), mask], dim=1)
            batch = PaddedBatch(batch.ids, batch.mask, batch.positions + self.prefix_length)
        self._cache, self._batch, self._mask = cache, batch, mask
        read = [0 if covered else len(row) for row in rows]
        self._answers = [
            _AnswerBuilder(self.loaded, *settings)
            for _ in range(self.adapters)
            for settings in zip(self.ends, self.max_new_tokens, self.prefix_filters, read, strict=True)
        ]
        self._active = list(self._answers)
        """Answers of the batch's rows."""
        pairs = zip(self.drafts, self.max_new_tokens, strict=True)
        self._drafts: list[Sequence[int]] = [draft[:limit] for draft, limit in pairs] * self.adapters

    def run(self) -> list[Generated]:
        """Decodes until every answer is complete, or `should_stop` is true."""
        while self.should_stop is None or not self.should_stop():
            width = self._append_drafts()  # 1. the last token of each row, and its draft
            logits, self.prefix_logits = self.prefix_logits, None
            if logits is None:  # 2. logits of both, where the cache does not hold the whole prompt
                positions = _last_positions(self._batch.ids, width)
                try:
                    logits = forward(self.loaded.model, self._batch, positions, self._mask, self._cache)
                except DeadlineError:
                    break
            ids = self._choose_tokens(logits)  # 3. greedy or sampled
            accepted = self._verify(ids, logits, width)  # 4. tokens up to the first that differs from the draft
            if all(answer.done for answer in self._answers):
                break
            self._discard_rejected(accepted, width)  # 5. out of the cache, or masked
            self._advance(ids, accepted, width)  # 6. the next token of each row
            self._remove_finished_rows()  # 7. where few are left
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._active), 1)], dim=1)
        return [answer.finish() for answer in self._answers]

    def _append_drafts(self) -> int:
        """Adds the drafts to the batch; returns the number of tokens of each row to choose."""
        self._batch, self._mask = _with_drafts(self._batch, self._mask, self._drafts, pad_id_of(self.loaded))
        return 1 + max(map(len, self._drafts))

    def _choose_tokens(self, logits: Tensor) -> Tensor:
        if self.temperature <= 0:
            return logits.argmax(-1)
        probabilities = (logits / self.temperature).softmax(-1).cpu()
        return torch.multinomial(probabilities, 1, generator=self.generator)[:, 0].to(logits.device)

    def _verify(self, ids: Tensor, logits: Tensor, width: int) -> list[int]:
        """Adds tokens to the answers; returns how many tokens of each row's draft were accepted."""
        scores, tokens = token_scores(logits, ids), ids.view(-1, width).tolist()
        rows = enumerate(zip(self._active, self._drafts, strict=True))
        return [_verify_draft(answer, tokens[row], scores, row * width, draft) for row, (answer, draft) in rows]

    def _discard_rejected(self, accepted: Sequence[int], width: int) -> None:
        """Masks rejected draft tokens, and crops those that every row rejected."""
        begin = self._mask.shape[1] - width + 1
        for row, count in enumerate(accepted):
            self._mask[row, begin + count :] = 0
        if surplus := width - 1 - max(accepted):
            self._cache.crop(-surplus)
            self._mask = self._mask[:, :-surplus]

    def _advance(self, ids: Tensor, accepted: Sequence[int], width: int) -> None:
        """Makes the last decoded token of each row the batch, and the remainders of the drafts the next drafts."""
        rows = list(zip(self._active, self._drafts, accepted, strict=True))
        self._drafts = [() if answer.done else _draft_remainder(draft, count) for answer, draft, count in rows]
        places = torch.tensor(accepted, device=ids.device)[:, None]
        # Rows that are done stay at their position, which might otherwise exceed the context.
        unfinished = torch.tensor([[not answer.done] for answer in self._active], device=ids.device)
        positions = self._batch.positions[:, -width].unsqueeze(1) + places + unfinished
        self._batch = PaddedBatch(ids.view(-1, width).gather(1, places), torch.ones_like(places), positions)

    def _remove_finished_rows(self) -> None:
        """Removes them from the batch and the cache, where a row's place does not matter and few are unfinished."""
        rows = [row for row, answer in enumerate(self._active) if not answer.done]
        fixed = self.temperature > 0 or self.adapters > 1 or self.rows_belong_to_adapters
        if fixed or len(rows) > COMPACTION_SHARE * len(self._active):
            return
        index = torch.tensor(rows, device=self._batch.ids.device)
        self._cache.batch_select_indices(index)
        batch = self._batch
        self._batch = PaddedBatch(batch.ids[index], batch.mask[index], batch.positions[index])
        self._mask = self._mask[index]
        self._drafts = [self._drafts[row] for row in rows]
        self._active = [self._active[row] for row in rows]


def _last_positions(ids: Tensor, count: int) -> Tensor:
    """True at the last `count` of each row's positions, [B, T]."""
    positions = torch.zeros_like(ids, dtype=torch.bool)
    positions[:, -count:] = True
    return positions


def _with_drafts(
    batch: PaddedBatch, mask: Tensor, drafts: Sequence[Sequence[int]], pad_id: int
) -> tuple[PaddedBatch, Tensor]:
    """The batch with each row's draft appended, and the mask over the cache and the batch."""
    if not any(drafts):
        return batch, mask
    width, device = max(map(len, drafts)), mask.device
    ids = torch.tensor([[*draft, *[pad_id] * (width - len(draft))] for draft in drafts], device=device)
    draft_mask = torch.tensor([[1] * len(draft) + [0] * (width - len(draft)) for draft in drafts], device=device).to(
        mask
    )
    positions = batch.positions[:, -1:] + draft_mask.cumsum(1)
    extended = PaddedBatch(
        torch.cat([batch.ids, ids], 1), torch.cat([batch.mask, draft_mask.to(batch.mask)], 1),
        torch.cat([batch.positions, positions.to(batch.positions)], 1),
    )  # fmt: skip
    return extended, torch.cat([mask, draft_mask], 1)


def _verify_draft(
    answer: _AnswerBuilder, ids: Sequence[int], scores: TokenScores, offset: int, draft: Sequence[int]
) -> int:
    """Adds the decoded tokens, whose scores begin at `offset`, up to the first that differs from the draft; returns how
    many draft tokens were accepted."""
    for accepted, token in enumerate(ids):
        answer.add(token, scores, offset + accepted)
        if answer.done or accepted == len(draft) or token != draft[accepted]:
            answer.rejected += len(draft) - accepted
            return accepted
    raise AssertionError("there is one token more than the draft has")


def _draft_remainder(draft: Sequence[int], accepted: int) -> Sequence[int]:
    """The next draft: what follows the rejected token, where enough tokens before it were accepted."""
    return draft[accepted + 1 :] if accepted >= MIN_ACCEPTED else ()


class _AnswerBuilder:
    """Collects one row's tokens until the answer ends, becomes invalid, or reaches its limit."""

    def __init__(
        self, loaded: LoadedModel, ends: tuple[str, ...], max_new_tokens: int, prefix_filter: PrefixFilter | None,
        prompt_tokens: int,
    ) -> None:  # fmt: skip
        self._tokenizer = loaded.tokenizer
        self._end_markers = ends
        self._stop_ids = stop_ids(loaded)
        self._max_new_tokens = max_new_tokens
        self._prefix_filter = prefix_filter
        self._prompt_tokens = prompt_tokens
        self._invalid = False
        self._text_ids: list[int] = []
        self._ids: list[int] = []
        self._scores: list[tuple[float, float, float, bool]] = []
        self.text = ""
        self.ended = False
        self.rejected = 0

    @property
    def done(self) -> bool:
        return self.ended or self._invalid or len(self._scores) >= self._max_new_tokens

    def add(self, token: int, scores: TokenScores, index: int) -> None:
        """Adds the next token, whose scores stand at `index`, unless the answer is done."""
        if self.done:
            return
        self._ids.append(token)
        self._scores.append(
            (scores.log_probs[index], scores.entropies[index], scores.margins[index], scores.hits[index])
        )
        if token in self._stop_ids:
            self.ended = True
            return
        self._text_ids.append(token)
        self.text = self._tokenizer.decode(self._text_ids, skip_special_tokens=False)
        ends = [at for marker in self._end_markers if marker and (at := self.text.find(marker)) >= 0]
        if ends:
            self.text = self.text[: min(ends)]
            self.ended = True
        elif self._prefix_filter is not None:
            self._invalid = not self._prefix_filter(self.text)

    def finish(self) -> Generated:
        """The answer as far as it was decoded."""
        columns = tuple(zip(*self._scores, strict=True)) or ((), (), (), ())
        return Generated(
            text=self.text,
            scores=TokenScores(*columns),
            ended=self.ended,
            ids=tuple(self._ids),
            rejected=self.rejected,
            prompt_tokens=self._prompt_tokens,
        )
