"""What is wrong with a body before its fields are read: it is no JSON, no object, or of another content type or coding.

Knows no path and no field.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from ...ttt_core.errors import shortened
from .api_errors import ApiError

JSON_TYPE = "application/json"
_SHOWN = 40
"""Characters that are shown from the place on where a text is no JSON."""


def body_error(received: object, headers: Mapping[str, str]) -> ApiError:
    """The error for a body with its headers: `received` is what reading it raised, the bytes of a body that was not
    read because of its content type, or the value of one that is no object."""
    text = _text(received, headers.get("content-type"), headers.get("content-encoding", "identity"))
    return ApiError(400, f"body: {text}", code="invalid_body")


def _text(received: object, content_type: str | None, encoding: str) -> str:
    """What was expected and received, and what to do."""
    if received == b"":
        return "expected a JSON object; received an empty body: send the fields of the request"
    if encoding.lower() != "identity":
        return f"expected no content encoding; received {shortened(encoding)}: send it uncompressed"
    if isinstance(received, bytes):
        given = "no content type" if content_type is None else shortened(content_type)
        header = f"content-type: {JSON_TYPE}"
        return f"expected the header `{header}`; received {given}: add the header (curl: -H '{header}')"
    if isinstance(received, json.JSONDecodeError):
        rest = received.doc[received.pos : received.pos + _SHOWN]
        place = f"line {received.lineno}, column {received.colno}"
        found = shortened(rest) if rest else "the end of the text"
        return f"expected JSON; received {found} in {place} ({received.msg}): correct the text there"
    if isinstance(received, UnicodeDecodeError):
        byte = f"the byte 0x{received.object[received.start]:02x} in place {received.start}"
        return f"expected a text in UTF-8; received {byte}: encode the body as UTF-8"
    if isinstance(received, RecursionError):
        return "expected JSON; received lists or objects too deep inside each other: send fewer levels"
    if isinstance(received, ValueError):
        digits = sys.get_int_max_str_digits()
        return f"expected JSON with numbers of at most {digits} digits; received a longer one: shorten it"
    if isinstance(received, Exception):
        return f"expected JSON; received what cannot be read ({type(received).__name__}): send the request again"
    return f"expected a JSON object; received {shortened(received)}: send the fields of the request in one object"
