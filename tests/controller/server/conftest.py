"""Fixtures of the server's tests: an engine around a tiny model, and a client of its application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from autottt import Controller, FixedPolicy
from autottt.controller.server.app import make_app
from autottt.controller.server.engine import Engine
from autottt.controller.server.guard import Guard
from autottt.controller.server.limits import Limits
from autottt.controller.server.metrics import Metrics

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
        engine = Engine(limits, Metrics())
        if served is not None:
            engine.use(served)
        app = make_app(engine, model_name=MODEL, guard=Guard(keys, limits), **settings)
        client = TestClient(app, raise_server_exceptions=False)
        client.__enter__()
        clients.append(client)
        client.engine = engine  # type: ignore[attr-defined]
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)


def run(coroutine: Any) -> Any:
    """The result of a coroutine."""
    return asyncio.run(coroutine)
