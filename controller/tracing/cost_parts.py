"""What a run cost, as parts that add up to the total, and where an estimated cost was missed.

The unit is one in-context answer of which nothing is cached: its tokens read forward; a token read backward counts
twice. Knows nothing about pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...policies.outcomes import BASE
from .candidates import candidates_of, token_equivalents
from .trace import SpanPlain, Trace, find_spans

MISSED = 1.25
"""Factor between estimate and measurement from which an estimate counts as missed."""


@dataclass(frozen=True)
class CostPart:
    """One part of the cost of a run."""

    name: str
    seconds: float
    tokens: int
    """Read forward, and those read backward counted twice."""
    multiple: float | None
    """Tokens as a multiple of those of an in-context answer; None where those are not known."""


@dataclass(frozen=True)
class _Spent:
    seconds: float = 0.0
    tokens: int = 0

    @classmethod
    def of(cls, cost: Mapping[str, Any]) -> _Spent:
        return cls(float(cost["seconds"]), token_equivalents({"cost": cost}))

    def __add__(self, other: _Spent) -> _Spent:
        return _Spent(self.seconds + other.seconds, self.tokens + other.tokens)

    def __sub__(self, other: _Spent) -> _Spent:
        return _Spent(max(0.0, self.seconds - other.seconds), max(0, self.tokens - other.tokens))


def cost_parts(trace: Trace) -> list[CostPart]:
    """The in-context answer, the choice of the prompt format, the probe, training and answering of every attempt, the
    rest, and the total, which is their sum; empty for a run without a result."""
    if not trace.result or not trace.in_context:
        return []
    total = _Spent.of(trace.result["cost"])
    spent: dict[str, _Spent] = {"in-context answer": _Spent.of(trace.in_context["cost"])}
    for span in trace.nodes:
        if choice := span["attributes"].get("format_choice"):
            spent["choice of the prompt format"] = _Spent.of(choice["cost"])
    for span in find_spans(trace.root, "probe"):
        if cost := span.get("attributes", {}).get("cost"):
            spent["probe (features that need forward passes)"] = _Spent.of(cost)
    for span in trace.nodes:
        if "attempt" in span["attributes"] and span["name"] != BASE:
            for name, part in _of_attempt(span).items():
                spent[name] = spent.get(name, _Spent()) + part
    rest = total - sum(spent.values(), start=_Spent())
    spent["everything else (decisions, verdict, proof)"] = rest
    whole = sum(spent.values(), start=_Spent())
    base = trace.result.get("in_context_tokens")
    named = {name: part for name, part in spent.items() if part.tokens or part.seconds >= 0.0005} | {"total": whole}
    return [
        CostPart(name, part.seconds, part.tokens, part.tokens / base if base else None) for name, part in named.items()
    ]


def _of_attempt(node: SpanPlain) -> dict[str, _Spent]:
    """The cost of the node of a strategy, divided into training and answering where it trained. Each token of a
    training step is read forward and backward."""
    name, cost = str(node["name"]), node["attributes"]["cost"]
    whole = _Spent.of(cost)
    adapters = [a for a in find_spans(node, "adapter") if a.get("attributes")]
    if not adapters:
        return {f"answers of {name}": whole}
    seconds = sum(_seconds_of_adapter(adapter) for adapter in adapters)
    training = _Spent(min(whole.seconds, seconds), 3 * int(cost["backward_tokens"]))
    return {f"training of {name}": training, f"answers of {name}, and checks while it trained": whole - training}


def _seconds_of_adapter(adapter: SpanPlain) -> float:
    """Seconds that an adapter is charged with: those of its span, or of its record where it was trained with others."""
    facts = adapter["attributes"]
    if facts.get("source") == "prefetched":
        return float((facts.get("training") or {}).get("seconds") or 0.0)
    return float(adapter["seconds"] or 0.0)


def cost_sentence(trace: Trace) -> str:
    """The parts of the cost as one sum, in multiples of an in-context answer; empty where it is not known."""
    parts = [part for part in cost_parts(trace) if part.multiple is not None]
    if not parts:
        return ""
    *some, total = parts
    terms = [f"{part.multiple:.1f}x {part.name}" for part in some if part.tokens]
    return f"{total.multiple:.1f}x an in-context answer = {' + '.join(terms)}"


def missed_estimates(trace: Trace) -> Iterator[str]:
    """What each attempt was expected to cost and what it cost, in tokens and in seconds, one sentence each."""
    base = trace.in_context
    sources = {a["strategy"]: a["from_cache"] for a in trace.attempts}
    for row in candidates_of(trace):
        if not row.cost or row.measured_cost is None or row.strategy == BASE:
            continue
        attempt = next(a for a in trace.attempts if a["strategy"] == row.strategy)
        expected, took = row.cost * base["cost"]["seconds"], attempt["cost"]["seconds"]
        yield (
            f"{row.strategy} was expected to cost {row.cost:.0f}x and cost {row.measured_cost:.1f}x, "
            f"{_compared(row.measured_cost, row.cost)}"
        )
        yield (
            f"In time {row.cost:.0f}x are {_short(expected)} s at the speed of the in-context answer, and it took "
            f"{_short(took)} s, {_compared(took, expected)}"
        )
        if sources[row.strategy]:
            yield "Its adapter came from the cache, so that this is not the cost of the strategy"


def _compared(measured: float, expected: float) -> str:
    """Whether an estimate held, and else by how much it was missed."""
    ratio = measured / expected if expected > 0 else math.inf
    if 1 / MISSED <= ratio <= MISSED:
        return "about as estimated"
    if ratio > 1:
        return f"{ratio:.1f} times the estimate"
    return f"only {100 * ratio:.0f}% of the estimate"


def _short(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 1000 else f"{seconds:.0f}"
