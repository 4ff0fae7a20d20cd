"""Answers of many adapters in one batch, each to its own prompts, decoded before a task asks for them.

This makes a queue of tasks cheap on an accelerator. Knows nothing about how adapters are trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from .. import clock
from ..errors import AdaptationError
from ..lora.weights import LoraWeights
from ..model.context_window import GenerationRequest
from ..model.encoding import Encoded, batches_by_tokens
from ..model.generation import MAX_BATCH_TOKENS, Generated, decode_per_adapter
from ..model.loading import LoadedModel
from ..model.memory import HalvingQueue
from .guarded_model import GuardedModel, memory_errors


class AnswerPrefetch:
    """Answers that adapters gave ahead of use. They are charged when they are taken."""

    def __init__(self, guarded: GuardedModel) -> None:
        self._guarded = guarded
        self._answers: dict[int, tuple[LoraWeights, dict[Encoded, Generated], float]] = {}
        """By the id of the weights: the weights, the answers by prompt, and the seconds of one answer."""

    def __len__(self) -> int:
        """Number of adapters with answers."""
        return len(self._answers)

    def decode(self, adapters: Sequence[LoraWeights], requests: Sequence[Sequence[GenerationRequest]]) -> None:
        """Decodes and stores each adapter's answers to its requests; stores nothing where memory runs out."""
        with suppress(AdaptationError), memory_errors("answering"), self._guarded.compute(None):
            began = clock.monotonic()
            answers = decode_for_adapters(self._guarded.loaded, adapters, requests, self._guarded.max_batch_tokens())
            seconds = (clock.monotonic() - began) / max(1, sum(map(len, requests)))
            for weights, mine, generated in zip(adapters, requests, answers, strict=True):
                by_prompt = dict(zip([request.prompt for request in mine], generated, strict=True))
                self._answers[id(weights)] = weights, by_prompt, seconds

    def take(self, adapter: LoraWeights, prompts: Sequence[Encoded]) -> list[Generated]:
        """An adapter's answers to the prompts, charged now; an empty list where one is missing."""
        _, by_prompt, seconds = self._answers.get(id(adapter), (None, {}, 0.0))
        if not all(prompt in by_prompt for prompt in prompts):
            return []
        answers = [by_prompt[prompt] for prompt in prompts]
        self._guarded.charge(
            forward=sum(answer.prompt_tokens + len(answer.ids) for answer in answers),
            prefetch_seconds=seconds * len(answers),
        )
        return answers

    def clear(self) -> None:
        """Drops all answers."""
        self._answers.clear()


def decode_for_adapters(
    loaded: LoadedModel,
    adapters: Sequence[LoraWeights],
    requests: Sequence[Sequence[GenerationRequest]],
    max_tokens: int = MAX_BATCH_TOKENS,
) -> list[list[Generated]]:
    """The greedy answers of each adapter to its requests, at least one. Adapters of one shape and with equally many
    requests share a batch, those of similar lengths together: up to `max_tokens` tokens, and fewer where memory runs
    out.
    """
    answers: list[list[Generated]] = [[] for _ in requests]
    same_shape: dict[tuple[object, int], list[int]] = {}
    for index, (weights, mine) in enumerate(zip(adapters, requests, strict=True)):
        same_shape.setdefault((weights.shape_key, len(mine)), []).append(index)
    for (_, rows), indices in same_shape.items():
        sizes = [rows * max(len(r.prompt.ids) + r.max_new_tokens for r in requests[i]) for i in indices]
        groups = HalvingQueue([indices[n] for n in group] for group in batches_by_tokens(sizes, max_tokens))
        for group in groups:
            batch = [requests[i] for i in group]
            with groups.halving(group), LoraWeights.stacked([adapters[i] for i in group]).attached(loaded.model):
                decoded = decode_per_adapter(
                    loaded, [[r.prompt for r in mine] for mine in batch],
                    [[r.max_new_tokens for r in mine] for mine in batch],
                    [[r.prefix_filter for r in mine] for mine in batch],
                )  # fmt: skip
                for index, generated in zip(group, decoded, strict=True):
                    answers[index] = generated
    return answers
