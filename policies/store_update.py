"""What logs and traces change in a store of outcomes: what is new, what has another label, and what has none any more.

Knows nothing about how a policy is trained of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .outcomes import Key, Outcome, OutcomeStore
from .serving_logs import Row, base_of, outcomes_of, unlabelled_queries


@dataclass(frozen=True)
class StoreUpdate:
    """A change of a store that is planned and not yet made."""

    store: OutcomeStore
    base: str
    """Content hash of the model that answered."""
    found: int
    """How many outcomes the logs and traces hold."""
    new: Sequence[Outcome]
    """Outcomes that the store lacks."""
    relabelled: Sequence[Outcome]
    """Outcomes that the store holds with another label, right or wrong."""
    dropped: frozenset[Key]
    """Stored outcomes that were judged by feedback which no longer says whether they are right."""
    outcomes: Sequence[Outcome]
    """Of the model, as the store will hold them."""

    @classmethod
    def planned(cls, store: OutcomeStore, logged: Sequence[Row], traced: Sequence[Row], *, forced: bool) -> StoreUpdate:
        """The change by the rows of logs and of traces, these with the newest first. A trace has the last label that
        feedback gave it; of traces of one query, seed and strategy the newest counts.

        Raises `PolicyError` for rows of several models, or none, and for an outcome of a log that the store, or another
        row, holds with the same answer and another label. `forced` is that of `outcomes_of`, for the traces.
        """
        base = base_of([*logged, *traced])
        stored = {outcome.key: outcome for outcome in store.read()}
        of_traces = {outcome.key: outcome for outcome in reversed(outcomes_of(traced, forced=forced))}
        relabelled = {key: o for key, o in of_traces.items() if key in stored and _has_other_label(stored[key], o)}
        others = [o for o in [*outcomes_of(logged), *of_traces.values()] if o.key not in relabelled]
        new = store.missing(others, stored=stored.values())
        queries = unlabelled_queries(traced)
        dropped = frozenset(
            key for key, o in stored.items()
            if o.base_hash == base and key not in relabelled and (o.dataset, o.task_id, o.seed) in queries
        )  # fmt: skip
        kept = [o for key, o in stored.items() if key not in dropped and o.base_hash == base]
        after = sorted([*(relabelled.get(o.key, o) for o in kept), *new], key=lambda o: o.key)
        return cls(store, base, len(others) + len(relabelled), new, list(relabelled.values()), dropped, after)

    def __bool__(self) -> bool:
        """Whether it changes anything."""
        return bool(self.new or self.relabelled or self.dropped)

    def apply(self) -> None:
        """Changes the store. Raises as `OutcomeStore.replace`, with nothing changed."""
        self.store.replace(self.relabelled, self.dropped)
        self.store.add(self.new)


def _has_other_label(stored: Outcome, outcome: Outcome) -> bool:
    """Whether one of them is right and the other wrong, whatever their answers are."""
    return not math.isclose(stored.correct, outcome.correct)
