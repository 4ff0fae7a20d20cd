"""What a solved task comes back as. Knows nothing about how it was solved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..policies.features import FEATURES_VERSION
from ..policies.versions import LOG_VERSION
from ..strategies.base import Attempt, Cost
from ..ttt_core.lora.training import TrainingRecord
from ..ttt_core.model.fingerprint import RevertProof
from ..ttt_core.tasks.task import Task, Value
from .state import Progress, State


@dataclass(frozen=True, kw_only=True)
class Result:
    """An answer, and everything about how it came to be."""

    task: Task
    status: Literal["answered", "no_answer", "refused"]
    """`refused`: the task could not be tried; `error` says why."""
    answer: Value | None
    text: str
    """The answer as the model wrote it."""
    strategy: str
    """The strategy whose answer this is."""
    reason: str
    """Why that way, in words."""
    difficulty: float
    """Estimated chance that the in-context answer is wrong, 0 to 1."""
    scores: Mapping[str, float]
    """Estimated chance of a right answer per strategy."""
    features: Mapping[str, float]
    """What was measured."""
    in_context: Attempt | None
    """The unadapted answer."""
    attempts: tuple[Attempt, ...]
    adaptation: TrainingRecord | None
    """What training did, where the answer is an adapter's."""
    cost: Cost
    """Everything: measuring, attempts, judging, reverting."""
    relative_seconds: float
    """`cost.seconds` over the seconds that the in-context answer took."""
    proof: RevertProof | None
    """That the base model is what was loaded."""
    trace: tuple[Mapping[str, Any], ...]
    """One event per node, in order, with its length in seconds."""
    error: str = ""
    seed: int = 0
    in_context_tokens: int = 0
    """Tokens that answering in context takes, had nothing of the prompt been read before: what costs in tokens are
    multiples of."""
    prompt_format: str = ""
    """How the model was asked; see `load_model`."""
    decision: Mapping[str, Any] = field(default_factory=dict)
    """The first decision whole (see `policies.policy.Decision`); empty for a task that could not be tried."""

    @property
    def right(self) -> bool | None:
        """Whether the answer is the task's; None where that is not known."""
        return None if self.task.answer is None else self.answer == self.task.answer

    @property
    def adapted(self) -> bool:
        """Whether an adapter was trained or used on the way."""
        return any(a.training_record is not None for a in self.attempts)

    def to_plain(self) -> dict[str, Any]:
        """The result as JSON can hold it, also for a log that a policy is trained on again: `autottt retrain`."""
        plain = asdict(self)
        task = {name: plain["task"][name] for name in ("dataset", "family", "group", "kind", "answer")}
        plain |= {"task": task | {"digest": self.task.digest}, "features_version": FEATURES_VERSION}
        plain["log_version"] = LOG_VERSION
        return {"id": self.task.id, **plain, "right": self.right, "adapted": self.adapted}


def result_of(task: Task, state: State, cost: Cost) -> Result:
    """The result of a finished run of the graph, which cost so much in all."""
    progress = Progress.of(state)
    last, decision = progress.attempts[-1], state["decision"]
    return Result(
        task=task,
        status="answered" if last.value is not None else "no_answer",
        answer=last.value,
        text=last.text,
        strategy=last.strategy,
        reason=decision["reason"],
        difficulty=decision["difficulty"],
        scores=decision["scores"],
        features=progress.features.values,
        in_context=progress.in_context,
        attempts=progress.attempts,
        adaptation=last.training_record,
        cost=cost,
        relative_seconds=cost.seconds / max(progress.in_context.cost.seconds, 1e-9),
        proof=RevertProof(**state["proof"]),
        trace=tuple(state["trace"]),
        error=last.error,
        seed=progress.query.seed,
        in_context_tokens=state["in_context_tokens"],
        prompt_format=state["prompt_format"],
        decision=next(event["decision"] for event in state["trace"] if "decision" in event),
    )


def refused(task: Task, error: Exception, proof: RevertProof | None, trace: Sequence[Mapping[str, Any]] = ()) -> Result:
    """The result of a task that could not be tried."""
    return Result(
        task=task, status="refused", answer=None, text="", strategy="", reason="", difficulty=0.0, scores={},
        features={}, in_context=None, attempts=(), adaptation=None, cost=Cost(), relative_seconds=0.0, proof=proof,
        trace=tuple(trace), error=str(error),
    )  # fmt: skip
