"""Compares two traces: every difference in inputs, path, estimates, training and answers, named."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .trace import Trace, find_spans

LOG_PROB_TOLERANCE = 1e-3
"""Differences of log-probabilities, in nats, that another machine or batch shape explains."""


@dataclass(frozen=True)
class Difference:
    """What differs between two runs."""

    name: str
    first: Any
    second: Any
    within_tolerance: bool = False
    """Whether it is a number that differs by rounding only."""

    def __str__(self) -> str:
        note = " (rounding)" if self.within_tolerance else ""
        return f"{self.name}: {_short(self.first)} -> {_short(self.second)}{note}"


def compare(first: Trace, second: Trace) -> list[Difference]:
    """The differences between two runs, without times: inputs first, then what follows from them."""
    return [*_inputs(first, second), *_course(first, second), *_training(first, second), *_decoding(first, second)]


def _inputs(first: Trace, second: Trace) -> Iterator[Difference]:
    for group in ("model", "policy", "versions"):
        mine, other = first.attributes.get(group, {}), second.attributes.get(group, {})
        for name in dict.fromkeys([*mine, *other]):
            yield from _differing(f"{group} {name}", mine.get(name), other.get(name))
    yield from _differing("budget", first.attributes.get("budget"), second.attributes.get("budget"))
    yield from _differing("seed", first.attributes.get("seed"), second.attributes.get("seed"))
    digests = [trace.attributes.get("sizes", {}).get("digest") for trace in (first, second)]
    yield from _differing("task", *digests)


def _course(first: Trace, second: Trace) -> Iterator[Difference]:
    yield from _differing("path", ", ".join(first.path), ", ".join(second.path))
    for name in dict.fromkeys([*first.features, *second.features]):
        yield from _numbers(f"feature {name}", first.features.get(name), second.features.get(name))
    for number, (mine, other) in enumerate(zip(first.decisions, second.decisions, strict=False), start=1):
        yield from _differing(f"decision {number}", mine["strategy"], other["strategy"])
        for kind in ("scores", "costs"):
            for name in mine[kind]:
                yield from _numbers(f"decision {number}, {kind} of {name}", mine[kind][name], other[kind].get(name))
    yield from _differing("status", first.status, second.status)
    yield from _differing("strategy of the answer", first.strategy, second.strategy)
    yield from _differing("answer", first.result.get("answer"), second.result.get("answer"))
    yield from _differing("error", first.error, second.error)


def _training(first: Trace, second: Trace) -> Iterator[Difference]:
    for mine, other in zip(find_spans(first.root, "adapter"), find_spans(second.root, "adapter"), strict=False):
        name = f"adapter of {mine['attributes'].get('strategy')}"
        ours, theirs = mine["attributes"], other["attributes"]
        yield from _differing(f"{name}, hash", ours.get("hash"), theirs.get("hash"))
        yield from _differing(f"{name}, source", ours.get("source"), theirs.get("source"))
        record, other_record = ours.get("training", {}), theirs.get("training", {})
        yield from _differing(f"{name}, steps", record.get("steps"), other_record.get("steps"))
        yield from _differing(f"{name}, stop reason", record.get("stop_reason"), other_record.get("stop_reason"))
        yield from _sequences(f"{name}, losses", record.get("losses", ()), other_record.get("losses", ()))


def _decoding(first: Trace, second: Trace) -> Iterator[Difference]:
    decoded, others = find_spans(first.root, "decode"), find_spans(second.root, "decode")
    yield from _differing("number of decodings", len(decoded), len(others))
    for number, (mine, other) in enumerate(zip(decoded, others, strict=False), start=1):
        ours, theirs = mine["attributes"], other["attributes"]
        yield from _differing(f"decoding {number}, token ids", ours.get("ids"), theirs.get("ids"))
        flat = [[x for row in each.get("log_probs", ()) for x in row] for each in (ours, theirs)]
        yield from _sequences(f"decoding {number}, log-probabilities", *flat)


def _differing(name: str, first: Any, second: Any) -> Iterator[Difference]:
    if first != second:
        yield Difference(name, first, second)


def _numbers(name: str, first: float | None, second: float | None) -> Iterator[Difference]:
    if first == second:
        return
    close = first is not None and second is not None and _close(first, second)
    yield Difference(name, first, second, within_tolerance=close)


def _sequences(name: str, first: Sequence[float], second: Sequence[float]) -> Iterator[Difference]:
    """One difference for all numbers: the lengths, or the largest difference."""
    if len(first) != len(second):
        yield Difference(f"{name}: count", len(first), len(second))
        return
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    if pairs:
        a, b = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
        yield Difference(f"{name}: largest difference", a, b, within_tolerance=_close(a, b))


def _close(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=LOG_PROB_TOLERANCE, abs_tol=LOG_PROB_TOLERANCE)


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
