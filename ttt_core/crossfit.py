"""Cross-fitted training: adapters that each leave some demonstrations out, and what those say of it.

Every demonstration is answered once by the adapter that never saw it, and by the base from the same prompt. The
difference is an estimate of what training gains on this very task; how long a fold is trained for it is decided by the
others, so that where training changes nothing but by chance it is 0 on average. Stone 1974, "Cross-validatory choice
and assessment of statistical predictions"; the folds vote as in bagging (Breiman 1996). Axes: A folds, each with its
adapter.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean

import torch

from .decoding import TOKENS_AT_ONCE, TokenScores, score_answers
from .encoding import Encoded
from .lora import LoraWeights
from .model import LoadedModel
from .tasks import Task

FLOOR = -20.0
"""A log-probability below this counts as this."""


@dataclass(frozen=True)
class Fold:
    """The demonstrations that one adapter learns from, and those that it is judged by."""

    shown: Task
    """The task with the former alone."""
    held: tuple[Task, ...]
    """Each of the latter as a query after the former, with its answer."""


def folds(task: Task, count: int, rng: random.Random) -> list[Fold]:
    """At most `count` folds, each without an equal share of the demonstrations, drawn at random.

    With three demonstrations there are three folds that hold one out each; fewer than two cannot be divided.
    """
    n = len(task.demonstrations)
    order = rng.sample(range(n), n)
    found = []
    for fold in range(min(count, n) if n > 1 else 0):
        held = set(order[fold :: min(count, n)])
        shown = task.with_demonstrations(tuple(d for i, d in enumerate(task.demonstrations) if i not in held))
        queries = tuple(task.leave_out(i).with_demonstrations(shown.demonstrations) for i in sorted(held))
        found.append(Fold(shown, queries))
    return found


def seeds_of(seed: int, count: int) -> list[int]:
    """A seed for each fold, independent of those of other seeds' folds."""
    return [random.Random(f"{seed}-{fold}").getrandbits(31) for fold in range(count)]


@dataclass(frozen=True)
class Evidence:
    """What held-out demonstrations say of a task's training: one entry each, paired."""

    before: tuple[bool, ...]
    """Whether the base answers it right from the demonstrations that the fold was shown."""
    after: tuple[bool, ...]
    """Whether the fold's adapter does, after as many steps as the other folds alone would have chosen."""
    likelihood_before: tuple[float, ...]
    """Log-probability per token of the right answer, in nats."""
    likelihood_after: tuple[float, ...]
    steps: int
    """After which the adapters were best, by all held-out demonstrations; they are kept as they were then."""

    @property
    def gain(self) -> float:
        """Share of held-out demonstrations right after training, minus before; -1 to 1. Coarse where they are few, but
        by chance alone as often too high as too low."""
        return fmean(self.after) - fmean(self.before)


def rejected(gain: float, agreement: float, sure: float) -> bool:
    """The verdict on an answer of cross-fitted adapters: whether the in-context answer stands instead.

    Where held-out demonstrations speak for training (`gain` above 0, see `Evidence`), the adapters' answer stands; else
    that of which there is more certainty: the share of the votes for theirs, or the probability of the in-context one.
    """
    return gain <= 0 and agreement < sure


Score = tuple[bool, float]
"""Whether an answer is right, and its log-probability per token."""


def score_of(scores: TokenScores) -> Score:
    """The score of one teacher-forced answer."""
    likelihoods = [max(x, FLOOR) for x in scores.log_probs]
    return scores.all_hit, fmean(likelihoods) if likelihoods else FLOOR


@dataclass
class HeldOut:
    """Watches a training of folds: scores the held-out demonstrations as it goes, and keeps the best adapters.

    Looks every `every` steps. Enough was seen when all are answered right, or when `patience` looks in a row were no
    better. Stops when that is so by all folds, and by all but any one, since those decide how that one is judged.
    """

    loaded: LoadedModel
    held: Sequence[Sequence[Encoded]]
    """Per fold."""
    before: Sequence[Sequence[Score]]
    """By the base, per fold."""
    every: int
    patience: int
    charge: Callable[[int, int], None]
    """Told the tokens that go forward, and backward, before they go."""
    most: int = TOKENS_AT_ONCE
    """Tokens that may be read side by side."""
    best: LoraWeights | None = None
    """The adapters at the best look so far; None while none was better than the base."""
    seconds: float = 0.0
    """That the longest look took."""
    _looks: list[list[list[Score]]] = field(default_factory=list)
    _steps: list[int] = field(default_factory=lambda: [0])

    def __post_init__(self) -> None:
        self._looks.append([list(fold) for fold in self.before])

    def __call__(self, step: int, current: Callable[[], LoraWeights]) -> bool:
        """A `Watch` of `train`."""
        return step % self.every == 0 and self.look(step, current())

    def look(self, step: int, weights: LoraWeights) -> bool:
        """Scores the adapters after a step, unless that was done; whether to stop."""
        if step == self._steps[-1]:
            return False
        began = time.monotonic()
        self._looks.append(self._scores(weights))
        self.seconds = max(self.seconds, time.monotonic() - began)
        self._steps.append(step)
        if self._best() == len(self._steps) - 1:
            self.best = weights
        return all(self._enough(without) is not None for without in (None, *range(len(self.held))))

    def foresee(self, seconds: float, tokens: int) -> float:
        """Seconds that a look will take where reading so many tokens took so long. Where none were read, the longest
        held-out prompt is read to see.
        """
        prompts = [prompt for fold in self.held for prompt in fold]
        if not tokens:
            longest = max(prompts, key=lambda p: len(p.ids))
            tokens = len(longest.ids)
            self.charge(tokens, 0)
            began = time.monotonic()
            score_answers(self.loaded, [longest], self.most)
            seconds = time.monotonic() - began
        return seconds * sum(len(p.ids) for p in prompts) / tokens

    @torch.no_grad()
    def _scores(self, weights: LoraWeights) -> list[list[Score]]:
        """Scores of the held-out demonstrations by their folds' adapters."""
        found = []
        for index, fold in enumerate(self.held):
            asked = [replace(prompt, answers=prompt.answers[-1:]) for prompt in fold]
            self.charge(sum(len(p.ids) for p in asked), 0)
            with weights.select(index).attached(self.loaded.model):
                found.append([score_of(row[-1]) for row in score_answers(self.loaded, asked, self.most)])
        return found

    def _scores_at(self, look: int, without: int | None) -> list[Score]:
        """The scores of a look, but for those of one fold."""
        return [score for a, fold in enumerate(self._looks[look]) if a != without for score in fold]

    def _merit(self, look: int, without: int | None) -> tuple[int, float]:
        """The right answers, and how likely all are."""
        scores = self._scores_at(look, without)
        return sum(right for right, _ in scores), sum(likelihood for _, likelihood in scores)

    def _enough(self, without: int | None) -> int | None:
        """The first look after which no more are needed, by all folds but one; None where there was none yet."""
        best = 0
        for look in range(1, len(self._looks)):
            if self._merit(look, without) > self._merit(best, without):
                best = look
            if all(right for right, _ in self._scores_at(look, without)) or look - best >= self.patience:
                return look
        return None

    def _best(self, without: int | None = None) -> int:
        """The look with the most right answers, the likeliest of equals; by all folds but one, and then of those alone
        that there would have been without that one.
        """
        last = None if without is None else self._enough(without)
        looks = range(len(self._looks) if last is None else last + 1)
        return max(looks, key=partial(self._merit, without=without))

    def evidence(self) -> Evidence:
        """What was seen. A fold's own answers choose neither the step that it is judged at nor those to choose from."""
        before = [s for fold in self._looks[0] for s in fold]
        after = [s for a in range(len(self.held)) for s in self._looks[self._best(without=a)][a]]
        return Evidence(
            tuple(right for right, _ in before),
            tuple(right for right, _ in after),
            tuple(likelihood for _, likelihood in before),
            tuple(likelihood for _, likelihood in after),
            self._steps[self._best()],
        )
