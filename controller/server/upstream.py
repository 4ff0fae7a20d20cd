"""Another server with OpenAI's API and the same model, which answers what needs no training.

Knows nothing about tasks: it is given messages and returns text.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import httpx2

from ...ttt_core.errors import SettingsError

KEY_VARIABLE = "AUTOTTT_IN_CONTEXT_KEY"
"""Environment variable with the API key of the other server."""
CONNECT_SECONDS, SILENCE_SECONDS = 3.0, 60.0
"""Time to connect, and the longest silence of an answer."""
RETRY_SECONDS = 10.0
"""How long a server that could not be reached, or was overloaded or broken, is not asked again."""
MAX_CHARACTERS = 1 << 20
"""Longest answer that is read."""


class UpstreamError(Exception):
    """The other server gave no answer. The message quotes nothing that it said."""


@dataclass(frozen=True)
class UpstreamAnswer:
    """What the other server wrote."""

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None


class Upstream:
    """A client of the other server."""

    def __init__(self, url: str, *, model: str | None = None, key: str | None = None) -> None:
        """`model` is what the other server calls the model; None: the first that it lists, which is asked for again
        where the server no longer knows it. Raises `SettingsError` for what is no address."""
        try:
            parts = urlsplit(url)
            port = "" if parts.port is None else f":{parts.port}"
        except ValueError:
            parts, port = urlsplit(""), ""
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise SettingsError("--in-context-url: expected an address such as http://127.0.0.1:8001/v1")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.server = f"{parts.scheme}://{host}{port}"
        """The address without user, password and path."""
        self._base = url.rstrip("/") if parts.path.rstrip("/") else f"{url.rstrip('/')}/v1"
        self._given, self._model = model, model
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._failed_until = 0.0

    async def answer(
        self, messages: Sequence[Mapping[str, str]], *, max_tokens: int, stops: Sequence[str] = (),
        temperature: float = 0.0, seed: int | None = None,
    ) -> AsyncGenerator[str | UpstreamAnswer, None]:  # fmt: skip
        """The text so far, whenever there is more, and the answer at the end. Raises `UpstreamError`."""
        if monotonic() < self._failed_until:
            raise UpstreamError("the other server failed a moment ago")
        body: dict[str, Any] = {
            "messages": list(messages), "max_tokens": max_tokens, "temperature": temperature, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        body |= ({"stop": list(stops)} if stops else {}) | ({} if seed is None else {"seed": seed})
        timeout = httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        try:
            async with httpx2.AsyncClient(headers=self._headers, timeout=timeout, trust_env=False) as client:
                body["model"] = self._model = self._model or await self._first_model(client)
                path = f"{self._base}/chat/completions"
                async with client.stream("POST", path, json=body) as response:
                    if response.status_code == 404:  # it may have another model now
                        self._model = self._given
                    self._check_status(response.status_code)
                    reader = _Reader()
                    async for line in response.aiter_lines():
                        if reader.read(line):
                            yield reader.text
                    yield reader.answer()
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            self._failed_until = monotonic() + RETRY_SECONDS
            raise UpstreamError(f"the other server cannot be reached ({type(error).__name__})") from None

    def _check_status(self, status: int) -> None:
        """Raises `UpstreamError` for a failure; of the server itself and not of this request, it is not asked again for
        a while."""
        if status == 429 or status >= 500:
            self._failed_until = monotonic() + RETRY_SECONDS
        if status != 200:
            raise UpstreamError(f"the other server answered with the status {status}")

    async def _first_model(self, client: httpx2.AsyncClient) -> str:
        response = await client.get(f"{self._base}/models")
        self._check_status(response.status_code)
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise UpstreamError("the other server lists no models") from None


class _Reader:
    """Reads the chunks of a streamed answer."""

    def __init__(self) -> None:
        self.text = ""
        self._finish_reason = ""
        self._usage: Mapping[str, Any] = {}

    def read(self, line: str) -> bool:
        """Reads a line; whether there is more text now. Raises `UpstreamError`."""
        if not line.startswith("data:") or (content := line.removeprefix("data:").strip()) == "[DONE]":
            return False
        try:
            chunk = json.loads(content)
            if "error" in chunk:
                raise UpstreamError("the other server ended its answer with an error")
            self._usage = chunk.get("usage") or self._usage
            choice = next(iter(chunk.get("choices") or ()), None)
            if choice is None:
                return False
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            new = str((choice.get("delta") or {}).get("content") or "")
        except (ValueError, AttributeError, TypeError):
            raise UpstreamError("the other server sent something that is no chunk of a chat") from None
        self.text += new
        if len(self.text) > MAX_CHARACTERS:
            raise UpstreamError("the answer of the other server is too long")
        return bool(new)

    def answer(self) -> UpstreamAnswer:
        """The whole answer. Raises `UpstreamError` for one that broke off."""
        if not self._finish_reason:
            raise UpstreamError("the answer of the other server broke off")
        counts = [self._usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        prompt, completion = (count if isinstance(count, int) else None for count in counts)
        return UpstreamAnswer(self.text, self._finish_reason, prompt, completion)
