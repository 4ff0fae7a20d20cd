"""The nodes of the graph: measure, decide, one per strategy, judge, revert. Knows no edges; see `graph`.

No adapted weights outlive a node: a strategy adapts, answers and lets go inside its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import wraps
from typing import NamedTuple, Protocol

from langgraph.runtime import Runtime

from ..policies.acceptance import MAX_ATTEMPTS, rejects_adapter
from ..policies.features import Features, free_features, probe_features
from ..policies.policy import OUTSIDE_GUARANTEE, Decision, Policy
from ..strategies.adapter_plan import has_adapter
from ..strategies.base import Attempt, Cost, Strategy, from_answer, run, strategies
from ..ttt_core.learner import Learner
from ..ttt_core.tasks.task import Task
from .budget import UNLIMITED, Budget
from .state import Context, Plain, State, Verdict, attempt_from_plain, task_from_plain


class Node(Protocol):
    """What the graph calls; it returns the keys of the state that it changes."""

    def __call__(self, state: State, runtime: Runtime[Context]) -> State: ...


def traced(name: str) -> Callable[[Node], Node]:
    """Adds the node's name, start and length to the trace, with what it returned said in short."""

    def decorate(node: Node) -> Node:
        @wraps(node)
        def timed(state: State, runtime: Runtime[Context]) -> State:
            began = time.monotonic()
            runtime.context.raise_if_cancelled()
            found = node(state, runtime)
            event = {
                "node": name,
                "at": round(began - found.get("started", state.get("started", began)), 6),
                "seconds": round(time.monotonic() - began, 6),
                "events": found.pop("trace", []),
                **_shown(found),
            }
            return {**found, "trace": [event]}

        return timed

    return decorate


def _shown(update: State) -> Plain:
    """What an event of the trace says of a node's result."""
    shown: Plain = {k: v for k, v in update.items() if k in ("decision", "verdict", "proof")}
    if "features" in update:
        shown["stage"] = update["features"]["stage"]
    for attempt in update.get("attempts", []):
        shown |= {k: attempt[k] for k in ("strategy", "text", "confidence", "error", "cost")}
    return shown


@traced("measure")
def measure(state: State, runtime: Runtime[Context]) -> State:
    """Reads the prompt and answers in context; probes further while the policy says that it could change the choice."""
    started = time.monotonic()
    context = runtime.context
    found = measured(
        context.learner, context.policy, task_from_plain(state["task"]), state.get("seed", 0), context.budget
    )
    return {
        "started": started, "features": asdict(found.features), "in_context": asdict(found.attempt), "in_context_tokens": found.in_context_tokens,
        "prompt_format": context.learner.loaded.format.name,
    }  # fmt: skip


class Measured(NamedTuple):
    """What is known of a task before anything is decided."""

    attempt: Attempt
    """In context."""
    features: Features
    in_context_tokens: int
    """Tokens that answering in context takes, had nothing of the prompt been read before."""


def measured(learner: Learner, policy: Policy, task: Task, seed: int, budget: Budget = UNLIMITED) -> Measured:
    """Answers in context, and measures until the policy asks for no more or the budget forbids it."""
    started, before = time.monotonic(), learner.work
    learner.clear_scores()  # what measuring costs is part of what is learned from
    reading = learner.read(task)
    answer = learner.answer([task])[0]
    done = learner.work - before
    cost = Cost(time.monotonic() - started, done.forward, done.backward)
    features = Features(0, free_features(task, answer, reading))
    probing = cost.seconds * len(task.demonstrations)  # a prompt for each one left out
    if policy.needs_more(features) and time.monotonic() + probing < started + budget.total(cost.seconds):
        features = Features(1, {**features.values, **probe_features(learner, task, answer, seed)})
    unit = len(learner.encode(task).ids) + len(answer.scores.log_probs)
    return Measured(replace(from_answer("in_context", answer), cost=cost), features, unit)


@traced("decide")
def decide(state: State, runtime: Runtime[Context]) -> State:
    """Asks the policy which strategy to use, among those that the task allows and the budget can pay."""
    verdict = state.get("verdict")
    if verdict and verdict["action"] == "fall_back":
        decision = _asked(state, runtime, ["in_context"], [])
        kept = "" if decision.may_keep else f"; {OUTSIDE_GUARANTEE}"
        decision = replace(decision, strategy="in_context", reason=f"{verdict['reason']}{kept}")
    else:
        decision = _next(state, runtime)
        if verdict:
            decision = replace(decision, reason=f"{verdict['reason']}: {decision.reason}")
    return {"decision": asdict(decision)}


def _next(state: State, runtime: Runtime[Context]) -> Decision:
    """What the policy would try next, of what was not tried."""
    tried = [a["strategy"] for a in state.get("attempts", [])]
    untried = [n for n in possible(task_from_plain(state["task"])) if n not in tried]
    return _affordable(state, runtime, untried, tried)


DEFAULT_RELATIVE_COST = {"read": 1.0, "sample": 5.0, "train": 40.0}
"""Multiples of the in-context cost by cost class, for policies that know no costs."""


def possible(task: Task) -> list[str]:
    """Strategies that the task has enough demonstrations for."""
    return [name for name, s in strategies().items() if s.min_demonstrations <= len(task.demonstrations)]


def _asked(state: State, runtime: Runtime[Context], allowed: list[str], tried: list[str]) -> Decision:
    features = Features(state["features"]["stage"], state["features"]["values"])
    return runtime.context.policy.decide(features, allowed, tried=tried)


def _affordable(state: State, runtime: Runtime[Context], allowed: list[str], tried: list[str]) -> Decision:
    """The policy's best choice among those that what is left of the budget pays: at least half of it where they train,
    since training can stop early, and the answer alone where the adapter is known."""
    in_context, learner = state["in_context"]["cost"]["seconds"], runtime.context.learner
    left = remaining(state, runtime)
    wanted = _asked(state, runtime, allowed, tried)
    if left == math.inf:
        return wanted
    task, seed = task_from_plain(state["task"]), state.get("seed", 0)

    def pays(name: str) -> bool:
        strategy = strategies()[name]
        price = wanted.costs.get(name, DEFAULT_RELATIVE_COST[strategy.cost_class]) * in_context
        if strategy.cost_class == "train":
            known = has_adapter(learner, strategy, task, seed)
            price = answering(strategy, learner, task.kind, in_context) if known else price / 2
        return name == "in_context" or price <= left

    paid = [name for name in allowed if pays(name)] or allowed[:1]
    if paid == allowed:
        return wanted
    decision = _asked(state, runtime, paid, tried)
    if decision.strategy != wanted.strategy:
        note = f"(the budget's remaining {max(0.0, left):.2f} s do not pay for {wanted.strategy})"
        decision = replace(decision, reason=f"{decision.reason} {note}")
    return decision


def remaining(state: State, runtime: Runtime[Context]) -> float:
    """Seconds that are left of the budget."""
    total = runtime.context.budget.total(state["in_context"]["cost"]["seconds"])
    return state["started"] + total - time.monotonic()


def answering(strategy: Strategy, learner: Learner, kind: str, in_context: float) -> float:
    """Seconds to keep for answering once training is over, when the in-context answer took `in_context`: as much for
    every view that votes. Views are answered side by side, so this is rather too much than too little."""
    recipe = getattr(strategy, "recipe", None) or learner.recipe(strategy.name, kind)
    return in_context * recipe.views * getattr(strategy, "folds", 1)


def strategy_node(strategy: Strategy) -> Node:
    """The node of one strategy: adapts, answers and reverts inside."""

    @traced(strategy.name)
    def attempt(state: State, runtime: Runtime[Context]) -> State:
        if strategy.name == "in_context":
            return {"attempts": [{**state["in_context"], "cost": asdict(Cost())}]}
        steps: list[Plain] = []

        def on_step(step: int, loss: float) -> None:
            steps.append({"step": step, "loss": loss})
            runtime.stream_writer({"strategy": strategy.name, **steps[-1]})
            runtime.context.raise_if_cancelled()

        learner, left, task = runtime.context.learner, remaining(state, runtime), task_from_plain(state["task"])
        kept = min(answering(strategy, learner, task.kind, state["in_context"]["cost"]["seconds"]), left / 2)
        ends = time.monotonic() + left

        def over() -> bool:
            runtime.context.raise_if_cancelled()
            return time.monotonic() >= ends

        with learner.stop_when(over):
            found: Attempt = run(
                strategy, learner, task, seed=state.get("seed", 0), deadline=ends - kept, on_step=on_step
            )
        return {"attempts": [asdict(found)], "trace": steps}

    return attempt


@traced("judge")
def judge(state: State, runtime: Runtime[Context]) -> State:
    """Accepts the attempt, or sends it back: to the next strategy within the budget, else to the in-context answer."""
    attempt, in_context = attempt_from_plain(state["attempts"][-1]), attempt_from_plain(state["in_context"])
    left, may_keep = remaining(state, runtime), state["decision"]["may_keep"]
    verdict = judged(
        attempt, len(state["attempts"]), left, in_context, may_keep, lambda: _next(state, runtime).worthwhile
    )
    return {"verdict": asdict(verdict)}


def judged(
    attempt: Attempt, attempts: int, left: float, in_context: Attempt, may_keep: bool = True,
    worthwhile: Callable[[], bool] = lambda: True,
) -> Verdict:  # fmt: skip
    """What to do after an attempt with `left` seconds of the budget, when `attempts` were made. An answer gives way to
    the in-context one only where no promise forbids to keep that (`Decision.may_keep`). `worthwhile` says whether what
    would be tried next is worth its price."""
    found, otherwise = (
        attempt.cross_validation,
        in_context.value not in (None, attempt.value) and attempt.value is not None,
    )
    if found and otherwise and may_keep and rejects_adapter(found.gain, attempt.confidence, in_context.confidence):
        return Verdict(
            "fall_back",
            f"{attempt.strategy} is not borne out: of {len(found.before)} demonstrations held out, {sum(found.after)} "
            f"right after training and {sum(found.before)} before, and {attempt.confidence:.2f} of the votes for its "
            f"answer; back to the in-context answer, of probability {in_context.confidence:.2f}",
        )
    if attempt.status == "answered":
        return Verdict("accept", f"{attempt.strategy} gave an answer that can be read")
    if attempt.strategy == "in_context" and attempts > 1:
        return Verdict("accept", "no strategy gave an answer that can be read")
    what = (
        f"{attempt.strategy} failed ({attempt.error})"
        if attempt.error
        else f"{attempt.strategy}'s answer cannot be read"
    )
    more = left > 0 and attempts < MAX_ATTEMPTS
    if more and worthwhile():
        return Verdict("escalate", f"{what}; trying the next best")
    if attempt.strategy == "in_context" or in_context.value is None:
        return Verdict("accept", f"{what}; nothing {'else is worth its price' if more else 'is left to try'}")
    return Verdict("fall_back", f"{what}; back to the in-context answer")


@traced("revert")
def revert(state: State, runtime: Runtime[Context]) -> State:
    """Proves that the base model is what was loaded; raises `BaseChangedError` if it is not."""
    return {"proof": asdict(runtime.context.learner.verify())}
