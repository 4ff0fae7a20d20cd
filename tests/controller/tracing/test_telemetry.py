"""Traces as OpenTelemetry spans: their tree and attributes, whose children they are, and endpoints that fail."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from openinference.semconv import trace as openinference
from opentelemetry import context as otel_context
from opentelemetry import trace as otel
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased

from autottt.controller.controller import Controller
from autottt.controller.graph import build_graph
from autottt.controller.results import Result
from autottt.controller.session import session
from autottt.controller.tracing import named_targets
from autottt.controller.tracing.conventions import General, OpenInference
from autottt.controller.tracing.recorder import TraceRecorder
from autottt.controller.tracing.store import TraceStore
from autottt.controller.tracing.telemetry import TelemetryTarget, traces_url
from autottt.policies.policy import FixedPolicy
from autottt.strategies.registry import strategies
from autottt.ttt_core.engine.adapter_trainer import AdapterTrainer
from autottt.ttt_core.errors import Cancelled, SettingsError, TooLongError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.kinds import make_task
from tests.controller.tracing.sample_traces import small_learner

ROOT = Path(__file__).parents[3]
TASK = make_task([([1, 2], [2, 1]), ([3, 4], [4, 3]), ([5, 6], [6, 5])], [7, 8], answer=[8, 7], id="reverse")
TOO_LONG = make_task([([1] * 9000, [2] * 9000)] * 3, [3] * 9000, id="long")
QUICK = Recipe(
    rank=2, alpha=2.0, dropout=0.0, learning_rate=1e-3, max_steps=3, batch_size=2, transformations=2, views=3
)
PATH = ["measure", "decide", "in_context", "judge", "revert"]


class Spans:
    """A tracer provider that keeps its spans, and a controller's recorder that writes to it."""

    def __init__(self, sampler: Sampler | None = None, **settings: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.recorder = TraceRecorder([TelemetryTarget(provider=self.provider)], **settings)
        self.tracer = self.provider.get_tracer("the program")

    @property
    def all(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def kind(self, kind: str) -> list[ReadableSpan]:
        return [span for span in self.all if span.attributes.get(OpenInference.SPAN_KIND) == kind]

    def children(self, parent: ReadableSpan) -> list[ReadableSpan]:
        """In the order in which they began."""
        inside = [span for span in self.all if span.parent and span.parent.span_id == parent.context.span_id]
        return sorted(inside, key=lambda span: span.start_time)


@pytest.fixture(scope="module")
def learner() -> Learner:
    return small_learner(QUICK)


@pytest.fixture
def spans() -> Spans:
    return Spans()


def controller_of(learner: Learner, spans: Spans, strategy: str = "in_context") -> Controller:
    learner.clear()
    return Controller(learner, FixedPolicy(strategy), trace=spans.recorder)


# --- the tree --------------------------------------------------------------------------------------------------------


def test_a_run_is_a_tree_of_chains_decisions_and_model_calls(learner, spans):
    result = controller_of(learner, spans, "ttt_in_context").solve(TASK)
    root = spans.one("solve")
    assert root.parent is None
    nodes = spans.children(root)
    assert [node.name for node in nodes] == [event["node"] for event in result.trace]
    assert {node.attributes[OpenInference.SPAN_KIND] for node in [root, *nodes]} == {"CHAIN"}
    assert all(node.attributes["graph.node.id"] == node.attributes["graph.node.name"] == node.name for node in nodes)
    assert [n.attributes.get("graph.node.parent_id") for n in nodes] == [None, *[n.name for n in nodes[:-1]]]
    (decision,) = spans.kind("DECISION")
    assert decision.parent.span_id == spans.one("decide").context.span_id
    assert decision.attributes["decision.system"] == "autottt"
    assert json.loads(decision.attributes["output.value"])["strategy"] == "ttt_in_context"
    assert len({span.context.trace_id for span in spans.all}) == 1
    assert all(span.instrumentation_scope.name == "autottt" for span in spans.all)


def test_the_root_has_the_task_the_answer_and_the_decision(learner, spans):
    result = controller_of(learner, spans).solve(TASK)
    values = spans.one("solve").attributes
    assert json.loads(values["input.value"])["query"] == [7, 8]
    assert len(json.loads(values["input.value"])["demonstrations"]) == 3
    answered = values.get("output.value")
    assert (None if answered is None else json.loads(answered)) == (None if result.answer is None else [*result.answer])
    assert values["autottt.decision.strategy"] == "in_context"
    assert values["autottt.decision.reason"] == result.reason.partition(";")[0]
    assert values["autottt.trace_id"] == result.trace_id
    assert values["autottt.status"] == result.status
    assert values["gen_ai.operation.name"] == "invoke_workflow"
    metadata = json.loads(values["metadata"])
    assert metadata["model"]["hash"] == learner.base_hash
    assert metadata["seed"] == 0
    assert "decision.system" not in values, "which belongs to spans of the kind DECISION"


@pytest.mark.parametrize("right", [True, False])
def test_the_annotation_says_whether_an_answer_is_right(learner, spans, monkeypatch, right):
    monkeypatch.setattr("autottt.controller.results.is_right", lambda task, answer: right)
    controller_of(learner, spans).solve(TASK)
    root = spans.one("solve")
    label = "correct" if right else "incorrect"
    assert root.attributes["annotations.0.annotation.name"] == "correctness"
    assert root.attributes["annotations.0.annotation.score"] == float(right)
    assert root.attributes["annotations.0.annotation.label"] == label
    assert root.attributes["annotations.0.annotation.annotator_kind"] == "CODE"
    (event,) = root.events
    assert (event.name, event.attributes["gen_ai.evaluation.score.label"]) == ("gen_ai.evaluation.result", label)


def test_no_annotation_where_the_right_answer_is_not_known(learner, spans):
    controller_of(learner, spans).solve(replace(TASK, answer=None))
    root = spans.one("solve")
    assert not [name for name in root.attributes if name.startswith("annotations")]
    assert not root.events


def test_decoding_is_a_model_call_with_tokens_and_finish_reasons(learner, spans):
    result = controller_of(learner, spans, "in_context_vote").solve(TASK)
    single, several = sorted(spans.kind("LLM"), key=lambda span: span.start_time)
    for span in (single, several):
        values = span.attributes
        reasons = values["gen_ai.response.finish_reasons"]
        assert set(reasons) <= {"stop", "length"}
        assert len(reasons) == values.get("gen_ai.request.choice.count", 1)
        assert values["llm.finish_reason"] == ("stop" if set(reasons) == {"stop"} else "length")
        assert values["llm.model_name"] == values["gen_ai.request.model"] == learner.loaded.name
        assert values["gen_ai.usage.input_tokens"] == values["llm.token_count.prompt"] > 0
        assert values["gen_ai.usage.output_tokens"] == values["llm.token_count.completion"] > 0
        assert span.name == f"text_completion {learner.loaded.name}"
    assert single.attributes["output.value"] == result.in_context.text
    assert "7 8" in single.attributes["input.value"]
    prompts = json.loads(several.attributes["input.value"])
    assert len(prompts) == len(json.loads(several.attributes["output.value"])) > 1
    tokens = [len(ids) for ids in json.loads(several.attributes["autottt.ids"])]
    assert several.attributes["gen_ai.usage.output_tokens"] == sum(tokens)


def test_every_span_lies_inside_its_parent_and_lasts_as_long_as_the_step(learner, spans):
    before = time.time_ns()
    result = controller_of(learner, spans, "ttt_in_context").solve(TASK)
    after = time.time_ns()
    by_id = {span.context.span_id: span for span in spans.all}
    for span in spans.all:
        parent = by_id[span.parent.span_id] if span.parent else None
        first, last = (parent.start_time, parent.end_time) if parent else (before, after)
        assert first - 2000 <= span.start_time <= span.end_time <= last + 2000, "rounded to microseconds"
    for event in result.trace:
        seconds = (spans.named(event["node"])[0].end_time - spans.named(event["node"])[0].start_time) / 1e9
        assert event["seconds"] <= seconds + 1e-5


def test_training_steps_are_events_with_their_loss_at_their_time(learner, spans):
    result = controller_of(learner, spans, "ttt_in_context").solve(TASK)
    training = spans.one("train")
    assert [event.attributes["step"] for event in training.events] == [1, 2, 3]
    assert tuple(event.attributes["loss"] for event in training.events) == result.adaptation.losses
    times = [event.timestamp for event in training.events]
    assert training.start_time <= times[0] < times[1] < times[2] <= training.end_time


def test_held_out_evaluations_are_of_the_kind_evaluator(learner, spans):
    controller_of(learner, spans, "ttt_crossfit").solve(TASK)
    assert spans.kind("EVALUATOR")
    assert {span.name for span in spans.kind("EVALUATOR")} == {"evaluate"}


@pytest.mark.parametrize("name", list(strategies()))
def test_attributes_are_what_opentelemetry_accepts(learner, spans, name, caplog):
    with caplog.at_level(logging.WARNING, "opentelemetry"):
        controller_of(learner, spans, name).solve(TASK)
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]
    assert all(OpenInference.SPAN_KIND in span.attributes for span in spans.all)


# --- names -----------------------------------------------------------------------------------------------------------


def test_the_names_of_openinference_are_those_of_its_package():
    groups = ("SpanAttributes", "AnnotationAttributes", "OpenInferenceSpanKindValues")
    groups += ("OpenInferenceAnnotatorKindValues", "OpenInferenceMimeTypeValues")
    known = {
        getattr(value, "value", value)
        for group in groups
        for name, value in vars(getattr(openinference, group)).items()
        if not name.startswith("_")
    }
    ours = {value for name, value in vars(OpenInference).items() if not name.startswith("_")}
    assert ours <= known


def test_names_of_conventions_are_spelled_in_one_module_only():
    pattern = re.compile(
        r"""["'](gen_ai\.|llm\.|openinference\.span|graph\.node\.|decision\.(system|model)|input\.value)"""
    )
    modules = [path for path in (ROOT / "controller").rglob("*.py") if pattern.search(path.read_text("utf-8"))]
    assert [path.name for path in modules] == ["conventions.py"]


# --- the caller ------------------------------------------------------------------------------------------------------


class Work(TypedDict, total=False):
    task: Any
    answer: Any
    result: Any


def test_the_callers_span_is_the_parent_of_the_root_in_threads_coroutines_and_streams(learner, spans):
    controller = controller_of(learner, spans)

    async def coroutines() -> None:
        await asyncio.gather(controller.asolve(TASK), controller.asolve(TASK))
        async for _ in controller.astream(TASK):
            pass

    with spans.tracer.start_as_current_span("request") as request, ThreadPoolExecutor(2) as pool:
        controller.solve(TASK)
        list(pool.map(lambda context: context.run(controller.solve, TASK), [copy_context(), copy_context()]))
        list(controller.stream(TASK))
        asyncio.run(coroutines())
        controller.solve_many([TASK, replace(TASK, query=(1, 2))])
    roots = spans.named("solve")
    assert len(roots) == 9
    assert {root.parent.span_id for root in roots} == {request.get_span_context().span_id}
    assert {span.context.trace_id for span in spans.all} == {request.get_span_context().trace_id}
    assert all(not root.parent.is_remote for root in roots)
    assert all(len([c for c in spans.children(root) if c.name == "decide"]) == 1 for root in roots)


def test_concurrent_callers_keep_their_own_spans(learner, spans):
    controller = controller_of(learner, spans)
    parents: dict[str, int] = {}

    async def request(name: str) -> None:
        with spans.tracer.start_as_current_span(name) as span:
            result = await controller.asolve(TASK)
            parents[result.trace_id] = span.get_span_context().span_id

    async def both() -> None:
        await asyncio.gather(request("one"), request("other"))

    asyncio.run(both())
    assert {str(r.attributes["autottt.trace_id"]): r.parent.span_id for r in spans.named("solve")} == parents


@pytest.mark.parametrize("use_own_context", [True, False])
def test_the_graph_inside_another_graph_has_one_root_under_the_callers_span(learner, spans, use_own_context):
    controller = controller_of(learner, spans)
    parent = StateGraph(Work)
    parent.add_node("solve", controller.as_node() if use_own_context else controller.graph)
    parent.add_edge(START, "solve")
    settings: Any = {} if use_own_context else {"context": controller.context()}
    graph = parent.compile()

    async def run() -> None:
        await graph.ainvoke({"task": TASK}, **settings)

    with spans.tracer.start_as_current_span("request") as request:
        graph.invoke({"task": TASK}, **settings)
        asyncio.run(run())
        list(graph.stream({"task": TASK}, stream_mode="custom", **settings))
    roots = spans.named("solve")
    assert [root.parent.span_id for root in roots] == [request.get_span_context().span_id] * 3
    assert all([child.name for child in spans.children(root)] == PATH for root in roots)


def test_a_call_of_solve_in_a_node_is_a_child_of_the_span_that_is_current_there(learner, spans):
    controller = controller_of(learner, spans)
    inner: list[int] = []

    def work(state: Work) -> Work:
        with spans.tracer.start_as_current_span("in the node") as span:
            inner.append(span.get_span_context().span_id)
            return {"answer": controller.solve(state["task"]).answer}

    parent = StateGraph(Work)
    parent.add_node("work", work)
    parent.add_edge(START, "work")
    parent.compile().invoke({"task": TASK})
    assert [root.parent.span_id for root in spans.named("solve")] == inner


def test_the_span_of_a_node_that_an_instrumentor_traces_is_the_parent(learner, spans, monkeypatch):
    controller = controller_of(learner, spans)
    with spans.tracer.start_as_current_span("request"):
        node = spans.tracer.start_span("node")
        known = SimpleNamespace(get_current_span=lambda: node)
        monkeypatch.setitem(sys.modules, "openinference.instrumentation.langchain", known)
        controller.solve(TASK)
        with spans.tracer.start_as_current_span("in the node") as inner:
            controller.solve(TASK)
        known.get_current_span = lambda: None
        controller.solve(TASK)
    parents = [root.parent.span_id for root in spans.named("solve")]
    assert parents[:2] == [node.get_span_context().span_id, inner.get_span_context().span_id]
    assert parents[2] == spans.one("request").context.span_id


def test_a_run_without_a_current_span_begins_a_trace_of_its_own(learner, spans):
    controller = controller_of(learner, spans)
    controller.solve(TASK)
    controller.solve(TASK)
    one, other = spans.named("solve")
    assert one.parent is None
    assert one.context.trace_id != other.context.trace_id


def test_the_local_trace_names_the_callers_span(learner, spans, tmp_path):
    store = TraceStore(tmp_path / "traces.sqlite")
    recorder = TraceRecorder([store, TelemetryTarget(provider=spans.provider)])
    with spans.tracer.start_as_current_span("request") as request:
        Controller(learner, FixedPolicy("in_context"), trace=recorder).solve(TASK)
    expected = f"{request.get_span_context().trace_id:032x}-{request.get_span_context().span_id:016x}"
    assert expected in store.get("last").attributes["caller"]["traceparent"]


def test_the_session_comes_from_the_caller(learner, spans):
    controller = controller_of(learner, spans)
    with session("conversation 1"):
        controller.solve(TASK)
        asyncio.run(controller.asolve(TASK))
    config: Any = {"configurable": {"thread_id": "thread 2"}}
    build_graph(InMemorySaver()).invoke({"task": TASK}, config, context=controller.context())
    parent = StateGraph(Work)
    parent.add_node("solve", controller.as_node())
    parent.add_node("call", lambda state: {"answer": controller.solve(state["task"]).answer})
    parent.add_edge(START, "solve")
    parent.add_edge("solve", "call")
    parent.compile().invoke({"task": TASK}, {"metadata": {"session_id": "conversation 3"}})
    token = otel_context.attach(otel_context.set_value("session.id", "conversation 4"))
    controller.solve(TASK)
    otel_context.detach(token)
    controller.solve(TASK)
    sessions = [root.attributes.get("session.id") for root in spans.named("solve")]
    assert sessions == ["conversation 1"] * 2 + ["thread 2"] + ["conversation 3"] * 2 + ["conversation 4", None]
    assert spans.named("solve")[0].attributes["gen_ai.conversation.id"] == "conversation 1"


# --- sampling, content, failures -------------------------------------------------------------------------------------


def test_a_share_of_traces_is_sampled_whole(learner):
    spans = Spans(TraceIdRatioBased(0.5))
    controller = controller_of(learner, spans)
    for _ in range(24):
        controller.solve(TASK)
    roots = spans.named("solve")
    assert 2 <= len(roots) <= 22
    assert all([child.name for child in spans.children(root)] == PATH for root in roots)
    assert {span.context.trace_id for span in spans.all} == {root.context.trace_id for root in roots}


def test_a_run_of_a_caller_that_is_not_sampled_is_not_sampled(learner):
    spans = Spans(ParentBased(TraceIdRatioBased(0.0)))
    with spans.tracer.start_as_current_span("request"):
        result = controller_of(learner, spans).solve(TASK)
    assert result.trace_id
    assert not spans.all


def test_spans_without_content_have_neither_task_nor_answers(learner, monkeypatch):
    secret = make_task([("dog", "SECRET1"), ("cat", "SECRET2"), ("cow", "SECRET3")], "SECRET4", id="animals")
    spans, hidden = Spans(content=False), Spans()
    controller_of(learner, spans, "ttt_crossfit").solve(secret)
    monkeypatch.setenv("OPENINFERENCE_HIDE_INPUTS", "true")
    controller_of(learner, hidden, "ttt_crossfit").solve(secret)
    for each in (spans, hidden):
        text = "".join(span.to_json() for span in each.all)
        assert "SECRET" not in text
        assert "animals" in text
        assert all(span.attributes["gen_ai.usage.output_tokens"] > 0 for span in each.kind("LLM"))
        assert "input.value" not in each.one("solve").attributes
    monkeypatch.delenv("OPENINFERENCE_HIDE_INPUTS")
    with_content = Spans()
    controller_of(learner, with_content, "ttt_crossfit").solve(secret)
    assert "SECRET" in "".join(span.to_json() for span in with_content.all)


def test_a_run_that_raises_has_the_status_error_up_to_the_failure(learner, spans, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr("autottt.controller.nodes.judged", fail)
    with pytest.raises(MemoryError):
        controller_of(learner, spans).solve(TASK)
    root = spans.one("solve")
    assert [child.name for child in spans.children(root)] == ["measure", "decide", "in_context", "judge", "verify"]
    for span in (root, spans.one("judge")):
        assert span.status.status_code is otel.StatusCode.ERROR
        assert span.status.description == "MemoryError: no more"
        assert span.attributes[General.ERROR_TYPE] == "MemoryError"
        (event,) = span.events
        assert dict(event.attributes) == {"exception.type": "MemoryError", "exception.message": "no more"}
    assert spans.one("decide").status.status_code is otel.StatusCode.OK
    assert root.attributes["autottt.status"] == "failed"


def test_decoding_that_fails_has_a_finish_reason(learner, spans, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr("autottt.ttt_core.engine.answering.decode", fail)
    with pytest.raises(RuntimeError):
        controller_of(learner, spans).solve(TASK)
    (span,) = spans.kind("LLM")
    assert span.attributes["gen_ai.response.finish_reasons"] == ("error",)
    assert span.attributes["llm.finish_reason"] == "error"
    assert span.status.status_code is otel.StatusCode.ERROR


def test_a_cancelled_run_says_so(learner, spans, monkeypatch):
    cancel = threading.Event()
    adapt_many = AdapterTrainer.adapt_many

    def cancelling(*args: Any, **settings: Any) -> Any:
        cancel.set()
        return adapt_many(*args, **settings)

    monkeypatch.setattr(AdapterTrainer, "adapt_many", cancelling)
    with pytest.raises(Cancelled):
        controller_of(learner, spans, "ttt_direct").solve(TASK, cancel=cancel)
    root = spans.one("solve")
    assert root.status.status_code is otel.StatusCode.ERROR
    assert root.attributes["autottt.status"] == "cancelled"
    assert root.attributes[General.ERROR_TYPE] == "Cancelled"
    assert spans.one("ttt_direct").attributes["autottt.status"] == "cancelled"


def test_a_refused_task_and_a_paused_run_are_told_apart_from_failures(learner, spans):
    controller = controller_of(learner, spans)
    with pytest.raises(TooLongError):
        controller.solve(TOO_LONG)
    graph, config = build_graph(InMemorySaver()), {"configurable": {"thread_id": "1"}}
    graph.invoke({"task": TASK}, config, context=controller.context(), interrupt_before=["judge"])
    graph.invoke(None, config, context=controller.context())
    refused, paused, resumed = spans.named("solve")
    assert (refused.attributes["autottt.status"], refused.status.status_code.name) == ("refused", "ERROR")
    assert (paused.attributes["autottt.status"], paused.status.status_code.name) == ("interrupted", "UNSET")
    assert resumed.status.status_code.name == "OK"
    assert "graph.node.parent_id" not in spans.children(resumed)[0].attributes


# --- endpoints -------------------------------------------------------------------------------------------------------


@dataclass
class Collector:
    """An OTLP endpoint in this process."""

    url: str = ""
    requests: list[ExportTraceServiceRequest] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    status: int = 200
    seconds: float = 0.0
    """How long it waits before it answers."""

    @property
    def spans(self) -> list[Any]:
        scopes = [s for r in self.requests for resource in r.resource_spans for s in resource.scope_spans]
        return [span for scope in scopes for span in scope.spans]

    def resource(self) -> dict[str, str]:
        """Attributes of the resource of the last request."""
        values = self.requests[-1].resource_spans[0].resource.attributes
        return {value.key: value.value.string_value for value in values}


@pytest.fixture
def collector() -> Iterator[Collector]:
    state, stop = Collector(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if stop.wait(state.seconds):
                return
            state.paths.append(self.path)
            state.headers.append({name.lower(): value for name, value in self.headers.items()})
            state.requests.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(state.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Prints nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    stop.set()
    server.shutdown()
    server.server_close()


def target_of(controller: Controller) -> TelemetryTarget:
    (target,) = [t for t in controller.recorder.targets if isinstance(t, TelemetryTarget)]
    return target


def test_one_argument_sends_traces_to_an_endpoint(learner, collector):
    controller = Controller(learner, FixedPolicy("in_context"), trace=f"otlp:{collector.url}")
    result = controller.solve(TASK)
    assert target_of(controller).flush()
    assert collector.paths == ["/v1/traces"]
    names = {span.span_id: span.name for span in collector.spans}
    (root,) = [span for span in collector.spans if span.name == "solve"]
    assert [names[s.span_id] for s in collector.spans if s.parent_span_id == root.span_id] == PATH
    assert collector.resource()["service.name"] == "autottt"
    values = {value.key: value.value for value in root.attributes}
    assert values["autottt.trace_id"].string_value == result.trace_id
    assert values["openinference.span.kind"].string_value == "CHAIN"
    assert root.status.code == 1


def test_the_variables_of_opentelemetry_name_endpoint_headers_service_and_sampling(learner, collector, monkeypatch):
    monkeypatch.setenv("AUTOTTT_TRACE", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-mlflow-experiment-id=7")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my service")
    controller = Controller(learner, FixedPolicy("in_context"))
    controller.solve(TASK)
    assert target_of(controller).flush()
    assert collector.headers[0]["x-mlflow-experiment-id"] == "7"
    assert collector.resource()["service.name"] == "my service"
    count = len(collector.spans)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.0")
    controller.solve(TASK)
    assert target_of(controller).flush()
    assert len(collector.spans) == count
    assert isinstance(otel.get_tracer_provider(), otel.ProxyTracerProvider), "the program's is not set"


def test_text_that_utf8_cannot_hold_costs_no_span(learner, collector, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("no file \udcff.gguf")

    named = Learner.wrap(learner.loaded.model, learner.loaded.tokenizer, prompt_format="compact")
    named.loaded = replace(named.loaded, name="model \udcfe")
    controller = Controller(named, FixedPolicy("in_context"), trace=f"otlp:{collector.url}")
    controller.solve(TASK)
    monkeypatch.setattr("autottt.controller.nodes.judged", fail)
    with pytest.raises(OSError, match="no file"):
        controller.solve(TASK)
    assert target_of(controller).flush()
    assert [s.status.message for s in collector.spans if s.name == "solve"] == ["", "OSError: no file \ufffd.gguf"]
    (decoded, _) = [s for s in collector.spans if s.name.startswith("text_completion")]
    models = [a.value.string_value for a in decoded.attributes if a.key == "gen_ai.request.model"]
    assert decoded.name.endswith("model \ufffd")
    assert models == ["model \ufffd"]


def test_several_targets_receive_the_same_trace(learner, collector, tmp_path):
    setting = f"{tmp_path}/traces.sqlite,otlp:{collector.url}/v1/traces"
    controller = Controller(learner, FixedPolicy("in_context"), trace=setting)
    result = controller.solve(TASK)
    assert target_of(controller).flush()
    assert TraceStore(tmp_path / "traces.sqlite").get(result.trace_id).path == PATH
    assert len([span for span in collector.spans if span.name == "solve"]) == 1
    assert collector.paths == ["/v1/traces"]


def test_the_losses_of_a_long_training_are_all_sent(learner, collector):
    steps = replace(QUICK, max_steps=200)
    many = Learner.wrap(learner.loaded.model, learner.loaded.tokenizer, prompt_format="compact")
    many.loaded = replace(many.loaded, recipes=dict.fromkeys(strategies(), steps))
    controller = Controller(many, FixedPolicy("ttt_direct"), trace=f"otlp:{collector.url}")
    result = controller.solve(TASK)
    assert target_of(controller).flush()
    (training,) = [span for span in collector.spans if span.name == "train"]
    assert len(training.events) == len(result.attempts[0].training_record.losses) > 128


def test_the_programs_own_provider_is_used(learner, spans, collector, monkeypatch):
    monkeypatch.setattr(otel, "get_tracer_provider", lambda: spans.provider)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    controller = Controller(learner, FixedPolicy("in_context"), trace="otlp")
    controller.solve(TASK)
    assert target_of(controller).flush()
    assert [child.name for child in spans.children(spans.one("solve"))] == PATH
    assert not collector.requests
    explicit = Controller(learner, FixedPolicy("in_context"), trace=f"otlp:{collector.url}")
    explicit.solve(TASK)
    assert target_of(explicit).flush()
    assert collector.requests, "an endpoint that is named receives the spans"
    assert len(spans.named("solve")) == 1


@pytest.mark.parametrize("fault", ["closed port", "no answer", "status 500", "status 503"])
def test_an_endpoint_that_fails_costs_one_warning_and_no_time(learner, collector, monkeypatch, caplog, fault):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    collector.status = int(fault.split()[1]) if fault.startswith("status") else 200
    collector.seconds = 60.0 if fault == "no answer" else 0.0
    url = closed if fault == "closed port" else collector.url
    controller = Controller(learner, FixedPolicy("in_context"), trace=f"otlp:{url}")
    written: list[float] = []
    target = target_of(controller)
    write = target.write

    def timed(trace: Any) -> None:
        began = time.perf_counter()
        write(trace)
        written.append(time.perf_counter() - began)

    monkeypatch.setattr(target, "write", timed)
    for _ in range(5):
        result = controller.solve(TASK)
        assert isinstance(result, Result)
        time.sleep(0.05)
    assert max(written) < 0.5
    assert target.flush(8.0)
    assert [r.getMessage() for r in caplog.records if "cannot be sent" in r.getMessage()] == [
        f"{url}: traces cannot be sent there; answers are not affected"
    ]
    assert not [r for r in caplog.records if r.name.startswith("opentelemetry")]


def test_a_flush_waits_no_longer_than_asked(learner, collector):
    collector.seconds = 60.0
    controller = Controller(learner, FixedPolicy("in_context"), trace=f"otlp:{collector.url}")
    controller.solve(TASK)
    began = time.perf_counter()
    assert not target_of(controller).flush(0.2)
    assert time.perf_counter() - began < 1.0


EXIT = """
import atexit, sys, time
atexit.register(lambda: print(time.monotonic() - began))  # runs last
from autottt.controller.tracing.telemetry import TelemetryTarget
from autottt.controller.tracing.trace import Trace
root = {"name": "run", "at": 0.0, "seconds": 0.1, "status": "ok", "attributes": {"edges": []}}
plain = {"version": 1, "id": "1", "time": "2026-01-01T00:00:00+00:00", "content": True, "root": root}
TelemetryTarget(sys.argv[1]).write(Trace(plain))
began = time.monotonic()
"""


@pytest.mark.parametrize("fault", ["none", "closed port", "no answer", "status 500"])
def test_the_end_of_a_process_sends_what_is_left_and_waits_two_seconds_at_most(collector, fault):
    collector.status = 500 if fault == "status 500" else 200
    collector.seconds = 60.0 if fault == "no answer" else 0.0
    url = "http://127.0.0.1:9" if fault == "closed port" else collector.url
    command = [sys.executable, "-c", EXIT, url]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert float(finished.stdout) < 3.0
    assert "Traceback" not in finished.stderr
    assert len(collector.spans) == (fault in ("none", "status 500"))


def test_a_setting_that_names_no_target_is_refused(learner):
    for setting in ("otlp:", "otlp:localhost:4318", "local,", "local,nowhere", "off,local", "otlp:ftp://host"):
        with pytest.raises(SettingsError, match="expected off, local, otlp, otlp:URL, or a file"):
            Controller(learner, FixedPolicy("in_context"), trace=setting)
    assert named_targets("local,otlp,local") == ("local", "otlp")
    assert named_targets(Path("a,b.sqlite")) == ("a,b.sqlite",)


def test_the_path_of_an_endpoint_gets_the_signal():
    assert traces_url("http://host:4318") == "http://host:4318/v1/traces"
    assert traces_url("http://host/api/public/otel/") == "http://host/api/public/otel/v1/traces"
    assert traces_url("http://host/v1/traces") == "http://host/v1/traces"


def test_a_missing_library_is_named_with_the_remedy(learner, monkeypatch):
    monkeypatch.delitem(sys.modules, "autottt.controller.tracing.telemetry")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(SettingsError, match=r"pip install 'autottt\[trace\]'"):
        Controller(learner, FixedPolicy("in_context"), trace="otlp")


def test_what_records_is_imported_where_a_trace_is_wanted_and_opentelemetry_where_a_target_needs_it(tmp_path):
    code = (
        "import sys; from autottt import Controller, FixedPolicy, Learner, make_task\n"
        "from autottt.ttt_core.testing import tiny_model, tiny_tokenizer\n"
        "learner = Learner.wrap(tiny_model('llama'), tiny_tokenizer(), prompt_format='compact')\n"
        "task = make_task([([1, 2], [2, 1]), ([3, 4], [4, 3])], [5, 6])\n"
        "place = 'autottt.controller.tracing.'\n"
        "recording = lambda: [m for m in sys.modules if m.startswith(place) and 'lazy' not in m]\n"
        "for trace in ('off', sys.argv[1]):\n"
        "    assert not recording()\n"
        "    Controller(learner, FixedPolicy('in_context'), trace=trace).solve(task)\n"
        "    assert 'opentelemetry.exporter.otlp.proto.http' not in sys.modules, trace\n"
        "    assert 'autottt.controller.tracing.telemetry' not in sys.modules, trace\n"
        "assert recording()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "traces.sqlite")], check=True)
