"""Answering and scoring: a model that reads prompts of tasks, as it is or with an adapter, and remembers what it read.

Knows nothing about how adapters are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from .adapters import Adapter
from .decoding import TOKENS_AT_ONCE, Generated, Prefix, TokenScores, decode, read_prefix, score_answers
from .encoding import Encoded, encode
from .errors import AdaptationError, ParseError, TooLongError
from .guarded import GuardedModel, memory_errors
from .kinds import kind_of
from .lora import LoraWeights
from .model import LoadedModel
from .tasks import Task, Value

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


class Answerer(GuardedModel):
    """A guarded model that answers tasks and scores answers."""

    def __init__(
        self, loaded: LoadedModel, verify: Literal["pointers", "full"] = "pointers", memory_bytes: int | None = None
    ) -> None:
        """As `GuardedModel`."""
        super().__init__(loaded, verify, memory_bytes)
        self._prefix: tuple[LoraWeights | None, Prefix] | None = None
        self._unadapted: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._scored: dict[Encoded, list[TokenScores]] = {}
        self._stop: Callable[[], bool] | None = None

    # --- prompts ---------------------------------------------------------------------------------------------------

    def encode(self, task: Task, answer: Value | None = None) -> Encoded:
        """The task's prompt as ids. Raises `TooLongError` when it does not fit in the context with its answer; where
        none is given, with one as long as the shortest output shown.
        """
        least = 0 if answer is not None else min(min(self._sizes(task), default=1), self.room(task))
        return encode(self.loaded, task, answer, least)

    def fits(self, task: Task) -> bool:
        """Whether the task's prompt and its answer fit in the context."""
        try:
            self.encode(task)
        except TooLongError:
            return False
        return True

    def length(self, task: Task) -> int:
        """Tokens of the task's prompt, with its answer where that is known. Raises `TooLongError` as `encode`."""
        return len(self.encode(task, task.answer).ids)

    def room(self, task: Task) -> int:
        """Tokens that an answer may take, where the prompt leaves as many: twice the longest output shown or the query,
        and 16 more.
        """
        (query,) = self._tokens(task, [task.query])
        return 2 * max([*self._sizes(task), query]) + 16

    def _sizes(self, task: Task) -> list[int]:
        """Tokens of each output shown."""
        return self._tokens(task, [d.output for d in task.demonstrations])

    def _tokens(self, task: Task, values: Sequence[Value]) -> list[int]:
        kind, notation = kind_of(task), self.loaded.format.notation
        return [len(self.loaded.tokens(kind.render(v, notation))) for v in values]

    def _left(self, task: Task, prompt: Encoded) -> int:
        """Tokens that the answer to a prompt may take."""
        return min(self.room(task), self.loaded.context - len(prompt.ids))

    # --- answering -------------------------------------------------------------------------------------------------

    def read(self, task: Task, adapter: Adapter | None = None) -> Reading:
        """Reads the demonstrations and scores each answer on the way. What was read is kept for `answer`."""
        with memory_errors("reading the demonstrations"), self._use(_single(adapter)):
            return Reading(self._prefix_of(self.encode(task), adapter, whole=True).reading)

    def answer(
        self,
        tasks: Sequence[Task],
        adapter: Adapter | None = None,
        *,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Answer]:
        """One answer per task, decoded in batches: greedy, or sampled at a temperature above 0."""
        return self.answers(tasks, _single(adapter), temperature=temperature, seed=seed)[0]

    def answers(
        self,
        tasks: Sequence[Task],
        adapter: Adapter | None = None,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        guesses: Sequence[Value | None] = (),
    ) -> list[list[Answer]]:
        """As `answer`, by each adapter of a cross-fitted one: [A][task]. Guesses at the values, one for each task,
        change how quickly they are found and nothing else.
        """
        count = 1 if adapter is None else adapter.weights.count
        if not tasks:
            return [[] for _ in range(count)]
        with memory_errors("answering"), self._use(adapter):
            prompts = [self.encode(t) for t in tasks]
            if adapter is not None and temperature == 0 and (known := self._answered_ahead(adapter, prompts)):
                return [[self._as_answer(t, g) for t, g in zip(tasks, known, strict=True)]]
            first = prompts[0]
            same = all(p.shared == first.shared and p.ids[: p.shared] == first.ids[: first.shared] for p in prompts)
            tried = [
                self._guessed(t, p, v) for t, p, v in zip(tasks, prompts, guesses or [None] * len(tasks), strict=True)
            ]
            if adapter is not None and len(prompts) == 1 and not tried[0]:
                tried = [self._unadapted.get(first.ids, ())]
            prefix = self._prefix_of(first, adapter, whole=len(prompts) == 1 and not tried[0]) if same else None
            most = self._at_once() if temperature == 0 else TOKENS_AT_ONCE  # what is drawn is to follow from the seed
            generated = decode(
                self.loaded, prompts, [self._left(t, p) for t, p in zip(tasks, prompts, strict=True)],
                prefix=prefix, temperature=temperature, generator=torch.Generator().manual_seed(seed), adapters=count,
                guesses=tried, readable=[partial(self.loaded.format.may_begin, t) for t in tasks], most=most,
                stop=self._stop,
            )  # fmt: skip
            if adapter is None and temperature == 0:
                self._guess_later({p.ids: g.ids for p, g in zip(prompts, generated, strict=True) if g.ids})
            skipped = len(prefix.ids) if prefix else 0
            if prefix and len(prompts) == 1 and not tried[0] and prefix.begins(first):
                skipped = len(first.ids)
            read = sum(len(p.ids) - skipped for p in prompts) * count
            self._charge(forward=read + sum(len(g.ids) + g.vain for g in generated))
            found = [self._as_answer(t, g) for t, g in zip(list(tasks) * count, generated, strict=True)]
            return [found[a * len(tasks) : (a + 1) * len(tasks)] for a in range(count)]

    @contextmanager
    def until(self, stop: Callable[[], bool]) -> Iterator[None]:
        """While inside, answers end where they are once `stop()` is true, which is asked before every pass: what was
        decoded by then may not be readable. What `stop` raises, `answers` raises.
        """
        with self._lock:
            before, self._stop = self._stop, stop
            try:
                yield
            finally:
                self._stop = before

    def guess(self, task: Task) -> Value | None:
        """What the base answered to a task lately, where that is known and can be read."""
        ids = self._unadapted.get(self.encode(task).ids)
        if ids is None:
            return None
        text = self.loaded.tokenizer.decode(ids, skip_special_tokens=True)
        cut = min((at for end in self.loaded.format.ends if end and (at := text.find(end)) >= 0), default=len(text))
        try:
            return self.loaded.format.read(task, text[:cut])
        except ParseError:
            return None

    def score(self, tasks: Sequence[Task], adapter: Adapter | None = None) -> list[list[TokenScores]]:
        """For each task (its right answer given), the teacher-forced scores of every answer in its prompt, in order.

        The last one's `all_hit` says whether greedy decoding would answer the query right: no decoding is needed. What
        the base was asked lately is not worked out again.
        """
        with memory_errors("scoring answers"), self._use(_single(adapter)):
            prompts = [self.encode(t, answer_of(t)) for t in tasks]
            found = {} if adapter is not None else {p: self._scored[p] for p in prompts if p in self._scored}
            new = [p for p in dict.fromkeys(prompts) if p not in found]
            self._charge(forward=sum(len(p.ids) for p in new))
            found |= zip(new, score_answers(self.loaded, new, self._at_once()), strict=True)
            if adapter is None:
                self._scored |= found
                _at_most(self._scored, SCORES)
            return [found[p] for p in prompts]

    def forget(self) -> None:
        """Drops what was read, answered and scored."""
        with self._lock:
            self._prefix = None
            self._unadapted.clear()
            self._scored.clear()

    def forget_scores(self) -> None:
        """Drops the scores of the base: what is scored next costs what it would have, had nothing been asked before."""
        with self._lock:
            self._scored.clear()

    def _answered_ahead(self, adapter: Adapter, prompts: Sequence[Encoded]) -> list[Generated]:
        """What an adapter answered to the prompts before it was asked; nothing where one is missing."""
        return []

    def _guessed(self, task: Task, prompt: Encoded, value: Value | None) -> tuple[int, ...]:
        """The tokens of a guess."""
        if value is None:
            return ()
        try:
            return self.encode(task, value).ids[len(prompt.ids) :]
        except TooLongError:
            return ()

    def _guess_later(self, answers: Mapping[tuple[int, ...], tuple[int, ...]]) -> None:
        """Keeps the base's answers to prompts: guesses at what adapters will answer."""
        self._unadapted.update(answers)
        _at_most(self._unadapted, GUESSES)

    def _prefix_of(self, prompt: Encoded, adapter: Adapter | None, whole: bool) -> Prefix:
        """The prompt's shared beginning, read now or just before; `whole`: and the rest, where it is read now."""
        owner = adapter.weights if adapter is not None else None
        ids = prompt.ids[: prompt.shared]
        if self._prefix is None or self._prefix[0] is not owner or self._prefix[1].ids != ids:
            count = 1 if owner is None else owner.count
            prefix = read_prefix(self.loaded, prompt, count, whole)
            self._prefix = owner, prefix
            self._charge(forward=(len(ids) + len(prefix.rest)) * count)
        return self._prefix[1]

    def _as_answer(self, task: Task, generated: Generated) -> Answer:
        try:
            value = self.loaded.format.read(task, generated.text) if generated.ended else None
        except ParseError:
            value = None
        return Answer(value, generated.text, generated.scores, generated.ended)


def _at_most(kept: dict[Any, Any], most: int) -> None:
    """Lets go of the oldest entries beyond so many."""
    while len(kept) > most:
        del kept[next(iter(kept))]


def _single(adapter: Adapter | None) -> Adapter | None:
    """The adapter, which must be one alone."""
    if adapter is not None and adapter.weights.count != 1:
        parts = adapter.weights.count
        raise AdaptationError(f"a cross-fitted adapter of {parts} parts has as many answers: ask `answers` for them")
    return adapter


def answer_of(task: Task) -> Value:
    if task.answer is None:
        raise AdaptationError(f"{task.id}: scoring and training need the right answer of the query; this task has none")
    return task.answer
