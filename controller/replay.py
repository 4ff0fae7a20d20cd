"""Replays a stored run: solves its task again with the same seed, and names every difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..policies.calibration import Calibration
from ..policies.exploration import without_exploration
from ..policies.features import Features
from ..policies.policy import AnyModelPolicy, Decision, FixedPolicy, Policy, was_forced
from ..ttt_core.engine.guarded_model import StepLimit
from ..ttt_core.errors import TraceError
from .budget import UNLIMITED, Budget
from .controller import Controller
from .results import Result
from .run_facts import RunFacts, policy_digest
from .tracing.comparison import Difference, compare
from .tracing.recorder import TraceRecorder
from .tracing.trace import Trace, find_spans


@dataclass(frozen=True)
class Replay:
    """A run that was repeated."""

    result: Result
    trace: Trace
    """Of the repetition. It is not stored."""
    differences: tuple[Difference, ...]
    """From the stored run to the repetition."""

    @property
    def is_identical(self) -> bool:
        """Whether nothing differs, except for times."""
        return not self.differences

    @property
    def has_same_answers(self) -> bool:
        """Whether all differences are roundings."""
        return all(difference.within_tolerance for difference in self.differences)


def replay(
    controller: Controller,
    trace: Trace,
    *,
    strategy: str | None = None,
    budget: Budget | str | float | None = None,
    other_policy: bool = False,
) -> Replay:
    """Solves the task of a trace again with its seed.

    Without further arguments the decisions of the run are repeated: where time was limited, they might else depend on
    the load of the machine. `strategy` and `budget` ask what would happen with another one; `other_policy` says that
    the controller's policy is meant to differ. A training that a deadline stopped is trained again and stops after the
    same step, unless `budget` sets another limit; other cached adapters are used, so `controller.learner.clear()` first
    for a training from the start.

    Raises `TraceError` for a trace without content, and where the model or the policy is not that of the run.
    """
    task = trace.task
    what_if = strategy is not None or budget is not None or other_policy
    forced = trace.attributes["policy"].get("strategy")
    _refuse_other(trace, controller, ask_policy=not what_if and not forced)
    policy: Policy = FixedPolicy(strategy) if strategy is not None else without_exploration(controller.policy)
    if strategy is None and not other_policy and forced and not _has_policy(controller, trace):
        policy = FixedPolicy(forced)
    if trace.decisions and isinstance(policy, AnyModelPolicy) and trace.decisions[0].get("calibration"):
        policy = policy.with_calibration(Calibration.from_plain(trace.decisions[0]["calibration"]))
    limit: Budget | str | float = budget if budget is not None else UNLIMITED
    if not what_if:
        policy = _RepeatedPolicy(policy, trace.decisions, [verdict["action"] for verdict in trace.verdicts])
    collected = _Collected()
    repeated = Controller(controller.learner, policy, trace=TraceRecorder([collected]))
    limits = step_limits(trace) if budget is None else {}
    context = replace(repeated.context(limit), step_limits=limits, adapters=trace.adapter_costs)
    result = repeated.solve_with(context, task, seed=trace.attributes["seed"])
    differences = compare(trace, collected.traces[0])
    not_repeated = ("policy served",) if what_if else _NOT_REPEATED
    differences = [d for d in differences if d.name not in not_repeated]
    return Replay(result, collected.traces[0], tuple(differences))


def step_limits(trace: Trace) -> dict[str, StepLimit]:
    """By strategy: where a deadline stopped its training."""
    limits = {}
    for span in find_spans(trace.root, "adapter"):
        record = span["attributes"].get("training", {})
        if record.get("stop_reason") == "deadline":
            evaluated = [evaluation["attributes"]["step"] for evaluation in find_spans(span, "evaluate")]
            limit = StepLimit(record["steps"], evaluated[-1:] == [record["steps"]])
            limits[str(span["attributes"]["strategy"])] = limit
    return limits


def _has_policy(controller: Controller, trace: Trace) -> bool:
    """Whether the policy of a controller is that of a run."""
    return policy_digest(controller.policy) == str(trace.attributes["policy"]["digest"])


def _refuse_other(trace: Trace, controller: Controller, *, ask_policy: bool) -> None:
    """Raises `TraceError` where the model, or the policy if `ask_policy`, is not that of the run."""
    facts = RunFacts.of(controller.learner, controller.policy)
    model, policy = trace.attributes["model"], trace.attributes["policy"]
    if model["hash"] != facts.model["hash"]:
        raise TraceError(
            f"trace {trace.id} is of the model {model['name']} ({model['hash'][:12]}); this one is "
            f"{facts.model['name']} ({facts.model['hash'][:12]}): name the model of the run with --model"
        )
    if ask_policy and policy["digest"] != facts.policy["digest"]:
        raise TraceError(
            f"trace {trace.id} was decided by the policy {policy['name']} ({policy['digest']}); this one is "
            f"{facts.policy['name']} ({facts.policy['digest']}): load that policy, or ask what this one would do with "
            "--policy, or what a strategy would do with --strategy"
        )


_NOT_REPEATED = ("budget", "policy served", "policy strategy")
"""What a repetition is not given: the time limit, and what is explored; the decisions that they led to are."""
_FOR_THE_RECORD = ("propensity", "policy_choice", "shadow", "shadow_had_features")
"""What exploration and a shadow policy add to a decision."""


@dataclass(frozen=True)
class _RepeatedPolicy:
    """A policy whose estimates are made again, and whose choices are those of a stored run."""

    policy: Policy
    decisions: Sequence[Mapping[str, Any]]
    actions: Sequence[str]
    """Of the verdict on each attempt: only after `escalate` another strategy was tried."""

    @property
    def name(self) -> str:
        return self.policy.name

    def needs_more(self, features: Features) -> bool:
        return bool(self.decisions) and self.decisions[0]["stage"] > features.stage

    def decide(self, features: Features, allowed: Sequence[str], *, tried: Sequence[str] = ()) -> Decision:
        decision = self.policy.decide(features, allowed, tried=tried)
        stored = self.decisions[len(tried)] if len(tried) < len(self.decisions) else None
        if stored is None or stored["strategy"] not in allowed:
            return decision
        escalated = self.actions[len(tried) : len(tried) + 1] == ["escalate"]
        decision = replace(decision, exclusive=decision.exclusive or not escalated, forced=was_forced(stored))
        decision = replace(decision, **{name: stored[name] for name in _FOR_THE_RECORD if name in stored})
        if stored["strategy"] == decision.strategy and not decision.policy_choice:
            return decision
        return replace(decision, strategy=stored["strategy"], reason=stored["reason"])

    def card(self) -> Mapping[str, Any]:
        return self.policy.card()


class _Collected:
    """A target that keeps traces in memory."""

    def __init__(self) -> None:
        self.traces: list[Trace] = []

    def write(self, trace: Trace) -> None:
        """Keeps the trace as it is read from a store."""
        self.traces.append(trace.as_stored())
