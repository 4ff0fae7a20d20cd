"""The page at `/`, on which a person draws a task and watches its run, and the pages of traces. Knows nothing about how
tasks are answered."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, runtime_checkable

from fastapi import FastAPI, Request
from fastapi import Path as PathParameter
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from ...ttt_core.errors import AutotttError
from ..tracing.html_page import TRACE_FILES, html_page, page_policy
from .api_errors import ApiError, trace_not_found, trace_store_failed
from .engine import Engine

if TYPE_CHECKING:
    from ...policies.policy import Policy
    from ..tracing.trace import Trace

MAX_RUNS = 4096
"""Runs whose traces may be read: the last ones of this process."""
FILES = tuple(Path(__file__).parent / name for name in ("live_page.css", "live_page.js"))
_TITLE = "autottt: a task, live"
_HEADERS = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
}
TraceId = Annotated[str, PathParameter(pattern=r"^[0-9a-f]{12}$")]


@runtime_checkable
class TraceReader(Protocol):
    """A recorder whose traces can be read again."""

    content: bool

    def stored(self, trace_id: str) -> Trace | None:
        """The trace of a run; None where no store has it."""
        ...


class PageSettings(BaseModel):
    """What the page at `/` offers."""

    state: Literal["loading", "ready", "failed", "stopping", "stopped"]
    models: list[str]
    strategies: list[str]
    traces: bool
    """Whether runs have a page: traces are stored, with content."""


class LivePage:
    """The routes of the page. Each client reads the traces of its own runs only."""

    def __init__(self, engine: Engine, models: list[str], *, needs_key: bool) -> None:
        """`models` are the names that the page offers; with `needs_key` it asks for an API key first."""
        self._engine = engine
        self._models = models
        self._clients: OrderedDict[str, str] = OrderedDict()
        policy = page_policy(FILES, connects=True, opens=TRACE_FILES)
        self._headers = {**_HEADERS, "content-security-policy": f"{policy}; frame-ancestors 'none'"}
        body = f"<noscript>{escape('This page needs JavaScript; /openapi.json describes the API.')}</noscript>"
        self._page = html_page(_TITLE, {"needs_key": needs_key}, body, FILES, connects=True, opens=TRACE_FILES)

    def add_to(self, app: FastAPI) -> None:
        """Adds the routes to an application."""
        app.add_api_route("/", self.page, methods=["GET"], response_class=HTMLResponse, include_in_schema=False)
        app.add_api_route("/page/settings", self.settings, methods=["GET"], include_in_schema=False)
        app.add_api_route("/v1/traces/{trace_id}", self.trace, methods=["GET"], response_class=HTMLResponse)

    def remember(self, client: str, trace_id: str) -> None:
        """Lets a client read the trace of its run."""
        if trace_id:
            self._clients[trace_id] = client
            while len(self._clients) > MAX_RUNS:
                self._clients.popitem(last=False)

    def client_of(self, trace_id: str) -> str | None:
        """The client whose run a trace is; None where that is no longer known."""
        return self._clients.get(trace_id)

    async def page(self) -> HTMLResponse:
        """The page, which is the same for everybody."""
        return HTMLResponse(self._page, headers=self._headers)

    async def settings(self) -> PageSettings:
        """What the page offers; without strategies until the model is loaded."""
        names: list[str] = []
        recorder: Any = None
        if self._engine.state == "ready":
            names, recorder = _strategies(), self._engine.controller.recorder
        has_traces = isinstance(recorder, TraceReader) and recorder.content
        return PageSettings(state=self._engine.state, models=self._models, strategies=names, traces=has_traces)

    async def trace(self, trace_id: TraceId, request: Request) -> HTMLResponse:
        """The page of a run, where traces are stored with content; each client reads those of its own runs."""
        recorder = self._engine.controller.recorder
        client = str(request.scope.get("autottt_client", ""))
        if not isinstance(recorder, TraceReader) or self.client_of(trace_id) != client:
            raise trace_not_found(trace_id)
        page = await asyncio.to_thread(_trace_page, recorder, trace_id, self._engine.controller.policy)
        policy = page_policy(TRACE_FILES)
        headers = {**_HEADERS, "content-security-policy": f"{policy}; frame-ancestors 'none'"}
        return HTMLResponse(page, headers=headers)


def _trace_page(recorder: TraceReader, trace_id: str, policy: Policy) -> str:
    """The page of a stored trace. Raises `ApiError` where there is none, or where it has no content."""
    from ..tracing.page import page_of

    try:
        trace = recorder.stored(trace_id)
    except AutotttError as error:
        raise trace_store_failed(error) from error
    if trace is None:
        raise ApiError(404, f"trace {trace_id} is stored no more, or nowhere", code="trace_not_found")
    if not trace.has_content:
        message = "the trace has no content: start the server with --trace-content"
        raise ApiError(404, message, code="trace_without_content")
    return page_of(trace, _strategies(), policy)


def _strategies() -> list[str]:
    """The names of all strategies."""
    from ...strategies.registry import strategies

    return list(strategies())
