"""The nodes of the graph: measure, decide, one per strategy, judge, revert. Knows no edges; see `graph`.

Adapted weights never outlive a node: a strategy adapts, answers and reverts inside its own. The state is decoded into a
typed view before a node works, and its result is encoded afterwards.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Protocol, TypeVar

from langgraph.runtime import Runtime

from ..policies.adapter_acceptance import MAX_ATTEMPTS, rejects_adapter
from ..policies.calibration import Calibrates
from ..policies.features import AdapterCosts, Features
from ..policies.measurement import measure_task
from ..policies.policy import OUTSIDE_GUARANTEE, Decision, Policy
from ..strategies.adapter_training import adapter_answers, has_adapter
from ..strategies.base import Attempt, Cost, Strategy, answer_count, recipe_for, run
from ..strategies.registry import plugin_proofs, strategies
from ..strategies.voting import strategies_with_cached_views
from ..ttt_core import clock
from ..ttt_core.errors import AutotttError, PolicyError, described, is_interruption, shortened, without_messages
from ..ttt_core.learner import Learner
from ..ttt_core.model.fingerprint import RevertProof
from ..ttt_core.tasks.fields import as_utf8
from ..ttt_core.tasks.task import Task
from .events import CallbackErrors, seconds_per_token, step_facts
from .plain_tasks import Plain
from .results import output_of
from .state import Basis, Context, Measured, Progress, Queries, Query, State, StrategyRun, Verdict, to_update

V = TypeVar("V")
Work = Callable[[V, Runtime[Context]], object]
_LOG = logging.getLogger("autottt")


class Node(Protocol):
    """What the graph calls; it returns the keys of the state that it changes."""

    def __call__(self, state: State, runtime: Runtime[Context]) -> State: ...


def node(
    name: str, view: Callable[[State], V], *, first: bool = False, last: bool = False
) -> Callable[[Work[V]], Node]:
    """Makes a node of a function from a view of the state to a dataclass: decodes, runs, encodes, and adds what the
    node took to the cost and an event with its name, seconds and a summary of its result to the trace.

    The `first` node starts both from nothing; the `last` one adds the output.
    """

    def decorate(work: Work[V]) -> Node:
        def run_node(state: State, runtime: Runtime[Context]) -> State:
            context = _context_of(runtime)
            context.raise_if_cancelled()
            context.begin_phase(name)
            learner = context.learner
            turn = learner.guarded.lock.exclusive(context.raise_if_cancelled)
            own = learner.adapters.scoped(context.scope)
            with turn, own, context.node_span(name, state) as step, plugin_proofs(learner):
                if not first:
                    Basis.of(context, Query.of(state)).require_same(state.get("basis", {}))
                meter = learner.guarded.meter()
                result = work(view(state), runtime)
                taken = meter.read()
                update = to_update(result)
                step.set(cost=asdict(taken), **_recorded(update))
            before = Cost() if first else Cost(**state["cost"])
            event = {
                "node": name,
                "at": round(before.seconds, 6),
                "seconds": round(taken.seconds, 6),
                "events": list(result.steps) if isinstance(result, StrategyRun) else [],
                **_summary(update),
            }
            if first:
                update["trace_id"] = context.trace_id
            update["cost"] = asdict(before + taken)
            update["trace"] = [*(() if first else state["trace"]), event]
            if last:
                update |= output_of({**state, **update})
                context.record_result(name, update["result"])
            return update

        run_node.__doc__ = work.__doc__  # not `wraps`: LangGraph takes the input schema from the wrapped function
        return run_node

    return decorate


def _context_of(runtime: Runtime[Context]) -> Context:
    """What the run was given to work with. Raises `TypeError` where that is nothing, or another program's context."""
    if isinstance(runtime.context, Context):
        return runtime.context
    raise TypeError(
        f"the graph of a controller needs its model and policy; received the context {type(runtime.context).__name__}: "
        "run it with context=controller.context(), or add controller.as_node() to a graph of your own"
    )


def _summary(update: State) -> Plain:
    """What an event of the trace shows of a node's result."""
    summary: Plain = {k: v for k, v in update.items() if k in ("decision", "verdict", "proof") and v}
    if "features" in update:
        summary["stage"] = update["features"]["stage"]
    for attempt in update.get("attempts", [])[-1:]:
        summary |= {k: attempt[k] for k in ("strategy", "text", "confidence", "error", "cost")}
    return summary


def _recorded(update: State) -> Plain:
    """What a span shows of a node's result."""
    names = ("features", "in_context", "format_choice", "decision", "verdict", "proof")
    attributes: Plain = {k: v for k, v in update.items() if k in names and v}
    if update.get("attempts"):
        attributes["attempt"] = update["attempts"][-1]
    return attributes


@node("measure", Query.checked, first=True)
def measure(query: Query, runtime: Runtime[Context]) -> Measured:
    """Reads the prompt and answers in context; probes further while the policy says that it could change the choice
    and the budget pays for it."""
    started, context = clock.monotonic(), runtime.context
    adapters: AdapterCosts = {}

    def wants_probe(features: Features, cost: Cost) -> bool:
        adapters.update(_adapter_costs(context, query, features, cost.forward_tokens))
        features = replace(features, **adapters)
        expected = cost.seconds * len(query.task.demonstrations)  # one prompt for each demonstration left out
        affordable = clock.monotonic() + expected < started + context.budget.total(cost.seconds)
        return context.policy.needs_more(features) and affordable

    with context.learner.guarded.stop_when(context.cancelled):  # the in-context answer is given whatever the budget
        measurement = measure_task(context.learner, query.task, query.seed, wants_probe)
    measurement = replace(measurement, features=replace(measurement.features, **adapters))
    formatted = replace(query, task=context.learner.formats.formatted(query.task))
    return Measured(formatted, measurement, context.learner.loaded.prompt_format, Basis.of(context, formatted))


def _adapter_costs(context: Context, query: Query, features: Features, tokens: int) -> AdapterCosts:
    """What `Features` say of the costs of adapters: nothing where none is cached and no other query would use one.
    `tokens` went through the model for the in-context answer."""
    if context.adapters is not None:
        return context.adapters
    learner, queries = context.learner, context.queries.get(query.task.digest, Queries(1, 1))
    if queries.total == 1 and not learner.adapters.may_have_cached:
        return {}
    among = [strategies()[name] for name in applicable(query.task)]
    formatted = learner.formats.formatted(query.task)
    cached, others = adapter_answers(learner, among, formatted, query.seed)
    if queries.total == 1 and not cached:
        return {}
    prompt = learner.window.encode(formatted)
    alone = len(prompt.ids) + round(math.expm1(features.values["answer_tokens"]))
    if queries.total > 1:
        tokens = round(alone - prompt.shared_prefix_length * (1 - 1 / queries.total))
    sharing = [strategy for strategy in among if queries.total > 1 or strategy.name in cached]
    return {  # without other queries in the call, one of an earlier call may have read the demonstrations
        "cached_adapters": cached, "shared_adapters": others if queries.to_come > 1 else {}, "queries": queries.to_come,
        "reading_share": min(max(tokens, 1), alone) / alone,
        "shared_views": strategies_with_cached_views(learner, sharing, formatted),
    }  # fmt: skip


@node("decide", Progress.of)
def decide(progress: Progress, runtime: Runtime[Context]) -> Decision:
    """Asks the policy which strategy to use, of those that the task allows and the budget pays for."""
    context, verdict = runtime.context, progress.verdict
    if verdict is None and isinstance(context.policy, Calibrates):
        context.policy.observe(progress.features)
    if verdict is not None and verdict.action == "fall_back":
        decision = _ask(context.policy, progress, ["in_context"], [])
        reason = verdict.reason if decision.may_keep else f"{verdict.reason}; {OUTSIDE_GUARANTEE}"
        decision = replace(decision, strategy="in_context", reason=reason)
    else:
        decision = _next_decision(progress, context)
        if verdict is not None:
            decision = replace(decision, reason=f"{verdict.reason}: {decision.reason}")
    _log(logging.INFO, progress, decision.strategy, decision.reason)
    return decision


def _ask(policy: Policy, progress: Progress, allowed: Sequence[str], tried: Sequence[str]) -> Decision:
    """The policy's decision. Raises `PolicyError` where a policy of others raises, or gives what is no decision."""
    try:
        decision = policy.decide(progress.features, allowed, tried=tried)
    except AutotttError:
        raise
    except BaseException as error:
        if is_interruption(error):
            raise
        raise PolicyError(f"the policy {policy.name} failed: {as_utf8(described(error))}") from error
    if not isinstance(decision, Decision):
        raise PolicyError(f"the policy {policy.name}: expected a Decision from decide; received {shortened(decision)}")
    if decision.strategy not in strategies():
        known = ", ".join(strategies())
        raise PolicyError(
            f"the policy {policy.name}: expected a strategy, {known}; received {shortened(decision.strategy)}"
        )
    return decision


def _log(level: int, progress: Progress, what: str, reason: str) -> None:
    """Logs a decision or a verdict. What exceptions of attempts say, which may quote the task, is at DEBUG only."""
    errors = [attempt.error for attempt in progress.attempts]
    _LOG.log(level, "%s: %s: %s", progress.query.task.id, what, without_messages(reason, errors))
    if without_messages(reason, errors) != reason:
        _LOG.debug("%s: %s: %s", progress.query.task.id, what, reason)


DEFAULT_RELATIVE_COST = {"read": 1.0, "sample": 5.0, "train": 40.0}
"""Multiples of the in-context cost by cost class, for policies that predict no costs."""


def applicable(task: Task) -> list[str]:
    """Strategies that the task has enough demonstrations for."""
    return [name for name, s in strategies().items() if s.min_demonstrations <= len(task.demonstrations)]


def _next_decision(progress: Progress, context: Context) -> Decision:
    """The policy's best choice among the strategies that were not tried and that the rest of the budget pays for.

    A strategy that trains needs at least half of its cost, since training can stop early; where its adapter exists,
    the cost of answering is enough.
    """
    tried, untried = [attempt.strategy for attempt in progress.attempts], _untried(progress)
    preferred = _ask(context.policy, progress, untried, tried)
    left = progress.seconds_left(context.budget)
    if left == math.inf:
        return preferred
    affordable = [name for name in untried if _pays(name, preferred, progress, context.learner, left)]
    affordable = affordable or untried[:1]
    if affordable == untried:
        return preferred
    decision = _ask(context.policy, progress, affordable, tried)
    if decision.strategy == preferred.strategy:
        return decision
    note = f"(the budget's remaining {max(0.0, left):.2f} s do not pay for {preferred.strategy})"
    return replace(decision, reason=f"{decision.reason} {note}")


def _untried(progress: Progress) -> list[str]:
    """The strategies that the task allows and that were not tried."""
    tried = [attempt.strategy for attempt in progress.attempts]
    return [name for name in applicable(progress.query.task) if name not in tried]


def _pays(name: str, decision: Decision, progress: Progress, learner: Learner, left: float) -> bool:
    """Whether the seconds that are left pay for a strategy, at the costs that the decision predicts."""
    strategy, query = strategies()[name], progress.query
    in_context = progress.in_context.cost.seconds
    seconds = decision.costs.get(name, DEFAULT_RELATIVE_COST[strategy.cost_class]) * in_context
    if strategy.cost_class == "train":
        if has_adapter(learner, strategy, query.task, query.seed):
            seconds = answering_seconds(strategy, learner, query.task, in_context)
        else:
            seconds /= 2
    return name == "in_context" or seconds <= left


def answering_seconds(strategy: Strategy, learner: Learner, task: Task, in_context_seconds: float) -> float:
    """Seconds to reserve for the answers after training: as long as the in-context answer for each answer that votes.
    Views are answered in one batch, so this is an upper estimate."""
    return in_context_seconds * answer_count(strategy, learner.loaded.recipes, task)


def training_seconds(strategy: Strategy, learner: Learner, progress: Progress, left: float) -> float:
    """Seconds that training may take of those that are left: the rest, at most half, is for the answers."""
    in_context_seconds = progress.in_context.cost.seconds
    return left - min(answering_seconds(strategy, learner, progress.query.task, in_context_seconds), left / 2)


def strategy_node(strategy: Strategy) -> Node:
    """The node of one strategy: adapts, answers and reverts inside."""

    @node(strategy.name, Progress.of)
    def attempt(progress: Progress, runtime: Runtime[Context]) -> StrategyRun:
        if strategy.name == "in_context":
            return StrategyRun((*progress.attempts, replace(progress.in_context, cost=Cost())))
        context, query = runtime.context, progress.query
        steps: list[Plain] = []

        def on_step(step: int, loss: float) -> None:
            steps.append({"step": step, "loss": loss})
            publish(step_facts(strategy.name, step, loss, max_steps, began, ends))
            _LOG.debug("%s: %s, step %d of at most %d: loss %.4f", query.task.id, strategy.name, step, max_steps, loss)
            context.raise_if_cancelled()

        errors = CallbackErrors()
        publish = errors.watch(context.on_event or runtime.stream_writer)
        max_steps = recipe_for(strategy, context.learner.loaded.recipes, query.task.kind).max_steps
        left = progress.seconds_left(context.budget)
        for_training = training_seconds(strategy, context.learner, progress, left)
        now = clock.reader()  # training calls `time_is_up` from threads of its own
        began = now()
        ends = began + left
        guarded, limit = context.learner.guarded, context.step_limits.get(strategy.name)
        charged = guarded.charged.seconds

        def time_is_up() -> bool:
            context.raise_if_cancelled()
            prefetched = guarded.charged.seconds - charged  # of training in a batch with others, before this node
            return now() + min(prefetched, max(0.0, for_training)) >= ends

        def begin_phase(name: str, tokens: int) -> None:
            context.begin_phase(name, tokens * seconds_per_token(progress.in_context.cost))

        phases = guarded.reporting_phases(errors.watch(begin_phase))
        with errors, guarded.stop_when(time_is_up), phases, guarded.limiting_steps(limit):
            finished = run(
                strategy, context.learner, query.task, seed=query.seed, deadline=began + for_training, on_step=on_step
            )
        return StrategyRun((*progress.attempts, finished), tuple(steps))

    return attempt


@node("judge", Progress.of)
def judge(progress: Progress, runtime: Runtime[Context]) -> Verdict:
    """Accepts the attempt, or sends it back: to the next strategy within the budget, else to the in-context answer."""
    context, decision = runtime.context, progress.decision
    verdict = judged(
        progress.attempts[-1], len(progress.attempts), progress.seconds_left(context.budget), progress.in_context,
        may_keep=decision is None or decision.may_keep,
        alternatives=bool(_untried(progress)) and not (decision is not None and decision.exclusive),
        worthwhile=lambda: _next_decision(progress, context).worthwhile,
        forced=decision is not None and decision.forced,
    )  # fmt: skip
    is_usual = verdict.action == "accept" and progress.attempts[-1].status == "answered"
    level = logging.DEBUG if is_usual else logging.INFO
    _log(level, progress, verdict.action, verdict.reason)
    return verdict


def judged(
    attempt: Attempt, attempts: int, left: float, in_context: Attempt, may_keep: bool = True, alternatives: bool = True,
    worthwhile: Callable[[], bool] = lambda: True, forced: bool = False,
) -> Verdict:  # fmt: skip
    """The verdict on an attempt, the last of `attempts`, with `left` seconds of the budget.

    The in-context answer takes its place only where the risk guarantee allows to keep that one (`Decision.may_keep`).
    The answer of an adapter that is less certain than it gives way to it, unless the caller `forced` the strategy.
    `alternatives` says whether a strategy is left that may be tried, `worthwhile` whether the next one is worth its
    cost.
    """
    differs = attempt.value is not None and in_context.value not in (None, attempt.value)
    result, trained = attempt.cross_validation, attempt.training_record is not None
    gain = None if result is None else result.gain
    replaceable = differs and may_keep and (result is not None or (trained and not forced))
    if replaceable and rejects_adapter(gain, attempt.confidence, in_context.confidence):
        return Verdict("fall_back", _less_certain(attempt, in_context))
    if attempt.status == "answered":
        return Verdict("accept", f"{attempt.strategy} gave a valid answer")
    if attempt.strategy == "in_context" and attempts > 1:
        return Verdict("accept", "no strategy gave a valid answer")
    problem = (
        f"{attempt.strategy} failed ({attempt.error})"
        if attempt.error
        else f"the answer of {attempt.strategy} is incomplete or cannot be parsed"
    )
    may_continue = alternatives and left > 0 and attempts < MAX_ATTEMPTS
    if may_continue and worthwhile():
        return Verdict("escalate", f"{problem}; trying the next best strategy")
    if attempt.strategy == "in_context" or in_context.value is None:
        rest = "no other strategy is worth its cost" if may_continue else "no other strategy can be tried"
        return Verdict("accept", f"{problem}; {rest}")
    return Verdict("fall_back", f"{problem}; the in-context answer is the fallback")


def _less_certain(attempt: Attempt, in_context: Attempt) -> str:
    """Why the answer of an attempt is rejected, with the numbers."""
    measure = "vote share" if attempt.candidates else "probability"
    certainty = (
        f"the in-context answer is more certain (probability {in_context.confidence:.2f}, {measure} of the adapted "
        f"answer {attempt.confidence:.2f}); the in-context answer is the fallback"
    )
    if attempt.cross_validation is None:
        return f"{attempt.strategy}: {certainty}"
    result = attempt.cross_validation
    count = len(result.before)
    return (
        f"{attempt.strategy}: cross-validation found no gain (held-out accuracy {sum(result.before)}/{count} "
        f"before training, {sum(result.after)}/{count} after), and {certainty}"
    )


@node("revert", Query.of, last=True)
def revert(query: Query, runtime: Runtime[Context]) -> RevertProof:
    """Proves that the base model is what was loaded; raises `BaseChangedError` if it is not."""
    return runtime.context.learner.verify()
