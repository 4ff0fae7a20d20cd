"""`ChatAutottt` behaves as a chat model of LangChain, and reads chats as the server does."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import ContextOverflowError
from langchain_core.load import dumpd, load
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables.config import ContextThreadPoolExecutor
from langchain_core.utils.uuid import uuid7
from langgraph.graph import MessagesState, StateGraph
from pydantic import ValidationError

from autottt import BaseChangedError, Cancelled, ChatAutottt, Controller, Demonstration, TooLongError, make_task
from autottt.controller.integrations import langchain
from autottt.policies.policy import FixedPolicy, HeuristicPolicy
from autottt.ttt_core.errors import TaskError
from tests.controller.integrations.conftest import PAIRS

QUERY = HumanMessage("gh")
TURNS: list[BaseMessage] = [message for a, b in PAIRS for message in (HumanMessage(a), AIMessage(b))]
MARKED: list[BaseMessage] = [
    SystemMessage(text, name=name)
    for pair in PAIRS
    for text, name in zip(pair, ("example_user", "example_assistant"), strict=True)
]


@pytest.fixture
def model(controller) -> ChatAutottt:
    return ChatAutottt(controller=controller, max_tokens=8)


def direct(controller, query: str = "gh", **settings) -> Any:
    """The result of the controller itself."""
    return controller.solve(make_task(PAIRS, query, kind="text", id="chat"), **settings)


# --- what is a demonstration -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "arguments"),
    [
        ([*MARKED, QUERY], {}),
        ([*TURNS, QUERY], {"few_shot": True}),
        ([QUERY], {"demonstrations": PAIRS}),
        ([QUERY], {"demonstrations": [{"input": a, "output": b} for a, b in PAIRS]}),
        ([QUERY], {"demonstrations": [Demonstration(a, b) for a, b in PAIRS]}),
    ],
    ids=["marked", "few_shot", "pairs", "dictionaries", "demonstrations"],
)
def test_a_few_shot_chat_is_solved_by_the_controller(model, controller, messages, arguments):
    message = model.invoke(messages, **arguments)
    expected = direct(controller)
    assert message.response_metadata["decision"] == "ttt_direct"
    assert message.response_metadata["adaptation"]["steps"] > 0
    assert message.content == model._ready().learner.loaded.tokenizer.decode(
        model.get_token_ids(expected.text)[:8], skip_special_tokens=False
    )


@pytest.mark.parametrize("messages", [[QUERY], [*TURNS, QUERY], [SystemMessage("Be brief."), QUERY]])
def test_any_other_chat_is_answered_by_the_base_model(model, messages):
    metadata = model.invoke(messages).response_metadata
    assert metadata["decision"] == "not_few_shot"
    assert metadata["cost"]["backward_tokens"] == 0
    assert metadata["proof"]["hash"]


def test_demonstrations_that_are_no_texts_have_a_query_in_json(model):
    message = model.bind(demonstrations=[([1, 2], [2, 1]), ((3, 4), (4, 3))]).invoke("[5, 6]", strategy="in_context")
    assert message.response_metadata["decision"] == "in_context"


@pytest.mark.parametrize(
    ("messages", "arguments", "named"),
    [
        ([AIMessage("hello")], {}, "messages"),
        ([*MARKED[:-1], QUERY], {}, "messages"),
        ([*MARKED, *TURNS, QUERY], {}, "messages"),
        ([ToolMessage("4", tool_call_id="1")], {}, "messages"),
        ([HumanMessage([{"type": "image_url", "image_url": {"url": "data:,"}}])], {}, "messages"),
        ([QUERY], {"tools": [{"type": "function"}]}, "tools"),
        ([QUERY], {"n": 2}, "n"),
        ([QUERY], {"logprobs": True}, "logprobs"),
        ([QUERY], {"not_a_parameter": 1}, "not_a_parameter"),
        ([QUERY], {"strategy": "ttt_direct"}, "strategy"),
        ([QUERY], {"model": "another"}, "model"),
        ([QUERY], {"demonstrations": []}, "demonstrations"),
        ([QUERY], {"demonstrations": "ab"}, "demonstrations"),
        ([QUERY], {"demonstrations": [("a",)]}, "demonstrations"),
        ([*TURNS, QUERY], {"few_shot": True, "temperature": 0.7}, "temperature"),
    ],
)
def test_what_cannot_be_honoured_is_an_error_that_names_the_field(model, messages, arguments, named):
    with pytest.raises(TaskError, match=rf"^{named}\b"):
        model.invoke(messages, **arguments)


def test_settings_of_the_model_for_few_shot_chats_do_not_concern_conversations(controller):
    model = ChatAutottt(controller=controller, strategy="in_context", budget=600, max_tokens=2)
    assert model.invoke([QUERY]).response_metadata["decision"] == "not_few_shot"
    assert model.invoke([*MARKED, QUERY]).response_metadata["decision"] == "in_context"
    assert model.invoke([*MARKED, QUERY], strategy="ttt_direct").response_metadata["decision"] == "ttt_direct"


# --- what an answer carries ------------------------------------------------------------------------------------------


def test_an_answer_carries_the_decision_the_usage_and_the_trace(controller, tmp_path):
    traced = Controller(controller.learner, controller.policy, trace=tmp_path / "traces.sqlite")
    message = ChatAutottt(controller=traced).invoke([*MARKED, QUERY])
    facts = message.response_metadata
    assert {"decision", "strategy", "scores", "cost", "adaptation", "proof", "reason"} <= facts.keys()
    assert traced.recorder.stored(facts["trace_id"]) is not None
    assert facts["finish_reason"] == "stop"
    assert facts["model_provider"] == "autottt"
    usage = message.usage_metadata
    assert usage["input_tokens"] > len(PAIRS)
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_stop_texts_and_the_limit_of_tokens_end_an_answer(model):
    whole = model.invoke("abc", max_tokens=8)
    short = model.invoke("abc", max_tokens=2)
    assert short.response_metadata["finish_reason"] == "length"
    assert short.usage_metadata["output_tokens"] == 2
    assert whole.content.startswith(short.content)
    stopped = model.invoke("abc", stop=[whole.content[1]])
    assert stopped.content == whole.content[: whole.content.index(whole.content[1])]
    assert model.bind(stop=[whole.content[1]]).invoke("abc").content == stopped.content


@pytest.mark.parametrize("shots", [[], MARKED])
@pytest.mark.parametrize("call", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"])
def test_a_chat_that_is_too_long_is_the_error_of_the_controller_and_that_of_langchain(model, shots, call) -> None:
    messages = [*shots, HumanMessage("a" * 2000)]

    async def streamed() -> None:
        async for _ in model.astream(messages):
            pass

    calls = {
        "invoke": lambda: model.invoke(messages), "ainvoke": lambda: asyncio.run(model.ainvoke(messages)),
        "stream": lambda: list(model.stream(messages)), "astream": lambda: asyncio.run(streamed()),
        "batch": lambda: model.batch([messages]), "abatch": lambda: asyncio.run(model.abatch([messages])),
    }  # fmt: skip
    with pytest.raises(TooLongError, match="token") as caught:
        calls[call]()
    assert isinstance(caught.value, ContextOverflowError)


# --- streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_shows_training_in_chunks_without_text_and_then_the_answer(model):
    chunks = list(model.stream([*MARKED, QUERY]))
    whole = model.invoke([*MARKED, QUERY])
    progress = [event for chunk in chunks for event in chunk.response_metadata.get("progress", [])]
    assert [event["step"] for event in progress if event["event"] == "step"] == [1, 2, 3]
    assert not any(chunk.content for chunk in chunks if "progress" in chunk.response_metadata)
    assert "".join(chunk.text for chunk in chunks) == whole.content
    merged = chunks[0]
    for chunk in chunks[1:]:
        merged += chunk
    assert merged.response_metadata["decision"] == "ttt_direct"
    assert merged.response_metadata["progress"] == progress
    assert merged.usage_metadata == whole.usage_metadata


def test_a_conversation_is_streamed_as_it_is_written(model):
    chunks = [chunk.text for chunk in model.stream("hello there")]
    assert "".join(chunks) == model.invoke("hello there").content
    assert len([text for text in chunks if text]) > 1


def test_asynchronous_answers_and_streams_are_those_of_the_synchronous_ones(model):
    async def answers():
        chunks = [chunk async for chunk in model.astream([*MARKED, QUERY])]
        talk = [chunk async for chunk in model.astream("hello there")]
        return await model.ainvoke([*MARKED, QUERY]), chunks, talk

    message, chunks, talk = asyncio.run(answers())
    assert message.content == model.invoke([*MARKED, QUERY]).content == "".join(chunk.text for chunk in chunks)
    assert any("progress" in chunk.response_metadata for chunk in chunks)
    assert "".join(chunk.text for chunk in talk) == model.invoke("hello there").content


@pytest.mark.parametrize("messages", [[*MARKED, QUERY], [QUERY]])
def test_a_stream_that_is_closed_gives_the_model_back(model, controller, messages):
    stream = model.stream(messages)
    next(stream)
    stream.close()
    with controller.learner.guarded.lock.exclusive(lambda: None):
        assert controller.learner.verify().hash == controller.learner.base_hash


def test_a_chain_sees_text_only(model):
    prompt = ChatPromptTemplate.from_messages([*MARKED, ("user", "{query}")])
    chain = prompt | model | StrOutputParser()
    assert (
        "".join(chain.stream({"query": "gh"})) == chain.invoke({"query": "gh"}) == model.invoke([*MARKED, QUERY]).text
    )


def test_a_node_of_a_graph_streams_the_chunks(model):
    graph = StateGraph(MessagesState)
    graph.add_node("ask", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.set_entry_point("ask")
    parts = list(graph.compile().stream({"messages": [*MARKED, QUERY]}, stream_mode="messages"))
    assert "".join(chunk.text for chunk, _ in parts) == model.invoke([*MARKED, QUERY]).text
    assert any("progress" in chunk.response_metadata for chunk, _ in parts)


# --- batches ---------------------------------------------------------------------------------------------------------

INPUTS: list[Any] = [
    [*MARKED, HumanMessage("gh")],
    [*MARKED, HumanMessage("ij")],
    "hello",
    [*TURNS[:4], *MARKED, QUERY],
]


def test_a_batch_is_solved_in_one_call_and_has_the_answers_of_single_calls(model, controller, monkeypatch):
    sizes = []
    solve_many = Controller.solve_many
    monkeypatch.setattr(
        Controller, "solve_many",
        lambda self, tasks, **settings: sizes.append(len(tasks)) or solve_many(self, tasks, **settings),
    )  # fmt: skip
    *answers, error = model.batch(INPUTS, return_exceptions=True)
    assert sizes == [2]
    assert [answer.content for answer in answers] == [model.invoke(each).content for each in INPUTS[:3]]
    assert [answer.response_metadata["decision"] for answer in answers] == ["ttt_direct", "ttt_direct", "not_few_shot"]
    assert isinstance(error, TaskError)
    sizes.clear()
    *again, error = asyncio.run(model.abatch(INPUTS, return_exceptions=True))
    assert sizes == [2]
    assert [answer.content for answer in again] == [answer.content for answer in answers]
    assert isinstance(error, TaskError)


def test_a_batch_raises_the_error_of_an_input(model):
    with pytest.raises(TaskError):
        model.batch(INPUTS)
    with pytest.raises(TooLongError):
        model.batch([[*MARKED, QUERY], [*MARKED, HumanMessage("a" * 2000)]], {"max_concurrency": 1})
    with pytest.raises(TaskError):
        asyncio.run(model.abatch(INPUTS))
    assert model.batch([]) == asyncio.run(model.abatch([])) == []


def test_an_error_that_ends_a_batch_is_raised_for_each_input(model, monkeypatch):
    def solve_many(self, tasks, **settings):
        raise BaseChangedError("changed")

    monkeypatch.setattr(Controller, "solve_many", solve_many)
    answers = model.batch(INPUTS[:2], return_exceptions=True)
    assert [type(answer) for answer in answers] == [BaseChangedError, BaseChangedError]


def test_cancelling_an_asynchronous_batch_cancels_its_work(model, monkeypatch):
    began, ended = threading.Event(), threading.Event()

    def solve_many(self, tasks, *, cancel, **settings):
        began.set()
        assert cancel.wait(30)
        ended.set()
        raise Cancelled("cancelled")

    async def leave():
        batch = asyncio.create_task(model.abatch(INPUTS[:2]))
        await asyncio.to_thread(began.wait, 30)
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch

    monkeypatch.setattr(Controller, "solve_many", solve_many)
    asyncio.run(leave())
    assert ended.is_set()


def test_a_batch_keeps_the_callbacks_of_every_input(model):
    configs = [{"run_name": name, "tags": [name]} for name in ("first", "second")]
    answers = model.batch(INPUTS[:2], configs)
    assert len({answer.id for answer in answers}) == 2


class Calls(BaseCallbackHandler):
    """Calls models, where LangChain reports an event of a run, unless the event is one of its own call."""

    run_inline = True

    def __init__(self, event: str, call: Callable[[], Any]) -> None:
        self.answers: list[Any] = []
        self._call, self._is_calling = call, threading.local()
        setattr(self, event, self._on_event)

    def _on_event(self, *_: Any, **__: Any) -> None:
        if getattr(self._is_calling, "now", False):
            return
        self._is_calling.now = True
        try:
            self.answers.append(self._call())
        finally:
            self._is_calling.now = False


NESTED = [*MARKED, HumanMessage("kl")]
CALLS: dict[str, Callable[[ChatAutottt], list[str]]] = {
    "invoke": lambda model: [model.invoke(NESTED).content],
    "batch": lambda model: [message.content for message in model.batch([NESTED, "mn"])],
    "batch of one": lambda model: [message.content for message in model.batch([NESTED], {"max_concurrency": 1})],
    "ainvoke": lambda model: [in_a_thread(model.ainvoke(NESTED)).content],
    "abatch": lambda model: [message.content for message in in_a_thread(model.abatch([NESTED, "mn"]))],
}


def in_a_thread(coroutine: Any) -> Any:
    """What a coroutine returns, from the inside of another too, with the same context variables."""
    with ContextThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, coroutine).result(60)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("event", ["on_chat_model_start", "on_llm_end"])
@pytest.mark.parametrize("is_same", [True, False], ids=["the same model", "another model"])
@pytest.mark.parametrize("way", ["batch", "abatch"])
def test_a_callback_of_a_batch_gets_the_answer_to_its_own_chat(model, controller, is_same, way, event, call):
    other = model if is_same else ChatAutottt(controller=Controller(controller.learner, FixedPolicy("in_context")))
    expected = CALLS[call](other)
    single = [model.invoke(each).content for each in INPUTS[:3]]
    calls = Calls(event, lambda: CALLS[call](other))
    config: Any = {"callbacks": [calls], "max_concurrency": 1}
    answers = model.batch(INPUTS[:3], config) if way == "batch" else asyncio.run(model.abatch(INPUTS[:3], config))
    assert [answer.content for answer in answers] == single
    assert calls.answers == [expected] * 3


def test_an_input_of_a_batch_keeps_the_run_that_its_caller_names(model):
    configs: Any = [{"run_id": uuid7()}, {}]
    answers = model.batch(INPUTS[:2], configs)
    assert answers[0].id.endswith(f"{configs[0]['run_id']}-0")
    assert [answer.content for answer in answers] == [model.invoke(each).content for each in INPUTS[:2]]


# --- identity --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*`load` is in beta")
def test_a_model_of_settings_loads_its_controller_once_and_travels(controller, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        langchain.Controller, "from_pretrained", lambda **settings: loaded.append(settings) or copy.copy(controller)
    )
    model = ChatAutottt(model="folder", strategy="in_context", budget="20x")
    answer = model.invoke([*MARKED, QUERY])
    assert answer.response_metadata["model_name"] == "folder"
    restored = pickle.loads(pickle.dumps(model))
    again = load(dumpd(model), valid_namespaces=["autottt"], allowed_objects=[ChatAutottt])
    assert restored.model_dump() == again.model_dump() == model.model_dump()
    assert {each.invoke([*MARKED, QUERY]).content for each in (restored, again, copy.deepcopy(model))} == {
        answer.content
    }
    assert len(loaded) == 1
    assert loaded[0]["model"] == "folder"


def test_a_model_around_a_controller_says_why_it_cannot_be_pickled(model):
    with pytest.raises(TypeError, match="make it of settings"):
        pickle.dumps(model)
    assert dumpd(model)["type"] == "not_implemented"
    assert copy.deepcopy(model).invoke("hello").content == model.invoke("hello").content


def test_a_cache_tells_models_apart(controller):
    cache = InMemoryCache()
    model = ChatAutottt(controller=controller, cache=cache, max_tokens=8)
    first = model.invoke([*MARKED, QUERY])
    assert model.invoke([*MARKED, QUERY]).id == first.id
    other = ChatAutottt(controller=controller, cache=cache, max_tokens=8, strategy="in_context")
    assert other.invoke([*MARKED, QUERY]).response_metadata["decision"] == "in_context"


@pytest.mark.parametrize(
    "settings",
    [
        {"budget": "1x"},
        {"policy": FixedPolicy("in_context")},
        {"policy": HeuristicPolicy(keep_threshold=0.1)},
        {"seed": 1},
    ],
    ids=["budget", "policy", "policy of one name", "seed"],
)
def test_a_cache_tells_controllers_apart(controller, settings):
    cache, rule = InMemoryCache(), HeuristicPolicy(keep_threshold=2.0)
    first = ChatAutottt(controller=Controller(controller.learner, rule), cache=cache).invoke([*MARKED, QUERY])
    other = Controller(controller.learner, settings.pop("policy", rule), **settings)
    assert ChatAutottt(controller=other, cache=cache).invoke([*MARKED, QUERY]).id != first.id
    assert ChatAutottt(controller=other.for_scope("client"), cache=cache).invoke([*MARKED, QUERY]).id != first.id
    same = Controller(controller.learner, HeuristicPolicy(keep_threshold=2.0))
    assert ChatAutottt(controller=same, cache=cache).invoke([*MARKED, QUERY]).id == first.id


def test_arguments_that_are_no_settings_are_refused(controller):
    with pytest.raises(ValidationError, match="fewshot"):
        ChatAutottt(controller=controller, fewshot=True)


def test_every_setting_of_loading_is_one_of_the_model():
    others = {"cls", "strategy", "budget", "seed", "langsmith"}
    arguments = inspect.signature(Controller.from_pretrained).parameters.keys() - others
    assert set(langchain._LOADING) == arguments
    assert arguments <= ChatAutottt.model_fields.keys()


@pytest.mark.parametrize("empty", [AIMessage(""), AIMessage([]), SystemMessage(""), HumanMessage("")], ids=str)
def test_a_message_of_a_conversation_may_be_empty(model, empty):
    before = {"ai": [HumanMessage("a"), empty], "system": [empty], "human": [empty, AIMessage("a")]}[empty.type]
    assert model.invoke([*before, QUERY]).response_metadata["decision"] == "not_few_shot"


@pytest.mark.parametrize("block", [{"type": "audio", "base64": "x"}, {"type": "image", "base64": "x"}], ids=str)
def test_a_block_that_cannot_be_converted_is_refused(model, block):
    with pytest.raises((TaskError, ValueError), match=r"messages|mime"):
        model.invoke([HumanMessage([block])])


def test_parts_of_a_message_are_joined_as_the_server_joins_them(model):
    parts = HumanMessage([{"type": "text", "text": "g"}, {"type": "text", "text": "h"}])
    joined = model._query([*MARKED, parts], None, {})
    assert joined.chat.task.query == model._query([*MARKED, QUERY], None, {}).chat.task.query == "gh"


@pytest.mark.parametrize("unreadable", [[("wizard", "x")], 5, [RemoveMessage(id="1")]], ids=str)
def test_an_input_of_a_batch_that_cannot_be_read_is_an_error_of_its_own(model, unreadable):
    expected = model.invoke([QUERY]).content
    answers = model.batch([[QUERY], unreadable], return_exceptions=True)
    assert answers[0].content == expected
    assert isinstance(answers[1], ValueError | TaskError)
    asynchronous = asyncio.run(model.abatch([[QUERY], unreadable], return_exceptions=True))
    assert asynchronous[0].content == expected
    assert isinstance(asynchronous[1], ValueError | TaskError)


def test_a_message_that_is_no_text_is_named(model):
    with pytest.raises(TaskError, match=r"^messages: expected a chat of texts"):
        model.invoke([RemoveMessage(id="1"), QUERY])


def test_events_and_traces_have_the_name_of_the_class(model):
    async def names():
        return {event["name"] async for event in model.astream_events([QUERY], version="v2")}

    assert asyncio.run(names()) == {"ChatAutottt"}


def test_tools_and_structured_output_are_refused_with_the_reason(model):
    with pytest.raises(TaskError, match=r"^tools: is not supported: .* received 1"):
        model.bind_tools([{"type": "function", "function": {"name": "f", "parameters": {}}}])
    with pytest.raises(TaskError, match=r"^tools: is not supported"):
        model.with_structured_output({"title": "answer", "description": "An answer.", "type": "object"})


def test_a_tracer_is_told_the_model_and_its_provider(model):
    params = model._get_ls_params(stop=["."])
    assert params["ls_provider"] == "autottt"
    assert params["ls_model_name"] == model.controller.learner.loaded.name
    assert params["ls_max_tokens"] == 8
    assert params["ls_stop"] == ["."]
