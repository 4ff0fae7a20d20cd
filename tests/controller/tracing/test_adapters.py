"""What an adapter is, in words."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from autottt.controller.tracing.adapters import adapter_sentence, recipe_sentence
from autottt.ttt_core.recipes import Recipe

FACTS = {
    "rank": 16, "alpha": 16.0, "folds": 1, "bytes": 1818624, "hash": "339933d378ee", "weight_share": 0.9793,
    "modules": {"model.layers.*.self_attn.q_proj": 6, "model.layers.*.mlp.up_proj": 6}, "source": "trained",
}  # fmt: skip


def test_an_adapter_has_rank_modules_bytes_and_digest():
    assert adapter_sentence(FACTS) == (
        "One LoRA adapter of rank 16 (alpha 16) on 12 modules of 2 kinds: q_proj, up_proj. These modules hold 97.9% of "
        "the model's weights, which stay frozen. The adapter has 1,818,624 bytes and the digest 339933d378ee. It was "
        "trained in this run and did not come from the cache."
    )


@pytest.mark.parametrize(
    ("source", "words"),
    [("cached", "It came from the cache"), ("prefetched", "It was trained ahead of the attempt, and is charged here")],
)
def test_an_adapter_says_where_it_came_from(source, words):
    assert words in adapter_sentence({**FACTS, "source": source})


@pytest.mark.parametrize(
    ("source", "tasks", "words"),
    [
        ("prefetched", 4, "It was trained while this run waited, in a batch of 4 tasks, and is charged here."),
        ("prefetched", 1, "It was trained while this run waited, and is charged here."),
        ("cached", 4, "in a batch of 4 tasks, and is charged to another task with the same demonstrations."),
        ("trained", 4, "It was trained in this run and did not come from the cache."),
    ],
)
def test_an_adapter_of_a_batch_says_that_it_was_trained_during_the_run_and_who_is_charged(source, tasks, words):
    text = adapter_sentence({**FACTS, "source": source}, {"shared_by": tasks})
    assert text.endswith(words)
    assert "before this run" not in text


def test_folds_are_several_adapters():
    text = adapter_sentence({**FACTS, "folds": 4})
    assert text.startswith("4 LoRA adapters (one for each fold of the demonstrations) of rank 16")
    assert "Together they have 1,818,624 bytes" in text
    assert "They were trained in this run and did not come" in text


def test_a_training_that_failed_has_no_adapter():
    assert adapter_sentence({"strategy": "ttt_direct"}) == ""


def test_a_recipe_has_learning_rate_planned_steps_and_the_limit_of_the_loss():
    text = recipe_sentence(asdict(Recipe(learning_rate=0.003, max_steps=24, batch_size=6, early_stop_loss=0.01)))
    assert "learning rate 0.003" in text
    assert "at most 24 steps of 6 prompts" in text
    assert "two steps in a row have a loss below 0.01" in text
    assert recipe_sentence({}) == ""
