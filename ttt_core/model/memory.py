"""How much memory there is, and going on with less of it. Knows nothing of what the memory is for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UNKNOWN_MEMORY = 4 << 30
"""Bytes that a system is taken to have free where it does not tell."""
GROUP = Path("/sys/fs/cgroup")
"""Where Linux tells of the limits of the group of processes that this one belongs to."""

SHARE = 0.5
"""Of the memory that is free, what is taken for reading, unless a bound is given."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left."""
    words = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return words or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return UNKNOWN_MEMORY
    return max(0, min(found, _free_in_group() or found))


def _free_in_group() -> int | None:
    """Bytes that the group's limit leaves, where there is one: memory of files that were read can be let go of."""
    try:
        limit, used = (int((GROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        facts = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
        return max(1, limit - used + int(facts.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None


def tokens_that_fit(model: PreTrainedModel, memory: int | None) -> int:
    """Tokens that may be read side by side without gradients: what the cache keeps of them, what one layer makes of
    them, and their logits are within `memory` bytes, or within `SHARE` of what is free.

    Of numbers that a configuration does not give, it is taken that the hidden size bounds them.
    """
    config = model.config.get_text_config()
    hidden, layers = config.hidden_size, config.num_hidden_layers
    heads = getattr(config, "num_attention_heads", 1)
    keys = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or hidden // heads
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    numbers = 2 * layers * keys * width + 8 * hidden + 3 * inner + 3 * config.vocab_size
    bound = SHARE * free_memory(model.device) if memory is None else memory
    return int(bound / (numbers * model.dtype.itemsize))


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
