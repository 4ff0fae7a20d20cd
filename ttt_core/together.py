"""Answers of many adapters at once, each to prompts of its own: one pass for all of them at each token.

What makes a queue of tasks cheap on an accelerator. Knows nothing of tasks and of how adapters came about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .decoding import TOKENS_AT_ONCE, Generated, Readable, decode_each
from .encoding import Encoded, chunks
from .lora import LoraWeights
from .memory import in_halves
from .model import LoadedModel


@dataclass(frozen=True)
class Asked:
    """A prompt to be answered."""

    prompt: Encoded
    room: int
    """Tokens that its answer may take."""
    readable: Readable


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
