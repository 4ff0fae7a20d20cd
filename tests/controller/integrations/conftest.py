"""A learner that trains in milliseconds, and few-shot chats."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autottt import Controller, FixedPolicy, Learner, Recipe
from autottt.strategies.registry import strategies
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

PAIRS = [("ab", "ba"), ("cd", "dc"), ("ef", "fe")]
QUICK = Recipe(rank=2, alpha=2.0, dropout=0.0, learning_rate=1e-3, max_steps=3, batch_size=2, views=3)


@pytest.fixture(scope="module")
def shared_learner() -> Learner:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer(), prompt_format="compact")
    learner.loaded = replace(learner.loaded, recipes=dict.fromkeys(strategies(), QUICK))
    return learner


@pytest.fixture
def controller(shared_learner: Learner, one_thread: None) -> Controller:
    shared_learner.clear()
    return Controller(shared_learner, FixedPolicy("ttt_direct"))
