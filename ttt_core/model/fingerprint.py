"""Proof that a base model is what it was at load, and the guard that restores everything else.

Knows nothing about adapters or tasks. The cheap proof compares tensors, modules and hooks by identity, and one block of
bytes of every tensor, another one at each proof; the full proof also hashes all bytes.
"""

from __future__ import annotations

import copy
import hashlib
import sys
import time
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import call, is_, itemgetter
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..errors import BaseChangedError


@dataclass(frozen=True)
class RevertProof:
    """What was checked after an answer. A proof that fails is never returned: `BaseChangedError` is raised instead."""

    method: str
    """`pointers` (identity of tensors, modules and hooks, and sampled bytes) or `full` (and the content hash)."""
    tensors: int
    """Parameters and buffers that were checked."""
    seconds: float
    hash: str
    """Content hash of the base: computed at load for `pointers`, and again for `full`."""


class RevocableChangeError(BaseChangedError):
    """Hooks or the mode of a module are not those at load. The caller can set them back: no weight changed."""


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, tied ones once; without rotary frequencies that the model recomputes in each
    pass from the length of the prompt (see `RotaryState`)."""
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    recomputed = {id(b) for m in _modules(model) if _recomputes(m) for b in m._buffers.values()}
    tensors.update((n, b) for n, b in model.named_buffers() if id(b) not in recomputed)
    return tensors


def _recomputes(module: nn.Module) -> bool:
    """Whether the module is a rotary embedding whose frequencies follow the prompt's length."""
    kinds = vars(module).get("rope_type", "")
    names = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(isinstance(n, str) and ("dynamic" in n or n == "longrope") for n in names)


def fixed_rotary_length(model: nn.Module) -> int:
    """Tokens of the longest row of a batch up to which the rotary frequencies are those of any shorter batch; without a
    bound `sys.maxsize`. Beyond it, `dynamic` and `longrope` have others for all rows."""
    lengths = [sys.maxsize]
    for module in filter(_recomputes, _modules(model)):
        parameters: object = getattr(getattr(module, "config", None), "rope_parameters", None)
        kinds = [parameters, *parameters.values()] if isinstance(parameters, dict) else []
        of_config = [kind.get("original_max_position_embeddings") for kind in kinds if isinstance(kind, dict)]
        known = [n for n in (*of_config, vars(module).get("original_max_seq_len")) if isinstance(n, int)]
        lengths.append(min(known, default=1) - 1)
    return min(lengths)


def content_hash(model: nn.Module) -> str:
    """BLAKE2b over the names, shapes and values of every parameter and buffer; 32 hexadecimal digits.

    The same numbers have the same hash in every precision that holds them exactly: a bf16 model loaded in fp32, say.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(state_tensors(model).items()):
        flat = _narrowest(tensor.detach()).contiguous().view(-1)
        digest.update(f"{name}|{flat.dtype}|{tuple(tensor.shape)}|".encode())
        if flat.numel():
            digest.update(flat.view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def _narrowest(tensor: Tensor) -> Tensor:
    """The tensor in the first of bf16 and fp16 that holds its values exactly, else as it is."""
    if tensor.dtype in (torch.float32, torch.float16):
        for dtype in (torch.bfloat16, torch.float16):
            if tensor.dtype != dtype and torch.equal((narrow := tensor.to(dtype)).to(tensor.dtype), tensor):
                return narrow
    return tensor


TensorIdentity = tuple[int, int, tuple[int, ...], tuple[int, ...], int, torch.dtype]


def _identity(tensor: Tensor) -> TensorIdentity:
    return (
        tensor.data_ptr(), tensor._version, tensor.shape, tensor.stride(), int(tensor.storage_offset()), tensor.dtype,
    )  # fmt: skip


BLOCK = 2048
"""Bytes of each tensor that a cheap proof compares."""


class SampledBytes:
    """Checksums of all blocks of a model's tensors; each check reads one block of every tensor, the next one each time.

    A tensor of n blocks is so compared completely by n checks. Tensors whose memory has gaps are left out.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._round = 0
        self.bytes_per_check = 0
        """Bytes that one check reads at most."""
        self._on_cpu: list[tuple[str, memoryview, array[int]]] = []
        self._on_devices: dict[torch.device, list[tuple[str, Tensor, array[int]]]] = {}
        for name, tensor in tensors.items():
            memory = _memory(tensor)
            if memory is None:
                continue
            content = memory.cpu().numpy().data
            self.bytes_per_check += min(BLOCK, len(content))
            checksums = array("I", (zlib.crc32(content[at : at + BLOCK]) for at in range(0, len(content), BLOCK)))
            if memory.device.type == "cpu":
                self._on_cpu.append((name, content, checksums))
            else:
                self._on_devices.setdefault(memory.device, []).append((name, memory, checksums))

    def changed(self) -> str | None:
        """Compares the next block of every tensor; the name of one that differs, or None."""
        self._round += 1
        for index, (name, content, checksums) in enumerate(self._on_cpu, self._round):
            block = index % len(checksums)
            if zlib.crc32(content[block * BLOCK : (block + 1) * BLOCK]) != checksums[block]:
                return name
        return next(filter(None, map(self._changed_on_device, self._on_devices.values())), None)

    def _changed_on_device(self, samples: list[tuple[str, Tensor, array[int]]]) -> str | None:
        """As `changed`, for one device: the blocks are gathered there and copied once."""
        blocks = [i % len(checksums) for i, (_, _, checksums) in enumerate(samples, self._round)]
        parts = [m[b * BLOCK : (b + 1) * BLOCK] for (_, m, _), b in zip(samples, blocks, strict=True)]
        content, at = torch.cat(parts).cpu().numpy().data, 0
        for (name, _, checksums), block, part in zip(samples, blocks, parts, strict=True):
            if zlib.crc32(content[at : at + len(part)]) != checksums[block]:
                return name
            at += len(part)
        return None


def _memory(tensor: Tensor) -> Tensor | None:
    """A tensor's memory as bytes, without a copy; None where it has gaps, is empty, or is no plain memory."""
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) or tensor.layout != torch.strided or tensor.is_meta:
        return None
    plain = tensor.detach()
    dense = plain.permute(sorted(range(plain.dim()), key=plain.stride, reverse=True))
    if not plain.numel() or not dense.is_contiguous() or plain.is_conj() or plain.is_neg():
        return None
    return dense.reshape(-1).view(torch.uint8)


def _modules(model: nn.Module) -> list[nn.Module]:
    """All modules of a model, each once, in no particular order; several times as quick as with their names."""
    modules: dict[nn.Module, None] = {model: None}
    level = [model]
    while level:
        children = dict.fromkeys(chain.from_iterable([m._modules.values() for m in level]))
        level = [child for child in children if child is not None and child not in modules]
        modules.update(dict.fromkeys(level))
    return list(modules)


_CONTAINERS = ("_parameters", "_buffers", "_modules")
"""Where a module keeps its tensors and modules, by name."""
_COMPARED = (NoneType, bool, int, float, str, tuple, torch.dtype, FunctionType, BuiltinFunctionType, partial)
"""Types of attributes that a forward pass may depend on and that can be compared at once."""
_ABSENT = object()
_NOT_COMPARED = {"training", "gradient_checkpointing"}
"""Attributes that the guard overrides, or that have no effect in evaluation mode."""
_HARMLESS = ("transformers.utils.output_capturing", "transformers.modeling_utils")
"""Modules of hooks that transformers installs when a host asks for hidden states or switches on gradient checkpointing;
they change no output."""


def _hook_names(module: nn.Module) -> list[str]:
    """Attributes of a module that hold hooks, of forward and backward passes and of state dictionaries."""
    return [name for name, value in vars(module).items() if "hooks" in name and isinstance(value, dict)]


def _hooks(module: nn.Module) -> dict[str, list[Any]]:
    """The hooks of a module that may change an output, by the attribute that holds them."""
    hooks = {name: list(vars(module)[name].values()) for name in _hook_names(module)}
    return {name: h for name, held in hooks.items() if (h := [x for x in held if _module_of(x) not in _HARMLESS])}


def _module_of(hook: object) -> str:
    return str(getattr(hook, "__module__", ""))


def _global_hooks() -> dict[str, list[Any]]:
    """The hooks that torch calls for every module."""
    held = {name: value for name, value in vars(torch_module).items() if name.startswith("_global_")}
    return {name: list(value.values()) for name, value in held.items() if isinstance(value, dict) and value}


def _attributes(module: nn.Module) -> dict[str, Any]:
    """The public attributes of a module that are None, numbers, texts, tuples, types or functions."""
    if _recomputes(module):
        return {}
    public = {k: v for k, v in vars(module).items() if not k.startswith("_") and k not in _NOT_COMPARED}
    return {k: v for k, v in public.items() if type(v) in _COMPARED}


def _shown(value: object) -> str:
    return "(no value)" if value is _ABSENT else repr(value)


def overridden_methods(module: nn.Module) -> dict[str, Any]:
    """Methods of the class that the instance overrides, such as `forward`."""
    methods = type(module)
    return {
        k: v for k, v in vars(module).items() if callable(getattr(methods, k, None)) and k not in ("call_super_init",)
    }


@dataclass(frozen=True)
class _ModuleRecord:
    """What one module was at load."""

    module: nn.Module
    kind: type[nn.Module]
    forward: Any
    training: bool
    attributes: dict[str, Any]
    overrides: dict[str, Any]
    hooks: dict[str, list[Any]]

    @classmethod
    def of(cls, module: nn.Module) -> _ModuleRecord:
        return cls(
            module, type(module), type(module).forward, module.training, _attributes(module),
            overridden_methods(module), _hooks(module),
        )  # fmt: skip

    def difference(self, now: nn.Module) -> str:
        """What differs, but for the mode; empty where nothing does."""
        if now is not self.module or type(now) is not self.kind:
            return f"is now another module, a {type(now).__name__} (at load a {self.kind.__name__})"
        if type(now).forward is not self.forward:
            return f"has another forward function in its class {self.kind.__name__}"
        if overridden_methods(now) != self.overrides:
            return (
                f"has overridden methods {sorted(overridden_methods(now).keys() ^ self.overrides.keys()) or '(others)'}"
            )
        before, attributes = self.attributes, vars(now)
        for name in [*before, *(k for k in _attributes(now) if k not in before and hasattr(type(now), k))]:
            value, at_load = attributes.get(name, _ABSENT), before.get(name, _ABSENT)
            if at_load is None and value is not _ABSENT and type(value) not in _COMPARED:
                continue  # what `generate` keeps of its last call, such as `rope_deltas`: a state, no setting
            if value is not at_load and (type(value) is not type(at_load) or value != at_load):
                return f"has {name}={_shown(value)} (at load {_shown(at_load)})"
        return ""


class _FastComparison:
    """Whether a model is what it was, without saying what differs: all modules are compared at once, in C."""

    def __init__(self, model: nn.Module, at_load: Mapping[nn.Module, Mapping[str, Any]]) -> None:
        """`at_load` are the compared attributes that each module had at load."""
        self._modules = _modules(model)
        self._kinds = [type(m) for m in self._modules]
        self._forwards = {kind: kind.forward for kind in set(self._kinds)}
        self._global = _global_hooks()
        self._copies = [dict(vars(m)) for m in self._modules]
        hook_names = [_hook_names(m) for m in self._modules]
        attributes = [_attributes(m) for m in self._modules]
        lasting_names = [[k for k in at_load.get(m, ()) if k in vars(m)] for m in self._modules]
        self._compared = [
            ("training", *_CONTAINERS, *hooks, *dict.fromkeys([*names, *values]))
            for hooks, names, values in zip(hook_names, lasting_names, attributes, strict=True)
        ]
        numeric = [
            (vars(m), [name for name, value in values.items() if isinstance(value, (int, float, tuple))])
            for m, values in zip(self._modules, attributes, strict=True)
        ]
        self._number_readers = [itemgetter("training", *names) for _, names in numeric if names]
        self._with_numbers = [own for own, names in numeric if names]
        self._numbers = list(self._read_numbers())
        containers = [
            container
            for m, hooks in zip(self._modules, hook_names, strict=True)
            for container in map(vars(m).__getitem__, (*_CONTAINERS, *hooks))
            if not (_recomputes(m) and any(isinstance(value, Tensor) for value in container.values()))
        ]
        self._empty = [container for container in containers if not container]
        self._filled = [container for container in containers if container]
        self._names = list(chain.from_iterable(self._filled))
        self._held = [value for container in self._filled for value in container.values()]
        lasting = {id(tensor) for tensor in state_tensors(model).values()}
        tensors = {id(v): v for v in self._held if id(v) in lasting}
        self._tensors = [(tensor, *_identity(tensor)) for tensor in tensors.values()]

    def holds(self) -> bool:
        """Whether nothing differs."""
        return self._modules_hold() and self._contents_hold() and self._tensors_hold()

    def _modules_hold(self) -> bool:
        """Whether each module has the class and the attributes that it had."""
        now = list(map(vars, self._modules))
        try:
            equal = now == self._copies
        except Exception:  # tensors have no truth value
            equal = False
        same = map(self._same_attributes, now, self._copies, self._compared)
        return (
            list(map(type, self._modules)) == self._kinds
            and (equal or all(same))
            and _identical(self._read_numbers(), self._numbers)  # 1 equals True
        )

    def _same_attributes(self, own: dict[str, Any], copy: dict[str, Any], names: tuple[str, ...]) -> bool:
        """Whether a module has as many attributes, and those of these names are the same objects."""
        return len(own) == len(copy) and all(own.get(name, _ABSENT) is copy[name] for name in names)

    def _read_numbers(self) -> Iterator[Any]:
        return chain.from_iterable(map(call, self._number_readers, self._with_numbers))

    def _contents_hold(self) -> bool:
        """Whether the containers of tensors, modules and hooks hold the same objects under the same names."""
        held = chain.from_iterable(map(dict.values, self._filled))
        return (
            not any(self._empty)
            and list(chain.from_iterable(self._filled)) == self._names
            and _identical(held, self._held)
            and _global_hooks() == self._global
            and all(kind.forward is f for kind, f in self._forwards.items())
        )

    def _tensors_hold(self) -> bool:
        for tensor, pointer, version, shape, stride, offset, dtype in self._tensors:
            if tensor.data_ptr() != pointer or tensor._version != version or tensor.shape != shape:
                return False
            if tensor.stride() != stride or tensor.storage_offset() != offset or tensor.dtype != dtype:
                return False
        return True


def _identical(one: Iterable[object], other: Iterable[object]) -> bool:
    """Whether each object is the same one as the other's."""
    return all(map(is_, one, other))


class Fingerprint:
    """Remembers a model's tensors, modules and hooks as they are now."""

    def __init__(self, model: nn.Module, original: Fingerprint | None = None) -> None:
        """`original` is the fingerprint of the model that this one is a replica of: what was read of the weights is
        not read again."""
        self.hash: str = content_hash(model) if original is None else original.hash
        # Aliases keep the memory in use, so that no other tensor can come to lie at a remembered address.
        self._aliases = {name: tensor.detach() for name, tensor in state_tensors(model).items()}
        self._identities = {name: _identity(tensor) for name, tensor in state_tensors(model).items()}
        self._samples: SampledBytes = SampledBytes(self._aliases) if original is None else copy.copy(original._samples)
        self._records = {name: _ModuleRecord.of(m) for name, m in model.named_modules(remove_duplicate=False)}
        self._global = _global_hooks()
        self._model = model
        self._fast = self._fast_comparison(model)
        self.bytes = sum(tensor.nbytes for tensor in self._aliases.values())
        """Bytes of all tensors."""

    def _fast_comparison(self, model: nn.Module) -> _FastComparison:
        return _FastComparison(model, {record.module: record.attributes for record in self._records.values()})

    def compared_bytes(self, *, full: bool) -> int:
        """Bytes of the tensors that a proof compares, of a cheap proof at most."""
        return self.bytes if full else self._samples.bytes_per_check

    def verify(self, model: nn.Module, *, full: bool = False) -> RevertProof:
        """Checks that the model is the one remembered. Raises `BaseChangedError`, which names what is not: a tensor, a
        module or a hook."""
        began = time.perf_counter()
        if model is not self._model or not self._fast.holds():
            self._compare_tensors(model)
            self._compare_modules(model)
            self._fast = self._fast_comparison(model)  # containers may be other ones that hold the same
        if changed := self._samples.changed():
            raise BaseChangedError(
                f"the base model's tensor {changed!r} was replaced or written to (sampled bytes differ); load the "
                "model again"
            )
        if full and content_hash(model) != self.hash:
            raise BaseChangedError(
                "the base model's content hash changed although no tensor was replaced; load it again"
            )
        return RevertProof(
            "full" if full else "pointers", len(self._identities), time.perf_counter() - began, self.hash
        )

    def _compare_tensors(self, model: nn.Module) -> None:
        """Every tensor by its name. Raises `BaseChangedError` with the first that differs."""
        now = state_tensors(model)
        if now.keys() != self._identities.keys():
            odd = sorted(now.keys() ^ self._identities.keys())
            raise BaseChangedError(
                f"the base model's tensors are not those it was loaded with: {odd[:3]}; load the model again"
            )
        for name, tensor in now.items():
            if _identity(tensor) != self._identities[name]:
                raise BaseChangedError(
                    f"the base model's tensor {name!r} was replaced or written to; load the model again"
                )

    def _compare_modules(self, model: nn.Module) -> None:
        """Every module by its name. Raises `BaseChangedError` with the first that differs."""
        now = dict(model.named_modules(remove_duplicate=False))
        if now.keys() != self._records.keys():
            odd = sorted(now.keys() ^ self._records.keys())
            raise BaseChangedError(
                f"the base model's modules are not those it was loaded with: {odd[:3]}; load the model again"
            )
        for name, module in now.items():
            if difference := self._records[name].difference(module):
                raise BaseChangedError(
                    f"the base model's module {name or type(module).__name__!r} {difference}; load the model again"
                )
        self._compare_revocable(now)

    def _compare_revocable(self, now: Mapping[str, nn.Module]) -> None:
        """Hooks and modes. Raises `RevocableChangeError` with the first that differs."""
        if _global_hooks() != self._global:
            raise RevocableChangeError(
                f"hooks for all modules of torch are not those at load ({', '.join(_global_hooks()) or 'none left'}); "
                "register hooks before the model is wrapped, or set them back"
            )
        for name, module in now.items():
            if (hooks := _hooks(module)) != (at_load := self._records[name].hooks):
                raise RevocableChangeError(
                    f"the base model's module {name or type(module).__name__!r} has other hooks than at load "
                    f"({', '.join(sorted(hooks.keys() | at_load.keys()))}); register hooks before the model is "
                    "wrapped, or set them back"
                )
            if module.training != (was := self._records[name].training):
                mode = "train" if was else "eval"
                raise RevocableChangeError(
                    f"the base model's module {name or type(module).__name__!r} has training={module.training} (at "
                    f"load {was}); set the mode back with {mode}()"
                )


class RotaryState:
    """The rotary embeddings of a model that recompute their frequencies (dynamic, longrope), as they are now.

    What they compute for one prompt stays for the next; `restore` makes answers independent of earlier prompts.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._states = [
            (m, dict(vars(m)), dict(m._buffers), {n: b.clone() for n, b in m._buffers.items() if b is not None})
            for m in modules
            if "rope_type" in vars(m) and _recomputes(m)
        ]

    def restore(self) -> None:
        """Sets attributes and buffers back."""
        for module, attributes, buffers, values in self._states:
            own = vars(module)
            for name in own.keys() - attributes.keys():
                del own[name]
            own.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
            with torch.no_grad():
                for name, value in values.items():
                    buffer = buffers[name]
                    if buffer is not None and not torch.equal(buffer, value):
                        buffer.copy_(value)


HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip
"""Where a module keeps its hooks, by number."""
_read_hooks = itemgetter(*HOOKS)
_CAPTURING = "_output_capturing_hooks_installed"
"""The attribute by which transformers knows that a model has the hooks that capture hidden states, attentions or the
logits of routers. It installs them in the first pass that asks for any of these, and never again."""


class ModelParts:
    """The modules of a model, their attributes, their parameters, each once, and the containers of their hooks."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = _modules(model)
        self._containers: list[dict[str, Any]] = [c for m in self.modules for c in (m._modules, m._parameters)]
        self._lengths = list(map(len, self._containers))
        self._held = list(self._contents())
        self.parameters = _parameters(self.modules)
        self.attributes: list[dict[str, Any]] = list(map(vars, self.modules))
        self.hooks = list(chain.from_iterable(map(_read_hooks, self.attributes)))

    def _contents(self) -> Iterator[object]:
        return chain.from_iterable(map(dict.values, self._containers))

    def are_of(self, model: nn.Module) -> bool:
        """Whether the model still has these modules and parameters."""
        same = self.modules[0] is model and list(map(len, self._containers)) == self._lengths
        return same and _identical(self._contents(), self._held)


@contextmanager
def restoring(model: nn.Module, parts: ModelParts | None = None) -> Iterator[ModelParts]:
    """Restores what a run may change besides the weights, whatever is raised inside.

    That is: `requires_grad` and gradients of every parameter, the training mode of every module, module hooks, rotary
    frequencies that follow the prompt, and whether gradients are recorded. Random states are not touched: everything
    random here comes from separate generators, and to restore a state that other threads draw from would repeat
    their numbers. Yields the parts of the model; those of an earlier use, given as `parts`, save time.
    """
    if parts is None or not parts.are_of(model):
        parts = ModelParts(model)
    modules, parameters, containers = parts.modules, parts.parameters, parts.hooks
    training = [m.training for m in modules]
    hooks = [(container, dict(container)) for container in filter(None, containers)]
    without_capture = [own for own in parts.attributes if _CAPTURING not in own]
    rotary = RotaryState(modules)

    def restore_modes() -> None:
        for module, before in zip(modules, training, strict=True):
            if module.training != before:
                module.training = before

    def restore_hooks() -> None:
        for container, before_hooks in hooks:
            if list(container) != list(before_hooks):
                container.clear()
                container.update(before_hooks)
        filled = {id(container) for container, _ in hooks}
        for container in filter(None, containers):
            if id(container) not in filled:
                container.clear()
        for own in without_capture:
            own.pop(_CAPTURING, None)

    with restoring_gradients(parameters), ExitStack() as stack:
        for step in (rotary.restore, restore_hooks, restore_modes):
            stack.callback(_completed, step)
        yield parts


@contextmanager
def restoring_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Restores `requires_grad` and gradients of parameters, and whether gradients are recorded, whatever is raised
    inside."""
    required = [p.requires_grad for p in parameters]
    gradients = [p.grad for p in parameters]
    grad_enabled = torch.is_grad_enabled()

    def restore_parameters() -> None:
        now = [p.requires_grad for p in parameters]
        for parameter, after, before, grad in zip(parameters, now, required, gradients, strict=True):
            if after != before:
                parameter.requires_grad_(before)
            if parameter.grad is not grad:
                parameter.grad = grad

    with ExitStack() as stack:
        for step in (partial(torch.set_grad_enabled, grad_enabled), restore_parameters):
            stack.callback(_completed, step)
        yield


def _completed(step: Callable[[], object]) -> None:
    """Runs a step that may be repeated; once more if something, such as an interruption, is raised in it."""
    try:
        step()
    except BaseException:
        step()
        raise


def freeze(parts: ModelParts) -> None:
    """Evaluation mode, and no parameter with gradients, where that is not so already: to set it again takes longer
    than to read it."""
    for module in parts.modules:
        if module.training:
            module.training = False
    for parameter in parts.parameters:
        if parameter.requires_grad:
            parameter.requires_grad_(False)


def _parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters of modules, each once."""
    held = chain.from_iterable([m._parameters.values() for m in modules])
    return list({id(p): p for p in held if p is not None}.values())
