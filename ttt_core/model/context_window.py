"""The context window: prompts of tasks as ids, and the room that they leave for answers.

Knows nothing about how answers are decoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ..errors import ModelError, TooLongError
from ..tasks.kinds import kind_of
from ..tasks.task import Task, Value
from .encoding import Encoded, encode, refuse_oversized
from .generation import PrefixFilter
from .loading import LoadedModel

LONGEST_BY_RATIO = 4
"""How many times the largest ratio of output to input among the demonstrations an answer's own may be."""


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt to be answered."""

    prompt: Encoded
    max_new_tokens: int
    """Tokens that its answer may take."""
    prefix_filter: PrefixFilter


class ContextWindow:
    """Encodes prompts for a model and checks that they fit in its context."""

    def __init__(self, loaded: LoadedModel, check: Callable[[], None] = lambda: None) -> None:
        """`check` is called before a prompt is encoded, and may raise."""
        self._loaded = loaded
        self._check = check

    def encode(self, task: Task, answer: Value | None = None) -> Encoded:
        """The task's prompt as ids. Raises `TooLongError` where no answer would fit behind it, `ModelError` where the
        tokenizer gives an id that the model does not know or the chat template changes the prompt, and `TaskError`
        where an output contains what ends an answer in its prompt format."""
        self._check()
        self.refuse_oversized(task)
        least = 0 if answer is not None else min(min(self._output_lengths(task), default=1), self.max_new_tokens(task))
        encoded = encode(self._loaded, task, answer, least)
        known = self._loaded.model.get_input_embeddings().num_embeddings
        if (largest := max(encoded.ids, default=0)) >= known:
            raise ModelError(
                f"the tokenizer gives the id {largest}, but the model has embeddings for ids below {known} only: use "
                "the tokenizer of this model, or resize the model's embeddings"
            )
        return encoded

    def refuse_oversized(self, task: Task) -> None:
        """Raises `TooLongError` for a task far longer than the context, without encoding all of it."""
        refuse_oversized(self._loaded, task)

    def fits(self, task: Task, answer: Value | None = None) -> bool:
        """Whether `encode` does not raise `TooLongError`. Its other errors are raised."""
        try:
            self.encode(task, answer)
        except TooLongError:
            return False
        return True

    def length(self, task: Task) -> int:
        """Tokens of the task's prompt, with its answer where that is known. Raises `TooLongError` as `encode`."""
        return len(self.encode(task, task.answer).ids)

    def max_new_tokens(self, task: Task) -> int:
        """Tokens that an answer may take, where the prompt leaves as many: 16 more than twice the longest output shown
        or, if that is more, the query's tokens times `LONGEST_BY_RATIO` times the largest ratio of an output's tokens
        to its input's; this counts twice the query's tokens at most. An answer that does not end thus takes few tokens
        where the outputs are words and the query is a long text."""
        outputs = self._output_lengths(task)
        *inputs, query = self._token_counts(task, [*(d.input for d in task.demonstrations), task.query])
        ratios = [output / max(1, length) for output, length in zip(outputs, inputs, strict=True)]
        share = min(2.0, LONGEST_BY_RATIO * max(ratios, default=2.0))
        return max(2 * max(outputs, default=0), math.ceil(share * query)) + 16

    def available_tokens(self, task: Task, prompt: Encoded) -> int:
        """Tokens that the answer to a prompt may take."""
        return min(self.max_new_tokens(task), self._loaded.context_length - len(prompt.ids))

    def request(self, task: Task) -> GenerationRequest:
        """The task's prompt, and what its answer may be."""
        prompt = self.encode(task)
        return GenerationRequest(
            prompt, self.available_tokens(task, prompt), partial(self._loaded.format_of(task).is_valid_prefix, task)
        )

    def _output_lengths(self, task: Task) -> list[int]:
        """Tokens of each output shown."""
        return self._token_counts(task, [d.output for d in task.demonstrations])

    def _token_counts(self, task: Task, values: Sequence[Value]) -> list[int]:
        kind, notation = kind_of(task), self._loaded.format_of(task).notation
        return [len(self._loaded.tokens(kind.render(v, notation))) for v in values]
