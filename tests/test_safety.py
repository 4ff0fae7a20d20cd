"""Every row of the table in docs/safety.md that says which proof detects which change: each change is made."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from autottt.ttt_core.errors import BaseChangedError
from autottt.ttt_core.model.fingerprint import BLOCK, Fingerprint
from autottt.ttt_core.testing import tiny_model

DOCUMENT = Path(__file__).parents[1] / "docs" / "safety.md"
HEADING = "## What each proof detects"
CHEAP, SAMPLED, FULL = "cheap", "full; cheap, once their block is sampled", "full"


def table() -> dict[str, str]:
    """The rows of the table: the change, and what it is detected by."""
    lines = DOCUMENT.read_text("utf-8").split(HEADING)[1].lstrip().splitlines()
    rows = [line.strip("|").split("|") for line in lines[: lines.index("")]]
    header, rule, *body = [[cell.strip() for cell in row] for row in rows]
    assert header == ["change", "detected by"]
    assert set(rule[0]) == {"-"}
    return dict(body)


class Host(nn.Module):
    """A model with every kind of part: a transformer, a buffer, a large tensor and one whose memory has gaps."""

    def __init__(self) -> None:
        super().__init__()
        self.language = tiny_model("llama")
        self.norm = nn.BatchNorm1d(3)
        self.large = nn.Linear(BLOCK, 4, bias=False)
        self.gaps = nn.Parameter(torch.zeros(8, 8).as_strided((4, 4), (16, 2)))
        self.scale = 1.5
        self.limit = float("nan")
        self.style = "pre"
        self.cap: float | None = None
        self.widths = (3, 4)
        self.act = partial(nn.functional.gelu, approximate="tanh")
        self.precision = torch.float32
        self.hooked = nn.Identity()
        self.hooked.register_forward_hook(_hook)

    depth = 2

    def activate(self, values: torch.Tensor) -> torch.Tensor:
        return self.act(values)


def _hook(*_: Any, **__: Any) -> None:
    return None


Change = Callable[[Any, ExitStack], Any]


def plain(change: Callable[[Any], Any]) -> Change:
    """A change that needs no undoing: it ends with the model."""
    return lambda model, undo: change(model)


def optimizer_step(model: Any, **settings: Any) -> None:
    model.large.weight.grad = torch.ones_like(model.large.weight)
    torch.optim.AdamW([model.large.weight], **settings).step()


def same_parameters(model: Any) -> None:
    linear = model.language.model.layers[0].mlp.up_proj
    other = nn.Linear(linear.in_features, linear.out_features, bias=False)
    other.weight = linear.weight
    model.language.model.layers[0].mlp.up_proj = other


def reverse_layers(model: Any) -> None:
    model.language.model.layers = nn.ModuleList(reversed(model.language.model.layers))


def other_forward_in_class(model: Any, undo: ExitStack) -> None:
    kind = type(model.language.model.norm)
    undo.callback(setattr, kind, "forward", kind.forward)
    kind.forward = lambda self, x: x


def global_hook(register: Callable[[Any], Any]) -> Change:
    return lambda model, undo: undo.callback(register(_hook).remove)


WRITES: list[Change] = [
    plain(lambda m: m.large.weight.add_(1)),
    plain(lambda m: m.large.weight[3, 5].fill_(1)),
    plain(lambda m: m.large.weight.detach()[0].zero_()),
    plain(lambda m: m.large.weight.copy_(m.large.weight.clone())),
    plain(lambda m: nn.init.zeros_(m.large.weight)),
    plain(lambda m: torch._foreach_mul_([m.large.weight], 2.0)),
    plain(lambda m: optimizer_step(m, fused=False)),
    plain(lambda m: m.norm.running_mean.add_(1)),
    plain(lambda m: m.norm(torch.ones(2, 3))),
    plain(lambda m: m.language.load_state_dict(tiny_model("llama", seed=1).state_dict())),
]
REPLACED: list[Change] = [
    plain(lambda m: setattr(m.large, "weight", nn.Parameter(m.large.weight.detach().clone()))),
    plain(lambda m: setattr(m.norm, "running_mean", torch.zeros(3))),
    plain(lambda m: setattr(m.large.weight, "data", m.large.weight.data.clone())),
    plain(lambda m: setattr(m.large, "bias", nn.Parameter(torch.zeros(4)))),
    plain(lambda m: m.norm.register_buffer("more", torch.zeros(1), persistent=False)),
    plain(lambda m: m.norm.register_buffer("running_mean", None)),
    plain(lambda m: delattr(m, "gaps")),
    plain(lambda m: setattr(m.large.weight, "data", m.large.weight.data.t())),
    plain(lambda m: setattr(m.large.weight, "data", m.large.weight.data[:2])),
    plain(lambda m: m.language.resize_token_embeddings(300)),
    plain(lambda m: m.large.bfloat16()),
    plain(lambda m: setattr(m.language.lm_head, "weight", m.language.model.embed_tokens.weight)),
]
WHOLE: list[Change] = [
    plain(lambda m: m.large.weight.data.mul_(2)),
    plain(lambda m: m.large.weight.detach().numpy().fill(0)),
    plain(lambda m: torch.from_dlpack(m.large.weight.detach()).zero_()),
    plain(lambda m: m.large.weight.untyped_storage().fill_(1)),
    plain(lambda m: m.large.weight.untyped_storage().copy_(torch.zeros(4 * BLOCK).untyped_storage())),
    plain(lambda m: optimizer_step(m, fused=True)),
    plain(lambda m: m.norm.running_mean.data.add_(1)),
]
FEW_BYTES: list[Change] = [
    plain(lambda m: m.large.weight.data[2, 7].add_(1)),
    plain(lambda m: m.large.weight.data[-1, -1].add_(1)),
    plain(lambda m: m.large.weight.detach().numpy()[1].__setitem__(0, 9)),
    plain(lambda m: torch.from_dlpack(m.large.weight.detach())[3, 0].zero_()),
    plain(lambda m: m.large.weight.untyped_storage().__setitem__(BLOCK * 5 + 3, 77)),
]
GAPS: list[Change] = [
    plain(lambda m: m.gaps.data.add_(1)),
    plain(lambda m: m.gaps.detach().numpy().fill(3)),
]
MODULES: list[Change] = [
    plain(same_parameters),
    plain(reverse_layers),
    plain(lambda m: setattr(m.language.model.layers[0].mlp, "act_fn", nn.Identity())),
    plain(lambda m: m.language.model.layers[0].add_module("more", nn.Identity())),
    plain(lambda m: delattr(m, "hooked")),
    plain(lambda m: m.language.model.layers.pop(1)),
    plain(lambda m: setattr(m.language.model, "norm", None)),
    plain(lambda m: setattr(m.language.model.norm, "__class__", nn.Identity)),
]
HOOKS: list[Change] = [
    plain(lambda m: m.large.register_forward_hook(_hook)),
    plain(lambda m: m.register_forward_hook(_hook, with_kwargs=True)),
    plain(lambda m: m.register_forward_hook(_hook, always_call=True)),
    plain(lambda m: m.norm.register_forward_pre_hook(_hook)),
    plain(lambda m: m.norm.register_forward_pre_hook(_hook, with_kwargs=True)),
    plain(lambda m: m.large.register_full_backward_hook(_hook)),
    plain(lambda m: m.large.register_full_backward_pre_hook(_hook)),
    plain(lambda m: m.large.register_state_dict_pre_hook(_hook)),
    plain(lambda m: m.large.register_load_state_dict_post_hook(_hook)),
    plain(lambda m: m.hooked._forward_hooks.clear()),
    plain(lambda m: m.hooked._forward_hooks.update({next(iter(m.hooked._forward_hooks)): lambda *_: None})),
    global_hook(torch_module.register_module_forward_hook),
    global_hook(torch_module.register_module_forward_pre_hook),
    global_hook(torch_module.register_module_full_backward_hook),
    global_hook(torch_module.register_module_buffer_registration_hook),
]
FORWARD: list[Change] = [
    plain(lambda m: setattr(m.language.model.norm, "forward", lambda x: x)),
    plain(lambda m: setattr(m, "activate", lambda x: x)),
    other_forward_in_class,
]
ATTRIBUTES: list[Change] = [
    plain(lambda m: setattr(m, "scale", 1.25)),
    plain(lambda m: setattr(m, "scale", None)),
    plain(lambda m: setattr(m, "style", "post")),
    plain(lambda m: setattr(m, "cap", 30.0)),
    plain(lambda m: setattr(m, "widths", (4, 3))),
    plain(lambda m: setattr(m, "act", partial(nn.functional.gelu, approximate="none"))),
    plain(lambda m: setattr(m, "act", nn.functional.relu)),
    plain(lambda m: setattr(m, "precision", torch.bfloat16)),
    plain(lambda m: delattr(m, "scale")),
    plain(lambda m: delattr(m, "cap")),
    plain(lambda m: setattr(m, "depth", 3)),
    plain(lambda m: setattr(m, "scale", torch.tensor(1.5))),
    plain(lambda m: setattr(m, "scale", True)),
    plain(lambda m: setattr(m.language.model.layers[0].self_attn, "scaling", 0.5)),
    plain(lambda m: setattr(m.language.model.norm, "variance_epsilon", 1.0)),
    plain(lambda m: setattr(m.language.model.embed_tokens, "max_norm", 1.0)),
    plain(lambda m: setattr(m.norm, "momentum", 0.5)),
]
MODES: list[Change] = [
    plain(lambda m: m.train()),
    plain(lambda m: m.language.model.layers[1].mlp.train()),
    plain(lambda m: setattr(m.norm, "training", True)),
]
CHANGES: dict[str, list[Change]] = {
    "an operation of PyTorch writes to a tensor": WRITES,
    "a tensor is replaced, added, removed, transposed or resized": REPLACED,
    "a write past the version counter (`tensor.data`, NumPy, DLPack, fused optimizers, storage) to the whole tensor": (
        WHOLE
    ),
    "a write past the version counter to a few bytes": FEW_BYTES,
    "a write past the version counter to a tensor whose memory has gaps": GAPS,
    "a module is replaced, added or removed, also by one with the same parameters": MODULES,
    "a hook is added or removed, on a module or for all modules": HOOKS,
    "`forward` is overridden in an instance or replaced in a class": FORWARD,
    "a number, text, tuple, type or function that is a public attribute of a module changes": ATTRIBUTES,
    "a module is in another mode": MODES,
}
CASES = [
    pytest.param(row, change, id=f"{row}-{number}") for row in CHANGES for number, change in enumerate(CHANGES[row])
]


def test_every_row_has_a_case_and_every_case_a_row() -> None:
    assert list(CHANGES) == list(table())
    assert all(CHANGES.values())
    assert set(table().values()) == {CHEAP, SAMPLED, FULL}


def detects(fingerprint: Fingerprint, model: nn.Module, full: bool = False) -> bool:
    """Whether one proof fails."""
    try:
        fingerprint.verify(model, full=full)
    except BaseChangedError:
        return True
    return False


def changed(change: Change, undo: ExitStack) -> tuple[Fingerprint, Host]:
    """A model with the fingerprint of what it was before the change."""
    model = Host().eval()
    model.norm.training = change in WRITES  # in training mode a batch norm writes to its buffers
    fingerprint = Fingerprint(model)
    assert not detects(fingerprint, model)
    assert not detects(fingerprint, model, full=True)
    with torch.no_grad():
        change(model, undo)
    return fingerprint, model


@pytest.mark.parametrize(("row", "change"), CASES)
def test_a_change_is_detected_by_the_proof_that_the_table_names(row: str, change: Change) -> None:
    proof = table()[row]
    with ExitStack() as undo:
        fingerprint, model = changed(change, undo)
        assert detects(fingerprint, model) is (proof == CHEAP)
        assert detects(fingerprint, model, full=True), "a full proof compares what a cheap one does, and every byte"


@pytest.mark.parametrize("change", FEW_BYTES)
def test_a_tensor_of_n_blocks_is_compared_completely_by_n_cheap_proofs(change: Change) -> None:
    with ExitStack() as undo:
        fingerprint, model = changed(change, undo)
        blocks = model.large.weight.nbytes // BLOCK
        assert [detects(fingerprint, model) for _ in range(blocks)].count(True) == 1


@pytest.mark.parametrize("change", GAPS)
def test_no_cheap_proof_reads_memory_with_gaps(change: Change) -> None:
    with ExitStack() as undo:
        fingerprint, model = changed(change, undo)
        assert not any(detects(fingerprint, model) for _ in range(20))
