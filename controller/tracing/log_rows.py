"""Stored traces as rows of a serving log, from which outcomes are made. Knows nothing about policies' training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ...policies.serving_logs import Row, problem_of
from .trace import Trace


def log_rows(traces: Iterable[Trace], base_hash: str = "") -> tuple[list[Row], dict[str, int]]:
    """The rows of the traces of a model whose content hash begins with `base_hash`; and reasons why other traces give
    no row, with the number of traces for each."""
    rows: list[Row] = []
    reasons: Counter[str] = Counter()
    for trace in traces:
        if reason := _unusable(trace, base_hash):
            reasons[reason] += 1
            continue
        run = {name: trace.attributes.get(name, {}) for name in ("model", "policy", "versions")}
        rows.append({**trace.result, "run": {"time": trace.time, **run}})
    return rows, dict(reasons)


def _unusable(trace: Trace, base_hash: str) -> str:
    """Why a trace gives no row; empty if it gives one."""
    if not str(trace.attributes.get("model", {}).get("hash", "")).startswith(base_hash):
        return "the run is of another model (--model-hash)"
    if not trace.result or trace.status == "refused":
        return "the run ended without a result (refused, failed, cancelled or interrupted)"
    if not trace.has_content:
        return "the trace was stored without content, so its answers are unknown"
    return "the trace is of another version of this package, or damaged" if problem_of(trace.result) else ""
