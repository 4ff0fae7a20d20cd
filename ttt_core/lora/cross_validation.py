"""Cross-validation of training: each fold's adapter is trained without some demonstrations and evaluated on those.

Every demonstration is answered once by the adapter that was trained without it, and by the base from the same prompt.
The difference estimates what training gains on this task. The number of steps at which a fold is evaluated is chosen by
the other folds, so that the expected gain is 0 where training has no effect. Stone 1974, "Cross-validatory choice
and assessment of statistical predictions"; the folds vote as in bagging (Breiman 1996). Axes: A folds, each with its
adapter.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean

import torch

from .. import clock
from ..model.encoding import Encoded
from ..model.generation import LOG_PROB_FLOOR, MAX_BATCH_TOKENS, TokenScores, floored, score_answers
from ..model.loading import LoadedModel
from ..spans import span
from ..tasks.task import Task
from .weights import LoraWeights


@dataclass(frozen=True)
class Fold:
    """The demonstrations that one adapter is trained on, and those that it is evaluated on."""

    training_task: Task
    """The task with the training demonstrations only."""
    held_out: tuple[Task, ...]
    """Each held-out demonstration as the query after the training demonstrations, with its answer."""


def split_folds(task: Task, count: int, rng: random.Random) -> list[Fold]:
    """At most `count` folds, each without an equal share of the demonstrations, drawn at random.

    With three demonstrations there are three folds that hold one out each; fewer than two cannot be divided.
    """
    n = len(task.demonstrations)
    order = rng.sample(range(n), n)
    folds = []
    for fold in range(min(count, n) if n > 1 else 0):
        held = set(order[fold :: min(count, n)])
        shown = task.with_demonstrations(tuple(d for i, d in enumerate(task.demonstrations) if i not in held))
        queries = tuple(task.leave_out(i).with_demonstrations(shown.demonstrations) for i in sorted(held))
        folds.append(Fold(shown, queries))
    return folds


def fold_seeds(seed: int, count: int) -> list[int]:
    """A seed for each fold, independent of those of other seeds' folds."""
    return [random.Random(f"{seed}-{fold}").getrandbits(31) for fold in range(count)]


@dataclass(frozen=True)
class CrossValidationResult:
    """Results on the held-out demonstrations of a task, one entry each, paired."""

    before: tuple[bool, ...]
    """Whether the base answers it right from the fold's training demonstrations."""
    after: tuple[bool, ...]
    """Whether the fold's adapter answers it right, after the number of steps that the other folds choose."""
    log_prob_before: tuple[float, ...]
    """Log-probability per token of the right answer, in nats."""
    log_prob_after: tuple[float, ...]
    steps: int
    """Steps after which the adapters were best on all held-out demonstrations; those weights are returned."""

    @property
    def gain(self) -> float:
        """Accuracy on held-out demonstrations after training minus before, -1 to 1. Unbiased, but coarse for few
        demonstrations."""
        return fmean(self.after) - fmean(self.before)


AnswerScore = tuple[bool, float]
"""Whether an answer is right, and its log-probability per token."""


def score_of(scores: TokenScores) -> AnswerScore:
    """The score of one teacher-forced answer."""
    likelihoods = list(map(floored, scores.log_probs))
    return scores.all_hit, fmean(likelihoods) if likelihoods else LOG_PROB_FLOOR


@dataclass
class HeldOutMonitor:
    """Evaluates the folds on their held-out demonstrations during training, and keeps the best adapters.

    Evaluates every `eval_steps` steps. Early stopping: all are answered right, or `patience` evaluations in a row
    brought no improvement; by all folds, and by all but any one, since these choose the step at which that one is
    evaluated.
    """

    loaded: LoadedModel
    prompts: Sequence[Sequence[Encoded]]
    """Per fold."""
    base_scores: Sequence[Sequence[AnswerScore]]
    """By the base, per fold."""
    eval_steps: int
    patience: int
    charge: Callable[[int, int], None]
    """Receives the numbers of forward and backward tokens before each pass."""
    max_tokens: int = MAX_BATCH_TOKENS
    """Largest number of tokens in a batch."""
    trial_steps: int = 0
    """Steps after which training is given up unless an evaluation was better than the base; 0: it is not given up."""
    best: LoraWeights | None = None
    """The adapters at the best evaluation so far; None while none was better than the base."""
    seconds: float = 0.0
    """Of the longest evaluation."""
    _evaluations: list[list[list[AnswerScore]]] = field(default_factory=list)
    _steps: list[int] = field(default_factory=lambda: [0])
    _tokens: int = 0
    """That the last evaluation read."""

    def __post_init__(self) -> None:
        self._evaluations.append([list(fold) for fold in self.base_scores])

    def __call__(self, step: int, current: Callable[[], LoraWeights]) -> bool:
        """As a `TrainingMonitor` of `train`."""
        if step == self.trial_steps:
            return self.evaluate(step, current()) or self.best is None
        return step % self.eval_steps == 0 and self.evaluate(step, current())

    def evaluate(self, step: int, weights: LoraWeights) -> bool:
        """Evaluates the adapters after a step, once a step; returns whether to stop."""
        if step == self._steps[-1]:
            return False
        began = clock.monotonic()
        with span("evaluate", step=step) as evaluation:
            self._evaluations.append(self._scores(weights))
            right, likelihood = self._mean_score(len(self._evaluations) - 1, None)
            evaluation.set(right=right, of=sum(map(len, self.prompts)), log_prob=likelihood, tokens=self._tokens)
        self.seconds = max(self.seconds, clock.monotonic() - began)
        self._steps.append(step)
        if self._best() == len(self._steps) - 1:
            self.best = weights
        return all(self._stopped_at(without) is not None for without in (None, *range(len(self.prompts))))

    def estimate_seconds(self, seconds: float, tokens: int) -> float:
        """Estimated seconds of an evaluation, from those that a forward pass of `tokens` tokens took; without tokens,
        the longest held-out prompt is timed.
        """
        prompts = [prompt for fold in self.prompts for prompt in fold]
        if not tokens:
            longest = max(prompts, key=lambda p: len(p.ids))
            tokens = len(longest.ids)
            self.charge(tokens, 0)
            began = clock.monotonic()
            score_answers(self.loaded, [longest], self.max_tokens)
            seconds = clock.monotonic() - began
        return seconds * sum(len(p.ids) for p in prompts) / tokens

    @torch.no_grad()
    def _scores(self, weights: LoraWeights) -> list[list[AnswerScore]]:
        """Scores of the held-out demonstrations by their folds' adapters."""
        scores, self._tokens = [], 0
        for index, fold in enumerate(self.prompts):
            prompts = [replace(prompt, answers=prompt.answers[-1:]) for prompt in fold]
            tokens = sum(len(p.ids) for p in prompts)
            self.charge(tokens, 0)
            self._tokens += tokens
            with weights.select(index).attached(self.loaded.model):
                scores.append([score_of(row[-1]) for row in score_answers(self.loaded, prompts, self.max_tokens)])
        return scores

    def _scores_at(self, evaluation: int, without: int | None) -> list[AnswerScore]:
        """The scores of an evaluation, without those of one fold."""
        return [score for a, fold in enumerate(self._evaluations[evaluation]) if a != without for score in fold]

    def _mean_score(self, evaluation: int, without: int | None) -> tuple[int, float]:
        """The number of right answers, and the sum of the log-probabilities of all."""
        scores = self._scores_at(evaluation, without)
        return sum(right for right, _ in scores), sum(likelihood for _, likelihood in scores)

    def _stopped_at(self, without: int | None) -> int | None:
        """The evaluation at which early stopping holds by all folds but one; None before that."""
        best = 0
        for evaluation in range(1, len(self._evaluations)):
            if self._mean_score(evaluation, without) > self._mean_score(best, without):
                best = evaluation
            if all(right for right, _ in self._scores_at(evaluation, without)) or evaluation - best >= self.patience:
                return evaluation
        return None

    def _best(self, without: int | None = None) -> int:
        """The evaluation with the most right answers, ties broken by likelihood; by all folds but one, among the
        evaluations up to where these stop.
        """
        last = None if without is None else self._stopped_at(without)
        evaluations = range(len(self._evaluations) if last is None else last + 1)
        return max(evaluations, key=partial(self._mean_score, without=without))

    def result(self) -> CrossValidationResult:
        """The result. A fold's own answers influence neither the step at which it is evaluated nor the candidates."""
        before = [s for fold in self._evaluations[0] for s in fold]
        after = [s for a in range(len(self.prompts)) for s in self._evaluations[self._best(without=a)][a]]
        return CrossValidationResult(
            tuple(right for right, _ in before),
            tuple(right for right, _ in after),
            tuple(likelihood for _, likelihood in before),
            tuple(likelihood for _, likelihood in after),
            self._steps[self._best()],
        )
