"""The proof that a base is unchanged, and the guard that brings back the rest."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from autottt.ttt_core.errors import BaseChangedError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.model import fingerprint
from autottt.ttt_core.model.fingerprint import (
    BLOCK,
    Fingerprint,
    ModelParts,
    RevocableChangeError,
    content_hash,
    restoring,
    state_tensors,
)
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


def test_a_fingerprint_knows_how_many_bytes_a_proof_compares() -> None:
    layer = nn.Linear(BLOCK, 4)
    fingerprint = Fingerprint(layer)
    assert fingerprint.bytes == 4 * (BLOCK * 4 + 4)
    assert fingerprint.compared_bytes(full=True) == fingerprint.bytes
    assert fingerprint.compared_bytes(full=False) == BLOCK + 4 * 4  # one block of the weight, and the whole bias


def test_a_write_past_the_version_counter_is_seen_when_its_block_is_sampled() -> None:
    layer = nn.Linear(BLOCK, 4, bias=False)  # 16 blocks
    fingerprint = Fingerprint(layer)
    layer.weight.data[2, 7] += 1
    with pytest.raises(BaseChangedError, match="content hash changed although no tensor was replaced"):
        Fingerprint.verify(copy.copy(fingerprint), layer, full=True)

    def verify_often() -> None:
        for _ in range(16):
            fingerprint.verify(layer)

    with pytest.raises(BaseChangedError, match=r"tensor 'weight' was replaced or written to \(sampled bytes differ"):
        verify_often()


@torch.no_grad()
def _step(layer: nn.Linear) -> None:
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.AdamW([layer.weight], fused=True).step()


def _transpose_data(layer: nn.Linear) -> None:
    layer.weight.data = layer.weight.data.t()


def _through_storage(layer: nn.Linear) -> None:
    layer.weight.untyped_storage().copy_(torch.zeros(64, 64).untyped_storage())


def _offset(layer: nn.Linear) -> None:
    wide = torch.zeros(65, 64)
    layer.weight.data = wide[1:]


@pytest.mark.parametrize(
    "write",
    [
        _step, _transpose_data, _through_storage, _offset,
        lambda m: m.weight.data.mul_(2),
        lambda m: m.weight.detach().numpy().fill(0),
        lambda m: torch.from_dlpack(m.weight.detach()).zero_(),
        lambda m: m.weight.data.copy_(m.weight.data.t().clone()),
    ],
)  # fmt: skip
def test_writes_that_change_every_byte_are_seen_by_the_next_cheap_proof(write: Callable[[Any], Any]) -> None:
    layer = nn.Linear(64, 64, bias=False)
    fingerprint = Fingerprint(layer)
    fingerprint.verify(layer)
    write(layer)
    with pytest.raises(BaseChangedError, match="tensor 'weight' was replaced or written to"):
        fingerprint.verify(layer)


def _hook(*_: Any, **__: Any) -> None:
    return None


def _reuse_the_parameter(model: Any) -> None:
    linear = model.model.layers[0].mlp.up_proj
    other = nn.Linear(linear.in_features, linear.out_features, bias=False)
    other.weight = linear.weight
    model.model.layers[0].mlp.up_proj = other


MODULE_CHANGES: dict[str, Callable[[Any], Any]] = {
    "activation": lambda m: setattr(m.model.layers[0].mlp, "act_fn", nn.Identity()),
    "linear with the same parameter": _reuse_the_parameter,
    "forward hook": lambda m: m.model.layers[0].register_forward_hook(_hook),
    "forward hook with keywords": lambda m: m.register_forward_hook(_hook, with_kwargs=True),
    "forward pre-hook": lambda m: m.model.norm.register_forward_pre_hook(_hook),
    "backward hook": lambda m: m.lm_head.register_full_backward_hook(_hook),
    "backward pre-hook": lambda m: m.lm_head.register_full_backward_pre_hook(_hook),
    "state-dict hook": lambda m: m.register_state_dict_post_hook(_hook),
    "forward of one module": lambda m: setattr(m.model.norm, "forward", lambda x: x),
    "class of one module": lambda m: setattr(m.model.norm, "__class__", nn.Identity),
    "number": lambda m: setattr(m.model.layers[0].self_attn, "scaling", 0.5),
    "mode": lambda m: m.model.layers[1].train(),
    "order of layers": lambda m: setattr(m.model, "layers", nn.ModuleList(reversed(m.model.layers))),
    "further module": lambda m: m.model.layers[0].add_module("more", nn.Identity()),
}


@pytest.mark.parametrize("change", MODULE_CHANGES)
def test_changed_modules_and_hooks_are_named(change: str) -> None:
    model = tiny_model("llama")
    fingerprint = Fingerprint(model)
    fingerprint.verify(model)
    MODULE_CHANGES[change](model)
    for full in (False, True):
        with pytest.raises(BaseChangedError, match=r"base model's (module|modules|tensor)"):
            fingerprint.verify(model, full=full)


def test_hooks_for_all_modules_and_the_forward_of_a_class_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    fingerprint = Fingerprint(model)
    handle = nn.modules.module.register_module_forward_hook(_hook)
    try:
        with pytest.raises(BaseChangedError, match="hooks for all modules of torch"):
            fingerprint.verify(model)
    finally:
        handle.remove()
    fingerprint.verify(model)
    monkeypatch.setattr(type(model.model.norm), "forward", lambda self, x: x)
    with pytest.raises(BaseChangedError, match="another forward function in its class LlamaRMSNorm"):
        fingerprint.verify(model)


def test_a_hook_that_was_there_at_load_may_not_go(small: Small) -> None:
    handle = small.one.register_forward_hook(_hook)
    fingerprint = Fingerprint(small)
    fingerprint.verify(small)
    handle.remove()
    with pytest.raises(BaseChangedError, match="module 'one' has other hooks than at load"):
        fingerprint.verify(small)


def test_changes_that_a_host_may_make_between_answers_are_accepted() -> None:
    model = tiny_model("llama")
    fingerprint = Fingerprint(model)
    model(input_ids=torch.arange(5)[None], output_hidden_states=True)
    model.requires_grad_(False)
    model.activation_checkpointing_enable()
    assert fingerprint.verify(model).hash == fingerprint.hash
    assert fingerprint.verify(model, full=True).hash == fingerprint.hash == content_hash(model)


def test_another_mode_is_refused_until_it_is_set_back(task: Task) -> None:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer())
    learner.loaded.model.train()
    with pytest.raises(BaseChangedError, match=r"training=True \(at load False\); set the mode back with eval\(\)"):
        learner.verify()
    learner.loaded.model.eval()
    assert learner.verify().method == "pointers"


@pytest.mark.parametrize("kind", ["parameter", "data"])
def test_a_replaced_tensor_is_detected_also_at_the_same_address(kind: str) -> None:
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
    model = AutoModelForCausalLM.from_config(config)
    learner = Learner.wrap(model, tiny_tokenizer())
    short = task.with_demonstrations(())
    frequencies = model.model.rotary_emb.inv_freq.clone()
    before = learner.score([short])
    assert len(learner.window.encode(task).ids) > 32
    learner.answer([task])
    assert torch.equal(model.model.rotary_emb.inv_freq, frequencies), "they are set back after each use"
    learner.clear()
    assert learner.score([short]) == before, "an answer does not depend on earlier prompts"
    model.model.rotary_emb.inv_freq.mul_(3)
    learner.clear()
    assert learner.score([short]) == before, "nor on what the host left there"
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


def test_hidden_states_that_the_host_asks_for_are_captured_after_the_model_was_used(
    task: Task, unchanged: Callable[..., Any]
) -> None:
    """transformers installs the hooks that capture them in the first pass that asks for them."""
    model = tiny_model("llama")
    model.config.output_hidden_states = True
    attributes = dict(vars(model.model))
    with unchanged(model):
        learner = Learner.wrap(model, tiny_tokenizer(), prompt_format="standard")
        first = learner.answer([task])
        learner.answerer.clear()
        assert learner.answer([task]) == first
    assert vars(model.model) == attributes
    for _ in range(2):
        assert len(model(torch.tensor([[5, 6, 7]])).hidden_states) == 3
        learner.answer([task])


def test_changes_inside_the_context_are_allowed(small: Small) -> None:
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
def test_any_change_of_a_layer_is_detected(change: Callable[[Any], Any]) -> None:
    model = many_layers()
    seen = Fingerprint(model)
    assert seen.verify(model).tensors == 120
    change(model)
    with pytest.raises(BaseChangedError, match="block7"):
        seen.verify(model)


@pytest.mark.parametrize(("before", "after"), [(1, True), (1, 1.0), (0.0, False)])
def test_a_number_that_equals_the_one_at_load_is_another_if_its_type_differs(before: Any, after: Any) -> None:
    model = many_layers()
    layer: Any = model["block3"][0]  # type: ignore[index]
    layer.setting = before
    seen = Fingerprint(model)
    layer.setting = after
    with pytest.raises(BaseChangedError, match=f"setting={after}"):
        seen.verify(model)


class Truthless:
    """Compares as an array does: with a result that is no truth value."""

    def __eq__(self, other: object) -> Any:
        return Truthless()

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise ValueError


def test_a_private_attribute_is_not_compared_and_hides_no_other_change() -> None:
    model = many_layers()
    layer: Any = model["block3"][0]  # type: ignore[index]
    layer._cached = Truthless()
    seen = Fingerprint(model)
    layer._cached = Truthless()
    assert seen.verify(model).tensors == 120
    assert seen._fast.holds()
    layer.in_features = 3
    with pytest.raises(BaseChangedError, match="in_features=3"):
        seen.verify(model)


def test_equal_containers_in_the_place_of_others_are_watched() -> None:
    model = many_layers()
    seen = Fingerprint(model)
    layer: Any = model["block3"][0]  # type: ignore[index]
    layer._forward_hooks = OrderedDict()
    layer.__dict__["_parameters"] = dict(layer._parameters)
    assert seen.verify(model).tensors == 120
    layer.register_forward_hook(lambda *_: None)
    with pytest.raises(RevocableChangeError, match="block3"):
        seen.verify(model)
    layer._forward_hooks.clear()
    layer._parameters["weight"] = nn.Parameter(layer.weight.detach().clone())
    with pytest.raises(BaseChangedError, match="block3"):
        seen.verify(model)


def test_the_parts_of_an_earlier_use_are_replaced_where_the_model_has_others() -> None:
    model: Any = many_layers()
    parts = ModelParts(model)
    with restoring(model, parts) as used:
        assert used is parts
    model["block3"][1] = nn.Linear(2, 2)
    added = model["block3"][1]
    with restoring(model, parts) as used:
        assert used is not parts
        fingerprint.freeze(used)
        assert not added.weight.requires_grad
        added.register_forward_hook(lambda *_: None)
    assert added.weight.requires_grad
    assert not added._forward_hooks
    with restoring(many_layers(), used) as others:
        assert others is not used


def test_places_that_changed_and_hold_the_same_tensors_are_no_change() -> None:
    model = many_layers()
    seen = Fingerprint(model)
    linear = model["block3"][0]  # type: ignore[index]
    linear.__dict__["_parameters"] = dict(linear._parameters)
    assert seen.verify(model).tensors == 120
    other = many_layers()
    with pytest.raises(BaseChangedError):
        seen.verify(other)


@pytest.mark.parametrize("fault", [RuntimeError("boom"), KeyboardInterrupt()])
def test_a_fault_while_restoring_skips_no_other_step(fault: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    first = next(model.parameters())
    flags = [p.requires_grad for p in model.parameters()]
    model.train()
    real, calls = fingerprint.RotaryState.restore, []

    def restore(self: fingerprint.RotaryState) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise fault
        real(self)

    monkeypatch.setattr(fingerprint.RotaryState, "restore", restore)

    def use() -> None:
        with restoring(model) as modules:
            fingerprint.freeze(modules)
            first.grad = torch.zeros_like(first)

    with pytest.raises(type(fault)):
        use()
    assert [p.requires_grad for p in model.parameters()] == flags
    assert first.grad is None
    assert all(module.training for module in model.modules())
    assert len(calls) == 2
