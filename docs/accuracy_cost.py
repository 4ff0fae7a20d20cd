"""Draws docs/accuracy_cost.svg from benchmarks/results/policy.json: accuracy against cost. `make docs` calls it.

Knows nothing about how the numbers were measured. The drawing is the same for the same numbers; they stand in its
description, by which a test compares it, since another version of matplotlib draws the same figure in other bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

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


def description(results: Path) -> str:
    """The numbers of the drawing in one line."""
    return "; ".join(f"{p.label}: {p.accuracy:.1%} at {p.cost:.0f}x" for p in points(results))


def draw(results: Path, file: Path) -> None:
    """Writes the picture."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "autottt", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(7.2, 3.9), layout="constrained")
        axes = figure.subplots()
        for point in points(results):
            axes.scatter(point.cost, 100 * point.accuracy, zorder=3, **STYLES[point.style])  # type: ignore[arg-type]
            axes.annotate(
                f"{point.label} {point.accuracy:.1%}", (point.cost, 100 * point.accuracy),
                (12, 0), textcoords="offset points", va="center",
                weight="bold" if point.style == "controller" else "normal",
            )  # fmt: skip
        axes.xaxis.set_major_formatter("{x:.0f}x")
        axes.set(
            xlabel="mean cost of a query, in multiples of the in-context answer", ylabel="queries right, %",
            xlim=(-5, 340), ylim=(27, 55),
        )  # fmt: skip
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        metadata = {"Date": None, "Creator": None, "Description": description(results)}
        figure.savefig(file, format="svg", metadata=metadata)
