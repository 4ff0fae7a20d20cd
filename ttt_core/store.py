"""Adapters under the keys of what they were trained on: known, or prepared for a queue and not yet paid for.

Knows nothing about how adapters are trained. A queue of tasks calls `prepare` and `answer_ahead` first; then each task
`remembered`; and `settle` at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

from .adapters import Adapter, AdapterCache
from .encoding import tokenizer_digest
from .errors import AutotttError, BaseChangedError, Cancelled
from .guarded import GuardedModel
from .recipes import Recipe
from .tasks import Task
from .teaching import Teacher
from .together import AnsweredAhead
from .training import OnStep


class AdapterStore:
    """The adapters of a model; its methods are those of `Learner`."""

    def __init__(self, guarded: GuardedModel, teacher: Teacher, ahead: AnsweredAhead, adapters: AdapterCache) -> None:
        self._guarded = guarded
        self._teacher = teacher
        self.ahead = ahead
        """What prepared adapters have answered."""
        self.adapters = adapters
        """Those that are known."""
        self.prepared: dict[object, Adapter] = {}
        """Those that nobody has asked for, which are charged to whoever does."""

    @property
    def prepared_bytes(self) -> int:
        """Of the weights of all that are prepared."""
        return sum(a.weights.nbytes for a in self.prepared.values())

    def remembered(self, key: object, make: Callable[[], Adapter]) -> tuple[Adapter, bool]:
        """The adapter of a key, or a new one, and whether it was known."""
        with self._guarded.turns.use:
            key = self._full(key)
            if key in self.prepared:
                return self._settled(key), False
            known = self._known(key)
            if known is not None:
                return known, True
            adapter = make()
            if adapter.training.stopped not in ("deadline", "failed"):
                self.adapters.put(key, adapter)
            return adapter, False

    def knows(self, key: object) -> bool:
        """Whether an adapter is known or prepared."""
        with self._guarded.turns.use:
            key = self._full(key)
            return key in self.prepared or self._known(key) is not None

    def prepare(
        self, keys: Sequence[object], examples: Sequence[Sequence[Task]], recipes: Sequence[Recipe],
        seeds: Sequence[int], on_step: OnStep | None,
    ) -> None:  # fmt: skip
        """Trains those that fit in memory, and charges nothing."""
        with self._guarded.turns.use:
            at = 0
            while at < len(keys) and (beside := self._teacher.beside(recipes, self.prepared_bytes)):
                some = slice(at, at := at + beside)
                try:
                    adapters = self._teacher.adapt_many(
                        examples[some], recipes[some], seeds[some], deadline=math.inf, on_step=on_step, charged=False,
                        start=None, prepared=self.prepared_bytes,
                    )  # fmt: skip
                except (BaseChangedError, Cancelled):
                    raise
                except AutotttError:
                    continue  # one of them may be to blame; each fails, or not, when it is asked for
                made = zip(map(self._full, keys[some]), adapters, strict=True)
                self.prepared.update((key, adapter) for key, adapter in made if adapter.training.stopped != "failed")

    def answer_ahead(self, keys: Sequence[object], tasks: Sequence[Sequence[Task]]) -> None:
        """Has those that are prepared answer their tasks."""
        with self._guarded.turns.use:
            ready = [(self.prepared.get(self._full(key)), some) for key, some in zip(keys, tasks, strict=True)]
            able = [(a.weights, some) for a, some in ready if a is not None and a.weights.count == 1 and some]
            self.ahead.decode([weights for weights, _ in able], [some for _, some in able])

    def settle(self) -> None:
        """Charges those that are still prepared, and drops their answers."""
        with self._guarded.turns.use:
            self.ahead.clear()
            for key in list(self.prepared):
                self._settled(key)

    def forget(self) -> None:
        """Drops all that is in memory."""
        with self._guarded.turns.use:
            self.adapters.clear()
            self.prepared.clear()
            self.ahead.clear()

    def charge_anew(self) -> None:
        """Forgets, but for what is in memory and not cross-fitted: that counts as prepared."""
        with self._guarded.turns.use:
            unpaid = dict(self.prepared) | {k: a for k, a in self.adapters.clear() if a.evidence is None}
            self.forget()
            self.prepared.update(unpaid)

    @cached_property
    def _reads(self) -> str:
        return tokenizer_digest(self._guarded.loaded.tokenizer)

    def _full(self, key: object) -> object:
        """The key with what else decides an adapter: how prompts are written, and in which precision they are read."""
        return key, self._guarded.loaded.format.name, self._reads, self._guarded.precision

    def _known(self, key: object) -> Adapter | None:
        """The adapter of a full key, where it is known."""
        return self.adapters.get(key, self._guarded.base_hash, self._guarded.loaded.model.device)

    def _settled(self, key: object) -> Adapter:
        """The prepared adapter of a full key: charged, and kept as any other."""
        adapter = self.prepared.pop(key)
        training = adapter.training
        self._guarded.charge(training.tokens, training.tokens, ahead=training.seconds)
        self.adapters.put(key, adapter)
        return adapter
