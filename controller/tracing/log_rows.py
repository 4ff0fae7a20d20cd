"""Stored traces as rows of a serving log, from which outcomes are made. Knows nothing about policies' training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ...policies.serving_logs import JUDGED, UNLABELLED, Row, problem_of
from .trace import Trace

DAMAGED = "the trace is of another version of this package, or damaged"
"""The reason for a trace that cannot be read as a row, or at all."""


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
        rows.append({**_labelled(trace), "run": {"time": trace.time, **run}})
    return rows, dict(reasons)


def _labelled(trace: Trace) -> Row:
    """The result of a run with what its label says of the answers. Where the right answer itself is unknown, a mark
    stands for it, and one of two marks for each answer that the label calls right or wrong; where it leaves open
    whether the answers were right that a policy learns from, the row says so."""
    result, label = trace.result, trace.label
    if not label:
        return result
    if trace.has_content and (right_answer := trace.right_answer) is not None:
        return {**result, "task": {**result["task"], "answer": right_answer}}
    marks = {name: _RIGHT if right else _WRONG for name, right in label["strategies"].items()}
    attempts = [_marked(attempt, marks) for attempt in result["attempts"]]
    marked = {**result, "in_context": _marked(result["in_context"], marks), "attempts": attempts, JUDGED: True}
    if {"in_context", result["attempts"][0]["strategy"]} <= marks.keys():
        task = {**result["task"], "answer": _RIGHT, "comparison": "exact"}
        return {**marked, "task": task, "answer": marks.get(result["strategy"])}
    unlabelled = {"task": {**result["task"], "answer": None}, UNLABELLED: True}
    return {**result, **unlabelled} if trace.has_content else {**marked, "answer": None, **unlabelled}


def _marked(attempt: Row, marks: Mapping[str, str]) -> Row:
    """An attempt whose answer is a mark; None where the label says nothing of it."""
    return {**attempt, "value": marks.get(attempt["strategy"]), "text": "", "candidates": []}


_RIGHT, _WRONG = "right", "wrong"


def _unusable(trace: Trace, base_hash: str) -> str:
    """Why a trace gives no row; empty if it gives one."""
    if not str(trace.attributes.get("model", {}).get("hash", "")).startswith(base_hash):
        return "the run is of another model (--model-hash)"
    if not trace.result or trace.status == "refused":
        return "the run ended without a result (refused, failed, cancelled or interrupted)"
    try:
        row = _labelled(trace)
    except (LookupError, TypeError, AttributeError):
        row = {}
    if row and not trace.has_content and "answer" not in row:
        return "the trace was stored without content, so its answers are unknown"
    return DAMAGED if problem_of(row) else ""
