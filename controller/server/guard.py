"""What every request passes first: the checks of its host and API key, and the limits of its body. Knows no route."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...ttt_core.errors import SettingsError, shortened
from ..caller import remote_caller
from .api_errors import ApiError, api_error
from .limits import Limits
from .metrics import Metrics

BODY_SECONDS = 30.0
"""Time that a client has to send the body of a request."""
DISCARDED_BYTES = 64 << 20
"""Bytes of a refused body that are received and dropped: many clients read the answer only once they have sent it all,
and see a reset connection where they cannot."""
OPEN_PATHS = ("/", "/healthz", "/readyz")
"""Paths that need no key: for probes, and the page that asks for the key."""
MIN_KEY_LENGTH = 16
_LOG = logging.getLogger("autottt.server")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class ApiKeys:
    """The API keys, of which only hashes are kept, and the names of their clients."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        """`keys` are names of clients by their key."""
        self._clients = [(hashlib.sha256(key.encode()).digest(), name) for key, name in keys.items()]

    @classmethod
    def read(cls, text: str, source: str) -> ApiKeys:
        """The keys in a text: one on a line, alone or after the name of its client and a colon. Raises
        `SettingsError`, which quotes no key."""
        keys: dict[str, str] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            if not (line := line.strip()) or line.startswith("#"):
                continue
            name, separator, key = (part.strip() for part in line.rpartition(":"))
            if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable():
                raise SettingsError(
                    f"{source}, line {number}: expected a key of at least {MIN_KEY_LENGTH} ASCII characters, or "
                    "NAME:KEY; received another text, which is not shown"
                )
            if separator and not name:
                raise SettingsError(f"{source}, line {number}: expected a name before the colon")
            keys[key] = name or hashlib.sha256(key.encode()).hexdigest()[:12]
        if not keys:
            raise SettingsError(f"{source}: expected at least one key, one on a line; received none")
        return cls(keys)

    @classmethod
    def from_file(cls, file: Path) -> ApiKeys:
        """The keys in a file. Raises `SettingsError`."""
        try:
            return cls.read(file.read_text("utf-8"), str(file))
        except OSError as error:
            raise SettingsError(f"--api-keys {file}: the file cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise SettingsError(f"--api-keys {file}: expected a text in UTF-8") from None

    def client_of(self, key: str) -> str | None:
        """The name of the client with a key; None for an unknown one. Takes as long for every key."""
        digest = hashlib.sha256(key.encode(errors="replace")).digest()
        client = None
        for known, name in self._clients:
            if hmac.compare_digest(digest, known):
                client = name
        return client


class Guard:
    """Checks requests before the application sees them."""

    def __init__(self, keys: ApiKeys | None = None, limits: Limits | None = None, *, host: str | None = None) -> None:
        """Without `keys` every request is that of one client, whose name is empty. `host` is the address that only this
        machine reaches, where the server listens on one: without keys, a request must then name this machine."""
        self.keys = keys
        self.host = host
        self.limits = limits or Limits()

    def protect(self, app: FastAPI, metrics: Metrics) -> None:
        """Puts the guard before an application."""
        app.add_middleware(_GuardMiddleware, guard=self, metrics=metrics, paths=_paths(app))

    def client_of(self, request: Request) -> str:
        """The client of a request. Raises `ApiError` without a valid key."""
        if self.keys is None or request.url.path in OPEN_PATHS:
            return ""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        client = self.keys.client_of(key.strip()) if scheme.lower() == "bearer" else None
        if client is None:
            message = "expected a valid key in the header `Authorization: Bearer KEY`"
            raise ApiError(401, message, code="invalid_api_key")
        return client

    def check_host(self, request: Request) -> None:
        """Raises `ApiError` for a request that names another host, as a browser sends it for a page of that host whose
        name was made to lead here: the page would read the answers."""
        header = request.headers.get("host")
        if self.keys is not None or self.host is None or header is None:
            return
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            name = ""
        if not is_loopback(name) and name != self.host.lower():
            message = (
                f"expected localhost, a loopback address or {self.host} in the header `Host`, since this server has no "
                f"API keys; received {shortened(header)}: use such an address, or start the server with --api-keys"
            )
            raise ApiError(403, message, code="invalid_host")

    def check_length(self, request: Request) -> None:
        """Raises `ApiError` for a body that is announced to be too long."""
        length = request.headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > self.limits.body_bytes:
            raise self.too_long()

    def too_long(self) -> ApiError:
        """The error for a body that is too long."""
        return ApiError(413, f"the body has more than {self.limits.body_bytes} bytes, the limit here", code="too_large")


class _GuardMiddleware:
    """The ASGI application of a guard."""

    def __init__(self, app: ASGIApp, guard: Guard, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app, self._guard, self._metrics, self._paths = app, guard, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = False

        async def counted(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                path = scope["path"] if scope["path"] in self._paths else "other"
                self._metrics.response(path, message["status"])
            await send(message)

        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # Uvicorn, which knows the request, sends no body
        request = Request(scope)
        try:
            self._guard.check_host(request)
            scope["autottt_client"] = self._guard.client_of(request)
            try:
                self._guard.check_length(request)
            except ApiError:
                await _discard(receive, monotonic() + BODY_SECONDS)
                raise
            with remote_caller(request.headers.get("traceparent"), request.headers.get("tracestate")):
                await self._app(scope, self._limited(receive), counted)
        except ApiError as error:
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, counted)
        except Exception as error:
            _LOG.debug("the error of %s, which may quote the request", scope["path"][:200], exc_info=True)
            unexpected = api_error(error)
            if not began:
                await JSONResponse(unexpected.body, unexpected.status, unexpected.headers)(scope, receive, counted)

    def _limited(self, receive: Receive) -> Receive:
        """Receives the body within the limits of time and bytes. Raises `HTTPException`, which FastAPI passes on, from
        the `ApiError` of the client."""
        received, complete = 0, False
        ends = monotonic() + BODY_SECONDS

        async def limited() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout(max(0.0, ends - monotonic())):
                    message = await receive()
            except TimeoutError:
                text = f"the body did not arrive within {BODY_SECONDS:g} seconds; send it faster, or a shorter one"
                late = ApiError(408, text, code="body_timeout")
                raise _passed_on(late) from late
            body: Any = message.get("body", b"")
            received, complete = received + len(body), not message.get("more_body", False)
            if received > self._guard.limits.body_bytes:
                if not complete:
                    await _discard(receive, ends)
                too_long = self._guard.too_long()
                raise _passed_on(too_long) from too_long
            return message

        return limited


async def _discard(receive: Receive, ends: float) -> None:
    """Receives the rest of a body and drops it, up to `DISCARDED_BYTES` and a time of the monotonic clock."""
    dropped, more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, ends - monotonic())):
            while more and dropped <= DISCARDED_BYTES:
                message = await receive()
                dropped, more = dropped + len(message.get("body", b"")), bool(message.get("more_body", False))


def _passed_on(error: ApiError) -> HTTPException:
    """An error as FastAPI passes it on while it reads a body; the connection ends with it."""
    return HTTPException(error.status, error.message, {"connection": "close"})


def _paths(app: FastAPI) -> frozenset[str]:
    """The paths of routes, as names in metrics: others would make as many names as clients invent."""
    return frozenset(str(getattr(route, "path", "")) for route in app.routes)
