"""Errors as clients of OpenAI's API expect them: `{"error": {"message", "type", "param", "code"}}`.

Knows nothing about requests. No message quotes a path of the file system, a traceback or a weight.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...ttt_core.errors import (
    AdaptationError,
    AutotttError,
    BaseChangedError,
    BudgetError,
    Cancelled,
    ClosedError,
    DeadlineError,
    ParseError,
    PolicyError,
    QueueFullError,
    StrategyError,
    TaskError,
    TooLongError,
    TraceError,
    shortened,
)
from ..caller import trace_id_of
from ..tracing.store import BusyError

TRACE_HEADER = "x-autottt-trace-id"
"""Header with the id of a run's trace."""
MAX_RETRY_AFTER = 120
"""Seconds; clients of OpenAI's API ignore a longer `Retry-After`."""
BUSY_RETRY_SECONDS = 2
"""`Retry-After` where another process writes to the store of traces."""
_PATH = re.compile(r"(?<![\w/.])~?(?:/[\w.@+~-]+){2,}/?|(?<!\w)[A-Za-z]:\\[\w.\\@+~-]+")
_FIELD = re.compile(r"[a-z_]\w*(?:\[\d+\])?(?:\.\w+|\[\d+\])*(?=: )")
_PLAIN = re.compile(r"[\w-]+")
_EXPECTED = (
    (re.compile(r"^Input should be (?=greater|less)"), "expected a number "),
    (re.compile(r"^Input should be "), "expected "),
    (re.compile(r"^(?:String|List) should have "), "expected "),
    (re.compile(r" after validation, not \d+$"), ""),
    (re.compile(r"^String should match pattern "), "expected a text that matches "),
)
"""What Pydantic says, in the words of the other errors."""
NO_OBJECT = ("model_attributes_type", "model_type", "dict_type")
"""Types of Pydantic's errors for what is no object."""
MAX_NAME = 60
"""Longest name of an unknown field that is shown as it is."""
MAX_FRAMES = 12
"""Innermost frames of an unexpected error that are logged."""
_LOG = logging.getLogger("autottt.server")
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


@dataclass
class ApiError(Exception):
    """An error that a client receives."""

    status: int
    """HTTP status."""
    message: str
    param: str | None = None
    """The field of the request that is the cause."""
    code: str | None = None
    retry_after: float | None = None
    """Seconds after which the client may try again."""
    trace_id: str = ""
    """Identifies the trace of the run that has failed; empty where none is recorded."""

    def __str__(self) -> str:
        return self.message

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body; with the trace of a run that has failed, and where its client can read it."""
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, default)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        trace = {"trace_id": self.trace_id, "trace": f"/v1/traces/{self.trace_id}"}
        return {"error": error, **({"autottt": trace} if self.trace_id else {})}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        headers = {"www-authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, min(MAX_RETRY_AFTER, round(self.retry_after))))
        return headers if not self.trace_id else {**headers, TRACE_HEADER: self.trace_id}


_TOLD = (ApiError, Cancelled, QueueFullError, ClosedError)
"""Errors of which the client learns the whole reason."""
_QUOTE_NOTHING = (AdaptationError, BaseChangedError, DeadlineError, PolicyError, TraceError)
"""Errors whose message quotes nothing of a request; that of a chat template, for one, may."""


def without_paths(text: str) -> str:
    """The text with every path of the file system as `<path>`."""
    return _PATH.sub("<path>", text)


def unsupported(field: str, why: str, received: object) -> ApiError:
    """The error for a field that would change the answer, and that this server does not implement."""
    message = f"{field}: is not supported: {why}; received {shortened(received)}"
    return ApiError(400, message, field, "unsupported_parameter")


def invalid_request(error: Mapping[str, Any], place: Sequence[int | str]) -> ApiError:
    """The error for a field that its schema refuses: one of the errors that Pydantic lists, and where the field is."""
    is_unknown = error["type"] == "extra_forbidden"
    last = len(place) - 1
    parts = [
        part for number, part in enumerate(place)
        if isinstance(part, int) or part.isidentifier() or (is_unknown and number == last)
    ]  # fmt: skip
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{_name(part)}" for part in parts).removeprefix(".")
    if is_unknown:
        return ApiError(400, f"{field}: is no field of this request; leave it out", field, "unknown_parameter")
    if error["type"] == "missing":
        return ApiError(400, f"{field}: expected a value; the field is missing", field or None, "invalid_value")
    expected = "expected an object" if error["type"] in NO_OBJECT else error["msg"].removeprefix("Value error, ")
    for pattern, words in _EXPECTED:
        expected = pattern.sub(words, expected)
    message = f"{field or 'body'}: {expected}; received {shortened(error['input'])}"
    return ApiError(400, message, field or None, "invalid_value")


def _name(part: str) -> str:
    """The name of a field as it is shown: quoted, and shortened, where it is not made of letters, digits and dashes."""
    return part if len(part) <= MAX_NAME and _PLAIN.fullmatch(part) else shortened(part)


def shutting_down() -> ApiError:
    """The error for requests that arrive while the server stops."""
    return ApiError(503, "the server is shutting down; try another one", code="shutting_down", retry_after=30)


def trace_not_found(trace_id: str) -> ApiError:
    """The error for a trace that is not there, or that is another client's."""
    message = f"trace_id: there is no trace {trace_id} of a run of yours"
    return ApiError(404, message, "trace_id", "trace_not_found")


def trace_store_failed(error: AutotttError) -> ApiError:
    """The error for a store of traces that cannot be read or written to."""
    if isinstance(error, BusyError):
        message = "another process writes to the store of traces; send the request again"
        return ApiError(503, message, code="trace_store", retry_after=BUSY_RETRY_SECONDS)
    message = "the store of traces cannot be used; the log of the server has the reason"
    return ApiError(503, message, code="trace_store")


def api_error(error: BaseException) -> ApiError:
    """What a client receives of an error that was raised while its request was answered.

    Only messages of errors that name a mistake of the request are passed on. Where the client is not told the reason of
    a failure, it is logged.
    """
    answer = _without_trace(error)
    answer = replace(answer, trace_id=answer.trace_id or trace_id_of(error))
    if answer.status >= 500:
        _log(error, answer.trace_id)
    return answer


def _log(error: BaseException, trace_id: str) -> None:
    """Logs the reason of a failure that its client is not told: the message of an error, or the frames of one whose
    message may quote the request."""
    reason = error.__cause__ if isinstance(error, ApiError) else error
    if reason is None or isinstance(reason, _TOLD):
        return
    text = str(reason) if isinstance(reason, _QUOTE_NOTHING) else f"raised by {_frames(reason)}"
    _LOG.error("a request failed: %s, trace %s: %s", type(reason).__name__, trace_id or "not recorded", text)


def _frames(error: BaseException) -> str:
    """The innermost frames of an error as `folder/file:line`, the outermost of them first."""
    lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    return ", ".join(f"{'/'.join(Path(file).parts[-2:])}:{line}" for file, line in lines[-MAX_FRAMES:]) or "no frame"


def _without_trace(error: BaseException) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, TooLongError):
        return ApiError(400, without_paths(str(error)), code="context_length_exceeded")
    if isinstance(error, StrategyError):
        return ApiError(400, without_paths(str(error)), "strategy")
    if isinstance(error, (TaskError, ParseError, BudgetError)):
        field = _FIELD.match(str(error))
        return ApiError(400, without_paths(str(error)), field[0] if field else None)
    if isinstance(error, Cancelled):
        return ApiError(503, "the request was cancelled before it had an answer", code="cancelled", retry_after=5)
    if isinstance(error, QueueFullError):
        return ApiError(503, str(error), code="queue_full", retry_after=error.retry_after)
    if isinstance(error, ClosedError):
        return shutting_down()
    if isinstance(error, BaseChangedError):
        message = "the model is not what was loaded, so this server answers no more; restart it"
        return ApiError(503, message, code="base_changed")
    kind = type(error).__name__ if isinstance(error, AutotttError) else "internal error"
    return ApiError(500, f"the request failed ({kind}); the log of the server has the reason", code="internal_error")
