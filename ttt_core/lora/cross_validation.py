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

from ..model.encoding import Encoded
from ..model.generation import MAX_BATCH_TOKENS, TokenScores, score_answers
from ..model.loading import LoadedModel
from ..tasks.task import Task
from .weights import LoraWeights

LOG_PROB_FLOOR = -20.0
"""A log-probability below this counts as this."""


@dataclass(frozen=True)
class Fold:
    """The demonstrations that one adapter learns from, and those that it is judged by."""

    training_task: Task
    """The task with the former alone."""
    held_out: tuple[Task, ...]
    """Each of the latter as a query after the former, with its answer."""


def split_folds(task: Task, count: int, rng: random.Random) -> list[Fold]:
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


def fold_seeds(seed: int, count: int) -> list[int]:
    """A seed for each fold, independent of those of other seeds' folds."""
    return [random.Random(f"{seed}-{fold}").getrandbits(31) for fold in range(count)]


@dataclass(frozen=True)
class CrossValidationResult:
    """What held-out demonstrations say of a task's training: one entry each, paired."""

    before: tuple[bool, ...]
    """Whether the base answers it right from the demonstrations that the fold was shown."""
    after: tuple[bool, ...]
    """Whether the fold's adapter does, after as many steps as the other folds alone would have chosen."""
    log_prob_before: tuple[float, ...]
    """Log-probability per token of the right answer, in nats."""
    log_prob_after: tuple[float, ...]
    steps: int
    """After which the adapters were best, by all held-out demonstrations; they are kept as they were then."""

    @property
    def gain(self) -> float:
        """Share of held-out demonstrations right after training, minus before; -1 to 1. Coarse where they are few, but
        by chance alone as often too high as too low."""
        return fmean(self.after) - fmean(self.before)


AnswerScore = tuple[bool, float]
"""Whether an answer is right, and its log-probability per token."""


def score_of(scores: TokenScores) -> AnswerScore:
    """The score of one teacher-forced answer."""
    likelihoods = [max(x, LOG_PROB_FLOOR) for x in scores.log_probs]
    return scores.all_hit, fmean(likelihoods) if likelihoods else LOG_PROB_FLOOR


@dataclass
class HeldOutMonitor:
    """Watches a training of folds: scores the held-out demonstrations as it goes, and keeps the best adapters.

    Looks every `every` steps. Enough was seen when all are answered right, or when `patience` looks in a row were no
    better. Stops when that is so by all folds, and by all but any one, since those decide how that one is judged.
    """

    loaded: LoadedModel
    prompts: Sequence[Sequence[Encoded]]
    """Per fold."""
    base_scores: Sequence[Sequence[AnswerScore]]
    """By the base, per fold."""
    eval_steps: int
    patience: int
    charge: Callable[[int, int], None]
    """Told the tokens that go forward, and backward, before they go."""
    max_tokens: int = MAX_BATCH_TOKENS
    """Tokens that may be read side by side."""
    best: LoraWeights | None = None
    """The adapters at the best look so far; None while none was better than the base."""
    seconds: float = 0.0
    """That the longest look took."""
    _evaluations: list[list[list[AnswerScore]]] = field(default_factory=list)
    _steps: list[int] = field(default_factory=lambda: [0])

    def __post_init__(self) -> None:
        self._evaluations.append([list(fold) for fold in self.base_scores])

    def __call__(self, step: int, current: Callable[[], LoraWeights]) -> bool:
        """A `Watch` of `train`."""
        return step % self.eval_steps == 0 and self.evaluate(step, current())

    def evaluate(self, step: int, weights: LoraWeights) -> bool:
        """Scores the adapters after a step, unless that was done; whether to stop."""
        if step == self._steps[-1]:
            return False
        began = time.monotonic()
        self._evaluations.append(self._scores(weights))
        self.seconds = max(self.seconds, time.monotonic() - began)
        self._steps.append(step)
        if self._best() == len(self._steps) - 1:
            self.best = weights
        return all(self._stopped_at(without) is not None for without in (None, *range(len(self.prompts))))

    def estimate_seconds(self, seconds: float, tokens: int) -> float:
        """Seconds that a look will take where reading so many tokens took so long. Where none were read, the longest
        held-out prompt is read to see.
        """
        prompts = [prompt for fold in self.prompts for prompt in fold]
        if not tokens:
            longest = max(prompts, key=lambda p: len(p.ids))
            tokens = len(longest.ids)
            self.charge(tokens, 0)
            began = time.monotonic()
            score_answers(self.loaded, [longest], self.max_tokens)
            seconds = time.monotonic() - began
        return seconds * sum(len(p.ids) for p in prompts) / tokens

    @torch.no_grad()
    def _scores(self, weights: LoraWeights) -> list[list[AnswerScore]]:
        """Scores of the held-out demonstrations by their folds' adapters."""
        found = []
        for index, fold in enumerate(self.prompts):
            asked = [replace(prompt, answers=prompt.answers[-1:]) for prompt in fold]
            self.charge(sum(len(p.ids) for p in asked), 0)
            with weights.select(index).attached(self.loaded.model):
                found.append([score_of(row[-1]) for row in score_answers(self.loaded, asked, self.max_tokens)])
        return found

    def _scores_at(self, look: int, without: int | None) -> list[AnswerScore]:
        """The scores of a look, but for those of one fold."""
        return [score for a, fold in enumerate(self._evaluations[look]) if a != without for score in fold]

    def _mean_score(self, look: int, without: int | None) -> tuple[int, float]:
        """The right answers, and how likely all are."""
        scores = self._scores_at(look, without)
        return sum(right for right, _ in scores), sum(likelihood for _, likelihood in scores)

    def _stopped_at(self, without: int | None) -> int | None:
        """The first look after which no more are needed, by all folds but one; None where there was none yet."""
        best = 0
        for look in range(1, len(self._evaluations)):
            if self._mean_score(look, without) > self._mean_score(best, without):
                best = look
            if all(right for right, _ in self._scores_at(look, without)) or look - best >= self.patience:
                return look
        return None

    def _best(self, without: int | None = None) -> int:
        """The look with the most right answers, the likeliest of equals; by all folds but one, and then of those alone
        that there would have been without that one.
        """
        last = None if without is None else self._stopped_at(without)
        looks = range(len(self._evaluations) if last is None else last + 1)
        return max(looks, key=partial(self._mean_score, without=without))

    def result(self) -> CrossValidationResult:
        """What was seen. A fold's own answers choose neither the step that it is judged at nor those to choose from."""
        before = [s for fold in self._evaluations[0] for s in fold]
        after = [s for a in range(len(self.prompts)) for s in self._evaluations[self._best(without=a)][a]]
        return CrossValidationResult(
            tuple(right for right, _ in before),
            tuple(right for right, _ in after),
            tuple(likelihood for _, likelihood in before),
            tuple(likelihood for _, likelihood in after),
            self._steps[self._best()],
        )
