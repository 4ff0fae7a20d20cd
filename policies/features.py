"""What a policy reads of a task: plain floats by name, in two stages. Stage 0 is free; stage 1, the probe, costs
forward passes.

Stage 0 comes with the in-context answer. The probe is one more batched scoring pass, without decoding. Knows nothing
about policies or about how features are measured. Likelihoods are natural logarithms; sizes are counts of cells,
numbers or characters, as logarithms.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from typing_extensions import TypedDict

from ..ttt_core.tasks.kinds import KINDS

FEATURES_VERSION = 2
"""Rises when the meaning of a name changes, not when a feature is added: policies and outcomes carry their names."""

NEUTRAL = -2.0
"""Log-probability per token if there is nothing to measure: neither confident nor hopeless."""
VIEWS = 3
"""Permutations of the demonstrations, and transformations, under which the in-context answer is scored again."""

SHAPE = (
    "demonstrations", "instruction", "kind_grid", "kind_grid1d", "kind_list", "kind_text",
    "input_size", "output_size", "query_size", "growth", "query_beyond", "same_shape",
)  # fmt: skip
ANSWER = (
    "answer_total", "answer_mean", "answer_q00", "answer_q10", "answer_q25", "answer_q50",
    "answer_entropy_max", "answer_entropy_mean", "answer_margin_min", "answer_readable", "answer_ended",
    "answer_beyond", "answer_is_query", "answer_is_shown",
)  # fmt: skip
MODEL = (
    "model_parameters", "model_vocabulary", "format_margin", "answer_tokens", "answer_mean_normalised",
    "answer_entropy_normalised", "reading_mean_normalised", "reading_rank",
)  # fmt: skip
"""What is comparable between models: sizes as decimal logarithms, likelihoods and entropies per token as shares of
those of a uniform distribution over the vocabulary, ranks as natural logarithms of 1 + the number of likelier tokens.
"""
READING = ("reading_hits", "reading_hits_late", "reading_hit_last", "reading_mean", "reading_last", "reading_slope")
STAGE_0: tuple[str, ...] = SHAPE + ANSWER + READING + MODEL
"""Names of the free features, in order."""
STAGE_1: tuple[str, ...] = (
    "loo_possible", "loo_hits", "loo_mean", "loo_min", "shots_gain",
    "orders_hits", "orders_mean", "orders_min", "turns_hits", "turns_mean", "turns_min",
    "loo_mean_normalised", "loo_rank",
)  # fmt: skip
"""Names of the features that the probe adds, in order."""
NAMES: Mapping[int, tuple[str, ...]] = {0: STAGE_0, 1: STAGE_0 + STAGE_1}
"""Stage -> every feature name that is available after it; the names of stage 0 come first."""
COMPARABLE = (
    *SHAPE, "answer_total", "answer_readable", "answer_ended", "answer_beyond", "answer_is_query", "answer_is_shown",
    "reading_hits", "reading_hits_late", "reading_hit_last", "answer_tokens", "answer_mean_normalised",
    "answer_entropy_normalised", "reading_mean_normalised", "reading_rank", "loo_possible", "loo_hits", "orders_hits",
    "turns_hits", "loo_mean_normalised", "loo_rank",
)  # fmt: skip
"""Names of features that mean the same for every model. Sizes of models are not among them: with the outcomes of a few
models they would only tell these apart."""
REQUIRED = (
    "kind_grid", "kind_grid1d", "kind_list", "kind_text", "answer_total", "reading_hits_late", "loo_possible",
    "loo_hits", "orders_hits",
)  # fmt: skip
"""Names that outcomes need to train a policy: the kind of the task, and what `HeuristicPolicy` reads."""


@dataclass(frozen=True)
class Features:
    """The features measured so far."""

    stage: int
    """0 or 1: the last stage that was measured."""
    values: Mapping[str, float]
    """`NAMES[stage]`, each finite."""
    cached_adapters: Mapping[str, float] = field(default_factory=dict)
    """Strategies whose adapter for these demonstrations is cached, with the number of answers that it gives a query. No
    policy is trained on this or what follows."""
    shared_adapters: Mapping[str, float] = field(default_factory=dict)
    """The same of strategies whose adapter is not cached, where several queries would use it."""
    queries: int = 1
    """Queries of these demonstrations in the call, from this one on."""
    reading_share: float = 1.0
    """What the in-context answer costs this query where queries share the reading of the demonstrations, as a share of
    what it costs a query alone; above 0, at most 1."""
    shared_views: Collection[str] = ()
    """Strategies that vote over several prompts, whose demonstrations are read once for all queries as well."""

    def shared_cost(self, strategy: str, cost: float) -> float:
        """The cost of a strategy for this query in multiples of its in-context answer, where it costs this much for a
        query alone. Queries share the training of an adapter, and nothing is paid for a cached one. As the in-context
        answer, a single answer by an adapter reads the demonstrations once for all queries; the prompts of a vote are
        read once as well where they are short enough to stay cached (`shared_views`)."""
        if strategy in self.cached_adapters:
            return self._answering(strategy, self.cached_adapters[strategy])
        if strategy not in self.shared_adapters:
            return self._answering(strategy, cost) if strategy in self.shared_views else cost / self.reading_share
        answers = min(cost, self.shared_adapters[strategy])
        return self._answering(strategy, answers) + (cost - answers) / (self.queries * self.reading_share)

    def cost_alone(self, strategy: str, shared: float) -> float | None:
        """The cost of which this is the `shared_cost`; None for a cached adapter, which does not say."""
        if strategy in self.cached_adapters:
            return None
        if strategy not in self.shared_adapters:
            return shared if strategy in self.shared_views else shared * self.reading_share
        answers = self.shared_adapters[strategy]
        return answers + (shared - self._answering(strategy, answers)) * self.queries * self.reading_share

    def _answering(self, strategy: str, answers: float) -> float:
        """The cost of as many answers as a strategy gives a query."""
        return answers if answers <= 1 or strategy in self.shared_views else answers / self.reading_share

    @property
    def kind(self) -> str:
        """The kind of the task; empty if it has no feature."""
        return next((k for k in KINDS if self.values.get(f"kind_{k}") == 1.0), "")


class AdapterCosts(TypedDict, total=False):
    """What `Features` say of the costs of adapters."""

    cached_adapters: Mapping[str, float]
    shared_adapters: Mapping[str, float]
    queries: int
    reading_share: float
    shared_views: Collection[str]
