from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from autottt.ttt_core.model.interruption import checked_passes
from autottt.ttt_core.testing import ARCHITECTURES, tiny_model

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


class Interrupted(Exception):
    """What a check raises."""


def interrupt_at(call: int) -> tuple[Callable[[], None], list[int]]:
    """A check that raises at a call (from 1), and the numbers of the calls so far."""
    calls: list[int] = []

    def check() -> None:
        calls.append(len(calls) + 1)
        if calls[-1] == call:
            raise Interrupted

    return check, calls


def backward(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a few tokens, and the gradient of their sum for the embeddings."""
    logits = model(torch.tensor([[1, 2, 3, 4, 5]]), use_cache=False).logits
    (gradient,) = torch.autograd.grad(logits.square().sum(), model.get_input_embeddings().weight)
    return logits, gradient


@every_architecture
@pytest.mark.usefixtures("one_thread")
def test_checks_change_no_output_and_no_gradient(architecture: str, unchanged: Any) -> None:
    model = tiny_model(architecture)
    expected = backward(model)
    check, calls = interrupt_at(0)
    with unchanged(model), checked_passes(model, check):
        checked = backward(model)
    assert all(map(torch.equal, checked, expected))
    layers = model.config.num_hidden_layers
    assert len(calls) >= 2 * 2 * layers, "each layer and a part of it, forward and backward"


@every_architecture
@pytest.mark.usefixtures("one_thread")
def test_an_exception_of_any_check_ends_the_pass_and_leaves_the_model_unchanged(
    architecture: str, unchanged: Any
) -> None:
    model = tiny_model(architecture)
    check, calls = interrupt_at(0)
    with checked_passes(model, check):
        backward(model)
    for call in range(1, len(calls) + 1):
        check, made = interrupt_at(call)
        with unchanged(model), pytest.raises(Interrupted), checked_passes(model, check):
            backward(model)
        assert len(made) == call, "nothing runs after the exception"


@pytest.mark.usefixtures("one_thread")
def test_a_model_without_lists_of_layers_is_checked_before_each_pass() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    check, calls = interrupt_at(2)
    with checked_passes(model, check):
        model(torch.ones(1, 2))
        with pytest.raises(Interrupted):
            model(torch.ones(1, 2))
    model(torch.ones(1, 2))
    assert calls == [1, 2]
