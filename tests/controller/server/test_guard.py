"""Protection: API keys, limits of requests and of the queue, adapters of clients, and what is logged."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time

import pytest

from autottt.controller.caller import name_trace
from autottt.controller.scheduler.scheduler import Scheduler
from autottt.controller.server import answers
from autottt.controller.server import guard as guard_module
from autottt.controller.server.api_errors import ApiError, api_error, without_paths
from autottt.controller.server.chat_answers import text_event
from autottt.controller.server.guard import ApiKeys, Guard
from autottt.controller.server.limits import Limits
from autottt.controller.server.metrics import Metrics
from autottt.controller.server.work_queue import WorkQueue
from autottt.ttt_core.errors import (
    AdaptationError,
    BaseChangedError,
    Cancelled,
    ClosedError,
    DeadlineError,
    ModelError,
    QueueFullError,
    SettingsError,
    TaskError,
    TraceError,
)
from tests.controller.server.conftest import MODEL, TASK
from tests.controller.server.test_app import assert_is_error

ONE, TWO = "first-key-of-a-client", "second-key-of-a-client"


@pytest.fixture
def keys() -> ApiKeys:
    return ApiKeys.read(f"# clients\n\none:{ONE}\n two : {TWO}\n", "keys.txt")


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/no/such/path", "/v1/solve"])
@pytest.mark.parametrize(
    "headers", [{}, bearer("wrong-key-of-a-client"), bearer(""), {"authorization": f"Basic {ONE}"}, bearer(f"{ONE}x")]
)
def test_a_request_without_a_valid_key_is_refused(serve, keys, path, headers):
    response = serve(keys=keys).get(path, headers=headers)
    assert_is_error(response, 401, code="invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"


def test_a_valid_key_and_probes_without_one_are_accepted(serve, keys):
    client = serve(keys=keys)
    for key in (ONE, TWO):
        assert client.get("/v1/models", headers=bearer(key)).status_code == 200
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_keys_name_their_clients_and_are_not_kept(keys):
    assert (keys.client_of(ONE), keys.client_of(TWO), keys.client_of("x"), keys.client_of("")) == (
        "one",
        "two",
        None,
        None,
    )
    assert ONE not in repr(vars(keys))
    unnamed = ApiKeys.read(ONE, "keys.txt")
    assert unnamed.client_of(ONE) not in (None, "", ONE)
    assert unnamed.client_of(ONE) == ApiKeys.read(f"{TWO}\n{ONE}", "keys.txt").client_of(ONE)


@pytest.mark.parametrize("text", ["", "# only a remark", "short", "name:short", f":{ONE}", "a key with ünïcode in it"])
def test_a_file_of_keys_that_is_invalid_is_refused_without_quoting_a_key(text):
    with pytest.raises(SettingsError) as refused:
        ApiKeys.read(text, "keys.txt")
    assert str(refused.value).startswith("keys.txt")
    assert not text or text.rpartition(":")[2] not in str(refused.value)


# --- adapters of clients ---------------------------------------------------------------------------------------------


def was_cached(client, key, strategy="ttt_direct"):
    response = client.post("/v1/solve", json={**TASK, "strategy": strategy}, headers=bearer(key))
    assert response.status_code == 200, response.text
    return response.json()["autottt"]["cost"]["backward_tokens"] == 0


def test_a_client_reuses_its_own_adapters_and_never_those_of_another(serve, keys):
    client = serve(keys=keys)
    assert [was_cached(client, key) for key in (ONE, ONE, TWO, TWO, ONE)] == [False, True, False, True, True]


def test_clients_share_adapters_where_sharing_is_on(serve, keys):
    client = serve(keys=keys, share_adapters=True)
    assert [was_cached(client, key) for key in (ONE, TWO)] == [False, True]


def test_each_client_keeps_a_limited_number_of_adapters(serve, keys, controller):
    client = serve(keys=keys, limits=Limits(adapters_per_client=1))
    for seed in (1, 2):
        client.post("/v1/solve", json={**TASK, "strategy": "ttt_direct", "seed": seed}, headers=bearer(ONE))
    assert controller.learner.adapters.cache.adapter_count == 1


# --- limits ----------------------------------------------------------------------------------------------------------


def test_a_body_beyond_the_limit_is_refused_whether_announced_or_not(serve):
    client = serve(limits=Limits(body_bytes=1000))
    assert_is_error(client.post("/v1/solve", content=b"x" * 1001), 413, code="too_large")

    def parts():
        for _ in range(20):
            yield b"x" * 100

    response = client.post("/v1/solve", content=parts())
    assert_is_error(response, 413, code="too_large")
    assert response.headers["connection"] == "close"


def test_a_body_that_does_not_arrive_is_refused(serve, monkeypatch):
    monkeypatch.setattr(guard_module, "BODY_SECONDS", 0.05)
    client = serve()
    sent = []

    async def ask():
        async def receive():
            await asyncio.sleep(5)

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/v1/solve", "raw_path": b"/v1/solve", "query_string": b"",
            "headers": [(b"content-type", b"application/json")], "http_version": "1.1", "scheme": "http",
        }  # fmt: skip
        await client.app(scope, receive, send)

    asyncio.run(ask())
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["error"]["code"] == "body_timeout"


def test_a_task_with_too_many_demonstrations_is_refused(serve):
    client = serve(limits=Limits(demonstrations=2))
    assert_is_error(client.post("/v1/solve", json=TASK), 400, param="demonstrations", code="too_many_demonstrations")
    messages = [{"role": role, "content": "a"} for role in ("user", "assistant") * 3 + ("user",)]
    for model in ("tiny", "tiny-fewshot"):
        response = client.post("/v1/chat/completions", json={"model": model, "messages": messages})
        assert_is_error(response, 400, param="demonstrations")


def test_a_run_beyond_the_time_limit_is_cancelled_and_the_model_given_back(serve, controller):
    client = serve(limits=Limits(seconds=0.15))
    with held(controller):
        response = client.post("/v1/solve", json=TASK)
    assert_is_error(response, 503, code="timeout")
    assert 1 <= int(response.headers["retry-after"]) <= 120
    assert controller.learner.verify(full=True)


def test_an_error_of_the_work_that_is_a_timeout_is_not_the_time_limit(serve, monkeypatch):
    async def broken(*arguments, **options):
        raise DeadlineError("the deadline passed")

    monkeypatch.setattr(Scheduler, "asolve", broken)
    client = serve()
    assert_is_error(client.post("/v1/solve", json=TASK), 500, code="internal_error")
    assert 'autottt_failures_total{error="DeadlineError"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("own")])
@pytest.mark.parametrize("stream", [False, True])
def test_work_that_ends_the_program_is_an_error_of_its_request_alone(serve, monkeypatch, error, stream):
    async def ends(*arguments, **options):
        raise error

    async def streams(*arguments, **options):
        raise error
        yield

    client = serve()
    with monkeypatch.context() as broken:
        broken.setattr(Scheduler, "asolve", ends)
        broken.setattr(Scheduler, "astream", streams)
        response = client.post("/v1/solve", json={**TASK, "stream": stream})
    if stream:
        assert '"code":"internal_error"' in response.text.replace(" ", "")
    else:
        assert_is_error(response, 500, code="internal_error")
    assert 'autottt_failures_total{error="RuntimeError"} 1.0' in client.get("/metrics").text
    assert client.post("/v1/solve", json=TASK).status_code == 200


class held:
    """The model is in use while inside."""

    def __init__(self, controller):
        self._turn = threading.Thread(target=self._hold, args=(controller,))
        self._held, self._release = threading.Event(), threading.Event()

    def _hold(self, controller):
        with controller.learner.guarded.lock.exclusive():
            self._held.set()
            self._release.wait(20)

    def __enter__(self):
        self._turn.start()
        self._held.wait()

    def __exit__(self, *error):
        self._release.set()
        self._turn.join()


def ask_in_threads(client, count, headers=None):
    """Responses to requests that are made side by side; those that are refused come first."""
    responses = []

    def ask():
        responses.append(client.post("/v1/solve", json=TASK, headers=headers))

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    return responses, threads


def wait_for(condition):
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("limits", "status", "code"),
    [(Limits(queue=2), 503, "queue_full"), (Limits(requests_per_client=3), 429, "too_many_requests")],
)
def test_requests_beyond_the_queue_are_refused_with_the_time_to_wait(serve, controller, limits, status, code):
    client = serve(limits=limits)
    with held(controller):
        responses, threads = ask_in_threads(client, 5)
        wait_for(lambda: len(responses) == 2)
        page = client.get("/metrics").text
        assert "autottt_queue_length 2.0" in page
        assert "autottt_running 1.0" in page
    for thread in threads:
        thread.join()
    for refused in responses[:2]:
        assert_is_error(refused, status, code=code)
        assert 1 <= int(refused.headers["retry-after"]) <= 120
    assert [response.status_code for response in responses[2:]] == [200] * 3
    assert "autottt_queue_length 0.0" in client.get("/metrics").text


def test_one_client_leaves_the_queue_to_others(serve, controller, keys):
    client = serve(keys=keys, limits=Limits(requests_per_client=1))
    with held(controller):
        first, threads = ask_in_threads(client, 2, bearer(ONE))
        wait_for(lambda: len(first) == 1)
        second, more = ask_in_threads(client, 1, bearer(TWO))
        time.sleep(0.1)
        assert not second
    for thread in (*threads, *more):
        thread.join()
    assert sorted(response.status_code for response in first) == [200, 429]
    assert second[0].status_code == 200


def test_a_request_that_is_cancelled_gives_its_place_back():
    async def run():
        queue, began, done = WorkQueue(Limits(requests_per_client=2)), [], []

        async def work(number):
            with queue.place_of("client"):
                began.append(number)
                await asyncio.sleep(0.05)
                done.append(number)

        tasks = [asyncio.create_task(work(number)) for number in range(3)]
        await asyncio.sleep(0)
        assert queue._of_client.total() == 2
        tasks[1].cancel()
        raised = await asyncio.gather(*tasks, return_exceptions=True)
        await work(3)
        return began, done, raised[2], queue

    began, done, refused, queue = asyncio.run(run())
    assert (began, done) == ([0, 1, 3], [0, 3])
    assert refused.status == 429
    assert not queue._of_client


def ask_and_leave(client, path: str, body: object) -> None:
    """Sends a request whose client leaves soon afterwards, and waits until the application has ended it."""

    async def ask():
        left = asyncio.Event()
        messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [(b"content-type", b"application/json")], "http_version": "1.1", "scheme": "http",
        }  # fmt: skip
        asked = asyncio.create_task(client.app(scope, receive, send))
        await asyncio.sleep(0.2)
        left.set()
        await asyncio.wait_for(asked, 20)
        await asyncio.sleep(0.3)

    asyncio.run(ask())


CANCELLED = 'autottt_failures_total{error="Cancelled"} 1.0'


def test_a_client_that_leaves_cancels_its_request(serve, controller):
    client = serve()
    with held(controller):
        ask_and_leave(client, "/v1/solve", {"demonstrations": [{"input": [1, 2], "output": [2, 1]}], "query": [3]})
        assert CANCELLED in client.get("/metrics").text
    wait_for(lambda: client.engine.scheduler.waiting == client.engine.scheduler.running == 0)


def test_a_client_that_leaves_cancels_its_conversation_while_text_arrives(serve, monkeypatch):
    async def endless(scheduler, chat):
        while True:
            yield text_event("more")
            await asyncio.sleep(0.01)

    monkeypatch.setattr(answers, "answer_conversation", endless)
    client = serve()
    ask_and_leave(client, "/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": "a"}]})
    assert CANCELLED in client.get("/metrics").text


# --- what is shown and logged ----------------------------------------------------------------------------------------


def test_no_prompt_answer_or_key_is_logged(serve, keys, caplog):
    caplog.set_level(logging.INFO)
    secret = "hush-hush-content"
    client = serve(keys=keys)
    messages = [{"role": "user", "content": secret}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 3}
    assert client.post("/v1/chat/completions", json=body, headers=bearer(ONE)).status_code == 200
    pairs = [{"input": secret, "output": secret}] * 2
    solved = client.post("/v1/solve", json={"demonstrations": pairs, "query": secret}, headers=bearer(ONE))
    assert solved.status_code == 200
    client.post("/v1/solve", json={"demonstrations": pairs, "query": secret, "kind": "grid"}, headers=bearer(ONE))
    client.post("/v1/solve", content=secret, headers=bearer(ONE))
    own = [record.getMessage() for record in caplog.records if not record.name.startswith("httpx")]
    assert own, "decisions are logged"
    assert not [line for line in own if secret in line or ONE in line]


def test_a_failure_of_a_strategy_shows_no_path(serve, controller, monkeypatch):
    def broken(self, *arguments, **options):
        raise AdaptationError("cannot read /srv/secret/weights.bin")

    monkeypatch.setattr(type(controller.learner.trainer), "adapt_many", broken)
    response = serve().post("/v1/solve", json={**TASK, "strategy": "ttt_direct"})
    assert response.status_code == 200
    assert "secret" not in response.text
    assert "<path>" in response.json()["autottt"]["reason"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read /srv/a/b.bin: no", "cannot read <path>: no"),
        ("in '/srv/models/x'", "in '<path>'"),
        ("C:\\models\\x is", "<path> is"),
        ("~/models/x", "<path>"),
        ("1/2 and 3/4/5", "1/2 and 3/4/5"),
        ("owner/name", "owner/name"),
        ("held-out accuracy 2/4", "held-out accuracy 2/4"),
    ],
)
def test_paths_are_left_out_of_errors(text, shown):
    assert without_paths(text) == shown


def test_an_internal_error_passes_on_no_message_and_logs_where_it_was_raised(caplog):
    def fail():
        raise RuntimeError("weights [0.1, 0.2] in /srv/a/b")

    with pytest.raises(RuntimeError) as raised:
        fail()
    error = api_error(raised.value)
    assert error.status == 500
    assert "0.1" not in error.message
    assert "/srv" not in error.message
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "RuntimeError" in line
    assert "server/test_guard.py:" in line
    assert "weights" not in line


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (AdaptationError("out of memory in /srv/a"), "AdaptationError, trace 0123456789ab: out of memory in /srv/a"),
        (BaseChangedError("tensor 3 is not what was loaded"), "tensor 3 is not what was loaded"),
        (DeadlineError("the deadline passed"), "the deadline passed"),
        (ModelError("the template refuses 'secret'"), "ModelError"),
    ],
)
def test_the_reason_that_no_client_is_told_is_logged_once_with_the_trace(caplog, error, logged):
    name_trace(error, "0123456789ab")
    assert api_error(error).status >= 500
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert logged in record.getMessage()
    assert "0123456789ab" in record.getMessage()
    assert "secret" not in record.getMessage()


@pytest.mark.parametrize(
    "error",
    [TaskError("query: is wrong"), Cancelled(), QueueFullError("2 wait", 1.0), ClosedError(), ApiError(503, "loading")],
)
def test_what_clients_are_told_is_not_logged(caplog, error):
    api_error(error)
    assert not caplog.records


def test_the_cause_of_an_error_that_clients_receive_in_other_words_is_logged(caplog):
    refused = ApiError(503, "the store cannot be read")
    refused.__cause__ = TraceError("traces.sqlite: the disk is full")
    api_error(refused)
    assert "TraceError, trace not recorded: traces.sqlite: the disk is full" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_fails_is_logged_once(serve, monkeypatch, caplog, stream):
    async def broken(*arguments, **options):
        raise RuntimeError("secret")
        yield

    monkeypatch.setattr(Scheduler, "asolve", _raise_secret)
    monkeypatch.setattr(Scheduler, "astream", broken)
    response = serve().post("/v1/solve", json={**TASK, "stream": stream})
    assert "internal_error" in response.text
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert line.startswith("a request failed: RuntimeError")
    assert "secret" not in caplog.text


async def _raise_secret(*arguments, **options):
    raise RuntimeError("secret")


# --- the host that a request names -----------------------------------------------------------------------------------


def status_of(host, *, name, keys=None):
    """The status of a request that names that host, to a server that listens on `name`."""

    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def ask():
        sent = []

        async def send(message):
            sent.append(message)

        headers = [] if host is None else [(b"host", host.encode())]
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "headers": headers,
        }
        app = guard_module._GuardMiddleware(answer, Guard(keys, host=name), Metrics(), frozenset())
        await app(scope, send, send)
        return sent[0]["status"]

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:8000", 200), ("127.0.0.1:8000", 200), ("127.8.8.8", 200), ("[::1]:8000", 200),
        (None, 200), ("evil.example:8000", 403), ("localhost.evil.example", 403), ("192.168.0.7", 403), ("[::1", 403),
        ("localhost:x@evil.example", 403),
    ],
)  # fmt: skip
def test_a_server_of_this_machine_without_keys_answers_only_to_its_names(host, status):
    assert status_of(host, name="127.0.0.1") == status


def test_any_host_is_accepted_where_keys_or_other_machines_are_expected(keys):
    assert status_of("evil.example", name="127.0.0.1", keys=keys) == 200
    assert status_of("evil.example", name=None) == 200


def test_a_request_that_names_another_host_is_told_what_to_do(serve):
    client = serve(host="127.0.0.1")
    response = client.get("/healthz", headers={"host": "evil.example"})
    assert_is_error(response, 403, code="invalid_host")
    assert "evil.example" in response.json()["error"]["message"]
    assert "--api-keys" in response.json()["error"]["message"]


def test_retry_after_is_at_most_two_minutes():
    headers = [ApiError(503, "x", retry_after=seconds).headers["retry-after"] for seconds in (0, 0.2, 7.4, 10_000)]
    assert headers == ["1", "1", "7", "120"]
