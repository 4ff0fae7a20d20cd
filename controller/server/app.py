"""The HTTP application: routes, and how errors become responses. Knows nothing about sockets, signals or models."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from ...ttt_core.errors import AutotttError, Cancelled
from ...ttt_core.tasks.kinds import make_task
from ...ttt_core.tasks.task import Task
from ..caller import trace_id_of
from . import streaming
from .answers import Answers
from .api_errors import NO_OBJECT, TRACE_HEADER, ApiError, api_error, invalid_request, trace_not_found
from .body_errors import body_error
from .chat import FEW_SHOT_SUFFIX, read_chat_request
from .chat_answers import ChatAnswer, solve_events
from .engine import Engine, Event
from .facts import facts_of, numbers, progress_of
from .guard import Guard
from .labels import Labels
from .live_page import LivePage
from .schemas import (
    AnswerMessage,
    ChatRequest,
    ChatResponse,
    Choice,
    DecideResponse,
    ErrorResponse,
    Facts,
    FeedbackRequest,
    FeedbackResponse,
    Health,
    Model,
    ModelList,
    Proof,
    SolveRequest,
    SolveResponse,
    Source,
    TaskRequest,
    Usage,
)
from .upstream import Upstream

if TYPE_CHECKING:
    from ..results import Result
    from ..scheduler.scheduler import Scheduler

DISCONNECT_SECONDS = 0.5
"""How often it is checked whether the client of an answer that is not streamed has left."""
STRATEGY_HEADER = "x-autottt-strategy"
"""Header with the strategy of an answer."""
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 403, 404, 405, 408, 413, 429, 500, 503)
}

_STREAM_TOO: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {}}}, "description": "Or events: `stream`."}
}


def make_app(
    engine: Engine, *, model_name: str, guard: Guard | None = None, upstream: Upstream | None = None
) -> FastAPI:
    """The application around an engine; `model_name` is what clients call the model, and `upstream` another server that
    answers what needs no training."""
    app = FastAPI(
        title="autottt", docs_url=None, redoc_url=None, responses=_ERRORS, redirect_slashes=False,
        description="Answers few-shot tasks in context, or trains an adapter for the task first.",
    )  # fmt: skip
    guard = guard or Guard()
    live_page = LivePage(engine, [model_name], needs_key=guard.keys is not None)
    live_page.add_to(app)
    routes = _Routes(engine, model_name, upstream, live_page)
    app.add_api_route("/v1/models", routes.models, methods=["GET"], response_model=ModelList)
    app.add_api_route("/v1/models/{name:path}", routes.model, methods=["GET"], response_model=Model)
    app.add_api_route("/v1/solve", routes.solve, methods=["POST"], response_model=SolveResponse, responses=_STREAM_TOO)
    app.add_api_route(
        "/v1/chat/completions", routes.chat, methods=["POST"], response_model=ChatResponse, responses=_STREAM_TOO
    )
    app.add_api_route("/v1/decide", routes.decide, methods=["POST"], response_model=DecideResponse)
    app.add_api_route("/v1/feedback", routes.feedback, methods=["POST"], response_model=FeedbackResponse)
    app.add_api_route("/healthz", routes.healthz, methods=["GET"], response_model=Health)
    app.add_api_route("/readyz", routes.readyz, methods=["GET"], response_model=Health)
    app.add_api_route("/metrics", routes.metrics, methods=["GET"], response_class=Response)
    app.add_exception_handler(ApiError, _on_error)
    app.add_exception_handler(AutotttError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    guard.protect(app, engine.metrics)
    document = app.openapi
    app.openapi = lambda: _with_names(document(), routes.names)  # type: ignore[method-assign]
    return app


def _with_names(document: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The OpenAPI document with the names of models where requests name one."""
    for schema in ("ChatRequest", "SolveRequest", "TaskRequest"):
        properties = document["components"]["schemas"][schema]["properties"]
        required = schema == "ChatRequest"
        properties["model"] = {"enum": [*names, *([] if required else [None])], "title": "Model"}
    return document


class _Routes:
    """The functions behind the paths."""

    def __init__(self, engine: Engine, model_name: str, upstream: Upstream | None, live_page: LivePage) -> None:
        self._engine = engine
        self._answers = Answers(engine, upstream)
        self._model_name = model_name
        self._created = int(time.time())
        self._labels = Labels(engine.metrics, has_other_server=upstream is not None)
        self._live_page = live_page

    async def models(self) -> ModelList:
        """Every model name."""
        return ModelList(data=[self._model(name) for name in self.names])

    async def model(self, name: str) -> Model:
        """One model name."""
        self._check_model(name)
        return self._model(name)

    async def healthz(self) -> Health:
        """Whether the process answers."""
        return Health(status="ok")

    async def readyz(self) -> Health:
        """Whether the model is loaded: 503 until then, and while the server shuts down."""
        _ = self._engine.controller
        return Health(status="ready")

    async def metrics(self) -> Response:
        """Metrics in Prometheus' format."""
        return Response(self._engine.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    async def solve(self, body: SolveRequest, request: Request) -> Response:
        """Answers a task of any kind; with `stream`, progress comes first, as server-sent events."""
        task, client = self._task(body), client_of(request)

        def work(scheduler: Scheduler) -> AsyncGenerator[Event, None]:
            how = {"strategy": body.strategy, "budget": body.budget, "seed": body.seed}
            return solve_events(scheduler, task, how, progress=body.stream)

        def to_data(event: Event) -> Iterator[object]:
            if isinstance(event, dict):
                yield {"object": "autottt.progress", "autottt": progress_of(event)}
            else:
                yield self._solved(client, *event).model_dump()

        if body.stream:
            return await self._stream(
                self._readable(client, self._answers.task(client, work, streaming.POLL_SECONDS)), to_data
            )
        events = self._readable(client, self._answers.task(client, work, DISCONNECT_SECONDS))
        answer = self._solved(client, *await self._result(events, request))
        return JSONResponse(answer.model_dump(), headers=_headers(answer.autottt))

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answers a chat, as OpenAI's API does. Marked examples are demonstrations, of which the controller may learn;
        any other history is a conversation, which the base model answers."""
        self._check_model(body.model)
        chat = read_chat_request(body, self._engine.limits)

        head: dict[str, Any] = {"id": _new_id("chatcmpl"), "created": int(time.time()), "model": body.model}
        head["system_fingerprint"] = f"autottt-{self._engine.controller.learner.base_hash[:12]}"
        if body.stream:
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            chunks = streaming.ChatChunks(head, include_usage)

            def to_data(event: Event) -> Iterator[object]:
                if isinstance(event, ChatAnswer):
                    self._note(client_of(request), event)
                return chunks.of_event(event, lambda answer: _usage(answer).model_dump())

            events = self._answers.chat(client_of(request), chat, body, streaming.POLL_SECONDS)
            return await self._stream(self._readable(client_of(request), events), to_data)
        events = self._answers.chat(client_of(request), chat, body, DISCONNECT_SECONDS)
        events = self._readable(client_of(request), events)
        answer: ChatAnswer = await self._result(events, request)
        self._note(client_of(request), answer)
        choice = Choice(message=AnswerMessage(content=answer.text), finish_reason=answer.finish_reason)
        response = ChatResponse(**head, choices=[choice], usage=_usage(answer), autottt=answer.facts)
        return JSONResponse(response.model_dump(), headers=_headers(answer.facts))

    async def decide(self, body: TaskRequest, request: Request) -> Response:
        """The decision on a task and its scores. The task is measured, and not answered."""
        task = self._task(body)

        async def work(scheduler: Scheduler) -> AsyncGenerator[Event, None]:
            yield await scheduler.adecide(task, budget=body.budget, seed=body.seed)

        events = self._engine.run(client_of(request), work, DISCONNECT_SECONDS)
        decision, proof = await self._result(events, request)
        self._engine.metrics.decided(decision.strategy)
        self._engine.metrics.reverted(True)
        answer = DecideResponse(
            id=_new_id("decide"), created=int(time.time()), model=self._model_name, strategy=decision.strategy,
            reason=decision.reason, difficulty=decision.difficulty, scores=numbers(decision.scores),
            costs=numbers(decision.costs), utilities=numbers(decision.utilities), proof=Proof(**vars(proof)),
        )  # fmt: skip
        return JSONResponse(answer.model_dump(), headers={STRATEGY_HEADER: decision.strategy})

    async def feedback(self, body: FeedbackRequest, request: Request) -> FeedbackResponse:
        """Stores whether an answer was right, with the trace of its run; not with that of another client's run."""
        if self._live_page.client_of(body.trace_id) not in (None, client_of(request)):
            raise trace_not_found(body.trace_id)
        right = await self._labels.store(self._engine.controller, body)
        return FeedbackResponse(trace_id=body.trace_id, right=right)

    # --- what the routes share ---------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """What requests may call the model."""
        return self._model_name, self._model_name + FEW_SHOT_SUFFIX

    def _model(self, name: str) -> Model:
        turns = "every earlier turn of a chat is" if name.endswith(FEW_SHOT_SUFFIX) else "marked turns of a chat are"
        description = f"Decides for each task whether to train first; {turns} demonstrations."
        return Model(id=name, created=self._created, description=description)

    def _note(self, client: str, answer: ChatAnswer) -> None:
        """Counts the answer to a chat."""
        if answer.result is not None:
            self._engine.metrics.result(answer.result)
            self._labels.remember(answer.result, answer.facts.source, answer.cut)
            self._live_page.remember(client, answer.result.trace_id)
            return
        self._engine.metrics.decided(answer.facts.decision)
        stages = {"conversation": answer.facts.cost.seconds}
        self._engine.metrics.answered(answer.facts.strategy, answer.facts.status, stages)
        if answer.facts.proof is not None:
            self._engine.metrics.reverted(True)

    def _check_model(self, name: str | None) -> None:
        """Raises `ApiError` for a model that is not served."""
        if name is not None and name not in self.names:
            expected = ", ".join(self.names)
            raise ApiError(
                404, f"model: expected one of {expected}; received {name[:80]!r}", "model", "model_not_found"
            )

    def _task(self, body: TaskRequest) -> Task:
        """The task of a request. Raises `TaskError` and `ApiError`."""
        self._check_model(body.model)
        self._engine.limits.check_demonstrations(len(body.demonstrations))
        pairs: list[tuple[object, object]] = [(pair.input, pair.output) for pair in body.demonstrations]
        return make_task(
            pairs, body.query, kind=body.kind, answer=body.answer, instruction=body.instruction,
            comparison=body.comparison, id=body.id,
        )  # fmt: skip

    async def _result(self, events: AsyncGenerator[Event, None], request: Request) -> Any:
        """The last event; progress is not shown. The work is cancelled when the client leaves."""
        looked = time.monotonic()
        async with aclosing(events):
            async for event in events:
                if event is not None and not isinstance(event, dict):
                    return event
                if (now := time.monotonic()) - looked >= DISCONNECT_SECONDS:  # text may arrive without a pause
                    looked = now
                    if await request.is_disconnected():
                        raise Cancelled("the client has left")
        raise AssertionError("work ends with its result")

    async def _readable(self, client: str, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        """The events; where they end with an error, its client may read the trace of the run."""
        try:
            async with aclosing(events):
                async for event in events:
                    yield event
        except Exception as error:
            self._live_page.remember(client, trace_id_of(error))
            raise

    async def _stream(
        self, events: AsyncGenerator[Event, None], to_data: Callable[[Event], Iterator[object]]
    ) -> StreamingResponse:
        """The events of work as a stream. What is wrong at once is an error with its status, and no stream."""
        first = await anext(events)
        content = streaming.stream(first, events, to_data)
        return StreamingResponse(content, media_type="text/event-stream", headers=streaming.HEADERS)

    def _solved(self, client: str, result: Result, source: Source | None) -> SolveResponse:
        """The response to a solved task, which is counted and can be labelled from now on."""
        self._engine.metrics.result(result)
        self._labels.remember(result, source)
        self._live_page.remember(client, result.trace_id)
        return SolveResponse(
            id=_new_id("solve"), created=int(time.time()), model=self._model_name, answer=result.answer,
            text=result.text, autottt=facts_of(result, source),
        )  # fmt: skip


def client_of(request: Request) -> str:
    """Name of the client whose request this is; see `guard`."""
    return str(request.scope.get("autottt_client", ""))


def _headers(facts: Facts) -> dict[str, str]:
    """The trace id and the strategy of an answer as headers."""
    return {STRATEGY_HEADER: facts.strategy, **({TRACE_HEADER: facts.trace_id} if facts.trace_id else {})}


def _usage(answer: ChatAnswer) -> Usage:
    """The tokens of a chat, with the facts."""
    prompt, completion = answer.prompt_tokens, answer.completion_tokens
    return Usage(
        prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion, autottt=answer.facts
    )


def _new_id(what: str) -> str:
    return f"{what}-{secrets.token_hex(12)}"


def _response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status, error.headers)


async def _on_error(request: Request, error: Exception) -> Response:
    return _response(api_error(error))


async def _on_invalid(request: Request, error: Exception) -> Response:
    """A request that its schema refuses: 400 that names the first invalid field, or what is wrong with the body."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid" or (first["loc"] == ("body",) and first["type"] in ("missing", *NO_OBJECT)):
        received = b"" if first["type"] == "missing" else error.__cause__ or first["input"]
        return _response(body_error(received, request.headers))
    return _response(invalid_request(first, first["loc"][1:]))


async def _on_http_error(request: Request, error: Exception) -> Response:
    """What Starlette and FastAPI refuse by themselves: unknown paths and methods, bodies that cannot be read; and what
    the guard refuses while a body is read."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ApiError):
        answer = error.__cause__
    elif error.status_code == 400 and error.__cause__ is not None:
        answer = body_error(error.__cause__, request.headers)
    elif error.status_code == 404:
        message = f"there is no {request.url.path[:200]}; /openapi.json lists the paths"
        answer = ApiError(404, message, code="unknown_path")
    elif error.status_code == 405:
        allowed = Headers(error.headers or {}).get("allow", "")
        message = f"{request.method[:20]} is not possible here{f'; expected {allowed}' if allowed else ''}"
        answer = ApiError(405, message, code="method_not_allowed")
    else:
        answer = ApiError(error.status_code, str(error.detail))
    response = _response(answer)
    response.headers.update(error.headers or {})
    return response
