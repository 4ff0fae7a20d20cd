"""What flows through the graph: plain data only, so that it can be checkpointed, streamed and logged.

The model and the policy are not in it; they travel in the `Context`.
"""

from __future__ import annotations

import operator
import threading
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal, TypedDict

from ..policies.policy import Policy
from ..strategies.base import Attempt, Candidate, Cost
from ..ttt_core.errors import Cancelled
from ..ttt_core.learner import Learner
from ..ttt_core.lora.cross_validation import CrossValidationResult
from ..ttt_core.lora.training import TrainingRecord
from ..ttt_core.tasks.task import Demonstration, Task
from .budget import UNLIMITED, Budget

Plain = dict[str, Any]


class State(TypedDict, total=False):
    """The graph's state. `task` is the input; the rest is filled on the way."""

    task: Plain
    seed: int
    started: float
    """Time of `time.monotonic` when measuring began."""
    features: Plain
    """`stage` and `values`."""
    in_context: Plain
    """The in-context attempt, which measuring gives for nothing."""
    in_context_tokens: int
    """Tokens that answering in context takes, had nothing of the prompt been read before."""
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
    """Set from another thread, no node begins any more, and training stops before its next step."""
    closed: threading.Event = field(default_factory=threading.Event)
    """The same, set by whoever runs the graph once nobody waits for the answer any more."""

    def raise_if_cancelled(self) -> None:
        """Raises `Cancelled` once `cancel` or `closed` is set."""
        if self.cancel.is_set() or self.closed.is_set():
            raise Cancelled("cancelled by the caller; this task has no answer")


Action = Literal["accept", "escalate", "fall_back"]


@dataclass(frozen=True)
class Verdict:
    """What `judge` makes of an attempt."""

    action: Action
    reason: str


def task_to_plain(task: Task) -> Plain:
    """The task as plain data."""
    return asdict(task)


def task_from_plain(plain: Plain | Task) -> Task:
    """The task again, also after JSON or msgpack made lists of its tuples. A `Task` is given back as it is."""
    if isinstance(plain, Task):
        return plain
    values = {f.name: plain[f.name] for f in fields(Task) if f.name in plain}
    values["demonstrations"] = tuple(
        Demonstration(_frozen(d["input"]), _frozen(d["output"])) for d in plain["demonstrations"]
    )
    values["query"] = _frozen(plain["query"])
    values["answer"] = _frozen(plain.get("answer"))
    return Task(**values)


def attempt_from_plain(plain: Plain) -> Attempt:
    """The attempt again."""
    values = {f.name: plain[f.name] for f in fields(Attempt)}
    values["value"] = _frozen(plain["value"])
    values["candidates"] = tuple(Candidate(_frozen(c["value"]), c["share"]) for c in plain["candidates"])
    values["training_record"] = (
        TrainingRecord(**{**plain["training_record"], "losses": tuple(plain["training_record"]["losses"])})
        if plain["training_record"]
        else None
    )
    if plain["cross_validation"]:
        values["cross_validation"] = CrossValidationResult(
            **{k: _frozen(v) for k, v in plain["cross_validation"].items()}
        )
    values["cost"] = Cost(**plain["cost"])
    return Attempt(**values)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, (list, tuple)) else value
