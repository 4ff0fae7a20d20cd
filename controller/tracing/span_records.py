"""A trace as spans of OpenTelemetry with the attributes that viewers know. Knows nothing about how they are sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from ...ttt_core.standard_json import dumps
from .conventions import OWN, GenAI, General, OpenInference
from .trace import SpanPlain, Trace

Attribute = str | bool | int | float | Sequence[str] | Sequence[bool] | Sequence[int] | Sequence[float]
Attributes = dict[str, Attribute]
Status = Literal["ok", "error", "unset"]

SYSTEM = "autottt"
"""Who decides and who decodes: this package, in the process of its caller."""
NAMES = {"run": "solve", "decode": GenAI.COMPLETION}
"""Names of spans that differ from those of the trace."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NODE_FIELDS = ("node", "cost")
_RUN_FIELDS = ("model", "policy", "versions", "budget", "seed", "peak_bytes", "sizes")
"""What the root's metadata say of a run."""
_DECODING_FIELDS = ("prompts", "texts", "prompt_tokens", "temperature", "seed", "max_new_tokens", "ended")
"""What an LLM span says in the names of the conventions."""


@dataclass(frozen=True)
class EventRecord:
    """Something that happened during a span."""

    name: str
    time: int
    """Nanoseconds since 1970."""
    attributes: Attributes


@dataclass(frozen=True)
class SpanRecord:
    """A span as OpenTelemetry has it."""

    name: str
    start: int
    """Nanoseconds since 1970."""
    end: int
    attributes: Attributes
    events: tuple[EventRecord, ...]
    status: Status
    description: str
    """What went wrong; empty unless the status is `error`."""
    children: tuple[SpanRecord, ...]


def span_record(trace: Trace) -> SpanRecord:
    """The spans of a trace, as a tree. They have content only where the trace has."""
    return _Converter(trace).record(trace.root)


class _Converter:
    """Converts the spans of one trace."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._began = (datetime.fromisoformat(trace.time) - _EPOCH) // timedelta(microseconds=1) * 1000
        self._model = str(trace.attributes.get("model", {}).get("name", ""))
        sources = [source for source, _ in trace.edges]
        self._sources = {id(node): source for node, source in zip(trace.nodes, sources, strict=False)}
        """The node before each node, by the identity of its span."""

    def record(self, span: SpanPlain) -> SpanRecord:
        """A span with everything inside it."""
        start = self._began + _nanoseconds(span["at"])
        seconds = span["seconds"] if span["seconds"] is not None else self._rest(span)
        end = start + _nanoseconds(seconds)
        children = [*self._decisions(span, start, end), *map(self.record, span.get("children", ()))]
        name = NAMES.get(str(span["name"]), str(span["name"]))
        return SpanRecord(
            f"{name} {self._model}" if name == GenAI.COMPLETION else name, start, end, self._attributes(span),
            tuple(self._events(span, start, end)), self._status(span), str(span.get("error", "")), tuple(children),
        )  # fmt: skip

    def _rest(self, span: SpanPlain) -> float:
        """Seconds until the end of the run, for a span that did not finish."""
        return max(0.0, float(self._trace.root["seconds"] or 0.0) - float(span["at"]))

    def _status(self, span: SpanPlain) -> Status:
        if span["status"] in ("error", "cancelled"):
            return "error"
        if span["status"] != "ok" or (span is self._trace.root and self._trace.status == "interrupted"):
            return "unset"
        return "ok"

    def _attributes(self, span: SpanPlain) -> Attributes:
        values: Mapping[str, Any] = span.get("attributes", {})
        convert: Callable[[SpanPlain, Mapping[str, Any]], Attributes]
        if span is self._trace.root:
            convert = self._of_run
        elif "node" in values:
            convert = self._of_node
        elif span["name"] == "decode":
            convert = self._of_decoding
        else:
            convert = _of_step
        attributes = convert(span, values)
        if span is not self._trace.root:
            attributes[f"{OWN}status"] = str(span["status"])
        if dropped := span.get("dropped"):
            attributes[f"{OWN}dropped"] = dropped
        if error := str(span.get("error", "")):
            attributes[General.ERROR_TYPE] = error.partition(":")[0]
        return attributes

    def _of_run(self, _: SpanPlain, values: Mapping[str, Any]) -> Attributes:
        """The root: the task, the answer, the decision, and whether the answer is right."""
        trace, task = self._trace, self._trace.task_facts
        attributes: Attributes = {
            OpenInference.SPAN_KIND: OpenInference.CHAIN,
            OpenInference.METADATA: _json({name: values[name] for name in _RUN_FIELDS if name in values}),
            GenAI.OPERATION: GenAI.WORKFLOW, GenAI.AGENT_NAME: SYSTEM, GenAI.PROVIDER: SYSTEM,
            GenAI.REQUEST_MODEL: self._model, f"{OWN}trace_id": trace.id, f"{OWN}status": trace.status,
            f"{OWN}path": [*trace.path], f"{OWN}seconds": trace.seconds,
        }  # fmt: skip
        if session := values.get("session"):
            attributes |= {OpenInference.SESSION_ID: str(session), GenAI.CONVERSATION_ID: str(session)}
        attributes |= _own({f"task.{name}": task[name] for name in ("id", "kind", "dataset", "family") if name in task})
        if trace.has_content and task:
            given = {name: task[name] for name in ("instruction", "demonstrations", "query") if task.get(name)}
            attributes |= _input(given)
        if trace.decisions:
            first = trace.decisions[0]
            names = ("strategy", "reason", "difficulty", "scores", "costs", "utilities")
            attributes |= _own({f"decision.{name}": first[name] for name in names if name in first})
        if result := trace.result:
            attributes |= _own({name: result.get(name) for name in ("strategy", "reason", "adapted", "cost", "proof")})
            if trace.has_content:
                attributes |= _output(result.get("answer"))
        return attributes | self._correctness()

    def _correctness(self) -> Attributes:
        """The annotation of an answer whose right answer is known."""
        facts = correctness(self._trace)
        if facts is None:
            return {}
        score, label = facts
        values: Attributes = {
            OpenInference.ANNOTATION_NAME: "correctness", OpenInference.ANNOTATION_SCORE: score,
            OpenInference.ANNOTATION_LABEL: label, OpenInference.ANNOTATOR_KIND: OpenInference.CODE,
        }  # fmt: skip
        return {f"{OpenInference.ANNOTATIONS}.0.{name}": value for name, value in values.items()}

    def _of_node(self, span: SpanPlain, values: Mapping[str, Any]) -> Attributes:
        """A node of the graph: the node before it, and what it returned."""
        name = str(values["node"])
        attributes: Attributes = {
            OpenInference.SPAN_KIND: OpenInference.CHAIN, OpenInference.NODE_ID: name, OpenInference.NODE_NAME: name,
        }  # fmt: skip
        source = self._sources.get(id(span), "")
        if source and not source.startswith("__"):
            attributes[OpenInference.NODE_PARENT_ID] = source
        returned = {key: value for key, value in values.items() if key not in _NODE_FIELDS}
        if returned:
            attributes |= _output(returned)
        return attributes | _own({"cost": values.get("cost")})

    def _decisions(self, span: SpanPlain, start: int, end: int) -> list[SpanRecord]:
        """The span of the policy's decision inside a node that decides."""
        values: Mapping[str, Any] = span.get("attributes", {})
        decision = values.get("decision")
        if not decision or "node" not in values:
            return []
        policy = self._trace.attributes.get("policy", {})
        attributes: Attributes = {
            OpenInference.SPAN_KIND: OpenInference.DECISION, OpenInference.DECISION_SYSTEM: SYSTEM,
            OpenInference.DECISION_PROVIDER: SYSTEM,
            OpenInference.DECISION_MODEL_NAME: f"{policy.get('name', '')} {policy.get('digest', '')}".strip(),
            **_input({"features": self._trace.features, "thresholds": policy.get("thresholds", {})}),
            **_output(decision), **_own({"strategy": decision["strategy"], "reason": decision["reason"]}),
        }  # fmt: skip
        return [SpanRecord("decision", start, end, attributes, (), "ok", "", ())]

    def _of_decoding(self, span: SpanPlain, values: Mapping[str, Any]) -> Attributes:
        """An LLM span: one or several prompts that were answered together."""
        adapters, ended = int(values.get("adapters", 1)), values.get("ended")
        prompt_tokens = sum(values.get("prompt_tokens", ())) * adapters
        new_tokens = sum(len(scores) for scores in values.get("log_probs", ()))
        if ended is None:
            reasons = ["cancelled" if span["status"] == "cancelled" else "error"]
        else:
            reasons = ["stop" if each else "length" for each in ended]
        limits = values.get("max_new_tokens") or [0]
        parameters = {
            "temperature": values.get("temperature"), "seed": values.get("seed"), "max_new_tokens": limits,
            "adapters": adapters,
        }  # fmt: skip
        attributes: Attributes = {
            OpenInference.SPAN_KIND: OpenInference.LLM, OpenInference.LLM_SYSTEM: SYSTEM,
            OpenInference.LLM_PROVIDER: SYSTEM, OpenInference.LLM_MODEL_NAME: self._model,
            OpenInference.LLM_PARAMETERS: _json(parameters), OpenInference.LLM_PROMPT_TOKENS: prompt_tokens,
            OpenInference.LLM_COMPLETION_TOKENS: new_tokens, OpenInference.LLM_TOTAL_TOKENS: prompt_tokens + new_tokens,
            OpenInference.LLM_FINISH_REASON: next((r for r in reasons if r != "stop"), "stop"),
            GenAI.OPERATION: GenAI.COMPLETION, GenAI.PROVIDER: SYSTEM, GenAI.REQUEST_MODEL: self._model,
            GenAI.RESPONSE_MODEL: self._model, GenAI.FINISH_REASONS: reasons, GenAI.INPUT_TOKENS: prompt_tokens,
            GenAI.OUTPUT_TOKENS: new_tokens, GenAI.TEMPERATURE: float(values.get("temperature", 0.0)),
        }  # fmt: skip
        if "seed" in values:
            attributes[GenAI.SEED] = int(values["seed"])
        if max(limits):
            attributes[GenAI.MAX_TOKENS] = max(limits)
        if len(reasons) > 1:
            attributes[GenAI.CHOICE_COUNT] = len(reasons)
        for convert, name in ((_input, "prompts"), (_output, "texts")):
            if texts := values.get(name):
                attributes |= convert(texts[0] if len(texts) == 1 else texts)
        return attributes | _own({key: value for key, value in values.items() if key not in _DECODING_FIELDS})

    def _events(self, span: SpanPlain, start: int, end: int) -> Iterator[EventRecord]:
        """Training steps, the exception that ended the span, and for the root whether the answer is right."""
        for event in span.get("events", ()):
            values = {name: value for name, value in event.items() if name != "at"}
            yield EventRecord(
                "step" if "step" in values else "event", start + _nanoseconds(event["at"]), _plain(values)
            )
        if error := str(span.get("error", "")):
            name, _, message = error.partition(": ")
            attributes: Attributes = {General.EXCEPTION_TYPE: name}
            yield EventRecord(
                General.EXCEPTION, end, attributes | ({General.EXCEPTION_MESSAGE: message} if message else {})
            )
        if span is self._trace.root and (facts := correctness(self._trace)):
            score, label = facts
            values = {GenAI.EVALUATION_NAME: "correctness", GenAI.EVALUATION_SCORE: score}
            yield EventRecord(GenAI.EVALUATION, end, {**values, GenAI.EVALUATION_LABEL: label})


def correctness(trace: Trace) -> tuple[float, str] | None:
    """Score and label of the answer; None where the right answer is not known, or the run did not finish."""
    right = trace.is_right
    return None if right is None else (float(right), "correct" if right else "incorrect")


def _of_step(span: SpanPlain, values: Mapping[str, Any]) -> Attributes:
    """Any other span: its attributes under names of this package."""
    kind = OpenInference.EVALUATOR if span["name"] == "evaluate" else OpenInference.CHAIN
    return {OpenInference.SPAN_KIND: kind, **_own(values)}


def _input(value: Any) -> Attributes:
    return _value(value, OpenInference.INPUT, OpenInference.INPUT_TYPE)


def _output(value: Any) -> Attributes:
    return _value(value, OpenInference.OUTPUT, OpenInference.OUTPUT_TYPE)


def _value(value: Any, name: str, type_name: str) -> Attributes:
    """A value as text, or as JSON, with its type; nothing for None."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {name: value, type_name: OpenInference.TEXT}
    return {name: _json(value), type_name: OpenInference.JSON}


def _own(values: Mapping[str, Any]) -> Attributes:
    """Attributes under the prefix of this package."""
    return _plain({f"{OWN}{name}": value for name, value in values.items()})


def _plain(values: Mapping[str, Any]) -> Attributes:
    """Values as attributes can hold them: numbers, texts, lists of one type, and anything else as JSON. None and
    numbers that are not finite are left out."""
    attributes: Attributes = {}
    for name, value in values.items():
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            continue
        attributes[name] = value if isinstance(value, (str, bool, int, float)) else _listed(value)
    return attributes


def _listed(value: Any) -> Attribute:
    """A list of texts or numbers of one type as it is, anything else as JSON."""
    if isinstance(value, (list, tuple)) and value:
        kind = type(value[0])
        if kind in (str, bool, int, float) and all(type(item) is kind for item in value):
            return list(value)
    return _json(value)


def _json(value: Any) -> str:
    return dumps(value, default=str)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e6) * 1000
