"""Answering and scoring: a model that reads prompts of tasks, as it is or with an adapter, and remembers what it read.

Knows nothing about how adapters are trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import AdaptationError, ParseError, TooLongError
from ..lora.adapter import Adapter
from ..lora.weights import LoraWeights
from ..model.context_window import ContextWindow
from ..model.encoding import Encoded
from ..model.generation import MAX_BATCH_TOKENS, Generated, Prefix, TokenScores, decode, read_prefix, score_answers
from ..tasks.task import Task, Value
from .guarded import GuardedModel, memory_errors
from .prefetch import AnswerPrefetch

MAX_CACHED_ANSWERS = 256
"""Answers of the base that are kept as guesses at those of adapters."""
MAX_CACHED_SCORES = 256
"""Prompts whose scores by the base are kept."""


@dataclass(frozen=True)
class Answer:
    """A model's answer to one query."""

    value: Value | None
    """None where the text is not a value of the task's kind."""
    text: str
    scores: TokenScores
    ended: bool
    """Whether the model ended the answer, rather than running out of room or into what is no value."""


@dataclass(frozen=True)
class PromptScores:
    """What was seen while reading a prompt: the scores of each demonstration's answer given those before it."""

    answers: tuple[TokenScores, ...]


class Answerer:
    """What a model answers, and how likely it finds answers; its methods are those of `Learner`."""

    def __init__(self, guarded: GuardedModel, window: ContextWindow, prefetch: AnswerPrefetch) -> None:
        """`ahead` is where answers of adapters are looked for first."""
        self._guarded = guarded
        self._loaded = guarded.loaded
        self._window = window
        self._prefetch = prefetch
        self._prefix: tuple[LoraWeights | None, Prefix] | None = None
        self._base_answers: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._base_scores: dict[Encoded, list[TokenScores]] = {}

    def read(self, task: Task, adapter: Adapter | None = None) -> PromptScores:
        """Scores the demonstrations' answers while they are read."""
        with memory_errors("reading the demonstrations"), self._guarded.compute(require_single(adapter)):
            return PromptScores(self._prefix_of(self._window.encode(task), adapter, whole=True).demonstration_scores)

    def answers(
        self, tasks: Sequence[Task], adapter: Adapter | None = None, temperature: float = 0.0, seed: int = 0,
        drafts: Sequence[Value | None] = (),
    ) -> list[list[Answer]]:  # fmt: skip
        """As `Learner.answers`: prefetched answers, or decoded ones."""
        count = 1 if adapter is None else adapter.weights.adapter_count
        if not tasks:
            return [[] for _ in range(count)]
        with memory_errors("answering"), self._guarded.compute(adapter):
            asked = [self._window.request(t) for t in tasks]
            prompts = [a.prompt for a in asked]
            if adapter is not None and temperature == 0 and (known := self._prefetch.take(adapter.weights, prompts)):
                return [[self._as_answer(t, g) for t, g in zip(tasks, known, strict=True)]]
            tried = self._drafts(tasks, prompts, adapter, drafts)
            prefix = self._shared_prefix(prompts, adapter, whole=len(prompts) == 1 and not tried[0])
            # What is drawn is to follow from the seed alone.
            most = self._guarded.max_batch_tokens() if temperature == 0 else MAX_BATCH_TOKENS
            generated = decode(
                self._loaded, prompts, [a.max_new_tokens for a in asked],
                prefix=prefix, temperature=temperature, generator=torch.Generator().manual_seed(seed), adapters=count,
                drafts=tried, prefix_filters=[a.prefix_filter for a in asked], max_tokens=most,
                should_stop=self._guarded.should_stop,
            )  # fmt: skip
            if adapter is None and temperature == 0:
                self._remember_answers({p.ids: g.ids for p, g in zip(prompts, generated, strict=True) if g.ids})
            self._guarded.charge(forward=sum(g.prompt_tokens + len(g.ids) + g.rejected for g in generated))
            found = [self._as_answer(t, g) for t, g in zip(list(tasks) * count, generated, strict=True)]
            return [found[a * len(tasks) : (a + 1) * len(tasks)] for a in range(count)]

    def cached_answer(self, task: Task) -> Value | None:
        """What the base answered to the task lately."""
        ids = self._base_answers.get(self._window.encode(task).ids)
        if ids is None:
            return None
        text = self._loaded.tokenizer.decode(ids, skip_special_tokens=True)
        cut = min((at for end in self._loaded.format.ends if end and (at := text.find(end)) >= 0), default=len(text))
        try:
            return self._loaded.format.read(task, text[:cut])
        except ParseError:
            return None

    def score(self, tasks: Sequence[Task], adapter: Adapter | None = None) -> list[list[TokenScores]]:
        """Scores of the answers in each prompt; the base's are kept."""
        with memory_errors("scoring answers"), self._guarded.compute(require_single(adapter)):
            prompts = [self._window.encode(t, require_answer(t)) for t in tasks]
            found = {} if adapter is not None else {p: self._base_scores[p] for p in prompts if p in self._base_scores}
            new = [p for p in dict.fromkeys(prompts) if p not in found]
            self._guarded.charge(forward=sum(len(p.ids) for p in new))
            found |= zip(new, score_answers(self._loaded, new, self._guarded.max_batch_tokens()), strict=True)
            if adapter is None:
                self._base_scores |= found
                _evict_oldest(self._base_scores, MAX_CACHED_SCORES)
            return [found[p] for p in prompts]

    def clear(self) -> None:
        """Drops what was read, answered and scored."""
        with self._guarded.lock.compute:
            self.clear_prefix()
            self._base_answers.clear()
            self.clear_scores()

    def clear_prefix(self) -> None:
        """Drops what was read of the last prompt."""
        with self._guarded.lock.compute:
            self._prefix = None

    def clear_scores(self) -> None:
        """Drops the scores of the base."""
        with self._guarded.lock.compute:
            self._base_scores.clear()

    def _drafts(
        self, tasks: Sequence[Task], prompts: Sequence[Encoded], adapter: Adapter | None,
        drafts: Sequence[Value | None],
    ) -> list[tuple[int, ...]]:  # fmt: skip
        """The tokens of a guess at each answer; an adapter's, where none is given, is what the base answered."""
        given = drafts or [None] * len(tasks)
        tried = [self._draft_ids(t, p, v) for t, p, v in zip(tasks, prompts, given, strict=True)]
        if adapter is not None and len(prompts) == 1 and not tried[0]:
            return [self._base_answers.get(prompts[0].ids, ())]
        return tried

    def _draft_ids(self, task: Task, prompt: Encoded, value: Value | None) -> tuple[int, ...]:
        """The tokens of a guess."""
        if value is None:
            return ()
        try:
            return self._window.encode(task, value).ids[len(prompt.ids) :]
        except TooLongError:
            return ()

    def _remember_answers(self, answers: Mapping[tuple[int, ...], tuple[int, ...]]) -> None:
        """Keeps the base's answers to prompts: guesses at what adapters will answer."""
        self._base_answers.update(answers)
        _evict_oldest(self._base_answers, MAX_CACHED_ANSWERS)

    def _shared_prefix(self, prompts: Sequence[Encoded], adapter: Adapter | None, whole: bool) -> Prefix | None:
        """As `_prefix_of`, where it is the beginning of all the prompts."""
        first = prompts[0]
        same = all(
            p.shared_prefix_length == first.shared_prefix_length
            and p.ids[: p.shared_prefix_length] == first.ids[: first.shared_prefix_length]
            for p in prompts
        )
        return self._prefix_of(first, adapter, whole) if same else None

    def _prefix_of(self, prompt: Encoded, adapter: Adapter | None, whole: bool) -> Prefix:
        """The prompt's shared beginning, read now or just before; `whole`: and the rest, where it is read now."""
        owner = adapter.weights if adapter is not None else None
        ids = prompt.ids[: prompt.shared_prefix_length]
        if self._prefix is None or self._prefix[0] is not owner or self._prefix[1].ids != ids:
            count = 1 if owner is None else owner.adapter_count
            prefix = read_prefix(self._loaded, prompt, count, whole)
            self._prefix = owner, prefix
            self._guarded.charge(forward=(len(ids) + len(prefix.remainder)) * count)
        return self._prefix[1]

    def _as_answer(self, task: Task, generated: Generated) -> Answer:
        try:
            value = self._loaded.format.read(task, generated.text) if generated.ended else None
        except ParseError:
            value = None
        return Answer(value, generated.text, generated.scores, generated.ended)


def _evict_oldest(kept: dict[Any, Any], most: int) -> None:
    """Lets go of the oldest entries beyond so many."""
    while len(kept) > most:
        del kept[next(iter(kept))]


def require_single(adapter: Adapter | None) -> Adapter | None:
    """The adapter, which must be one alone. Raises `AdaptationError`."""
    if adapter is not None and adapter.weights.adapter_count != 1:
        parts = adapter.weights.adapter_count
        raise AdaptationError(f"a cross-fitted adapter of {parts} parts has as many answers: ask `answers` for them")
    return adapter


def require_answer(task: Task) -> Value:
    """The right answer of the query. Raises `AdaptationError` where there is none."""
    if task.answer is None:
        raise AdaptationError(f"{task.id}: scoring and training need the right answer of the query; this task has none")
    return task.answer
