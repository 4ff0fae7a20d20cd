"""Draws accuracy against cost from benchmarks/results: docs/accuracy_cost.svg from policy.json, and
docs/accuracy_cost_models.svg from policy_real.json. `make docs` calls it.

Knows nothing about how the numbers were measured. A drawing is the same for the same numbers; they stand in its
description, by which a test compares it, since another version of matplotlib draws the same figure in other bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ALWAYS = "always "
NAMED = {"policy": "controller", "VBS per query": "VBS per query", "VBS per task": "VBS per task"}
"""Names of rows in policy.json -> labels."""
STYLES = {
    "fixed": {"marker": "o", "s": 55, "color": "#5b7083"},
    "controller": {"marker": "*", "s": 330, "color": "#d1495b"},
    "VBS": {"marker": "D", "s": 55, "facecolor": "white", "edgecolor": "#2a9d8f", "linewidth": 1.8},
}


class Point(NamedTuple):
    """One way to choose strategies, measured on families held out."""

    label: str
    style: str
    cost: float
    """Mean per query, in multiples of the in-context answer's cost."""
    accuracy: float
    """Share of queries, 0 to 1."""


def points(results: Path) -> list[Point]:
    """Every fixed strategy, the controller, and the virtual best strategies."""
    chosen = []
    for row in json.loads((results / "policy.json").read_text("utf-8"))["rows"]:
        name = row["name"].removesuffix(": utility")
        if "accuracy" not in row or not (name.startswith(ALWAYS) or name in NAMED):
            continue
        label = NAMED.get(name, name.removeprefix(ALWAYS).strip("`"))
        style = "fixed" if name.startswith(ALWAYS) else "controller" if label == "controller" else "VBS"
        chosen.append(Point(label, style, row["cost"], row["accuracy"]))
    return sorted(chosen)


def points_of_models(results: Path) -> dict[str, list[Point]]:
    """The same of the own policy of each model in policy_real.json, by the model's name; without the VBS per query."""
    models = json.loads((results / "policy_real.json").read_text("utf-8"))["models"]
    styles = {"policy": ("controller", "controller"), "vbs_per_task": ("VBS per task", "VBS")}
    return {
        name: sorted(
            Point(*styles.get(arm, (arm, "fixed")), numbers["cost"], numbers["accuracy"])
            for arm, numbers in parts["own_policy"]["arms"].items()
            if arm in parts["own_policy"]["strategies"] or arm in styles
        )
        for name, parts in models.items()
    }


def description(results: Path) -> str:
    """The numbers of the drawing in one line."""
    return _numbers(points(results))


def description_of_models(results: Path) -> str:
    """The numbers of the drawing of all models in one line."""
    return ". ".join(f"{name}: {_numbers(some)}" for name, some in points_of_models(results).items())


def _numbers(some: Sequence[Point]) -> str:
    return "; ".join(f"{p.label}: {p.accuracy:.1%} at {p.cost:.0f}x" for p in some)


def draw(results: Path, file: Path) -> None:
    """Writes the picture of the bundled model's policy."""
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(7.2, 3.9), layout="constrained")
        axes = figure.subplots()
        _draw_points(axes, points(results))
        axes.set(
            xlabel="mean cost of a query, in multiples of the in-context answer", ylabel="queries right, %",
            xlim=(-5, 340), ylim=(27, 55),
        )  # fmt: skip
        _save(figure, file, description(results))


def draw_models(results: Path, file: Path) -> None:
    """Writes the picture of every model's own policy, one beside the other."""
    from matplotlib.figure import Figure

    models = points_of_models(results)
    with _style():
        figure = Figure(figsize=(4.6 * len(models), 3.9), layout="constrained")
        figure.supxlabel("mean cost of a query, in multiples of the in-context answer", size="medium")
        for axes, (name, some) in zip(figure.subplots(1, len(models), squeeze=False)[0], models.items(), strict=True):
            _draw_points(axes, some)
            highest = max(point.cost for point in some)
            axes.set(title=name, ylabel="queries right, %", xlim=(-0.03 * highest, 1.8 * highest))
            axes.margins(y=0.12)
        _save(figure, file, description_of_models(results))


def _style() -> AbstractContextManager[None]:
    from matplotlib import rc_context

    return rc_context({"svg.hashsalt": "autottt", "svg.fonttype": "none", "font.size": 10})


def _draw_points(axes: Axes, some: Sequence[Point]) -> None:
    for point in some:
        axes.scatter(point.cost, 100 * point.accuracy, zorder=3, **STYLES[point.style])  # type: ignore[arg-type]
        axes.annotate(
            f"{point.label} {point.accuracy:.1%}", (point.cost, 100 * point.accuracy),
            (12, 0), textcoords="offset points", va="center",
            weight="bold" if point.style == "controller" else "normal",
        )  # fmt: skip
    axes.xaxis.set_major_formatter("{x:.0f}x")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, file: Path, numbers: str) -> None:
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Description": numbers})
