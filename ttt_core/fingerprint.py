"""Proof that a base model is what it was (content hashes, pointers, version counters), and the guard for all the rest.

Knows nothing about adapters or tasks. What is checked at each answer costs microseconds; the full hash is for when you
want certainty about writes that bypass PyTorch's version counter (`tensor.data`, foreign code).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import BaseChangedError


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


Identity = tuple[int, int, tuple[int, ...], torch.dtype]


def _identity(tensor: Tensor) -> Identity:
    return tensor.data_ptr(), tensor._version, tensor.shape, tensor.dtype


Place = tuple[dict[str, Any], str, dict[str, Any], tuple[tuple[str, Any], ...]]
"""One of the dictionaries of a module that hold its tensors and modules: the module's own dictionary, the name in it,
what was there, and its entries (an `Identity` for a tensor, `ANY` for one that may change, else the object itself)."""
ANY = object()


def _places(model: nn.Module) -> list[Place]:
    """Every place of a model that holds tensors or modules, as it is now."""
    lasting = {id(tensor) for tensor in state_tensors(model).values()}

    def seen(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return _identity(value) if id(value) in lasting else ANY

    found = []
    for module in model.modules():
        own = vars(module)
        for kind in ("_parameters", "_buffers", "_modules"):
            found.append((own, kind, own[kind], tuple((name, seen(value)) for name, value in own[kind].items())))
    return found


def _as_they_were(places: list[Place]) -> bool:
    """Whether every place holds what it held. One loop, since it is run for every answer."""
    for own, kind, held, entries in places:
        if own.get(kind) is not held or len(held) != len(entries):
            return False
        if entries and list(held) != [name for name, _ in entries]:
            return False
        for (_, known), value in zip(entries, held.values(), strict=True):
            changed = value is not known and not (isinstance(value, Tensor) and _identity(value) == known)
            if changed and known is not ANY:
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
        self._places = _places(model)

    def verify(self, model: nn.Module, *, full: bool = False) -> RevertProof:
        """Checks that every tensor is the one remembered. Raises `BaseChangedError` naming the first that is not."""
        began = time.perf_counter()
        if model is not self._model or not _as_they_were(self._places):
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
def restored(model: nn.Module) -> Iterator[None]:
    """Gives back what a run may change besides the weights, whatever happens inside.

    That is: `requires_grad` and gradients of every parameter, the training mode of every module, module hooks, and
    whether gradients are recorded. Random states are left alone: whatever is drawn here comes from generators of its
    own, and to set back a state that other threads draw from would give them the same numbers again.
    """
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    modules = [(m, m.training) for m in model.modules()]
    hooks = [(found, dict(found) if found else None) for m, _ in modules for h in HOOKS for found in (getattr(m, h),)]
    grad_enabled = torch.is_grad_enabled()
    try:
        yield
    finally:
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        for module, training in modules:
            module.training = training
        for current, before in hooks:
            if (current or before) and list(current) != list(before or ()):
                current.clear()
                current.update(before or {})
        torch.set_grad_enabled(grad_enabled)
