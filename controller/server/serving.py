"""The server as a process: binds the port, loads the model in the background, and stops gracefully.

On the first SIGTERM or SIGINT new requests get 503 while those under way finish; a second one ends the process at once,
without a check of the base model.
Knows nothing about routes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...ttt_core.errors import SettingsError
from .api_errors import shutting_down
from .engine import Engine

if TYPE_CHECKING:
    from ..controller import Controller

CLOSING_SECONDS = 5
"""Time for responses to be sent after the work has ended."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on a port; port 0 is a free one. Raises `SettingsError` for one that cannot be used."""
    bound = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)
    except OSError as error:
        if bound is not None:
            bound.close()
        raise SettingsError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror}); give another port, or 0 for a free "
            "one"
        ) from None
    return bound


def url_of(bound: socket.socket) -> str:
    """The address of a listening socket."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class _Server(uvicorn.Server):
    """Uvicorn, which keeps listening while requests under way finish: Uvicorn itself would refuse connections at once,
    and end streams before their work has given the model back."""

    on_start: Callable[[], None]
    on_signal: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called when signals have their handler."""
        await super().startup(sockets)
        self.on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by signals."""
        self.on_signal()


def ends_quietly(app: ASGIApp) -> ASGIApp:
    """The application, with requests that end without an error where Uvicorn cancels them: those that are not answered
    when the server has stopped get 503."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        began = False

        async def noted(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await app(scope, receive, noted)
        except asyncio.CancelledError:
            if not began:
                error = shutting_down()
                with suppress(asyncio.CancelledError):
                    await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)

    return answer


def run_server(
    app: FastAPI, engine: Engine, bound: socket.socket, load: Callable[[], Controller], *,
    on_start: Callable[[], None], on_ready: Callable[[], None], end_at_once: Callable[[], None],
) -> None:  # fmt: skip
    """Serves until a signal stops the process, or the model cannot be loaded: then raises what loading raised, as it
    raises what the last check of the base model raised. `on_start` is called once requests are accepted, `on_ready`
    once the model is loaded, and `end_at_once`, which ends the process, at a second signal."""
    config = uvicorn.Config(
        ends_quietly(app), log_config=None, access_log=False, lifespan="off", server_header=False, loop="asyncio",
        http="h11", ws="none", timeout_graceful_shutdown=CLOSING_SECONDS, timeout_keep_alive=75,
    )  # fmt: skip
    server = _Server(config)
    server.on_start = on_start
    asyncio.run(_serve(server, engine, bound, load, on_ready, end_at_once))
    if engine.error is not None:
        raise engine.error


async def _serve(
    server: _Server, engine: Engine, bound: socket.socket, load: Callable[[], Controller],
    on_ready: Callable[[], None], end_at_once: Callable[[], None],
) -> None:  # fmt: skip
    loop, signals = asyncio.get_running_loop(), count()
    background: set[asyncio.Task[None]] = set()

    async def loading() -> None:
        await engine.load(load)
        if engine.state == "ready":
            on_ready()
        elif engine.state == "failed":
            server.should_exit = True

    async def stopping() -> None:
        try:
            await engine.stop()
        finally:
            server.should_exit = True

    def start(work: Callable[[], asyncio.Task[None]]) -> None:
        task = work()
        background.add(task)
        task.add_done_callback(background.discard)

    def on_signal() -> None:
        if next(signals) == 0:
            loop.call_soon_threadsafe(start, lambda: asyncio.create_task(stopping()))
        elif engine.state == "stopped":
            server.force_exit = True  # only responses are still being sent
        else:
            loop.call_soon_threadsafe(end_at_once)

    server.on_signal = on_signal
    start(lambda: asyncio.create_task(loading()))
    await server.serve(sockets=[bound])
    for task in background:
        task.cancel()
