"""The measurements of policy_real.py as rows with goals, and the tables of docs/models.md that follow from them.

Knows nothing about how policies are trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]

BUNDLED = "bundled"
"""The name of the model that ships with the package."""
RIVAL = "ttt_augmented"
"""The strategy that racing is compared with."""
ABOVE_ZERO = 1e-9
"""The smallest value that counts as above 0."""


def goal_rows(models: Mapping[str, Mapping[str, Any]], any_model: Mapping[str, Any] | None) -> list[Row]:
    """Rows {"name", "value", "unit", "against", "goal", "holds"} of each model's own policy, of domains held out, of
    racing, and of the policy for unknown models. `models` is by name."""
    rows = [row for name, parts in models.items() for row in _model_rows(name, parts)]
    return rows + (list(_unknown_rows(any_model)) if any_model else [])


def _row(
    name: str, value: float | None, unit: str, goal: float | None, *, most: bool = False, against: str = "",
    interval: list[float] | None = None,
) -> Row:  # fmt: skip
    """A row; `most` says that the goal is an upper bound."""
    holds = None if goal is None else value is not None and (value <= goal if most else value >= goal)
    value = None if value is None else round(value, 4)
    row = {"name": name, "value": value, "unit": unit, "against": against, "goal": goal, "holds": holds}
    return row | ({"interval_90": [round(x, 4) for x in interval]} if interval else {})


def _model_rows(name: str, parts: Mapping[str, Any]) -> Iterator[Row]:
    card = parts["own_policy"]
    who, best = f"{name}, own policy", f"always {card['best_fixed']}"
    yield _row(f"{who}: accuracy beyond", card["accuracy_beyond_best_fixed"], "", 0, against=best)
    yield _row(f"{who}: cost of", card["cost_of_best_fixed"], "x", 0.4, most=True, against=best)
    yield from _gap_rows(who, card, 0.35)
    yield _row(f"{who}: harm", card["harm_share"], "", 0.02, most=True, against="of all queries")
    yield from _domain_rows(name, parts["domains"]["held_out"])
    yield from _race_rows(name, parts["race"])
    yield from _more_certain_rows(name, parts["more_certain"])


def _gap_rows(who: str, card: Mapping[str, Any], goal: float) -> Iterator[Row]:
    gap = card["gap_closed_per_task"] or {"value": None, "interval_90": []}
    interval = gap["interval_90"]
    yield _row(f"{who}: gap closed, SBS to VBS per task", gap["value"], "", goal, interval=interval)
    if interval:
        yield _row(f"{who}: gap closed, lower bound", interval[0], "", ABOVE_ZERO)


def _domain_rows(name: str, held_out: Mapping[str, Any] | None) -> Iterator[Row]:
    """Domains held out whole; the goals are those of the bundled model."""
    if held_out is None:
        return
    every, goals = held_out["all"], (-0.03, 0.6, -0.005) if name == BUNDLED else (None, None, None)
    who, against = f"{name}, domains held out", "best fixed strategy of each domain"
    for arm, label, goal in (("policy", "", goals[0]), ("accuracy_first", " at cost weight 0", goals[2])):
        gain, share = every[arm]["accuracy_difference"], every[arm]["cost_share"]
        what = f"{who}: accuracy beyond{label}"
        yield _row(what, gain["value"], "", goal, against=against, interval=gain["interval_90"])
        bound = goals[1] if arm == "policy" else None
        yield _row(f"{who}: cost of{label}", share, "x", bound, most=True, against=against)


def _race_rows(name: str, race: Mapping[str, Any]) -> Iterator[Row]:
    if not race["cases"]:
        return
    arms = race["arms"]
    racing, rival = arms["ttt_race"], arms[RIVAL]
    who, against = f"{name}, racing on {race['cases']} queries", f"always {RIVAL}"
    yield _row(f"{who}: accuracy beyond", racing["accuracy"] - rival["accuracy"], "", None, against=against)
    yield _row(f"{who}: cost of", racing["cost"] / rival["cost"], "x", None, against=against)
    yield _row(f"{who}: harm", racing["harm_share"], "", None, against="of all queries")


def _more_certain_rows(name: str, strategies: Mapping[str, Any]) -> Iterator[Row]:
    for strategy, numbers in strategies.items():
        who = f"{name}, the more certain of the in-context answer and that of {strategy}"
        interval = [x / 100 for x in numbers["gain_interval_90"]]
        yield _row(
            f"{who}: accuracy beyond", numbers["gain"], "", None, against=f"always {strategy}", interval=interval
        )
        harm = f"{numbers['harm_share_alone']:.1%} of all queries by always {strategy}"
        yield _row(f"{who}: harm", numbers["harm_share"], "", None, against=harm)


def _unknown_rows(any_model: Mapping[str, Any]) -> Iterator[Row]:
    for name, card in any_model["models"].items():
        who = f"policy for unknown models, judged on {name}"
        yield from _gap_rows(who, card, 0.2)
        yield _row(f"{who}: AUROC of an in-context answer being right", card["auroc"], "", 0.8)
        yield _row(f"{who}: ECE of an in-context answer being right", card["ece"], "", 0.06, most=True)
        yield _row(f"{who}: harm", card["harm_share"], "", 0.02, most=True, against="of all queries")
    gain = any_model["gain_over_rule_of_thumb"]
    who, against = "policy for unknown models, all models", "heuristic policy"
    yield _row(f"{who}: utility beyond", gain["value"], "", None, against=against, interval=gain["interval_90"])
    yield _row(f"{who}: utility beyond, lower bound", gain["interval_90"][0], "", ABOVE_ZERO, against=against)


# --- tables ----------------------------------------------------------------------------------------------------------


def policies_table(folder: Path) -> str:
    """The table of policy_real.json: each model's own policy, and the policy for unknown models on each model, both on
    families held out."""
    facts = json.loads((folder / "policy_real.json").read_text("utf-8"))
    columns = (
        "model", "queries, families", "in context", "best fixed strategy", "policy", "its cost, of that of the best",
        "VBS per task", "gap closed", "AUROC, ECE", "harmed, %",
    )  # fmt: skip
    lines = [_line(*columns), _line(*["---"] * len(columns))]
    own = {name: parts["own_policy"] for name, parts in facts["models"].items()}
    unknown = (facts["any_model"] or {"models": {}})["models"]
    for label, cards, unit in (("own policy", own, "x"), ("policy for unknown models", unknown, "%")):
        lines += [_line(f"{name}, {label}", *_cells(card, unit)) for name, card in cards.items()]
    return "\n".join(lines)


def strategies_table(folder: Path) -> str:
    """Each strategy of policy_real.json on the queries that it and the in-context answer were tried on, for the real
    models."""
    facts = json.loads((folder / "policy_real.json").read_text("utf-8"))
    columns = (
        "model", "strategy", "queries, families", "right, %", "gain over in context", "harmed, %", "cost", "seconds",
    )  # fmt: skip
    lines = [_line(*columns), _line(*["---"] * len(columns))]
    for model, parts in facts["models"].items():
        for name, row in parts["strategies"].items() if model != BUNDLED else ():
            low, high = row["gain_interval_90"]
            gain, harm = f"{100 * row['gain']:+.1f} [{low:+.1f}, {high:+.1f}]", f"{100 * row['harm_share']:.1f}"
            lines.append(
                _line(
                    model, f"`{name}`", f"{row['cases']}, {row['families']}", f"{100 * row['accuracy']:.1f}",
                    *(("", "") if name == "in_context" else (gain, harm)), f"{row['cost']:.1f}x",
                    f"{row['seconds']:.2f}",
                )
            )  # fmt: skip
    return "\n".join(lines)


def _cells(card: Mapping[str, Any], unit: str) -> Iterator[str]:
    arms, gap = card["arms"], card["gap_closed_per_task"]
    best = arms[card["best_fixed"]]
    yield f"{card['cases']}, {card['families']}"
    yield f"{arms['in_context']['accuracy']:.1%}"
    yield f"`{card['best_fixed']}` {_arm(best, unit)}"
    yield _arm(arms["policy"], unit)
    yield f"{card['cost_of_best_fixed']:.0%}"
    yield _arm(arms["vbs_per_task"], unit)
    yield "-" if gap is None else "{:.2f} [{:.2f}, {:.2f}]".format(gap["value"], *gap["interval_90"])
    yield f"{card['auroc']:.2f}, {card['ece']:.2f}"
    yield f"{card['harm_share']:.1%}"


def _arm(arm: Mapping[str, float], unit: str) -> str:
    return f"{arm['accuracy']:.1%} at {arm['cost']:.1f}{unit}"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
