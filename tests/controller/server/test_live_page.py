"""The page at `/` and the pages of traces: their policies, who may read what, and the events that the page shows.

What a browser makes of it is tested in tests/browser.
"""

from __future__ import annotations

import json
import re

import pytest

from autottt import Controller, FixedPolicy
from autottt.controller.server import live_page
from autottt.controller.server.guard import ApiKeys
from autottt.controller.tracing.recorder import TraceRecorder
from autottt.controller.tracing.store import TraceStore
from autottt.strategies.registry import strategies
from tests.controller.server.conftest import MODEL, TASK
from tests.controller.server.test_app import assert_is_error, events_of
from tests.controller.server.test_guard import ONE, TWO, bearer

UNKNOWN = "0123456789ab"


@pytest.fixture
def keys() -> ApiKeys:
    return ApiKeys.read(f"one:{ONE}\ntwo:{TWO}\n", "keys.txt")


@pytest.fixture
def recording(make_learner, tmp_path):
    """A function that returns a controller that records into a store, with content or without."""

    def make(content: bool = True) -> Controller:
        recorder = TraceRecorder([TraceStore(tmp_path / "traces.sqlite")], content=content)
        return Controller(make_learner(), FixedPolicy("in_context"), trace=recorder)

    return make


def solve(client, **more):
    response = client.post("/v1/solve", json=TASK, **more)
    assert response.status_code == 200
    return response.json()["autottt"]["trace_id"]


def policy_of(response) -> dict[str, str]:
    directives = response.headers["content-security-policy"].split("; ")
    return {name: value for name, _, value in (directive.partition(" ") for directive in directives)}


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_reaches_its_own_server_only(serve):
    response = serve().get("/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    policy = policy_of(response)
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["form-action"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in response.headers["content-security-policy"]
    in_page = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', response.text)
    assert in_page is not None
    assert response.headers["content-security-policy"].startswith(in_page[1])


def test_the_page_has_no_inline_handler_and_no_address(serve):
    text = serve().get("/").text
    head = text[: text.index("<style>")] + text[text.index("</style>") : text.index("<script>")]
    assert not re.search(r"\son\w+\s*=", head)
    assert not re.search(r"\sstyle\s*=", head)
    assert set(re.findall(r"https?://[^\s\"'`]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"localStorage|sessionStorage|indexedDB|document\.cookie|innerHTML|\beval\(", text)


def test_the_page_is_there_before_the_model_and_says_that_it_loads(serve):
    client = serve(None)
    assert client.get("/").status_code == 200
    assert client.get("/page/settings").json() == {
        "state": "loading", "models": [MODEL], "strategies": [], "traces": False,
    }  # fmt: skip


def test_the_settings_name_model_and_strategies(serve):
    settings = serve().get("/page/settings").json()
    assert settings == {"state": "ready", "models": [MODEL], "strategies": list(strategies()), "traces": False}


@pytest.mark.parametrize("content", [True, False])
def test_the_settings_say_whether_runs_have_pages(serve, recording, content):
    assert serve(recording(content)).get("/page/settings").json()["traces"] is content


@pytest.mark.parametrize("origin", ["http://example.com", "null"])
def test_other_origins_are_not_allowed_to_read(serve, origin):
    client = serve()
    for path in ("/", "/page/settings", "/v1/models"):
        response = client.get(path, headers={"origin": origin})
        assert not [name for name in response.headers if name.startswith("access-control-")]


# --- keys ------------------------------------------------------------------------------------------------------------


def test_the_page_needs_no_key_and_contains_none(serve, keys):
    page = serve(keys=keys).get("/")
    assert page.status_code == 200
    assert ONE not in page.text
    assert TWO not in page.text
    assert '{"needs_key":true}' in page.text
    assert '{"needs_key":false}' in serve().get("/").text


@pytest.mark.parametrize("path", ["/page/settings", f"/v1/traces/{UNKNOWN}"])
def test_what_the_page_asks_for_needs_a_key(serve, keys, path):
    client = serve(keys=keys)
    assert_is_error(client.get(path), 401, code="invalid_api_key")
    assert client.get(path, headers=bearer(ONE)).status_code in (200, 404)


# --- traces ----------------------------------------------------------------------------------------------------------


def test_a_run_has_the_page_of_its_trace(serve, recording):
    client = serve(recording())
    trace_id = solve(client)
    response = client.get(f"/v1/traces/{trace_id}")
    assert response.status_code == 200
    assert f'"id":"{trace_id}"' in response.text
    policy = policy_of(response)
    assert "connect-src" not in policy
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    allowed = policy_of(client.get("/"))
    assert all(source in allowed[name] for name in ("script-src", "style-src") for source in policy[name].split())


def test_a_few_shot_chat_has_the_page_of_its_trace(serve, recording):
    client = serve(recording())
    pairs = [{"input": "ab", "output": "ba"}, {"input": "cd", "output": "dc"}]
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "ef"}], "demonstrations": pairs}
    trace_id = client.post("/v1/chat/completions", json=chat).json()["autottt"]["trace_id"]
    assert client.get(f"/v1/traces/{trace_id}").status_code == 200


def test_a_client_reads_the_traces_of_its_own_runs(serve, recording, keys):
    client = serve(recording(), keys=keys)
    trace_id = solve(client, headers=bearer(ONE))
    assert client.get(f"/v1/traces/{trace_id}", headers=bearer(ONE)).status_code == 200
    assert_is_error(client.get(f"/v1/traces/{trace_id}", headers=bearer(TWO)), 404, code="trace_not_found")


def test_traces_of_other_programs_in_the_same_store_are_not_served(serve, recording, task):
    controller = recording()
    result = controller.solve(task)
    assert result.trace_id
    assert_is_error(serve(controller).get(f"/v1/traces/{result.trace_id}"), 404, code="trace_not_found")


def test_a_trace_without_content_has_no_page(serve, recording):
    client = serve(recording(content=False))
    trace_id = solve(client)
    assert_is_error(client.get(f"/v1/traces/{trace_id}"), 404, code="trace_without_content")


def test_a_trace_that_was_deleted_is_not_found(serve, recording):
    controller = recording()
    client = serve(controller)
    trace_id = solve(client)
    controller.recorder.targets[0].clear()
    assert_is_error(client.get(f"/v1/traces/{trace_id}"), 404, code="trace_not_found")


@pytest.mark.parametrize("trace_id", [UNKNOWN, "last", "0123", f"{UNKNOWN}'--"])
def test_an_unknown_trace_is_an_error(serve, recording, trace_id):
    client = serve(recording())
    solve(client)
    assert client.get(f"/v1/traces/{trace_id}").status_code in (400, 404)


def test_the_runs_that_are_remembered_are_bounded(serve, recording, monkeypatch):
    monkeypatch.setattr(live_page, "MAX_RUNS", 1)
    client = serve(recording())
    first, second = solve(client), solve(client)
    assert client.get(f"/v1/traces/{first}").status_code == 404
    assert client.get(f"/v1/traces/{second}").status_code == 200


# --- the stream that the page reads ----------------------------------------------------------------------------------


def test_a_streamed_run_has_all_that_the_page_shows(serve, recording):
    client = serve(recording())
    response = client.post("/v1/solve", json={**TASK, "strategy": "ttt_direct", "stream": True})
    *progress, result = events_of(response)
    events = [event["autottt"] for event in progress]
    phases = [event["phase"] for event in events if event["event"] == "phase"]
    assert phases[:4] == ["measure", "decide", "ttt_direct", "training"]
    assert [event["node"] for event in events if event["event"] == "node"][:3] == ["measure", "decide", "ttt_direct"]
    decision = next(event for event in events if event.get("node") == "decide")
    assert {"strategy", "scores", "costs", "utilities", "reason"} <= set(decision)
    steps = [event for event in events if event["event"] == "step"]
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
    assert {"strategy", "loss", "max_steps", "seconds_left"} <= set(steps[0])
    facts = result["autottt"]
    assert {"in_context_answer", "proof", "trace_id", "adaptation"} <= set(facts)
    assert client.get(f"/v1/traces/{facts['trace_id']}").status_code == 200
    assert json.dumps(TASK["query"]) not in json.dumps(progress)
