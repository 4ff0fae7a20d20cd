"""Labels of answers: whether an answer was right, as clients report afterwards, stored with the trace of its run.

Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ...ttt_core.errors import TaskError, TraceError
from ...ttt_core.tasks.answers import canonical_output, same_answer
from ...ttt_core.tasks.kinds import KINDS
from ..tracing.trace import NoResultError
from .api_errors import ApiError, trace_not_found, trace_store_failed
from .metrics import Metrics
from .schemas import FeedbackRequest, Source

if TYPE_CHECKING:
    from ..controller import Controller
    from ..results import Result
    from ..tracing.trace import Trace

MAX_ANSWERS = 1024
"""Answers that are remembered, so that a right answer can be compared with them."""


@runtime_checkable
class Labeller(Protocol):
    """A recorder whose traces can be labelled."""

    def label(self, trace_id: str, label: Mapping[str, Any]) -> bool:
        """Adds a label to a trace, without its answer where the trace has no content; false where there is none."""
        ...

    def stored(self, trace_id: str) -> Trace | None:
        """The trace of a run; None where no store has it."""
        ...


@dataclass(frozen=True)
class _Answers:
    """The answers of one run."""

    kind: str
    comparison: str
    given: Any
    """The answer that the client received."""
    strategy: str
    """Whose answer that is; empty where the other server gave it."""
    by_strategy: Mapping[str, Any]
    shown: Sequence[Any] = ()
    """The outputs of the task's demonstrations, by which texts are brought into canonical form."""

    is_cut: bool = False
    """Whether the client received the beginning of a text only; the answers are beginnings as well then."""

    def canonical(self, answer: Any) -> Any:
        """The answer of a client as an answer of this task; chats have values as JSON texts. Raises `TaskError` for a
        value of another kind."""
        if self.kind != "text" and isinstance(answer, str):
            with suppress(ValueError, RecursionError):
                answer = json.loads(answer)
        try:
            return canonical_output(self.kind, KINDS[self.kind].check(answer), self.shown)
        except TaskError as error:
            raise TaskError(f"answer: {error}") from None

    def is_given(self, right_answer: Any) -> bool:
        """Whether the client received the right answer, which is canonical."""
        return self._is_same(self.given, right_answer)

    def labels(self, right_answer: Any) -> dict[str, bool]:
        """Whether the answer of each strategy is the right one, which is canonical."""
        return {name: self._is_same(value, right_answer) for name, value in self.by_strategy.items()}

    def labels_of_given(self, right: bool) -> dict[str, bool]:
        """The same where the answer that was given is right; where it is wrong, of those that equal it. Nothing where
        the other server gave it."""
        if not self.strategy:
            return {}
        same = self.labels(self.given)
        return same if right else {name: False for name, is_same in same.items() if is_same or name == self.strategy}

    def _is_same(self, value: Any, answer: Any) -> bool:
        return value is not None and same_answer(value, answer, self.comparison)


class Labels:
    """Compares answers with what clients report, and stores the outcome."""

    def __init__(self, metrics: Metrics, *, has_other_server: bool = False) -> None:
        """With `has_other_server`, an answer that is no longer in memory may have been that of the other server."""
        self._metrics = metrics
        self._has_other_server = has_other_server
        self._answers: OrderedDict[str, _Answers] = OrderedDict()
        """By trace id; traces need not contain answers."""

    def remember(self, result: Result, source: Source | None, cut: Callable[[str], str] | None = None) -> None:
        """Keeps the answers of a run that was recorded, and who gave that of `result`, where texts were cut in the form
        that `cut` leaves; of too many, the oldest are dropped."""
        if not result.trace_id or result.in_context is None:
            return
        by_strategy = {attempt.strategy: attempt.value for attempt in (result.in_context, *result.attempts)}
        task, strategy = result.task, "" if source is not None and source.server else result.strategy
        shown = [d.output for d in task.demonstrations] if task.kind == "text" else ()
        cut = cut if task.kind == "text" else None
        values = {"": result.answer, **by_strategy}
        if cut is not None:
            values = {n: v if v is None else canonical_output("text", cut(str(v)), shown) for n, v in values.items()}
        answers = _Answers(task.kind, task.comparison, values.pop(""), strategy, values, shown, is_cut=cut is not None)
        self._answers[result.trace_id] = answers
        while len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)

    async def store(self, controller: Controller, feedback: FeedbackRequest) -> bool:
        """Stores feedback with the trace and returns whether the answer was right. Raises `ApiError`."""
        if (feedback.answer is None) == (feedback.right is None):
            raise ApiError(400, "answer: expected either answer or right; received both or none", "answer")
        recorder = controller.recorder
        if not isinstance(recorder, Labeller):
            raise ApiError(400, "this server stores no traces, so there is nothing to label", code="no_traces")
        answers = self._answers.get(feedback.trace_id)
        label: dict[str, Any]
        if feedback.answer is None:
            right = bool(feedback.right)
            label = {"right": right, "strategies": {} if answers is None else answers.labels_of_given(right)}
        elif answers is None:
            try:
                trace = await asyncio.to_thread(recorder.stored, feedback.trace_id)
            except TraceError as error:
                raise trace_store_failed(error) from error
            if trace is None:
                raise trace_not_found(feedback.trace_id)
            message = (
                "answer: the answers of this trace are not in memory: its run gave none, or "
                f"{MAX_ANSWERS:,} others came after it; give right in place of answer"
            )
            raise ApiError(400, message, "answer", "answer_not_in_memory")
        else:
            right_answer = answers.canonical(feedback.answer)
            right = answers.is_given(right_answer)
            label = {"right": right, "strategies": answers.labels(right_answer)}
            if not answers.is_cut:
                label["answer"] = right_answer
        if self._has_other_server if answers is None else not answers.strategy:
            label["other_server"] = True
        try:
            if feedback.answer is None:
                label = await asyncio.to_thread(_with_known, label, recorder, feedback.trace_id)
            found = await asyncio.to_thread(recorder.label, feedback.trace_id, label)
        except NoResultError as error:
            raise ApiError(409, f"trace_id: {error}", "trace_id", "no_answer") from error
        except TraceError as error:
            raise trace_store_failed(error) from error
        if not found:
            raise trace_not_found(feedback.trace_id)
        self._metrics.labelled(right)
        return right


def _with_known(label: dict[str, Any], recorder: Labeller, trace_id: str) -> dict[str, Any]:
    """A label without a right answer, with what an earlier one says beyond it where both say the same of the answer."""
    trace = recorder.stored(trace_id)
    known: Mapping[str, Any] = {} if trace is None else trace.label
    if any(known.get(name) != label.get(name) for name in ("right", "other_server")):
        return label
    return {**known, **label, "strategies": {**known.get("strategies", {}), **label["strategies"]}}
