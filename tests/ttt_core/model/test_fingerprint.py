"""The proof that a base is unchanged, and the guard that brings back the rest."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from autottt.ttt_core.errors import BaseChangedError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.model.fingerprint import Fingerprint, content_hash, restoring, state_tensors
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import ARCHITECTURES, tiny_model, tiny_tokenizer


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 2)
        self.two = nn.Linear(2, 3, bias=False)
        self.norm = nn.BatchNorm1d(3)


@pytest.fixture
def small() -> Small:
    torch.manual_seed(0)
    return Small()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equal_models_have_equal_hashes(architecture: str) -> None:
    model = tiny_model(architecture)
    assert content_hash(model) == content_hash(copy.deepcopy(model)) == content_hash(tiny_model(architecture))
    assert content_hash(model) != content_hash(tiny_model(architecture, seed=1))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_the_same_numbers_have_the_same_hash_in_every_precision_that_holds_them(
    architecture: str, stored: torch.dtype
) -> None:
    narrow = tiny_model(architecture, dtype=stored)
    wide = tiny_model(architecture)
    with torch.no_grad():
        for name, tensor in state_tensors(wide).items():
            tensor.copy_(state_tensors(narrow)[name])
    assert content_hash(wide) == content_hash(narrow)
    assert content_hash(tiny_model(architecture)) != content_hash(narrow), "rounding is a change"


def _transpose(model: Small) -> None:
    model.two.weight = nn.Parameter(model.two.weight.detach().reshape(2, 3))


def _swap(model: Small) -> None:
    model.norm.running_mean, model.norm.running_var = model.norm.running_var, model.norm.running_mean


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.one.weight.data.view(-1)[5].add_(1e-7),
        lambda m: m.norm.num_batches_tracked.add_(1),
        lambda m: m.two.weight.data.neg_(),
        lambda m: m.add_module("three", nn.Linear(1, 1)),
        lambda m: m.bfloat16(),
        _transpose,
        _swap,
    ],
)
def test_any_difference_changes_the_hash(change: Callable[[Small], Any], small: Small) -> None:
    before = content_hash(small)
    change(small)
    assert content_hash(small) != before


def test_tied_weights_count_once() -> None:
    model = tiny_model("gpt2")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert len(state_tensors(model)) == len(list(model.parameters())) + len(list(model.buffers()))


def test_a_proof_says_what_was_checked(small: Small) -> None:
    fingerprint = Fingerprint(small)
    for full, method in ((False, "pointers"), (True, "full")):
        proof = fingerprint.verify(small, full=full)
        assert (proof.method, proof.tensors, proof.hash) == (method, 8, content_hash(small))
        assert proof.seconds > 0


def test_a_write_through_data_is_seen_by_the_full_proof_alone(small: Small) -> None:
    fingerprint = Fingerprint(small)
    small.one.weight.data.mul_(2)
    fingerprint.verify(small)
    with pytest.raises(BaseChangedError, match="content hash changed although no tensor was replaced"):
        fingerprint.verify(small, full=True)


@pytest.mark.parametrize("kind", ["parameter", "data"])
def test_a_tensor_put_in_the_place_of_another_is_found_wherever_it_lies(kind: str) -> None:
    layer = nn.Linear(64, 64)
    fingerprint = Fingerprint(layer)
    address = layer.weight.data_ptr()
    for _ in range(50):  # memory that was let go of is soon given out again
        if kind == "parameter":
            layer.weight = nn.Parameter(torch.zeros(64, 64))
        else:
            layer.weight.data = torch.zeros(64, 64)
        if layer.weight.data_ptr() == address:
            break
    with pytest.raises(BaseChangedError, match=r"tensor 'weight' was replaced or written to"):
        fingerprint.verify(layer)


def test_a_module_that_came_or_went_is_named(small: Small) -> None:
    fingerprint = Fingerprint(small)
    small.three = nn.Linear(1, 1)
    with pytest.raises(BaseChangedError, match=r"'three.bias', 'three.weight'"):
        fingerprint.verify(small)
    del small.three, small.one
    with pytest.raises(BaseChangedError, match=r"'one.bias', 'one.weight'"):
        fingerprint.verify(small)


@pytest.mark.parametrize("rope", ["longrope", "dynamic"])
def test_rotary_frequencies_that_follow_the_prompt_are_no_change(rope: str, task: Task) -> None:
    scaling: dict[str, Any] = {"rope_type": rope, "rope_theta": 10000.0, "original_max_position_embeddings": 32}
    if rope == "longrope":
        scaling |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    else:
        scaling |= {"factor": 4.0}
    config = AutoConfig.for_model(
        "phi3" if rope == "longrope" else "llama", vocab_size=264, hidden_size=32, intermediate_size=48,
        num_hidden_layers=1, num_attention_heads=4, max_position_embeddings=512, rope_parameters=scaling,
        pad_token_id=0, bos_token_id=257, eos_token_id=256,
    )  # fmt: skip
    learner = Learner.wrap(AutoModelForCausalLM.from_config(config), tiny_tokenizer())
    assert len(learner.window.encode(task).ids) > 32
    learner.answer([task])
    learner.score([task.with_demonstrations(())])
    assert learner.verify(full=True).method == "full"


# --- what else comes back -------------------------------------------------------------------------------------------


def test_everything_but_the_weights_is_given_back(small: Small, unchanged: Any) -> None:
    small.train()
    small.one.requires_grad_(False)
    small.two.weight.grad = torch.ones(3, 2)
    kept = small.one.register_forward_hook(lambda *_: None, with_kwargs=True)

    def run() -> None:
        small.eval().requires_grad_(True)
        torch.set_grad_enabled(False)
        kept.remove()
        small.two.weight.grad = None
        small.one.weight.grad = torch.ones(2, 3)
        small.register_forward_pre_hook(lambda *_: None, with_kwargs=True)
        small.two.register_forward_hook(lambda *_: None, always_call=True)
        small.norm.register_full_backward_hook(lambda *_: None)
        raise KeyboardInterrupt

    with unchanged(small), pytest.raises(KeyboardInterrupt), restoring(small):
        run()


def test_what_happens_inside_is_not_hindered(small: Small) -> None:
    with restoring(small):
        small.eval()
        assert not small.training
        hook = small.one.register_forward_hook(lambda *args: args[-1] * 0)
        assert not small.one(torch.ones(1, 3)).any()
        hook.remove()
    assert small.training


def many_layers() -> nn.Module:
    return nn.ModuleDict({f"block{i}": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for i in range(30)})


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["block7"].__setitem__(1, nn.Linear(2, 2)),
        lambda m: m["block7"][0].register_buffer("more", torch.zeros(1), persistent=False),
        lambda m: m["block7"][0].__dict__.update(_parameters=dict.fromkeys(m["block7"][0]._parameters)),
        lambda m: m["block7"][0]._parameters.update(weight=nn.Parameter(torch.zeros(2, 2))),
        lambda m: m["block7"][0].weight.add_(1),
        lambda m: m.pop("block7"),
    ],
)
@torch.no_grad()
def test_whatever_is_put_anywhere_is_found(change: Callable[[Any], Any]) -> None:
    model = many_layers()
    seen = Fingerprint(model)
    assert seen.verify(model).tensors == 120
    change(model)
    with pytest.raises(BaseChangedError, match="block7"):
        seen.verify(model)


def test_places_that_changed_and_hold_the_same_tensors_are_no_change() -> None:
    model = many_layers()
    seen = Fingerprint(model)
    linear = model["block3"][0]  # type: ignore[index]
    linear.__dict__["_parameters"] = dict(linear._parameters)
    assert seen.verify(model).tensors == 120
    other = many_layers()
    with pytest.raises(BaseChangedError):
        seen.verify(other)
