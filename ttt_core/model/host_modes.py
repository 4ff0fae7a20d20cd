"""Modes of the host's thread that would change what a model computes: inference mode, gradients and autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def without_host_modes(device: torch.device) -> Iterator[None]:
    """While inside, a model on this device computes in the precision of its weights and records no gradients, whatever
    the calling thread is in the middle of. Answers and cached adapters are then the same in every thread."""
    castable = torch.amp.is_autocast_available(device.type)
    autocast = torch.autocast(device.type, enabled=False) if castable else nullcontext()
    with torch.inference_mode(False), torch.no_grad(), autocast:
        yield
