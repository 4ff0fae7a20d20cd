"""Scorecards for people: Markdown, and a picture where matplotlib is installed. Knows nothing about measuring them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .trained import TrainedPolicy

REPORT, PICTURE = "scorecard.md", "scorecard.svg"


def write_report(policy: TrainedPolicy, folder: Path) -> None:
    """Writes `scorecard.md` into a bundle's folder, and `scorecard.svg` (needs matplotlib; without it, no picture)."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = _draw(policy.scorecard, policy.strategies, folder / PICTURE)
    (folder / REPORT).write_text(as_markdown(policy, picture=drawn), encoding="utf-8")


def as_markdown(policy: TrainedPolicy, picture: bool = False) -> str:
    """The scorecard in words and tables."""
    card = policy.scorecard
    learned_from = card.get("learned_from", card["cases"])
    lines = [
        "# Scorecard",
        "",
        f"Policy for the model {policy.base_hash}, trained on {learned_from} cases and judged by {card['cases']}, on "
        f"which every strategy was tried: {card['queries']} queries of {card['tasks']} tasks, of {card['families']} "
        "families. Everything below is measured with families held out. "
        f"Costs are multiples of answering in context; utility is accuracy minus {card['price']:.2g} for each.",
        "",
        "| | right | cost | utility |",
        "|---|---|---|---|",
        *(
            f"| {f'always `{name}`' if name in policy.strategies else name.replace('_', ' ')} "
            f"| {arm['accuracy']:.1%} | {arm['cost']:.1f}x | {arm['utility']:.3f}{_bracketed(arm)} |"
            for name, arm in sorted(card["arms"].items(), key=lambda item: -item[1]["utility"])
        ),
        "",
        "- The best of each task is the strategy that was worth most over all its queries, the best of each query a "
        "maximum over single draws. Both are known afterwards only, and part of them is luck that nobody can foresee "
        "(the winner's curse): no choice closes all of the gap to them.",
        *_left_out(card, policy.strategies),
        "- Utility beyond the single best strategy of the training families: "
        + _with_interval(card["gain_over_single_best"])
        + _closed(card, "gap_closed", "task")
        + _closed(card, "gap_closed_queries", "query")
        + ".",
        f"- Utility beyond `{card['gain_over_first']['strategy']}`, which proved the best fixed strategy here: "
        f"{_with_interval(card['gain_over_first'])}.",
        f"- In-context answers told right from wrong: AUROC {_number(card['difficulty']['auroc'])}, "
        f"Brier {card['difficulty']['brier']:.3f}, ECE {card['difficulty']['ece']:.3f}; without measuring more "
        f"(stage 1 was measured for {card['measured_share']:.0%}): AUROC {_number(card['difficulty_free']['auroc'])}. "
        "But for the last, these numbers and those on sending queries on use all stages for every query, also where "
        "the policy measures no more.",
        f"- Kept in context: {card['kept']['share']:.0%} of the cases, {_share(card['kept']['wrong_share'])} of them "
        "wrong" + (f" (promised: at most {policy.risk:.0%})." if policy.risk is not None else "."),
        f"- Harm (right in context, wrong as decided): {card['harm_share']:.1%} of the cases.",
        "- Released: "
        + (
            "yes, the lower bounds of both gains are above 0."
            if policy.released
            else f"no; it does not beat the single best strategy for sure, and always `{policy.ranking[0]}` is safer."
        ),
        *_repeats(card["repeats"]),
        *_routing(card["routing"]),
        *_details(card),
        *_leakage(card),
        "- Chosen: " + ", ".join(f"`{name}` {share:.0%}" for name, share in card["shares"].items()) + ".",
        "",
        "## What the judgement rests on",
        "",
        'How much the Brier score of "the in-context answer is right" suffers when a feature is shuffled:',
        "",
        "| feature | loss |",
        "|---|---|",
        *(f"| {name} | {loss:.4f} |" for name, loss in list(card["importance"].items())[:10]),
        "",
        "## Families that gain or lose",
        "",
        _families(card["families_gained"]),
        "",
    ]
    if picture:
        lines += [f"![Cost against accuracy, routing and reliability]({PICTURE})", ""]
    return "\n".join(lines)


def _with_interval(found: Mapping[str, Any]) -> str:
    low, high = found["interval_90"]
    return f"{found['value']:+.3f} (90% interval {low:+.3f} to {high:+.3f})"


def _closed(card: Mapping[str, Any], name: str, of: str) -> str:
    """How much of a gap was closed, where there was one."""
    return f"; gap to the best of each {of} closed: {_with_interval(card[name])}" if card[name] else ""


def _bracketed(arm: Mapping[str, Any]) -> str:
    """The 90% interval of its utility, which early scorecards lack."""
    return " [{:.3f}, {:.3f}]".format(*arm["interval_90"]) if arm.get("interval_90") else ""


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.0%}"


def _repeats(found: Mapping[str, Any]) -> Sequence[str]:
    """How the main numbers vary with the draw of the folds."""
    shown = {"gain_over_single_best": "gain", "gap_closed": "gap closed", "auroc": "AUROC", "harm_share": "harm"}
    parts = [
        f"{words} {found[name]['mean']:.3f} ({found[name]['range'][0]:.3f} to {found[name]['range'][1]:.3f})"
        for name, words in shown.items()
        if name in found
    ]
    return [f"- Over {found['draws']} draws of the folds (mean, lowest to highest): {', '.join(parts)}."]


def _routing(found: Mapping[str, Any] | None) -> Sequence[str]:
    if found is None:
        return ["- Sending queries to another strategy gains nothing here."]
    return [
        f"- Sending queries on by estimated gain: APGR {found['apgr']:.2f} over the share of queries (0.5 at random), "
        f"{found['apgr_cost']:.2f} over the cost; 95% of the gain with {found['cpt_95']:.0%} of the queries."
    ]


def _details(card: Mapping[str, Any]) -> Sequence[str]:
    """Intervals, and how well each head tells right from wrong."""
    bounds = [f"{name.replace('_', ' ')} {low:.2f} to {high:.2f}" for name, (low, high) in card["intervals_90"].items()]
    heads = [
        f"`{name}` {_number(head['auroc'])}, {head['brier']:.3f}, {head['ece']:.3f}"
        for name, head in card["heads"].items()
    ]
    return [
        f"- 90% intervals of the first draw: {', '.join(bounds)}.",
        f"- Each head (AUROC, Brier, ECE): {'; '.join(heads)}.",
    ]


def _left_out(card: Mapping[str, Any], strategies: Sequence[str]) -> Sequence[str]:
    """What the table does not show; scorecards of early versions do not count over-long queries."""
    lines = []
    if "ttt_crossfit" not in strategies:
        lines.append("- The rule of thumb is judged without `ttt_crossfit`, of which no outcomes were collected.")
    if card.get("over_long"):
        lines.append(f"- {card['over_long']} queries were left out: over-long for the model's context.")
    if card.get("unmeasured"):
        lines.append(f"- {card['unmeasured']} queries were left out: measuring them failed, or was not done.")
    return lines


def _leakage(card: Mapping[str, Any]) -> Sequence[str]:
    if card["leakage"] is None:
        return ["- Leakage gauge: none, since no family has more than one case."]
    family, random = card["leakage"]["families_held_out"], card["leakage"]["cases_held_out"]
    of = card["leakage"].get("cases")
    return [
        f"- Leakage gauge: utility {family['utility']:.3f} and AUROC {_number(family['auroc'])} with families held "
        f"out, {random['utility']:.3f} and {_number(random['auroc'])} with cases held out at random"
        + ("." if of is None else f", both of the {of} cases whose family has others.")
    ]


def _families(gains: Mapping[str, Sequence[float]]) -> str:
    if not gains:
        return "None."
    shown = list(gains.items())
    rows = shown if len(shown) <= 16 else [*shown[:8], *shown[-8:]]
    text = "\n".join(f"- {name}: {gained:.0%} became right, {lost:.0%} wrong" for name, (gained, lost) in rows)
    return text if len(rows) == len(shown) else f"{text}\n\n(the outermost 16 of {len(shown)})"


def _draw(card: Mapping[str, Any], strategies: Sequence[str], file: Path) -> bool:
    """Draws cost against accuracy, the routing curve and the reliability diagram; whether it could."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(13, 4), layout="constrained")
    arms, routing, reliability = figure.subplots(1, 3)
    for name, arm in card["arms"].items():
        fixed = name in strategies
        arms.plot(arm["cost"], arm["accuracy"], "o" if fixed else "*", color="tab:blue" if fixed else "tab:orange")
        arms.annotate(
            name, (arm["cost"], arm["accuracy"]), fontsize="x-small", xytext=(3, 3), textcoords="offset points"
        )
    hull = _hull([(card["arms"][name]["cost"], card["arms"][name]["accuracy"]) for name in strategies])
    arms.plot(*zip(*hull, strict=True), "--", color="tab:blue", label="hull of the fixed strategies")
    curve = sorted((cost, right) for _, right, cost in card["prices"])
    arms.plot(*zip(*curve, strict=True), "-", color="tab:orange", label="the policy at other prices, all measured")
    arms.set(xlabel="cost (multiples of in-context)", ylabel="right", xscale="symlog")
    arms.legend(fontsize="x-small")
    if card["routing"]:
        routing.plot(*zip(*card["routing"]["curve"], strict=True), "o-", label=f"APGR {card['routing']['apgr']:.2f}")
        routing.legend(fontsize="x-small")
    routing.plot([0, 1], [0, 1], ":", color="grey")
    routing.set(xlabel="share of queries sent on", ylabel="share of the gain recovered")
    bins = card["difficulty"]["reliability"]
    reliability.plot([b[0] for b in bins], [b[1] for b in bins], "o-")
    reliability.plot([0, 1], [0, 1], ":", color="grey")
    reliability.set(xlabel="estimated chance that in-context is wrong", ylabel="share wrong")
    figure.savefig(file)
    return True


def _hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no mixture of others beats at their cost, cheapest first."""
    found: list[tuple[float, float]] = []
    for cost, right in sorted(points, key=lambda p: (p[0], -p[1])):
        if found and right <= found[-1][1]:
            continue
        while len(found) > 1 and _slope(found[-2], found[-1]) <= _slope(found[-1], (cost, right)):
            found.pop()
        found.append((cost, right))
    return found


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / max(1e-12, b[0] - a[0])
