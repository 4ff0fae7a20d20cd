"""Layers below the lowest adapted one: read once for each row, with the same result."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from autottt.ttt_core.errors import DeadlineError
from autottt.ttt_core.lora import lower_layers
from autottt.ttt_core.lora.gradients import GradientEngine
from autottt.ttt_core.lora.lower_layers import LowerLayers
from autottt.ttt_core.lora.optimizer import BatchedAdamW
from autottt.ttt_core.lora.training import train
from autottt.ttt_core.lora.weights import LoraWeights
from autottt.ttt_core.model.encoding import Encoded, encode, pad
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
    tokens = reads_of(loaded)
    trained(loaded, rows)  # proves that the states give the same logits
    tokens.clear()
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


@pytest.mark.parametrize("share", [1.0, 1e-3])
def test_a_model_whose_layers_pass_something_else_on_is_read_whole(
    share: float, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, rows = setting("llama", task)
    first, second = loaded.model.model.layers
    seen: list[torch.Tensor] = []
    first.self_attn.register_forward_hook(lambda _, args, output: seen.append(output[0]))
    second.mlp.register_forward_hook(lambda _, args, output: output + share * seen[-1])  # of the layer below
    record = trained(loaded, rows)[1]
    assert list(lower_layers._PROVEN[loaded.model].values()) == [None]
    whole(monkeypatch)
    assert trained(loaded, rows)[1].losses == record.losses


def test_a_model_that_cannot_do_without_its_lower_layers_is_read_whole(task: Task) -> None:
    loaded, rows = setting("llama", task)
    first, second = loaded.model.model.layers
    seen: list[torch.Tensor] = []
    loaded.model.register_forward_pre_hook(lambda *_: seen.clear())
    first.self_attn.register_forward_hook(lambda _, args, output: seen.append(output[0]))
    second.mlp.register_forward_hook(lambda _, args, output: output + torch.stack(seen)[0])  # none: a RuntimeError
    assert trained(loaded, rows)[1].stop_reason == "finished"


def test_hooks_that_come_after_a_proof_are_noticed(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, rows = setting("llama", task)
    trained(loaded, rows)
    first, second = loaded.model.model.layers
    seen: list[torch.Tensor] = []
    first.self_attn.register_forward_hook(lambda _, args, output: seen.append(output[0]))
    second.mlp.register_forward_hook(lambda _, args, output: output + seen[-1])
    record = trained(loaded, rows)[1]
    whole(monkeypatch)
    assert trained(loaded, rows)[1].losses == record.losses


def test_a_deadline_that_ends_a_proof_is_no_proof_against_the_model(task: Task) -> None:
    loaded, rows = setting("llama", task)
    passes: list[int] = []

    def stop(*_: Any) -> None:
        passes.append(1)
        if len(passes) == 3:  # the pass that measures memory, the whole one, that of the state
            raise DeadlineError("late")

    handle = loaded.model.model.layers[0].register_forward_pre_hook(stop)
    with pytest.raises(DeadlineError):
        trained(loaded, rows)
    assert not any(module._forward_pre_hooks for module in loaded.model.model.layers[1].modules())
    handle.remove()
    trained(loaded, rows)
    assert all(lower_layers._PROVEN[loaded.model].values())


def test_padding_gives_finite_numbers_where_norms_have_no_epsilon(task: Task) -> None:
    loaded, rows = setting("llama", task)
    for layer in loaded.model.model.layers:
        layer.input_layernorm.variance_epsilon = layer.post_attention_layernorm.variance_epsilon = 0.0
    short = replace(rows[0], ids=rows[0].ids[:-6], answers=rows[0].answers[:-1])
    _, record = trained(loaded, [*rows, short], replace(RECIPE, batch_size=4, max_steps=2))
    assert record.stop_reason == "finished"


def test_rows_are_read_whole_where_rotary_frequencies_follow_the_longest(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = longrope_model(24)
    loaded = wrap_model(model, tiny_tokenizer())
    rows = [Encoded(tuple(range(3, 3 + n)), ((n - 8, n),), 2) for n in (16, 20, 40)]
    recipe = replace(RECIPE, batch_size=3)
    _, record = trained(loaded, rows, recipe)
    whole(monkeypatch)
    assert record.losses == pytest.approx(trained(loaded, rows, recipe)[1].losses, rel=1e-5)


def longrope_model(original: int) -> Any:
    """A model whose rotary frequencies are others for all rows of a batch with a row of more than `original` tokens."""
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4,
        "original_max_position_embeddings": original,
    }  # fmt: skip
    config = AutoConfig.for_model(
        "phi3", vocab_size=264, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rope_parameters=rope, pad_token_id=258,
        original_max_position_embeddings=original, initializer_range=0.25,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def test_layers_that_return_tuples_are_skipped(task: Task) -> None:
    config = AutoConfig.for_model("bloom", vocab_size=264, hidden_size=32, n_layer=8, n_head=4)
    loaded = wrap_model(AutoModelForCausalLM.from_config(config).eval().requires_grad_(False), tiny_tokenizer())
    rows = [Encoded(tuple(range(3, 23)), ((12, 20),), 2)]
    trained(loaded, rows, replace(RECIPE, layers_to_transform=(7,)))
    assert all(lower_layers._PROVEN[loaded.model].values())


def test_states_take_no_more_bytes_than_they_may(task: Task) -> None:
    config = AutoConfig.for_model(
        "opt", vocab_size=264, hidden_size=32, word_embed_proj_dim=8, ffn_dim=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    loaded = wrap_model(AutoModelForCausalLM.from_config(config).eval().requires_grad_(False), tiny_tokenizer())
    rows = [Encoded(tuple(range(n, n + 20)), ((12, 20),), 2) for n in range(3, 9)]
    limit = 4 * 32 * 20 * 2.5  # fp32: two rows and a half
    names = LoraWeights.initial(loaded.model, RECIPE, [0]).pairs
    lower = LowerLayers.below(loaded.model, names, limit, rows[0])
    assert lower is not None
    for row in rows:
        batch = pad([row.ids], 0, torch.device("cpu"), left=False)
        lower.logits(loaded.model, batch, batch.mask.bool(), [row])
    assert len(lower._states) == 2


def test_the_estimate_of_a_step_contains_no_proof(task: Task) -> None:
    loaded, rows = setting("llama", task)
    longest = max(rows, key=lambda row: len(row.ids))
    with GradientEngine(loaded, [RECIPE], 1) as engine:
        optimizer = BatchedAdamW(LoraWeights.initial(loaded.model, RECIPE, [0]), [RECIPE], engine.shards(1))
        engine.measure_memory(optimizer, longest)
        tokens = reads_of(loaded)
        engine.estimate_seconds(optimizer, [[longest] * 2])
    assert sum(tokens) == len(longest.ids)


def test_folds_share_the_rows_that_they_have_in_common(task: Task) -> None:
    loaded, rows = setting("llama", task)
    tokens = reads_of(loaded)
    train(loaded, [rows, rows], RECIPE, [0, 1], workers=1)
    tokens.clear()
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


def test_threads_have_rotary_frequencies_of_their_own() -> None:
    loaded = wrap_model(longrope_model(24), tiny_tokenizer())
    with GradientEngine(loaded, [RECIPE] * 2, 2) as engine:
        models = [loaded.model, *(engine._models.get().model for _ in range(2))]
    frequencies = [dict(model.named_buffers())["model.rotary_emb.inv_freq"] for model in models]
    assert len({buffer.data_ptr() for buffer in frequencies}) == 3
