"""Policies: what to do with a task, given what has been measured. Knows nothing about models or how strategies work.

| policy | decides by |
|---|---|
| `LearnedPolicy` | the chance of a right answer and the cost of each strategy, learned offline |
| `HeuristicPolicy` | a rule of thumb, for a model that no policy was trained for |
| `FixedPolicy` | nothing: one strategy for everything |
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..ttt_core.errors import PolicyError
from .bundle import card_of, load_bundle
from .fast_inference import Floats
from .features import NAMES, STAGE_0, Features
from .outcome_table import OutcomeTable, RoutedCases
from .outcomes import BASE
from .trained import TrainedPolicy

OUTSIDE_GUARANTEE = "what was promised about answers that are kept does not hold of it"
BUNDLED = Path(__file__).parent / "bundles" / "bundled"
"""The policy for the bundled model. Beside it lies `public`, that was trained on public sets as well."""


@dataclass(frozen=True)
class Decision:
    """What to do, and why. Chances are 0 to 1, costs multiples of an in-context answer."""

    strategy: str
    difficulty: float
    """Chance that the in-context answer is wrong."""
    scores: Mapping[str, float]
    """Chance that each strategy is right, where it is known."""
    costs: Mapping[str, float]
    """What each strategy would cost from here on; the in-context answer is paid for. Empty where nothing is known."""
    utilities: Mapping[str, float]
    """Chance minus the price of the cost."""
    reason: str
    """In words, with the numbers."""
    stage: int
    """The last stage of features that was used."""
    propensity: float = 1.0
    """The chance with which this strategy was to be chosen: below 1 where the policy explores."""
    policy_choice: str = ""
    """The policy's own choice, where this strategy was drawn in its stead."""
    shadow: str = ""
    """What the policy in the shadow would have chosen, where there is one."""
    shadow_had_features: bool = True
    """Whether the shadow would have decided on as much as was measured."""
    may_keep: bool = True
    """Whether the in-context answer may be kept: not where that would break what was promised about such."""

    @property
    def worthwhile(self) -> bool:
        """Whether it is worth its price, as far as that is known: better than to do nothing."""
        return self.utilities.get(self.strategy, 1.0) > 0


class Policy(Protocol):
    """Decides what to do with a task."""

    @property
    def name(self) -> str: ...

    def needs_more(self, features: Features) -> bool:
        """Whether measuring the next stage could change the choice."""
        ...

    def decide(self, features: Features, allowed: Sequence[str], *, tried: Sequence[str] = ()) -> Decision:
        """The best of the allowed strategies that were not tried. Raises `PolicyError` when none is left."""
        ...

    def card(self) -> Mapping[str, Any]:
        """What the policy is and how it was judged, as plain JSON."""
        ...


@dataclass(frozen=True)
class LearnedPolicy:
    """Picks the best chance minus price times cost; far from its training tasks, what was best there on average."""

    trained: TrainedPolicy
    name: str = "learned"

    def needs_more(self, features: Features) -> bool:
        if features.stage > 0 or self.is_out_of_distribution(features):
            return False
        return not bool(self.trained.can_skip_probe(*self._predict(features))[0])

    def decide(self, features: Features, allowed: Sequence[str], *, tried: Sequence[str] = ()) -> Decision:
        left = untried_strategies(allowed, tried)
        trained = self.trained
        judged = chances, costs = self._predict(features)
        utilities = self._by_name(trained.utilities(chances, costs)[0].tolist())
        scores, prices = self._by_name(chances[0].tolist()), self._by_name(costs[0].tolist())
        difficulty = 1 - scores[BASE]
        known = [s for s in trained.strategies if s in left]
        preferences = self._preferences(*judged, features.stage, known)
        strange, least = (
            self.is_out_of_distribution(features),
            trained.effective_keep_threshold(features.stage == max(NAMES)),
        )
        may_keep = trained.risk is None or (scores[BASE] >= least and not strange)
        if not known:
            choice, reason = left[0], f"nothing was learned about {left[0]}, and nothing else is left"
        elif strange:
            choice = trained.fallback(known)
            reason = f"unlike the tasks that the policy was trained on; {choice} was best there on average"
        else:
            choice = max(known, key=lambda s: preferences[s])
            reason = _reason(choice, difficulty, scores, prices, utilities, known)
            if preferences.get(BASE) == -np.inf and choice != BASE and utilities[BASE] > utilities[choice]:
                reason += f"; an in-context answer is kept from a chance of {least:.2f} on"
                reason += " where no more is measured" if least > trained.keep_threshold else ""
        if choice == BASE and not may_keep:
            reason += f"; nothing else is possible, and {OUTSIDE_GUARANTEE}"
        return Decision(choice, difficulty, scores, prices, utilities, reason, features.stage, may_keep=may_keep)

    def preferences(self, features: Features, among: Sequence[str]) -> dict[str, float]:
        """What the choice between these strategies is made by, the highest being chosen: utilities, but minus infinity
        for an in-context answer that is not to be kept."""
        return self._preferences(*self._predict(features), features.stage, among)

    def _preferences(self, chances: Floats, costs: Floats, stage: int, among: Sequence[str]) -> dict[str, float]:
        found = self.trained.preferences(chances, costs, measured=stage == max(NAMES))[0]
        return {name: value for name, value in self._by_name(found.tolist()).items() if name in among}

    def with_cost_weight(self, cost_weight: float) -> LearnedPolicy:
        """The same estimates at another price of a cost, in accuracy for one in-context cost. What was judged and
        promised in training was at the price of training. Raises `PolicyError` for a price that is none.
        """
        if not 0 <= cost_weight < float("inf"):
            raise PolicyError(
                f"price: expected the accuracy that one in-context cost is worth, 0 or more; got {cost_weight}"
            )
        name = f"{self.name} at the price {cost_weight:.2g}"
        return LearnedPolicy(replace(self.trained, cost_weight=cost_weight), name)

    def card(self) -> Mapping[str, Any]:
        return card_of(self.trained)

    def _predict(self, features: Features) -> tuple[Floats, Floats]:
        """Chances and costs, [1, S] each."""
        row = np.array([[features.values[name] for name in NAMES[features.stage]]])
        costs = self.trained.expected_costs([features.kind], row[:, : len(STAGE_0)])
        return self.trained.probabilities(features.stage, row), costs

    def is_out_of_distribution(self, features: Features) -> bool:
        """Whether a query is unlike those of training."""
        free = np.array([[features.values[name] for name in STAGE_0]])
        return bool(self.trained.is_out_of_distribution(free, [features.kind])[0])

    def _by_name(self, numbers: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.trained.strategies, numbers, strict=True))


@dataclass(frozen=True)
class FixedPolicy:
    """Always the same strategy; where it cannot be used, the in-context answer."""

    strategy: str
    why: str = "it was asked for"

    @property
    def name(self) -> str:
        return f"always {self.strategy}"

    def needs_more(self, features: Features) -> bool:
        return False

    def decide(self, features: Features, allowed: Sequence[str], *, tried: Sequence[str] = ()) -> Decision:
        left = untried_strategies(allowed, tried)
        chance = _rule_of_thumb(features)
        choice, reason = self.strategy, f"always {self.strategy}: {self.why}"
        if self.strategy not in left:
            choice = BASE if BASE in left else left[0]
            reason += (
                " and has been tried" if self.strategy in tried
                else ", but cannot be used here (too few demonstrations, or more than what is left of the budget)"
            )  # fmt: skip
            reason += f"; {choice} instead"
        return Decision(choice, 1 - chance, {BASE: chance}, {}, {}, reason, features.stage)

    def card(self) -> Mapping[str, Any]:
        return {"strategy": self.strategy, "why": self.why}


@dataclass(frozen=True)
class HeuristicPolicy:
    """Keeps the in-context answer where the model finds the demonstrations from each other, and trains otherwise.

    Where it finds some of them, but not most, training may help or harm: there `ttt_crossfit` comes first, whose
    held-out demonstrations say which. The test-time training of Akyürek et al. 2025 is worth most on grids with
    transformations, elsewhere without.
    """

    note: str = ""
    """Why there is nothing better, for the reasons."""
    name: str = "rule of thumb"
    skip_probe_threshold: float = 0.9
    """Estimated chance from which nothing more is measured."""
    keep_threshold: float = 0.6
    """Estimated chance from which the in-context answer is kept."""
    training_strategies: Mapping[str, Sequence[str]] = field(
        default_factory=lambda: {"grid": ("ttt_augmented",), "grid1d": ("ttt_augmented",)}
    )
    """Kind -> what to do about a difficult task of it, before `ttt_in_context`."""
    doubtful_below: float = 0.5
    """Share of the demonstrations that are found from the others, up to which that is some of them, not most."""

    def needs_more(self, features: Features) -> bool:
        return features.stage == 0 and _rule_of_thumb(features) < self.skip_probe_threshold

    def decide(self, features: Features, allowed: Sequence[str], *, tried: Sequence[str] = ()) -> Decision:
        left = untried_strategies(allowed, tried)
        chance = _rule_of_thumb(features)
        doubtful = 0 < features.values.get("loo_hits", 0.0) <= self.doubtful_below
        training = [
            *(["ttt_crossfit"] if doubtful else []), *self.training_strategies.get(features.kind, ()),
            "ttt_in_context", "ttt_augmented", "in_context_vote",
        ]  # fmt: skip
        order = [BASE, *training] if chance >= self.keep_threshold else [*training, BASE]
        choice = next((s for s in order if s in left), left[0])
        likely = f"the in-context answer is right at about {chance:.2f}"
        verdict = "keep it" if choice == BASE else f"try {choice}"
        if choice == "ttt_crossfit":
            verdict += ", which holds demonstrations out to tell whether training helps"
        parts = ["by rule of thumb", likely, verdict, self.note]
        reason = "; ".join(part for part in parts if part)
        return Decision(choice, 1 - chance, {BASE: chance}, {}, {}, reason, features.stage)

    def card(self) -> Mapping[str, Any]:
        return {"note": self.note, "sure": self.skip_probe_threshold, "enough": self.keep_threshold}


def bundle_folder(source: str | os.PathLike[str]) -> Path:
    """The folder of a bundle: a path, or else the name of one that ships (`bundled`, `public`)."""
    path = Path(source)
    shipped = BUNDLED.parent / path
    return shipped if len(path.parts) == 1 and not path.exists() and shipped.is_dir() else path


def load_policy(
    source: str | os.PathLike[str] | None = None,
    *,
    base_hash: str,
    prompt_format: str = "",
    recipe_of: Callable[[str, str], str | None] | None = None,
    ignore_mismatch: bool = False,
) -> Policy:
    """The policy in a folder, or of a name (see `bundle_folder`); without one, the shipped policy, or the rule of thumb
    for a model that it is not for.

    `prompt_format` is how the model is asked, and `recipe_of` gives the digest of its recipe for a strategy and a kind
    of task, None for a strategy that is not known: to compare with what the policy was trained on. `anyway` uses a
    policy of another model, prompt format, recipes or version of the features as it is. A shipped policy that does not
    beat the single best strategy for sure is not used: that strategy is, always. Raises `PolicyError` for a folder that
    cannot be used, with the reason.
    """
    if source is None and not BUNDLED.exists():
        return HeuristicPolicy(note="no policy was trained")
    trained = load_bundle(BUNDLED if source is None else bundle_folder(source), ignore_mismatch)
    odd = "" if ignore_mismatch else _mismatch(trained, base_hash, prompt_format, recipe_of)
    if not odd:
        if source is None and not trained.released:
            return FixedPolicy(trained.ranking[0], "the shipped policy does not beat it for sure")
        return LearnedPolicy(trained)
    if source is None:
        return HeuristicPolicy(note=f"the shipped policy was trained for {odd.split(',')[0]}")
    raise PolicyError(
        f"{os.fspath(source)}: this policy was trained for {odd}. Train one for it: `autottt collect`, then `autottt "
        "train-policy`; or use this one as it is with --ignore-mismatch (ignore_mismatch=True)"
    )


def _mismatch(
    trained: TrainedPolicy, base_hash: str, prompt_format: str, recipe_of: Callable[[str, str], str | None] | None
) -> str:
    """What a policy was trained for that this is not; empty where it fits."""
    if trained.base_hash != base_hash:
        return f"another model, {trained.base_hash}, and this one is {base_hash}"
    if trained.prompt_format and prompt_format and trained.prompt_format != prompt_format:
        return f"the prompt format {trained.prompt_format!r}, and the model is asked in {prompt_format!r}"
    if recipe_of is None:
        return ""
    for place, digest in trained.recipes.items():
        name, _, kind = place.partition("/")
        if (now := recipe_of(name, kind)) is None:
            return f"the strategy {name} too, which is not known here: name its file with --plugin"
        if now != digest:
            return f"another recipe of {name}, and what it achieves and costs on {kind} tasks has changed with it"
    return ""


def simulate(policy: Policy, cases: OutcomeTable) -> RoutedCases:
    """What a policy does with each case, as a controller would ask it."""
    count, nothing = len(cases), np.zeros(len(cases), bool)
    served = RoutedCases(np.zeros(count, np.int64), nothing.copy(), np.zeros(count), nothing.copy())
    for case in range(len(cases)):
        features = Features(0, dict(zip(NAMES[0], cases.stage(0)[case].tolist(), strict=True)))
        served.measured[case] = policy.needs_more(features)
        if served.measured[case]:
            features = Features(1, dict(zip(NAMES[1], cases.stage(1)[case].tolist(), strict=True)))

        def following(tried: Sequence[int], features: Features = features, case: int = case) -> int | None:
            names = [cases.strategies[n] for n in tried]
            allowed = [
                s for s, able in zip(cases.strategies, cases.applicable[case], strict=True) if able and s not in names
            ]
            if not allowed:
                return None
            decision = policy.decide(features, allowed, tried=names)
            return cases.strategies.index(decision.strategy) if not names or decision.worthwhile else None

        first = following([])
        served.choice[case], served.wasted_cost[case] = cases.run_attempts(
            case, 0 if first is None else first, following
        )
        if served.choice[case] == 0 and not cases.unparsed[case, 0]:
            served.kept[case] = policy.decide(features, [BASE]).may_keep
    return served


def untried_strategies(allowed: Sequence[str], tried: Sequence[str]) -> list[str]:
    left = [s for s in allowed if s not in tried]
    if not left:
        raise PolicyError(f"no strategy is left to decide on: allowed are {list(allowed)}, tried were {list(tried)}")
    return left


def _rule_of_thumb(features: Features) -> float:
    """A guess at the chance that the in-context answer is right.

    With stage 1, the mean of how often demonstrations follow from the others and how often the answer survives another
    order; without, the mean of how often demonstrations were foreseen lately and the probability of the answer.
    """
    values = features.values
    if features.stage > 0 and values["loo_possible"]:
        return (values["loo_hits"] + values["orders_hits"]) / 2
    return (values["reading_hits_late"] + float(np.exp(values["answer_total"]))) / 2


def _reason(
    choice: str,
    difficulty: float,
    scores: Mapping[str, float],
    costs: Mapping[str, float],
    utilities: Mapping[str, float],
    known: Sequence[str],
) -> str:
    likely = "likely wrong" if difficulty >= 0.5 else "likely right"
    begin = f"in context is {likely} (difficulty {difficulty:.2f})"
    if choice == BASE:
        others = [s for s in known if s != BASE]
        if not others:
            return f"{begin}; nothing else is left"
        best = max(others, key=lambda s: utilities[s])
        return f"{begin}; {best}, right at {scores[best]:.2f} for {costs[best]:.0f}x the cost, is not worth it"
    gain = utilities[choice] - utilities[BASE]
    return (
        f"{begin}; {choice} is expected right at {scores[choice]:.2f} for {costs[choice]:.0f}x the cost of in-context: "
        f"{gain:+.2f} utility"
    )
