"""Chats in the form of OpenAI's API: what is a demonstration, which parameters are honoured, and how answers stream."""

from __future__ import annotations

import json
import threading

import pytest

from autottt import Controller, FixedPolicy
from autottt.controller.server import streaming
from autottt.controller.server.chat_answers import text_event
from autottt.ttt_core.engine.answering import _settled_length
from tests.controller.server.conftest import MODEL
from tests.controller.server.test_app import assert_is_error, events_of

PATH = "/v1/chat/completions"
PAIRS = [("cat", "tac"), ("dog", "god"), ("fox", "xof")]
QUERY = {"role": "user", "content": "hen"}
TURNS = [
    {"role": role, "content": text} for pair in PAIRS for role, text in zip(("user", "assistant"), pair, strict=True)
]
MARKED = [
    {"role": "system", "name": f"example_{role}", "content": text}
    for pair in PAIRS
    for role, text in zip(("user", "assistant"), pair, strict=True)
]
FEW_SHOT = {"model": f"{MODEL}-fewshot", "messages": [*TURNS, QUERY]}
CONVERSATION = {"model": MODEL, "messages": [*TURNS, QUERY], "max_tokens": 8}


@pytest.fixture
def trains(make_learner):
    """A controller that trains on every task, and counts what it trains on."""
    return Controller(make_learner(), FixedPolicy("ttt_direct"))


def facts_of(response):
    assert response.status_code == 200, response.text
    return response.json()["autottt"]


# --- what is a demonstration -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        FEW_SHOT,
        {"model": MODEL, "messages": [*MARKED, QUERY]},
        {"model": MODEL, "messages": [{"role": "system", "content": "Reverse."}, *MARKED, QUERY]},
        {"model": MODEL, "messages": [{**m, "role": m["name"].removeprefix("example_")} for m in MARKED] + [QUERY]},
        {"model": MODEL, "messages": [QUERY], "demonstrations": [{"input": a, "output": b} for a, b in PAIRS]},
    ],
)
def test_marked_demonstrations_are_trained_on(serve, trains, body):
    client = serve(trains)
    response = client.post(PATH, json=body)
    assert facts_of(response)["decision"] == "ttt_direct"
    assert facts_of(response)["cost"]["backward_tokens"] > 0
    assert response.headers["x-autottt-strategy"] == facts_of(response)["strategy"]


@pytest.mark.parametrize(
    "body",
    [
        CONVERSATION,
        {"model": MODEL, "messages": [QUERY], "max_tokens": 8},
        {"model": MODEL, "messages": [{"role": "developer", "content": "Be brief."}, QUERY], "max_tokens": 8},
        {"model": f"{MODEL}-fewshot", "messages": [QUERY], "max_tokens": 8},
    ],
)
def test_any_other_chat_is_answered_by_the_base_model_and_never_trained_on(serve, trains, body):
    response = serve(trains).post(PATH, json=body)
    facts = facts_of(response)
    assert (facts["decision"], facts["strategy"]) == ("not_few_shot", "base_model")
    assert facts["cost"]["backward_tokens"] == trains.learner.guarded.charged.backward_tokens == 0
    assert facts["proof"]["hash"] == trains.learner.base_hash
    assert trains.learner.adapters.cache.adapter_count == 0


def test_a_conversation_is_what_the_model_writes_after_its_prompt(serve, make_learner):
    learner = make_learner(chat=True)
    tokenizer, model = learner.loaded.tokenizer, learner.loaded.model
    messages = [{"role": "system", "content": "Be brief."}, *TURNS, QUERY]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    generated = model.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=[256, 260])
    expected = tokenizer.decode(generated[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    client = serve(Controller(learner, FixedPolicy("in_context")))
    body = client.post(PATH, json={"model": MODEL, "messages": messages, "max_tokens": 12}).json()
    assert body["choices"][0]["message"]["content"].split("<|end|>")[0] == expected
    assert body["usage"]["prompt_tokens"] == ids["input_ids"].shape[1]
    assert body["usage"]["completion_tokens"] == generated.shape[1] - ids["input_ids"].shape[1]


def test_an_answer_to_a_few_shot_chat_is_that_of_the_task(serve, controller):
    client = serve()
    solved = client.post("/v1/solve", json={
        "kind": "text", "demonstrations": [{"input": a, "output": b} for a, b in PAIRS], "query": "hen",
    }).json()  # fmt: skip
    body = client.post(PATH, json=FEW_SHOT).json()
    expected = solved["text"] if solved["answer"] is None else solved["answer"]
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected, "refusal": None}
    assert (body["object"], body["model"]) == ("chat.completion", f"{MODEL}-fewshot")
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["autottt"] == body["autottt"]


def test_demonstrations_that_are_no_texts_have_a_query_in_json(serve, trains):
    lists = [{"input": [1, 2], "output": [2, 1]}, {"input": [3, 4], "output": [4, 3]}]
    body = {"model": MODEL, "messages": [{"role": "user", "content": "[5, 6]"}], "demonstrations": lists}
    assert facts_of(serve(trains).post(PATH, json=body))["decision"] == "ttt_direct"
    wrong = {**body, "messages": [QUERY]}
    assert_is_error(serve(trains).post(PATH, json=wrong), 400, param="messages[0].content")


def test_content_may_be_a_list_of_text_parts(serve):
    parts = {"role": "user", "content": [{"type": "text", "text": "he"}, {"type": "text", "text": "n"}]}
    client = serve()
    answers = [
        client.post(PATH, json={**CONVERSATION, "messages": [*TURNS, query]}).json()["choices"]
        for query in (parts, QUERY)
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        (TURNS, "messages"),
        ([*MARKED, TURNS[0], TURNS[1], QUERY], "messages[6]"),
        ([TURNS[0], TURNS[1], *MARKED, QUERY], "messages[0]"),
        ([*MARKED, MARKED[0]], "messages[6]"),
        ([QUERY, QUERY], "messages[1].role"),
        ([{"role": "tool", "content": "3", "tool_call_id": "x"}, QUERY], "messages[0].tool_call_id"),
        ([*TURNS, {"role": "system", "content": "now in French"}, QUERY], "messages[6].role"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages[0].content[0]"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": "a", "colour": 1}], "messages[0].colour"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "nobody", "content": "a"}], "messages[0].role"),
    ],
)
def test_messages_that_are_no_chat_are_refused(serve, messages, param):
    assert_is_error(serve().post(PATH, json={"model": MODEL, "messages": messages}), 400, param=param)


@pytest.mark.parametrize("empty", ["", " ", [{"type": "text", "text": ""}]])
def test_a_conversation_with_an_empty_answer_is_continued_and_no_demonstration_is_empty(serve, empty):
    client = serve()
    turns = [QUERY, {"role": "assistant", "content": empty}, QUERY]
    response = client.post(PATH, json={"model": MODEL, "messages": turns, "max_tokens": 3})
    assert facts_of(response)["decision"] == "not_few_shot"
    refused = client.post(PATH, json={"model": f"{MODEL}-fewshot", "messages": turns})
    assert_is_error(refused, 400, param="messages[1].content")


def test_a_null_content_is_received_and_not_missing(serve):
    response = serve().post(PATH, json={"model": MODEL, "messages": [{"role": "user", "content": None}]})
    assert_is_error(response, 400, param="messages[0].content")
    assert "received None" in response.json()["error"]["message"]


@pytest.mark.parametrize("name", ["annotations", "audio", "tool_calls"])
def test_what_messages_may_have_beside_their_text_is_accepted_where_it_is_empty(serve, name):
    client = serve()
    for value in (None, []):
        messages = [TURNS[0], {**TURNS[1], name: value, "unknown": None}, QUERY]
        assert client.post(PATH, json={**CONVERSATION, "messages": messages}).status_code == 200
    messages = [TURNS[0], {**TURNS[1], name: [{"type": "url_citation"}]}, QUERY]
    refused = client.post(PATH, json={**CONVERSATION, "messages": messages})
    assert_is_error(refused, 400, param=f"messages[1].{name}")
    assert "url_citation" in refused.json()["error"]["message"]


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2), ("n", True), ("logprobs", True), ("top_logprobs", 3), ("tools", [{"type": "function"}]),
        ("tool_choice", "required"), ("response_format", {"type": "json_object"}), ("top_p", 0.5), ("top_p", True),
        ("frequency_penalty", 1), ("presence_penalty", -0.5), ("logit_bias", {"5": 1}), ("modalities", ["audio"]),
        ("audio", {"voice": "x"}), ("store", True), ("reasoning_effort", "high"), ("functions", [{}]),
        ("service_tier", "priority"), ("prediction", {"type": "content"}), ("max_tokens", 0),
        ("max_tokens", 5000), ("max_completion_tokens", 10**9), ("max_tokens", "5"), ("temperature", -1),
        ("temperature", 3), ("temperature", True), ("stop", [""]), ("stop", 5), ("stop", ["a"] * 17), ("seed", "x"),
        ("seed", 2**64), ("stream", "yes"), ("stream_options", {"colour": 1}), ("strategy", "ttt_direct"),
        ("budget", "3s"), ("colour", "red"), ("demonstrations", []), ("user", 3),
    ],
)  # fmt: skip
def test_a_parameter_that_would_change_the_answer_and_is_not_implemented_is_refused_by_name(serve, name, value):
    response = serve().post(PATH, json={**CONVERSATION, "messages": [QUERY], name: value})
    assert_is_error(response, 400)
    assert response.json()["error"]["param"].startswith(name)
    assert "; received " in response.json()["error"]["message"] or name == "colour" or value == {"colour": 1}


@pytest.mark.parametrize("query", ["hello", "5", "[1, 2.5]", "[" * 100_000])
def test_a_query_of_another_kind_than_the_demonstrations_is_refused_by_the_name_of_its_message(serve, query):
    demonstrations = [{"input": [1, 2], "output": [2, 1]}]
    messages = [{"role": "system", "content": "Reverse."}, {"role": "user", "content": query}]
    response = serve().post(PATH, json={"model": MODEL, "messages": messages, "demonstrations": demonstrations})
    assert_is_error(response, 400, param="messages[1].content")
    assert "; received " in response.json()["error"]["message"]


def test_a_chat_without_messages_is_refused(serve):
    response = serve().post(PATH, json={"model": MODEL, "messages": []})
    assert_is_error(response, 400, param="messages")
    assert response.json()["error"]["message"] == "messages: expected at least 1 item; received []"


def test_parameters_that_change_nothing_are_accepted(serve):
    neutral = {
        "n": 1, "logprobs": False, "top_logprobs": 0, "tools": [], "tool_choice": "none", "top_p": 1.0, "user": "me",
        "response_format": {"type": "text"}, "frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {},
        "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "modalities": ["text"], "stop": None,
        "parallel_tool_calls": True, "temperature": 0, "seed": 7, "stream": False, "safety_identifier": "x",
    }  # fmt: skip
    client = serve()
    plain, same = client.post(PATH, json=CONVERSATION), client.post(PATH, json={**CONVERSATION, **neutral})
    assert same.status_code == 200, same.text
    assert plain.json()["choices"] == same.json()["choices"]


def test_the_answer_has_at_most_max_tokens(serve):
    client = serve()
    for name in ("max_tokens", "max_completion_tokens"):
        body = client.post(PATH, json={"model": MODEL, "messages": [QUERY], name: 3}).json()
        assert body["usage"]["completion_tokens"] == 3
        assert body["choices"][0]["finish_reason"] == "length"
        body = client.post(PATH, json={**FEW_SHOT, name: 1}).json()
        assert body["usage"]["completion_tokens"] == 1
        assert body["choices"][0]["finish_reason"] == "length"


def test_the_answer_ends_before_a_stop_text(serve):
    client = serve()
    for request in (CONVERSATION, FEW_SHOT):
        whole = client.post(PATH, json=request).json()["choices"][0]["message"]["content"]
        stop = next(letter for letter in whole[1:] if letter.isascii())
        cut = client.post(PATH, json={**request, "stop": ["never", stop]}).json()["choices"][0]
        assert cut["message"]["content"] == whole[: whole.index(stop)]
        assert cut["finish_reason"] == "stop"


def test_sampling_follows_the_seed_and_the_temperature(serve):
    client = serve()

    def sample(**more):
        body = {"model": MODEL, "messages": [QUERY], "max_tokens": 12, "temperature": 1.5, **more}
        return client.post(PATH, json=body).json()["choices"][0]["message"]["content"]

    assert sample(seed=1) == sample(seed=1)
    assert len({sample(seed=seed) for seed in range(4)}) > 1
    assert sample(temperature=1e-9) == sample(temperature=0)


def test_a_few_shot_task_is_never_sampled(serve):
    assert_is_error(serve().post(PATH, json={**FEW_SHOT, "temperature": 0.7}), 400, param="temperature")
    assert serve().post(PATH, json={**FEW_SHOT, "temperature": 0.0}).status_code == 200


def test_an_unknown_model_is_not_found(serve):
    assert_is_error(serve().post(PATH, json={**CONVERSATION, "model": "gpt"}), 404, param="model")


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [CONVERSATION, FEW_SHOT, {**FEW_SHOT, "strategy": "ttt_direct"}])
def test_a_stream_has_the_same_answer_in_chunks(serve, body):
    client = serve()
    whole = client.post(PATH, json=body).json()
    response = client.post(PATH, json={**body, "stream": True, "stream_options": {"include_usage": True}})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events_of(response)
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in [*chunks, last])
    assert all(len(chunk["choices"]) == 1 and chunk["usage"] is None for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert chunks[-1]["autottt"]["decision"] == whole["autottt"]["decision"]
    assert last["choices"] == []
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert last["usage"][name] == whole["usage"][name]


def test_a_stream_shows_training_steps_in_chunks_without_text(serve):
    response = serve().post(PATH, json={**FEW_SHOT, "strategy": "ttt_direct", "stream": True})
    chunks = events_of(response)
    steps = [chunk for chunk in chunks if chunk.get("autottt", {}).get("event") == "step"]
    assert [chunk["autottt"]["step"] for chunk in steps] == list(range(1, len(steps) + 1))
    assert steps
    assert all(chunk["choices"][0]["delta"] == {} for chunk in steps)
    assert not any("usage" in chunk for chunk in chunks)


def test_a_conversation_is_streamed_as_it_is_written(serve):
    chunks = events_of(serve().post(PATH, json={**CONVERSATION, "max_tokens": 12, "stream": True}))
    pieces = [text for chunk in chunks if (text := chunk["choices"][0]["delta"].get("content"))]
    assert len(pieces) > 1


def test_a_stream_that_cannot_begin_is_an_error_with_its_status(serve):
    long = {**CONVERSATION, "messages": [{"role": "user", "content": "a" * 3000}], "stream": True}
    assert_is_error(serve().post(PATH, json=long), 400, code="context_length_exceeded")


def test_a_silent_stream_has_comments(serve, controller, monkeypatch):
    monkeypatch.setattr(streaming, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 0.05)
    client = serve()
    client.post(PATH, json=CONVERSATION)
    release = threading.Event()

    def hold():
        with controller.learner.guarded.lock.exclusive():
            release.wait(1)

    holder = threading.Thread(target=hold)
    holder.start()
    threading.Timer(0.4, release.set).start()
    response = client.post(PATH, json={**CONVERSATION, "stream": True})
    holder.join()
    assert response.text.count(": keep-alive\n\n") >= 2
    assert len(events_of(response)) > 2


def test_text_events_carry_the_text_so_far():
    chunks = streaming.ChatChunks({"id": "x"}, include_usage=False)
    parts = [chunk for text in ("", "ab", "ab", "abcd") for chunk in chunks.of_event(text_event(text), lambda a: {})]
    assert [chunk["choices"][0]["delta"].get("content") for chunk in parts] == ["", "ab", "cd"]


@pytest.mark.parametrize(
    ("text", "settled"),
    [("abc", 3), ("abc<", 3), ("abc<|en", 3), ("abc<x", 5), ("ab\ufffd", 2), ("ab\\", 2), ("", 0), ("<|end|", 0)],
)
def test_text_that_may_begin_an_end_is_held_back(text, settled):
    assert _settled_length(text, ("<|end|>", "STOP")) == settled


def test_answers_are_json(serve):
    response = serve().post(PATH, json=FEW_SHOT)
    assert json.loads(response.text) == response.json()
