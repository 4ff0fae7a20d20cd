"""Clients that people use, unchanged: the openai client, ChatOpenAI of LangChain, and curl."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import urllib.request

import pytest

from autottt.controller.scheduler.scheduler import Scheduler
from autottt.controller.server import streaming
from autottt.controller.server.guard import ApiKeys
from autottt.controller.server.limits import Limits
from tests.controller.server.conftest import MODEL
from tests.controller.server.test_chat import FEW_SHOT, MARKED, PAIRS, QUERY
from tests.controller.server.test_guard import held, wait_for

openai = pytest.importorskip("openai")
KEY = "key-of-sixteen-characters"
MESSAGES = FEW_SHOT["messages"]
FEW_SHOT_MODEL = FEW_SHOT["model"]


@pytest.fixture
def connect():
    """A function that makes an openai client, which is closed after the test."""
    clients = []

    def make(url: str, **options):
        clients.append(openai.OpenAI(base_url=f"{url}/v1", **{"api_key": KEY, "max_retries": 0, **options}))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def test_the_openai_client_reads_an_answer_and_the_facts(live, connect):
    client = connect(live())
    answer = client.chat.completions.create(model=MODEL, messages=[*MARKED, QUERY])
    assert isinstance(answer.choices[0].message.content, str)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model_extra["autottt"]["decision"] == "in_context"
    assert answer.usage.model_extra["autottt"]["proof"]["method"] == "pointers"


def test_the_openai_client_gives_demonstrations_in_extra_body(live, connect):
    demonstrations = [{"input": a, "output": b} for a, b in PAIRS]
    answer = connect(live()).chat.completions.create(
        model=MODEL, messages=[QUERY], extra_body={"demonstrations": demonstrations, "strategy": "ttt_direct"}
    )
    assert answer.model_extra["autottt"]["decision"] == "ttt_direct"
    assert answer.model_extra["autottt"]["cost"]["backward_tokens"] > 0


def test_the_openai_client_reads_a_stream_with_training_and_comments(live, connect, monkeypatch):
    monkeypatch.setattr(streaming, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 0.002)
    client = connect(live())
    with client.chat.completions.create(
        model=FEW_SHOT_MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True},
        extra_body={"strategy": "ttt_direct"},
    ) as stream:  # fmt: skip
        chunks = list(stream)
    whole = client.chat.completions.create(
        model=FEW_SHOT_MODEL, messages=MESSAGES, extra_body={"strategy": "ttt_direct"}
    )
    assert all(isinstance(chunk.choices, list) for chunk in chunks)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert any(chunk.model_extra.get("autottt", {}).get("event") == "step" for chunk in chunks)
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_openai_client_sends_back_a_message_as_it_was_received(live, connect):
    client = connect(live())
    message = client.chat.completions.create(model=MODEL, messages=[QUERY], max_tokens=4).choices[0].message
    assert None in message.model_dump().values()
    for turn in (message, message.model_dump(), message.to_dict(), {**message.model_dump(), "annotations": []}):
        answer = client.chat.completions.create(model=MODEL, messages=[QUERY, turn, QUERY], max_tokens=4)
        assert answer.model_extra["autottt"]["decision"] == "not_few_shot"
    empty = client.chat.completions.create(model=MODEL, messages=[QUERY], stop=[message.content[0]]).choices[0].message
    assert empty.content == ""
    assert client.chat.completions.create(model=MODEL, messages=[QUERY, empty, QUERY], max_tokens=4).choices


def test_the_openai_client_lists_models(live, connect):
    assert [model.id for model in connect(live()).models.list()] == [MODEL, f"{MODEL}-fewshot"]


def test_the_openai_client_raises_its_own_errors_with_our_message(live, connect):
    url = live(keys=ApiKeys.read(f"me:{KEY}", "test"), limits=Limits(queue=0, requests_per_client=1))
    client = connect(url)
    with pytest.raises(openai.BadRequestError, match="n: is not supported") as refused:
        client.chat.completions.create(model=MODEL, messages=[QUERY], n=2)
    assert (refused.value.param, refused.value.code) == ("n", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError, match="expected one of tiny"):
        client.chat.completions.create(model="gpt", messages=[QUERY])
    with pytest.raises(openai.AuthenticationError, match="Authorization"):
        connect(url, api_key="another-key-of-no-client").models.list()
    with pytest.raises(openai.BadRequestError, match="more than the 512 tokens"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a" * 900}], stream=True)


def test_clients_recognise_a_chat_that_does_not_fit_in_the_context(live, chat_model):
    from langchain_core.exceptions import ContextOverflowError

    with pytest.raises(ContextOverflowError, match="the prompt is too long"):
        chat_model.invoke("a" * 900)


def test_an_error_in_a_stream_is_raised_by_the_openai_client(live, connect, controller, monkeypatch):
    from autottt.ttt_core.errors import TaskError

    async def broken(*arguments, **options):
        yield {"event": "phase", "phase": "measure", "tasks": []}
        raise TaskError("query: is wrong")

    monkeypatch.setattr(Scheduler, "astream", broken)
    with pytest.raises(openai.APIError, match="query: is wrong"):
        list(connect(live()).chat.completions.create(model=FEW_SHOT_MODEL, messages=MESSAGES, stream=True))


def test_the_asynchronous_openai_client_asks_side_by_side(live):
    async def ask(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
            asked = [client.chat.completions.create(model=MODEL, messages=[QUERY], max_tokens=4) for _ in range(4)]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    answers = asyncio.run(ask(live()))
    assert len(answers) == 4
    assert len(set(answers)) == 1


@pytest.fixture
def chat_model(live):
    """ChatOpenAI of LangChain, connected to a server."""
    langchain_openai = pytest.importorskip("langchain_openai")
    return langchain_openai.ChatOpenAI(
        base_url=f"{live()}/v1", api_key=KEY, model=FEW_SHOT_MODEL, max_retries=0, stream_usage=True
    )


LANGCHAIN_MESSAGES = [
    ({"user": "human", "assistant": "ai"}[message["role"]], message["content"]) for message in MESSAGES
]


def test_chat_openai_of_langchain_invokes_and_keeps_the_facts_in_the_usage(chat_model):
    message = chat_model.invoke(LANGCHAIN_MESSAGES)
    assert isinstance(message.content, str)
    assert message.response_metadata["finish_reason"] == "stop"
    assert message.response_metadata["token_usage"]["autottt"]["decision"] == "in_context"
    assert message.usage_metadata["total_tokens"] > 0


def test_chat_openai_of_langchain_streams_the_same_text(chat_model):
    expected = chat_model.invoke(LANGCHAIN_MESSAGES).content
    chunks = list(chat_model.stream(LANGCHAIN_MESSAGES))
    assert "".join(chunk.content for chunk in chunks) == expected
    assert sum(chunk.usage_metadata["total_tokens"] for chunk in chunks if chunk.usage_metadata) > 0


def test_chat_openai_of_langchain_answers_a_batch(chat_model):
    answers = chat_model.batch([LANGCHAIN_MESSAGES] * 3)
    assert len({answer.content for answer in answers}) == 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_reads_answers_streams_and_errors(live):
    url = f"{live()}/v1/chat/completions"

    def curl(body, *options):
        command = ["curl", "--silent", "--no-buffer", *options, url, "-H", "content-type: application/json"]
        return subprocess.run(
            [*command, "-d", json.dumps(body)], capture_output=True, text=True, check=True, timeout=60
        ).stdout

    whole = json.loads(curl(FEW_SHOT))
    lines = [line for line in curl({**FEW_SHOT, "stream": True}).splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert "HTTP/1.1 400" in curl({**FEW_SHOT, "n": 2}, "--include")
    healthz = url.replace("/v1/chat/completions", "/healthz")
    head = subprocess.run(["curl", "--silent", "-I", healthz], capture_output=True, text=True, check=True, timeout=60)
    assert head.stdout.startswith("HTTP/1.1 200")
    forgotten = ["curl", "--silent", url, "-d", "{}"]
    refused = subprocess.run(forgotten, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "-H 'content-type: application/json'" in json.loads(refused)["error"]["message"]


def test_a_stream_that_its_reader_closes_gives_the_model_back(live, connect, controller):
    url = live()
    client = connect(url)

    def metrics():
        with urllib.request.urlopen(f"{url}/metrics") as response:
            return response.read().decode()

    with held(controller):
        stream = client.chat.completions.create(model=FEW_SHOT_MODEL, messages=MESSAGES, stream=True)
        assert "autottt_running 1.0" in metrics()
        stream.close()
        wait_for(lambda: 'autottt_failures_total{error="Cancelled"} 1.0' in metrics())
        assert "autottt_running 0.0" in metrics()
    assert client.chat.completions.create(model=FEW_SHOT_MODEL, messages=MESSAGES).choices
