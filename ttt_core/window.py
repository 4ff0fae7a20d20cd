"""The context window: prompts of tasks as ids, and the room that they leave for answers.

Knows nothing about how answers are decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from .decoding import Readable
from .encoding import Encoded, encode
from .errors import TooLongError
from .kinds import kind_of
from .model import LoadedModel
from .tasks import Task, Value


@dataclass(frozen=True)
class Asked:
    """A prompt to be answered."""

    prompt: Encoded
    room: int
    """Tokens that its answer may take."""
    readable: Readable


class ContextWindow:
    """What of tasks fits in a model's context."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    def encode(self, task: Task, answer: Value | None = None) -> Encoded:
        """The task's prompt as ids. Raises `TooLongError` where no answer would fit behind it."""
        least = 0 if answer is not None else min(min(self._shown(task), default=1), self.room(task))
        return encode(self._loaded, task, answer, least)

    def fits(self, task: Task, answer: Value | None = None) -> bool:
        """Whether `encode` raises nothing."""
        try:
            self.encode(task, answer)
        except TooLongError:
            return False
        return True

    def room(self, task: Task) -> int:
        """Tokens that an answer may take, where the prompt leaves as many."""
        (query,) = self._tokens(task, [task.query])
        return 2 * max([*self._shown(task), query]) + 16

    def left(self, task: Task, prompt: Encoded) -> int:
        """Tokens that the answer to a prompt may take."""
        return min(self.room(task), self._loaded.context - len(prompt.ids))

    def ask(self, task: Task) -> Asked:
        """The task's prompt, and what its answer may be."""
        prompt = self.encode(task)
        return Asked(prompt, self.left(task, prompt), partial(self._loaded.format.may_begin, task))

    def _shown(self, task: Task) -> list[int]:
        """Tokens of each output shown."""
        return self._tokens(task, [d.output for d in task.demonstrations])

    def _tokens(self, task: Task, values: Sequence[Value]) -> list[int]:
        kind, notation = kind_of(task), self._loaded.format.notation
        return [len(self._loaded.tokens(kind.render(v, notation))) for v in values]
