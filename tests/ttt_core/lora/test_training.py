"""Training: what is learned, how fast, until when; and each adapter by itself."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autottt.ttt_core.engine import adapter_trainer as teaching
from autottt.ttt_core.engine.adapter_trainer import COPIES
from autottt.ttt_core.errors import AdaptationError, ModelError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora import gradients, training
from autottt.ttt_core.lora.gradients import GradientEngine, loss_positions
from autottt.ttt_core.lora.optimizer import BatchedAdamW, clip_gradients
from autottt.ttt_core.lora.training import _schedule, train
from autottt.ttt_core.lora.weights import LoraWeights
from autottt.ttt_core.model.encoding import Encoded, encode
from autottt.ttt_core.model.loading import LoadedModel, wrap_model
from autottt.ttt_core.recipes import Loss, Recipe
from autottt.ttt_core.tasks.augmentation import leave_one_out
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = Recipe(rank=4, alpha=8.0, dropout=0.0, learning_rate=1e-2, max_steps=3, batch_size=2)
THREE = Encoded(tuple(range(20)), ((4, 6), (9, 12), (16, 20)), 12)


@pytest.fixture
def loaded() -> LoadedModel:
    return wrap_model(tiny_model("llama").requires_grad_(False), tiny_tokenizer())


@pytest.fixture
def examples(loaded: LoadedModel, task: Task) -> list[Encoded]:
    return [encode(loaded, t, t.answer) for t in leave_one_out(task)]


# --- what is learned ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("example", "loss", "positions"),
    [
        (THREE, "all", [9, 10, 11, 16, 17, 18, 19]),
        (THREE, "last", [16, 17, 18, 19]),
        (THREE, "inputs", list(range(1, 20))),
        (replace(THREE, answers=((4, 6),)), "all", [4, 5]),
        (replace(THREE, answers=((0, 3),)), "last", [1, 2]),
    ],
)
def test_the_loss_setting_selects_the_trained_tokens(example: Encoded, loss: Loss, positions: list[int]) -> None:
    assert loss_positions(example, loss) == positions


@pytest.mark.parametrize("loss", ["all", "last", "inputs"])
def test_the_loss_is_the_mean_over_the_trained_tokens_of_each_adapter(
    loss: Loss, loaded: LoadedModel, examples: list[Encoded]
) -> None:
    short = replace(examples[0], ids=examples[0].ids[: examples[0].answers[0][1]], answers=examples[0].answers[:1])
    rows = [examples[0], short, examples[1], examples[2]]
    recipe = replace(RECIPE, loss=loss)
    with GradientEngine(loaded, [recipe] * 2) as engine:
        losses = engine.losses(
            BatchedAdamW(LoraWeights.initial(loaded.model, recipe, [0, 1]), [recipe] * 2), [rows[:2], rows[2:]]
        )
    expected = []
    for group in (rows[:2], rows[2:]):
        each = []
        for row in group:
            with torch.no_grad():
                log_probs = loaded.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
            each += [-float(log_probs[p - 1, row.ids[p]]) for p in loss_positions(row, loss)]
        expected.append(sum(each) / len(each))
    assert losses == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("loss", ["all", "last", "inputs"])
def test_every_loss_can_be_trained(loss: Loss, loaded: LoadedModel, examples: list[Encoded]) -> None:
    _, (done,) = train(loaded, [examples], replace(RECIPE, loss=loss, max_steps=6, batch_size=3), [0])
    assert done.losses[-1] < done.losses[0]


@pytest.mark.parametrize("examples_of", [[], [[]], [[THREE], []]])
def test_without_examples_there_is_nothing_to_train_on(examples_of: list[list[Encoded]], loaded: LoadedModel) -> None:
    with pytest.raises(AdaptationError, match="nothing to train on"):
        train(loaded, examples_of, RECIPE, [0] * len(examples_of))


# --- how fast -------------------------------------------------------------------------------------------------------


def test_the_rate_rises_to_its_full_height_and_falls_to_nothing() -> None:
    rates = [_schedule(step, replace(RECIPE, max_steps=20, warmup_ratio=0.2)) for step in range(20)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert rates[12] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.02


def test_without_warm_up_the_rate_begins_at_its_full_height() -> None:
    assert _schedule(0, replace(RECIPE, warmup_ratio=0.0)) == 1.0
    assert _schedule(0, replace(RECIPE, warmup_ratio=0.1, max_steps=1)) == 1.0


def test_the_schedule_sets_the_rate_of_every_step(
    loaded: LoadedModel, examples: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_schedule", lambda step, recipe: float(step == 1))
    still, _ = train(loaded, [examples], replace(RECIPE, max_steps=1), [0])
    moved, _ = train(loaded, [examples], replace(RECIPE, max_steps=2), [0])
    ups = [torch.stack([up.abs().sum() for _, up in w.pairs.values()]).sum() for w in (still, moved)]
    assert ups[0] == 0 < ups[1]


def test_gradients_are_clipped_for_each_adapter_by_itself() -> None:
    gradients = torch.ones(2, 50)
    gradients[1] *= 1e-4
    before = gradients.clone()
    clip_gradients(gradients, [0.5] * len(gradients))
    assert torch.allclose(gradients[0], before[0] * 0.5 / math.sqrt(50))
    assert torch.equal(gradients[1], before[1])


def test_weight_decay_draws_the_weights_towards_nothing(loaded: LoadedModel, examples: list[Encoded]) -> None:
    free, held = (
        train(loaded, [examples], replace(RECIPE, warmup_ratio=0.0, weight_decay=w), [0])[0].pairs for w in (0.0, 20.0)
    )
    assert sum(float(down.abs().sum()) for down, _ in held.values()) < 0.9 * sum(
        float(down.abs().sum()) for down, _ in free.values()
    )


# --- until when -----------------------------------------------------------------------------------------------------


def test_a_deadline_that_has_passed_trains_no_step_and_the_adapter_changes_nothing(task: Task) -> None:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer())
    adapter = learner.adapt(leave_one_out(task), RECIPE, deadline=time.monotonic() - 1)
    assert (adapter.training.steps, adapter.training.stop_reason, adapter.training.losses) == (0, "deadline", ())
    assert adapter.training.tokens == learner.guarded.charged.token_equivalents == 0
    assert learner.score([task], adapter) == learner.score([task])


def test_a_deadline_stops_before_the_step_that_would_pass_it(
    loaded: LoadedModel, examples: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(training, "clock", SimpleNamespace(monotonic=lambda: now[0]))

    def step(optimizer: BatchedAdamW, rates: list[float]) -> None:
        now[0] += 10.0 if now[0] == 1.0 else 1.0  # the second step is slow

    monkeypatch.setattr(BatchedAdamW, "step", step)

    def trained(deadline: float) -> tuple[int, str]:
        now[0] = 0.0
        _, (done,) = train(loaded, [examples], replace(RECIPE, max_steps=4), [0], deadline=deadline)
        return done.steps, done.stop_reason

    assert trained(math.inf) == trained(31.0) == (4, "finished")
    assert trained(20.5) == (2, "deadline"), "a third step as slow as the second would end at 21"
    assert trained(-1.0) == (0, "deadline")


@pytest.fixture
def one_second_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only training steps advance, by a second each."""
    now, real = [0.0], BatchedAdamW.step

    def step(optimizer: BatchedAdamW, rates: list[float]) -> None:
        now[0] += 1.0
        real(optimizer, rates)

    monkeypatch.setattr(training, "clock", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(BatchedAdamW, "step", step)
    monkeypatch.setattr(GradientEngine, "estimate_seconds", lambda *_: 0.0)


@pytest.mark.usefixtures("one_second_steps")
def test_an_adapter_whose_share_of_the_seconds_is_used_up_stops_and_the_others_continue(
    loaded: LoadedModel, examples: list[Encoded]
) -> None:
    recipe = replace(RECIPE, max_steps=6, batch_size=3)
    both, (short, long) = train(loaded, [examples] * 2, recipe, [0, 1], max_seconds=[1.4, 100.0])
    assert (short.steps, short.stop_reason, short.seconds) == (2, "deadline", 1.0), "a third step would end at 1.5"
    assert (long.steps, long.stop_reason, long.seconds) == (6, "finished", 5.0)
    alone, (one,) = train(loaded, [examples], recipe, [0], max_seconds=[2.9])
    other, _ = train(loaded, [examples], recipe, [1])
    assert (one.steps, one.stop_reason, one.losses) == (2, "deadline", pytest.approx(short.losses, abs=1e-5))
    for index, single in enumerate((alone, other)):
        for name, pair in single.pairs.items():
            for mine, batched in zip(pair, both.pairs[name], strict=True):
                torch.testing.assert_close(mine[0], batched[index], atol=1e-4, rtol=1e-3)


@pytest.mark.usefixtures("one_second_steps")
def test_the_seconds_of_each_step_are_divided_by_tokens(loaded: LoadedModel, examples: list[Encoded]) -> None:
    recipes = [replace(RECIPE, batch_size=batch, max_steps=steps) for batch, steps in ((1, 3), (3, 2))]
    _, records = train(loaded, [examples[:1], examples[:1]], recipes, [0, 1])
    assert [record.seconds for record in records] == pytest.approx([2 / 4 + 1, 2 * 3 / 4])


def test_whether_training_begins_is_estimated_for_each_adapter(
    loaded: LoadedModel, examples: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GradientEngine, "estimate_seconds", lambda *_: 4000.0)
    recipes = [replace(RECIPE, batch_size=batch) for batch in (1, 3)]
    _, (small, large) = train(loaded, [examples[:1]] * 2, recipes, [0, 1], max_seconds=[2000.0, 2000.0])
    assert (small.steps, small.stop_reason) == (3, "finished"), "its share of the first step is 1000 seconds"
    assert (large.steps, large.stop_reason, large.zero_update) == (0, "deadline", True)
    _, records = train(loaded, [examples[:1]] * 2, recipes, [0, 1], max_seconds=[-1.0, 5000.0])
    assert [record.steps for record in records] == [0, 3]


def test_the_adapters_that_have_a_bound_pay_for_the_estimate(loaded: LoadedModel, examples: list[Encoded]) -> None:
    charged: list[tuple[int, int]] = []
    _, records = train(
        loaded, [examples] * 3, RECIPE, [0, 1, 2], max_seconds=[1000.0, math.inf, 1000.0],
        charge=lambda *tokens: charged.append(tokens),
    )  # fmt: skip
    assert {record.stop_reason for record in records} == {"finished"}
    read, backward = (sum(tokens) for tokens in zip(*charged, strict=True))
    assert sum(record.tokens for record in records) == backward
    assert sum(record.estimate_tokens for record in records) == pytest.approx(read - backward, abs=1)
    assert read > backward
    assert records[0].estimate_tokens == records[2].estimate_tokens > records[1].estimate_tokens == 0


def test_the_estimate_reads_one_prompt_where_there_is_ample_time(
    loaded: LoadedModel, examples: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, batch_size=3)
    _, (record,) = train(loaded, [examples[:1]], recipe, [0], max_seconds=[1000.0])
    assert record.estimate_tokens == len(examples[0].ids)
    read: list[int] = []

    def estimate(_: object, __: object, rows: list[list[Encoded]], ___: object) -> float:
        read.append(len(rows[0]))
        return 60.0

    monkeypatch.setattr(GradientEngine, "estimate_seconds", estimate)
    train(loaded, [examples[:1]], recipe, [0], max_seconds=[1000.0])
    assert read == [1, 3], "three times 60 seconds are more than a tenth of the time"


@pytest.mark.parametrize(("bound", "prompts"), [(401.0, 0), (390.0, 1)])
def test_no_prompt_is_read_where_the_rate_of_reading_shows_ample_time(
    loaded: LoadedModel, examples: list[Encoded], bound: float, prompts: int
) -> None:
    tokens, charged = 3 * len(examples[0].ids), list[tuple[int, int]]()
    hundred_seconds = 100.0 / (3 * tokens)
    _, (record,) = train(
        loaded, [examples[:1]], replace(RECIPE, batch_size=3), [0], max_seconds=[bound],
        token_seconds=hundred_seconds, charge=lambda *both: charged.append(both),
    )  # fmt: skip
    assert record.stop_reason == "finished"
    assert sum(forward - backward for forward, backward in charged) == prompts * len(examples[0].ids)
    assert record.estimate_tokens == prompts * len(examples[0].ids)


def test_a_prompt_is_read_where_the_rate_of_reading_leaves_too_little_time(
    loaded: LoadedModel, examples: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GradientEngine, "estimate_seconds", lambda *_: 0.0)
    _, (record,) = train(loaded, [examples], RECIPE, [0], max_seconds=[1000.0], token_seconds=1e6)
    assert record.stop_reason == "finished", "the rate may be far off: the estimate decides"


def test_training_after_a_prompt_was_read_reads_nothing_to_estimate_its_first_step(task: Task) -> None:
    learner, deadline = Learner(wrap_model(tiny_model("llama"), tiny_tokenizer())), time.monotonic() + 1e6
    first = learner.adapt(leave_one_out(task), RECIPE, deadline=deadline).training
    assert first.estimate_tokens > 0, "nothing was read before"
    learner.answer([task])
    later = learner.adapt(leave_one_out(task), RECIPE, seed=1, deadline=deadline).training
    assert later.estimate_tokens == 0
    assert first.stop_reason == later.stop_reason == "finished"


def test_an_adapter_that_has_converged_stops_and_the_others_continue(
    loaded: LoadedModel, examples: list[Encoded]
) -> None:
    recipe = replace(RECIPE, max_steps=12, warmup_ratio=0.0)
    _, (whole,) = train(loaded, [examples], recipe, [0])
    assert whole.stop_reason == "finished"
    limit = max(whole.losses[5:7]) + 1e-6
    recipe = replace(recipe, early_stop_loss=limit)
    alone, (first,) = train(loaded, [examples], recipe, [0])
    assert (first.stop_reason, first.losses) == ("converged", whole.losses[: first.steps])
    assert first.steps <= 7
    assert max(first.losses[-2:]) < limit
    assert not any(max(pair) < limit for pair in pairwise(first.losses[:-1]))
    # The other stops before the first, and is trained on beside it; what it gets is what it had when it stopped.
    other_alone, (quick,) = train(loaded, [examples[:1]], recipe, [1])
    assert quick.steps < first.steps
    both, told = train(loaded, [examples, examples[:1]], recipe, [0, 1])
    assert [(t.steps, t.tokens) for t in told] == [(first.steps, first.tokens), (quick.steps, quick.tokens)]
    for index, one in enumerate((alone, other_alone)):
        for name, pair in one.pairs.items():
            for single, batched in zip(pair, both.pairs[name], strict=True):
                torch.testing.assert_close(single[0], batched[index], atol=1e-4, rtol=1e-3)


def test_every_step_is_reported_and_charged(loaded: LoadedModel, examples: list[Encoded]) -> None:
    told: list[tuple[int, float]] = []
    charged: list[tuple[int, int]] = []
    recipe = replace(RECIPE, batch_size=3)
    _, done = train(
        loaded, [examples, examples], recipe, [0, 1],
        on_step=lambda *a: told.append(a), charge=lambda *a: charged.append(a),
    )  # fmt: skip
    assert [step for step, _ in told] == [1, 2, 3]
    means = [sum(pair) / 2 for pair in zip(done[0].losses, done[1].losses, strict=True)]
    assert [loss for _, loss in told] == pytest.approx(means)
    a_round = sum(len(e.ids) for e in examples)
    assert charged == [(2 * a_round, 2 * a_round)] * 3
    assert [d.tokens for d in done] == [3 * a_round] * 2
    assert all(d.seconds > 0 for d in done)


# --- order and chance -----------------------------------------------------------------------------------------------


def test_every_example_is_met_once_a_round() -> None:
    source = training._ShuffledRounds(5, random.Random(0))
    drawn = [next(source) for _ in range(20)]
    assert all(count == 4 for count in Counter(drawn).values())
    assert len({tuple(drawn[i : i + 5]) for i in (0, 5, 10, 15)}) > 1


@pytest.mark.parametrize("workers", [1, 2])
def test_dropout_falls_as_it_would_alone(workers: int, loaded: LoadedModel, examples: list[Encoded]) -> None:
    recipe = replace(RECIPE, dropout=0.4)
    together, _ = train(loaded, [examples, examples[:2], examples], recipe, [0, 7, 3], workers=workers)
    for index, (rows, seed) in enumerate([(examples, 0), (examples[:2], 7), (examples, 3)]):
        alone, _ = train(loaded, [rows], recipe, [seed], workers=1)
        for a, b in zip(alone.tensors, together.select(index).tensors, strict=True):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_dropout_follows_the_seed_and_leaves_the_random_state_alone(
    loaded: LoadedModel, examples: list[Encoded]
) -> None:
    recipe = replace(RECIPE, dropout=0.4)
    before = torch.get_rng_state()
    first = train(loaded, [examples], recipe, [0])[0].tensors
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert all(map(torch.equal, first, train(loaded, [examples], recipe, [0])[0].tensors))
    without = train(loaded, [examples], RECIPE, [0])[0].tensors
    assert not all(map(torch.equal, first, without))
    torch.set_rng_state(before)


def test_an_adapter_of_bf16_models_is_trained_in_fp32(task: Task) -> None:
    loaded = wrap_model(tiny_model("llama", dtype=torch.bfloat16).requires_grad_(False), tiny_tokenizer())
    rows = [encode(loaded, t, t.answer) for t in leave_one_out(task)]
    weights, _ = train(loaded, [rows], RECIPE, [0])
    assert {t.dtype for t in weights.tensors} == {torch.float32}
    assert not any(t.requires_grad for t in weights.tensors)


# --- what goes wrong ------------------------------------------------------------------------------------------------


def spoiled(monkeypatch: pytest.MonkeyPatch, adapter: int, step: int) -> None:
    """The loss and the gradients of an adapter are not numbers at a step."""
    real, calls = GradientEngine.losses, [0]

    def losses(
        self: GradientEngine, optimizer: BatchedAdamW, rows: list[list[Encoded]], dropout_seeds: list[int]
    ) -> list[float]:
        values: list[float] = real(self, optimizer, rows, dropout_seeds)
        calls[0] += 1
        if calls[0] == step:
            optimizer.gradients[:, adapter] = math.nan
            values[adapter] = math.nan
        return values

    monkeypatch.setattr(GradientEngine, "losses", losses)


def test_an_adapter_that_fails_takes_no_other_with_it(
    loaded: LoadedModel, examples: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [train(loaded, [examples], RECIPE, [seed])[0].tensors for seed in (0, 1, 2)]
    spoiled(monkeypatch, adapter=1, step=2)
    weights, trainings = train(loaded, [examples] * 3, RECIPE, [0, 1, 2])
    assert [t.stop_reason for t in trainings] == ["finished", "failed", "finished"]
    assert [t.steps for t in trainings] == [3, 1, 3]
    assert "not finite at step 2" in trainings[1].error
    assert trainings[0].error == trainings[2].error == ""
    for index in (0, 2):
        for mine, expected in zip(weights.select(index).tensors, alone[index], strict=True):
            torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("count", "reported"), [(1, [[0]]), (2, [[0, 1], [1], [1]])])
def test_a_loss_that_is_no_number_is_not_reported(
    count: int, reported: list[list[int]], loaded: LoadedModel, examples: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled(monkeypatch, adapter=0, step=2)
    steps: list[list[int]] = []
    train(
        loaded, [examples] * count, RECIPE, list(range(count)), on_batch_step=lambda _, losses: steps.append([*losses])
    )
    assert steps == reported


def test_a_failure_in_a_batch_is_raised_by_its_own_plan_and_charged_to_no_other(
    task: Task, make_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer())
    prompts = leave_one_out(task)
    with monkeypatch.context() as patch:
        spoiled(patch, adapter=1, step=2)
        plans = [make_plan(key, prompts, RECIPE, seed) for seed, key in enumerate("abc")]
        learner.adapters.prefetch(plans)
    assert learner.guarded.charged.backward_tokens == 0
    assert [learner.adapters.has_adapter(plan) for plan in plans] == [True, False, True]
    with monkeypatch.context() as patch:
        spoiled(patch, adapter=0, step=1)
        with pytest.raises(AdaptationError, match="not finite at step 1"):
            learner.adapt(prompts, RECIPE)


def test_the_first_step_is_not_begun_where_it_would_be_too_long(
    loaded: LoadedModel, examples: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = GradientEngine.losses

    def slow(self: GradientEngine, *given: object) -> list[float]:
        time.sleep(0.5)
        return real(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(GradientEngine, "losses", slow)
    monkeypatch.setattr(GradientEngine, "estimate_seconds", lambda *_: 0.5)
    began = time.monotonic()
    _, (training,) = train(loaded, [examples], RECIPE, [0], deadline=began + 0.3)
    assert (training.steps, training.stop_reason) == (0, "deadline")
    assert time.monotonic() - began < 0.4


@pytest.mark.parametrize(
    ("workers", "batches", "after_one_another"),
    [(1, [8], 8), (2, [8], 4), (1, [2, 8], 10), (2, [4] * 8, 16), (2, [1, 1, 1], 2)],
)
def test_the_time_of_a_step_is_estimated_from_its_largest_pass(
    workers: int,
    batches: list[int],
    after_one_another: int,
    loaded: LoadedModel,
    examples: list[Encoded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A clock that counts tokens: one for each on the way there, two on the way back."""
    now, real = [0.0], gradients._loss_batch

    def counted(loaded: LoadedModel, rows: list[Encoded], loss: Loss) -> Any:
        now[0] += sum(len(row.ids) for row in rows)
        return real(loaded, rows, loss)

    monkeypatch.setattr(gradients, "_loss_batch", counted)
    monkeypatch.setattr(gradients, "clock", SimpleNamespace(reader=lambda: lambda: now[0]))
    recipes = [replace(RECIPE, batch_size=batch) for batch in batches]
    rows = [examples[:1] * batch for batch in batches]
    with GradientEngine(loaded, recipes, workers) as engine:
        optimizer = BatchedAdamW(
            LoraWeights.initial(loaded.model, RECIPE, [0] * len(rows)), recipes, engine.shards(len(rows))
        )
        engine.measure_memory(optimizer, examples[0])
        charged: list[int] = []
        expected = engine.estimate_seconds(
            optimizer, rows, lambda forward, backward: charged.append(forward - backward)
        )
    assert expected == pytest.approx(3 * len(examples[0].ids) * after_one_another)
    assert charged == [len(examples[0].ids) * max(batches) // (workers if len(batches) == 1 else 1)]


def test_the_estimate_halves_a_pass_that_does_not_fit_in_memory(
    loaded: LoadedModel, examples: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = gradients._loss_batch, list[int]()

    def narrow(loaded: LoadedModel, rows: list[Encoded], loss: Loss) -> Any:
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("too much")
        return real(loaded, rows, loss)

    with GradientEngine(loaded, [replace(RECIPE, batch_size=8)], 1) as engine:
        optimizer = BatchedAdamW(LoraWeights.initial(loaded.model, RECIPE, [0]), [RECIPE])
        engine.measure_memory(optimizer, examples[0])
        monkeypatch.setattr(gradients, "_loss_batch", narrow)
        assert engine.estimate_seconds(optimizer, [examples[:1] * 8]) > 0
        assert sizes == [8, 4, 2]
        engine.losses(optimizer, [examples[:1] * 8])
    assert sizes[3:] == [2] * 4, "what was learned holds for the step"


def test_no_pass_is_run_to_estimate_a_step_after_the_deadline(
    loaded: LoadedModel, examples: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GradientEngine, "estimate_seconds", None)
    _, (training,) = train(loaded, [examples], RECIPE, [0], deadline=time.monotonic() - 1)
    assert (training.steps, training.stop_reason) == (0, "deadline")
    train(loaded, [examples], RECIPE, [0])


@pytest.mark.parametrize("stacked", [False, True])
def test_each_adapter_follows_its_own_recipe_as_it_would_alone(
    stacked: bool, loaded: LoadedModel, examples: list[Encoded], as_on_an_accelerator: Callable[[], None]
) -> None:
    if stacked:
        as_on_an_accelerator()
    recipes = [
        RECIPE,
        replace(RECIPE, max_steps=6, learning_rate=3e-3, warmup_ratio=0.5),
        replace(RECIPE, max_steps=5, batch_size=1, weight_decay=0.5),
        replace(RECIPE, max_steps=2, batch_size=3, max_grad_norm=0.01),
        replace(RECIPE, early_stop_loss=99.0),
    ]
    together, told = train(loaded, [examples] * 5, recipes, [0, 1, 2, 3, 4])
    assert [t.steps for t in told] == [3, 6, 5, 2, 2]
    assert [t.stop_reason for t in told] == ["finished"] * 4 + ["converged"]
    for index, recipe in enumerate(recipes):
        alone, (one,) = train(loaded, [examples], recipe, [index])
        assert one.losses == pytest.approx(told[index].losses, abs=1e-4)
        assert one.tokens == told[index].tokens
        for a, b in zip(alone.tensors, together.select(index).tensors, strict=True):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_recipes_that_cannot_go_side_by_side_are_refused(loaded: LoadedModel, examples: list[Encoded]) -> None:
    with pytest.raises(ModelError, match=r"one rank, alpha, .*received \(4, 8.0, .*\(2, 8.0, .*train them in groups"):
        train(loaded, [examples] * 2, [RECIPE, replace(RECIPE, rank=2)], [0, 1])
    with pytest.raises(ModelError, match=r"one for each; received 1"):
        train(loaded, [examples] * 2, [RECIPE], [0, 1])


def test_masks_follow_the_layer_not_the_order_in_which_layers_are_named(
    loaded: LoadedModel, examples: list[Encoded]
) -> None:
    recipe = replace(RECIPE, dropout=0.3)
    start = LoraWeights.initial(loaded.model, recipe, [0])
    turned = LoraWeights(dict(sorted(start.pairs.items(), reverse=True)), start.scaling)
    losses = [train(loaded, [examples], recipe, [0], start=one)[1][0].losses for one in (start, turned)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_adapters_that_do_not_fit_side_by_side_are_trained_in_groups_and_come_out_the_same(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, kept = tiny_model("llama"), []

    class Noted(BatchedAdamW):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            kept.append((self.values.shape[0], self.nbytes))

    monkeypatch.setattr(training, "BatchedAdamW", Noted)
    given = [leave_one_out(task)] * 5, RECIPE, list(range(5))
    free = Learner(wrap_model(model, tiny_tokenizer()))
    together = free.trainer.adapt_many(*given)
    assert [count for count, _ in kept] == [5]
    kept.clear()
    bound = 4 * 2 * COPIES * together[0].weights.nbytes
    bounded = Learner(wrap_model(model, tiny_tokenizer()), memory_bytes=bound)
    steps: list[int] = []
    apart = bounded.trainer.adapt_many(*given, on_step=lambda step, loss: steps.append(step))
    assert [count for count, _ in kept] == [2, 2, 1]
    assert all(nbytes <= bound / 4 for _, nbytes in kept)
    assert steps == [1, 2, 3] * 3
    assert bounded.guarded.charged == free.guarded.charged
    for one, other in zip(together, apart, strict=True):
        assert one.training.losses == pytest.approx(other.training.losses, abs=1e-4)
        for a, b in zip(one.weights.tensors, other.weights.tensors, strict=True):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_each_group_has_its_share_of_the_time(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, shares = Learner.wrap(tiny_model("llama"), tiny_tokenizer()), []

    def trained(*given: Any, deadline: float, **settings: Any) -> Any:
        shares.append(deadline - time.monotonic())
        return train(*given, deadline=deadline, **settings)

    monkeypatch.setattr(teaching, "train", trained)
    monkeypatch.setattr(learner.trainer, "max_batched_adapters", lambda *given: 2)
    prompts = [leave_one_out(task)] * 5
    learner.trainer.adapt_many(
        prompts, replace(RECIPE, max_steps=1), list(range(5)), deadline=time.monotonic() + 100_000
    )
    assert shares == pytest.approx([40_000, 66_666, 100_000], rel=0.01)


@pytest.mark.parametrize(
    ("settings", "zero"),
    [
        ({}, False),
        ({"alpha": 0.0}, True),
        ({"learning_rate": 1e-12, "max_steps": 1}, False),
        ({"alpha": -8.0}, False),
    ],
    ids=str,
)
def test_the_record_says_that_the_update_is_zero(
    settings: dict[str, Any], zero: bool, loaded: LoadedModel, examples: list[Encoded]
) -> None:
    recipe = replace(RECIPE, **settings)
    weights, records = train(loaded, [examples, examples], recipe, [0, 1])
    assert [r.stop_reason for r in records] == ["finished", "finished"]
    assert [r.zero_update for r in records] == [zero, zero]
    assert zero == all(not bool((weights.scaling * up @ down).any()) for down, up in weights.pairs.values())


def test_the_record_of_training_without_a_step_says_that_the_update_is_zero(
    loaded: LoadedModel, examples: list[Encoded]
) -> None:
    _, (new,) = train(loaded, [examples], RECIPE, [0], deadline=0.0)
    assert new.zero_update
    trained, _ = train(loaded, [examples], RECIPE, [0])
    _, (continued,) = train(loaded, [examples], RECIPE, [0], deadline=0.0, start=trained)
    assert not continued.zero_update
