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
from ...ttt_core.engine.cost import TRAINING_WEIGHT
from .candidates import candidates_of, tokens_of
from .trace import WAIT, SpanPlain, Trace, find_spans, walk

MISSED = 1.25
"""Factor between estimate and measurement from which an estimate counts as missed."""
SHORT = 0.05
"""Seconds below which waiting, and what the cost leaves out, is not worth a word."""


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
        return cls(float(cost["seconds"]), tokens_of({"cost": cost}))

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


_WHILE_TRAINING = {
    "evaluate": "answers to held-out demonstrations during training of",
    "score": "scores of demonstrations before training of",
}
"""What reads tokens while an adapter is trained, by the name of its span."""


def _of_attempt(node: SpanPlain) -> dict[str, _Spent]:
    """The cost of the node of a strategy: training, whose tokens are read forward and backward; where there was such
    work, what was read forward meanwhile; and answering."""
    name, cost = str(node["name"]), node["attributes"]["cost"]
    whole = _Spent.of(cost)
    adapters = [a for a in find_spans(node, "adapter") if a.get("attributes")]
    if not adapters:
        return {f"answers of {name}": whole}
    parts = {}
    for kind, words in _WHILE_TRAINING.items():
        spans = [span for adapter in adapters for span in find_spans(adapter, kind)]
        if spans:
            seconds = sum(float(span["seconds"] or 0.0) for span in spans)
            parts[f"{words} {name}"] = _Spent(seconds, sum(map(_forward_tokens, spans)))
    seconds = sum(_seconds_of_adapter(adapter) for adapter in adapters) - sum(p.seconds for p in parts.values())
    seconds = min(whole.seconds, max(0.0, seconds))
    parts = {f"training of {name}": _Spent(seconds, TRAINING_WEIGHT * int(cost["backward_tokens"])), **parts}
    return {**parts, f"answers of {name}": whole - sum(parts.values(), start=_Spent())}


def _forward_tokens(span: SpanPlain) -> int:
    """Tokens that a span and the spans inside it read forward, as far as they recorded them."""
    inner = [each.get("attributes", {}) for each, _ in walk(span)]
    return sum(int(values.get("tokens", 0)) for values in inner)


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
    """What each attempt was estimated to cost and what it cost, in tokens and in seconds, one sentence each."""
    base = trace.in_context
    measured = [row for row in candidates_of(trace) if row.measured_cost is not None]
    rows = [row for row in measured if row.cost is not None]
    if unknown := [row.strategy for row in measured if row.cost is None and row.strategy != BASE]:
        yield (
            f"The policy did not estimate the cost of {', '.join(unknown)} before the choice, so that it cannot be "
            "said whether the cost was as expected"
        )
    if [row.strategy for row in rows] == [BASE]:
        yield (
            "No further cost was estimated or spent for the in-context answer, which was there before the choice, so "
            "that no estimate could be missed"
        )
    for row in rows:
        if row.strategy == BASE or not row.cost or row.measured_cost is None:
            continue
        attempt = next(a for a in trace.attempts if a["strategy"] == row.strategy)
        yield (
            f"The policy estimated {row.cost:.0f}x for training and answers of {row.strategy}, and they cost "
            f"{row.measured_cost:.1f}x, {_compared(row.measured_cost, row.cost)}{_cause(trace, attempt)}"
        )
        expected, took = row.cost * base["cost"]["seconds"], attempt["cost"]["seconds"]
        yield (
            f"The policy estimates tokens and no seconds: at the speed of the in-context answer, which decodes one "
            f"token after another, {row.cost:.0f}x would be {_short(expected)} s. That is a conversion, and usually an "
            f"upper bound, since training and votes read many tokens at once. It took {_short(took)} s, "
            f"{_share(took, expected)}"
        )


def _cause(trace: Trace, attempt: Mapping[str, Any]) -> str:
    """Why an attempt cost less than all its training steps; empty where that is not known."""
    if attempt["from_cache"]:
        return "; its adapter came from the cache, so that this is not the cost of the strategy"
    record, planned = attempt["training_record"], recipe_of(trace, attempt["strategy"]).get("max_steps")
    if not record or not planned or record["steps"] >= planned:
        return ""
    return f"; training stopped after {record['steps']} of at most {planned} steps"


def recipe_of(trace: Trace, strategy: str) -> Mapping[str, Any]:
    """The recipe that the adapter of a strategy was trained with; empty where it was not trained in this run."""
    trained = [
        span.get("attributes", {}) for adapter in trace.adapters(strategy) for span in find_spans(adapter, "train")
    ]
    recipes: list[Mapping[str, Any]] = [each["recipe"] for each in trained if "recipe" in each]
    return recipes[-1] if recipes else {}


def time_sentence(trace: Trace) -> str:
    """What the seconds of the timeline went to, and which of them the cost counts; empty for a run without a result."""
    if not trace.result:
        return ""
    cost, run = trace.seconds, trace.duration
    if cost > run:
        return f"{cost - run:.2g} s of these {cost:.3g} s were spent before the run, in a batch with other tasks"
    nodes = sum(float(node["seconds"] or 0.0) for node in trace.nodes)
    training, tasks = _training_in_batch(trace)
    waiting = max(0.0, sum(float(span["seconds"] or 0.0) for span in find_spans(trace.root, WAIT)) - training)
    terms = [f"{nodes:.3g} s inside the nodes of the graph"]
    if training:
        terms.append(f"{training:.3g} s of training {f'in a batch of {tasks} tasks' if tasks > 1 else 'ahead of them'}")
    if waiting >= SHORT:
        terms.append(f"{waiting:.3g} s of waiting for other tasks")
    between = max(0.0, run - nodes - training - waiting)
    text = (
        f"The timeline shows {run:.3g} s: {', '.join(terms)}, and {between:.2g} s between them, in which the trace was "
        "recorded and states were passed on"
    )
    if nodes + training + waiting - cost < SHORT:
        return text
    return (
        f"{text}. The cost counts {cost:.3g} s of them: it leaves out waiting, pauses in which other tasks went first, "
        "and what a batch charges to other tasks"
    )


def _training_in_batch(trace: Trace) -> tuple[float, int]:
    """The seconds of training in batches during the run, and the number of tasks in the largest batch."""
    spans = [span for span in find_spans(trace.root, "train") if span.get("attributes", {}).get("prefetched")]
    tasks = [int(span["attributes"].get("shared_by", 1)) for span in spans]
    return sum(float(span["seconds"] or 0.0) for span in spans), max(tasks, default=1)


def _compared(measured: float, expected: float) -> str:
    """Whether an estimate held, and else by how much it was missed."""
    ratio = measured / expected if expected > 0 else math.inf
    if 1 / MISSED <= ratio <= MISSED:
        return "about as estimated"
    if ratio > 1:
        return f"{ratio:.1f} times the estimate"
    return f"only {100 * ratio:.0f}% of the estimate"


def _share(measured: float, bound: float) -> str:
    """A measured time beside the one that was converted from tokens."""
    return f"{100 * measured / bound:.0f}% of it" if bound > 0 else "which has no conversion"


def _short(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 1000 else f"{seconds:.0f}"
