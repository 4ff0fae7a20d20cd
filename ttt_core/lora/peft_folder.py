"""Adapter folders in PEFT's format: one adapter's low-rank weights by the path of what they adapt.

Knows nothing about training or attaching. Axes: E experts, r rank. PEFT keeps the weights of E experts in two matrices:
A [E * r, d_in], expert by expert, and B [d_out, r * E], rank by rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import lazy
from ..errors import ModelError
from ..file_writing import replacing_together
from ..recipes import Recipe
from .parameters import is_named, pattern_value
from .tensor_files import save_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pair = tuple[Tensor, Tensor]
"""Down-projection [r, d_in] and up-projection [d_out, r]; of experts [E, r, d_in] and [E, d_out, r]."""
_NAMES = "base_model.model."
_INNER = ".base_layer"
_REGISTERED = ("gate_up_proj", "down_proj")
"""Parameters of experts in the order in which transformers' modules register them. PEFT wraps the module once for each:
the weights of the last have the module's path, those of others the path of a layer inside."""


def write_folder(folder: Path, pairs: Mapping[str, Pair], recipe: Recipe, base: str) -> None:
    """Writes the weights of an adapter, with `base` as the name of the base model.

    Where parameters are adapted, the configuration has dropout 0: PEFT refuses any other. Raises `FileError` where a
    file cannot be written; then a folder that was there is as it was.
    """
    parameters = [name for name, (down, _) in pairs.items() if down.dim() == 3 or name.endswith(".weight")]
    ranks = {name: pairs[name][0].shape[-2] for name in parameters}
    other = {re.escape(name): rank for name, rank in ranks.items() if rank != recipe.rank}
    config = lazy.peft.LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=0.0 if parameters else recipe.dropout,
        target_modules=sorted(pairs.keys() - set(parameters)), target_parameters=sorted(parameters) or None,
        rank_pattern=other, alpha_pattern={n: recipe.alpha * rank / recipe.rank for n, rank in other.items()},
        task_type="CAUSAL_LM", base_model_name_or_path=base, inference_mode=True,
    )  # fmt: skip
    # PEFT keeps the names as a set, and would write them in the order of their hashes, another in each process.
    config.target_modules = sorted(config.target_modules)
    tensors = {}
    for name, (down, up) in pairs.items():
        path = _wrapper_path(name, parameters) if name in ranks else name
        if down.dim() == 3:
            down, up = down.flatten(0, 1), up.permute(1, 2, 0).flatten(1)
        tensors[f"{_NAMES}{path}.lora_A.weight"] = down.detach().cpu().contiguous()
        tensors[f"{_NAMES}{path}.lora_B.weight"] = up.detach().cpu().contiguous()
    with replacing_together(folder) as partial:
        config.save_pretrained(str(partial))
        save_tensors(tensors, partial / "adapter_model.safetensors", {"format": "pt"})


def _wrapper_path(name: str, parameters: list[str]) -> str:
    """The path under which PEFT keeps the weights of a parameter."""
    owner, _, leaf = name.rpartition(".")
    later = _REGISTERED[_REGISTERED.index(leaf) + 1 :] if leaf in _REGISTERED else ()
    return owner + _INNER * sum(f"{owner}.{other}" in parameters for other in later)


def read_folder(
    folder: Path, device: torch.device | str, model: PreTrainedModel | None
) -> tuple[dict[str, Pair], float]:
    """The weights of an adapter in fp32, and their scaling. Raises `ModelError` for anything but plain LoRA, and for
    adapted parameters without the `model` that holds them."""
    file = folder / "adapter_model.safetensors"
    if not (folder / "adapter_config.json").is_file() or not file.is_file():
        raise ModelError(f"{folder}: expected a folder with adapter_config.json and adapter_model.safetensors")
    config: Any = lazy.peft.PeftConfig.from_pretrained(str(folder))
    tensors = load_file(file, device=str(device))
    paths = sorted({k.removeprefix(_NAMES).rsplit(".lora_", 1)[0] for k in tensors})
    expected = {f"{_NAMES}{path}.lora_{part}.weight" for path in paths for part in "AB"}
    if config.peft_type != lazy.peft.PeftType.LORA or _beyond_plain(config) or tensors.keys() != expected:
        raise _not_plain(folder)
    pairs: dict[str, Pair] = {}
    scaling = config.lora_alpha / config.r
    for path in paths:
        down, up = (tensors[f"{_NAMES}{path}.lora_{part}.weight"].float() for part in "AB")
        name, value = _parameter_at(folder, path, config, model)
        if value is None and not _names_layer(config, path):
            raise ModelError(
                f"{folder}: has weights of {path!r}, which the target modules in adapter_config.json do not include "
                f"({config.target_modules}): PEFT would ignore them; correct the file, or save the adapter again"
            )
        if value is not None and value.dim() == 3:
            down, up = _by_expert(folder, name, down, up, len(value))
        pairs[name] = down, up
        rank = pattern_value(config.rank_pattern or {}, name, config.r)
        if pattern_value(config.alpha_pattern or {}, name, config.lora_alpha) / rank != scaling:
            raise _not_plain(folder)
    return pairs, scaling


def _names_layer(config: Any, path: str) -> bool:
    """Whether a configuration's target modules include the linear layer at a path, by PEFT's own rule."""
    if config.target_modules == "all-linear":
        return True
    return bool(lazy.peft.tuners.tuners_utils.check_target_module_exists(config, path))


def _parameter_at(
    folder: Path, path: str, config: Any, model: PreTrainedModel | None
) -> tuple[str, nn.Parameter | None]:
    """The path of what a pair adapts, and the parameter; None for a linear layer."""
    targets = config.target_parameters or ()
    if not targets or is_named(path, config.target_modules or ()):
        return path, None
    if model is None:
        raise ModelError(f"{folder}: adapts parameters of a model ({sorted(targets)[0]}): give the model to read it")
    depth = path.count(_INNER)
    owner = path.replace(_INNER, "")
    module = dict(model.named_modules()).get(owner)
    held = {} if module is None else dict(module.named_parameters(prefix=owner, recurse=False))
    wrapped = [name for name in held if is_named(name, targets)]
    if depth >= len(wrapped):
        raise ModelError(f"{folder}: adapts {path!r}, which is no parameter of this {type(model).__name__}")
    name = wrapped[-1 - depth]
    return name, held[name]


def _by_expert(folder: Path, name: str, down: Tensor, up: Tensor, experts: int) -> Pair:
    if down.shape[0] % experts or up.shape[1] != down.shape[0]:
        raise ModelError(
            f"{folder}: for the {experts} experts of {name!r}, expected weights A [{experts} * r, d_in] and B [d_out, "
            f"r * {experts}]; received {tuple(down.shape)} and {tuple(up.shape)}"
        )
    by_expert = up.view(len(up), -1, experts).permute(2, 0, 1).contiguous()
    return down.view(experts, -1, down.shape[1]), by_expert


def _not_plain(folder: Path) -> ModelError:
    return ModelError(
        f"{folder}: only plain LoRA adapters can be loaded (no DoRA, rsLoRA, bias, modules_to_save, several scalings, "
        "embeddings, or starts that change the base model)"
    )


_BEYOND_PLAIN = (
    "use_dora", "use_rslora", "use_qalora", "lora_bias", "modules_to_save", "layer_replication",
    "trainable_token_indices", "alora_invocation_tokens",
)  # fmt: skip


def _beyond_plain(config: Any) -> bool:
    """Whether a LoRA configuration of PEFT means more than `W + scaling * B A` for every weight W."""
    harmless = config.init_lora_weights in (True, False, "gaussian", "eva", "orthogonal")
    return not harmless or config.bias != "none" or any(getattr(config, name, None) for name in _BEYOND_PLAIN)
