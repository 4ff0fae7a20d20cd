"""The command `autottt serve`: answers tasks and OpenAI-compatible chats over HTTP."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...strategies.registry import check_names
from ...ttt_core.errors import ClosedError, SettingsError
from .console import note, print_error
from .options import AnswerOptions, ModelOptions, PolicyOptions, Seed, TraceOptions, load_controller

if TYPE_CHECKING:
    from ..controller import Controller
    from ..server.guard import ApiKeys, Guard
    from ..server.limits import Limits
    from ..server.upstream import Upstream

KEYS_VARIABLE = "AUTOTTT_API_KEYS"
"""Environment variable with API keys, in place of a file."""
STOPPED_AT_ONCE = 1
"""Exit code after a second signal: the base model was not checked."""
CLUSTER_LOST = 1
"""Exit code where the cluster has ended before the replicas were stopped."""
_RAY_LIBRARIES = ("ray", "aiohttp", "grpc", "watchfiles")
"""Ray, and what Ray Serve imports."""
_LIBRARIES = ("fastapi", "uvicorn", "prometheus_client", "httpx2")


@dataclass(frozen=True)
class AddressOptions:
    """Where the server listens, and who may use it."""

    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need API keys.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 8000
    api_keys: Annotated[
        Path | None,
        typer.Option(help="File with one API key on a line, as KEY or NAME:KEY; default: AUTOTTT_API_KEYS, else none."),
    ] = None
    allow_no_key: Annotated[
        bool, typer.Option("--allow-no-key", help="Listen on --host without API keys: whoever reaches it may use it.")
    ] = False

    def keys(self) -> ApiKeys | None:
        """The API keys. Raises `SettingsError` where they cannot be read, or are missing and needed."""
        from ..server.guard import ApiKeys, is_loopback

        if self.api_keys is not None:
            return ApiKeys.from_file(self.api_keys)
        if text := os.environ.get(KEYS_VARIABLE):
            return ApiKeys.read(text, f"variable {KEYS_VARIABLE}")
        if not is_loopback(self.host) and not self.allow_no_key:
            raise SettingsError(
                f"--host {self.host}: other machines can reach this address, so the server needs keys: give "
                f"--api-keys FILE or {KEYS_VARIABLE}, or --allow-no-key if whoever reaches it may use it"
            )
        return None


@dataclass(frozen=True)
class LimitOptions:
    """What requests and clients may take."""

    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request's body.")] = 1 << 20
    max_demonstrations: Annotated[int, typer.Option(min=1, help="Demonstrations of a task.")] = 256
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 4096
    max_queue: Annotated[int, typer.Option(min=0, help="Requests that wait.")] = 64
    max_requests: Annotated[int, typer.Option(min=1, help="Requests of one client that wait or run.")] = 16
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Seconds that a request may wait and run.")] = 600.0
    max_adapters: Annotated[int, typer.Option(min=1, help="Cached adapters of one client.")] = 64
    shutdown_seconds: Annotated[
        float, typer.Option(min=0.0, help="Seconds that running requests have to finish when the server stops.")
    ] = 30.0

    def limits(self) -> Limits:
        """The limits of the server."""
        from ..server.limits import Limits

        return Limits(
            body_bytes=self.max_body, demonstrations=self.max_demonstrations, max_tokens=self.max_tokens,
            queue=self.max_queue, requests_per_client=self.max_requests, seconds=self.max_seconds,
            adapters_per_client=self.max_adapters, shutdown_seconds=self.shutdown_seconds,
        )  # fmt: skip


@dataclass(frozen=True)
class OtherServerOptions:
    """Another server that answers what needs no training."""

    in_context_url: Annotated[
        str | None,
        typer.Option(
            help="Let another server with OpenAI's API and the same model answer what needs no training; its key: "
            "AUTOTTT_IN_CONTEXT_KEY."
        ),
    ] = None
    in_context_model: Annotated[
        str | None, typer.Option(help="What that server calls the model; default: the first that it lists.")
    ] = None

    def upstream(self) -> Upstream | None:
        """The client of that server, if there is one. Raises `SettingsError`."""
        from ..server.upstream import KEY_VARIABLE, Upstream

        if self.in_context_url is None:
            return None
        return Upstream(self.in_context_url, model=self.in_context_model, key=os.environ.get(KEY_VARIABLE))


@dataclass(frozen=True)
class ClusterOptions:
    """Several processes or machines behind one address."""

    ray: Annotated[
        str | None,
        typer.Option(help="Address of a Ray cluster that runs the replicas; `local` starts one on this machine."),
    ] = None
    replicas: Annotated[
        int | None,
        typer.Option(min=1, help="With --ray: processes with the model, 1 unless given; --adapters shares adapters."),
    ] = None

    def check(self) -> None:
        """Raises `SettingsError` where the libraries are missing, or replicas have no cluster."""
        if self.ray is not None:
            _require_libraries(_RAY_LIBRARIES, "ray")
        elif self.replicas is not None:
            raise SettingsError(f"--replicas {self.replicas}: replicas run on Ray; add --ray local, or an address")


@dataclass(frozen=True)
class ServiceOptions:
    """How tasks are answered, and what is stored of them."""

    strategy: Annotated[str | None, typer.Option(help="Use this strategy for every task.")] = None
    seed: Seed = 0
    share_adapters: Annotated[
        bool, typer.Option("--share-adapters", help="Let clients reuse adapters that others' tasks have trained.")
    ] = False
    trace_content: Annotated[
        bool, typer.Option("--trace-content", help="Store demonstrations, queries and answers in traces too.")
    ] = False
    served_name: Annotated[
        str | None, typer.Option(help="What clients call the model; default: the name of its folder.")
    ] = None


def serve(
    address: AddressOptions,
    limits: LimitOptions,
    service: ServiceOptions,
    resources: AnswerOptions,
    other: OtherServerOptions,
    cluster: ClusterOptions,
    policy: PolicyOptions,
    model: ModelOptions,
    tracing: TraceOptions,
) -> None:
    """Answer tasks, and chats of OpenAI's clients, over HTTP.

    Example: `autottt serve --port 8000`

    Listens at once; `/readyz` answers 200 when the model is loaded. Ctrl-C or SIGTERM lets requests under way finish.
    """
    _require_libraries(_LIBRARIES, "serve")
    cluster.check()
    from ..server.app import make_app
    from ..server.engine import Engine
    from ..server.guard import Guard, is_loopback
    from ..server.metrics import Metrics
    from ..server.serving import bind, run_server, url_of

    began = time.monotonic()
    guard = Guard(address.keys(), limits.limits(), host=address.host if is_loopback(address.host) else None)
    if service.strategy is not None:
        check_names([service.strategy])
    policy.check()
    model.check()
    name = service.served_name or _model_name(model.model)
    upstream = other.upstream()
    bound = bind(address.host, address.port)
    load = partial(_load, service, resources, policy, model, tracing)
    if cluster.ray is not None:
        port = bound.getsockname()[1]
        bound.close()  # Ray's own process listens there
        _serve_on_ray(cluster, load, guard, name, service, other, device=model.device, host=address.host, port=port)
        return
    engine = Engine(limits.limits(), Metrics(), share_adapters=service.share_adapters)
    app = make_app(engine, model_name=name, guard=guard, upstream=upstream)
    run_server(
        app, engine, bound, load,
        on_start=lambda: note(f"listening on {url_of(bound)}; loading the model {name}"),
        on_ready=lambda: note(f"ready after {time.monotonic() - began:.1f} s"), end_at_once=_end_at_once,
    )  # fmt: skip
    is_proven = engine.proof is not None
    note("stopped; the base model is what was loaded" if is_proven else "stopped before the model was loaded")


def _end_at_once() -> None:
    """Ends the process without waiting for threads that still compute."""
    note("stopped at once; the base model was not checked")
    os._exit(STOPPED_AT_ONCE)


def _load(
    service: ServiceOptions, resources: AnswerOptions, policy: PolicyOptions, model: ModelOptions, tracing: TraceOptions
) -> Controller:
    """Loads the controller that the options describe."""
    from ..tracing.recorder import TraceRecorder

    setting = tracing.recorder
    trace = setting if setting == "off" else TraceRecorder.of(setting, content=service.trace_content)
    return load_controller(
        model, policy, strategy=service.strategy, budget=resources.budget, seed=service.seed,
        adapters=resources.adapters, memory_bytes=resources.memory_bytes, trace=trace,
    )  # fmt: skip


def _serve_on_ray(
    cluster: ClusterOptions, load: partial[Controller], guard: Guard, name: str, service: ServiceOptions,
    other: OtherServerOptions, *, device: str | None, host: str, port: int,
) -> None:  # fmt: skip
    """Serves with replicas on a Ray cluster, until a signal stops the process."""
    from ..server.ray_serving import ReplicaSettings, run_replicas

    began, replicas = time.monotonic(), cluster.replicas or 1
    settings = ReplicaSettings(load, name, guard, service.share_adapters, partial(OtherServerOptions.upstream, other))
    note(f"{replicas} replicas on Ray ({cluster.ray}) load the model {name}")
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    try:
        run_replicas(
            settings, address=str(cluster.ray), replicas=replicas, host=host, port=port,
            gpus=1.0 if (device or "").startswith("cuda") else 0.0,
            on_ready=lambda: note(f"listening on {url}; ready after {time.monotonic() - began:.1f} s"),
        )  # fmt: skip
    except ClosedError as error:
        print_error(error)
        os._exit(CLUSTER_LOST)  # otherwise the threads of Ray would wait for its cluster
    note("stopped")


def _require_libraries(names: Sequence[str], extra: str) -> None:
    """Raises `SettingsError` where the libraries of an extra are not installed."""
    missing = [name.replace("_", "-") for name in names if find_spec(name) is None]
    if missing:
        raise SettingsError(f"the server needs {', '.join(missing)}: run `pip install 'autottt[{extra}]'`")


def _model_name(source: str | None) -> str:
    """What clients call a model: the name of its folder or file, or its hub id."""
    if source is None:
        return "autottt-bundled"
    return Path(source).expanduser().resolve().name if Path(source).expanduser().exists() else source
