"""The server as a process: errors before it listens, loading in the background, and a graceful stop."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from multiprocessing.context import ForkServerContext
from typing import Any

import pytest

from autottt.controller.cli import serve as serve_command
from autottt.controller.server.guard import is_loopback
from autottt.controller.server.serving import bind, ends_quietly, url_of
from autottt.ttt_core.errors import ModelError, SettingsError
from autottt.ttt_core.model.source_check import check_source
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer
from tests.controller.cli.commands import call, program
from tests.controller.server.conftest import TASK


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    slow = {"rank": 2, "alpha": 2, "max_steps": 100_000, "batch_size": 2}
    recipes = {"prompt_format": "standard", "recipes": {"ttt_in_context": slow, "ttt_direct": {**slow, "max_steps": 2}}}
    (folder / "autottt.json").write_text(json.dumps(recipes))
    return str(folder)


class Server:
    """A server in a process of its own, on a free port."""

    def __init__(self, forkserver: ForkServerContext, *options: str, **variables: str) -> None:
        words = ["serve", "--port", "0", "--trace-store", "off", *options]
        self.lines: list[str] = []
        self.url = ""
        self.ended = ExitStack()
        output, other_end = os.pipe()
        streams = (os.open(os.devnull, os.O_RDONLY), other_end, other_end)
        variables = {"AUTOTTT_CONFIG": "", "OMP_NUM_THREADS": "1", **variables}
        self.process = self.ended.enter_context(program(forkserver, words, streams, **variables))
        os.close(streams[0])
        os.close(other_end)
        self.output = self.ended.enter_context(os.fdopen(output))
        for line in self.output:
            self.lines.append(line)
            if "listening on " in line:
                self.url = line.split("listening on ")[1].split(";")[0]
                break
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self.lines.extend(self.output)

    def get(self, path: str, body: object = None) -> tuple[int, dict]:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, content, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def wait_until_ready(self) -> None:
        ends = time.monotonic() + 90
        while self.get("/readyz")[0] != 200:
            assert time.monotonic() < ends, self.lines
            time.sleep(0.05)

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def stop(self, number: int = signal.SIGTERM) -> int | None:
        self.send(number)
        return self.end()

    def end(self) -> int | None:
        self.process.join(60)
        self._reader.join(10)
        return self.process.exitcode

    @property
    def log(self) -> str:
        return "".join(self.lines)


@pytest.fixture
def start(model, forkserver):
    """A function that starts a server, which is ended after the test."""
    with ExitStack() as servers:

        def make(*options: str, source: str = model, **variables: str) -> Server:
            server = Server(forkserver, "--model", source, "--budget", "1000s", *options, **variables)
            servers.push(server.ended.__exit__)
            return server

        yield make


def test_a_server_listens_at_once_answers_when_loaded_and_stops_with_success(start):
    server = start()
    assert server.get("/healthz") == (200, {"status": "ok"})
    server.wait_until_ready()
    status, body = server.get("/v1/solve", {**TASK, "strategy": "in_context"})
    assert status == 200
    assert body["autottt"]["strategy"] == "in_context"
    assert server.stop() == 0
    assert "the base model is what was loaded" in server.log
    assert "Traceback" not in server.log


def test_a_client_that_sends_a_long_body_whole_before_it_reads_gets_the_refusal(start):
    server = start()
    long = {**TASK, "id": "x" * (8 << 20)}
    for path in ("/v1/solve", "/no/such/path"):
        status, body = server.get(path, long)
        assert (status, body["error"]["code"]) == (413, "too_large")
    chunked = urllib.request.Request(server.url + "/v1/solve", (b"x" * (1 << 16) for _ in range(128)))
    chunked.add_header("content-type", "application/json")
    with pytest.raises(urllib.error.HTTPError, match="413") as refused:
        urllib.request.urlopen(chunked, timeout=60)
    refused.value.close()
    assert server.stop() == 0


def test_a_stop_while_the_model_is_loaded_ends_the_process(start):
    server = start()
    assert server.stop() == 0
    assert "Traceback" not in server.log


def test_a_stop_lets_requests_finish_refuses_new_ones_and_cancels_what_takes_too_long(start):
    server = start("--shutdown-seconds", "3")
    server.wait_until_ready()
    answers: list[tuple[int, dict]] = []

    def ask(strategy: str) -> threading.Thread:
        body = {**TASK, "strategy": strategy}
        thread = threading.Thread(target=lambda: answers.append(server.get("/v1/solve", body)))
        thread.start()
        return thread

    slow = ask("ttt_in_context")
    time.sleep(0.7)
    server.send(signal.SIGTERM)
    time.sleep(0.5)
    assert server.get("/readyz")[0] == 503
    status, body = server.get("/v1/solve", TASK)
    assert (status, body["error"]["code"]) == (503, "shutting_down")
    assert server.end() == 0
    slow.join()
    ((status, body),) = answers
    assert status == 503
    assert "the base model is what was loaded" in server.log


def test_a_second_signal_ends_the_process_at_once_and_claims_no_proof(start):
    server = start("--shutdown-seconds", "60")
    server.wait_until_ready()

    def ask() -> None:
        with suppress(OSError):  # the connection breaks off
            server.get("/v1/solve", {**TASK, "strategy": "ttt_in_context"})

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.7)
    server.send(signal.SIGTERM)
    while server.get("/readyz")[0] != 503:
        time.sleep(0.05)
    began = time.monotonic()
    assert server.stop() == serve_command.STOPPED_AT_ONCE != 0
    assert time.monotonic() - began < 2
    asking.join()
    assert "stopped at once; the base model was not checked" in server.log
    assert "is what was loaded" not in server.log
    assert "Traceback" not in server.log


@pytest.mark.parametrize("began", [False, True])
def test_a_request_that_is_cancelled_when_the_server_ends_raises_nothing(began):
    sent: list[dict[str, Any]] = []

    async def app(scope, receive, send):
        if began:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    async def run() -> None:
        request = asyncio.create_task(ends_quietly(app)({"type": "http"}, send, send))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        request.cancel()
        await request

    asyncio.run(run())
    assert [message["status"] for message in sent if "status" in message] == [200 if began else 503]


def test_a_model_that_cannot_be_loaded_ends_the_process_with_an_error(start, model, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{model}/{name}", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    server = start(source=str(tmp_path))
    assert server.end() == 2
    assert "error: ModelError" in server.log


def test_a_busy_port_is_an_error_before_anything_is_loaded():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        code, _, err = call("serve", "--port", str(busy.getsockname()[1]))
    assert code == 2
    assert "cannot listen there" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--api-keys", "no/such/file"), "no/such/file: the file cannot be read"),
        (("--model", "no/such/model"), "there is no 'no/such/model'"),
        (("--model", "smollm2-135m"), "autottt models fetch smollm2-135m"),
        (("--policy", "no/such/policy"), "no/such/policy"),
        (("--strategy", "magic"), "magic"),
        (("--host", "0.0.0.0"), "needs keys"),
        (("--replicas", "2"), "add --ray local"),
        (("--host", "203.0.113.9", "--allow-no-key"), "cannot listen there"),
    ],
)
def test_a_mistake_is_an_error_before_the_server_listens(options, message, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, _, err = call("serve", "--port", "0", *options)
    assert code == 2
    assert message in err
    assert "listening" not in err


def test_replicas_need_the_libraries_of_their_extra(monkeypatch):
    def find_spec(name):
        return None if name in ("ray", "aiohttp") else importlib.util.find_spec("json")

    monkeypatch.setattr(serve_command, "find_spec", find_spec)
    code, _, err = call("serve", "--ray", "local")
    assert code == 2
    assert "pip install 'autottt[ray]'" in err


def test_keys_are_read_from_the_environment_and_never_shown(monkeypatch):
    monkeypatch.setenv("AUTOTTT_API_KEYS", "short-secret")
    code, _, err = call("serve", "--port", "0")
    assert code == 2
    assert "AUTOTTT_API_KEYS" in err
    assert "secret" not in err


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda folder: None, "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "names no model_type"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'), "no weights"),
        (lambda folder: (folder / "a.gguf").write_bytes(b"text"), "no GGUF file"),
    ],
)
def test_a_folder_that_is_no_model_is_named_before_it_is_loaded(tmp_path, make, problem):
    make(tmp_path)
    with pytest.raises(ModelError, match=problem):
        check_source(tmp_path)


def test_a_model_folder_a_hub_id_and_the_bundled_model_pass_the_check(model):
    check_source(model)
    check_source("owner/name")
    check_source(None)


def test_hosts_are_told_apart():
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost", "127.8.8.8")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org")))


def test_a_free_port_is_bound_and_named():
    with bind("127.0.0.1", 0) as bound:
        assert url_of(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}"
    with pytest.raises(SettingsError, match="cannot listen there"):
        bind("no.such.host.invalid", 0)
