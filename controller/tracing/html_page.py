"""HTML pages that need no framework: scripts and styles of this package, data as JSON, a policy that forbids the rest.
Knows nothing about traces."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ...ttt_core.tasks.fields import as_utf8

_PARTS = Path(__file__).parent
TRACE_FILES = (_PARTS / "page.js",)
"""The scripts and styles of the page of a trace, beside those that all pages have."""


def html_page(
    title: str, data: Mapping[str, Any], body: str, files: Sequence[Path], *, connects: bool = False,
    opens: Sequence[Path] = (),
) -> str:  # fmt: skip
    """A page with `data` as JSON in the element `data`, drawn by the scripts in `files`, which may use components.js;
    see `page_policy`."""
    style, code = _style_and_code(files)
    policy = page_policy(files, connects=connects, opens=opens)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{as_html(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{style}</style></head><body><header><h1>{as_html(title)}</h1></header>'
        f'<main>{body}</main><script type="application/json" id="data">{_json(data)}</script>'
        f"<script>{code}</script></body></html>"
    )


def page_policy(files: Sequence[Path], *, connects: bool = False, opens: Sequence[Path] = ()) -> str:
    """The content security policy of a page: no script and no style but those of its files, and no network; with
    `connects` the server that the page came from. `opens` are the files of pages that it opens as blobs, which inherit
    its policy."""
    parts = [_style_and_code(each) for each in (files, opens) if each]
    styles, scripts = (" ".join(f"'{_hash(text)}'" for text in texts) for texts in zip(*parts, strict=True))
    connect = "connect-src 'self'; " if connects else ""
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src data:; {connect}base-uri 'none'; "
        "form-action 'none'"
    )


def _style_and_code(files: Sequence[Path]) -> tuple[str, str]:
    """The text of the styles and of the scripts of a page: those of all pages, then its own."""
    paths = [_PARTS / "page.css", _PARTS / "components.js", *files]
    style, code = (
        "\n".join(path.read_text("utf-8") for path in paths if path.suffix == suffix) for suffix in (".css", ".js")
    )
    return style, code


def _hash(text: str) -> str:
    """The source expression of an inline script or style in a content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"


def as_html(text: str) -> str:
    """A text as HTML; half of a surrogate pair, which UTF-8 cannot hold, as a replacement character."""
    return escape(as_utf8(text))


def _json(data: Mapping[str, Any]) -> str:
    """JSON that ends no script element and can be written as UTF-8."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)
    return re.sub(r"[<\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)
