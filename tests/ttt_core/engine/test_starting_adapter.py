"""A starting adapter: every training starts from it, in its shape, and it answers in context where that is wanted."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from autottt.strategies.base import run
from autottt.strategies.registry import get_strategy
from autottt.ttt_core.errors import ModelError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora.starting_adapter import CARD, read_card, write_card
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

SHAPE = Recipe(rank=3, alpha=6.0, dropout=0.0, target_modules=("q_proj", "up_proj"), max_steps=3, learning_rate=0.05)
QUICK = dataclasses.replace(SHAPE, rank=8, alpha=8.0, target_modules=("v_proj",), max_steps=2, learning_rate=1e-3)


def learner_with(folder=None, **options) -> Learner:
    recipes = dict.fromkeys(("ttt_in_context", "ttt_crossfit", "ttt_augmented", "ttt_warm"), QUICK)
    learner = Learner.wrap(
        tiny_model("llama", 0, torch.float32), tiny_tokenizer(), prompt_format="standard", starting_adapter=folder,
        **options,
    )  # fmt: skip
    object.__setattr__(learner.loaded, "recipes", recipes)
    return learner


@pytest.fixture
def folder(one_thread, task, tmp_path):
    learner = learner_with()
    adapter = learner.adapt([task], SHAPE)
    assert not adapter.training.zero_update
    learner.export(adapter, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("strategy", ["ttt_in_context", "ttt_augmented", "ttt_crossfit", "ttt_warm"])
def test_every_training_starts_from_it_in_its_shape_and_leaves_the_base(folder, task, strategy):
    learner = learner_with(folder)
    before = learner.adapters.starting.weights.digest()
    attempt = run(get_strategy(strategy), learner, task)
    assert attempt.error == ""
    assert attempt.training_record.started_from == learner.adapters.starting_digest == before
    assert {name for name, _ in attempt.training_record.modules} <= {
        "model.layers.*.self_attn.q_proj", "model.layers.*.mlp.up_proj"
    }  # fmt: skip
    assert learner.adapters.starting.weights.digest() == before
    assert learner.verify(full=True)


def test_adapters_that_are_trained_in_one_batch_start_from_it_too(folder, task):
    strategy = get_strategy("ttt_in_context")
    learner = learner_with(folder)
    alone = learner.adapters.get_or_train(strategy.plan(learner, task, 0))[0]
    learner = learner_with(folder)
    plans = [strategy.plan(learner, task, seed) for seed in (0, 1)]
    trained = learner.adapters.prefetch(plans)
    assert [one.training.started_from for one in trained] == [learner.adapters.starting_digest] * 2
    together = learner.adapters.get_or_train(plans[0])[0]
    for name, pair in alone.weights.pairs.items():
        for one, other in zip(pair, together.weights.pairs[name], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_it_answers_in_context_only_where_that_is_wanted(folder, task):
    base, start, reads = learner_with(), learner_with(folder), learner_with(folder, read_with_adapter=True)
    adapter = base.import_peft(folder)
    scores = [learner.score([task])[0][-1].log_probs for learner in (base, start, reads)]
    assert scores[0] == scores[1] != scores[2]
    assert scores[2] == pytest.approx(base.score([task], adapter)[0][-1].log_probs)
    assert reads.answer([task])[0].text == base.answer([task], adapter)[0].text
    assert reads.read(task).answers[-1].log_probs == pytest.approx(base.read(task, adapter).answers[-1].log_probs)
    assert start.adapters.starting_digest != reads.adapters.starting_digest.partition("+")[2]
    assert reads.adapters.starting_digest == f"{start.adapters.starting_digest}+read"
    assert reads.verify(full=True)


def test_adapters_of_other_starts_are_not_reused(folder, task):
    strategy = get_strategy("ttt_in_context")
    first, second = learner_with(), learner_with(folder)
    first.adapters.get_or_train(strategy.plan(first, task, 0))
    second.adapters.cache = first.adapters.cache
    assert not second.adapters.has_adapter(strategy.plan(second, task, 0))


def test_an_adapter_of_another_base_is_refused(folder):
    write_card(folder, {"base_hash": "elsewhere"})
    with pytest.raises(ModelError, match="was trained for another model, elsewhere; this model is"):
        learner_with(folder)
    (folder / CARD).write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        learner_with(folder)
    (folder / CARD).unlink()
    assert read_card(folder) == {}
    assert learner_with(folder).adapters.starting_digest


def test_reading_needs_an_adapter(one_thread):
    with pytest.raises(ModelError, match="expected a starting_adapter as well"):
        learner_with(read_with_adapter=True)
