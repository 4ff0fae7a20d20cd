"""Measures the features of a task: stage 0 from the in-context answer, stage 1 by one more scoring pass. Knows nothing
about policies."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from ..strategies.voting import distinct_transformations
from ..ttt_core.model.generation import LOG_PROB_FLOOR, floored
from ..ttt_core.tasks.augmentation import leave_one_out, shuffled, single_pairs
from ..ttt_core.tasks.task import Task, Value
from .features import NEUTRAL, STAGE_1, VIEWS

if TYPE_CHECKING:
    from ..ttt_core.engine.answering import Answer, PromptScores
    from ..ttt_core.learner import Learner
    from ..ttt_core.model.generation import TokenScores

# --- stage 0: free ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelFacts:
    """What the features take from the model itself."""

    parameters: int
    vocabulary: int
    """Number of tokens that logits are computed for."""
    format_margin: float = 0.0
    """See `FormatChoice.margin`."""

    @classmethod
    def of(cls, learner: Learner, format_margin: float) -> ModelFacts:
        """The facts of a learner's model."""
        return cls(learner.loaded.parameter_count, learner.loaded.vocabulary_size, format_margin)


def free_features(task: Task, answer: Answer, reading: PromptScores, model: ModelFacts) -> dict[str, float]:
    """`STAGE_0`: the shape of the task, the likelihood of the in-context answer, how well the prompt was predicted, and
    what is comparable between models."""
    values = {**_shape(task), **_answer(task, answer), **_reading(reading.answers)}
    return values | _comparable(values, answer, reading.answers, model)


def _comparable(
    values: Mapping[str, float], answer: Answer, reading: Sequence[TokenScores], model: ModelFacts
) -> dict[str, float]:
    uniform = math.log(max(2, model.vocabulary))
    return {
        "model_parameters": math.log10(max(1, model.parameters)),
        "model_vocabulary": math.log10(max(1, model.vocabulary)),
        "format_margin": max(LOG_PROB_FLOOR, min(model.format_margin, -LOG_PROB_FLOOR)),
        "answer_tokens": math.log1p(len(answer.scores.log_probs)),
        "answer_mean_normalised": values["answer_mean"] / uniform,
        "answer_entropy_normalised": values["answer_entropy_mean"] / uniform,
        "reading_mean_normalised": values["reading_mean"] / uniform,
        "reading_rank": _mean_rank(reading[1:]),
    }


def _mean_rank(scores: Sequence[TokenScores]) -> float:
    """Mean of the logarithms of 1 + rank over the tokens of all answers; 0 where there are none."""
    return _mean([math.log1p(rank) for answer in scores for rank in answer.ranks])


def _shape(task: Task) -> dict[str, float]:
    inputs = [_size(d.input) for d in task.demonstrations]
    outputs = [_size(d.output) for d in task.demonstrations]
    query = _size(task.query)
    same = [_dimensions(d.input) == _dimensions(d.output) for d in task.demonstrations]
    return {
        "demonstrations": float(len(task.demonstrations)),
        "instruction": float(bool(task.instruction)),
        **{f"kind_{k}": float(task.kind == k) for k in ("grid", "grid1d", "list", "text")},
        "input_size": math.log1p(_mean(inputs)),
        "output_size": math.log1p(_mean(outputs)),
        "query_size": math.log1p(query),
        "growth": math.log1p(_mean(outputs)) - math.log1p(_mean(inputs)),
        "query_beyond": math.log1p(query) - math.log1p(max(inputs, default=query)),
        "same_shape": _mean(same),
    }


def _answer(task: Task, answer: Answer) -> dict[str, float]:
    scores = answer.scores
    likelihoods = _clipped(scores) or [NEUTRAL]
    longest = max((_size(d.output) for d in task.demonstrations), default=0)
    quantiles = np.quantile(likelihoods, (0.0, 0.1, 0.25, 0.5)).tolist()
    return {
        "answer_total": sum(likelihoods),
        "answer_mean": fmean(likelihoods),
        **dict(zip(("answer_q00", "answer_q10", "answer_q25", "answer_q50"), quantiles, strict=True)),
        "answer_entropy_max": max(scores.entropies, default=0.0),
        "answer_entropy_mean": _mean(scores.entropies),
        "answer_margin_min": min((min(m, -LOG_PROB_FLOOR) for m in scores.margins), default=0.0),
        "answer_readable": float(answer.value is not None),
        "answer_ended": float(answer.ended),
        "answer_beyond": 0.0 if answer.value is None else math.log1p(_size(answer.value)) - math.log1p(longest),
        "answer_is_query": float(answer.value == task.query),
        "answer_is_shown": float(any(answer.value == d.output for d in task.demonstrations)),
    }


def _reading(answers: Sequence[TokenScores]) -> dict[str, float]:
    """How well each demonstration was predicted from the preceding ones. Without any: no hits, `NEUTRAL`, no slope."""
    hits = [float(a.all_hit) for a in answers] or [0.0]
    means = [_per_token(a) for a in answers] or [NEUTRAL]
    steps = np.linspace(-0.5, 0.5, len(means))
    slope = float(steps @ np.asarray(means) / (steps @ steps)) if len(means) > 1 else 0.0
    return {
        "reading_hits": fmean(hits),
        "reading_hits_late": fmean(hits[len(hits) // 2 :]),
        "reading_hit_last": hits[-1],
        "reading_mean": fmean(means),
        "reading_last": means[-1],
        "reading_slope": slope,
    }


# --- stage 1: one scoring pass ---------------------------------------------------------------------------------------


def probe_features(learner: Learner, task: Task, answer: Answer, seed: int, model: ModelFacts) -> dict[str, float]:
    """`STAGE_1`: leave-one-out accuracy on the demonstrations, and stability of the answer under other views.

    - `loo_*`: each demonstration answered from the others: hits, likelihood per token (mean and worst).
    - `shots_gain`: that likelihood minus the likelihood without any demonstration.
    - `orders_*`: the in-context answer scored again under permuted demonstrations; hits are the share of permutations
      whose greedy answer it is.
    - `loo_mean_normalised`, `loo_rank`: the likelihood and the rank of the held-out answers' tokens, as in `MODEL`.
    - `turns_*`: the same under invertible transformations; for a kind without transformations, equal to `orders_*`.

    With fewer than two demonstrations none can be left out: `loo_possible` is 0, hits and gain are 0, likelihoods are
    `NEUTRAL`. The same holds for `orders_*` and `turns_*` of an answer that cannot be parsed.
    """
    if len(task.demonstrations) < 2:
        neutral = {name: NEUTRAL if name.endswith(("_mean", "_min")) else 0.0 for name in STAGE_1}
        return neutral | {"loo_mean_normalised": NEUTRAL / math.log(max(2, model.vocabulary))}
    prompts = _ProbePrompts.of(learner, task, answer.value, seed)
    scores = iter([row[-1] for row in learner.score(prompts.all)])
    from_others = [next(scores) for _ in prompts.held_out]
    from_nothing = [next(scores) for _ in prompts.alone]
    by_order = _agreement("orders", [next(scores) for _ in prompts.orders])
    by_turn = _agreement("turns", list(scores)) if prompts.turns else _renamed(by_order, "orders", "turns")
    loo = _agreement("loo", from_others)
    gain = loo["loo_mean"] - fmean(map(_per_token, from_nothing))
    comparable = {
        "loo_mean_normalised": loo["loo_mean"] / math.log(max(2, model.vocabulary)),
        "loo_rank": _mean_rank(from_others),
    }
    return {"loo_possible": 1.0, **loo, "shots_gain": gain, **by_order, **by_turn, **comparable}


def probe_tokens(learner: Learner, task: Task, seed: int) -> int:
    """Tokens that `probe_features` reads, where the in-context answer is as long as the right one. Raises as
    `Learner.score`."""
    if len(task.demonstrations) < 2:
        return 0
    return sum(map(learner.window.length, dict.fromkeys(_ProbePrompts.of(learner, task, task.answer, seed).all)))


@dataclass(frozen=True)
class _ProbePrompts:
    """The prompts that the probe scores."""

    held_out: Sequence[Task]
    """Each demonstration after all others."""
    alone: Sequence[Task]
    """Each demonstration without any other."""
    orders: Sequence[Task] = ()
    turns: Sequence[Task] = ()
    """The task with its in-context answer, under permutations and under transformations."""

    @classmethod
    def of(cls, learner: Learner, task: Task, value: Value | None, seed: int) -> _ProbePrompts:
        """Those of a task with at least two demonstrations, whose in-context answer is `value`."""
        rng = random.Random(f"probe-{seed}")
        orders, turns = ([], []) if value is None else _views(learner, task, value, rng)
        return cls(leave_one_out(task), single_pairs(task), orders, turns)

    @property
    def all(self) -> list[Task]:
        return [*self.held_out, *self.alone, *self.orders, *self.turns]


def _views(learner: Learner, task: Task, value: Value, rng: random.Random) -> tuple[list[Task], list[Task]]:
    """Permutations and transformations of the task with the in-context answer as its answer, without those that exceed
    the context window."""
    answered = replace(task, answer=value)
    orders = {shuffled(answered, rng): None for _ in range(4 * VIEWS)}
    orders.pop(answered, None)
    turns = [answered.map(t.apply) for t in distinct_transformations(learner, answered, VIEWS, rng)]
    chosen = list(orders)[:VIEWS] or [answered]
    return [t for t in chosen if learner.fits(t, t.answer)], [t for t in turns if learner.fits(t, t.answer)]


def _agreement(name: str, scores: Sequence[TokenScores]) -> dict[str, float]:
    means = [_per_token(s) for s in scores] or [NEUTRAL]
    return {f"{name}_hits": _mean([s.all_hit for s in scores]), f"{name}_mean": fmean(means), f"{name}_min": min(means)}


def _renamed(values: Mapping[str, float], old: str, new: str) -> dict[str, float]:
    return {new + name.removeprefix(old): value for name, value in values.items()}


# --- small measures --------------------------------------------------------------------------------------------------


def _dimensions(value: Value) -> tuple[int, ...]:
    """Rows and columns of a grid; the length of anything else."""
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return len(value), len(value[0])
    return (len(value),)


def _size(value: Value) -> int:
    return math.prod(_dimensions(value))


def _mean(numbers: Sequence[float]) -> float:
    return float(fmean(numbers)) if numbers else 0.0


def _clipped(scores: TokenScores) -> list[float]:
    return list(map(floored, scores.log_probs))


def _per_token(scores: TokenScores) -> float:
    return fmean(_clipped(scores)) if scores.log_probs else NEUTRAL
