"""Tasks, values and results for people, in colour where the terminal has it. Knows nothing about solving."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...policies.outcome_table import over_long
from ...policies.outcomes import BASE, Outcome
from ...policies.report import cost_text, scorecard_errors
from ...policies.trained_policy import TrainedPolicy
from ...ttt_core.tasks.answers import is_right
from ...ttt_core.tasks.kinds import KINDS, STANDARD
from ...ttt_core.tasks.task import Grid, Task, Value

if TYPE_CHECKING:
    from ..evaluation import Summary
    from ..results import Result

_COLOURS = (
    "grey11",
    "dodger_blue2",
    "red3",
    "green3",
    "gold1",
    "grey62",
    "magenta2",
    "dark_orange",
    "turquoise2",
    "dark_red",
)
"""Backgrounds of cells 0-9."""
_ON_DARK = "grey85"
_ON_LIGHT = "grey7"


def show_value(kind: str, value: Value | None) -> Text:
    """A value: grids as coloured cells, the rest as text."""
    if value is None:
        return Text("(none)", style="dim")
    if kind not in ("grid", "grid1d"):
        return Text(KINDS[kind].render(value, STANDARD))
    text = Text()
    for index, row in enumerate(cast(Grid, value)):
        if index:
            text.append("\n")
        for colour in row:
            text.append(
                f"{colour} ", style=f"{_ON_DARK if colour in (0, 1, 2, 9) else _ON_LIGHT} on {_COLOURS[colour]}"
            )
    return text


def show_pair(kind: str, source: Value, target: Value | None) -> RenderableType:
    """One worked example."""
    left, right = show_value(kind, source), show_value(kind, target)
    if kind == "grid":
        table = Table.grid(padding=(0, 1))
        table.add_row(left, Text("->", style="dim"), right)
        return table
    if kind == "grid1d":
        return Group(left, Text("-> ", style="dim") + right)
    return left + Text("  ->  ", style="dim") + right


def show_task(task: Task, most: int = 3) -> RenderableType:
    """The demonstrations (the first `most` of them) and the query."""
    shown: list[RenderableType] = [show_pair(task.kind, d.input, d.output) for d in task.demonstrations[:most]]
    if (left := len(task.demonstrations) - most) > 0:
        shown.append(Text(f"... and {left} more", style="dim"))
    body: RenderableType = Columns(shown, padding=(0, 4)) if task.kind == "grid" else Group(*shown)
    query = Group(Text("query", style="bold"), show_value(task.kind, task.query))
    return Group(body, query)


def show_outcomes(outcomes: Sequence[Outcome]) -> RenderableType:
    """A table of the results of each strategy on each data set."""
    table = Table(box=SIMPLE_HEAD)
    for name in ("data set", "strategy"):
        table.add_column(name, overflow="fold")
    for name in ("cases", "right", "cost", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("failed", justify="right")
    left_out = over_long(outcomes)
    cells: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        cells.setdefault((outcome.dataset, outcome.strategy), []).append(outcome)

    def cost(cell: Sequence[Outcome]) -> float:
        """The mean over the queries that have an in-context cost."""
        costs = [o.relative_cost for o in cell if (o.dataset, o.task_id, o.seed) not in left_out]
        return fmean(costs) if costs else 0.0

    for (dataset, strategy), cell in sorted(cells.items(), key=lambda item: (item[0][0], cost(item[1]))):
        failed = Counter(o.status for o in cell if o.status != "answered")
        table.add_row(
            dataset, strategy, str(len(cell)), f"{fmean(o.correct for o in cell):.1%}",
            f"{cost(cell):.1f}x", f"{fmean(o.seconds for o in cell):.2f}",
            ", ".join(f"{count} {status}" for status, count in failed.items()),
        )  # fmt: skip
    models = ", ".join(sorted({o.base_hash[:12] for o in outcomes}))
    counts = [len({(o.dataset, o.task_id) for o in outcomes}), len({o.family for o in outcomes})]
    text = f"{len(outcomes)} outcomes of {models}: {counts[0]} queries of {counts[1]} families"
    if left_out:
        text += f"; {len(left_out)} over-long, counted wrong and left out of the costs"
    return Group(table, Text(text, style="dim"))


@scorecard_errors()
def show_comparison(policies: Sequence[tuple[str, TrainedPolicy]]) -> RenderableType:
    """The scorecards of policies, a column each. Raises `PolicyError` for one that training did not write."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for name, _ in policies:
        table.add_column(name, justify="right")
    cards = [policy.scorecard for _, policy in policies]

    def row(what: str, value: Callable[[Mapping[str, Any]], str]) -> None:
        table.add_row(what, *(value(card) for card in cards))

    def with_interval(gain: Mapping[str, Any] | None) -> str:
        if not gain:
            return "-"
        low, high = gain["interval_90"]
        return f"{gain['value']:+.3f} [{low:+.2f}, {high:+.2f}]"

    table.add_row("model", *(policy.base_hash[:12] for _, policy in policies))
    row("cost weight", lambda c: f"{c['cost_weight']:.2g}")
    row("cases (families)", lambda c: f"{c['cases']} ({c['families']})")
    for arm in dict.fromkeys(name for card in cards for name in card["arms"]):
        row(f"utility, {arm}", lambda c, a=arm: f"{c['arms'][a]['utility']:.3f}" if a in c["arms"] else "-")  # type: ignore[misc]
    row("accuracy, policy", lambda c: f"{c['arms']['policy']['accuracy']:.1%}")
    table.add_row("cost, policy", *(cost_text(p, p.scorecard["arms"]["policy"]["cost"]) for _, p in policies))
    row("gain over the single best", lambda c: with_interval(c["gain_over_sbs"]))
    row("gap closed", lambda c: with_interval(c["gap_closed_per_task"]))
    row("APGR", lambda c: f"{c['routing']['apgr']:.2f}" if c["routing"] else "-")
    row("AUROC of difficulty", lambda c: "-" if (auroc := c["difficulty"]["auroc"]) is None else f"{auroc:.2f}")
    row("harm", lambda c: f"{c['harm_share']:.1%}")
    differ = [
        what
        for what, values in (
            ("models", {policy.base_hash for _, policy in policies}),
            ("cost weights", {card["cost_weight"] for card in cards}),
            ("units of cost", {bool(policy.models) for _, policy in policies}),
            ("cases", {(card["cases"], card["families"], card.get("digest")) for card in cards}),
        )
        if len(values) > 1
    ]
    if not differ:
        return table
    return Group(table, Text(f"The {', '.join(differ)} differ: utilities cannot be compared.", style="yellow"))


def mark(right: bool | None) -> Text:
    """The word right or wrong, or nothing if the right answer is unknown."""
    if right is None:
        return Text("")
    return Text("right", style="bold green") if right else Text("wrong", style="bold red")


def show_result(result: Result) -> RenderableType:
    """The decision and its reason, the in-context answer and the final one, time, and the proof."""
    table = Table.grid(padding=(0, 2))
    if result.in_context and result.strategy != BASE:
        value = result.in_context.value
        right = None if result.right is None else is_right(result.task, value)
        table.add_row(BASE, show_value(result.task.kind, value), mark(right))
    table.add_row(result.strategy, show_value(result.task.kind, result.answer), mark(result.right))
    proof = (
        f"weights proven back ({result.proof.tensors} tensors, {1e3 * result.proof.seconds:.1f} ms)"
        if result.proof
        else ""
    )
    trained = ""
    if result.adaptation:
        losses = result.adaptation.losses
        trained = f", {result.adaptation.steps} training steps"
        trained += f" (loss {losses[0]:.2f} -> {losses[-1]:.2f})" if losses else ""
    facts = Text(f"{result.cost.seconds:.2f} s{trained}; {proof}", style="dim")
    reason = Text.assemble(("decision  ", "bold"), (result.strategy, "bold cyan"), f": {result.reason}")
    return Group(reason, Padding(table, (0, 0, 0, 2), expand=False), facts)


def show_summary(summaries: Sequence[Summary]) -> RenderableType:
    """The table of an evaluation, and notes on queries that could not be tried."""
    table = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in ("queries\nright", "tasks\nright", "seconds", "cost", "work", "adapted"):
        table.add_column(name, justify="right", no_wrap=True)
    last = ""
    for s in summaries:
        if s.dataset != last:
            table.add_section()
            table.add_row(Text(s.dataset, style="bold"))
            last = s.dataset
        any_tried = s.refused + s.inapplicable < s.queries
        costs = ("-" if cost is None else f"{cost:.1f}x" for cost in (s.cost, s.work))
        measured = f"{s.seconds:.1f}", *costs, f"{100 * s.adapted:.0f}%"
        table.add_row(
            s.strategy, f"{100 * s.query_accuracy:.1f}% of {s.queries}", f"{100 * s.task_accuracy:.1f}% of {s.tasks}",
            *(measured if any_tried else ["-"] * len(measured)),
        )  # fmt: skip
    return Group(table, *(Text(note, style="yellow") for note in _untried(summaries)))


def _untried(summaries: Sequence[Summary]) -> list[str]:
    """A note for each reason why queries could not be tried, with the strategies it holds for."""
    notes: dict[str, list[str]] = {}
    for s in summaries:
        for count, why in ((s.refused, "are over-long"), (s.inapplicable, "have too few demonstrations")):
            if count:
                notes.setdefault(f"{s.dataset}: {count} of {s.queries} queries {why} for", []).append(s.strategy)
    return [f"{note} {', '.join(names)}; they count as wrong" for note, names in notes.items()]
