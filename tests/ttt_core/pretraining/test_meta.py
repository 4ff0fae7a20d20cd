"""Pre-training for trainability: first-order gradients after an inner adaptation."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import LlamaForCausalLM

from autottt.ttt_core.pretraining import meta
from autottt.ttt_core.pretraining.data import IGNORED, MetaTask, Row, pad_rows
from autottt.ttt_core.pretraining.meta import adapt_inner, backward_after_adaptation
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.testing import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = Recipe(rank=4, alpha=4.0, dropout=0.0, learning_rate=2e-2, max_steps=6, batch_size=2)


def to_row(pairs: list[tuple[int, int]], unlabelled: int) -> Row:
    ids, labels = [1], [IGNORED]
    for index, (source, target) in enumerate(pairs):
        ids += [source, target]
        labels += [IGNORED, target if index >= unlabelled else IGNORED]
    return ids, labels


@pytest.fixture
def model() -> LlamaForCausalLM:
    llama = tiny_model("llama")
    assert isinstance(llama, LlamaForCausalLM)
    return llama


@pytest.fixture
def tasks() -> list[MetaTask]:
    rng = random.Random(0)
    made = []
    for offset in (20, 40):
        pairs = [(i, offset + i) for i in range(3, 11)]
        inner = [to_row(rng.sample(pairs[:5], 5), 1) for _ in range(RECIPE.max_steps * RECIPE.batch_size)]
        made.append(MetaTask(inner, [to_row(pairs, 5) for _ in range(2)]))
    return made


def test_the_inner_adaptation_lowers_the_loss_and_leaves_the_base_unchanged(
    model: LlamaForCausalLM, tasks: list[MetaTask]
) -> None:
    before = {n: p.clone() for n, p in model.named_parameters()}
    model.requires_grad_(False)
    weights, losses = adapt_inner(model, tasks, RECIPE, 0, seed=0)
    assert weights.adapter_count == 2
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())


def test_the_gradient_is_that_of_the_adapted_and_the_unadapted_loss(
    model: LlamaForCausalLM, tasks: list[MetaTask]
) -> None:
    loss, _ = backward_after_adaptation(model, tasks, RECIPE, 0, seed=3)
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.requires_grad_(False)
    weights, _ = adapt_inner(model, tasks, RECIPE, 0, seed=3)
    model.requires_grad_(True)
    ids, labels = pad_rows([row for task in tasks for row in task.outer], 0)

    def cross_entropy() -> torch.Tensor:
        logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED)

    with weights.attached(model):
        adapted = cross_entropy()
        adapted.backward()
    cross_entropy().backward()
    assert float(adapted.detach()) == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == {n for n, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


def test_the_base_can_be_trained_again_after_a_failure(
    model: LlamaForCausalLM, tasks: list[MetaTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(meta, "adapt_inner", fail)
    with pytest.raises(KeyboardInterrupt):
        backward_after_adaptation(model, tasks, RECIPE, 0, seed=0)
    assert all(p.requires_grad for p in model.parameters())
