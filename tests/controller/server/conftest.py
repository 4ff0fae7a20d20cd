"""Fixtures of the server's tests: an engine around a tiny model, and a client of its application."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from autottt import Controller, FixedPolicy
from autottt.controller.server.app import make_app
from autottt.controller.server.engine import Engine
from autottt.controller.server.guard import Guard
from autottt.controller.server.limits import Limits
from autottt.controller.server.metrics import Metrics
from autottt.controller.server.serving import bind, url_of

MODEL = "tiny"
TASK = {
    "demonstrations": [
        {"input": [1, 2, 3], "output": [3, 2, 1]},
        {"input": [4, 5], "output": [5, 4]},
        {"input": [7, 8, 9, 9], "output": [9, 9, 8, 7]},
    ],
    "query": [6, 2, 4],
}
Serve = Callable[..., "TestClient"]


@pytest.fixture
def controller(make_learner) -> Controller:
    return Controller(make_learner(), FixedPolicy("in_context"))


@pytest.fixture
def serve(controller) -> Iterator[Serve]:
    """A function that serves the controller and returns a client; `limits` and `keys` are the guard's."""
    clients: list[TestClient] = []

    def make(
        served: Controller | None = controller, *, limits: Limits | None = None, keys: Any = None, **settings: Any
    ) -> TestClient:
        limits = limits or Limits()
        engine = Engine(limits, Metrics(), share_adapters=settings.pop("share_adapters", False))
        if served is not None:
            engine.use(served)
        guard = Guard(keys, limits, host=settings.pop("host", None))
        app = make_app(engine, model_name=MODEL, guard=guard, **settings)
        client = TestClient(app, raise_server_exceptions=False)
        client.__enter__()
        clients.append(client)
        client.engine = engine  # type: ignore[attr-defined]
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)
        if client.engine.scheduler is not None:  # type: ignore[attr-defined]
            client.engine.scheduler.close(cancel=True)  # type: ignore[attr-defined]


@pytest.fixture
def live(controller) -> Iterator[Callable[..., str]]:
    """A function that serves a controller on a free port, for real clients, and returns the address."""
    servers: list[tuple[uvicorn.Server, threading.Thread, Engine]] = []

    def make(
        served: Controller = controller, *, limits: Limits | None = None, keys: Any = None, **settings: Any
    ) -> str:
        limits = limits or Limits()
        engine = Engine(limits, Metrics())
        engine.use(served)
        app = make_app(engine, model_name=MODEL, guard=Guard(keys, limits), **settings)
        bound = bind("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none", http="h11"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        servers.append((server, thread, engine))
        return url_of(bound)

    yield make
    for server, thread, engine in servers:
        server.should_exit = True
        thread.join()
        assert engine.scheduler is not None
        engine.scheduler.close(cancel=True)
