"""What a solved task comes back as. Knows nothing about how it was solved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from html import escape
from typing import Any, Literal

from ..policies.features import FEATURES_VERSION
from ..policies.versions import LOG_VERSION
from ..strategies.base import Attempt, Cost
from ..ttt_core.errors import TaskError
from ..ttt_core.lora.training import TrainingRecord
from ..ttt_core.model.fingerprint import RevertProof
from ..ttt_core.standard_json import finite_or_none
from ..ttt_core.tasks.answers import is_right
from ..ttt_core.tasks.html import value_html
from ..ttt_core.tasks.task import Task, Value, as_tuples
from .caller import trace_id_of
from .plain_tasks import task_from_plain
from .state import Progress, State, attempt_from_plain, number, record_from_plain


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
    """Name of the prompt format; `auto` where it is chosen for each task. See `load_model`."""
    format_choice: Mapping[str, Any] = field(default_factory=dict)
    """`name` of the prompt format of this task, `scores` of the formats that were compared (mean log-probability of the
    demonstrations' answers, in nats), `margin` to the second best, and `reason` where none were compared."""
    trace_id: str = ""
    """Identifies the stored trace of this run; empty where none was recorded."""
    decision: Mapping[str, Any] = field(default_factory=dict)
    """The first decision whole (see `policies.policy.Decision`); empty for a task that could not be tried."""

    @property
    def right(self) -> bool | None:
        """Whether the answer is the task's; None where that is not known."""
        return None if self.task.answer is None else is_right(self.task, self.answer)

    @property
    def in_context_answer(self) -> Value | None:
        """The answer of the unadapted model; None where it could not be parsed."""
        return None if self.in_context is None else self.in_context.value

    @property
    def adapted(self) -> bool:
        """Whether an adapter was trained or used on the way."""
        return any(a.training_record is not None for a in self.attempts)

    def _repr_html_(self) -> str:
        """What a notebook shows: the decision, the answers before and after, and the proof."""
        answers = {"in context": self.in_context_answer, self.strategy or self.status: self.answer}
        cells = "".join(
            f"<tr><th>{escape(name)}</th><td>{value_html(self.task.kind, value)}</td></tr>"
            for name, value in answers.items()
        )
        right = {True: "right", False: "wrong", None: ""}[self.right]
        proof = f"weights proven unchanged ({self.proof.tensors} tensors)" if self.proof else ""
        facts = "; ".join(part for part in (f"{self.cost.seconds:.2f} s", right, proof) if part)
        reason = escape(self.reason or self.error)
        head = f"<p><b>{escape(self.strategy or self.status)}</b>: {reason}</p>"
        return f"<div>{head}<table>{cells}</table><p>{facts}</p></div>"

    def to_plain(self, *, content: bool = False) -> dict[str, Any]:
        """The result as JSON can hold it, also for a log that a policy is trained on: `autottt retrain`. A number that
        is not finite, which a model with NaN in its weights gives, is None.

        `content` includes the task's demonstrations, query and texts, which `from_plain` needs; a log without it has
        only the task's digest.
        """
        plain = asdict(self)
        names = (
            [f.name for f in fields(Task)]
            if content
            else ["dataset", "family", "group", "kind", "answer", "comparison"]
        )
        task = {name: plain["task"][name] for name in names}
        plain |= {"task": task | {"digest": self.task.digest}, "features_version": FEATURES_VERSION}
        plain["log_version"] = LOG_VERSION
        plain = {"id": self.task.id, **plain, "right": self.right, "adapted": self.adapted}
        return {name: finite_or_none(value) for name, value in plain.items()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Result:
        """The result that `to_plain(content=True)` made, also after JSON or msgpack turned its tuples into lists.
        Raises `TaskError` for one without the task's content.
        """
        task = {name: value for name, value in plain["task"].items() if name != "digest"}
        if "demonstrations" not in task:
            raise TaskError("this result has no content of its task; write it with to_plain(content=True)")
        values = {f.name: plain[f.name] for f in fields(cls) if f.name != "trace_id" or "trace_id" in plain}
        return cls(**{**values, "task": task_from_plain(task)})

    def __post_init__(self) -> None:
        """Restores dataclasses and tuples, which serializers such as LangGraph's turn into mappings and lists."""
        restored = {
            "features": {name: number(value) for name, value in self.features.items()},
            "scores": {name: number(value) for name, value in self.scores.items()},
            "difficulty": number(self.difficulty),
            "relative_seconds": number(self.relative_seconds),
            "answer": as_tuples(self.answer),
            "in_context": None if self.in_context is None else attempt_from_plain(_plain(self.in_context)),
            "attempts": tuple(attempt_from_plain(_plain(attempt)) for attempt in self.attempts),
            "adaptation": None if self.adaptation is None else record_from_plain(_plain(self.adaptation)),
            "cost": Cost(**_plain(self.cost)),
            "proof": None if self.proof is None else RevertProof(**_plain(self.proof)),
            "trace": tuple(self.trace),
        }
        for name, value in restored.items():
            object.__setattr__(self, name, value)


def _plain(value: Any) -> Mapping[str, Any]:
    """The fields of a dataclass; a mapping as it is."""
    return value if isinstance(value, Mapping) else asdict(value)


def result_of(task: Task, state: State) -> Result:
    """The result of a finished run of the graph."""
    progress = Progress.of(state)
    last, decision, verdict = progress.attempts[-1], progress.decision, progress.verdict
    assert decision is not None
    assert verdict is not None
    problem = "" if last.status == "answered" or verdict.reason in decision.reason else f"; {verdict.reason}"
    return Result(
        task=task,
        status="answered" if last.value is not None else "no_answer",
        answer=last.value,
        text=last.text,
        strategy=last.strategy,
        reason=decision.reason + problem,
        difficulty=decision.difficulty,
        scores=decision.scores,
        features=progress.features.values,
        in_context=progress.in_context,
        attempts=progress.attempts,
        adaptation=last.training_record,
        cost=Cost(**state["cost"]),
        relative_seconds=state["cost"]["seconds"] / max(progress.in_context.cost.seconds, 1e-9),
        proof=RevertProof(**state["proof"]),
        trace=tuple(state["trace"]),
        error=last.error,
        seed=progress.query.seed,
        in_context_tokens=state["in_context_tokens"],
        trace_id=state.get("trace_id", ""),
        prompt_format=state["prompt_format"],
        format_choice=state["format_choice"],
        decision=_first_decision(state),
    )


def _first_decision(state: State) -> Mapping[str, Any]:
    """The first decision of a run: that of the state where no other followed, since a host may have replaced it."""
    decisions: list[Mapping[str, Any]] = [event["decision"] for event in state["trace"] if "decision" in event]
    return decisions[0] if len(decisions) > 1 else state["decision"]


def output_of(state: State) -> State:
    """The output of a run of the graph, once every other key of its state is there."""
    result = result_of(task_from_plain(state["task"]), state)
    return {"answer": result.answer, "result": result.to_plain(content=True)}


def refused(task: Task, error: Exception, proof: RevertProof | None, seed: int) -> Result:
    """The result of a task that could not be tried."""
    return Result(
        task=task, status="refused", answer=None, text="", strategy="", reason="", difficulty=0.0, scores={},
        features={}, in_context=None, attempts=(), adaptation=None, cost=Cost(), relative_seconds=0.0, proof=proof,
        trace=(), error=str(error), seed=seed, trace_id=trace_id_of(error),
    )  # fmt: skip
