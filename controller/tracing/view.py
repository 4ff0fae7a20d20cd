"""What a page shows of a trace, as plain JSON that page.js draws. Knows nothing about HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ...policies.explain import Explanation
from ...policies.outcomes import BASE
from ...ttt_core.standard_json import dumps, finite_or_none
from .adapters import adapter_sentence, recipe_sentence
from .answers import card_sentences, is_right_in, moment
from .candidates import candidates_of, mark_of
from .choice import margin_sentences, not_compared, threshold_sentences
from .cost_parts import cost_parts, missed_estimates, recipe_of, time_sentence
from .differences import size_text
from .explanation import explanation
from .feature_rows import feature_rows, feature_sentences, features_note
from .summary import estimates_note, stopped_in, summary_of
from .trace import Plain, SpanPlain, Trace, find_spans, walk
from .votes import percentages, votes_of

MOST_TEXT = 1_200_000
"""Bytes of long texts that a view holds; of those after them it holds the beginning and the end."""
MOST_ATTRIBUTE = 20_000
"""Characters of an attribute, as JSON, from which it is shortened; prompts and texts excepted."""
LONG = 400
"""Characters from which a text is long."""
KEPT = 1_500
"""Characters of the beginning, and of the end, of a text that is shortened."""
_SETUP = ("model", "policy", "seed", "budget", "versions")
_LEFT_OUT = ("result", "task", "edges", "ids", "log_probs")
"""Attributes of spans that are shown elsewhere, or that only programs read."""
_ADAPTER = ("source", "rank", "alpha", "folds", "bytes", "hash", "weight_share")


def view_of(trace: Trace, strategies: Sequence[str], explained: Explanation | None = None) -> Plain:
    """What the page of a trace shows; `strategies` are the nodes that the graph could choose, `explained` is the first
    decision as its policy explains it. Raises `TraceError` for a trace without content."""
    trace.require_content("the page")
    spans = [span for span, _ in walk(trace.root)]
    texts = _Texts(MOST_TEXT)
    view = {
        "id": trace.id,
        "time": trace.time,
        "title": _title(trace),
        "summary": [asdict(fact) for fact in summary_of(trace)],
        "task": texts.shortened(_task(trace)),
        "answers": _answers(trace),
        "graph": _graph(trace, spans, strategies),
        "candidates": _candidates(trace),
        "why": [f"{sentence}." for sentence in (*_compared(trace), *not_compared(trace, strategies))],
        "note": estimates_note(trace),
        "features": [asdict(row) for row in feature_rows(trace, explained)],
        "features_said": [f"{sentence}." for sentence in feature_sentences(explained)],
        "features_note": features_note(explained, trace),
        "runner_up": explained.runner_up if explained else "",
        "costs": [asdict(part) for part in cost_parts(trace)],
        "in_context_tokens": trace.result.get("in_context_tokens"),
        "missed": [f"{sentence}." for sentence in (*missed_estimates(trace), time_sentence(trace)) if sentence],
        "training": [_adapter(trace, adapter) for adapter in find_spans(trace.root, "adapter")],
        "first_step": _first_step(trace, spans),
        "steps": [_step(span, depth, texts) for span, depth in walk(trace.root)],
        "stages": sorted(trace.stages().items(), key=lambda item: -item[1]),
        "setup": _setup(trace),
        "words": explanation(trace).splitlines(),
    }
    plain: Plain = finite_or_none(view)
    return plain


def _compared(trace: Trace) -> list[str]:
    return [*margin_sentences(trace), *threshold_sentences(trace)]


def _title(trace: Trace) -> str:
    right = trace.is_right
    answer = trace.status.replace("_", " ") if right is None else "right" if right else "wrong"
    by = f" by {trace.strategy}" if trace.strategy else ""
    return f"{trace.task_facts.get('id') or 'task'}{by}: {answer}"


def _task(trace: Trace) -> Plain:
    """The task; empty where the run ended before it received one."""
    names = ("kind", "instruction", "demonstrations", "query", "answer")
    if not trace.task_facts:
        return {}
    task: Plain = {name: trace.task_facts.get(name) for name in names}
    task["answer"] = trace.right_answer
    return {
        **task,
        "query_size": size_text(task["kind"], task["query"]),
        "size": size_text(task["kind"], task["answer"]),
    }


def _answers(trace: Trace) -> list[Plain]:
    """One row for each attempt, the in-context one first: its value, and whether that is right."""
    final = trace.result.get("strategy") if trace.status == "answered" else None
    attempts = {attempt["strategy"]: attempt for attempt in [trace.in_context, *trace.attempts] if attempt}
    return [
        {
            "strategy": name, "moment": moment(trace, attempt), "value": attempt["value"], "error": attempt["error"],
            "said": card_sentences(trace, attempt), "candidates": _voted(trace, attempt),
            "right": is_right_in(trace, attempt), "final": name == final,
        }
        for name, attempt in attempts.items()
    ]  # fmt: skip


def _voted(trace: Trace, attempt: Mapping[str, Any]) -> list[Plain]:
    """The answers that had votes: their votes in words, and whether each is right."""
    counted = votes_of(trace, attempt["strategy"]).get("candidates", [])
    candidates = attempt["candidates"]
    shares = [f"{percent}%" for percent in percentages([each["share"] for each in candidates])]
    if len(counted) == len(candidates):
        votes = [each["votes"] for each in counted]
        pairs = zip(votes, shares, strict=True)
        shares = [f"{count} {'vote' if count == 1 else 'votes'} ({share})" for count, share in pairs]
    return [
        {"value": each["value"], "votes": share, "right": is_right_in(trace, each)}
        for each, share in zip(candidates, shares, strict=True)
    ]


def _graph(trace: Trace, spans: Sequence[SpanPlain], strategies: Sequence[str]) -> Plain:
    """The strategies, the edges taken, and the visits of each node: number of its step, seconds and status."""
    visits: dict[str, list[Plain]] = {}
    for index, span in enumerate(spans):
        if "node" in span.get("attributes", {}):
            visit = {"step": index, "seconds": span["seconds"], "status": span["status"]}
            visits.setdefault(str(span["name"]), []).append(visit)
    others = [name for name in trace.path if name not in ("measure", "decide", "judge", "revert")]
    return {"strategies": list(dict.fromkeys([*strategies, *others])), "edges": trace.edges, "visits": visits}


def _candidates(trace: Trace) -> list[Plain]:
    """The rows of `candidates_of`, each with `gain`, its utility minus that of the in-context answer, and `mark`, what
    became of it."""
    rows = candidates_of(trace)
    base = next((row.utility for row in rows if row.strategy == BASE), None)
    gains = [None if base is None or row.utility is None else round(row.utility, 3) - round(base, 3) for row in rows]
    return [{**asdict(row), "gain": gain, "mark": mark_of(trace, row)} for row, gain in zip(rows, gains, strict=True)]


def _adapter(trace: Trace, adapter: SpanPlain) -> Plain:
    """One adapter: what it is, its loss at each step, and held-out demonstrations after steps and in the end."""
    facts: Mapping[str, Any] = adapter.get("attributes", {})
    record = facts.get("training") or {}
    losses = [(step, loss) for step, loss in enumerate(record.get("losses", ()), start=1) if loss is not None]
    if not losses:
        events = [event for span in find_spans(adapter, "train") for event in span.get("events", ())]
        losses = [(event["step"], event["loss"]) for event in events if event["loss"] is not None]
    evaluations = [span.get("attributes", {}) for span in find_spans(adapter, "evaluate")]
    strategy = facts.get("strategy", "adapter")
    attempt = next((a for a in trace.attempts if a["strategy"] == strategy), {})
    return {
        "strategy": strategy,
        "identity": {name: facts[name] for name in _ADAPTER if name in facts},
        "sentence": adapter_sentence(facts, trace.batch_training(strategy)),
        "recipe": recipe_sentence(recipe_of(trace, strategy)),
        "modules": facts.get("modules", {}),
        "steps": record.get("steps", len(losses)),
        "stopped": stopped_in(trace, strategy, record["stop_reason"]) if record else "ended by an error",
        "losses": losses,
        "held_out": [(e["step"], 100 * e["right"] / max(1, e["of"])) for e in evaluations if "right" in e],
        "cross_validation": attempt.get("cross_validation"),
    }


def _step(span: SpanPlain, depth: int, texts: _Texts) -> Plain:
    left_out = _LEFT_OUT if depth else (*_LEFT_OUT, *_SETUP)
    attributes = {k: v for k, v in span.get("attributes", {}).items() if k not in left_out}
    step = {name: span.get(name) for name in ("name", "at", "seconds", "status", "error")}
    shown = {name: texts.shortened(value, name in ("prompts", "texts")) for name, value in attributes.items()}
    return {**step, "depth": depth, "attributes": shown}


def _first_step(trace: Trace, spans: Sequence[SpanPlain]) -> int:
    """Number of the step that is shown first: the last attempt, or the node at which the run ended."""
    nodes = [index for index, span in enumerate(spans) if "node" in span.get("attributes", {})]
    attempts = [index for index in nodes if "attempt" in spans[index]["attributes"]]
    return (attempts if attempts and not trace.error else [0, *nodes])[-1]


def _setup(trace: Trace) -> dict[str, str]:
    """Model, policy and versions, each as one line."""
    facts = {name: trace.attributes[name] for name in _SETUP if name in trace.attributes}
    return {
        name: "; ".join(f"{key.replace('_', ' ')} {_plain(item)}" for key, item in value.items())
        if isinstance(value, Mapping)
        else str(value)
        for name, value in facts.items()
    }


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else dumps(value, default=str)


class _Texts:
    """Shortens what would make a page too large."""

    def __init__(self, most: int) -> None:
        self.left = most
        """Bytes of long texts that may still be given whole."""

    def shortened(self, value: Any, is_text: bool = True) -> Any:
        """The value with its long texts whole, or their ends; an attribute that is no text only if it is short."""
        if is_text:
            return self._texts(value)
        text = value if isinstance(value, str) else dumps(value, default=str)
        return value if len(text) <= MOST_ATTRIBUTE else _ends(text)

    def _texts(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: self._texts(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._texts(item) for item in value]
        if not isinstance(value, str) or len(value) <= LONG:
            return value
        size = len(value.encode("utf-8", "replace"))
        if size > self.left:
            return _ends(value)
        self.left -= size
        return value


def _ends(text: str) -> str:
    """The beginning and the end of a text that is longer than both."""
    if len(text) <= 2 * KEPT:
        return text
    rest = len(text) - 2 * KEPT
    return f"{text[:KEPT]}\n[{rest} characters are left out; `autottt trace export` has them]\n{text[-KEPT:]}"
