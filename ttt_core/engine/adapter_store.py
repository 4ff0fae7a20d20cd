"""Adapters under the keys of what they were trained on: known, or prepared for a queue and not yet paid for.

Knows nothing about how adapters are trained. A queue of tasks calls `prepare` and `answer_ahead` first; then each task
`remembered`; and `settle` at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

from ..errors import AutotttError, BaseChangedError, Cancelled
from ..lora.adapter import Adapter
from ..lora.training import OnStep
from ..model.encoding import tokenizer_digest
from ..recipes import Recipe
from ..tasks.task import Task
from .adapter_cache import AdapterCache
from .adapter_trainer import AdapterTrainer
from .guarded import GuardedModel
from .prefetch import AnswerPrefetch


class AdapterStore:
    """The adapters of a model; its methods are those of `Learner`."""

    def __init__(
        self, guarded: GuardedModel, trainer: AdapterTrainer, answers: AnswerPrefetch, cache: AdapterCache
    ) -> None:
        self._guarded = guarded
        self._trainer = trainer
        self.answers = answers
        """What prepared adapters have answered."""
        self.cache = cache
        """Those that are known."""
        self.prefetched: dict[object, Adapter] = {}
        """Those that nobody has asked for, which are charged to whoever does."""

    @property
    def prefetched_bytes(self) -> int:
        """Of the weights of all that are prepared."""
        return sum(a.weights.nbytes for a in self.prefetched.values())

    def get_or_train(self, key: object, make: Callable[[], Adapter]) -> tuple[Adapter, bool]:
        """The adapter of a key, or a new one, and whether it was known."""
        with self._guarded.lock.compute:
            key = self._full_key(key)
            if key in self.prefetched:
                return self._release(key), False
            known = self._cached(key)
            if known is not None:
                return known, True
            adapter = make()
            if adapter.training.stop_reason not in ("deadline", "failed"):
                self.cache.put(key, adapter)
            return adapter, False

    def has_adapter(self, key: object) -> bool:
        """Whether an adapter is known or prepared."""
        with self._guarded.lock.compute:
            key = self._full_key(key)
            return key in self.prefetched or self._cached(key) is not None

    def prefetch(
        self, keys: Sequence[object], examples: Sequence[Sequence[Task]], recipes: Sequence[Recipe],
        seeds: Sequence[int], on_step: OnStep | None,
    ) -> None:  # fmt: skip
        """Trains those that fit in memory, and charges nothing."""
        with self._guarded.lock.compute:
            at = 0
            while at < len(keys) and (beside := self._trainer.max_batched_adapters(recipes, self.prefetched_bytes)):
                some = slice(at, at := at + beside)
                try:
                    adapters = self._trainer.adapt_many(
                        examples[some], recipes[some], seeds[some], deadline=math.inf, on_step=on_step, charged=False,
                        start=None, prefetched_bytes=self.prefetched_bytes,
                    )  # fmt: skip
                except (BaseChangedError, Cancelled):
                    raise
                except AutotttError:
                    continue  # one of them may be to blame; each fails, or not, when it is asked for
                made = zip(map(self._full_key, keys[some]), adapters, strict=True)
                self.prefetched.update(
                    (key, adapter) for key, adapter in made if adapter.training.stop_reason != "failed"
                )

    def prefetch_answers(self, keys: Sequence[object], tasks: Sequence[Sequence[Task]]) -> None:
        """Has those that are prepared answer their tasks."""
        with self._guarded.lock.compute:
            ready = [(self.prefetched.get(self._full_key(key)), some) for key, some in zip(keys, tasks, strict=True)]
            able = [(a.weights, some) for a, some in ready if a is not None and a.weights.adapter_count == 1 and some]
            self.answers.decode([weights for weights, _ in able], [some for _, some in able])

    def release_prefetched(self) -> None:
        """Charges those that are still prepared, and drops their answers."""
        with self._guarded.lock.compute:
            self.answers.clear()
            for key in list(self.prefetched):
                self._release(key)

    def clear(self) -> None:
        """Drops all that is in memory."""
        with self._guarded.lock.compute:
            self.cache.clear()
            self.prefetched.clear()
            self.answers.clear()

    def reset_charges(self) -> None:
        """Forgets, but for what is in memory and not cross-fitted: that counts as prepared."""
        with self._guarded.lock.compute:
            unpaid = dict(self.prefetched) | {k: a for k, a in self.cache.clear() if a.cross_validation is None}
            self.clear()
            self.prefetched.update(unpaid)

    @cached_property
    def _tokenizer_digest(self) -> str:
        return tokenizer_digest(self._guarded.loaded.tokenizer)

    def _full_key(self, key: object) -> object:
        """The key with what else decides an adapter: how prompts are written, and in which precision they are read."""
        return key, self._guarded.loaded.format.name, self._tokenizer_digest, self._guarded.precision

    def _cached(self, key: object) -> Adapter | None:
        """The adapter of a full key, where it is known."""
        return self.cache.get(key, self._guarded.base_hash, self._guarded.loaded.model.device)

    def _release(self, key: object) -> Adapter:
        """The prepared adapter of a full key: charged, and kept as any other."""
        adapter = self.prefetched.pop(key)
        training = adapter.training
        self._guarded.charge(training.tokens, training.tokens, prefetch_seconds=training.seconds)
        self.cache.put(key, adapter)
        return adapter
