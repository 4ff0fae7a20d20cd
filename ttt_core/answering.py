"""Answering and scoring: a model that reads prompts of tasks, as it is or with an adapter, and remembers what it read.

Knows nothing about how adapters are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .adapters import Adapter
from .decoding import TOKENS_AT_ONCE, Generated, Prefix, TokenScores, decode, read_prefix, score_answers
from .encoding import Encoded
from .errors import AdaptationError, ParseError, TooLongError
from .guarded import GuardedModel, memory_errors
from .lora import LoraWeights
from .tasks import Task, Value
from .together import AnsweredAhead
from .window import ContextWindow

GUESSES = 256
"""Answers of the base that are kept as guesses at those of adapters."""
SCORES = 256
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
class Reading:
    """What was seen while reading a prompt: the scores of each demonstration's answer given those before it."""

    answers: tuple[TokenScores, ...]


class Answerer:
    """What a model answers, and how likely it finds answers; its methods are those of `Learner`."""

    def __init__(self, guarded: GuardedModel, window: ContextWindow, ahead: AnsweredAhead) -> None:
        """`ahead` is where answers of adapters are looked for first."""
        self._guarded = guarded
        self._loaded = guarded.loaded
        self._window = window
        self._ahead = ahead
        self._prefix: tuple[LoraWeights | None, Prefix] | None = None
        self._unadapted: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._scored: dict[Encoded, list[TokenScores]] = {}
        self._stop: Callable[[], bool] | None = None

    def read(self, task: Task, adapter: Adapter | None = None) -> Reading:
        """Scores the demonstrations' answers while they are read."""
        with memory_errors("reading the demonstrations"), self._guarded.use(single(adapter)):
            return Reading(self._prefix_of(self._window.encode(task), adapter, whole=True).reading)

    def answers(
        self, tasks: Sequence[Task], adapter: Adapter | None, temperature: float, seed: int,
        guesses: Sequence[Value | None],
    ) -> list[list[Answer]]:  # fmt: skip
        """Answers by each adapter of a cross-fitted one, [A][task]; those that are kept from earlier, or decoded."""
        count = 1 if adapter is None else adapter.weights.count
        if not tasks:
            return [[] for _ in range(count)]
        with memory_errors("answering"), self._guarded.use(adapter):
            asked = [self._window.ask(t) for t in tasks]
            prompts = [a.prompt for a in asked]
            if adapter is not None and temperature == 0 and (known := self._ahead.take(adapter.weights, prompts)):
                return [[self._as_answer(t, g) for t, g in zip(tasks, known, strict=True)]]
            tried = self._tried(tasks, prompts, adapter, guesses)
            prefix = self._shared_prefix(prompts, adapter, whole=len(prompts) == 1 and not tried[0])
            # What is drawn is to follow from the seed alone.
            most = self._guarded.at_once() if temperature == 0 else TOKENS_AT_ONCE
            generated = decode(
                self._loaded, prompts, [a.room for a in asked],
                prefix=prefix, temperature=temperature, generator=torch.Generator().manual_seed(seed), adapters=count,
                guesses=tried, readable=[a.readable for a in asked], most=most, stop=self._stop,
            )  # fmt: skip
            if adapter is None and temperature == 0:
                self._guess_later({p.ids: g.ids for p, g in zip(prompts, generated, strict=True) if g.ids})
            self._guarded.charge(forward=sum(g.read + len(g.ids) + g.vain for g in generated))
            found = [self._as_answer(t, g) for t, g in zip(list(tasks) * count, generated, strict=True)]
            return [found[a * len(tasks) : (a + 1) * len(tasks)] for a in range(count)]

    @contextmanager
    def until(self, stop: Callable[[], bool]) -> Iterator[None]:
        """While inside, decoding asks `stop` before every pass."""
        with self._guarded.turns.use:
            before, self._stop = self._stop, stop
            try:
                yield
            finally:
                self._stop = before

    def guess(self, task: Task) -> Value | None:
        """What the base answered to the task lately."""
        ids = self._unadapted.get(self._window.encode(task).ids)
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
        with memory_errors("scoring answers"), self._guarded.use(single(adapter)):
            prompts = [self._window.encode(t, answer_of(t)) for t in tasks]
            found = {} if adapter is not None else {p: self._scored[p] for p in prompts if p in self._scored}
            new = [p for p in dict.fromkeys(prompts) if p not in found]
            self._guarded.charge(forward=sum(len(p.ids) for p in new))
            found |= zip(new, score_answers(self._loaded, new, self._guarded.at_once()), strict=True)
            if adapter is None:
                self._scored |= found
                _at_most(self._scored, SCORES)
            return [found[p] for p in prompts]

    def forget(self) -> None:
        """Drops what was read, answered and scored."""
        with self._guarded.turns.use:
            self.forget_prompt()
            self._unadapted.clear()
            self.forget_scores()

    def forget_prompt(self) -> None:
        """Drops what was read of the last prompt."""
        with self._guarded.turns.use:
            self._prefix = None

    def forget_scores(self) -> None:
        """Drops the scores of the base."""
        with self._guarded.turns.use:
            self._scored.clear()

    def _tried(
        self, tasks: Sequence[Task], prompts: Sequence[Encoded], adapter: Adapter | None,
        guesses: Sequence[Value | None],
    ) -> list[tuple[int, ...]]:  # fmt: skip
        """The tokens of a guess at each answer; an adapter's, where none is given, is what the base answered."""
        given = guesses or [None] * len(tasks)
        tried = [self._guessed(t, p, v) for t, p, v in zip(tasks, prompts, given, strict=True)]
        if adapter is not None and len(prompts) == 1 and not tried[0]:
            return [self._unadapted.get(prompts[0].ids, ())]
        return tried

    def _guessed(self, task: Task, prompt: Encoded, value: Value | None) -> tuple[int, ...]:
        """The tokens of a guess."""
        if value is None:
            return ()
        try:
            return self._window.encode(task, value).ids[len(prompt.ids) :]
        except TooLongError:
            return ()

    def _guess_later(self, answers: Mapping[tuple[int, ...], tuple[int, ...]]) -> None:
        """Keeps the base's answers to prompts: guesses at what adapters will answer."""
        self._unadapted.update(answers)
        _at_most(self._unadapted, GUESSES)

    def _shared_prefix(self, prompts: Sequence[Encoded], adapter: Adapter | None, whole: bool) -> Prefix | None:
        """As `_prefix_of`, where it is the beginning of all the prompts."""
        first = prompts[0]
        same = all(p.shared == first.shared and p.ids[: p.shared] == first.ids[: first.shared] for p in prompts)
        return self._prefix_of(first, adapter, whole) if same else None

    def _prefix_of(self, prompt: Encoded, adapter: Adapter | None, whole: bool) -> Prefix:
        """The prompt's shared beginning, read now or just before; `whole`: and the rest, where it is read now."""
        owner = adapter.weights if adapter is not None else None
        ids = prompt.ids[: prompt.shared]
        if self._prefix is None or self._prefix[0] is not owner or self._prefix[1].ids != ids:
            count = 1 if owner is None else owner.count
            prefix = read_prefix(self._loaded, prompt, count, whole)
            self._prefix = owner, prefix
            self._guarded.charge(forward=(len(ids) + len(prefix.rest)) * count)
        return self._prefix[1]

    def _as_answer(self, task: Task, generated: Generated) -> Answer:
        try:
            value = self._loaded.format.read(task, generated.text) if generated.ended else None
        except ParseError:
            value = None
        return Answer(value, generated.text, generated.scores, generated.ended)


def _at_most(kept: dict[Any, Any], most: int) -> None:
    """Lets go of the oldest entries beyond so many."""
    while len(kept) > most:
        del kept[next(iter(kept))]


def single(adapter: Adapter | None) -> Adapter | None:
    """The adapter, which must be one alone. Raises `AdaptationError`."""
    if adapter is not None and adapter.weights.count != 1:
        parts = adapter.weights.count
        raise AdaptationError(f"a cross-fitted adapter of {parts} parts has as many answers: ask `answers` for them")
    return adapter


def answer_of(task: Task) -> Value:
    """The right answer of the query. Raises `AdaptationError` where there is none."""
    if task.answer is None:
        raise AdaptationError(f"{task.id}: scoring and training need the right answer of the query; this task has none")
    return task.answer
