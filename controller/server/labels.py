"""Labels of answers: whether an answer was right, as clients report afterwards, stored with the trace of its run.

Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ...ttt_core.tasks.answers import canonical_output, same_answer
from ...ttt_core.tasks.kinds import KINDS
from .api_errors import ApiError, trace_not_found
from .metrics import Metrics
from .schemas import FeedbackRequest

if TYPE_CHECKING:
    from ..controller import Controller
    from ..results import Result

MAX_ANSWERS = 1024
"""Answers that are remembered, so that a right answer can be compared with them."""


@runtime_checkable
class Labeller(Protocol):
    """A recorder whose traces can be labelled."""

    def label(self, trace_id: str, label: Mapping[str, Any]) -> bool:
        """Adds a label to a trace, without its answer where the trace has no content; false where there is none."""
        ...


@dataclass(frozen=True)
class _Answers:
    """The answers of one run."""

    kind: str
    comparison: str
    strategy: str
    """Whose answer was given."""
    by_strategy: Mapping[str, Any]

    def labels(self, right_answer: Any) -> dict[str, bool]:
        """Whether the answer of each strategy is right. Raises `TaskError` for a value of another kind."""
        return self._same_as(canonical_output(self.kind, KINDS[self.kind].check(right_answer)))

    def labels_of_given(self, right: bool) -> dict[str, bool]:
        """The same where the answer that was given is right; where it is wrong, of those that equal it."""
        same = self._same_as(self.by_strategy[self.strategy])
        return same if right else {name: False for name, is_same in same.items() if is_same or name == self.strategy}

    def _same_as(self, answer: Any) -> dict[str, bool]:
        return {
            name: value is not None and same_answer(value, answer, self.comparison)
            for name, value in self.by_strategy.items()
        }


class Labels:
    """Compares answers with what clients report, and stores the outcome."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._answers: OrderedDict[str, _Answers] = OrderedDict()
        """By trace id; traces need not contain answers."""

    def remember(self, result: Result) -> None:
        """Keeps the answers of a run that was recorded; of too many, the oldest are dropped."""
        if not result.trace_id or result.in_context is None:
            return
        by_strategy = {attempt.strategy: attempt.value for attempt in (result.in_context, *result.attempts)}
        task = result.task
        self._answers[result.trace_id] = _Answers(task.kind, task.comparison, result.strategy, by_strategy)
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
        strategies: dict[str, bool] = {}
        if feedback.answer is not None:
            if answers is None:
                message = "answer: the answer of this trace is no longer in memory; give right in place of answer"
                raise ApiError(400, message, "answer", "answer_not_in_memory")
            strategies = answers.labels(feedback.answer)
            right = strategies[answers.strategy]
        else:
            right = bool(feedback.right)
            strategies = {} if answers is None else answers.labels_of_given(right)
        label = {"right": right, "strategies": strategies, "answer": feedback.answer}
        if not await asyncio.to_thread(recorder.label, feedback.trace_id, label):
            raise trace_not_found(feedback.trace_id)
        self._metrics.labelled(right)
        return right
