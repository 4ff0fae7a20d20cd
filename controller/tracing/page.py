"""A trace as one HTML page: no network, no framework, readable by keyboard and by screen readers.

Knows nothing about where traces are stored, and little about what they contain: view.py says what a page shows, and
components.js and page.js draw it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .trace import Trace
from .view import view_of

_PARTS = Path(__file__).parent


def page_of(trace: Trace, strategies: Sequence[str]) -> str:
    """The page of a trace; `strategies` are the nodes that the graph could choose. Raises `TraceError` for a trace
    without content."""
    view = view_of(trace, strategies)
    words = "".join(f"<p>{_text(sentence)}</p>" for sentence in view.pop("words"))
    return html_page(str(view["title"]), view, f'<section id="words"><h2>In words</h2>{words}</section>', "page.js")


def html_page(title: str, data: Mapping[str, Any], body: str, script: str) -> str:
    """A page with `data` as JSON in the element `data`, drawn by a script that may use components.js. Its policy
    forbids the network, and every script and style but those of this package."""
    style, *scripts = ((_PARTS / name).read_text("utf-8") for name in ("page.css", "components.js", script))
    code = "\n".join(scripts)
    policy = (
        f"default-src 'none'; script-src '{_hash(code)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{_text(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{style}</style></head><body><header><h1>{_text(title)}</h1></header>'
        f'<main>{body}</main><script type="application/json" id="data">{_json(data)}</script>'
        f"<script>{code}</script></body></html>"
    )


def _hash(text: str) -> str:
    """The source expression of an inline script or style in a content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"


def _text(text: str) -> str:
    """A text as HTML; half of a surrogate pair, which UTF-8 cannot hold, as a replacement character."""
    return escape(re.sub(r"[\ud800-\udfff]", "\ufffd", text))


def _json(data: Mapping[str, Any]) -> str:
    """JSON that ends no script element and can be written as UTF-8."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)
    return re.sub(r"[<\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)
