"""Traces, lists and statistics of them for people, in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...ttt_core.tasks.task import as_tuples
from ..tracing.answers import is_right_in, task_with_answer
from ..tracing.candidates import candidates_of
from ..tracing.statistics import Statistics
from ..tracing.store import Summary
from ..tracing.trace import Trace, find_spans, walk
from .display import mark, show_value

BAR = 30
"""Characters of the longest bar."""
BLOCKS = " ▁▂▃▄▅▆▇█"
MOST_FEATURES = 12
"""Features that `show_trace` lists."""


def show_list(summaries: Sequence[Summary]) -> RenderableType:
    """A table of runs."""
    table = Table(box=SIMPLE_HEAD)
    for name in ("id", "time", "task", "strategy", "status", "answer"):
        table.add_column(name, no_wrap=name in ("id", "time"), overflow="fold")
    table.add_column("duration", justify="right", no_wrap=True)
    table.add_column("notes", overflow="fold")
    for s in summaries:
        notes = [f"adapter {s.adaptation}" if s.adaptation else "", f"{s.fallbacks} fallbacks" if s.fallbacks else ""]
        time = datetime.fromtimestamp(s.time).strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(
            s.id, time, f"{s.task} ({s.kind})" if s.kind else s.task, s.strategy, s.status, mark(s.is_right),
            f"{s.duration:.2f} s", ", ".join(filter(None, notes)),
        )  # fmt: skip
    return table if summaries else Text("no traces match")


def show_trace(trace: Trace) -> RenderableType:
    """The path, the answer, the candidates, the features, the training, and the seconds of every step."""
    policy, model = trace.attributes.get("policy", {}), trace.attributes.get("model", {})
    head = Text.assemble((trace.id, "bold cyan"), f"  {trace.time}  {trace.task_facts.get('id', '')}  {trace.status}")
    facts = f"model {model.get('name')}, policy {policy.get('name')}, budget {trace.attributes.get('budget')}"
    path = Text(" -> ".join([edge[0] for edge in trace.edges] + [edge[1] for edge in trace.edges[-1:]]), style="bold")
    parts: list[RenderableType] = [head, Text(facts, style="dim"), path]
    parts += [Text(f"{d['strategy']}: {d['reason']}") for d in trace.decisions]
    if trace.error:
        parts.append(Text(trace.error, style="red"))
    parts += [*_answers(trace), _candidates(trace), *_features(trace), *_losses(trace), _timings(trace)]
    return Group(*parts)


def _answers(trace: Trace) -> Iterator[RenderableType]:
    """The query, the answers of all attempts and the right one, where the trace has content."""
    if not trace.has_content or not trace.result:
        return
    task = task_with_answer(trace)
    table = Table.grid(padding=(0, 2))
    table.add_row("query", show_value(task.kind, task.query))
    by_strategy = {attempt["strategy"]: attempt for attempt in [trace.in_context, *trace.attempts] if attempt}
    for attempt in by_strategy.values():
        value = show_value(task.kind, as_tuples(attempt["value"]))
        table.add_row(attempt["strategy"], value, mark(is_right_in(trace, attempt)))
    if task.answer is not None:
        table.add_row("right answer", show_value(task.kind, task.answer))
    yield table


def _candidates(trace: Trace) -> RenderableType:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("candidate", no_wrap=True)
    for name in ("P(right), estimated", "cost, estimated", "utility", "cost, measured"):
        table.add_column(name, justify="right")
    table.add_column("attempt")
    for row in candidates_of(trace):
        table.add_row(
            Text(f"{row.strategy}{' *' if row.chosen else ''}", style="bold" if row.chosen else ""),
            _number(row.probability, ".2f"), _number(row.cost, ".1f", "x"), _number(row.utility, "+.3f"),
            _number(row.measured_cost, ".1f", "x"), row.answered,
        )  # fmt: skip
    return table


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def _features(trace: Trace) -> Iterator[RenderableType]:
    if not trace.features:
        return
    shown = [f"{name} {value:.3g}" for name, value in list(trace.features.items())[:MOST_FEATURES] if value is not None]
    rest = len(trace.features) - len(shown)
    yield Text(f"features: {', '.join(shown)}{f' and {rest} more' if rest > 0 else ''}", style="dim")


def _losses(trace: Trace) -> Iterator[RenderableType]:
    """A line of blocks per training, from the first step to the last."""
    for span in find_spans(trace.root, "train"):
        losses = [event["loss"] for event in span.get("events", ()) if event["loss"] is not None]
        reason = ", ".join(dict.fromkeys(span["attributes"].get("stop_reasons", ["ended by an error"])))
        if losses:
            curve = sparkline(losses)
            yield Text(f"loss {losses[0]:.3f} {curve} {losses[-1]:.3f}, {len(losses)} steps, stopped: {reason}")
        for evaluation in find_spans(span, "evaluate"):
            facts = evaluation["attributes"]
            yield Text(f"  held-out demonstrations after step {facts['step']}: {facts['right']}/{facts['of']} right")


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """The values as blocks, in at most `width` characters."""
    step = max(1, -(-len(values) // width))
    means = [sum(values[i : i + step]) / len(values[i : i + step]) for i in range(0, len(values), step)]
    low, high = min(means), max(means)
    scale = (len(BLOCKS) - 2) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[1 + round((value - low) * scale)] for value in means)


def _timings(trace: Trace) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    whole = trace.root["seconds"] or 1e-9
    for span, depth in walk(trace.root):
        seconds = span["seconds"] or 0.0
        state = "" if span["status"] == "ok" else span["status"]
        bar = Text("█" * max(1, round(BAR * min(1.0, seconds / whole))), style="cyan" if depth < 2 else "blue")
        table.add_row("  " * depth + span["name"], f"{seconds:9.4f} s", bar, Text(state, style="red"))
    return table


def show_statistics(statistics: Statistics) -> RenderableType:
    """Tables of strategies and of stages."""
    strategies = Table(box=SIMPLE_HEAD)
    strategies.add_column("strategy", no_wrap=True)
    for name in ("runs", "share", "right", "median seconds", "mean seconds"):
        strategies.add_column(name, justify="right")
    for s in statistics.strategies:
        right = "-" if s.accuracy is None else f"{s.accuracy:.1%} of {s.with_known_answer}"
        strategies.add_row(
            s.strategy, str(s.runs), f"{s.runs / statistics.runs:.1%}", right, f"{s.median_seconds:.2f}",
            f"{s.mean_seconds:.2f}",
        )  # fmt: skip
    stages = Table(box=SIMPLE_HEAD)
    stages.add_column("stage", no_wrap=True)
    for name in ("seconds", "share"):
        stages.add_column(name, justify="right")
    total = sum(statistics.stages.values()) or 1e-9
    for name, seconds in statistics.stages.items():
        stages.add_row(name, f"{seconds:.2f}", f"{seconds / total:.1%}")
    statuses = ", ".join(f"{count} {status}" for status, count in statistics.statuses.items())
    adaptations = f"adaptations: {statistics.accepted} accepted, {statistics.rejected} rejected"
    head = Text(f"{statistics.runs} runs: {statuses or 'none'}; {adaptations}; {statistics.fallbacks} with a fallback")
    return Group(head, strategies, stages) if statistics.runs else head
