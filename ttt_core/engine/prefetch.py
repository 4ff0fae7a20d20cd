"""Answers of many adapters at once, each to prompts of its own: one pass for all of them at each token.

What makes a queue of tasks cheap on an accelerator. Knows nothing of how adapters came about.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

from ..errors import AdaptationError
from ..lora.weights import LoraWeights
from ..model.context_window import ContextWindow, GenerationRequest
from ..model.encoding import Encoded, batches_by_tokens
from ..model.generation import MAX_BATCH_TOKENS, Generated, decode_per_adapter
from ..model.loading import LoadedModel
from ..model.memory import in_halves_on_out_of_memory
from ..tasks.task import Task
from .guarded import GuardedModel, memory_errors


class AnswerPrefetch:
    """Answers of adapters that were decoded before they were asked for, to be charged when they are taken."""

    def __init__(self, guarded: GuardedModel, window: ContextWindow) -> None:
        self._guarded = guarded
        self._window = window
        self._answers: dict[int, tuple[LoraWeights, dict[Encoded, Generated], float]] = {}

    def __len__(self) -> int:
        """How many adapters have answered."""
        return len(self._answers)

    def decode(self, adapters: Sequence[LoraWeights], tasks: Sequence[Sequence[Task]]) -> None:
        """Decodes and keeps what each adapter answers to its tasks; nothing where memory does not suffice."""
        asked = [[self._window.request(t) for t in some] for some in tasks]
        with suppress(AdaptationError), memory_errors("answering"), self._guarded.compute(None):
            began = time.monotonic()
            found = decode_for_adapters(self._guarded.loaded, adapters, asked, self._guarded.max_batch_tokens())
            each = (time.monotonic() - began) / max(1, sum(map(len, asked)))
            for weights, mine, answers in zip(adapters, asked, found, strict=True):
                self._answers[id(weights)] = weights, dict(zip([a.prompt for a in mine], answers, strict=True)), each

    def take(self, adapter: LoraWeights, prompts: Sequence[Encoded]) -> list[Generated]:
        """What an adapter answered to the prompts, charged now; nothing where one is missing."""
        _, known, seconds = self._answers.get(id(adapter), (None, {}, 0.0))
        if not all(p in known for p in prompts):
            return []
        found = [known[p] for p in prompts]
        self._guarded.charge(
            forward=sum(g.prompt_tokens + len(g.ids) for g in found), prefetch_seconds=seconds * len(found)
        )
        return found

    def clear(self) -> None:
        """Drops all that was not taken, and what was."""
        self._answers.clear()


def decode_for_adapters(
    loaded: LoadedModel,
    adapters: Sequence[LoraWeights],
    requests: Sequence[Sequence[GenerationRequest]],
    max_tokens: int = MAX_BATCH_TOKENS,
) -> list[list[Generated]]:
    """The greedy answers of each adapter to the prompts that it is asked, at least one. Adapters of one shape and with
    as many prompts go together, those of like lengths, up to `most` tokens and fewer where memory does not suffice.
    """
    found: list[list[Generated]] = [[] for _ in requests]

    def together(some: Sequence[int]) -> list[list[Generated]]:
        mine = [requests[i] for i in some]
        with LoraWeights.stacked([adapters[i] for i in some]).attached(loaded.model):
            return decode_per_adapter(
                loaded, [[a.prompt for a in one] for one in mine], [[a.max_new_tokens for a in one] for one in mine],
                [[a.prefix_filter for a in one] for one in mine],
            )  # fmt: skip

    alike: dict[tuple[object, int], list[int]] = {}
    for index, (weights, mine) in enumerate(zip(adapters, requests, strict=True)):
        alike.setdefault((weights.shape_key, len(mine)), []).append(index)
    for (_, rows), places in alike.items():
        sizes = [rows * max(len(a.prompt.ids) + a.max_new_tokens for a in requests[i]) for i in places]
        for group in batches_by_tokens(sizes, max_tokens):
            for some, answers in in_halves_on_out_of_memory([places[n] for n in group], together):
                for index, one in zip(some, answers, strict=True):
                    found[index] = one
    return found
