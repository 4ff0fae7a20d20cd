"""Proof that a base model is what it was (content hashes, pointers, version counters), and the guard for all the rest.

Knows nothing about adapters or tasks. What is checked at each answer costs microseconds; the full hash is for when you
want certainty about writes that bypass PyTorch's version counter (`tensor.data`, foreign code).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import is_

import torch
from torch import Tensor, nn

from ..errors import BaseChangedError


@dataclass(frozen=True)
class RevertProof:
    """What was checked after an answer. A proof that fails is never returned: `BaseChangedError` is raised instead."""

    method: str
    """`pointers` (data pointer, version counter, shape and type of every tensor) or `full` (and the content hash)."""
    tensors: int
    """Parameters and buffers that were checked."""
    seconds: float
    hash: str
    """Content hash of the base: taken at load for `pointers`, taken again for `full`."""


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, tied ones once.

    Without the rotary frequencies that some models work out anew at each pass from the length of the prompt.
    """
    found: dict[str, Tensor] = dict(model.named_parameters())
    fleeting = {id(b) for m in model.modules() if _recomputes(m) for b in m.buffers(recurse=False)}
    found.update((n, b) for n, b in model.named_buffers() if id(b) not in fleeting)
    return found


def _recomputes(module: nn.Module) -> bool:
    """Whether the module is a rotary embedding whose frequencies follow the prompt's length."""
    kinds = getattr(module, "rope_type", "")
    names = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any("dynamic" in n or n == "longrope" for n in names)


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


TensorIdentity = tuple[int, int, tuple[int, ...], torch.dtype]


def _identity(tensor: Tensor) -> TensorIdentity:
    return tensor.data_ptr(), tensor._version, tensor.shape, tensor.dtype


_KINDS = ("_parameters", "_buffers", "_modules")
"""Where a module keeps its tensors and modules, by name."""


def _modules(model: nn.Module) -> list[nn.Module]:
    """All modules of a model, each once, in no particular order; several times as quick as with their names."""
    found, left = {id(model): model}, [model]
    while left:
        for child in left.pop()._modules.values():
            if child is not None and id(child) not in found:
                found[id(child)] = child
                left.append(child)
    return list(found.values())


class _ModuleTree:
    """Where a model keeps its tensors and modules, and what is there."""

    def __init__(self, model: nn.Module) -> None:
        lasting = {id(tensor) for tensor in state_tensors(model).values()}
        modules = _modules(model)
        self._held = [
            (own, *(own[kind] for kind in _KINDS), *(len(own[kind]) for kind in _KINDS)) for own in map(vars, modules)
        ]
        filled = [own[kind] for own in map(vars, modules) for kind in _KINDS if own[kind]]
        self._names = [(held, tuple(held)) for held in filled]
        fleeting = [h for h in filled if any(isinstance(v, Tensor) and id(v) not in lasting for v in h.values())]
        kept = {id(h) for h in filled} - {id(h) for h in fleeting}
        self._values = [(held, tuple(held.values())) for held in filled if id(held) in kept]
        beside = [(held, name, value) for held in fleeting for name, value in held.items()]
        self._beside = [b for b in beside if not isinstance(b[2], Tensor) or id(b[2]) in lasting]
        tensors = {id(v): v for h in filled for v in h.values() if id(v) in lasting}
        self._tensors = [(tensor, *_identity(tensor)) for tensor in tensors.values()]

    def are_as_they_were(self) -> bool:
        """Whether all is where it was, and no tensor was written to. It runs for every answer, so it counts
        microseconds: most of it is comparing objects."""
        for own, parameters, buffers, modules, *counts in self._held:
            if own["_parameters"] is not parameters or own["_buffers"] is not buffers or own["_modules"] is not modules:
                return False
            if len(parameters) != counts[0] or len(buffers) != counts[1] or len(modules) != counts[2]:
                return False
        for held, names in self._names:
            if tuple(held) != names:
                return False
        for held, values in self._values:
            if not all(map(is_, held.values(), values)):
                return False
        for held, name, value in self._beside:
            if held[name] is not value:
                return False
        for tensor, pointer, version, shape, dtype in self._tensors:
            if tensor.data_ptr() != pointer or tensor._version != version:
                return False
            if tensor.shape != shape or tensor.dtype != dtype:
                return False
        return True


class Fingerprint:
    """Remembers a model's tensors as they are now."""

    def __init__(self, model: nn.Module) -> None:
        self.hash = content_hash(model)
        # Aliases keep the memory in use, so that no other tensor can come to lie at a remembered address.
        self._aliases = {name: tensor.detach() for name, tensor in state_tensors(model).items()}
        self._identities = {name: _identity(tensor) for name, tensor in self._aliases.items()}
        self._model = model
        self._places = _ModuleTree(model)

    def verify(self, model: nn.Module, *, full: bool = False) -> RevertProof:
        """Checks that every tensor is the one remembered. Raises `BaseChangedError` naming the first that is not."""
        began = time.perf_counter()
        if model is not self._model or not self._places.are_as_they_were():
            self._compare(model)
        if full and content_hash(model) != self.hash:
            raise BaseChangedError(
                "the base model's content hash changed although no tensor was replaced; load it again"
            )
        return RevertProof(
            "full" if full else "pointers", len(self._identities), time.perf_counter() - began, self.hash
        )

    def _compare(self, model: nn.Module) -> None:
        """Every tensor by its name: slower, and says what is different, unless it is nothing but the places."""
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


HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip
"""Where a module keeps its hooks, by number."""


@contextmanager
def restoring(model: nn.Module) -> Iterator[None]:
    """Gives back what a run may change besides the weights, whatever happens inside.

    That is: `requires_grad` and gradients of every parameter, the training mode of every module, module hooks, and
    whether gradients are recorded. Random states are left alone: whatever is drawn here comes from generators of its
    own, and to set back a state that other threads draw from would give them the same numbers again.
    """
    modules = _modules(model)
    training = [m.training for m in modules]
    parameters = [(p, p.requires_grad, p.grad) for p in _parameters(modules)]
    hooks = [getattr(m, kind) for m in modules for kind in HOOKS]
    known = [(found, dict(found)) for found in hooks if found]
    grad_enabled = torch.is_grad_enabled()
    try:
        yield
    finally:
        for parameter, requires_grad, grad in parameters:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad
        for module, before in zip(modules, training, strict=True):
            if module.training != before:
                module.training = before
        for found, those in known:
            if list(found) != list(those):
                found.clear()
                found.update(those)
        had = {id(found) for found, _ in known}
        for found in hooks:
            if found and id(found) not in had:
                found.clear()
        torch.set_grad_enabled(grad_enabled)


def freeze(model: nn.Module) -> None:
    """Evaluation mode, and no parameter with gradients, where that is not so already: setting it again takes longer
    than looking."""
    modules = _modules(model)
    if any(m.training for m in modules):
        model.eval()
    for parameter in _parameters(modules):
        if parameter.requires_grad:
            parameter.requires_grad_(False)


def _parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters of modules, each once."""
    return list({id(p): p for m in modules for p in m._parameters.values() if p is not None}.values())
