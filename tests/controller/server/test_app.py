"""The HTTP API: tasks, decisions, feedback, health and metrics, and the shape of every error."""

from __future__ import annotations

import gzip
import json
import re
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from autottt import Controller, FixedPolicy
from autottt.controller.scheduler.scheduler import Scheduler
from autottt.controller.server.guard import ApiKeys
from autottt.controller.server.labels import _Answers
from autottt.controller.server.limits import Limits
from autottt.controller.tracing.explanation import explanation
from autottt.controller.tracing.log_rows import log_rows
from autottt.controller.tracing.recorder import TraceRecorder
from autottt.controller.tracing.span_records import correctness
from autottt.controller.tracing.store import TraceStore
from autottt.controller.tracing.summary import summary_of
from autottt.controller.tracing.telemetry import TelemetryTarget
from autottt.controller.tracing.view import view_of
from autottt.strategies.base import Attempt
from autottt.ttt_core.recipes import Recipe
from tests.controller.server.conftest import MODEL, TASK


def events_of(response):
    """The data of server-sent events, each of which must be unnamed; comments are left out."""
    parts = [part for part in response.text.split("\n\n") if part and not part.startswith(":")]
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    texts = [part.removeprefix("data: ") for part in parts]
    assert texts[-1] == "[DONE]"
    return [json.loads(text) for text in texts[:-1]]


def assert_is_error(response, status, *, param=None, code=None):
    """The response has OpenAI's shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    if param is not None:
        assert error["param"] == param
    if code is not None:
        assert error["code"] == code


# --- tasks -----------------------------------------------------------------------------------------------------------


def test_a_task_is_answered_as_the_controller_answers_it(serve, controller, task):
    expected = controller.solve(task)
    response = serve().post("/v1/solve", json=TASK)
    assert response.status_code == 200
    body = response.json()
    assert body["model"] == MODEL
    assert body["text"] == expected.text
    assert body["answer"] == (None if expected.answer is None else list(expected.answer))
    facts = body["autottt"]
    assert (facts["strategy"], facts["decision"], facts["status"]) == ("in_context", "in_context", expected.status)
    assert facts["proof"]["hash"] == controller.learner.base_hash
    assert facts["cost"]["forward_tokens"] > 0
    assert facts["adaptation"] is None
    assert response.headers["x-autottt-strategy"] == "in_context"


def test_a_forced_strategy_trains_and_reports_the_adaptation(serve, controller):
    before = controller.learner.base_hash
    body = serve().post("/v1/solve", json={**TASK, "strategy": "ttt_direct", "seed": 3}).json()
    facts = body["autottt"]
    assert facts["decision"] == "ttt_direct"
    if facts["strategy"] == "ttt_direct":
        assert facts["adaptation"]["steps"] > 0
    assert facts["cost"]["backward_tokens"] > 0
    assert controller.learner.verify(full=True).hash == before == facts["proof"]["hash"]


@pytest.mark.parametrize(
    ("kind", "pairs", "query"),
    [
        ("grid", [([[1, 2]], [[2, 1]]), ([[3, 4]], [[4, 3]])], [[5, 6]]),
        ("grid1d", [([[1, 2]], [[2, 1]]), ([[3, 4]], [[4, 3]])], [[5, 6]]),
        ("list", [([1, 2], [2, 1]), ([3, 4], [4, 3])], [5, 6]),
        ("text", [("cat", "tac"), ("dog", "god")], "fox"),
    ],
)
def test_tasks_of_every_kind_are_answered(serve, kind, pairs, query):
    demonstrations = [{"input": source, "output": target} for source, target in pairs]
    response = serve().post("/v1/solve", json={"kind": kind, "demonstrations": demonstrations, "query": query})
    assert response.status_code == 200
    assert response.json()["autottt"]["strategy"] == "in_context"


def test_a_stream_of_a_task_shows_progress_and_then_the_result(serve):
    response = serve().post("/v1/solve", json={**TASK, "strategy": "ttt_direct", "stream": True})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    *progress, result = events_of(response)
    steps = [event["autottt"] for event in progress if event["autottt"]["event"] == "step"]
    nodes = [event["autottt"]["node"] for event in progress if event["autottt"]["event"] == "node"]
    assert nodes[:2] == ["measure", "decide"]
    assert nodes[-1] == "revert"
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
    assert steps
    assert result["object"] == "autottt.result"
    assert "[6, 2, 4]" not in json.dumps(progress)


def test_a_stream_that_fails_ends_with_an_error_event(serve):
    long = {**TASK, "query": list(range(3000)), "stream": True}
    *_, last = events_of(serve().post("/v1/solve", json=long))
    assert last["error"]["code"] == "context_length_exceeded"


def test_the_right_answer_is_compared_and_never_needed(serve):
    client = serve()
    assert client.post("/v1/solve", json=TASK).json()["autottt"]["right"] is None
    assert client.post("/v1/solve", json={**TASK, "answer": [4, 2, 6]}).json()["autottt"]["right"] in (True, False)


def test_a_decision_comes_without_an_answer(serve, make_learner):
    controller = Controller(make_learner(), FixedPolicy("ttt_direct"))
    client = serve(controller)
    charged = controller.learner.guarded.charged
    response = client.post("/v1/decide", json=TASK)
    assert response.status_code == 200
    body = response.json()
    assert body["strategy"] == response.headers["x-autottt-strategy"] == "ttt_direct"
    assert set(body["scores"]) == {"in_context"}
    assert body["proof"]["hash"] == controller.learner.base_hash
    assert "answer" not in body
    assert controller.learner.guarded.charged.backward_tokens == charged.backward_tokens == 0


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"demonstrations": [{"input": [1, 2]}]}, "demonstrations[0].output"),
        ({"demonstrations": 3}, "demonstrations"),
        ({"query": None}, "query"),
        ({"query": True}, "query"),
        ({"kind": "picture"}, "kind"),
        ({"colour": "red"}, "colour"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"budget": "soon"}, "budget"),
        ({"comparison": "fuzzy"}, "comparison"),
        ({"stream": "yes"}, "stream"),
        ({"kind": "list", "query": "text"}, "query"),
        ({"kind": "grid", "query": [[1, 2], [3]]}, None),
    ],
)
def test_an_invalid_task_is_refused_with_the_name_of_the_field(serve, change, param):
    response = serve().post("/v1/solve", json={**TASK, **change})
    assert_is_error(response, 400, param=param)


def test_an_unknown_strategy_is_refused_with_the_known_ones(serve):
    response = serve().post("/v1/solve", json={**TASK, "strategy": "magic"})
    assert_is_error(response, 400, param="strategy")
    assert "in_context" in response.json()["error"]["message"]


def test_a_task_that_does_not_fit_is_refused_without_the_path_of_the_model(serve, controller):
    object.__setattr__(controller.learner.loaded, "name", "/srv/models/secret-model")
    response = serve().post("/v1/solve", json={**TASK, "query": list(range(3000))})
    assert_is_error(response, 400, code="context_length_exceeded")
    assert "secret" not in response.text


@pytest.mark.parametrize("body", ["", "{", "[" * 100_000, '{"a": NaN}', "3", "null", '"x"', "\ud800", "1" * 10_000])
def test_a_body_that_is_no_task_is_refused(serve, body):
    response = serve().post(
        "/v1/solve", content=body.encode("utf-8", "surrogatepass"), headers={"content-type": "application/json"}
    )
    assert_is_error(response, 400)


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("content", "headers", "received"),
    [
        (b"", JSON, "received an empty body"),
        (b'{"query": [1,], "a": 1}', JSON, "received '], \"a\": 1}' in line 1, column 14 (Expecting value"),
        (b'{"query": [1]', JSON, "received the end of the text in line 1, column 14"),
        (b"{}", {}, "header `content-type: application/json`; received no content type: add the header"),
        (b"{}", {"content-type": "application/x-www-form-urlencoded"}, "received 'application/x-www-form-urlencoded'"),
        (b"[]", JSON, "expected a JSON object; received []"),
        (b'"x"', JSON, "expected a JSON object; received 'x'"),
        (b"null", JSON, "expected a JSON object; received None"),
        (b"3", JSON, "expected a JSON object; received 3"),
        (b'{"query": "\xff"}', JSON, "expected a text in UTF-8; received the byte 0xff in place 11"),
        (
            gzip.compress(b"{}", mtime=0),
            {**JSON, "content-encoding": "gzip"},
            "no content encoding; received 'gzip': send it un",
        ),
        (b"[" * 100_000, JSON, "too deep inside each other"),
        (b"1" * 10_000, JSON, "numbers of at most 4300 digits"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/solve", "/v1/chat/completions"])
def test_what_is_wrong_with_a_body_is_told_apart(serve, path, content, headers, received):
    response = serve().post(path, content=content, headers=headers)
    assert_is_error(response, 400, code="invalid_body")
    assert response.json()["error"]["param"] is None
    assert received in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"top-k": 3}, "top-k", "top-k: is no field"),
        ({"top k": 3}, "'top k'", "'top k': is no field"),
        ({"": 3}, "''", "'': is no field"),
        ({"\ud800" * 99: 3}, None, "received '"),
        ({"demonstrations": [{"input": [1], "output": [1], "out-put": 1}]}, "demonstrations[0].out-put", "is no field"),
        ({"demonstrations": [{"input": [1]}]}, "demonstrations[0].output", "expected a value; the field is missing"),
        ({"demonstrations": [3]}, "demonstrations[0]", "expected an object; received 3"),
        ({"demonstrations": 3}, "demonstrations", "expected a valid list; received 3"),
        ({"kind": "picture"}, "kind", "expected 'grid', 'grid1d', 'list' or 'text'; received 'picture'"),
        ({"budget": [1]}, "budget", "received [1]"),
        ({"seed": 2**63}, "seed", f"expected a number less than or equal to {2**63 - 1}; received {2**63}"),
        ({"id": "x" * 300}, "id", "id: expected at most 200 characters; received 'xxx"),
        ({"id": ""}, "id", "id: expected at least 1 character; received ''"),
    ],
)
def test_a_field_that_is_refused_is_named_with_what_was_received(serve, change, param, message):
    response = serve().post("/v1/solve", content=json.dumps({**TASK, **change}), headers=JSON)
    assert_is_error(response, 400, param=param)
    assert message in response.json()["error"]["message"]
    assert len(response.json()["error"]["message"]) < 300


def test_unknown_fields_that_are_null_are_left_out(serve):
    client = serve()
    pairs = [{**pair, "note": None} for pair in TASK["demonstrations"]]
    assert client.post("/v1/solve", json={**TASK, "colour": None, "demonstrations": pairs}).status_code == 200
    assert_is_error(client.post("/v1/solve", json={**TASK, "colour": 0}), 400, param="colour")


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics", "/v1/models", "/openapi.json"])
def test_head_gets_what_get_does_without_the_body(serve, path):
    client = serve()
    answered = client.head(path)
    assert answered.status_code == 200
    assert answered.content == b""
    assert answered.headers["content-type"] == client.get(path).headers["content-type"]
    assert client.head("/v1/solve").status_code == 405


def test_unknown_paths_methods_and_models_are_errors_in_the_same_shape(serve):
    client = serve()
    assert_is_error(client.get("/v1/unknown"), 404, code="unknown_path")
    assert_is_error(client.get("/v1/solve"), 405, code="method_not_allowed")
    assert "expected POST" in client.get("/v1/solve").json()["error"]["message"]
    assert "allow" in client.get("/v1/solve").headers
    assert_is_error(client.get("/v1/models/other"), 404, code="model_not_found")
    assert_is_error(client.post("/v1/solve", json={**TASK, "model": "other"}), 404, param="model")


def test_an_unexpected_error_is_a_500_that_quotes_nothing(serve, controller, monkeypatch, caplog):
    def broken(*arguments, **options):
        raise RuntimeError("secret in /etc/secret/file")

    monkeypatch.setattr(Scheduler, "asolve", broken)
    response = serve().post("/v1/solve", json=TASK)
    assert_is_error(response, 500)
    assert "secret" not in response.text
    assert "secret" not in caplog.text


def test_a_base_that_changed_stops_the_service(serve, controller):
    client = serve()
    next(controller.learner.loaded.model.parameters()).data.add_(1)
    assert_is_error(client.post("/v1/solve", json=TASK), 503, code="base_changed")
    assert client.get("/readyz").status_code == 503
    assert 'autottt_reverts_total{outcome="failed"} 1.0' in client.get("/metrics").text


# --- health, models, metrics -----------------------------------------------------------------------------------------


def test_the_server_is_healthy_at_once_and_ready_once_the_model_is_loaded(serve, controller):
    client = serve(None)
    assert client.get("/healthz").json() == {"status": "ok"}
    assert_is_error(client.get("/readyz"), 503, code="loading")
    refused = client.post("/v1/solve", json=TASK)
    assert_is_error(refused, 503, code="loading")
    assert 1 <= int(refused.headers["retry-after"]) <= 120
    client.engine.use(controller)
    assert client.get("/readyz").json() == {"status": "ready"}
    assert client.post("/v1/solve", json=TASK).status_code == 200


def test_models_are_listed(serve):
    client = serve()
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert MODEL in [model["id"] for model in listed["data"]]
    assert client.get(f"/v1/models/{MODEL}").json()["id"] == MODEL


def test_metrics_count_decisions_stages_reverts_and_failures(serve):
    client = serve()
    client.post("/v1/solve", json=TASK)
    client.post("/v1/solve", json={**TASK, "strategy": "ttt_direct"})
    client.post("/v1/solve", json={**TASK, "query": list(range(3000))})
    client.get("/some/path/that/is/not/there")
    page = client.get("/metrics").text
    for line in (
        "autottt_queue_length 0.0",
        'autottt_decisions_total{strategy="in_context"} 1.0',
        'autottt_decisions_total{strategy="ttt_direct"} 1.0',
        'autottt_stage_seconds_count{stage="measure"} 2.0',
        'autottt_reverts_total{outcome="proven"} 2.0',
        'autottt_failures_total{error="TooLongError"} 1.0',
        'autottt_adapter_uses_total{source="trained"} 1.0',
        'autottt_requests_total{path="/v1/solve",status="200"} 2.0',
        'autottt_requests_total{path="other",status="404"} 1.0',
        "autottt_cached_adapters 1.0",
    ):
        assert line in page
    assert 'error="Cancelled"' not in page
    assert re.search(r"^autottt_cached_adapter_bytes [1-9]", page, re.MULTILINE)


def test_the_openapi_document_names_every_path(serve):
    document = serve().get("/openapi.json").json()
    assert {"/v1/solve", "/v1/decide", "/v1/feedback", "/v1/models", "/healthz", "/readyz"} <= set(document["paths"])
    assert document["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"] == [
        MODEL,
        f"{MODEL}-fewshot",
    ]
    for path in ("/v1/solve", "/v1/chat/completions"):
        answered = document["paths"][path]["post"]["responses"]["200"]["content"]
        assert set(answered) == {"application/json", "text/event-stream"}


# --- feedback --------------------------------------------------------------------------------------------------------


@pytest.fixture
def traced(make_learner, tmp_path):
    """A function that makes a controller whose traces are stored, and its store."""

    def make(*, content: bool):
        store = TraceStore(tmp_path / "traces.sqlite")
        recorder = TraceRecorder([store], content=content)
        return Controller(make_learner(), FixedPolicy("in_context"), trace=recorder), store

    return make


def test_feedback_labels_the_trace_without_storing_content(serve, traced):
    controller, store = traced(content=False)
    client = serve(controller)
    solved = client.post("/v1/solve", json=TASK)
    trace_id = solved.headers["x-autottt-trace-id"]
    assert trace_id == solved.json()["autottt"]["trace_id"]
    response = client.post("/v1/feedback", json={"trace_id": trace_id, "answer": [99, 98, 97]})
    assert response.json() == {"trace_id": trace_id, "object": "autottt.label", "right": False}
    trace = store.get(trace_id)
    assert trace.label == {"right": False, "strategies": {"in_context": False}}
    assert "99" not in json.dumps(trace.label)
    assert store.summaries()[0].is_right is False
    assert client.post("/v1/feedback", json={"trace_id": trace_id, "right": True}).json()["right"] is True
    assert store.summaries()[0].is_right is True


def test_feedback_with_the_right_answer_labels_the_answer_of_every_strategy(serve, traced):
    controller, store = traced(content=True)
    client = serve(controller)
    solved = client.post("/v1/solve", json={**TASK, "strategy": "ttt_direct"}).json()
    trace_id, given = solved["autottt"]["trace_id"], solved["answer"]
    right_answer = given if given is not None else [1]
    client.post("/v1/feedback", json={"trace_id": trace_id, "answer": right_answer})
    label = store.get(trace_id).label
    assert label["answer"] == right_answer
    assert set(label["strategies"]) == {"in_context", "ttt_direct"}
    assert label["right"] == (given is not None)


@pytest.mark.parametrize("in_memory", [True, False])
def test_feedback_that_says_less_keeps_what_earlier_feedback_said_beyond_it(serve, traced, in_memory):
    controller, store = traced(content=True)
    client = serve(controller)
    trace_id = client.post("/v1/solve", json={**TASK, "strategy": "ttt_direct"}).json()["autottt"]["trace_id"]
    client.post("/v1/feedback", json={"trace_id": trace_id, "answer": [99, 98, 97]})
    full = store.get(trace_id).label
    client = client if in_memory else serve(controller)
    client.post("/v1/feedback", json={"trace_id": trace_id, "right": False})
    assert store.get(trace_id).label == full
    client.post("/v1/feedback", json={"trace_id": trace_id, "right": True})
    corrected = store.get(trace_id).label
    assert corrected["right"], "contrary feedback replaces it"
    assert "answer" not in corrected


def test_feedback_that_the_answer_is_right_labels_every_strategy_and_wrong_only_equal_ones():
    answers = _Answers("list", "exact", (2,), "ttt_direct", {"in_context": (1,), "ttt_direct": (2,), "ttt_warm": (2,)})
    assert answers.labels_of_given(True) == {"in_context": False, "ttt_direct": True, "ttt_warm": True}
    assert answers.labels_of_given(False) == {"ttt_direct": False, "ttt_warm": False}
    assert answers.labels(answers.canonical([1])) == {"in_context": True, "ttt_direct": False, "ttt_warm": False}


@pytest.mark.parametrize(
    ("outputs", "served", "right_answer"),
    [
        (("one", "two"), "it", " it.\n"),
        (("one", "two"), "it", "The answer is it."),
        (("one.", "two."), "it.", "it."),
        (('"one"', '"two"'), '"it"', '"it"'),
        (("Answer: one", "Answer: two"), "Answer: it", "Answer: it"),
    ],
)
def test_feedback_with_the_text_that_was_served_is_right_and_is_so_for_retraining(
    serve, traced, outputs, served, right_answer, monkeypatch
):
    attempt = Attempt("in_context", served, served, 0.5)
    monkeypatch.setattr("autottt.policies.measurement.from_answer", lambda name, answer: attempt)
    controller, store = traced(content=True)
    client = serve(controller)
    shown = [{"input": str(number), "output": output} for number, output in enumerate(outputs)]
    solved = client.post("/v1/solve", json={"demonstrations": shown, "query": "3"}).json()
    assert solved["answer"] == served
    trace_id = solved["autottt"]["trace_id"]
    assert client.post("/v1/feedback", json={"trace_id": trace_id, "answer": right_answer}).json()["right"]
    trace = store.get(trace_id)
    assert trace.label == {"right": True, "strategies": {"in_context": True}, "answer": served}
    (row,) = log_rows([trace])[0]
    assert row["task"]["answer"] == row["in_context"]["value"] == served


@pytest.mark.parametrize("own", [None, "no"])
@pytest.mark.parametrize(
    ("feedback", "right", "headline", "right_answer"),
    [
        ({"answer": "it"}, True, "Right", "it"),
        ({"answer": "that"}, False, "Wrong", "that"),
        ({"right": True}, True, "Right", "it"),
        ({"right": False}, False, "Wrong", None),
    ],
)
@pytest.mark.parametrize("content", [True, False])
def test_every_view_of_a_run_says_what_feedback_said(
    serve, traced, own, feedback, right, headline, right_answer, content, monkeypatch
):
    attempt = Attempt("in_context", "it", "it", 0.5)
    monkeypatch.setattr("autottt.policies.measurement.from_answer", lambda name, answer: attempt)
    controller, store = traced(content=content)
    client = serve(controller)
    shown = [{"input": "a", "output": "one"}, {"input": "b", "output": "two"}]
    request = {"demonstrations": shown, "query": "c"} | ({} if own is None else {"answer": own})
    trace_id = client.post("/v1/solve", json=request).json()["autottt"]["trace_id"]
    client.post("/v1/feedback", json={"trace_id": trace_id, **feedback})
    trace = store.get(trace_id)
    assert store.summaries()[0].is_right is trace.is_right is right
    assert summary_of(trace)[0].headline == headline
    assert correctness(trace) == (float(right), "correct" if right else "incorrect")
    words = explanation(trace)
    assert f"The answer is {headline.lower()}" in words
    if content:
        assert f'Answer of in_context: "it", {headline.lower()}.' in words
        expected = right_answer or own
        assert (f'Right answer: "{expected}".' in words) == (expected is not None)
        page = view_of(trace, ["in_context"])
        assert (page["task"]["answer"], page["answers"][0]["right"]) == (expected, right)


@pytest.mark.parametrize("limit", [{"stop": ["t"]}, {"max_tokens": 1}])
@pytest.mark.parametrize("is_right", [True, False])
def test_feedback_on_a_chat_that_was_cut_is_compared_with_what_was_served(serve, traced, limit, is_right, monkeypatch):
    attempt = Attempt("in_context", "it", "it", 0.5)
    monkeypatch.setattr("autottt.policies.measurement.from_answer", lambda name, answer: attempt)
    controller, store = traced(content=True)
    client = serve(controller)
    shown = [{"input": "a", "output": "one"}, {"input": "b", "output": "two"}]
    request = {"model": MODEL, "messages": [{"role": "user", "content": "c"}], "demonstrations": shown, **limit}
    response = client.post("/v1/chat/completions", json=request).json()
    served = response["choices"][0]["message"]["content"]
    assert served == "i"
    feedback = {"trace_id": response["autottt"]["trace_id"], "answer": served if is_right else "it"}
    assert client.post("/v1/feedback", json=feedback).json()["right"] is is_right
    trace = store.get(feedback["trace_id"])
    assert trace.label == {"right": is_right, "strategies": {"in_context": is_right}}
    (row,) = log_rows([trace])[0]
    assert (row["task"]["answer"] == row["in_context"]["value"]) is is_right


def test_feedback_on_a_chat_of_lists_may_be_the_text_that_was_served(serve, traced, monkeypatch):
    attempt = Attempt("in_context", (8, 6, 1), "8 6 1", 0.5)
    monkeypatch.setattr("autottt.policies.measurement.from_answer", lambda name, answer: attempt)
    client = serve(traced(content=True)[0])
    request = {"model": MODEL, "messages": [{"role": "user", "content": "[6, 2, 4]"}]}
    response = client.post("/v1/chat/completions", json={**request, "demonstrations": TASK["demonstrations"]}).json()
    served = response["choices"][0]["message"]["content"]
    assert served == "[8, 6, 1]"
    feedback = {"trace_id": response["autottt"]["trace_id"], "answer": served}
    assert client.post("/v1/feedback", json=feedback).json()["right"]


@pytest.mark.parametrize(
    ("feedback", "status", "param"),
    [
        ({"trace_id": "0" * 12, "right": True}, 404, "trace_id"),
        ({"trace_id": "../../etc", "right": True}, 400, "trace_id"),
        ({"trace_id": "0" * 12}, 400, "answer"),
        ({"trace_id": "0" * 12, "right": True, "answer": [1]}, 400, "answer"),
        ({"trace_id": "0" * 12, "answer": [1]}, 404, "trace_id"),
        ({"trace_id": "0" * 12, "right": "yes"}, 400, "right"),
    ],
)
def test_feedback_that_cannot_be_stored_is_refused(serve, traced, feedback, status, param):
    controller, _ = traced(content=False)
    assert_is_error(serve(controller).post("/v1/feedback", json=feedback), status, param=param)


def test_an_answer_that_the_kind_of_the_task_does_not_have_is_refused_by_its_field(serve, traced):
    controller, _ = traced(content=False)
    client = serve(controller)
    trace_id = client.post("/v1/solve", json=TASK).headers["x-autottt-trace-id"]
    response = client.post("/v1/feedback", json={"trace_id": trace_id, "answer": "x"})
    assert_is_error(response, 400, param="answer")
    assert response.json()["error"]["message"].startswith("answer: expected a list of integers")


def test_an_id_may_be_an_integer_as_in_a_task_file(serve, make_learner):
    client = serve(Controller(make_learner(), FixedPolicy("in_context")))
    assert client.post("/v1/solve", json={**TASK, "id": 7}).status_code == 200
    for other in (True, 1.5, 2**70):
        assert_is_error(client.post("/v1/solve", json={**TASK, "id": other}), 400, param="id")


def test_feedback_labels_no_run_of_another_client(serve, traced):
    controller, store = traced(content=False)
    client = serve(controller, keys=ApiKeys({"key-of-the-first-client": "one", "key-of-another-client": "other"}))
    mine, others = ({"authorization": f"Bearer {key}"} for key in ("key-of-the-first-client", "key-of-another-client"))
    trace_id = client.post("/v1/solve", json=TASK, headers=mine).json()["autottt"]["trace_id"]
    label = {"trace_id": trace_id, "right": True}
    refused = client.post("/v1/feedback", json=label, headers=others)
    assert_is_error(refused, 404, param="trace_id", code="trace_not_found")
    assert not store.get(trace_id).label
    assert client.post("/v1/feedback", json=label, headers=mine).status_code == 200


@pytest.mark.parametrize("label", [{"right": True}, {"answer": [99, 98, 97]}])
def test_feedback_while_another_process_writes_to_the_store_may_be_sent_again(serve, traced, label, monkeypatch):
    monkeypatch.setattr("autottt.controller.tracing.store.BUSY_SECONDS", 0.05)
    controller, store = traced(content=False)
    client = serve(controller)
    feedback = {"trace_id": client.post("/v1/solve", json=TASK).headers["x-autottt-trace-id"], **label}
    store.close()  # the next connection waits for the time above
    with closing(sqlite3.connect(store.file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        busy = client.post("/v1/feedback", json=feedback)
    assert_is_error(busy, 503, code="trace_store")
    assert "another process" in busy.json()["error"]["message"]
    assert int(busy.headers["retry-after"]) > 0
    assert not store.get(feedback["trace_id"]).label
    assert client.post("/v1/feedback", json=feedback).status_code == 200


@pytest.mark.parametrize("in_memory", [True, False])
def test_feedback_on_a_damaged_trace_is_not_to_be_sent_again(serve, traced, in_memory):
    controller, store = traced(content=False)
    client = serve(controller)
    trace_id = client.post("/v1/solve", json=TASK).headers["x-autottt-trace-id"]
    with closing(sqlite3.connect(store.file, isolation_level=None)) as other:
        other.execute("UPDATE bodies SET body = x'00'")
    client = client if in_memory else serve(controller)
    refused = client.post("/v1/feedback", json={"trace_id": trace_id, "answer": [1]})
    assert_is_error(refused, 503, code="trace_store")
    assert "retry-after" not in refused.headers


def test_feedback_needs_stored_traces(serve):
    assert_is_error(serve().post("/v1/feedback", json={"trace_id": "0" * 12, "right": True}), 400, code="no_traces")


# --- the trace of the caller, and of a run that fails ----------------------------------------------------------------

PARENT = f"00-{'a1' * 16}-{'b2' * 8}-01"


@pytest.mark.parametrize("path", ["/v1/solve", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_span_of_the_client_is_the_parent_of_the_run(serve, make_learner, tmp_path, path, stream):
    store, spans = TraceStore(tmp_path / "traces.sqlite"), InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    recorder = TraceRecorder([store, TelemetryTarget(provider=provider)], content=False)
    client = serve(Controller(make_learner(), FixedPolicy("in_context"), trace=recorder))
    pairs = [{"input": text, "output": text[::-1]} for text in ("cat", "dog")]
    chat = {"messages": [{"role": "user", "content": "hen"}], "model": MODEL, "demonstrations": pairs}
    body = {**(TASK if path == "/v1/solve" else chat), "stream": stream}
    client.post(path, json=body, headers={"traceparent": PARENT, "tracestate": "vendor=1"})
    (root,) = [span for span in spans.get_finished_spans() if span.name == "solve"]
    assert f"{root.context.trace_id:032x}" == "a1" * 16
    assert f"{root.parent.span_id:016x}" == "b2" * 8
    assert root.parent.is_remote
    assert root.parent.trace_state.get("vendor") == "1"
    assert store.get("last").attributes["caller"]["traceparent"] == PARENT
    client.post(path, json=body)
    assert "caller" not in store.get("last").attributes
    assert spans.get_finished_spans()[-1].context.trace_id != root.context.trace_id


@pytest.mark.parametrize(
    "header",
    ["", "nonsense", PARENT.replace("a", "A"), f"{PARENT}-more", f"ff{PARENT[2:]}", f"00-{'0' * 32}-{'b2' * 8}-01",
     f"00-{'a1' * 16}-{'0' * 16}-01"],
)  # fmt: skip
def test_an_invalid_traceparent_counts_as_none(serve, traced, header):
    controller, store = traced(content=False)
    assert serve(controller).post("/v1/solve", json=TASK, headers={"traceparent": header}).status_code == 200
    assert "caller" not in store.get("last").attributes


def test_a_run_that_fails_names_its_trace_and_its_client_can_read_it(serve, traced, monkeypatch):
    controller, store = traced(content=True)
    client = serve(controller, keys=ApiKeys({"key-of-the-first-client": "one", "key-of-another-client": "other"}))
    mine, others = ({"authorization": f"Bearer {key}"} for key in ("key-of-the-first-client", "key-of-another-client"))

    def broken(*arguments, **settings):
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(type(controller.learner), "verify", broken)
    for stream in (False, True):
        response = client.post("/v1/solve", json={**TASK, "stream": stream}, headers=mine)
        error = events_of(response)[-1] if stream else response.json()
        assert error["error"]["code"] == "internal_error"
        trace_id = error["autottt"]["trace_id"]
        assert store.get(trace_id).attributes["task"]["query"] == TASK["query"]
        page = client.get(error["autottt"]["trace"], headers=mine)
        assert page.status_code == 200
        assert "<html" in page.text
        assert_is_error(client.get(error["autottt"]["trace"], headers=others), 404, code="trace_not_found")
        if not stream:
            assert response.headers["x-autottt-trace-id"] == trace_id


def test_an_error_of_a_run_that_is_not_recorded_names_no_trace(serve):
    long = {**TASK, "query": [1] * 2000}
    assert serve().post("/v1/solve", json=long).json().keys() == {"error"}


def test_the_application_is_made_without_importing_a_model_library():
    code = "import sys, autottt.controller.server.serving, autottt.controller.server.app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "fastapi" in loaded
    assert not {"torch", "transformers", "langgraph", "numpy", "sklearn"} & set(loaded)


# --- the scheduler ----------------------------------------------------------------------------------------------------


def test_an_easy_request_is_answered_while_others_train(serve, controller):
    recipe = Recipe(rank=2, alpha=2, max_steps=100_000, batch_size=2, early_stop_loss=0.0)
    controller.learner.loaded = replace(controller.learner.loaded, recipes={"ttt_direct": recipe})
    client = serve(limits=Limits(seconds=600))
    trained = []

    def train():
        trained.append(client.post("/v1/solve", json={**TASK, "strategy": "ttt_direct", "budget": "1000s"}))

    threads = [threading.Thread(target=train) for _ in range(2)]
    for thread in threads:
        thread.start()
    scheduler = client.engine.scheduler
    while scheduler.lanes.learner.guarded.charged.forward_tokens == 0 or len(scheduler.lanes._to_read):
        time.sleep(0.01)
    while not any(job.phase == "answering" for job in list(scheduler.lanes._jobs)):
        time.sleep(0.01)
    assert client.post("/v1/solve", json=TASK).json()["autottt"]["strategy"] == "in_context"
    assert client.post("/v1/decide", json=TASK).json()["strategy"] == "in_context"
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
    assert client.post("/v1/chat/completions", json=chat).status_code == 200
    assert not trained
    page = client.get("/metrics").text
    assert "autottt_queue_length 1.0" in page
    assert "autottt_running 1.0" in page
    scheduler.close(cancel=True)
    for thread in threads:
        thread.join()
    assert [response.status_code for response in trained] == [503, 503]
