"""Cross-fitting: who learns from what, what held-out demonstrations say, and an ensemble that is its parts."""

from __future__ import annotations

import math
import random
import time
from dataclasses import replace
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autottt.controller.nodes import judged
from autottt.strategies.base import Attempt, run
from autottt.strategies.registry import get_strategy
from autottt.ttt_core.engine import adapter_trainer as teaching
from autottt.ttt_core.errors import AdaptationError, StrategyError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora import training
from autottt.ttt_core.lora.cross_validation import (
    AnswerScore,
    CrossValidationResult,
    HeldOutMonitor,
    fold_seeds,
    score_of,
    split_folds,
)
from autottt.ttt_core.lora.optimizer import BatchedAdamW
from autottt.ttt_core.lora.training import TrainingRecord, merge_records
from autottt.ttt_core.model import generation as decoding
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.augmentation import leave_one_out
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.task import Task

QUICK = Recipe(rank=4, alpha=8.0, dropout=0.0, learning_rate=3e-2, max_steps=6, batch_size=2)


def task_of(count: int) -> Task:
    return make_task([([i, i + 1], [i + 1, i]) for i in range(count)], [50, 60], answer=[60, 50])


def crossfit(learner: Learner, task: Task, count: int = 3, recipe: Recipe = QUICK, **settings: Any) -> Any:
    parts = split_folds(task, count, random.Random(0))
    return learner.cross_validate(
        [leave_one_out(f.training_task) for f in parts], [f.held_out for f in parts], recipe, **settings
    )


@given(st.integers(2, 12), st.integers(2, 6), st.integers(0, 99))
def test_every_demonstration_is_held_out_once_and_not_trained_on_in_that_fold(
    count: int, wanted: int, seed: int
) -> None:
    task = task_of(count)
    folds = split_folds(task, wanted, random.Random(seed))
    assert len(folds) == min(wanted, count)
    held = [(h.query, h.answer) for fold in folds for h in fold.held_out]
    assert sorted(held) == sorted((d.input, d.output) for d in task.demonstrations)
    for fold in folds:
        shown = {d.input for d in fold.training_task.demonstrations}
        assert not shown & {h.query for h in fold.held_out}
        assert len(shown) + len(fold.held_out) == count
        assert all(h.demonstrations == fold.training_task.demonstrations for h in fold.held_out)
        assert fold.training_task.query == task.query


def test_a_token_whose_likelihood_is_no_number_counts_as_impossible() -> None:
    scores = decoding.TokenScores((math.nan, -1.0), (0.0, 0.0), (1.0, 1.0), (False, True))
    assert score_of(scores) == (False, (decoding.LOG_PROB_FLOOR - 1) / 2)


def test_one_demonstration_cannot_be_divided() -> None:
    assert split_folds(task_of(1), 4, random.Random(0)) == []


def watcher(looks: list[list[list[AnswerScore]]], patience: int = 9) -> tuple[HeldOutMonitor, list[bool]]:
    """A watcher that has seen these looks [look][fold][demonstration], the first by the base; and what it said."""
    later = iter(looks[1:])
    watch = HeldOutMonitor(
        None, [[None]] * len(looks[0]), looks[0], eval_steps=2, patience=patience, charge=lambda *_: None
    )  # type: ignore[arg-type, list-item]
    watch._scores = lambda weights: next(later)  # type: ignore[method-assign]
    said = [watch(step, lambda: SimpleNamespace()) for step in range(1, 2 * len(looks) - 1)]  # type: ignore[arg-type, return-value]
    return watch, said


def test_a_fold_does_not_choose_the_step_at_which_it_is_evaluated() -> None:
    """Only fold 0 is right at the first look and only the others at the second: all are judged at the second."""
    base: list[list[AnswerScore]] = [[(False, -9.0)]] * 4
    first: list[list[AnswerScore]] = [[(True, -1.0)], *[[(False, -2.0)]] * 3]
    second: list[list[AnswerScore]] = [[(False, -3.0)], *[[(True, -1.0)]] * 3]
    watch, _ = watcher([base, first, second])
    result = watch.result()
    assert result.steps == 4
    assert result.after == (False, True, True, True)
    assert result.log_prob_after == (-3.0, -1.0, -1.0, -1.0)
    assert result.before == (False,) * 4
    assert result.gain == pytest.approx(3 / 4)


def test_a_lucky_look_of_one_fold_is_no_evidence() -> None:
    """The best look is so for fold 0 alone; the others would have stayed with the base."""
    base: list[list[AnswerScore]] = [[(False, -2.0)], [(False, -1.0)], [(False, -1.0)]]
    lucky: list[list[AnswerScore]] = [[(True, -1.0)], [(False, -2.0)], [(False, -2.0)]]
    watch, _ = watcher([base, lucky])
    assert watch.result().steps == 2
    assert watch.result().gain == 0


def test_training_that_only_harms_is_stopped_and_discarded() -> None:
    good: list[list[AnswerScore]] = [[(True, -0.1)], [(False, -0.1)]]
    bad: list[list[AnswerScore]] = [[(False, -5.0)], [(False, -5.0)]]
    watch, said = watcher([good, bad, bad, bad], patience=2)
    assert said[:4] == [False, False, False, True]
    assert watch.best is None
    assert watch.result().steps == 0
    assert watch.result().gain == 0


def test_training_stops_where_every_held_out_demonstration_is_solved() -> None:
    base: list[list[AnswerScore]] = [[(False, -1.0)], [(True, -1.0)]]
    watch, said = watcher([base, [[(True, -0.5)], [(True, -0.5)]]])
    assert said == [False, True]
    assert watch.best is not None
    assert watch.result().gain == 0.5


def test_a_fold_is_evaluated_no_later_than_the_other_folds_would_have_stopped() -> None:
    """The others are solved at the first look; only fold 0, which is not, makes that there is a second."""
    base: list[list[AnswerScore]] = [[(False, -2.0)], [(False, -2.0)], [(False, -2.0)]]
    first: list[list[AnswerScore]] = [[(False, -2.0)], [(True, -1.0)], [(True, -1.0)]]
    second: list[list[AnswerScore]] = [[(True, -0.1)], [(True, -0.5)], [(True, -0.5)]]
    watch, said = watcher([base, first, second])
    assert said == [False, False, False, True]
    assert watch.result().steps == 4
    assert watch.result().after == (False, True, True)


def test_training_continues_while_all_folds_but_one_improve() -> None:
    """All together only get worse, because fold 0 does; fold 1 is judged where fold 0 and itself have no say in it."""
    looks: list[list[list[AnswerScore]]] = [
        [[(False, -1.0 - 4 * n)], [(False, -1.0)], [(False, -3.0 + n)]] for n in range(3)
    ]
    watch, said = watcher([*looks, looks[-1], looks[-1]], patience=2)
    assert said == [False] * 7 + [True]
    assert watch.result().steps == 0
    assert watch.result().log_prob_after == (looks[2][0][0][1], -1.0, looks[0][2][0][1])


@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize("stays", [0.0, 0.7])
def test_where_training_changes_nothing_but_by_chance_the_gain_is_none_on_average(count: int, stays: float) -> None:
    """Every answer is right by the same chance at every look, the base's included, and stays as it was with another."""
    rng, gains = random.Random(count), []
    for _ in range(600):
        state = [rng.random() < 0.7 for _ in range(count)]
        looks: list[list[list[AnswerScore]]] = []
        for _ in range(13):
            looks.append([[(right, rng.gauss(-0.2 if right else -2.0, 0.3))] for right in state])
            state = [right if rng.random() < stays else rng.random() < 0.7 for right in state]
        later = iter(looks[1:])
        watch = HeldOutMonitor(None, [[None]] * count, looks[0], 2, 4, lambda *_: None)  # type: ignore[arg-type, list-item]
        watch._scores = lambda weights, later=later: next(later)  # type: ignore[misc, method-assign]
        for step in range(1, 25):
            if watch(step, lambda: SimpleNamespace()):  # type: ignore[arg-type, return-value]
                break
        gains.append(watch.result().gain)
    assert abs(fmean(gains)) < 3 * stdev(gains) / len(gains) ** 0.5
    assert stdev(gains) < 0.5


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_adapters_answer_what_each_answers_alone(
    architecture: str, dtype: torch.dtype, make_learner: Any
) -> None:
    learner = make_learner(architecture, dtype)
    learner.window.max_new_tokens = lambda task: 6
    task = task_of(4)
    adapter = crossfit(learner, task, eval_steps=1, patience=9)
    queries = [task, replace(task, query=(3, 1, 4)), replace(task, demonstrations=task.demonstrations[::-1])]
    for asked in (queries[:2], queries):  # over a shared prefix, and without
        together = learner.answers(asked, adapter)
        assert len(together) == 3
        for index, mine in enumerate(together):
            one = replace(adapter, weights=adapter.weights.select(index))
            for alone, joined in zip(learner.answer(asked, one), mine, strict=True):
                assert joined.scores.log_probs[0] == pytest.approx(
                    alone.scores.log_probs[0], abs=1e-4 if dtype == torch.float32 else 0.3
                )
                if dtype == torch.float32:
                    assert joined.text == alone.text


def test_a_cross_fitted_adapter_has_no_single_answer(make_learner: Any) -> None:
    learner = make_learner()
    with pytest.raises(AdaptationError, match="of 3 folds gives 3 answers"):
        learner.answer([task_of(3)], crossfit(learner, task_of(3)))
    with pytest.raises(AdaptationError, match="of 3 folds gives 3 answers"):
        learner.score([task_of(3)] * 3, crossfit(learner, task_of(3)))


def test_its_evidence_is_what_its_adapters_say_of_the_held_out_demonstrations(
    make_learner: Any, unchanged: Any
) -> None:
    learner = make_learner()
    task = task_of(5)
    with unchanged(learner.loaded.model):
        adapter = crossfit(learner, task, eval_steps=1, patience=99)
    parts = split_folds(task, 3, random.Random(0))
    before = [learner.score([h])[0][-1] for f in parts for h in f.held_out]
    assert adapter.cross_validation.before == tuple(s.all_hit for s in before)
    assert len(adapter.cross_validation.after) == 5
    assert adapter.training.steps == 6
    assert adapter.cross_validation.steps in range(7)
    # the kept weights are those of the best step: more likely, summed over all, than before
    now = [
        learner.score(list(f.held_out), replace(adapter, weights=adapter.weights.select(a)))
        for a, f in enumerate(parts)
    ]
    likelihood = sum(s[-1].total / len(s[-1].hits) for fold in now for s in fold)
    assert likelihood >= sum(adapter.cross_validation.log_prob_before) - 1e-6


def test_each_fold_gets_the_adapter_that_it_would_have_got_alone(make_learner: Any) -> None:
    learner = make_learner()
    recipe = replace(QUICK, max_steps=3)
    parts = split_folds(task_of(4), 2, random.Random(0))
    examples = [leave_one_out(f.training_task) for f in parts]
    both = learner.cross_validate(examples, [f.held_out for f in parts], recipe, eval_steps=3, patience=9)
    assert both.cross_validation.steps == 3, "otherwise there is nothing to compare"
    alone = [learner.adapt(e, recipe, seed=s) for e, s in zip(examples, fold_seeds(0, 2), strict=True)]
    for index, one in enumerate(alone):
        for name, (down, up) in one.weights.pairs.items():
            torch.testing.assert_close(both.weights.pairs[name][0][index], down[0], atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(both.weights.pairs[name][1][index], up[0], atol=1e-3, rtol=1e-3)
    firsts = [one.training.losses[0] for one in alone]
    assert both.training.losses[0] == pytest.approx(sum(firsts) / 2, rel=1e-4)


def test_the_last_step_is_evaluated_also_where_no_evaluation_was_due(make_learner: Any) -> None:
    adapter = crossfit(make_learner(), task_of(4), recipe=replace(QUICK, max_steps=3), eval_steps=50)
    assert adapter.cross_validation.steps == 3
    assert any(bool(up.any()) for _, up in adapter.weights.pairs.values())


def test_the_record_says_that_cross_validation_found_no_better_adapters(make_learner: Any) -> None:
    learner, recipe = make_learner(), replace(QUICK, max_steps=3)
    for alpha in (QUICK.alpha, 0.0):
        adapter = crossfit(learner, task_of(4), recipe=replace(recipe, alpha=alpha), eval_steps=50)
        assert adapter.training.steps == 3
        assert adapter.training.zero_update == all(adapter.weights.zero_updates()) == (alpha == 0)


def test_a_joint_account_of_trainings() -> None:
    one, two = (
        TrainingRecord(2, (4.0, 2.0), 1.0, 10, "converged"),
        TrainingRecord(3, (2.0, 2.0, 1.0), 1.0, 20, "finished"),
    )
    assert merge_records([one, two]) == TrainingRecord(3, (3.0, 2.0, 1.0), 2.0, 30, "finished")
    zero = replace(one, zero_update=True)
    assert (merge_records([zero, zero]).zero_update, merge_records([one, zero]).zero_update) == (True, False)
    assert merge_records([one, replace(one, stop_reason="deadline")]).stop_reason == "deadline", (
        "else it would be kept as whole"
    )


def test_one_fold_leaves_nothing_to_learn_from() -> None:
    with pytest.raises(StrategyError, match="at least 2 folds"):
        replace(get_strategy("ttt_crossfit"), folds=1)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("after", "votes", "action"),
    [
        ((True, True), 0.1, "accept"),  # held-out demonstrations speak for training
        ((True, False), 0.9, "accept"),  # they say nothing, and the adapters are surer
        ((True, False), 0.3, "fall_back"),
        ((False, False), 0.9, "accept"),
        ((False, False), 0.3, "fall_back"),
    ],
)
def test_the_judge_rejects_what_nothing_bears_out(after: tuple[bool, ...], votes: float, action: str) -> None:
    evidence = CrossValidationResult((True, False), after, (-1.0, -1.0), (-1.0, -1.0), 4)
    attempt = Attempt("ttt_crossfit", (1,), "1", votes, cross_validation=evidence)
    in_context = Attempt("in_context", (2,), "2", 0.5)
    verdict = judged(attempt, 1, 10.0, in_context)
    assert verdict.action == action
    for other in (replace(in_context, value=None), replace(in_context, value=(1,))):
        assert judged(attempt, 1, 10.0, other).action == "accept", "nothing to fall back on, or nothing to decide"
    assert judged(attempt, 1, 10.0, in_context, may_keep=False).action == "accept", "a promise forbids to keep it"
    if action == "fall_back":
        assert f"held-out accuracy 1/2 before training, {sum(after)}/2 after" in verdict.reason


def test_three_demonstrations_are_enough_and_the_attempt_carries_the_evidence(make_learner: Any) -> None:
    learner = make_learner()
    strategy: Any = replace(get_strategy("ttt_crossfit"), recipe=replace(QUICK, views=2))  # type: ignore[type-var]
    attempt = run(strategy, learner, task_of(3))
    assert attempt.cross_validation is not None
    assert len(attempt.cross_validation.before) == 3
    again = run(strategy, learner, replace(task_of(3), query=(9, 8)))
    assert again.from_cache
    assert again.cross_validation == attempt.cross_validation


def test_a_fold_that_fails_costs_no_more_than_what_came_after_the_best_look(
    make_learner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autottt.ttt_core.lora.gradients import GradientEngine

    learner, task = make_learner(), task_of(4)
    real, calls = GradientEngine.losses, [0]

    def losses(self: Any, *given: Any) -> Any:
        values = real(self, *given)
        calls[0] += 1
        return [float("nan"), *values[1:]] if calls[0] == failing else values

    monkeypatch.setattr(GradientEngine, "losses", losses)
    monkeypatch.setattr(
        HeldOutMonitor, "_best", lambda self, without=None: len(self._evaluations) - 1
    )  # each look is the best
    failing = 5
    adapter = crossfit(learner, task, eval_steps=1, patience=9)
    assert adapter.cross_validation.steps == 4
    assert adapter.training.stop_reason == "failed"
    assert learner.answers([task], adapter)
    failing, calls[0] = 1, 0
    with pytest.raises(AdaptationError, match="not finite at step 1"):
        crossfit(learner, task, eval_steps=1)


def test_held_out_prompts_that_were_scored_before_are_not_scored_again(make_learner: Any) -> None:
    learner, task = make_learner(), task_of(3)
    crossfit(learner, task)
    fresh = learner.guarded.charged.forward_tokens
    learner.clear()
    before = learner.guarded.charged.forward_tokens
    leave = [task.leave_out(i) for i in range(3)]
    learner.score(leave)  # as the features are measured
    scored = learner.guarded.charged.forward_tokens - before
    crossfit(learner, task)
    assert learner.guarded.charged.forward_tokens - before == fresh
    assert scored > 0
    again = learner.guarded.charged.forward_tokens
    learner.score([*leave, *leave])
    assert learner.guarded.charged.forward_tokens == again


def test_folds_of_different_seeds_begin_as_unlike_adapters() -> None:
    drawn = [seed for of in range(20) for seed in fold_seeds(of, 4)]
    assert len(set(drawn)) == 80
    assert drawn[:3] == fold_seeds(0, 3), "however many there are"


@pytest.mark.parametrize("cached", [False, True])
def test_time_is_reserved_for_a_last_evaluation_also_where_base_scores_are_cached(
    cached: bool, make_learner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, task = make_learner(), task_of(3)
    parts = split_folds(task, 3, random.Random(0))
    if cached:
        learner.score([h for f in parts for h in f.held_out])
    slow, ends = decoding._score_once, []

    def score_once(loaded: Any, prompts: Any) -> Any:
        time.sleep(0.1 * len(prompts))
        return slow(loaded, prompts)

    def train(*given: Any, deadline: float, **settings: Any) -> Any:
        ends.append(deadline)
        return training.train(*given, deadline=deadline, **settings)

    monkeypatch.setattr(decoding, "_score_once", score_once)
    monkeypatch.setattr(teaching, "train", train)
    deadline = time.monotonic() + 1000
    before = learner.guarded.charged.forward_tokens
    crossfit(learner, task, recipe=replace(QUICK, max_steps=1), deadline=deadline)
    assert learner.guarded.charged.forward_tokens > before
    assert deadline - ends[0] > 0.25, "three prompts take 0.3 seconds"
    crossfit(learner, task, recipe=replace(QUICK, max_steps=1))
    assert ends[1] > 1e9, "without a deadline none is needed"


def test_folds_that_do_not_fit_in_memory_are_refused_with_the_bytes_that_they_need(make_learner: Any) -> None:
    learner = make_learner()
    size = learner.adapt(leave_one_out(task_of(3)), QUICK).weights.nbytes
    learner.guarded.memory_bytes = 3 * teaching.COPIES * size - 1
    with pytest.raises(AdaptationError, match=r"3 adapters of rank 4 .* need up to .* MB; the bound is .* MB"):
        crossfit(learner, task_of(4))
    learner.guarded.memory_bytes += 1
    assert crossfit(learner, task_of(4)).weights.adapter_count == 3


def test_memory_of_cross_validation_stays_within_the_bound(make_learner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, kept, read = make_learner(), [], []

    class Noted(BatchedAdamW):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            kept.append(self.nbytes)

    real = decoding._score_once

    def score_once(loaded: Any, prompts: Any) -> Any:
        read.append((len(prompts), sum(len(p.ids) for p in prompts)))
        return real(loaded, prompts)

    monkeypatch.setattr(training, "BatchedAdamW", Noted)
    monkeypatch.setattr(decoding, "_score_once", score_once)
    size = learner.adapt(leave_one_out(task_of(3)), QUICK).weights.nbytes
    kept.clear()
    learner.guarded.memory_bytes = 2 * teaching.COPIES * size
    crossfit(learner, task_of(8), count=2, eval_steps=1, patience=9)
    assert kept
    assert max(kept) + 2 * teaching.RESERVED_COPIES * size <= learner.guarded.memory_bytes
    most = learner.guarded.max_batch_tokens()
    assert sum(tokens for _, tokens in read) > most, "otherwise nothing is to be divided"
    assert all(rows == 1 or tokens <= most for rows, tokens in read)
