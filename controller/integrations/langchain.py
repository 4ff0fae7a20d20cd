"""`ChatAutottt`, a chat model of LangChain around a controller.

It learns from few-shot chats, by the rules of the server (`server.chat`); the base model answers any other chat.
"""

from __future__ import annotations

import contextvars
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal
from uuid import UUID
from weakref import WeakValueDictionary

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, BaseRunManager, CallbackManagerForLLMRun
from langchain_core.exceptions import ContextOverflowError
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.load.serializable import SerializedConstructor, SerializedNotImplemented
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, convert_to_openai_messages
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list, get_executor_for_config
from langchain_core.runnables.utils import gather_with_concurrency
from langchain_core.utils.uuid import uuid7
from pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr
from typing_extensions import override

from ...ttt_core.errors import TaskError, TooLongError
from ..background import Publish, aiterate
from ..controller import Controller
from ..run_facts import outcome_settings
from ..server.chat_answers import ChatAnswer
from ..server.facts import progress_of
from .chats import ChatQuery, answer, answer_events, answer_many, read_chat_query

BUNDLED_NAME = "autottt-bundled"
"""The name of the bundled model in `response_metadata`."""
_LOADING = (
    "model", "policy", "device", "dtype", "prompt_format", "verify", "adapters", "memory_bytes", "starting_adapter",
    "read_with_adapter", "shadow", "explore", "ignore_mismatch", "cost_weight", "trace",
)  # fmt: skip
"""Fields that are arguments of `Controller.from_pretrained`."""
_ANSWERING = ("seed", "max_tokens", "temperature", "few_shot")
"""Fields that a call may replace; so may it `strategy` and `budget`, which concern few-shot chats only."""
PathText = Annotated[
    str | None, BeforeValidator(lambda path: os.fspath(path) if isinstance(path, os.PathLike) else path)
]


class ChatTooLongError(TooLongError, ContextOverflowError):
    """A chat does not fit in the model's context: this package's error and LangChain's, by which middleware knows that
    it has to shorten the chat."""


@contextmanager
def _with_overflow() -> Iterator[None]:
    """Raises `ChatTooLongError` for a `TooLongError`."""
    try:
        yield
    except ChatTooLongError:
        raise
    except TooLongError as error:
        raise ChatTooLongError(*error.args) from error


class ChatAutottt(BaseChatModel):
    """A chat model that decides for each few-shot chat whether to train first.

    Demonstrations are turns named `example_user` and `example_assistant`, the argument `demonstrations` of a call
    (`bind(demonstrations=[(input, output), ...])`), or, with `few_shot`, every earlier turn. Any other chat is answered
    by the base model, with the decision `not_few_shot`.

    The controller is loaded at the first call, from the same settings as `Controller.from_pretrained`, once for all
    models of a process with equal settings; `controller` gives one that the program holds, and such a model cannot be
    pickled. Other arguments are refused. `response_metadata` of an answer has what the server's object `autottt` has:
    `decision`, `strategy`, `scores`, `cost`, `adaptation`, `proof`, `trace_id` and others. Streams show training as
    chunks without text, whose `response_metadata["progress"]` is a list of events. `batch` and `abatch` train the
    adapters of all inputs in batches. Raises `TaskError` for a chat that cannot be read and for what is not supported,
    such as tools.
    """

    model_config = ConfigDict(extra="forbid")

    model: PathText = None
    """Folder, hub id or GGUF file of the model; None: the bundled one."""
    policy: PathText = None
    device: str | None = None
    dtype: str | None = None
    prompt_format: str | None = None
    adapters: PathText = None
    """Folder where trained adapters are kept."""
    memory_bytes: int | None = None
    verify: Literal["pointers", "full"] = "pointers"
    starting_adapter: PathText = None
    read_with_adapter: bool = False
    shadow: PathText = None
    explore: float = 0.0
    ignore_mismatch: bool = False
    cost_weight: float | None = None
    trace: PathText = None
    """Where runs are recorded; see `Controller`."""
    controller: Controller | None = Field(default=None, exclude=True, repr=False)
    """A loaded controller, in place of the fields above."""
    strategy: str | None = None
    """The strategy for every few-shot chat."""
    budget: str | float | None = None
    """Of every few-shot chat; see `Controller.solve`."""
    seed: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    """Above 0 for conversations only: answers to few-shot chats are decoded greedily."""
    stop: list[str] | None = None
    few_shot: bool = False
    """Whether every earlier turn is a demonstration."""

    _loaded: Controller | None = PrivateAttr(default=None)

    # --- answers -----------------------------------------------------------------------------------------------------

    @override
    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> ChatResult:  # fmt: skip
        with _with_overflow():
            if (place := self._take_place(run_manager)) is not None:
                return self._result(place.answer())
            return self._result(answer(self._ready(), self._query(messages, stop, kwargs)))

    @override
    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> ChatResult:  # fmt: skip
        place = self._take_place(run_manager)
        cancel = threading.Event() if place is None else place.batch.cancel

        def work(publish: Publish[ChatAnswer]) -> None:
            if place is not None:
                publish(place.answer())
            else:
                publish(answer(self._ready(), self._query(messages, stop, kwargs), cancel))

        with _with_overflow():
            async with aclosing(aiterate(work, cancel)) as answers:
                return self._result(await anext(answers))

    @override
    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:  # fmt: skip
        written = ""
        events = answer_events(self._ready(), self._query(messages, stop, kwargs))
        with _with_overflow(), closing(events):  # type: ignore[type-var]
            for event in events:
                chunk, written = self._chunk(event, written)
                yield chunk

    @override
    async def _astream(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:  # fmt: skip
        written, cancel = "", threading.Event()

        def work(publish: Publish[Any]) -> None:
            for event in answer_events(self._ready(), self._query(messages, stop, kwargs), cancel):
                publish(event, droppable=isinstance(event, dict) and event["event"] in ("step", "text"))

        with _with_overflow():
            async with aclosing(aiterate(work, cancel)) as events:
                async for event in events:
                    chunk, written = self._chunk(event, written)
                    yield chunk

    @override
    def batch(
        self, inputs: list[LanguageModelInput], config: RunnableConfig | list[RunnableConfig] | None = None, *,
        return_exceptions: bool = False, **kwargs: Any,
    ) -> list[AIMessage]:  # fmt: skip
        configs = get_config_list(config, len(inputs))
        batch = _Batch(self, inputs, kwargs)

        def one(number: int) -> Any:
            place = _Place(batch, number, configs[number].get("run_id") or uuid7())
            token = _place_in_batch.set(place)
            try:
                return self.invoke(inputs[number], {**configs[number], "run_id": place.run_id}, **kwargs)
            except Exception as error:
                if return_exceptions:
                    return error
                raise
            finally:
                _place_in_batch.reset(token)

        if not inputs:
            return []
        with get_executor_for_config(configs[0]) as executor:
            return list(executor.map(one, range(len(inputs))))

    @override
    async def abatch(
        self, inputs: list[LanguageModelInput], config: RunnableConfig | list[RunnableConfig] | None = None, *,
        return_exceptions: bool = False, **kwargs: Any,
    ) -> list[AIMessage]:  # fmt: skip
        configs = get_config_list(config, len(inputs))
        batch = _Batch(self, inputs, kwargs)

        async def one(number: int) -> Any:
            place = _Place(batch, number, configs[number].get("run_id") or uuid7())
            _place_in_batch.set(place)
            try:
                return await self.ainvoke(inputs[number], {**configs[number], "run_id": place.run_id}, **kwargs)
            except Exception as error:
                if return_exceptions:
                    return error
                raise

        if not inputs:
            return []
        answers = [one(number) for number in range(len(inputs))]
        return await gather_with_concurrency(configs[0].get("max_concurrency"), *answers)

    @override
    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[LanguageModelInput, AIMessage]:
        """Raises `TaskError`: the answer to a chat is a text."""
        raise TaskError(
            "tools: is not supported: the answer to a chat is a text; leave out tools and structured output; "
            f"received {len(tools)}"
        )

    def _take_place(self, run: BaseRunManager | None) -> _Place | None:
        """The place in a batch whose answer a run is to give, once. Other runs have none: callbacks call models too,
        with the context variables of the input that they belong to."""
        place = _place_in_batch.get()
        if place is None or run is None or place.batch.model is not self or place.run_id != run.run_id:
            return None
        _place_in_batch.set(None)
        return place

    def _query(self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]) -> ChatQuery:
        """The query of messages. Raises `TaskError`."""
        settings = {name: getattr(self, name) for name in _ANSWERING}
        if kwargs.get("model") not in (None, self.model):
            raise TaskError(f"model: expected the model of this object, {self.model!r}; received {kwargs['model']!r}")
        given = {name: value for name, value in kwargs.items() if name not in ("model", "stop")}
        stops = stop if stop is not None else kwargs.get("stop", self.stop)
        try:  # as blocks, which are joined as the server joins them; an empty text has none
            converted = convert_to_openai_messages(list(messages), text_format="block")
            plain = [{**one, "content": ""} if one.get("content") == [] else one for one in converted]
        except (ValueError, LookupError, TypeError) as error:
            raise TaskError(
                f"messages: expected a chat of texts; received one that LangChain cannot convert: {error}"
            ) from None
        query = read_chat_query(plain, **{**settings, **given, "stop": stops})
        if not query.chat.few_shot:
            return query
        defaults = {name: getattr(self, name) for name in ("strategy", "budget") if getattr(query, name) is None}
        return replace(query, **defaults)

    def _result(self, answer: ChatAnswer) -> ChatResult:
        message = AIMessage(answer.text, usage_metadata=_usage(answer), response_metadata=self._metadata(answer))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _chunk(self, event: dict[str, Any] | ChatAnswer, written: str) -> tuple[ChatGenerationChunk, str]:
        """The chunk of an event, and the text after it; `written` is the text before it."""
        if isinstance(event, ChatAnswer):
            message = AIMessageChunk(
                content=event.text[len(written) :], usage_metadata=_usage(event),
                response_metadata=self._metadata(event), chunk_position="last",
            )  # fmt: skip
        elif event["event"] == "text":
            message, written = AIMessageChunk(content=event["text"][len(written) :]), event["text"]
        else:
            message = AIMessageChunk(content="", response_metadata={"progress": [progress_of(event)]})
        return ChatGenerationChunk(message=message), written

    def _metadata(self, answer: ChatAnswer) -> dict[str, Any]:
        return {
            **answer.facts.model_dump(exclude={"right", "source"}), "finish_reason": answer.finish_reason,
            "model_name": self._name, "model_provider": "autottt",
        }  # fmt: skip

    # --- the controller ----------------------------------------------------------------------------------------------

    def _ready(self) -> Controller:
        """The controller, which is loaded now if it was not before."""
        if self.controller is not None:
            return self.controller
        if self._loaded is None:
            settings = {name: getattr(self, name) for name in _LOADING}
            with _loading:
                key = json.dumps(settings)
                if (loaded := _controllers.get(key)) is None:
                    loaded = _controllers[key] = Controller.from_pretrained(**settings)
                self._loaded = loaded
        return self._loaded

    @override
    def get_token_ids(self, text: str) -> list[int]:
        ids: list[int] = self._ready().learner.loaded.tokenizer.encode(text, add_special_tokens=False)
        return ids

    # --- identity ----------------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return self.controller.learner.loaded.name if self.controller is not None else self.model or BUNDLED_NAME

    @property
    def _llm_type(self) -> str:
        return "autottt"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("strategy", "budget", "stop", *_ANSWERING, *(() if self.controller is not None else _LOADING))
        return {"model_name": self._name, **{name: getattr(self, name) for name in names}}

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"], params["ls_model_name"] = "autottt", kwargs.get("model") or self._name
        return params

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Models that load their controller by themselves are."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where LangChain finds the class again."""
        return ["autottt"]

    @override
    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        if self.controller is None:
            return super().to_json()
        held, plain = self.controller, self.to_json_not_implemented()
        settings = {  # LangChain's caches tell models apart by this
            **self._identifying_params, "seed of the controller": held.seed, "scope": held.scope,
            **outcome_settings(held.learner, held.policy, held.budget),
        }  # fmt: skip
        return {**plain, "name": self.get_name(), "id": [*plain["id"], json.dumps(settings)]}

    def __getstate__(self) -> dict[Any, Any]:
        if self.controller is not None:
            raise TypeError(
                "a ChatAutottt around a controller cannot be pickled; make it of settings, such as "
                "ChatAutottt(model=FOLDER), and it loads the controller where it is used"
            )
        return {**super().__getstate__(), "__pydantic_private__": {"_loaded": None}}

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> ChatAutottt:
        return self.model_copy()


_controllers: WeakValueDictionary[str, Controller] = WeakValueDictionary()
"""The controllers that were loaded, by their settings."""
_loading = threading.Lock()


class _Batch:
    """The inputs of one call of `batch`, which are answered together when the first answer is asked for."""

    def __init__(self, model: ChatAutottt, inputs: Sequence[LanguageModelInput], kwargs: Mapping[str, Any]) -> None:
        self.cancel = threading.Event()
        self.model, self._inputs, self._kwargs = model, inputs, kwargs
        self._lock = threading.Lock()
        self._answers: list[ChatAnswer | Exception] | BaseException | None = None

    def answer(self, number: int) -> ChatAnswer:
        """The answer to one input. Raises its error, or one that ended all."""
        with self._lock:
            if self._answers is None:
                try:
                    self._answers = self._answer_all()
                except BaseException as error:
                    self._answers = error
        if isinstance(self._answers, BaseException):
            raise self._answers
        answer = self._answers[number]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _answer_all(self) -> list[ChatAnswer | Exception]:
        model, stop = self.model, self._kwargs.get("stop")
        read: list[ChatQuery | Exception] = []
        for each in self._inputs:
            try:
                read.append(model._query(model._convert_input(each).to_messages(), stop, self._kwargs))
            except Exception as error:  # raised where this input is answered
                read.append(error)
        queries = [query for query in read if isinstance(query, ChatQuery)]
        answers = iter(answer_many(model._ready(), queries, self.cancel))
        return [next(answers) if isinstance(query, ChatQuery) else query for query in read]


@dataclass(frozen=True)
class _Place:
    """One input of a batch."""

    batch: _Batch
    number: int
    run_id: UUID
    """Of LangChain's run that answers it."""

    def answer(self) -> ChatAnswer:
        """Its answer."""
        return self.batch.answer(self.number)


_place_in_batch: contextvars.ContextVar[_Place | None] = contextvars.ContextVar("autottt_place_in_batch", default=None)


def _usage(answer: ChatAnswer) -> UsageMetadata:
    prompt, completion = answer.prompt_tokens, answer.completion_tokens
    return UsageMetadata(input_tokens=prompt, output_tokens=completion, total_tokens=prompt + completion)
