"""Which modules of a model get an adapter, matched by class: linear layers and transformers' `Conv1D`; and experts.

Recipes name modules as Llama does; an architecture with other names, or with fused projections, maps them to the same
part of its layers. Knows nothing about weights of adapters or training.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from torch import nn

from .. import lazy
from ..errors import ModelError
from .parameters import TargetParameter, all_linear_of_peft, is_named

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger("autottt")

ALL_LINEAR = "all-linear"
"""The target that means every linear layer but the output head, as in PEFT."""
ROLES = {
    "q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output",
    "gate_proj": "gate", "up_proj": "up", "down_proj": "down",
}  # fmt: skip
"""Names that recipes for any model give -> what such a projection computes."""
_ATTENTION_NAMES = {
    "query": "q_proj query q wq q_lin project_q query_proj q_a_proj q_b_proj",
    "key": "k_proj key k wk k_lin project_k key_proj",
    "value": "v_proj value v wv v_lin project_v value_proj",
    "key value": "kv_proj kv_a_proj kv_a_proj_with_mqa kv_b_proj key_value",
    "query key value": "qkv_proj qkv query_key_value c_attn wqkv w_pack in_proj_qkv",
    "output": "o_proj out_proj dense c_proj wo out_lin attention_out o_a_proj o_b_proj proj output",
}
_MLP_NAMES = {
    "gate": "gate_proj w1 proj_up_gate",
    "up": "up_proj w3 fc1 c_fc fc_in dense_h_to_4h lin1 proj_up intermediate",
    "gate up": "gate_up_proj wi input_linear",
    "down": "down_proj w2 fc2 c_proj fc_out dense_4h_to_h lin2 proj_down output wo output_linear",
}


def _by_name(table: Mapping[str, str]) -> dict[str, frozenset[str]]:
    return {name: frozenset(roles.split()) for roles, names in table.items() for name in names.split()}


_ATTENTION, _MLP = _by_name(_ATTENTION_NAMES), _by_name(_MLP_NAMES)
PARTS = ("attention", "MLP", "experts", "recurrent")
"""Parts of a transformer's layers. `recurrent` means state-space, linear-attention and convolution layers; the
experts of a mixture are a part of their own."""
_MLP_ROLES = ("gate", "up", "down")
_PARTS_OF_ROLES = {r: ("MLP", "experts") if r in _MLP_ROLES else ("attention",) for r in ROLES.values()}
_RECURRENT = re.compile(r"mamba|ssm|linear_attn|conv|rg_lru|mlstm")
_RECURRENT_LEAVES = {"in_proj", "x_proj", "dt_proj", "linear_x", "linear_y", "linear_out", "out_proj"}
_ROUTERS = {"gate", "classifier", "shared_expert_gate"}


class Coverage(NamedTuple):
    """What an adapter covers of its model."""

    modules: tuple[tuple[str, int], ...]
    """Path of the adapted modules, with `*` for the number of the layer, and how many there are."""
    weight_share: float
    """Share of the model's weights that the adapted modules hold, 0 to 1."""
    left_out: tuple[str, ...]
    """Parts of the model's layers of which no module is adapted: see `PARTS`."""


def target_modules(
    model: PreTrainedModel, targets: Sequence[str], layers: Collection[int] = ()
) -> dict[str, nn.Module]:
    """The linear layers that `targets` name; of a model that reads more than text, those of its text decoder. `layers`
    are the numbers of the decoder layers to choose from, as PEFT's `layers_to_transform`; empty: all.

    As in PEFT, a target is the end of a module's path, in whole components, and `all-linear` is every linear layer but
    the output head. A name of Llama's that the model does not have means the projection with the same role, possibly
    fused with others: `q_proj` is `qkv_proj` in Phi-3 and `c_attn` in GPT-2. Where a whole part that is asked for is
    left out (experts in parameters that PEFT does not adapt), one warning is logged for each model.

    Targets of which none has a meaning in this model mean `all-linear`, with a warning. Raises `ModelError` for
    targets that match nothing beside some that do, for Llama's names whose part cannot be adapted, and for layers
    without a target.
    """
    chosen = target_paths(model, targets, layers)
    return {n: m for n, m in linear_modules(model).items() if n in chosen}


def target_parameters(
    model: PreTrainedModel, targets: Sequence[str], layers: Collection[int] = ()
) -> dict[str, TargetParameter]:
    """The parameters that `targets` name although no linear layer holds them: experts, and for `all-linear` routers.

    They are among those that PEFT adapts for `all-linear`. Targets are matched as in `target_modules`: `gate_proj` and
    `up_proj` mean the fused projection of the experts. Raises as `target_modules` does.
    """
    chosen = target_paths(model, targets, layers)
    return {n: p for n, p in expert_parameters(model).items() if n in chosen}


def target_paths(model: PreTrainedModel, targets: Sequence[str], layers: Collection[int] = ()) -> set[str]:
    """Paths of the linear layers and parameters that targets name, in all layers or those with the given numbers.
    Raises as `target_modules` does."""
    linear, parameters = linear_modules(model), expert_parameters(model)
    if not linear:
        raise ModelError(f"{type(model).__name__} has no linear layers to attach an adapter to")
    if ALL_LINEAR in targets:
        chosen = {*linear, *parameters}
    else:
        roles = {n: _roles(n, m) for n, m in linear.items()} | {n: _roles_of_experts(n) for n in parameters}
        matches = {target: _matches(roles, parameters, target) for target in targets}
        chosen = _without_misses(model, roles, matches)
    _warn_of_left_out(model, tuple(targets), chosen)
    return _in_layers(model, chosen, layers) if layers else chosen


def _in_layers(model: PreTrainedModel, paths: Collection[str], layers: Collection[int]) -> set[str]:
    """The paths in layers with the given numbers. Raises `ModelError` for a number without a path."""
    numbers = {path: layer_number(path) for path in paths}
    if unknown := sorted(set(layers) - set(numbers.values())):
        known = sorted({number for number in numbers.values() if number is not None})
        have = "are in no layer with a number: name no layers"
        if known:
            span = f"{known[0]} to {known[-1]}"
            without_gaps = known == list(range(known[0], known[-1] + 1))
            have = f"are in layers {span if without_gaps else known}: name some of these"
        raise ModelError(
            f"layers_to_transform {unknown} hold no target of {type(model).__name__}, whose targets {have}"
        )
    return {path for path, number in numbers.items() if number in layers}


def layer_number(path: str) -> int | None:
    """The number of the layer that a module belongs to: the first in its path, as in PEFT; None without one."""
    found = re.match(r".*?\.[^.]*\.(\d+)\.", path)
    return int(found[1]) if found else None


def expert_parameters(model: PreTrainedModel) -> dict[str, TargetParameter]:
    """Every parameter that may get an adapter although no linear layer holds it, by path."""
    choice = all_linear_of_peft(model)
    if choice is None:
        return {}
    read = {id(p) for p in _text_decoder(model).parameters()}
    return {n: p for n, p in choice.parameters.items() if id(p.value) in read}


def linear_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Every linear layer that may get an adapter, by path: all but the output head; of a model that reads more than
    text, those of its text decoder.

    Where PEFT adapts fused experts, layers that have the name of an expert's projection are left out, as by PEFT, which
    reads such a name as that of the experts.
    """
    head, choice = model.get_output_embeddings(), all_linear_of_peft(model)
    of_head = set() if head is None else set(head.modules())
    linear = {
        n: m
        for n, m in model.named_modules()
        if isinstance(m, (nn.Linear, lazy.pytorch_utils.Conv1D))
        and m not in of_head
        and (choice is None or _leaf(n) in choice.module_names)
    }
    decoder = set(_text_decoder(model).modules())
    return {n: m for n, m in linear.items() if m in decoder} or linear


def module_sizes(module: nn.Module) -> tuple[int, int]:
    """(d_in, d_out)."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    assert isinstance(module, lazy.pytorch_utils.Conv1D)
    return int(module.weight.shape[0]), int(module.weight.shape[1])  # transposed


def coverage(model: PreTrainedModel, names: Collection[str]) -> Coverage:
    """What an adapter on the modules and parameters of these paths covers of a model."""
    counts = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names)
    weights = {*names, *(f"{name}.weight" for name in names)}
    adapted = {id(p): p.numel() for n, p in model.named_parameters(remove_duplicate=False) if n in weights}
    total = sum(p.numel() for p in model.parameters())
    return Coverage(tuple(counts.items()), sum(adapted.values()) / total, _left_out(model, names))


def _matches(roles: Mapping[str, frozenset[str]], experts: Collection[str], target: str) -> set[str]:
    """Paths that end in a target, or else those of projections with the role of one of Llama's names; and, where
    projections of `experts` are fused, those that contain what was a layer of this name (`w1` of Mixtral)."""
    if same := {n for n in roles if is_named(n, (target, f"{target}.weight"))}:
        return same
    role = ROLES.get(target)
    if same := {n for n, mine in roles.items() if role in mine}:
        return same
    if same := {n for n in experts if roles[n] & _MLP.get(target, frozenset())}:
        return same
    input_side = {"gate", "up"}  # an MLP without a gate has one of the two
    return {n for n, mine in roles.items() if mine & input_side} if role in input_side else set()


def _without_misses(
    model: PreTrainedModel, roles: Mapping[str, frozenset[str]], matches: Mapping[str, set[str]]
) -> set[str]:
    """The matched paths, or all where no target means anything in this model. Raises `ModelError`."""
    chosen = {name for names in matches.values() for name in names}
    known = sorted({_leaf(n.removesuffix(".weight")) for n in roles})
    has = f"of {type(model).__name__}, which has {', '.join(known)}"
    unknown = [t for t, names in matches.items() if not names and t not in ROLES]
    if unknown and chosen:
        raise ModelError(f"targets {unknown} name no linear layer {has}")
    if chosen:
        return chosen
    if not unknown and any(roles.values()):
        experts = f" ({_EXPERTS_LEFT_OUT})" if "experts" in _parts(model) else ""
        raise ModelError(
            f"targets {list(matches)} name no linear layer {has}{experts}: name some of these, or all-linear"
        )
    _warn_once(model, f"targets {unknown or list(matches)} name no linear layer {has}: all of them are adapted")
    return set(roles)


_EXPERTS_LEFT_OUT = "its experts are parameters without linear layers, which PEFT does not adapt in this architecture"


def _roles(path: str, module: nn.Module) -> frozenset[str]:
    """What a linear layer computes, as far as its path and sizes say: several roles for a fused projection."""
    part, leaf = _part_of(path), _role_name(path)
    if part == "attention":
        return _ATTENTION.get(leaf, frozenset())
    if part not in ("MLP", "experts"):
        return frozenset()
    d_in, d_out = module_sizes(module)
    by_size = frozenset({"up"} if d_out > d_in else {"down"} if d_out < d_in else ())
    return _MLP.get(leaf, by_size)


def _roles_of_experts(path: str) -> frozenset[str]:
    """What the parameter of experts computes."""
    return _MLP.get(_role_name(path), frozenset())


def _role_name(path: str) -> str:
    """The component of a path that names the projection: `q_proj` of `q_proj.linear`, `output` of `output.dense`."""
    *before, leaf = path.lower().split(".")
    if leaf == "linear" or (leaf == "dense" and before[-1:] in (["output"], ["intermediate"])):
        return before[-1] if before else leaf
    return leaf


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _part_of(path: str) -> str:
    """The part of a layer that a module belongs to: one of `PARTS`, `router`, or `other`."""
    components = path.lower().split(".")
    leaf = _role_name(path)
    if not any(c.isdigit() for c in components):  # in no layer
        return "other"
    if leaf in _ROUTERS or any("router" in c for c in components):
        return "router"
    if any(_RECURRENT.search(c) for c in components):
        return "recurrent"
    if {"mixer", "temporal_block"} & set(components) and leaf in _RECURRENT_LEAVES:
        return "recurrent"
    if {"experts", "expert"} & set(components):
        return "experts"
    blocks = [c for c in components if "norm" not in c]
    if any("attn" in c or "attention" in c or c in ("att", "self_att") for c in blocks):
        return "attention"
    if any(re.search(r"mlp|ffn|feed_forward|^ff$|moe|shared_expert", c) for c in blocks):
        return "MLP"
    if leaf in _ATTENTION and leaf not in _MLP:
        return "attention"
    return "MLP" if leaf in _MLP else "other"


def _parts(model: PreTrainedModel) -> set[str]:
    """The parts of a model's layers that hold matrices."""
    return {part for part, _ in _matrices(model)} & set(PARTS)


def _matrices(model: PreTrainedModel) -> Iterable[tuple[str, str]]:
    """(part, path of its module or of the parameter itself) of every matrix in the text decoder."""
    read = {id(p) for p in _text_decoder(model).parameters()}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        if sum(size > 1 for size in parameter.shape) > 1 and id(parameter) in read:
            owner = path.removesuffix(".weight")
            part = _part_of(owner)
            yield ("experts" if part == "MLP" and parameter.dim() == 3 else part), owner


def _left_out(model: PreTrainedModel, names: Collection[str]) -> tuple[str, ...]:
    adapted = {_part_of(name.removesuffix(".weight")) for name in names}
    parts = _parts(model)
    return tuple(part for part in PARTS if part in parts - adapted)


def _warn_of_left_out(model: PreTrainedModel, targets: tuple[str, ...], chosen: Collection[str]) -> None:
    """Warns once where a whole part that targets ask for is not adapted."""
    key = f"targets {targets}"
    if key in _warned.setdefault(model, set()):
        return
    _warned[model].add(key)
    asked = {part for t in targets for part in _PARTS_OF_ROLES.get(ROLES.get(t, ""), ())}
    if ALL_LINEAR in targets:
        asked = set(PARTS)
    if missing := [part for part in _left_out(model, chosen) if part in asked]:
        reason = ""
        if "experts" in missing:
            reason = f" ({_EXPERTS_LEFT_OUT})"
        elif "MLP" in missing and all_linear_of_peft(model) is not None:
            reason = " (PEFT takes the names of its layers for those of the experts)"
        _log.warning(
            "%s: targets %s leave out the whole of: %s%s", type(model).__name__, targets, ", ".join(missing), reason
        )


def warn_of_checkpointing(model: PreTrainedModel) -> None:
    """Warns once for a model with gradient checkpointing: it has no effect in evaluation mode, which adapters are
    trained in."""
    if any(getattr(m, "gradient_checkpointing", False) for m in model.modules()):
        _warn_once(
            model,
            f"{type(model).__name__} has gradient checkpointing enabled, which has no effect here: adapters are "
            "trained with the model in evaluation mode, and micro-batches are made to fit in memory",
        )


_warned: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
"""Warnings that were logged for a model."""


def _warn_once(model: nn.Module, message: str) -> None:
    if message not in _warned.setdefault(model, set()):
        _warned[model].add(message)
        _log.warning(message)


def _text_decoder(model: PreTrainedModel) -> nn.Module:
    """What reads text in a model that reads more than that; any other model as a whole."""
    sees_more = model.config.get_text_config() is not model.config
    decoder: nn.Module = model.get_decoder() if sees_more else model
    return decoder
