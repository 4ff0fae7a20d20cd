"""Proof that a base model is what it was (content hashes, pointers, version counters), and the guard for all the rest.

Knows nothing about adapters or tasks. What is checked at each answer costs microseconds; the full hash is for when you
want certainty about writes that bypass PyTorch's version counter (`tensor.data`, foreign code).
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
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
    return tensor.data_ptr(), tensor._version, tuple(tensor.shape), tensor.dtype


class Fingerprint:
    """Remembers a model's tensors as they are now."""

    def __init__(self, model: nn.Module) -> None:
        self.hash = content_hash(model)
        # Aliases keep the memory in use, so that no other tensor can come to lie at a remembered address.
        self._aliases = {name: tensor.detach() for name, tensor in state_tensors(model).items()}
        self._identities = {name: _identity(tensor) for name, tensor in self._aliases.items()}

    def verify(self, model: nn.Module, *, full: bool = False) -> RevertProof:
        """Checks that every tensor is the one remembered. Raises `BaseChangedError` naming the first that is not."""
        began = time.perf_counter()
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
        if full and content_hash(model) != self.hash:
            raise BaseChangedError(
                "the base model's content hash changed although no tensor was replaced; load it again"
            )
        return RevertProof("full" if full else "pointers", len(now), time.perf_counter() - began, self.hash)


_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Gives back what a run may change besides the weights, whatever happens inside.

    That is: `requires_grad` and gradients of every parameter, the training mode of every module, module hooks, whether
    gradients are recorded, and the random state of Python, NumPy and torch (CPU, and CUDA where it is in use).
    """
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    modules = [(m, m.training, [dict(getattr(m, h)) for h in _HOOKS]) for m in model.modules()]
    grad_enabled = torch.is_grad_enabled()
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        for module, training, hooks in modules:
            module.training = training
            for name, before in zip(_HOOKS, hooks, strict=True):
                current = getattr(module, name)
                if list(current) != list(before):
                    current.clear()
                    current.update(before)
        torch.set_grad_enabled(grad_enabled)
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
