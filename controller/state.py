"""What flows through the graph: plain data in the state, so that it can be checkpointed, streamed and logged, and the
typed, frozen views of it that the nodes work with.

The model and the policy are in neither; they travel in the `Context`.
"""

from __future__ import annotations

import operator
import threading
from dataclasses import asdict, dataclass, field, fields
from functools import singledispatch
from typing import Annotated, Any, Literal, TypedDict

from ..policies.features import Features
from ..policies.measurement import Measurement
from ..policies.policy import Decision, Policy
from ..strategies.base import Attempt, Candidate, Cost
from ..ttt_core.errors import Cancelled
from ..ttt_core.learner import Learner
from ..ttt_core.lora.cross_validation import CrossValidationResult
from ..ttt_core.lora.training import TrainingRecord
from ..ttt_core.model.fingerprint import RevertProof
from ..ttt_core.tasks.task import Demonstration, Task
from .budget import UNLIMITED, Budget

Plain = dict[str, Any]


class State(TypedDict, total=False):
    """The graph's state as plain data. `task` and `seed` are the input; the nodes add the rest."""

    task: Plain
    seed: int
    started: float
    """Time of `time.monotonic` when measuring began."""
    features: Plain
    """`stage` and `values`."""
    in_context: Plain
    """The in-context attempt, which measuring yields at no further cost."""
    in_context_tokens: int
    """Tokens of an in-context answer, prompt and answer, where nothing of the prompt is cached."""
    prompt_format: str
    decision: Plain
    attempts: Annotated[list[Plain], operator.add]
    """Every attempt, in order."""
    verdict: Plain
    """`action` (accept, escalate, fall_back) and `reason`."""
    proof: Plain
    trace: Annotated[list[Plain], operator.add]


@dataclass(frozen=True)
class Context:
    """What the nodes work with."""

    learner: Learner
    policy: Policy
    budget: Budget = UNLIMITED
    cancel: threading.Event = field(default_factory=threading.Event)
    """Set by another thread: no further node begins, and training stops before its next step."""
    closed: threading.Event = field(default_factory=threading.Event)
    """The same, set by whoever runs the graph once nobody waits for the answer any more."""

    def raise_if_cancelled(self) -> None:
        """Raises `Cancelled` once `cancel` or `closed` is set."""
        if self.cancel.is_set() or self.closed.is_set():
            raise Cancelled("cancelled by the caller; this task has no answer")


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


@dataclass(frozen=True)
class Progress:
    """Everything that is known once the task has been measured."""

    query: Query
    started: float
    """Time of `time.monotonic` when measuring began."""
    features: Features
    in_context: Attempt
    decision: Decision | None
    """The last one; None before the first."""
    attempts: tuple[Attempt, ...]
    verdict: Verdict | None
    """On the last attempt; None before the first."""

    @classmethod
    def of(cls, state: State) -> Progress:
        return cls(
            query=Query.of(state),
            started=state["started"],
            features=Features(**state["features"]),
            in_context=attempt_from_plain(state["in_context"]),
            decision=Decision(**state["decision"]) if "decision" in state else None,
            attempts=tuple(attempt_from_plain(attempt) for attempt in state.get("attempts", [])),
            verdict=Verdict(**state["verdict"]) if "verdict" in state else None,
        )

    def seconds_left(self, budget: Budget, now: float) -> float:
        """What is left of a budget at a time of `time.monotonic`."""
        return self.started + budget.total(self.in_context.cost.seconds) - now


# --- what the nodes return -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What `measure` returns."""

    measurement: Measurement
    started: float
    prompt_format: str


@dataclass(frozen=True)
class StrategyRun:
    """What a strategy's node returns."""

    attempt: Attempt
    steps: tuple[Plain, ...] = ()
    """The training steps, as they were streamed."""


@singledispatch
def to_update(result: object) -> State:
    """The keys of the state that a node's result sets. Raises `TypeError` for what no node returns."""
    raise TypeError(f"no node returns a {type(result).__name__}")


@to_update.register
def _(result: Measured) -> State:
    measurement = result.measurement
    return {
        "started": result.started,
        "features": asdict(measurement.features),
        "in_context": asdict(measurement.in_context),
        "in_context_tokens": measurement.in_context_tokens,
        "prompt_format": result.prompt_format,
    }


@to_update.register
def _(result: Decision) -> State:
    return {"decision": asdict(result)}


@to_update.register
def _(result: StrategyRun) -> State:
    return {"attempts": [asdict(result.attempt)], "trace": list(result.steps)}


@to_update.register
def _(result: Verdict) -> State:
    return {"verdict": asdict(result)}


@to_update.register
def _(result: RevertProof) -> State:
    return {"proof": asdict(result)}


# --- plain data and back ---------------------------------------------------------------------------------------------


def task_to_plain(task: Task) -> Plain:
    """The task as plain data."""
    return asdict(task)


def task_from_plain(plain: Plain | Task) -> Task:
    """The task, also after JSON or msgpack turned its tuples into lists. A `Task` is returned as it is."""
    if isinstance(plain, Task):
        return plain
    values = {f.name: plain[f.name] for f in fields(Task) if f.name in plain}
    values["demonstrations"] = tuple(
        Demonstration(_as_tuples(d["input"]), _as_tuples(d["output"])) for d in plain["demonstrations"]
    )
    values["query"] = _as_tuples(plain["query"])
    values["answer"] = _as_tuples(plain.get("answer"))
    return Task(**values)


def attempt_from_plain(plain: Plain) -> Attempt:
    """The attempt, also after JSON or msgpack turned its tuples into lists."""
    record, result = plain["training_record"], plain["cross_validation"]
    return Attempt(
        **{
            **plain,
            "value": _as_tuples(plain["value"]),
            "candidates": tuple(Candidate(_as_tuples(c["value"]), c["share"]) for c in plain["candidates"]),
            "training_record": TrainingRecord(**{**record, "losses": tuple(record["losses"])}) if record else None,
            "cross_validation": CrossValidationResult(**{k: _as_tuples(v) for k, v in result.items()})
            if result
            else None,
            "cost": Cost(**plain["cost"]),
        }
    )


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
