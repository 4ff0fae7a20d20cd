"""The server on a Ray cluster: replicas of the application, each with its own model, behind one address.

The only module of the server that imports Ray; needs the extra `ray`.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import ray
from fastapi import FastAPI
from ray import serve

from ...ttt_core.errors import ClosedError, SettingsError
from .app import make_app
from .engine import Engine
from .guard import Guard
from .metrics import Metrics
from .process_ends import children_in_own_groups, finish
from .upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..controller import Controller

APPLICATION = "autottt"
"""Name of the application in Ray Serve."""
LOCAL = "local"
"""The address that starts a cluster on this machine."""
CONNECT_SECONDS = 5.0
STOP_SECONDS = 30.0
"""Time to stop the replicas, beyond that of their requests, and again to stop the cluster."""
_POLL_SECONDS = 0.5
HEALTH_SECONDS = 10.0
"""How often Ray asks a replica whether its model is what was loaded; one that says no is replaced."""
_LOG = logging.getLogger("autottt.server")


@dataclass(frozen=True)
class ReplicaSettings:
    """What a replica is made of, as it travels to the machine that runs it."""

    load: Callable[[], Controller]
    model_name: str
    guard: Guard
    share_adapters: bool
    upstream: Callable[[], Upstream | None]


@serve.ingress()  # type: ignore[untyped-decorator, unused-ignore]
class Replica:
    """One process with the model; it answers as `autottt serve` does on one machine."""

    async def __init__(self, settings: ReplicaSettings) -> None:  # type: ignore[misc]
        """Loads the model. Raises what loading raises."""
        self.settings = settings
        self.engine = Engine(settings.guard.limits, Metrics(), share_adapters=settings.share_adapters)
        await self.engine.load(settings.load)
        if self.engine.error is not None:
            raise self.engine.error

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve."""
        settings = self.settings
        return make_app(
            self.engine, model_name=settings.model_name, guard=settings.guard, upstream=settings.upstream(),
        )  # fmt: skip

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces the replica if this raises."""
        if self.engine.state == "failed":
            raise RuntimeError("the model is not what was loaded")

    async def __del__(self) -> None:
        """Called by Ray Serve before the process ends: lets requests finish, and proves the base model."""
        await self.engine.stop()


def run_replicas(
    settings: ReplicaSettings, *, address: str, replicas: int, gpus: float, host: str, port: int,
    on_ready: Callable[[], None],
) -> None:  # fmt: skip
    """Serves with replicas on the cluster at an address, until a signal stops the process. `gpus` is for each replica;
    `on_ready` is called once all have loaded the model. Raises `SettingsError` where the cluster cannot be reached or
    is too small, or with the text of what loading the model raised, and `ClosedError` where the cluster has ended
    before the replicas were stopped: the process should then end by `os._exit`, since Ray waits for the cluster."""
    with _cluster(address, replicas):
        _check_room(address, replicas, gpus)
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port, "request_timeout_s": None})
        deployment: Any = serve.deployment(
            Replica, name=APPLICATION, num_replicas=replicas, ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
            max_ongoing_requests=settings.guard.limits.queue + 64,  # a replica itself refuses what is too much
            max_constructor_retry_count=1, health_check_period_s=HEALTH_SECONDS,
            graceful_shutdown_timeout_s=settings.guard.limits.shutdown_seconds + 5,
        )  # fmt: skip
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        target = serve.RunTarget(deployment.bind(settings), name=APPLICATION, route_prefix="/")
        try:
            serve.run_many([target], wait_for_applications_running=False)
            if _wait_until_running(address, stopped):
                on_ready()
                stopped.wait()
        finally:
            _stop(partial(serve.delete, APPLICATION), settings.guard.limits.shutdown_seconds + STOP_SECONDS)


def _wait_until_running(address: str, stopped: threading.Event) -> bool:
    """Whether all replicas run; False where the process is to stop before. Raises `SettingsError` where they cannot be
    started, and `ClosedError` where the cluster has ended."""
    cluster = ray.get_runtime_context().gcs_address
    while not stopped.wait(_POLL_SECONDS):
        if _why_no_answer(cluster) is not None:
            raise ClosedError(f"the cluster at {cluster} has ended before the replicas were started")
        application = serve.status().applications[APPLICATION]
        if application.status == "RUNNING":
            return True
        if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            reason = _why_not_running() or application.message
            raise SettingsError(f"--ray {address}: the replicas could not be started: {reason}")
    return False


def _stop(work: Callable[[], object], seconds: float) -> None:
    """Stops something of the cluster. Raises `ClosedError` where that takes too long or the cluster has ended."""
    cluster = ray.get_runtime_context().gcs_address
    if not finish(work, seconds=seconds, is_possible=lambda: _why_no_answer(cluster) is None):
        raise ClosedError(
            f"the cluster at {cluster} has ended, or took longer than {seconds:g} s, before the replicas were stopped: "
            "requests under way may be lost"
        )


@contextmanager
def _cluster(address: str, replicas: int) -> Iterator[None]:
    """The connection to a cluster; one that was started here ends with the body. Raises `SettingsError`.

    Signals to the process group of this process do not reach the processes of a cluster that is started here: they end
    after the replicas have finished.
    """
    _check_address(address)
    cpus = max(replicas, os.cpu_count() or 1) if address == LOCAL else None
    try:
        with children_in_own_groups():
            ray.init(address, num_cpus=cpus, log_to_driver=False, **({"include_dashboard": False} if cpus else {}))
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SettingsError(f"--ray {address}: the cluster cannot be reached: {error}") from None
    try:
        yield
    except ClosedError:
        raise
    except BaseException:
        _disconnect(address)
        raise
    _disconnect(address)


def _disconnect(address: str) -> None:
    """Ends the connection to a cluster, and a cluster that was started here; Ray Serve, which listens on the port, ends
    with its last application."""
    if address == LOCAL or not serve.status().applications:
        _stop(serve.shutdown, STOP_SECONDS)
    ray.shutdown()


def _check_address(address: str) -> None:
    """Raises `SettingsError` where nothing listens at an address with a port: Ray itself tries for minutes."""
    error = None if address == LOCAL else _why_no_answer(address)
    if error is not None:
        raise SettingsError(f"--ray {address}: nothing answers there ({error}); `ray status` names a cluster")


def _why_no_answer(address: str) -> OSError | None:
    """The error of connecting to an address; None where something listens, or the address has no port."""
    url = urlsplit(address if "://" in address else f"//{address}")
    if url.port is None:
        return None
    try:
        socket.create_connection((url.hostname, url.port), CONNECT_SECONDS).close()
    except OSError as error:
        return error
    return None


def _why_not_running() -> str:
    """What Ray Serve says of replicas that are not running: the last line of the error in their constructor."""
    application = serve.status().applications.get(APPLICATION)
    messages = [each.message for each in application.deployments.values()] if application is not None else []
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _check_room(address: str, replicas: int, gpus: float) -> None:
    """Raises `SettingsError` for a cluster without enough CPUs or GPUs, where replicas would wait forever."""
    resources = ray.cluster_resources()
    for name, needed in (("CPU", float(replicas)), ("GPU", replicas * gpus)):
        if resources.get(name, 0.0) < needed:
            raise SettingsError(
                f"--ray {address}: {replicas} replicas need {needed:g} {name}s; the cluster has "
                f"{resources.get(name, 0.0):g}: give fewer --replicas, or add machines"
            )
