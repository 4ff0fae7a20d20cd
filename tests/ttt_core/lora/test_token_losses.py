"""Losses of tokens are those of cross_entropy, with their gradients, and hold the logits once."""

from __future__ import annotations

import pytest
import torch

from autottt.ttt_core.lora import token_losses as module
from autottt.ttt_core.lora.token_losses import token_losses


def setting(tokens: int, vocabulary: int):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 8, generator=generator, dtype=torch.float64).requires_grad_()
    head = torch.randn(vocabulary, 8, generator=generator, dtype=torch.float64)
    return hidden, head, torch.randint(vocabulary, (tokens,), generator=generator)


HEADS = {
    "linear": lambda hidden, head: torch.nn.functional.linear(hidden, head),
    "batched": lambda hidden, head: torch.nn.functional.linear(hidden[None], head)[0],
    "scaled": lambda hidden, head: torch.nn.functional.linear(hidden[None], head)[0] / 3.0,
    "capped": lambda hidden, head: torch.tanh(torch.nn.functional.linear(hidden[None], head) / 5)[0] * 5,
    "ends in tanh": lambda hidden, head: torch.tanh(torch.nn.functional.linear(hidden[None], head))[0],
    "ends in exp": lambda hidden, head: torch.nn.functional.linear(hidden, head).exp(),
    "masked": lambda hidden, head: torch.nn.functional.linear(hidden, head).masked_fill(
        torch.arange(len(head)) == len(head) - 1, -torch.inf
    ),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("chunk", [1, 40, 1 << 22])
def test_losses_and_gradients_are_those_of_cross_entropy(name, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    hidden, head, targets = setting(7, 13)
    targets = targets.clamp(max=11)
    weights = torch.arange(1.0, 8, dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(HEADS[name](hidden, head), targets, reduction="none")
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), hidden)
    losses = token_losses(HEADS[name](hidden, head), targets)
    (gradient,) = torch.autograd.grad((losses * weights).sum(), hidden)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_the_gradient_is_written_over_the_logits_where_nothing_else_needs_them():
    hidden, head, targets = setting(5, 11)
    for name, overwritten in (("batched", True), ("scaled", True), ("ends in tanh", False), ("ends in exp", False)):
        logits = HEADS[name](hidden, head)
        before = logits.detach().clone()
        torch.autograd.grad(token_losses(logits, targets).sum(), hidden)
        assert (not torch.equal(before, logits.detach())) is overwritten, name


def test_no_token_and_a_single_one():
    hidden, head, targets = setting(1, 11)
    assert token_losses(torch.nn.functional.linear(hidden, head), targets).shape == (1,)
    none = token_losses(torch.nn.functional.linear(hidden[:0], head), targets[:0])
    assert none.shape == (0,)
