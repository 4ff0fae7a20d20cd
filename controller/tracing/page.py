"""A trace as one HTML page: no network, no framework, readable by keyboard and by screen readers.

Knows nothing about where traces are stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ...ttt_core.tasks.html import demonstrations_html, value_html
from ...ttt_core.tasks.task import as_tuples
from .drawing import curve_svg, graph_svg
from .explanation import candidates_of, explanation
from .trace import SpanPlain, Trace, find_spans, walk

LONG = 400
"""Characters of a text from which it is collapsed."""
MOST_ATTRIBUTE = 20_000
"""Characters of an attribute that the page shows; the store has all of it."""
_PARTS = Path(__file__).parent


def page_of(trace: Trace, strategies: Sequence[str]) -> str:
    """The page of a trace; `strategies` are the nodes that the graph could choose. Raises `TraceError` for a trace
    without content."""
    task = trace.task
    spans = list(walk(trace.root))
    style, script = ((_PARTS / name).read_text("utf-8") for name in ("page.css", "page.js"))
    title = escape(f"{trace.status}: {task.id} by {trace.strategy or 'no strategy'}")
    sections = [
        _section("Why this one", _candidates(trace) + f"<pre>{escape(explanation(trace))}</pre>"),
        _section("Task", _task(trace)),
        _section("The path through the graph", f'<div class="scroll">{_graph(trace, spans, strategies)}</div>', True),
        _section("Timeline", _timeline(spans)),
        _section("Details of the chosen step", f'<div id="details" aria-live="polite">{_details(spans)}</div>'),
        _section("Training", _training(trace)),
        _section("Time by stage", _stages(trace)),
    ]
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{style}</style></head><body>'
        f'<header><h1>{title}</h1><p class="dim">run {trace.id}, {escape(trace.time)}, {trace.seconds:.2f} s</p>'
        f"</header><main>{''.join(sections)}</main><script>{script}</script></body></html>"
    )


def _section(title: str, body: str, wide: bool = False) -> str:
    return f"<section{' class=wide' if wide else ''}><h2>{title}</h2>{body}</section>" if body else ""


def _candidates(trace: Trace) -> str:
    heads = ("candidate", "right, estimated", "cost, estimated", "utility, estimated", "cost, measured", "attempt")
    rows = []
    for row in candidates_of(trace):
        numbers = (
            _number(row.probability, ".2f"), _number(row.cost, ".0f", "x"), _number(row.utility, "+.3f"),
            _number(row.measured_cost, ".1f", "x"),
        )  # fmt: skip
        cells = "".join(f'<td class="number">{text}</td>' for text in numbers)
        name = f"{escape(row.strategy)}{' (chosen)' if row.chosen else ''}"
        mark = ' class="chosen"' if row.chosen else ""
        rows.append(f'<tr{mark}><th scope="row">{name}</th>{cells}<td>{row.answered}</td></tr>')
    return _table(heads, rows)


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        "</div>"
    )


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def _task(trace: Trace) -> str:
    task = trace.task
    parts = [f"<p>{escape(task.instruction)}</p>" if task.instruction else ""]
    parts.append(_collapsed("demonstrations", demonstrations_html(task.kind, task.demonstrations), open_=True))
    rows = [("query", task.query, None)]
    if task.answer is not None:
        rows.append(("right answer", task.answer, None))
    by_strategy = {a["strategy"]: a for a in [trace.in_context, *trace.attempts] if a}
    for name, attempt in by_strategy.items():
        value = as_tuples(attempt["value"])
        rows.append((name, value, None if task.answer is None else value == task.answer))
    cells = [
        f'<tr><th scope="row">{escape(name)}</th><td>{value_html(task.kind, value)}</td><td>{_mark(right)}</td></tr>'
        for name, value, right in rows
    ]
    return "".join(parts) + _table(("", "value", "right"), cells)


def _mark(right: bool | None) -> str:
    return {None: "", True: '<span class="good">right</span>', False: '<span class="bad">wrong</span>'}[right]


def _graph(trace: Trace, spans: Sequence[tuple[SpanPlain, int]], strategies: Sequence[str]) -> str:
    numbers = {span["name"]: index for index, (span, _) in enumerate(spans) if "node" in span.get("attributes", {})}
    visited = [name for name in trace.path if name not in ("measure", "decide", "judge", "revert")]
    return graph_svg(list(dict.fromkeys([*strategies, *visited])), trace.edges, numbers)


def _timeline(spans: Sequence[tuple[SpanPlain, int]]) -> str:
    whole = spans[0][0]["seconds"] or 1e-9
    rows = []
    for index, (span, depth) in enumerate(spans):
        seconds = span["seconds"] or 0.0
        left, width = 100 * max(0.0, span["at"]) / whole, 100 * seconds / whole
        state = "" if span["status"] == "ok" else f' <span class="bad">{span["status"]}</span>'
        rows.append(
            f'<button class="step" data-span="{index}" aria-pressed="false" '
            f'style="padding-left:{0.3 + 0.8 * depth}rem">'
            f'<span>{escape(span["name"])}{state}</span><span class="number">{seconds:.4f} s</span>'
            f'<span class="track"><i style="left:{left:.2f}%;width:{width:.2f}%"></i></span></button>'
        )
    return f'<div data-keys role="group" aria-label="steps; arrow keys move">{"".join(rows)}</div>'


def _details(spans: Sequence[tuple[SpanPlain, int]]) -> str:
    return "".join(
        f'<div data-details="{index}"{" hidden" if index else ""}><h3>{escape(span["name"])}</h3>'
        f"{''.join(_attributes(span))}</div>"
        for index, (span, _) in enumerate(spans)
    )


def _attributes(span: SpanPlain) -> Iterator[str]:
    if error := span.get("error"):
        yield f'<p class="bad">{escape(error)}</p>'
    attributes: Mapping[str, Any] = span.get("attributes", {})
    rows = []
    for name, value in attributes.items():
        if name in ("result", "task", "ids", "log_probs"):  # shown elsewhere, or for programs
            continue
        text = value if isinstance(value, str) else "\n\n".join(value) if name == "prompts" else _plain(value)
        shown = text if len(text) <= MOST_ATTRIBUTE or name == "prompts" else f"{text[:MOST_ATTRIBUTE]} ..."
        rows.append(f'<tr><th scope="row">{escape(name)}</th><td>{_text(shown)}</td></tr>')
    yield _table(("attribute", "value"), rows) if rows else '<p class="dim">no attributes</p>'


def _plain(value: Any) -> str:
    return json.dumps(value, indent=1 if isinstance(value, Mapping) else None, default=str)


def _text(text: str) -> str:
    body = f"<pre>{escape(text)}</pre>"
    return _collapsed(f"{len(text)} characters", body) if len(text) > LONG else escape(text)


def _collapsed(title: str, body: str, open_: bool = False) -> str:
    return f"<details{' open' if open_ else ''}><summary>{title}</summary>{body}</details>"


def _training(trace: Trace) -> str:
    parts = []
    for adapter in find_spans(trace.root, "adapter"):
        facts = adapter.get("attributes", {})
        names = ("source", "rank", "alpha", "folds", "bytes", "hash")
        identity = ", ".join(f"{name} {facts[name]}" for name in names if name in facts)
        record = facts.get("training", {})
        losses = [(step, loss) for step, loss in enumerate(record.get("losses", ()), start=1) if loss is not None]
        if not losses:
            events = [event for span in find_spans(adapter, "train") for event in span.get("events", ())]
            losses = [(event["step"], event["loss"]) for event in events if event["loss"] is not None]
        stopped = f"{record.get('steps', len(losses))} steps, stopped: {record.get('stop_reason', 'by an error')}"
        parts.append(f"<h3>{escape(facts.get('strategy', 'adapter'))}</h3><p>{escape(identity)}; {escape(stopped)}</p>")
        parts.append(curve_svg("training loss", losses))
        evaluations = [span["attributes"] for span in find_spans(adapter, "evaluate")]
        held_out = [(e["step"], 100 * e["right"] / max(1, e["of"])) for e in evaluations if "right" in e]
        parts.append(curve_svg("held-out demonstrations right", held_out, "%"))
    for attempt in trace.attempts:
        if held := attempt["cross_validation"]:
            count = len(held["before"])
            text = f"held-out demonstrations right: {sum(held['before'])}/{count} before training"
            parts.append(f"<p><b>{escape(text)}, {sum(held['after'])}/{count} after.</b></p>")
    return "".join(parts) or '<p class="dim">no adapter was trained or used</p>'


def _stages(trace: Trace) -> str:
    stages = sorted(trace.stages().items(), key=lambda item: -item[1])
    total = sum(seconds for _, seconds in stages) or 1e-9
    rows = [
        f'<tr><th scope="row">{escape(name)}</th><td class="number">{seconds:.4f} s</td>'
        f'<td class="number">{seconds / total:.1%}</td></tr>'
        for name, seconds in stages
    ]
    return _table(("stage", "seconds", "share"), rows)
