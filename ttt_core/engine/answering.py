"""Answers prompts and scores answers, with the base or an adapter, and caches shared prefixes, answers and scores.

Knows nothing about how adapters are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import AdaptationError, ParseError, TooLongError
from ..lora.adapter import Adapter
from ..lora.weights import LoraWeights
from ..model.bounded_cache import ENTRY_BYTES, BoundedCache
from ..model.context_window import ContextWindow, GenerationRequest
from ..model.encoding import Encoded
from ..model.generation import (
    MAX_BATCH_TOKENS,
    Generated,
    Prefix,
    PromptPrefixes,
    TokenScores,
    decode,
    read_prefix,
    read_prefixes,
    score_answers,
)
from ..spans import NoSpan, Span, span
from ..tasks.kinds import kind_of
from ..tasks.task import Task, Value
from .guarded_model import GuardedModel, memory_errors
from .prefetch import AnswerPrefetch

ANSWERS_BYTES = 16 << 20
"""Of the base's answers that are cached as drafts for adapters."""
MAX_CACHED_SCORES = 256
"""Prompts whose scores by the base are cached."""
MAX_KEPT_TOKENS = 1024
"""Tokens of the longest prefix that stays cached beside one of another adapter."""
MAX_VIEW_TOKENS = 2048
"""Tokens of all the prefixes that stay cached where an answer is a vote over several prompts."""


@dataclass(frozen=True)
class Answer:
    """A model's answer to one query."""

    value: Value | None
    """None if the text cannot be parsed as a value of the task's kind."""
    text: str
    scores: TokenScores
    ended: bool
    """Whether the model ended the answer, before the token limit and before the text became invalid."""


@dataclass(frozen=True)
class Completion:
    """What the base model writes after a prompt, as text that is not parsed."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    """Every decoded token, end tokens included."""
    ended: bool
    """Whether the model, or one of the stop texts, ended it; otherwise the limit of tokens did."""


@dataclass(frozen=True)
class PromptScores:
    """Scores of each demonstration's answer given the demonstrations before it, from one pass over the prompt."""

    answers: tuple[TokenScores, ...]


class Answerer:
    """Decodes and scores answers of one model; its methods are those of `Learner`."""

    def __init__(self, guarded: GuardedModel, window: ContextWindow, prefetch: AnswerPrefetch) -> None:
        """`prefetch` is searched first for an adapter's answers."""
        self._guarded = guarded
        self._loaded = guarded.loaded
        self._window = window
        self._prefetch = prefetch
        self._prefixes: list[tuple[LoraWeights | None, Prefix]] = []
        """The adapter and the cached prefix of the last prompts, the last one used at the end."""
        self._max_prefixes = 1
        """Of the base, and of an adapter: queries of one task use both in turn."""
        self._views: dict[bool, tuple[LoraWeights | None, PromptPrefixes]] = {}
        """Whether the base answers -> the adapter and the cached prefixes of the last prompts of a vote."""
        self.base_answers = BoundedCache[tuple[int, ...], tuple[int, ...]](ANSWERS_BYTES, _draft_bytes)
        """Tokens of the base's greedy answers by those of their prompts; the drafts of what adapters answer."""
        self._base_scores: dict[Encoded, list[TokenScores]] = {}
        self.reading: Adapter | None = None
        """The adapter that answers and scores where none is given; None: the base does. Set before the first use."""

    def read(self, task: Task, adapter: Adapter | None = None) -> PromptScores:
        """Scores the demonstrations' answers in one pass over the prompt."""
        adapter = adapter or self.reading
        computing = self._guarded.compute(require_single(adapter))
        with memory_errors("reading the demonstrations"), computing, span("read") as step:
            prompt, charged = self._window.encode(task), self._guarded.charged
            prefix = self._prefix_of(prompt, adapter, whole=True)
            new = self._guarded.charged.forward_tokens - charged.forward_tokens
            step.set(prompt_tokens=len(prompt.ids), shared_prefix_tokens=prompt.shared_prefix_length, new_tokens=new)
            return PromptScores(prefix.demonstration_scores)

    def answers(
        self, tasks: Sequence[Task], adapter: Adapter | None = None, temperature: float = 0.0, seed: int = 0,
        drafts: Sequence[Value | None] = (),
    ) -> list[list[Answer]]:  # fmt: skip
        """As `Learner.answers`: prefetched answers, or decoded ones."""
        given, adapter = adapter, adapter or self.reading
        count = 1 if adapter is None else adapter.weights.adapter_count
        if not tasks:
            return [[] for _ in range(count)]
        self._guarded.begin_phase("answering")
        with memory_errors("answering"), self._guarded.compute(adapter), span("decode") as step:
            step.set(answers=len(tasks), adapters=count, temperature=temperature, seed=seed)
            requests = [self._window.request(t) for t in tasks]
            prompts = [request.prompt for request in requests]
            if given is not None and temperature == 0 and (prefetched := self._prefetch.take(given.weights, prompts)):
                self._record(step, requests, prefetched, prefetched=True)
                return [[self._as_answer(t, g) for t, g in zip(tasks, prefetched, strict=True)]]
            draft_ids = self._drafts(tasks, prompts, given, drafts)
            whole = len(prompts) == 1 and not draft_ids[0]
            one = _have_one_prefix(prompts)
            prefix = self._prefix_of(prompts[0], adapter, whole) if one else self._prefixes_of(prompts, adapter)
            # Sampled tokens depend on the seed alone, not on the free memory.
            max_tokens = self._guarded.max_batch_tokens() if temperature == 0 else MAX_BATCH_TOKENS
            generated = decode(
                self._loaded, prompts, [request.max_new_tokens for request in requests],
                prefix=prefix, temperature=temperature, generator=torch.Generator("cpu").manual_seed(seed),
                adapters=count, drafts=draft_ids, prefix_filters=[request.prefix_filter for request in requests],
                max_tokens=max_tokens, should_stop=self._guarded.should_stop,
            )  # fmt: skip
            if given is None and temperature == 0:
                for prompt, answer in zip(prompts, generated, strict=True):
                    if answer.ids:
                        self.base_answers.put(prompt.ids, answer.ids)
            self._guarded.charge(forward=sum(g.prompt_tokens + len(g.ids) + g.rejected for g in generated))
            self._record(step, requests, generated, draft_tokens=[len(ids) for ids in draft_ids])
            answers = [self._as_answer(t, g) for t, g in zip(list(tasks) * count, generated, strict=True)]
            return [answers[a * len(tasks) : (a + 1) * len(tasks)] for a in range(count)]

    def complete(
        self, task: Task, max_new_tokens: int, *, stops: Sequence[str] = (), temperature: float = 0.0, seed: int = 0,
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:  # fmt: skip
        """The base's text after the prompt of a text task, of at most `max_new_tokens` tokens and before any of
        `stops`: greedy, or sampled at a temperature above 0. The demonstrations are turns of a conversation.

        `on_text` receives the text so far, without what could still become the beginning of an end. Raises
        `TooLongError`.
        """
        with memory_errors("answering"), self._guarded.compute(self.reading), span("decode") as step:
            prompt, prompt_format = self._window.encode(task), self._loaded.format_of(task)
            prompt = replace(prompt, ends=(*prompt.ends, *stops))
            limit = min(max_new_tokens, self._loaded.context_length - len(prompt.ids))
            step.set(answers=1, adapters=1, temperature=temperature, seed=seed)

            def read(text: str) -> str:
                spaced = prompt_format.name != "chat"
                return str(kind_of(task).parse(text.removeprefix(" ") if spaced else text, prompt_format.notation))

            def publish(text: str) -> bool:
                if on_text is not None:
                    on_text(read(text[: _settled_length(text, prompt.ends)]))
                return True

            (generated,) = decode(
                self._loaded, [prompt], [limit], prefix=self._prefix_of(prompt, self.reading, whole=True),
                temperature=temperature, generator=torch.Generator("cpu").manual_seed(seed), prefix_filters=[publish],
                should_stop=self._guarded.should_stop,
            )  # fmt: skip
            self._guarded.charge(forward=generated.prompt_tokens + len(generated.ids))
            return Completion(read(generated.text), len(prompt.ids), len(generated.ids), generated.ended)

    def cached_answer(self, task: Task) -> Value | None:
        """The base's cached answer to the task; None if there is none or it cannot be parsed."""
        ids = self.base_answers.get(self._window.encode(task).ids)
        if ids is None:
            return None
        text = self._loaded.tokenizer.decode(ids, skip_special_tokens=True)
        prompt_format = self._loaded.format_of(task)
        cut = min((at for end in prompt_format.ends if end and (at := text.find(end)) >= 0), default=len(text))
        try:
            return prompt_format.read(task, text[:cut])
        except ParseError:
            return None

    def score(self, tasks: Sequence[Task], adapter: Adapter | None = None) -> list[list[TokenScores]]:
        """Scores of the answers in each prompt; those without an adapter are cached."""
        given, adapter = adapter, adapter or self.reading
        computing = self._guarded.compute(require_single(adapter))
        with memory_errors("scoring answers"), computing, span("score") as step:
            prompts = [self._window.encode(t, require_answer(t)) for t in tasks]
            cached = self._base_scores if given is None else {}
            scores = {p: cached[p] for p in prompts if p in cached}
            new = [p for p in dict.fromkeys(prompts) if p not in scores]
            tokens = sum(len(p.ids) for p in new)
            step.set(prompts_scored=len(new), cached=len(prompts) - len(new), tokens=tokens)
            self._guarded.charge(forward=tokens)
            with self._guarded.reading(tokens):
                scores |= zip(new, score_answers(self._loaded, new, self._guarded.max_batch_tokens()), strict=True)
            if given is None:
                self._base_scores |= scores
                while len(self._base_scores) > MAX_CACHED_SCORES:
                    del self._base_scores[next(iter(self._base_scores))]
            return [scores[p] for p in prompts]

    def clear(self) -> None:
        """Drops the cached prefix, answers and scores."""
        with self._guarded.lock.compute:
            self.clear_prefix()
            self.base_answers.clear()
            self.clear_scores()

    def clear_prefix(self) -> None:
        """Drops the cached prefixes of the last prompts."""
        with self._guarded.lock.compute:
            self._prefixes.clear()
            self._views.clear()

    @contextmanager
    def caching_prefixes(self, count: int) -> Iterator[None]:
        """While inside, the prefixes of `count` prompts are cached; afterwards that of the last one used."""
        with self._guarded.lock.compute:
            before, self._max_prefixes = self._max_prefixes, count
            try:
                yield
            finally:
                self._max_prefixes = before
                if self._prefixes:
                    owner, last = self._prefixes[-1]
                    self._drop_prefixes(owner, before, last.ids)

    def clear_scores(self) -> None:
        """Drops the cached scores of the base."""
        with self._guarded.lock.compute:
            self._base_scores.clear()

    def _record(
        self, step: Span | NoSpan, requests: Sequence[GenerationRequest], generated: Sequence[Generated], **more: Any
    ) -> None:
        """Adds what was decoded, one entry for each answer, to a span."""
        if not step.recording:
            return
        step.set(
            prompt_tokens=[len(request.prompt.ids) for request in requests],
            max_new_tokens=[request.max_new_tokens for request in requests],
            prompts=[self._loaded.tokenizer.decode(request.prompt.ids) for request in requests],
            texts=[answer.text for answer in generated],
            ids=[list(answer.ids) for answer in generated],
            log_probs=[[round(x, 6) for x in answer.scores.log_probs] for answer in generated],
            ended=[answer.ended for answer in generated],
            rejected=[answer.rejected for answer in generated],
            new_prompt_tokens=sum(answer.prompt_tokens for answer in generated),
            **more,
        )

    def _drafts(
        self, tasks: Sequence[Task], prompts: Sequence[Encoded], adapter: Adapter | None,
        drafts: Sequence[Value | None],
    ) -> list[tuple[int, ...]]:  # fmt: skip
        """The tokens of a draft of each answer; without one, an adapter's draft is the base's cached answer."""
        values = drafts or [None] * len(tasks)
        ids = [self._draft_ids(t, p, v) for t, p, v in zip(tasks, prompts, values, strict=True)]
        if adapter is not None and len(prompts) == 1 and not ids[0]:
            return [self.base_answers.get(prompts[0].ids) or ()]
        return ids

    def _draft_ids(self, task: Task, prompt: Encoded, value: Value | None) -> tuple[int, ...]:
        """The tokens of a draft; none if it does not fit."""
        if value is None:
            return ()
        try:
            return self._window.encode(task, value).ids[len(prompt.ids) :]
        except TooLongError:
            return ()

    def _prefix_of(self, prompt: Encoded, adapter: Adapter | None, whole: bool) -> Prefix:
        """The shared prefix of a prompt, cached or from a pass now; with `whole`, that pass includes the rest."""
        owner = adapter.weights if adapter is not None else None
        ids = prompt.ids[: prompt.shared_prefix_length]
        for place, (known_owner, prefix) in enumerate(self._prefixes):
            if known_owner is owner and prefix.ids == ids:
                self._prefixes.append(self._prefixes.pop(place))
                return prefix
        count = 1 if owner is None else owner.adapter_count
        if self._max_prefixes == 1:
            self._drop_prefixes(owner, 0, ids)  # before the next one takes memory
        tokens = len(prompt.ids if whole else ids) * count
        with self._guarded.reading(tokens):
            prefix = read_prefix(self._loaded, prompt, count, whole)
        self._prefixes.append((owner, prefix))
        self._drop_prefixes(owner, self._max_prefixes, ids)
        self._guarded.charge(forward=(len(ids) + len(prefix.remainder)) * count)
        return prefix

    def _prefixes_of(self, prompts: Sequence[Encoded], adapter: Adapter | None) -> PromptPrefixes | None:
        """The shared prefixes of the prompts of a vote, cached or from a pass now; None where they differ in length or
        have too many tokens to keep."""
        length = prompts[0].shared_prefix_length
        if any(prompt.shared_prefix_length != length for prompt in prompts) or not self.keeps_views(
            len(prompts), length
        ):
            return None
        owner = adapter.weights if adapter is not None else None
        ids = tuple(prompt.ids[:length] for prompt in prompts)
        known_owner, known = self._views.get(owner is None, (None, None))
        if known is not None and known_owner is owner and known.ids == ids:
            return known
        self._views.pop(owner is None, None)  # before the next ones take memory
        count = 1 if owner is None else owner.adapter_count
        prefixes = read_prefixes(self._loaded, prompts, count)
        self._views[owner is None] = owner, prefixes
        self._guarded.charge(forward=len(prompts) * length * count)
        return prefixes

    @staticmethod
    def keeps_views(prompts: int, length: int) -> bool:
        """Whether the prefixes of the prompts of a vote, of `length` tokens each, stay cached for further queries."""
        return 0 < prompts * length <= MAX_VIEW_TOKENS

    def _drop_prefixes(self, owner: LoraWeights | None, count: int, ids: Sequence[int]) -> None:
        """Leaves the last `count` prefixes of the owner's side, which is the base's or that of all adapters; and those
        of the other side, unless the prompt's prefix `ids` is long."""
        sides = [(other is None) == (owner is None) for other, _ in self._prefixes]
        own = [place for place, same in enumerate(sides) if same]
        kept = {*own[max(0, len(own) - count) :]}
        if len(ids) <= MAX_KEPT_TOKENS:
            kept |= {place for place, same in enumerate(sides) if not same}
        self._prefixes = [entry for place, entry in enumerate(self._prefixes) if place in kept]

    def _as_answer(self, task: Task, generated: Generated) -> Answer:
        try:
            value = self._loaded.format_of(task).read(task, generated.text) if generated.ended else None
        except ParseError:
            value = None
        return Answer(value, generated.text, generated.scores, generated.ended)


def _settled_length(text: str, ends: Sequence[str]) -> int:
    """Characters of a text that stay whatever follows: without the beginning of an end, or of a character whose bytes
    are not all decoded. A backslash at the end may begin an escaped line break."""
    settled = len(text.rstrip("\ufffd\\"))
    for end in ends:
        sizes = range(min(len(end), len(text)), 0, -1)
        settled = min(settled, len(text) - next((n for n in sizes if text.endswith(end[:n])), 0))
    return settled


def _have_one_prefix(prompts: Sequence[Encoded]) -> bool:
    """Whether the shared prefix of each prompt is that of the first."""
    length = prompts[0].shared_prefix_length
    prefix = prompts[0].ids[:length]
    return all(p.shared_prefix_length == length and p.ids[:length] == prefix for p in prompts)


def _draft_bytes(prompt: tuple[int, ...], answer: tuple[int, ...]) -> int:
    """Bytes of a cached answer with its prompt: integers, and their places in tuples."""
    return ENTRY_BYTES + (28 + 8) * (len(prompt) + len(answer))


def require_single(adapter: Adapter | None) -> Adapter | None:
    """The adapter. Raises `AdaptationError` for one of several folds."""
    if adapter is not None and adapter.weights.adapter_count != 1:
        parts = adapter.weights.adapter_count
        raise AdaptationError(f"a cross-validated adapter of {parts} folds gives {parts} answers; use `answers`")
    return adapter


def require_answer(task: Task) -> Value:
    """The right answer of the query. Raises `AdaptationError` where there is none."""
    if task.answer is None:
        raise AdaptationError(f"{task.id}: scoring and training need the right answer of the query; this task has none")
    return task.answer
