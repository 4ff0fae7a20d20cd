"""What flows through the graph: plain data in the state, so that it can be checkpointed, streamed and logged, and the
typed, frozen views of it that the nodes work with.

The model and the policy are in neither; they travel in the `Context`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import singledispatch
from typing import Any, Literal, NamedTuple, NotRequired, Protocol, runtime_checkable

from typing_extensions import TypedDict

from ..policies.features import AdapterCosts, Features
from ..policies.measurement import Measurement
from ..policies.policy import Decision, Policy
from ..strategies.base import Attempt, Candidate, Cost
from ..ttt_core import clock
from ..ttt_core.engine.guarded_model import StepLimit
from ..ttt_core.errors import Cancelled, StateError, TaskError
from ..ttt_core.learner import Learner
from ..ttt_core.lora.cross_validation import CrossValidationResult
from ..ttt_core.lora.training import TrainingRecord
from ..ttt_core.model.fingerprint import RevertProof
from ..ttt_core.spans import OFF, NoSpan, Span
from ..ttt_core.tasks.fields import check_seed
from ..ttt_core.tasks.task import Task, Value, as_tuples
from .budget import UNLIMITED, Budget
from .plain_tasks import Plain, checked_task, task_from_plain, task_to_plain
from .run_facts import policy_digest


class Queries(NamedTuple):
    """Queries of one call that have the same demonstrations."""

    total: int
    to_come: int
    """From this one on."""


class TaskInput(TypedDict):
    """What the graph is given."""

    task: Task | Plain
    """A task, or its plain form (see `task_to_plain`)."""
    seed: NotRequired[int]
    """0 unless given."""


class TaskOutput(TypedDict, total=False):
    """What the graph gives back. No other key of its state reaches a parent graph."""

    answer: Value | None
    """None where no strategy gave a valid answer."""
    result: Plain
    """Everything about how the answer came to be: `Result.from_plain` reads it."""


class State(TypedDict, total=False):
    """The graph's state as plain data. `task` and `seed` are the input; the nodes add the rest.

    Lists are replaced whole and not added to, so that a sub-graph, a resumed thread and time travel see each entry
    once; the first node sets every key, so that nothing of an earlier run on the same thread remains.
    """

    task: Plain
    seed: int
    features: Plain
    """`stage` and `values`."""
    in_context: Plain
    """The in-context attempt, which measuring yields at no further cost."""
    in_context_tokens: int
    """Tokens of an in-context answer, prompt and answer, where nothing of the prompt is cached."""
    prompt_format: str
    """Name of the prompt format; `auto` where it is chosen for each task."""
    basis: Plain
    """What the numbers in the state were measured with; see `Basis`."""
    format_choice: Plain
    """`name` of the prompt format, `scores` of those compared, `margin` and `reason`."""
    decision: Plain
    """The last one; empty before the first."""
    attempts: list[Plain]
    """Every attempt, in order."""
    verdict: Plain
    """`action` (accept, escalate, fall_back) and `reason`; empty before the first."""
    proof: Plain
    cost: Plain
    """Of all nodes so far."""
    trace: list[Plain]
    """One event per node, in order."""
    trace_id: str
    """Identifies the stored trace of the run; empty where none is recorded."""
    answer: Value | None
    result: Plain


@runtime_checkable
class Recorder(Protocol):
    """Records runs as trees of spans; `tracing.recorder` has one. Its methods raise nothing."""

    def begin(self, context: Context) -> Context:
        """The context of a new run, with the root of its tree."""
        ...

    def finish(self, context: Context, error: BaseException | None = None) -> None:
        """Ends the run of a context, with what it raised, and stores its trace; once."""
        ...


@dataclass(frozen=True)
class Context:
    """What the nodes work with."""

    learner: Learner
    policy: Policy
    budget: Budget = UNLIMITED
    stops: tuple[threading.Event, ...] = ()
    """Once one is set, no further node begins, and training and decoding stop before their next step or token."""
    step_limits: Mapping[str, StepLimit] = field(default_factory=dict)
    """By strategy: where a deadline stopped its training in a run that is repeated."""
    on_event: Callable[[Plain], None] | None = None
    """Receives each training step as it happens, in place of LangGraph's stream writer."""
    on_phase: Callable[[str, float], None] | None = None
    """Receives the name of each node that begins, and `training` and `answering` inside a strategy's node, each with
    the seconds that it is expected to take at most; 0: unknown."""
    recorder: Recorder | None = None
    """Records the run; None: runs are not recorded."""
    root: Span | None = None
    """The root of the run's tree of spans; None before the run begins, or where none is recorded."""
    scope: str = ""
    """Whose adapters the run may reuse, and who may reuse those that it trains; see `AdapterProvider.scoped`."""
    queries: Mapping[str, Queries] = field(default_factory=dict)
    """By the digest of a task; one that is absent has demonstrations of its own."""
    adapters: AdapterCosts | None = None
    """What adapters cost, in a run that is repeated; None: what they cost now."""
    session: str = ""
    """Id of the session that the run belongs to; empty where there is none."""

    def node_span(self, name: str, state: State) -> Span | NoSpan:
        """The span of a node that is entered now. The edge that leads to it is recorded in the root."""
        if self.root is None:
            return OFF
        edges = self.root.attributes.setdefault("edges", [])
        if "task" not in self.root.attributes:
            with suppress(TaskError):  # which the node raises
                self.root.set(task=task_to_plain(checked_task(state.get("task"))), seed=state.get("seed", 0))
        start = "__start__" if "cost" not in state or name == "measure" else "__resume__"
        edges.append([edges[-1][1] if edges else start, name])
        return self.root.child(name, node=name)

    def begin_phase(self, name: str, expected_seconds: float = 0.0) -> None:
        """Reports that a phase begins, and the seconds that it is expected to take at most; 0: unknown."""
        if self.on_phase is not None:
            self.on_phase(name, expected_seconds)

    @property
    def trace_id(self) -> str:
        """Identifies the trace of the run; empty where none is recorded."""
        return "" if self.root is None else str(self.root.attributes["id"])

    def record_result(self, last_node: str, result: Plain) -> None:
        """Adds the output of a finished run to its tree."""
        if self.root is not None:
            self.root.attributes["edges"].append([last_node, "__end__"])
            self.root.set(result=result)

    def raise_if_cancelled(self) -> None:
        """Raises `Cancelled` once one of `stops` is set."""
        if any(event.is_set() for event in self.stops):
            raise Cancelled("cancelled by the caller; this task has no answer")

    def cancelled(self) -> bool:
        """False; raises as `raise_if_cancelled`. For work that has no deadline, see `GuardedModel.stop_when`."""
        self.raise_if_cancelled()
        return False


@dataclass(frozen=True)
class Basis:
    """What the numbers in a state depend on. A run that is continued from a checkpoint has the same."""

    model: str
    """Content hash of the base model, its precision, and the adapter that training starts from."""
    prompt_format: str
    """Of the model; `auto` where it is chosen for each task."""
    policy: str
    """Name of the policy, and the digest of its card."""
    task: str
    """Digest of the task, and its prompt format."""
    seed: int

    @classmethod
    def of(cls, context: Context, query: Query) -> Basis:
        """The basis of a run of a query."""
        learner, policy = context.learner, context.policy
        start = f" from {learner.adapters.starting_digest}" if learner.adapters.starting_digest else ""
        return cls(
            f"{learner.base_hash[:16]} in {learner.guarded.precision}{start}", learner.loaded.prompt_format,
            f"{policy.name} ({policy_digest(policy)})", f"{query.task.digest} {query.task.prompt_format}".strip(),
            query.seed,
        )  # fmt: skip

    def require_same(self, plain: Mapping[str, Any]) -> None:
        """Raises `StateError`, which names what differs, for a state with another basis."""
        for name, value in asdict(self).items():
            if plain.get(name) != value:
                raise StateError(
                    f"this state was measured with the {name.replace('_', ' ')} {plain.get(name)!r}, and the run that "
                    f"continues it has {value!r}: continue from the checkpoint before `measure`, or start again"
                )


Action = Literal["accept", "escalate", "fall_back"]


@dataclass(frozen=True)
class Verdict:
    """What `judge` decides about an attempt."""

    action: Action
    reason: str


# --- what the nodes read ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Query:
    """The input of the graph."""

    task: Task
    seed: int

    @classmethod
    def of(cls, state: State) -> Query:
        return cls(task_from_plain(state["task"]), state.get("seed", 0))

    @classmethod
    def checked(cls, state: State) -> Query:
        """As `of`, where a host may have set the state, as by `update_state`. Raises `TaskError`."""
        return cls(checked_task(state.get("task")), check_seed(state.get("seed", 0)))


@dataclass(frozen=True)
class Progress:
    """Everything that is known once the task has been measured."""

    query: Query
    spent: float
    """Seconds that the nodes before this one took."""
    features: Features
    in_context: Attempt
    decision: Decision | None
    """The last one; None before the first."""
    attempts: tuple[Attempt, ...]
    verdict: Verdict | None
    """On the last attempt; None before the first."""
    began: float = field(default_factory=clock.monotonic)
    """Time of `clock.monotonic` when this node began."""

    @classmethod
    def of(cls, state: State) -> Progress:
        return cls(
            query=Query.of(state),
            spent=state["cost"]["seconds"],
            features=Features(**state["features"]),
            in_context=attempt_from_plain(state["in_context"]),
            decision=Decision(**state["decision"]) if state["decision"] else None,
            attempts=tuple(attempt_from_plain(attempt) for attempt in state["attempts"]),
            verdict=Verdict(**state["verdict"]) if state["verdict"] else None,
        )

    def seconds_left(self, budget: Budget) -> float:
        """What is left of a budget now. Time between nodes, such as an interrupt, is not counted."""
        spent = self.spent + clock.monotonic() - self.began
        return budget.total(self.in_context.cost.seconds) - spent


# --- what the nodes return -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What `measure` returns."""

    query: Query
    measurement: Measurement
    prompt_format: str
    """Name of the prompt format; `auto` where it is chosen for each task."""
    basis: Basis


@dataclass(frozen=True)
class StrategyRun:
    """What a strategy's node returns."""

    attempts: tuple[Attempt, ...]
    """Those before, and this one."""
    steps: tuple[Plain, ...] = ()
    """The training steps, as they were streamed."""


@singledispatch
def to_update(result: object) -> State:
    """The keys of the state that a node's result sets. Raises `TypeError` for what no node returns."""
    raise TypeError(f"no node returns a {type(result).__name__}")


@to_update.register
def _(result: Measured) -> State:
    measurement = result.measurement
    choice = measurement.format_choice
    return {
        "task": task_to_plain(result.query.task),
        "seed": result.query.seed,
        "features": asdict(measurement.features),
        "in_context": asdict(measurement.in_context),
        "in_context_tokens": measurement.in_context_tokens,
        "prompt_format": result.prompt_format,
        "basis": asdict(result.basis),
        "format_choice": {**asdict(choice), "margin": choice.margin},
        "decision": {},
        "attempts": [],
        "verdict": {},
        "proof": {},
        "answer": None,
        "result": {},
    }


@to_update.register
def _(result: Decision) -> State:
    return {"decision": asdict(result)}


@to_update.register
def _(result: StrategyRun) -> State:
    return {"attempts": [asdict(attempt) for attempt in result.attempts]}


@to_update.register
def _(result: Verdict) -> State:
    return {"verdict": asdict(result)}


@to_update.register
def _(result: RevertProof) -> State:
    return {"proof": asdict(result)}


# --- plain data and back ---------------------------------------------------------------------------------------------


def attempt_from_plain(plain: Mapping[str, Any]) -> Attempt:
    """The attempt, also after JSON or msgpack turned its tuples into lists."""
    record, result = plain["training_record"], plain["cross_validation"]
    restored = {
        "value": as_tuples(plain["value"]),
        "confidence": number(plain["confidence"]),
        "candidates": tuple(Candidate(as_tuples(c["value"]), number(c["share"])) for c in plain["candidates"]),
        "training_record": record_from_plain(record) if record else None,
        "cross_validation": cross_validation_from_plain(result) if result else None,
        "cost": Cost(**plain["cost"]),
    }
    return Attempt(**{**plain, **restored})


def cross_validation_from_plain(plain: Mapping[str, Any]) -> CrossValidationResult:
    """The result of cross-validation, also after JSON or msgpack turned its tuples into lists."""
    numbers = {name: tuple(map(number, plain[name])) for name in ("log_prob_before", "log_prob_after")}
    return CrossValidationResult(**{name: as_tuples(value) for name, value in plain.items()} | numbers)


def number(value: float | None) -> float:
    """The number that a result had before it was JSON, where None stands for one that is not finite."""
    return math.nan if value is None else value


def record_from_plain(plain: Mapping[str, Any]) -> TrainingRecord:
    """The training record, also after JSON or msgpack turned its tuples into lists."""
    return TrainingRecord(**{name: as_tuples(value) for name, value in plain.items()})
