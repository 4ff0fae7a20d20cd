"""Another server with OpenAI's API in place of the in-context answer: what it answers, and what if it fails."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from autottt import Controller, FixedPolicy
from autottt.controller.server.upstream import Upstream
from autottt.controller.tracing.log_rows import log_rows
from autottt.controller.tracing.recorder import TraceRecorder
from autottt.controller.tracing.store import TraceStore
from autottt.policies.serving_logs import outcomes_of
from autottt.strategies.base import Attempt
from autottt.ttt_core.errors import SettingsError
from tests.controller.server.conftest import TASK
from tests.controller.server.test_app import events_of
from tests.controller.server.test_chat import CONVERSATION, FEW_SHOT

PATH = "/v1/chat/completions"


class Other:
    """A server that answers every chat with one text, and remembers what it was asked."""

    def __init__(self) -> None:
        self.text, self.status, self.breaks_off, self.lists = "tac", 200, False, True
        self.finish_reason, self.model = "stop", "the-model"
        self.asked: list[dict] = []
        self.headers: list[str | None] = []
        other = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = json.dumps({"data": [{"id": other.model}]} if other.lists else {"oops": 1}).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self):
                other.headers.append(self.headers.get("authorization"))
                other.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                known = other.asked[-1]["model"] in (other.model, "named")
                self.send_response(other.status if known else 404)
                self.end_headers()
                pieces = [other.text[:1], other.text[1:]]
                for piece in pieces:
                    self.event({"choices": [{"delta": {"content": piece}, "finish_reason": None}]})
                if not other.breaks_off:
                    self.event({"choices": [{"delta": {}, "finish_reason": other.finish_reason}]})
                    usage = {"prompt_tokens": 11, "completion_tokens": 3}
                    self.event({"choices": [], "usage": usage})
                    self.wfile.write(b"data: [DONE]\n\n")

            def event(self, content):
                self.wfile.write(f": comment\n\ndata: {json.dumps(content)}\n\n".encode())

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def running():
    other = Other()
    thread = threading.Thread(target=other.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield other
    finally:
        other.server.shutdown()
        other.server.server_close()
        thread.join()


@pytest.fixture
def other():
    with running() as server:
        yield server


def test_a_conversation_is_answered_there_and_the_model_here_is_not_used(serve, controller, other):
    client = serve(upstream=Upstream(other.url, key="secret-of-the-other"))
    response = client.post(PATH, json={**CONVERSATION, "temperature": 0.5, "seed": 3, "stop": "x"})
    body = response.json()
    assert body["choices"][0]["message"]["content"] == "tac"
    assert body["autottt"]["decision"] == "not_few_shot"
    assert body["autottt"]["source"] == {"server": other.url, "fallback": ""}
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (11, 3)
    assert controller.learner.guarded.charged.forward_tokens == 0
    (asked,) = other.asked
    assert asked["messages"] == CONVERSATION["messages"]
    assert (asked["model"], asked["temperature"], asked["seed"], asked["stop"]) == ("the-model", 0.5, 3, ["x"])
    assert other.headers == ["Bearer secret-of-the-other"]


def test_a_conversation_is_streamed_from_there(serve, other):
    chunks = events_of(serve(upstream=Upstream(other.url)).post(PATH, json={**CONVERSATION, "stream": True}))
    pieces = [text for chunk in chunks if (text := chunk["choices"][0]["delta"].get("content"))]
    assert pieces == ["t", "ac"]


def test_an_easy_few_shot_chat_is_answered_there(serve, other):
    body = serve(upstream=Upstream(other.url, model="named")).post(PATH, json=FEW_SHOT).json()
    assert body["choices"][0]["message"]["content"] == "tac"
    assert body["autottt"]["strategy"] == body["autottt"]["decision"] == "in_context"
    assert body["autottt"]["source"]["server"] == other.url
    (asked,) = other.asked
    assert asked["messages"] == FEW_SHOT["messages"]
    assert (asked["model"], asked["temperature"]) == ("named", 0.0)


def test_an_easy_task_is_answered_there_and_compared_with_its_answer(serve, other):
    other.text = "The answer is:\n\n[4, 2, 6]"
    body = serve(upstream=Upstream(other.url)).post("/v1/solve", json={**TASK, "answer": [4, 2, 6]}).json()
    assert body["answer"] == [4, 2, 6]
    assert body["autottt"]["right"] is True
    assert body["autottt"]["source"]["server"] == other.url


def test_a_hard_task_is_trained_here(serve, make_learner, other):
    client = serve(Controller(make_learner(), FixedPolicy("ttt_direct")), upstream=Upstream(other.url))
    for response in (client.post("/v1/solve", json=TASK), client.post(PATH, json=FEW_SHOT)):
        assert response.json()["autottt"]["cost"]["backward_tokens"] > 0
    assert other.asked == []


def wrong_status(other):
    other.status = 500


def broken_off(other):
    other.breaks_off, other.text = True, ""


def lists_no_models(other):
    other.lists = False


@pytest.mark.parametrize("damage", [wrong_status, broken_off, lists_no_models])
@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_fails_is_replaced_by_this_one_and_the_record_says_so(serve, other, damage, stream):
    damage(other)
    plain = serve()
    for body in (CONVERSATION, FEW_SHOT):
        client = serve(upstream=Upstream(other.url))
        expected = plain.post(PATH, json=body).json()["choices"][0]["message"]["content"]
        response = client.post(PATH, json={**body, "stream": stream})
        assert response.status_code == 200
        if stream:
            chunks = events_of(response)
            text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
            source = chunks[-1]["autottt"]["source"]
        else:
            text, source = response.json()["choices"][0]["message"]["content"], response.json()["autottt"]["source"]
        assert text == expected
        assert source["server"] == ""
        assert source["fallback"].startswith("the ")


def test_a_server_that_is_down_is_not_asked_again_at_once(serve):
    with running() as other:
        url = other.url
    upstream = Upstream(url)
    client = serve(upstream=upstream)
    first = client.post("/v1/solve", json=TASK).json()
    assert "cannot be reached" in first["autottt"]["source"]["fallback"]
    second = client.post("/v1/solve", json=TASK).json()
    assert "a moment ago" in second["autottt"]["source"]["fallback"]
    assert first["text"] == second["text"] == serve().post("/v1/solve", json=TASK).json()["text"]


def test_a_bad_request_of_one_client_turns_the_server_off_for_nobody(serve, other):
    client = serve(upstream=Upstream(other.url))
    other.status = 400
    first = client.post(PATH, json=CONVERSATION).json()
    assert "with the status 400" in first["autottt"]["source"]["fallback"]
    other.status = 200
    assert client.post(PATH, json=CONVERSATION).json()["autottt"]["source"]["server"] == other.url


def test_a_server_with_another_model_now_is_asked_for_its_name_again(serve, other):
    client = serve(upstream=Upstream(other.url))
    sources = []
    for model in ("the-model", "another", "another"):
        other.model = model
        sources.append(client.post(PATH, json=CONVERSATION).json()["autottt"]["source"])
    assert [source["server"] for source in sources] == [other.url, "", other.url]
    assert "with the status 404" in sources[1]["fallback"]
    given = serve(upstream=Upstream(other.url, model="mine"))
    assert [given.post(PATH, json=CONVERSATION).json()["autottt"]["source"]["server"] for _ in range(2)] == ["", ""]
    assert other.asked[-1]["model"] == "mine"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_overloaded_or_broken_server_is_not_asked_again_at_once(serve, other, status):
    client = serve(upstream=Upstream(other.url, model="named"))
    other.status = status
    assert f"with the status {status}" in client.post(PATH, json=CONVERSATION).json()["autottt"]["source"]["fallback"]
    other.status = 200
    assert "a moment ago" in client.post(PATH, json=CONVERSATION).json()["autottt"]["source"]["fallback"]


def test_an_answer_that_breaks_off_after_its_beginning_is_an_error_and_no_mixture(serve, other):
    other.breaks_off = True
    *_, last = events_of(serve(upstream=Upstream(other.url)).post(PATH, json={**CONVERSATION, "stream": True}))
    assert last["error"]["code"] == "other_server"


def test_an_answer_of_another_kind_is_not_taken(serve, other):
    other.text = "I do not know"
    body = serve(upstream=Upstream(other.url)).post("/v1/solve", json=TASK).json()
    assert "no value of the kind list" in body["autottt"]["source"]["fallback"]


def test_an_answer_to_a_task_that_was_cut_off_is_not_taken(serve, other):
    other.text, other.finish_reason = "[4, 2]", "length"
    for path, request in (("/v1/solve", TASK), (PATH, FEW_SHOT)):
        source = serve(upstream=Upstream(other.url)).post(path, json=request).json()["autottt"]["source"]
        assert source == {"server": "", "fallback": "the answer of the other server was cut off at its token limit"}


HERE, THERE = [7], [8]
"""What the model here and the other server answer in the tests of feedback."""


@pytest.fixture
def labelled(serve, other, controller, tmp_path, monkeypatch):
    """A function that lets the other server answer a task and sends feedback: whether the answer was right, and the
    labelled trace. With `later`, the server that gets the feedback has no answers in memory."""
    here = Attempt("in_context", tuple(HERE), str(HERE), 0.5)
    monkeypatch.setattr("autottt.policies.measurement.from_answer", lambda name, answer: here)
    other.text = str(THERE)
    store = TraceStore(tmp_path / "traces.sqlite")

    def label(feedback, *, content: bool = True, later: bool = False):
        traced = Controller(controller.learner, controller.policy, trace=TraceRecorder([store], content=content))
        client = serve(traced, upstream=Upstream(other.url))
        solved = client.post("/v1/solve", json=TASK).json()
        assert (solved["answer"], solved["autottt"]["in_context_answer"]) == (THERE, HERE)
        client = serve(traced, upstream=Upstream(other.url)) if later else client
        trace_id = solved["autottt"]["trace_id"]
        response = client.post("/v1/feedback", json={"trace_id": trace_id, **feedback})
        return response.json()["right"], store.get(trace_id)

    return label


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("right", [False, True])
def test_feedback_on_the_other_servers_answer_labels_no_answer_of_the_model_here(labelled, content, right, later):
    is_right, trace = labelled({"right": right}, content=content, later=later)
    assert is_right is right
    assert trace.label == {"right": right, "strategies": {}, "other_server": True}
    rows, _ = log_rows([trace])
    assert ([row["task"]["answer"] for row in rows], outcomes_of(rows)) == ([None], [])


@pytest.mark.parametrize(("answer", "right"), [(THERE, True), (HERE, False), ([9], False)])
def test_the_right_answer_is_compared_with_the_given_answer_and_with_that_of_the_model_here(labelled, answer, right):
    is_right, trace = labelled({"answer": answer})
    assert is_right is trace.label["right"] is right
    assert trace.label["strategies"] == {"in_context": answer == HERE}
    assert log_rows([trace])[0][0]["task"]["answer"] == answer


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://host/v1", "http://", "http://host:x/v1", "http://h/v1?a=b"]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(SettingsError, match="--in-context-url"):
        Upstream(url)


def test_the_record_names_the_server_without_credentials():
    assert Upstream("https://me:secret@host:8001/v1/").server == "https://host:8001"
    assert Upstream("http://[::1]:8001").server == "http://[::1]:8001"
