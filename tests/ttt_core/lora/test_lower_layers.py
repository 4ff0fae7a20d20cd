"""Layers below the lowest adapted one: read once for each row, with the same result."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from autottt.ttt_core.lora import lower_layers
from autottt.ttt_core.lora.gradients import GradientEngine
from autottt.ttt_core.lora.lower_layers import LowerLayers
from autottt.ttt_core.lora.optimizer import BatchedAdamW
from autottt.ttt_core.lora.training import train
from autottt.ttt_core.lora.weights import LoraWeights
from autottt.ttt_core.model.encoding import Encoded, encode
from autottt.ttt_core.model.loading import LoadedModel, wrap_model
from autottt.ttt_core.recipes import Recipe, recipe_digest
from autottt.ttt_core.tasks.augmentation import leave_one_out_orders
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import ARCHITECTURES, tiny_model, tiny_tokenizer

RECIPE = Recipe(
    rank=4, alpha=8.0, dropout=0.0, learning_rate=1e-2, max_steps=4, batch_size=2, layers_to_transform=(1,)
)  # fmt: skip


def setting(architecture: str, task: Task) -> tuple[LoadedModel, list[Encoded]]:
    loaded = wrap_model(tiny_model(architecture).requires_grad_(False), tiny_tokenizer())
    return loaded, [encode(loaded, x, x.answer) for x in leave_one_out_orders(task, 3, random.Random(0))]


def reads_of(loaded: LoadedModel) -> list[int]:
    """A list that gets the number of tokens of each pass through the first layer."""
    layers = next(m for m in loaded.model.modules() if isinstance(m, torch.nn.ModuleList))
    tokens: list[int] = []

    def note(_: Any, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        state = args[0] if args else named["hidden_states"]
        if output is not state:  # else the layer was skipped
            tokens.append(state.shape[0] * state.shape[1])

    layers[0].register_forward_hook(note, with_kwargs=True)
    return tokens


def trained(loaded: LoadedModel, rows: list[Encoded], recipe: Recipe = RECIPE, **how: Any) -> tuple[Any, Any]:
    weights, (record,) = train(loaded, [rows], recipe, [0], workers=1, **how)
    return weights, record


def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what this module does."""
    monkeypatch.setattr(LowerLayers, "below", classmethod(lambda *_: None))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_is_the_same_and_reads_each_row_once(
    architecture: str, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, rows = setting(architecture, task)
    trained(loaded, rows)  # proves that the states give the same logits
    tokens = reads_of(loaded)
    kept, record = trained(loaded, rows)
    assert 0 < sum(tokens) <= sum(len(row.ids) for row in rows)
    whole(monkeypatch)
    other, expected = trained(loaded, rows)
    assert record.losses == pytest.approx(expected.losses, rel=1e-4)
    assert kept.pairs.keys() == other.pairs.keys()
    for name in kept.pairs:
        for mine, its in zip(kept.pairs[name], other.pairs[name], strict=True):
            assert torch.allclose(mine, its, atol=1e-4)


def test_only_the_named_layers_are_adapted(task: Task) -> None:
    loaded, rows = setting("llama", task)
    weights, record = trained(loaded, rows)
    assert all(".layers.1." in name for name in weights.pairs)
    assert dict(record.modules)["model.layers.*.self_attn.q_proj"] == 1


def test_the_model_is_the_same_afterwards(task: Task) -> None:
    loaded, rows = setting("llama", task)
    ids = torch.tensor([rows[0].ids])
    with torch.no_grad():
        before = loaded.model(ids).logits
        trained(loaded, rows)
        assert torch.equal(loaded.model(ids).logits, before)
    for module in loaded.model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_pre_hooks


def test_a_method_that_was_replaced_is_put_back(task: Task) -> None:
    loaded, rows = setting("llama", task)
    layer = loaded.model.model.layers[0]
    own = layer.forward
    layer.forward = lambda *args, **named: own(*args, **named)
    mine = layer.forward
    trained(loaded, rows)
    assert layer.forward is mine


def test_states_without_room_are_computed_again(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, rows = setting("llama", task)
    expected = trained(loaded, rows)[1].losses
    monkeypatch.setattr("autottt.ttt_core.lora.gradients.STATES_SHARE", 0.0)
    tokens = reads_of(loaded)
    assert trained(loaded, rows)[1].losses == pytest.approx(expected, rel=1e-4)
    assert sum(tokens) > 3 * sum(len(row.ids) for row in rows) / 2


def test_a_model_whose_layers_pass_something_else_on_is_read_whole(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, rows = setting("llama", task)
    first, second = loaded.model.model.layers
    seen: list[torch.Tensor] = []
    first.self_attn.register_forward_hook(lambda _, args, output: seen.append(output[0]))
    second.mlp.register_forward_hook(lambda _, args, output: output + seen[-1])  # of the layer below
    record = trained(loaded, rows)[1]
    assert list(lower_layers._PROVEN[loaded.model].values()) == [False]
    whole(monkeypatch)
    assert trained(loaded, rows)[1].losses == record.losses


def test_folds_share_the_rows_that_they_have_in_common(task: Task) -> None:
    loaded, rows = setting("llama", task)
    train(loaded, [rows, rows], RECIPE, [0, 1], workers=1)
    tokens = reads_of(loaded)
    train(loaded, [rows, rows], RECIPE, [0, 1], workers=1)
    assert sum(tokens) <= sum(len(row.ids) for row in rows)


@pytest.mark.parametrize("workers", [1, 2])
def test_several_threads_and_adapters_get_the_same_gradients(
    workers: int, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, rows = setting("gemma3_text", task)

    def gradients() -> Any:
        with GradientEngine(loaded, [RECIPE] * 2, workers) as engine:
            start = LoraWeights.initial(loaded.model, RECIPE, [0, 1])
            optimizer = BatchedAdamW(start, [RECIPE] * 2, engine.shards(2))
            losses = engine.losses(optimizer, [rows[:2], rows[1:3]])
            return losses, optimizer.gradients.sum(0)

    losses, gradient = gradients()
    whole(monkeypatch)
    expected, other = gradients()
    assert losses == pytest.approx(expected, rel=1e-4)
    assert torch.allclose(gradient, other, atol=1e-5)


def test_digests_from_before_recipes_named_layers_hold() -> None:
    assert recipe_digest(Recipe()) == "bd63aa9e7666"  # of 2026-11
