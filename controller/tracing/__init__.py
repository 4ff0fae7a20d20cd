"""Traces: each run as a tree of spans, stored, read, compared and shown. Not imported while recording is off."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

STORE_SUFFIXES = (".sqlite", ".sqlite3", ".db")
"""Endings of the names of files that are stores of traces."""
OTLP = "otlp"
"""Names OpenTelemetry as a target; `otlp:URL` names its endpoint."""
EXPECTED_TARGETS = f"off, local, {OTLP}, {OTLP}:URL, or a file NAME{STORE_SUFFIXES[0]}"
"""What `named_targets` accepts, in words."""


def named_targets(setting: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of targets in a setting, which commas separate; none for `off`. Raises `ValueError` for another one."""
    text = os.fspath(setting)
    if text == "off":
        return ()
    names = text.split(",") if isinstance(setting, str) else [text]
    for name in names:
        kind, _, endpoint = name.partition(":")
        is_otlp = kind == OTLP and (name == OTLP or urlsplit(endpoint).scheme in ("http", "https"))
        if not (name == "local" or is_otlp or name.endswith(STORE_SUFFIXES)):
            raise ValueError(f"expected {EXPECTED_TARGETS}; commas separate several targets; received {text!r}")
    return tuple(dict.fromkeys(names))
