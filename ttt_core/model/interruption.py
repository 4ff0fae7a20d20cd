"""Ending a forward or backward pass before it is complete. Knows nothing about who ends it, or why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def checked_passes(model: nn.Module, check: Callable[[], None]) -> Iterator[None]:
    """While inside, `check` is called before every layer of the model and each of its parts (attention, MLP), forward
    and backward; an exception that it raises ends the pass. Outputs and gradients do not change.
    """

    def before_forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        check()
        inputs = next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor) and x.requires_grad), None)
        if inputs is not None and torch.is_grad_enabled():
            inputs.register_hook(lambda gradient: check())  # type: ignore[no-untyped-call]

    with ExitStack() as hooks:
        for module in _parts(model):
            hooks.callback(module.register_forward_pre_hook(before_forward, with_kwargs=True).remove)
        yield


def _parts(model: nn.Module) -> list[nn.Module]:
    """The layers, and their children that have children: attention and MLP, but no norm. Without layers, the model."""
    layers = _layers(model)
    return [part for layer in layers for part in (layer, *layer.children()) if any(part.children())] or [model]


def _layers(module: nn.Module) -> list[nn.Module]:
    """The modules of the outermost lists of modules: the blocks of a transformer."""
    if isinstance(module, nn.ModuleList):
        return list(module)
    return [layer for child in module.children() for layer in _layers(child)]
