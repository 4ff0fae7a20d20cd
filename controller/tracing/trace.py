"""A trace: the record of one run, as plain data and as its readers use it. Knows nothing about where it is stored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from ...policies.features import AdapterCosts
from ...policies.outcomes import BASE
from ...ttt_core.errors import TooLongError, TraceError
from ...ttt_core.spans import Span
from ...ttt_core.standard_json import dumps
from ...ttt_core.tasks.answers import is_right
from ...ttt_core.tasks.task import Task, as_tuples
from ..plain_tasks import task_from_plain

TRACE_VERSION = 1
"""Version of the plain form."""
Plain = dict[str, Any]
SpanPlain = Mapping[str, Any]


def span_to_plain(span: Span, began: float) -> Plain:
    """A span with its children as JSON can hold them; `at` is in seconds after `began`."""
    plain: Plain = {"name": span.name, "at": round(span.began - began, 6)}
    plain["seconds"] = None if span.seconds is None else round(span.seconds, 6)
    plain["status"] = span.status if span.seconds is not None else "unfinished"
    for name in ("error", "attributes", "events", "dropped"):
        if value := getattr(span, name):
            plain[name] = value
    if span.children:
        plain["children"] = [span_to_plain(child, began) for child in span.children]
    return plain


class NoResultError(TraceError):
    """A run ended without a result, so that there is no answer to label."""


@dataclass(frozen=True)
class Trace:
    """The record of one run."""

    plain: Plain
    """`version`, `id`, `time` (ISO 8601), `content` (whether it contains the task and the answers), and `root`: the
    tree of spans, each with `name`, `at` and `seconds`, `status`, and where there are any `error`, `attributes`,
    `events` and `children`."""

    @classmethod
    def of(cls, root: Span) -> Trace:
        """The trace of a finished run, with all content."""
        attributes = root.attributes
        tree = span_to_plain(root, root.began)
        head = {"version": TRACE_VERSION, "id": attributes["id"], "time": attributes["time"], "content": True}
        return cls({**head, "root": tree})

    def as_stored(self) -> Trace:
        """The trace as it is read from a store: tuples as lists, and numbers that are not finite as None."""
        return Trace(json.loads(dumps(self.plain, default=str)))

    @property
    def id(self) -> str:
        return str(self.plain["id"])

    @property
    def time(self) -> str:
        """When the run began, in ISO 8601."""
        return str(self.plain["time"])

    @property
    def has_content(self) -> bool:
        """Whether the trace contains the task, prompts and answers."""
        return bool(self.plain["content"])

    @property
    def root(self) -> SpanPlain:
        root: SpanPlain = self.plain["root"]
        return root

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Those of the root."""
        attributes: Mapping[str, Any] = self.root.get("attributes", {})
        return attributes

    @property
    def result(self) -> Mapping[str, Any]:
        """The result of the run as `Result.to_plain` writes it; empty for a run that did not reach its end."""
        result: Mapping[str, Any] = self.attributes.get("result", {})
        return result

    @property
    def task(self) -> Task:
        """The task. Raises `TraceError` for a trace without content."""
        self.require_content("the task")
        if "task" not in self.attributes:
            raise TraceError(f"trace {self.id}: the run ended before it received a task")
        return task_from_plain(self.attributes["task"])

    @property
    def task_facts(self) -> Mapping[str, Any]:
        """What is stored of the task: all of it, or without content its id, kind, family and sizes."""
        facts: Mapping[str, Any] = self.attributes.get("task", {})
        return facts

    @property
    def label(self) -> Mapping[str, Any]:
        """What was known of the answer afterwards: `right` (whether it was), `strategies` (whether the answer of each
        was), `other_server` where the answer was, or may have been, that of another server and not that of this run,
        and, in a trace with content, `answer` (the right one); empty where nothing was reported."""
        label: Mapping[str, Any] = self.plain.get("label", {})
        return label

    @property
    def is_right(self) -> bool | None:
        """Whether the answer is right, as the label says, else by the task's own answer; None where neither tells."""
        right: bool | None = self.label.get("right", self.result.get("right"))
        return right if self.result else None

    @property
    def right_answer(self) -> Any:
        """The right answer as decoded JSON: that which the label tells, else that of the task unless the label says
        otherwise of an answer; None where it is unknown."""
        if (answer := self.label.get("answer")) is not None:
            return answer
        own = self.task_facts.get("answer")
        if not self.has_content or not self.result:
            return own
        of_other_server = self.label.get("other_server") and self.result["strategy"] == BASE  # it answers in context
        if self.label.get("right") and not of_other_server:
            return self.result["answer"]
        return None if own is None or self._is_refuted(own) else own

    def _is_refuted(self, answer: Any) -> bool:
        """Whether the label says of an answer of the run what is not so where this one is right."""
        task, said = replace(self.task, answer=as_tuples(answer)), self.label.get("strategies", {})
        attempts = (self.result["in_context"], *self.result["attempts"])
        labelled = [(attempt["value"], said.get(attempt["strategy"])) for attempt in attempts]
        if not self.label.get("other_server"):
            labelled.append((self.result["answer"], self.label.get("right")))
        return any(right not in (None, is_right(task, as_tuples(value))) for value, right in labelled)

    def require_content(self, what: str) -> None:
        """Raises `TraceError` for a trace without content."""
        if not self.has_content:
            raise TraceError(
                f"trace {self.id} was stored without the content of its task, which {what} needs; "
                "record the run with content to have it"
            )

    @property
    def status(self) -> str:
        """`answered`, `no_answer`, `refused`, `failed`, `cancelled` or `interrupted` (paused before its end)."""
        if self.result:
            return str(self.result["status"])
        if self.root["status"] == "cancelled":
            return "cancelled"
        if self.root["status"] == "error":
            return "refused" if not self.nodes or self.error.startswith(TooLongError.__name__) else "failed"
        return "interrupted"

    @property
    def error(self) -> str:
        """What ended the run before its end; empty for a run that finished."""
        return str(self.root.get("error", ""))

    @property
    def nodes(self) -> Sequence[SpanPlain]:
        """The spans of the graph's nodes, in order."""
        return [span for span in self.root.get("children", ()) if "node" in span.get("attributes", {})]

    @property
    def edges(self) -> Sequence[tuple[str, str]]:
        """The edges of the graph that the run took, in order."""
        return [(source, target) for source, target in self.attributes.get("edges", ())]

    @property
    def path(self) -> Sequence[str]:
        """The names of the nodes that were entered, in order."""
        return [target for _, target in self.edges if target != "__end__"]

    @property
    def decisions(self) -> Sequence[Mapping[str, Any]]:
        """Every decision, in order."""
        return self._of_nodes("decision")

    @property
    def attempts(self) -> Sequence[Mapping[str, Any]]:
        """Every attempt, in order."""
        return self._of_nodes("attempt")

    @property
    def verdicts(self) -> Sequence[Mapping[str, Any]]:
        """Every verdict, in order."""
        return self._of_nodes("verdict")

    @property
    def in_context(self) -> Mapping[str, Any]:
        """The in-context attempt; empty where the run ended before it."""
        return next(iter(self._of_nodes("in_context")), {})

    @property
    def features(self) -> Mapping[str, float]:
        """The features that the policy saw; empty where the run ended before they were measured."""
        values: Mapping[str, float] = self.measured.get("values", {})
        return values

    @property
    def adapter_costs(self) -> AdapterCosts:
        """What the features say of the costs of adapters; nothing for runs that were recorded before they did."""
        return cast(AdapterCosts, {n: self.measured[n] for n in AdapterCosts.__annotations__ if n in self.measured})

    @property
    def measured(self) -> Mapping[str, Any]:
        """The fields of `Features` as they were decided on; empty where the run ended before they were measured."""
        return next(iter(self._of_nodes("features")), {})

    def _of_nodes(self, attribute: str) -> list[Mapping[str, Any]]:
        return [n["attributes"][attribute] for n in self.nodes if attribute in n["attributes"]]

    @property
    def strategy(self) -> str:
        """The strategy whose answer was given, else the one that was chosen last; empty before the first decision."""
        if self.result:
            return str(self.result["strategy"])
        return str(self.decisions[-1]["strategy"]) if self.decisions else ""

    @property
    def adaptation(self) -> str:
        """`accepted` or `rejected`: what became of the adapted answer; empty where no adapter answered."""
        adapted = any(a["training_record"] for a in self.attempts)
        if not adapted or not self.result:
            return ""
        return "accepted" if self.result["adaptation"] else "rejected"

    @property
    def duration(self) -> float:
        """Seconds from the beginning of the run to its end, waiting included."""
        return float(self.root["seconds"] or 0.0)

    @property
    def seconds(self) -> float:
        """Of the work, or of the whole run where that did not finish."""
        return float(self.result["cost"]["seconds"] if self.result else self.root["seconds"] or 0.0)

    def adapters(self, strategy: str) -> list[SpanPlain]:
        """The spans of the adapters of a strategy."""
        spans = find_spans(self.root, "adapter")
        return [span for span in spans if span.get("attributes", {}).get("strategy") == strategy]

    def batch_training(self, strategy: str) -> Mapping[str, Any]:
        """The attributes of the training in a batch, during this run, of the adapter of a strategy; empty where there
        was none."""
        trainings = [span.get("attributes", {}) for span in find_spans(self.root, "train")]
        of_batch = [facts for facts in trainings if facts.get("prefetched")]
        return next((facts for facts in of_batch if facts.get("strategy", strategy) == strategy), {})

    def stages(self) -> dict[str, float]:
        """Seconds by the name of the span, without those of its children; nodes of strategies count as `attempt`, and
        time between nodes as `graph`. Of a training in a batch each of its tasks counts an equal share, and the shares
        of the others as `wait`. The sum is the duration of the run."""
        seconds: dict[str, float] = {}
        for span, _ in walk(self.root):
            own = (span["seconds"] or 0.0) - sum(child["seconds"] or 0.0 for child in span.get("children", ()))
            share = max(0.0, own) / span.get("attributes", {}).get("shared_by", 1)
            name = stage_name(span)
            seconds[name] = seconds.get(name, 0.0) + share
            if share < own:
                seconds[WAIT] = seconds.get(WAIT, 0.0) + own - share
        return seconds


WAIT = "wait"
"""The name of spans in which a run waits for others, and of their stage."""
_GRAPH_NODES = ("measure", "decide", "judge", "revert")


def stage_name(span: SpanPlain) -> str:
    """The stage that a span's own time counts for."""
    name = str(span["name"])
    if name == "run":
        return "graph"
    is_strategy = "node" in span.get("attributes", {}) and name not in _GRAPH_NODES
    return "attempt" if is_strategy else name


def walk(span: SpanPlain, depth: int = 0) -> Iterator[tuple[SpanPlain, int]]:
    """The span and everything inside it, parents first, each with its depth."""
    yield span, depth
    for child in span.get("children", ()):
        yield from walk(child, depth + 1)


def find_spans(span: SpanPlain, name: str) -> list[SpanPlain]:
    """The spans of a name inside a span, in order."""
    return [inner for inner, _ in walk(span) if inner["name"] == name]
