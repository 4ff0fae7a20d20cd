"""Policies: which strategy to use on a task, given its features. Knows nothing about models or how strategies work.

| policy | decides by |
|---|---|
| `LearnedPolicy` | the estimated probability of a right answer and the cost of each strategy, trained offline |
| `AnyModelPolicy` | the same, trained on the outcomes of several models and calibrated on the one that answers |
| `HeuristicPolicy` | a rule of thumb, for models without a trained policy |
| `FixedPolicy` | nothing: one strategy for every task |
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from ..strategies.registry import strategies
from ..ttt_core.arguments import as_number
from ..ttt_core.errors import PolicyError
from .bundle import TrainedFor, card_of, load_bundle
from .bundle_card import ANY_MODEL, BUNDLES, CARD, bundle_folder, policies_folder
from .calibration import Calibration, CalibrationState, share_answered_right
from .fast_inference import Floats
from .features import NAMES, Features
from .installed import installed_folder
from .outcomes import BASE
from .rounding import signed_text, told_apart
from .trained_policy import NO_MARGINS, TrainedPolicy

OUTSIDE_GUARANTEE = "outside the risk guarantee"
BUNDLED = BUNDLES / "bundled"
"""The policy for the bundled model. Its neighbour `public` was trained on public data sets as well."""
ANY_MODEL_SHIPPED = BUNDLES / ANY_MODEL
"""The shipped policy for models without one of their own."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Which strategy to use, and why. Probabilities are 0 to 1, costs are relative costs."""

    strategy: str
    difficulty: float
    """Probability that the in-context answer is wrong."""
    scores: Mapping[str, float]
    """Probability that each strategy is right, where estimated."""
    costs: Mapping[str, float]
    """Expected cost of each strategy from here on; the in-context answer has been paid for, and so have adapters that
    are cached; queries of one call share others (`Features.shared_cost`). Empty if unknown."""
    utilities: Mapping[str, float]
    """Probability minus weighted cost."""
    reason: str
    """A sentence with the numbers."""
    stage: int
    """The last stage of features that was used."""
    propensity: float = 1.0
    """Probability with which this strategy was chosen: below 1 if the policy explores."""
    policy_choice: str = ""
    """The policy's own choice, if exploration replaced it."""
    shadow: str = ""
    """The choice of the shadow policy, if there is one."""
    shadow_had_features: bool = True
    """Whether the shadow policy would not have measured more features than were measured."""
    may_keep: bool = True
    """Whether the in-context answer may be kept: false if it is outside the risk guarantee."""
    calibration: Mapping[str, float] = field(default_factory=dict)
    """What the model's own answers to demonstrations said until this run began (`Calibration.to_plain`), of a policy
    that calibrates itself; empty for others."""
    exclusive: bool = False
    """Whether no other strategy may be tried after this one; the in-context answer, which is there, may replace it."""
    forced: bool = False
    """Whether the caller chose the strategy: then its answer stands, however certain the in-context answer is."""

    @property
    def worthwhile(self) -> bool:
        """Whether the chosen strategy has a positive utility; true if the utility is unknown."""
        return self.utilities.get(self.strategy, 1.0) > 0


def card_digest(card: Mapping[str, Any]) -> str:
    """Digest of a policy's card, or of other plain JSON."""
    return hashlib.sha256(json.dumps(card, sort_keys=True, default=str).encode()).hexdigest()[:16]


def was_forced(decision: Mapping[str, Any]) -> bool:
    """Whether the caller chose the strategy of a stored decision; one that was drawn to explore is not forced. Stored
    decisions without the field `forced` are judged by the others."""
    return bool(decision.get("forced", decision.get("exclusive") and not decision.get("policy_choice")))


@runtime_checkable
class Policy(Protocol):
    """Decides which strategy to use on a task."""

    @property
    def name(self) -> str: ...

    def needs_more(self, features: Features) -> bool:
        """Whether measuring the next stage of features could change the choice."""
        ...

    def decide(self, features: Features, allowed: Sequence[str], *, tried: Sequence[str] = ()) -> Decision:
        """The best of the allowed strategies that were not tried. Raises `PolicyError` if none is left."""
        ...

    def card(self) -> Mapping[str, Any]:
        """Description and evaluation of the policy, as plain JSON."""
        ...


Basis = Literal["estimates", "evidence", "fallback"]
"""What a choice is based on: estimates from all features; for a query unlike the training set, evidence of the task
alone; where that is not measured, the strategy that was best on average in training."""


@dataclass(frozen=True)
class LearnedPolicy:
    """Chooses the highest utility: probability of a right answer minus weighted cost. For queries out of distribution,
    evidence of the task itself decides in place of extrapolation."""

    trained: TrainedPolicy
    name: str = "learned"
    shift: float = 0.0
    """Added to the log-odds of a right in-context answer."""
    at_training: LearnedPolicy | None = None
    """The policy at the cost weight of training, where this one has another."""

    def needs_more(self, features: Features) -> bool:
        if features.stage > 0:
            return False
        if self.is_out_of_distribution(features):
            return self.trained.by_evidence and not self._cached(features)
        probabilities, costs = self._predict(features)
        return not bool(self.trained.can_skip_probe(probabilities, features.reading_share * costs)[0])

    def decide(self, features: Features, allowed: Sequence[str], *, tried: Sequence[str] = ()) -> Decision:
        remaining, trained, basis = untried_strategies(allowed, tried), self.trained, self.basis(features)
        probabilities, costs = self._predict(features)
        scores = self._by_name(probabilities[0].tolist())
        decision = Decision(
            strategy="", difficulty=1 - scores[BASE], scores=scores, costs=self._by_name(costs[0].tolist()),
            utilities=self._by_name(trained.utilities(probabilities, costs)[0].tolist()), reason="",
            stage=features.stage,
        )  # fmt: skip
        threshold = trained.effective_keep_threshold(features.stage == max(NAMES))
        may_keep = trained.risk is None or (scores[BASE] >= threshold and basis == "estimates")
        known = [s for s in trained.strategies if s in remaining]
        if not known:
            choice, reason = remaining[0], f"only {remaining[0]} is left, and the policy was not trained on it"
        elif basis == "fallback":
            cached = [s for s in known if s in self._cached(features)]
            choice = trained.fallback(cached or known)
            best = "the strategy with an adapter" if cached else "the best strategy on average in training"
            reason = f"the query is out of distribution; fallback to {choice}, {best}"
        else:
            preferences = self._preferences(probabilities, costs, features, known)
            choice = max(known, key=lambda s: preferences[s])
            reason = self._reason(choice, decision, known, basis)
            if known == [BASE]:
                reason += f" ({_why_unusable([s for s in trained.strategies if s != BASE], features, tried)})"
            if basis == "evidence":
                reason = f"the query is out of distribution, so {_what_decides(features)}: {reason}"
            if preferences.get(BASE) == -np.inf and _is_better(BASE, choice, decision):
                has, needs = told_apart(scores[BASE], threshold, 2)
                reason += f"; the risk guarantee requires probability {needs} to keep an in-context answer"
                reason += " without the probe" if threshold > trained.keep_threshold else ""
                reason += f" (it has {has})"
        reason += _sharing(choice, features)
        if choice == BASE and not may_keep:
            reason += f"; no other strategy is possible, and the in-context answer is {OUTSIDE_GUARANTEE}"
        return replace(decision, strategy=choice, reason=reason, may_keep=may_keep)

    def basis(self, features: Features) -> Basis:
        """What decides on a query."""
        if not self.is_out_of_distribution(features):
            return "estimates"
        has_evidence = self.trained.by_evidence and features.stage == max(NAMES)
        return "evidence" if has_evidence else "fallback"

    def preferences(self, features: Features, among: Sequence[str]) -> dict[str, float]:
        """What the choice between these strategies maximises: utilities, minus infinity for an in-context answer below
        the keep threshold."""
        return self._preferences(*self._predict(features), features, among)

    def _preferences(
        self, probabilities: Floats, costs: Floats, features: Features, among: Sequence[str]
    ) -> dict[str, float]:
        if self.basis(features) == "evidence":
            values = self.trained.evidence_preferences(probabilities, costs)[0]
        else:
            values = self.trained.preferences(probabilities, costs, measured=features.stage == max(NAMES))[0]
        return {name: value for name, value in self._by_name(values.tolist()).items() if name in among}

    def _reason(self, choice: str, estimates: Decision, known: Sequence[str], basis: Basis) -> str:
        """Why a strategy was chosen, with the numbers."""
        best = max(known, key=lambda s: estimates.utilities[s])
        if self.trained.cost_weight == 0 and choice == self.trained.accurate and choice != best:
            lead = estimates.scores[best] - estimates.scores[choice]
            return (
                f"accuracy comes first: {choice} was the most accurate in training, and the lead of {best} "
                f"({lead:+.2f} in probability) is not certain enough"
            )
        lead, sbs = estimates.utilities[best] - estimates.utilities[choice], self.trained.ranking[0]
        if basis == "estimates" and self._lacks_certainty(best, lead, estimates):
            more = "more" if self.trained.margins_for == "dearer" else "less"
            start = _judgement(estimates) if choice == BASE else _reason(choice, estimates, known)
            return (
                f"{start}; {best} costs {more} than {sbs}, which was best on average in training, and its lead "
                f"({lead:+.3f} in utility) is not certain enough"
            )
        if basis == "estimates" and self._favours(choice, best, estimates):
            start = (
                f"{_reason(choice, estimates, known)}; {sbs} was best on average in training"
                if choice == sbs
                else f"{_judgement(estimates)}; that is sure enough to precede {sbs}, the best on average in training"
            )
            return f"{start}, and the lead of {best} ({lead:+.3f} in utility) is not certain enough"
        return _reason(choice, estimates, known)

    def _lacks_certainty(self, best: str, lead: float, estimates: Decision) -> bool:
        """Whether the strategy of the highest utility is not chosen since, at another cost weight than that of
        training, it is on the side of the SBS on which a lead is needed."""
        side, costs = self.trained.margins_for, estimates.costs
        if side == "all" or not 0 < lead <= self.trained.utility_margins[estimates.stage == max(NAMES)]:
            return False
        beyond = costs[best] - costs[self.trained.ranking[0]]
        return beyond > 0 if side == "dearer" else beyond < 0

    def _favours(self, choice: str, best: str, estimates: Decision) -> bool:
        """Whether the SBS, or a sure in-context answer, is chosen by the margin, before one of a higher utility."""
        margin = self.trained.utility_margins[estimates.stage == max(NAMES)]
        lead = estimates.utilities[best] - estimates.utilities[choice]
        return choice in (self.trained.ranking[0], BASE) and choice != best and 0 < lead <= margin

    def with_cost_weight(self, cost_weight: float) -> LearnedPolicy:
        """The same estimates with another cost weight (accuracy per one in-context cost). With 0, accuracy comes first:
        the strategy that was most accurate in training is used unless another one is certain to be better.

        The scorecard and the risk guarantee hold for the cost weight of training. Raises `PolicyError` for a negative
        or infinite cost weight.
        """
        if not 0 <= as_number(cost_weight) < float("inf"):
            raise PolicyError(
                f"cost weight: expected accuracy per one in-context cost, 0 or more; received {cost_weight!r}"
            )
        original = self.at_training or self
        weight_of_training = original.trained.cost_weight
        name = f"{original.name} with cost weight {cost_weight:.2g}"
        trained = replace(original.trained, cost_weight=cost_weight)
        if cost_weight > weight_of_training:
            trained = replace(trained, margins_for="dearer")
        if cost_weight < weight_of_training:  # where accuracy is worth more, so is what the probe tells
            trained = replace(trained, margins_for="cheaper", probe_margin=None, probes_unfamiliar=True)
        if cost_weight == 0 and trained.accurate:
            others = [s for s in trained.ranking if s != trained.accurate]
            trained = replace(trained, ranking=(trained.accurate, *others), utility_margins=NO_MARGINS)
        return replace(self, trained=trained, name=name, at_training=original)

    def card(self) -> Mapping[str, Any]:
        return card_of(self.trained)

    def _cached(self, features: Features) -> list[str]:
        """The strategies of the policy whose adapter is cached."""
        return [name for name in self.trained.strategies if name in features.cached_adapters]

    def _predict(self, features: Features) -> tuple[Floats, Floats]:
        """Probabilities and costs, [1, S] each; costs are those of `Features.shared_cost`."""
        costs = self.trained.expected_costs([features.kind], self._row(features, 0))
        names = zip(self.trained.strategies, costs[0].tolist(), strict=True)
        costs = np.array([[features.shared_cost(name, cost) for name, cost in names]])
        row = self._row(features, features.stage)
        if self.basis(features) == "evidence":
            return self.trained.evidence_probabilities(row, self.shift), costs
        return self.trained.probabilities(features.stage, row, self.shift), costs

    def is_out_of_distribution(self, features: Features) -> bool:
        """Whether a query is unlike the training tasks."""
        return bool(self.trained.is_out_of_distribution(self._row(features, 0), [features.kind])[0])

    def _row(self, features: Features, stage: int) -> Floats:
        """The features of a stage that the policy was trained on, [1, F]."""
        return np.array([[features.values[name] for name in self.trained.feature_names[stage]]])

    def _by_name(self, numbers: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.trained.strategies, numbers, strict=True))


def _sharing(choice: str, features: Features) -> str:
    """What a reason says of an adapter that this query does not pay for alone."""
    if choice in features.cached_adapters:
        return "; its adapter for these demonstrations is cached"
    if choice in features.shared_adapters:
        return f"; {features.queries} queries share its adapter"
    return ""


def _is_better(one: str, other: str, decision: Decision) -> bool:
    """Whether a strategy is another one of higher utility."""
    return one != other and decision.utilities[one] > decision.utilities[other]


@dataclass(frozen=True)
class AnyModelPolicy:
    """The learned policy for models without one of their own. It calibrates itself on the model: whether it answers
    demonstrations of each query right from others is known without labels of queries.

    A run decides by the calibration with which it began, and its decisions record it.
    """

    learned: LearnedPolicy
    state: CalibrationState = field(default_factory=CalibrationState)
    """What was observed so far; shared by all snapshots."""
    calibration: Calibration = field(default_factory=Calibration)
    """The snapshot by which this value decides."""
    knows_model: bool = False
    """Whether outcomes of the model that answers are among those of training."""

    @property
    def name(self) -> str:
        return "learned for any model"

    def snapshot(self) -> AnyModelPolicy:
        """The policy with what was observed until now, for one run."""
        return replace(self, calibration=self.state.current)

    def with_calibration(self, calibration: Calibration) -> AnyModelPolicy:
        """The policy with a recorded calibration, to repeat a run."""
        return replace(self, calibration=calibration)

    def observe(self, features: Features) -> None:
        """Notes the answers to the demonstrations of a query; later snapshots count them."""
        if (right := share_answered_right(features.values)) is not None:
            self.state.observe(self.learned.decide(features, [BASE]).scores[BASE], right)

    def observed(self) -> Calibration:
        """What was noted until now."""
        return self.state.current

    def restore(self, calibration: Calibration) -> None:
        """Continues after what was noted until a snapshot; see `Calibrates`."""
        self.state.restore(calibration)

    def needs_more(self, features: Features) -> bool:
        return self._calibrated.needs_more(features)

    def decide(self, features: Features, allowed: Sequence[str], *, tried: Sequence[str] = ()) -> Decision:
        decision = self._calibrated.decide(features, allowed, tried=tried)
        count = len(self.learned.trained.models)
        if self.knows_model:
            note = f"the policy was trained on this model and {count - 1} others"
        else:
            note = f"no policy was trained for this model; this one was trained on {count} others"
        if self.calibration.queries:
            note += f" and calibrated on the demonstrations of {self.calibration.queries} queries"
        return replace(decision, reason=f"{decision.reason}; {note}", calibration=self.calibration.to_plain())

    def with_cost_weight(self, cost_weight: float) -> AnyModelPolicy:
        """See `LearnedPolicy.with_cost_weight`."""
        return replace(self, learned=self.learned.with_cost_weight(cost_weight))

    def card(self) -> Mapping[str, Any]:
        return self.learned.card()

    @property
    def _calibrated(self) -> LearnedPolicy:
        return replace(self.learned, shift=self.calibration.shift)


@dataclass(frozen=True)
class FixedPolicy:
    """Always the same strategy, or the in-context answer where that strategy cannot be used. No other strategy runs."""

    strategy: str
    why: str = "requested by the caller"

    @property
    def name(self) -> str:
        return f"always {self.strategy}"

    def needs_more(self, features: Features) -> bool:
        return False

    def decide(self, features: Features, allowed: Sequence[str], *, tried: Sequence[str] = ()) -> Decision:
        remaining = untried_strategies(allowed, tried)
        choice, reason = self.strategy, f"always {self.strategy} ({self.why})"
        if self.strategy not in remaining:
            choice = BASE if BASE in remaining else remaining[0]
            why = _why_unusable([self.strategy], features, tried)
            reason += "; it has been tried" if self.strategy in tried else f"; it cannot be used here ({why})"
            reason += f"; fallback to {choice}"
        return replace(_untrained_decision(choice, reason, features), exclusive=True, forced=True)

    def card(self) -> Mapping[str, Any]:
        return {"strategy": self.strategy, "why": self.why}


@dataclass(frozen=True)
class HeuristicPolicy:
    """Keeps the in-context answer if the model answers the demonstrations from each other, and trains otherwise.

    If the model answers some of the demonstrations but not most, training may help or harm: then, on grids and lists,
    `ttt_crossfit` comes first, which cross-validates the adapters. Test-time training (Akyürek et al. 2025) gains most
    with transformations on grids, and without them elsewhere.
    """

    note: str = ""
    """Why no trained policy is used; appended to the reasons."""
    name: str = "rule of thumb"
    skip_probe_threshold: float = 0.9
    """Estimated probability of a right in-context answer from which the probe is skipped."""
    keep_threshold: float = 0.6
    """Estimated probability from which the in-context answer is kept."""
    training_strategies: Mapping[str, Sequence[str]] = field(
        default_factory=lambda: {"grid": ("ttt_augmented",), "grid1d": ("ttt_augmented",)}
    )
    """Kind -> strategies for its difficult tasks, before `ttt_in_context`."""
    doubtful_below: float = 0.5
    """Leave-one-out accuracy on the demonstrations up to which, if above 0, adapters are cross-validated."""
    cross_validated_kinds: Sequence[str] = ("grid", "grid1d", "list")
    """Kinds on which training often harms. On text it rarely does: with SmolLM2-135M, `ttt_in_context` made 15% of 222
    queries of 37 English families right and 2% wrong (benchmarks/LOG.md), at a quarter of the cost."""

    def needs_more(self, features: Features) -> bool:
        if features.stage > 0 or features.cached_adapters:
            return False
        return _estimate(features) < self.skip_probe_threshold

    def decide(self, features: Features, allowed: Sequence[str], *, tried: Sequence[str] = ()) -> Decision:
        remaining = untried_strategies(allowed, tried)
        probability = _estimate(features)
        some_hits = 0 < features.values.get("loo_hits", 0.0) <= self.doubtful_below
        doubtful = some_hits and features.kind in self.cross_validated_kinds
        training = [
            *(["ttt_crossfit"] if doubtful else []), *self.training_strategies.get(features.kind, ()),
            "ttt_in_context", "ttt_augmented", "in_context_vote",
        ]  # fmt: skip
        training.sort(key=lambda name: name not in features.cached_adapters)  # those whose adapter is there come first
        order = [BASE, *training] if probability >= self.keep_threshold else [*training, BASE]
        choice = next((s for s in order if s in remaining), remaining[0])
        likely = "likely right" if probability >= self.keep_threshold else "likely wrong"
        estimate = f"rule of thumb: the in-context answer is {likely} ({_evidence(features)})"
        action = "keep it" if choice == BASE else f"use {choice}"
        if choice == "ttt_crossfit":
            action += ", which cross-validates its adapters on held-out demonstrations"
        action += _sharing(choice, features)
        reason = "; ".join(part for part in (estimate, action, self.note) if part)
        return _untrained_decision(choice, reason, features)

    def card(self) -> Mapping[str, Any]:
        card = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "name"}
        by_kind = {kind: list(names) for kind, names in self.training_strategies.items()}
        return {**card, "training_strategies": by_kind, "cross_validated_kinds": list(self.cross_validated_kinds)}


@dataclass(frozen=True)
class ServedModel:
    """What a policy has to fit: the model that answers, and how it is prompted and trained."""

    base_hash: str
    prompt_format: str = ""
    """Name of the prompt format; empty fits every policy."""
    recipe_of: Callable[[str, str], str | None] | None = None
    """Digest of the recipe for a strategy and a kind of task, None for an unknown strategy; without the function,
    recipes are not compared."""
    starting_adapter: str = ""
    """Digest of the adapter that training starts from; empty if it starts from zero."""
    nominal_cost: Callable[[str], float] | None = None
    """Relative cost of a strategy by its recipe; without the function, a policy for any model is not used."""

    def mismatch(self, trained: TrainedFor) -> str:
        """What a policy was trained for, if that differs from this model; else empty."""
        if trained.base_hash == ANY_MODEL:
            return ""
        if trained.base_hash != self.base_hash:
            return f"another model, {trained.base_hash}; this model is {self.base_hash}"
        if trained.prompt_format and self.prompt_format and trained.prompt_format != self.prompt_format:
            return f"the prompt format {trained.prompt_format!r}; this model is prompted in {self.prompt_format!r}"
        if trained.starting_adapter != self.starting_adapter:
            return (
                f"training that starts from {_adapter_text(trained.starting_adapter)}; here it starts from "
                f"{_adapter_text(self.starting_adapter)}"
            )
        if self.recipe_of is None:
            return ""
        for place, digest in trained.recipes.items():
            name, _, kind = place.partition("/")
            if (now := self.recipe_of(name, kind)) is None:
                return f"the strategy {name} too, which is not registered here: load its file with --plugin"
            if now != digest:
                return f"another recipe of {name}: its accuracy and cost on {kind} tasks have changed"
        return ""


def _adapter_text(digest: str) -> str:
    return f"the adapter {digest}" if digest else "new weights"


def load_policy(
    source: str | os.PathLike[str] | None = None,
    *,
    base_hash: str,
    prompt_format: str = "",
    recipe_of: Callable[[str, str], str | None] | None = None,
    starting_adapter: str = "",
    nominal_cost: Callable[[str], float] | None = None,
    ignore_mismatch: bool = False,
) -> Policy:
    """Loads the policy in a folder, or one by its name (see `bundle_folder`). See `ServedModel` for the model.

    Without `source`: the user's own policy for the model, which `autottt policy fit` installs, else the shipped one
    for it, else the policy for any model, else `HeuristicPolicy`. A shipped policy that is not released gives way to
    the one for any model, or else, as the user's own does, to `FixedPolicy` with its best fixed strategy.
    `ignore_mismatch` loads a policy of another model, prompt format, starting adapter, recipe or features version all
    the same. Raises `PolicyError` for a folder that cannot be used.
    """
    served = ServedModel(base_hash, prompt_format, recipe_of, starting_adapter, nominal_cost)
    if source is None and not ignore_mismatch:
        return _own_policy(served)
    folder = BUNDLED if source is None else bundle_folder(source, BUNDLED.parent)
    trained = load_bundle(folder, ignore_mismatch)
    if not ignore_mismatch and (mismatch := served.mismatch(TrainedFor.of(trained))):
        raise PolicyError(
            f"{os.fspath(folder)}: this policy was trained for {mismatch}. Train a new one with `autottt policy fit`, "
            "or use this one all the same with --ignore-mismatch (ignore_mismatch=True)"
        )
    if trained.models:
        return _for_any_model(trained, served)
    return LearnedPolicy(trained) if source is not None else _if_released(trained, "the shipped policy")


def _own_policy(served: ServedModel) -> Policy:
    """The user's policy for a model, else the shipped one that is released, else that for any model, else
    `HeuristicPolicy`."""
    own = installed_folder(served.base_hash, served.prompt_format, served.starting_adapter)
    places = [(own, "your policy for this model")] if (own / CARD).is_file() else []
    places += [(folder, "the shipped policy") for folder in _shipped()]
    notes, unreleased = [], None
    for folder, what in places:
        if mismatch := served.mismatch(TrainedFor.of_card(folder)):
            notes.append(f"{what} was trained for {mismatch.split(',')[0].split(';')[0]}")
            continue
        trained = load_bundle(folder)
        if trained.released or folder == own:
            return _if_released(trained, what)
        unreleased = unreleased or trained
    for folder in (policies_folder() / ANY_MODEL, ANY_MODEL_SHIPPED):
        if served.nominal_cost is not None and (folder / CARD).is_file():
            trained = load_bundle(folder)
            if trained.released:
                return _for_any_model(trained, served)
            notes.append("the policy for any model does not beat this rule significantly")
    if unreleased is not None:
        return _if_released(unreleased, "the shipped policy")
    return HeuristicPolicy(note="; ".join(dict.fromkeys([*notes[:1], *notes[-1:]])) or "no policy was trained")


def _for_any_model(trained: TrainedPolicy, served: ServedModel) -> AnyModelPolicy:
    """The policy for any model with the costs of this one, by its recipes."""
    if served.nominal_cost is None:
        raise PolicyError("a policy for any model needs the costs of the strategies by the recipes of the model")
    priced = trained.with_costs_of(max(map(served.nominal_cost, trained.strategies)))
    return AnyModelPolicy(LearnedPolicy(priced), knows_model=served.base_hash in trained.models)


def _shipped() -> list[Path]:
    """Folders of the shipped policies that may be defaults, that of the bundled model first; `public` is one for the
    same model, used on request only."""
    if not BUNDLED.exists():
        return []
    others = (card.parent for card in sorted(BUNDLED.parent.glob(f"*/{CARD}")))
    return [BUNDLED, *(folder for folder in others if folder.name not in (BUNDLED.name, "public", ANY_MODEL))]


def _if_released(trained: TrainedPolicy, what: str) -> Policy:
    if not trained.released:
        return FixedPolicy(trained.ranking[0], f"{what} is neither significantly better nor as good and cheaper")
    return LearnedPolicy(trained)


def untried_strategies(allowed: Sequence[str], tried: Sequence[str]) -> list[str]:
    """The allowed strategies that were not tried. Raises `PolicyError` if there are none."""
    remaining = [s for s in allowed if s not in tried]
    if not remaining:
        raise PolicyError(f"no strategy is left to choose from: allowed are {list(allowed)}, tried were {list(tried)}")
    return remaining


def _why_unusable(names: Sequence[str], features: Features, tried: Sequence[str]) -> str:
    """Why the task or the budget allows none of these strategies."""
    known, count = strategies(), features.values["demonstrations"]
    causes = (
        "tried" if name in tried
        else "too few demonstrations" if name in known and count < known[name].min_demonstrations
        else "not enough budget left"
        for name in names
    )  # fmt: skip
    return " or ".join(dict.fromkeys(causes))


def _what_decides(features: Features) -> str:
    """The evidence of the task, by what its demonstrations allow to measure."""
    if features.values["loo_possible"]:
        return "evidence of the task itself decides"
    return "only evidence of its in-context answer decides (too few demonstrations to hold one out)"


def _estimate(features: Features) -> float:
    """Heuristic estimate of the probability that the in-context answer is right.

    With stage 1: the mean of leave-one-out accuracy on the demonstrations and of agreement under permutations. Without:
    the mean of accuracy on the later demonstrations while the prompt is read, and of the answer's probability.
    """
    values = features.values
    if features.stage > 0 and values["loo_possible"]:
        return (values["loo_hits"] + values["orders_hits"]) / 2
    return (values["reading_hits_late"] + float(np.exp(values["answer_total"]))) / 2


def _evidence(features: Features) -> str:
    """The measurements behind the heuristic estimate, which is calibrated on no model and therefore not shown."""
    values = features.values
    if features.stage > 0 and values["loo_possible"]:
        return (
            f"leave-one-out accuracy on the demonstrations {values['loo_hits']:.2f}, agreement of the answers under "
            f"permutations of the demonstrations {values['orders_hits']:.2f}"
        )
    return f"accuracy on the later demonstrations while the prompt is read {values['reading_hits_late']:.2f}"


def _untrained_decision(choice: str, reason: str, features: Features) -> Decision:
    """A decision for which only the in-context answer has an estimated probability."""
    probability = _estimate(features)
    return Decision(
        strategy=choice, difficulty=1 - probability, scores={BASE: probability}, costs={}, utilities={}, reason=reason,
        stage=features.stage,
    )  # fmt: skip


def _judgement(estimates: Decision) -> str:
    """Whether the in-context answer is right, with the estimate."""
    likely = "likely wrong" if estimates.difficulty >= 0.5 else "likely right"
    return f"the in-context answer is {likely} (difficulty {told_apart(estimates.difficulty, 0.5, 2)[0]})"


def _reason(choice: str, estimates: Decision, known: Sequence[str]) -> str:
    """Why a strategy was chosen among the known ones, with the estimates."""
    start = _judgement(estimates)
    scores, costs, utilities = estimates.scores, estimates.costs, estimates.utilities
    if choice == BASE:
        others = [s for s in known if s != BASE]
        if not others:
            return f"{start}; no other strategy can be used"
        best = max(others, key=lambda s: utilities[s])
        estimate = f"right with probability {scores[best]:.2f}, cost {costs[best]:.0f}x"
        lead = utilities[BASE] - utilities[best]
        kept = "kept all the same: " if estimates.difficulty >= 0.5 and lead >= 0 else ""
        if scores[best] <= scores[BASE]:
            second = f"the second, {best} ({estimate}), is no likelier to be right"
            return f"{start}; {kept}no other strategy is worth its cost; {second}"
        return f"{start}; {kept}{best} ({estimate}) is not worth its cost"
    gain = utilities[choice] - utilities[BASE]
    estimate = f"right with probability {scores[choice]:.2f} at cost {costs[choice]:.0f}x"
    return f"{start}; {choice} is {estimate}: gain in utility over {BASE} {signed_text(gain, 2)}"
