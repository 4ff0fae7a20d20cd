"""Answers of many adapters at once, each to prompts of its own: one pass for all of them at each token.

What makes a queue of tasks cheap on an accelerator. Knows nothing of how adapters came about.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

from .decoding import TOKENS_AT_ONCE, Generated, decode_each
from .encoding import Encoded, chunks
from .errors import AdaptationError
from .guarded import GuardedModel, memory_errors
from .lora import LoraWeights
from .memory import in_halves
from .model import LoadedModel
from .tasks import Task
from .window import Asked, ContextWindow


class AnsweredAhead:
    """Answers of adapters that were decoded before they were asked for, to be charged when they are taken."""

    def __init__(self, guarded: GuardedModel, window: ContextWindow) -> None:
        self._guarded = guarded
        self._window = window
        self._kept: dict[int, tuple[LoraWeights, dict[Encoded, Generated], float]] = {}

    def __len__(self) -> int:
        """How many adapters have answered."""
        return len(self._kept)

    def decode(self, adapters: Sequence[LoraWeights], tasks: Sequence[Sequence[Task]]) -> None:
        """Decodes and keeps what each adapter answers to its tasks; nothing where memory does not suffice."""
        asked = [[self._window.ask(t) for t in some] for some in tasks]
        with suppress(AdaptationError), memory_errors("answering"), self._guarded.use(None):
            began = time.monotonic()
            found = decode_together(self._guarded.loaded, adapters, asked, self._guarded.at_once())
            each = (time.monotonic() - began) / max(1, sum(map(len, asked)))
            for weights, mine, answers in zip(adapters, asked, found, strict=True):
                self._kept[id(weights)] = weights, dict(zip([a.prompt for a in mine], answers, strict=True)), each

    def take(self, adapter: LoraWeights, prompts: Sequence[Encoded]) -> list[Generated]:
        """What an adapter answered to the prompts, charged now; nothing where one is missing."""
        _, known, seconds = self._kept.get(id(adapter), (None, {}, 0.0))
        if not all(p in known for p in prompts):
            return []
        found = [known[p] for p in prompts]
        self._guarded.charge(forward=sum(g.read + len(g.ids) for g in found), ahead=seconds * len(found))
        return found

    def clear(self) -> None:
        """Drops all that was not taken, and what was."""
        self._kept.clear()


def decode_together(
    loaded: LoadedModel, adapters: Sequence[LoraWeights], asked: Sequence[Sequence[Asked]], most: int = TOKENS_AT_ONCE
) -> list[list[Generated]]:
    """The greedy answers of each adapter to the prompts that it is asked, at least one. Adapters of one shape and with
    as many prompts go together, those of like lengths, up to `most` tokens and fewer where memory does not suffice.
    """
    found: list[list[Generated]] = [[] for _ in asked]

    def together(some: Sequence[int]) -> list[list[Generated]]:
        mine = [asked[i] for i in some]
        with LoraWeights.joined([adapters[i] for i in some]).attached(loaded.model):
            return decode_each(
                loaded, [[a.prompt for a in one] for one in mine], [[a.room for a in one] for one in mine],
                [[a.readable for a in one] for one in mine],
            )  # fmt: skip

    alike: dict[tuple[object, int], list[int]] = {}
    for index, (weights, mine) in enumerate(zip(adapters, asked, strict=True)):
        alike.setdefault((weights.form, len(mine)), []).append(index)
    for (_, rows), places in alike.items():
        sizes = [rows * max(len(a.prompt.ids) + a.room for a in asked[i]) for i in places]
        for group in chunks(sizes, most):
            for some, answers in in_halves([places[n] for n in group], together):
                for index, one in zip(some, answers, strict=True):
                    found[index] = one
    return found
