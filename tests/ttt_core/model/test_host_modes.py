"""Modes and defaults of the host's thread: none of them changes an answer, a training or a cached adapter."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from autottt.ttt_core.errors import ModelError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.augmentation import leave_one_out
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

RECIPE = Recipe(rank=2, alpha=4.0, dropout=0.1, max_steps=2, batch_size=2, learning_rate=1e-2)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "default type bf16": lambda: default_dtype(torch.bfloat16),
    "default type fp64": lambda: default_dtype(torch.float64),
    "another default device": lambda: torch.device("meta"),
}


def work(learner: Learner, task: Task) -> tuple[Any, ...]:
    """What is read, answered, sampled and trained."""
    adapter = learner.adapt(leave_one_out(task), RECIPE, seed=3)
    weights = [(t.dtype, t.tolist()) for t in adapter.weights.tensors]
    sampled = learner.answer([task], temperature=1.0, seed=5)
    return learner.score([task]), learner.score([task], adapter), learner.answer([task]), sampled, weights


@pytest.mark.parametrize("mode", MODES)
def test_no_mode_of_the_host_changes_an_answer_or_a_training(
    make_learner: Callable[..., Learner], task: Task, unchanged: Any, mode: str
) -> None:
    expected = work(make_learner(), task)
    learner = make_learner()
    with unchanged(learner.loaded.model), MODES[mode]():
        assert work(learner, task) == expected
    assert learner.verify(full=True).method == "full"


@pytest.mark.parametrize("mode", ["autocast", "default type bf16", "inference mode"])
def test_a_model_is_judged_alike_in_every_mode(make_learner: Callable[..., Learner], mode: str) -> None:
    wrapped = make_learner()
    with MODES[mode]():
        other = Learner.wrap(wrapped.loaded.model, wrapped.loaded.tokenizer)
        assert other.loaded.supports_padding == wrapped.loaded.supports_padding
    assert other.base_hash == wrapped.base_hash
    assert other.verify(full=True).method == "full"


def test_a_model_that_is_loaded_in_inference_mode_can_be_trained(task: Task) -> None:
    with torch.inference_mode():
        learner = Learner.load(dtype="fp32")
        adapter = learner.adapt(leave_one_out(task), replace(RECIPE, max_steps=1))
    assert adapter.training.steps == 1


def test_weights_that_were_made_in_inference_mode_are_refused_with_the_remedy() -> None:
    with torch.inference_mode():
        model = tiny_model("llama")
    with pytest.raises(ModelError, match=r"embed_tokens.weight' was made inside torch.inference_mode.*deepcopy"):
        Learner.wrap(model, tiny_tokenizer())
    assert Learner.wrap(copy.deepcopy(model), tiny_tokenizer()).loaded.supports_padding
