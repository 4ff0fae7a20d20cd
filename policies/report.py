"""Scorecards for people: Markdown, and a figure if matplotlib is installed. Knows nothing about how they are
computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..ttt_core.errors import PolicyError
from ..ttt_core.file_writing import replacing, write_whole
from .trained_policy import NOT_WORSE, TrainedPolicy

REPORT, PICTURE = "scorecard.md", "scorecard.svg"
STORED = "free space on its disk; the policy itself is stored"
"""What to do where the scorecard or the record of a policy cannot be written."""
ARM_NAMES = {
    "vbs_per_query": "VBS per query",
    "vbs_per_task": "VBS per task",
    "sbs": "SBS",
    "sbs_per_kind": "SBS per kind",
    "random_at_equal_share": "random, equal shares",
    "one_feature": "threshold on one feature",
    "rule_of_thumb": "rule of thumb",
}
"""Names of baselines in tables."""
METRIC_NAMES = {
    "gain_over_sbs": "gain over the SBS",
    "gap_closed_per_task": "gap closed per task",
    "auroc": "AUROC",
    "harm_share": "harm",
    "brier": "Brier score",
    "apgr": "APGR",
    "apgr_cost": "APGR over cost",
    "cpt_95": "CPT(95%)",
}
"""Names of metrics in sentences."""
SHOWN_FAMILIES = 16
_TERMS = (
    "SBS: single best strategy on the training families. VBS: virtual best strategy, chosen in hindsight for each "
    "task (over all its queries) or for each query. Gap closed: (U - U_SBS) / (U_VBS - U_SBS), with U the mean "
    "utility. Part of the VBS is chance that no policy can predict (the winner's curse), so a gap closed of 100% "
    "is out of reach."
)


def write_report(policy: TrainedPolicy, folder: Path) -> None:
    """Writes `scorecard.md` into a bundle's folder, and for a policy of one model `scorecard.svg` if matplotlib is
    installed. Raises `FileError` for one that cannot be written, and leaves none in part."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = not policy.models and _draw(policy.scorecard, policy.strategies, folder / PICTURE)
    write_whole(folder / REPORT, as_markdown(policy, picture=drawn), STORED)


def arm_name(arm: str, strategies: Sequence[str]) -> str:
    """The name of a policy, fixed strategy or baseline in tables."""
    return f"always `{arm}`" if arm in strategies else ARM_NAMES.get(arm, arm.replace("_", " "))


@contextmanager
def scorecard_errors() -> Iterator[None]:
    """Raises `PolicyError` where a scorecard, which is JSON that anybody can edit, lacks a part or holds another type
    than training writes."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"it has no {error}" if isinstance(error, KeyError) else f"a part has another type ({error})"
        raise PolicyError(
            f"the scorecard of the policy cannot be shown: {problem}. `autottt policy show --json` prints it as it is; "
            "`autottt train-policy` writes a new one"
        ) from error


@scorecard_errors()
def as_markdown(policy: TrainedPolicy, picture: bool = False) -> str:
    """The scorecard as Markdown. Raises `PolicyError` for one that training did not write."""
    if policy.models:
        return _of_several_models(policy)
    card = policy.scorecard
    lines = [
        "# Scorecard",
        "",
        f"Policy for the model {policy.base_hash}. Training: {card['training_cases']} cases. Evaluation, on held-out "
        f"families: the {card['cases']} cases on which every strategy was run ({card['queries']} queries, "
        f"{card['tasks']} tasks, {card['families']} families). Cost is in multiples of the in-context cost; utility is "
        f"accuracy minus {card['cost_weight']:.2g} x cost (the cost weight).",
        "",
        *_arms_table(policy),
        "",
        _TERMS,
        "",
        *_partly_tried(card.get("partly_tried", {})),
        *_gains(card),
        f"- Released: {_released(policy)}.",
        *_exclusions(card, policy.strategies),
        *_classification(policy),
        *_repeats(card["repeats"]),
        *_routing(card["routing"]),
        *_details(card),
        *_leakage(card["leakage"]),
        "",
        "## Features",
        "",
        "Permutation importance: increase of the Brier score of the probability that the in-context answer is right.",
        "",
        "| feature | increase |",
        "|---|---|",
        *(f"| {name} | {loss:.4f} |" for name, loss in list(card["permutation_importance"].items())[:10]),
        "",
        "## Changes per family",
        "",
        _families(card["changes_per_family"]),
        "",
    ]
    if picture:
        lines += [f"![Accuracy against cost, routing curve and reliability diagram]({PICTURE})", ""]
    return "\n".join(lines)


def _of_several_models(policy: TrainedPolicy) -> str:
    """The scorecard of a policy for any model: a table for each model when it was held out."""
    card = policy.scorecard
    lines = [
        "# Scorecard",
        "",
        f"Policy for any model, trained on the outcomes of {len(card['models'])} models. Evaluation: each model by "
        f"policies that saw neither the model nor the families ({card['cases']} cases, {card['families']} families). "
        "Cost is a percentage of the cost of the most expensive strategy; utility is accuracy minus "
        f"{card['cost_weight']:.2g} x cost (the cost weight).",
        "",
        _TERMS,
        "",
        f"- Utility gain over the rule of thumb, all models: {_with_interval(card['gain_over_rule_of_thumb'])}.",
        f"- Released: {_released(policy)}.",
    ]
    for model, own in card["models"].items():
        held_out = replace(policy, scorecard=own)
        lines += [
            "",
            f"## Model {model}, held out",
            "",
            f"{own['cases']} cases ({own['queries']} queries, {own['tasks']} tasks, {own['families']} families).",
            "",
            *_arms_table(held_out),
            "",
            *_gains(own),
            *_exclusions(own, policy.strategies),
            *_classification(held_out),
            *_routing(own["routing"]),
            *_details(own),
        ]
    return "\n".join([*lines, ""])


def cost_text(policy: TrainedPolicy, cost: float) -> str:
    """A cost on a scorecard: a multiple of the in-context cost or, for a policy for any model, a percentage of the cost
    of the most expensive strategy."""
    return f"{cost:.1f}{'%' if policy.models else 'x'}"


def _arms_table(policy: TrainedPolicy) -> Sequence[str]:
    """Accuracy, cost and utility of the policy and all baselines, the highest utility first."""
    rows = sorted(policy.scorecard["arms"].items(), key=lambda item: -item[1]["utility"])
    return [
        "| | accuracy | cost | utility (90% interval) |",
        "|---|---|---|---|",
        *(
            f"| {arm_name(name, policy.strategies)} | {arm['accuracy']:.1%} | {cost_text(policy, arm['cost'])} "
            f"| {arm['utility']:.3f} [{arm['interval_90'][0]:.3f}, {arm['interval_90'][1]:.3f}] |"
            for name, arm in rows
        ),
    ]


def _partly_tried(rows: Mapping[str, Any]) -> Sequence[str]:
    """Strategies that were tried on some of the cases only, beside the policy on these."""
    if not rows:
        return []

    def score(arm: Mapping[str, float]) -> str:
        return f"{arm['accuracy']:.1%} at {arm['cost']:.1f}x"

    return [
        "Strategies that were tried on some of the cases only, which the policy does not choose, on these cases:",
        "",
        "| | cases, families | in context | always | policy | utility gain of the policy (90% interval) |",
        "|---|---|---|---|---|---|",
        *(
            f"| `{name}` | {row['cases']}, {row['families']} | {score(row['arms']['in_context'])} "
            f"| {score(row['arms'][name])} | {score(row['arms']['policy'])} "
            f"| {row['gain_of_policy']['value']:+.3f} [{row['gain_of_policy']['interval_90'][0]:+.3f}, "
            f"{row['gain_of_policy']['interval_90'][1]:+.3f}] |"
            for name, row in rows.items()
        ),
        "",
    ]


def _released(policy: TrainedPolicy) -> str:
    """Whether a policy is released, and why."""
    if policy.models:
        gain = "the 90% interval of the gain over the rule of thumb"
        return f"yes ({gain} is above 0)" if policy.released else f"no ({gain} includes 0)"
    if policy.release == "better":
        return "yes (the 90% intervals of both gains are above 0)"
    if policy.release == "cheaper":
        return f"yes (the 90% intervals of both gains are above -{NOT_WORSE:g}, at a lower cost)"
    return f"no (the 90% interval of a gain is not above 0); always using `{policy.ranking[0]}` is safer"


def _gains(card: Mapping[str, Any]) -> Sequence[str]:
    """Gains over fixed strategies, and gap closed."""
    gaps = (("task", card["gap_closed_per_task"]), ("query", card["gap_closed_per_query"]))
    return [
        f"- Utility gain over the SBS: {_with_interval(card['gain_over_sbs'])}.",
        f"- Utility gain over `{card['gain_over_best_fixed']['strategy']}`, the best fixed strategy on these families: "
        f"{_with_interval(card['gain_over_best_fixed'])}.",
        *(f"- Gap closed to the VBS per {name}: {_percent_with_interval(gap)}." for name, gap in gaps if gap),
    ]


def _classification(policy: TrainedPolicy) -> Sequence[str]:
    """How well right in-context answers are recognised, and what the decisions do."""
    card = policy.scorecard
    risk = "" if policy.risk is None else f" (risk guarantee: at most {policy.risk:.0%})"
    return [
        f"- Wrong in-context answers recognised, all features: AUROC {_number(card['difficulty']['auroc'])}, "
        f"Brier score {card['difficulty']['brier']:.3f}, ECE {card['difficulty']['ece']:.3f}; without the probe: AUROC "
        f"{_number(card['difficulty_stage_0']['auroc'])}. The probe was run on {card['probe_share']:.0%} of the cases. "
        "The AUROC without the probe apart, these metrics and the routing curve use all stages for every query, even "
        "where the policy skips the probe.",
        f"- In-context answers kept: {card['kept']['share']:.0%} of the cases, {_share(card['kept']['wrong_share'])} "
        f"of them wrong{risk}.",
        f"- Harm (right in context, wrong as decided): {card['harm_share']:.1%} of the cases.",
        "- Strategy shares: " + ", ".join(f"`{name}` {share:.0%}" for name, share in card["shares"].items()) + ".",
    ]


def _with_interval(gain: Mapping[str, Any]) -> str:
    low, high = gain["interval_90"]
    return f"{gain['value']:+.3f} (90% interval {low:+.3f} to {high:+.3f})"


def _percent_with_interval(gap: Mapping[str, Any]) -> str:
    low, high = gap["interval_90"]
    return f"{gap['value']:.1%} (90% interval {low:.1%} to {high:.1%})"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.0%}"


def _repeats(repeats: Mapping[str, Any]) -> Sequence[str]:
    """Variation of the main metrics over the draws of the folds."""
    parts = [
        f"{METRIC_NAMES[name]} {repeats[name]['mean']:.3f} ({repeats[name]['range'][0]:.3f} to "
        f"{repeats[name]['range'][1]:.3f})"
        for name in ("gain_over_sbs", "gap_closed_per_task", "auroc", "harm_share")
        if name in repeats
    ]
    return [f"- Over {repeats['draws']} draws of the folds, mean (minimum to maximum): {', '.join(parts)}."]


def _routing(curve: Mapping[str, Any] | None) -> Sequence[str]:
    if curve is None:
        return ["- Routing curve: none, since the alternative strategy gains nothing here."]
    return [
        f"- Routing curve, queries sent to the alternative strategy by estimated gain: APGR {curve['apgr']:.2f} over "
        f"the share of queries (0.5 at random), {curve['apgr_cost']:.2f} over the cost; 95% of the gain with "
        f"{curve['cpt_95']:.0%} of the queries."
    ]


def _details(card: Mapping[str, Any]) -> Sequence[str]:
    """90% intervals, and the quality of each classifier."""
    bounds = [
        f"{METRIC_NAMES.get(name, name)} {low:.2f} to {high:.2f}" for name, (low, high) in card["intervals_90"].items()
    ]
    classifiers = [
        f"`{name}` {_number(quality['auroc'])}, {quality['brier']:.3f}, {quality['ece']:.3f}"
        for name, quality in card["classifiers"].items()
    ]
    return [
        f"- 90% intervals of the first draw: {', '.join(bounds)}.",
        f"- Probability that each strategy is right (AUROC, Brier score, ECE): {'; '.join(classifiers)}.",
    ]


def _exclusions(card: Mapping[str, Any], strategies: Sequence[str]) -> Sequence[str]:
    """Queries, strategies and features that the evaluation goes without."""
    lines = []
    if "ttt_crossfit" not in strategies:
        lines.append("- The rule of thumb is evaluated without `ttt_crossfit`, which was not tried on every case.")
    if card.get("over_long"):
        lines.append(f"- {card['over_long']} queries are excluded: they exceed the model's context window.")
    if card.get("unmeasured"):
        lines.append(f"- {card['unmeasured']} queries are excluded: they have no features, or no in-context answer.")
    if names := card.get("missing_features"):
        lines.append(f"- Features not used, since some outcomes lack them: {', '.join(names)}.")
    if names := card.get("ignored_features"):
        lines.append(f"- Features of outcomes that this package does not measure: {', '.join(names)}.")
    if len(versions := card.get("features_versions", ())) > 1:
        lines.append(f"- The outcomes have features of versions {', '.join(map(str, versions))}, matched by name.")
    return lines


def _leakage(leakage: Mapping[str, Any] | None) -> Sequence[str]:
    if leakage is None:
        return ["- Leakage: not measurable, since no family has more than one case."]
    family, random = leakage["families_held_out"], leakage["cases_held_out"]
    return [
        f"- Leakage, on the {leakage['cases']} cases whose family has other cases: utility {family['utility']:.3f} and "
        f"AUROC {_number(family['auroc'])} with families held out, {random['utility']:.3f} and "
        f"{_number(random['auroc'])} with random cases held out."
    ]


def _families(changes: Mapping[str, Sequence[float]]) -> str:
    if not changes:
        return "None."
    families, half = list(changes.items()), SHOWN_FAMILIES // 2
    shown = families if len(families) <= SHOWN_FAMILIES else [*families[:half], *families[-half:]]
    text = "\n".join(f"- {name}: {gained:.0%} became right, {lost:.0%} became wrong" for name, (gained, lost) in shown)
    if len(shown) == len(families):
        return text
    return f"{text}\n\n(the {half} largest losses and {half} largest gains of {len(families)} families)"


def _draw(card: Mapping[str, Any], strategies: Sequence[str], file: Path) -> bool:
    """Draws accuracy against cost, the routing curve and the reliability diagram; false without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(13, 4), layout="constrained")
    arms, routing, reliability = figure.subplots(1, 3)
    _draw_arms(arms, card, strategies)
    if card["routing"]:
        routing.plot(*zip(*card["routing"]["curve"], strict=True), "o-", label=f"APGR {card['routing']['apgr']:.2f}")
        routing.legend(fontsize="x-small")
    routing.plot([0, 1], [0, 1], ":", color="grey")
    routing.set(xlabel="share of queries sent to the alternative", ylabel="share of the gain recovered")
    bins = card["difficulty"]["reliability"]
    reliability.plot([b[0] for b in bins], [b[1] for b in bins], "o-")
    reliability.plot([0, 1], [0, 1], ":", color="grey")
    reliability.set(xlabel="estimated probability that in-context is wrong", ylabel="share wrong")
    with replacing(file, STORED) as partial:
        figure.savefig(partial, format=file.suffix[1:])
    return True


def _draw_arms(axes: Any, card: Mapping[str, Any], strategies: Sequence[str]) -> None:
    """Accuracy against cost: fixed strategies and their convex hull, baselines, and the policy at other cost
    weights."""
    for name, arm in card["arms"].items():
        point, fixed = (arm["cost"], arm["accuracy"]), name in strategies
        axes.plot(*point, "o" if fixed else "*", color="tab:blue" if fixed else "tab:orange")
        label = ARM_NAMES.get(name, name)
        axes.annotate(label, point, fontsize="x-small", xytext=(3, 3), textcoords="offset points")
    hull = _hull([(card["arms"][name]["cost"], card["arms"][name]["accuracy"]) for name in strategies])
    axes.plot(*zip(*hull, strict=True), "--", color="tab:blue", label="convex hull of the fixed strategies")
    curve = sorted((cost, accuracy) for _, accuracy, cost in card["cost_weight_curve"])
    axes.plot(*zip(*curve, strict=True), "-", color="tab:orange", label="policy at other cost weights, always probed")
    axes.set(xlabel="cost (multiples of in-context)", ylabel="accuracy", xscale="symlog")
    axes.legend(fontsize="x-small")


def _hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The upper convex hull: the points that no mixture of others exceeds at their cost, cheapest first."""
    hull: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda p: (p[0], -p[1])):
        if hull and accuracy <= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], (cost, accuracy)):
            hull.pop()
        hull.append((cost, accuracy))
    return hull


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / max(1e-12, b[0] - a[0])
