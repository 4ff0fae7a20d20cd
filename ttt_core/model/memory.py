"""Measures free memory, and retries work in halves when memory runs out. Knows nothing about what the memory is for."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

UNKNOWN_MEMORY = 4 << 30
"""Free bytes that are assumed on systems that do not report them."""
GROUP = Path("/sys/fs/cgroup")
"""Where Linux reports the limits of control groups, of version 2."""
MEMBERSHIP = Path("/proc/self/cgroup")
"""Where Linux names the control group of this process, relative to `GROUP`: in a container with its own namespace `/`.
"""

SHARE = 0.5
"""Share of the free memory that forward passes may use, unless a bound is given."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory."""
    words = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return words or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def free_memory(device: torch.device) -> int:
    """Free bytes of a device, unused cached ones included."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return UNKNOWN_MEMORY
    return max(0, min(free, _free_in_group() or free))


def _free_in_group() -> int | None:
    """Free bytes under the limits of this process's control group and of all above it; None without a limit."""
    groups = [GROUP]
    for part in Path(_group_name()).parts:
        if part not in ("/", ".."):
            groups.append(groups[-1] / part)
    return min((free for group in groups if (free := _free_under_limit(group)) is not None), default=None)


def _group_name() -> str:
    """The control group of this process; the root where it is unknown."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except (OSError, ValueError):
        return "/"
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")


def _free_under_limit(group: Path) -> int | None:
    """Free bytes under a control group's limit, inactive page cache included; None without a limit."""
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(1, limit - used + int(facts.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None


def peak_memory(device: torch.device) -> int:
    """Largest number of bytes that this process has held so far: of tensors on a GPU, else of main memory; 0 on systems
    that do not report it."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def tokens_that_fit(model: PreTrainedModel, memory: int | None) -> int:
    """Tokens that fit in a batch without gradients: their key-value cache, one layer's activations and their logits
    take at most `memory` bytes, or `SHARE` of the free memory.

    Sizes that a configuration does not give are estimated from the hidden size.
    """
    config = model.config.get_text_config()
    if getattr(config, "is_heterogeneous", False):  # sizes of a layer are in its own configuration
        layers = list(config.per_layer_config)
    else:
        layers = [config] * config.num_hidden_layers
    cached = sum(_cached_numbers(layer) for layer in layers)
    largest = max(8 * layer.hidden_size + 3 * _inner_size(layer) for layer in layers)
    bound = SHARE * free_memory(model.device) if memory is None else memory
    return int(bound / ((cached + largest + 3 * config.vocab_size) * model.dtype.itemsize))


def _cached_numbers(config: PretrainedConfig) -> int:
    """Numbers that one layer's cache holds of each token."""
    heads = getattr(config, "num_attention_heads", 1)
    keys = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * keys * (getattr(config, "head_dim", None) or config.hidden_size // heads))


def _inner_size(config: PretrainedConfig) -> int:
    """Width of one layer's MLP."""
    size = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return int(size if isinstance(size, (int, float)) else max(size))  # some name one for each layer


class HalvingQueue:
    """Groups of items to process in order. A group that does not fit in memory comes again as two halves.

    for group in queue:
        with queue.halving(group):
            results[group] = work(group)
    """

    def __init__(self, groups: Iterable[Sequence[int]]) -> None:
        self._groups = deque(groups)

    def __iter__(self) -> Iterator[Sequence[int]]:
        while self._groups:
            yield self._groups.popleft()

    @contextmanager
    def halving(self, group: Sequence[int]) -> Iterator[None]:
        """Puts the halves of the group in front of the others when its body runs out of memory. Other errors are
        raised, and every error of a single item."""
        try:
            yield
        except Exception as error:
            if len(group) < 2 or not out_of_memory(error):
                raise
            middle = len(group) // 2
            self._groups.extendleft((group[middle:], group[:middle]))
