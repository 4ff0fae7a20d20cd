"""Plots accuracy against pre-training tokens, from the released versions, and loss against parameters, from the trials.

    python benchmarks/curve.py docs/scaling.svg

Reads benchmarks/results/versions.json and pretrain_trials.json. For each set it prints the slope of a line fitted to
accuracy against the logarithm of the tokens, and the tokens at which the line reaches the goal. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
GOALS = {"arc_1d": 60.0, "list_functions_rule": 60.0, "mini_arc": 30.0, "concept_arc": 30.0}
"""Percent of queries right, by the best strategy."""
BY_SIZE = ("small", "middle", "base", "large")


def line(rows: Sequence[dict[str, Any]]) -> tuple[float, float] | None:
    """A line fitted to the versions: percent at a million tokens, and its slope per factor of ten; None below two."""
    if len(rows) < 2:
        return None
    slope, start = np.polyfit([math.log10(r["tokens_millions"]) for r in rows], [r["value"] for r in rows], 1)
    return float(start), float(slope)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    versions = json.loads((RESULTS / "versions.json").read_text())["rows"]
    trials = json.loads((RESULTS / "pretrain_trials.json").read_text())["rows"]
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, name in enumerate(dict.fromkeys(r["set"] for r in versions)):
        for strategy, style in (("in_context", "o-"), ("ttt_augmented", "s--")):
            rows = [r for r in versions if (r["set"], r["strategy"]) == (name, strategy)]
            if not rows:
                continue
            label = name if strategy == "in_context" else None
            tokens_millions = [r["tokens_millions"] for r in rows]
            left.plot(tokens_millions, [r["value"] for r in rows], style, color=f"C{number}", label=label)
            if (fit := line(rows)) is None:
                continue
            start, slope = fit
            text = f"{name:<22}{strategy:<16}{slope:6.1f} points for ten times the tokens"
            if name in GOALS and slope > 0 and rows[-1]["value"] < GOALS[name]:
                tokens = 10 ** ((GOALS[name] - start) / slope)
                text += f"; {GOALS[name]:g}% at about {tokens:,.0f} million (extrapolated)"
            print(text)
    left.set(xlabel="pre-training tokens (millions)", ylabel="% of queries right", xscale="log", ylim=(0, 100))
    left.legend(fontsize="x-small", title="in context; dashed: ttt_augmented")
    by_size = [
        next(r for r in trials if r["variant"] == name) for name in BY_SIZE if any(r["variant"] == name for r in trials)
    ]
    for domain in ("lists", "rows", "grids", "strings", "all"):
        right.plot([r["parameters"] / 1e6 for r in by_size], [r[f"{domain}_nats"] for r in by_size], "o-", label=domain)
    right.set(
        xlabel=f"parameters (millions), {by_size[0]['tokens'] / 1e6:.1f}M tokens each",
        ylabel="loss of an answer (nats)", xscale="log",
    )  # fmt: skip
    right.legend(fontsize="x-small")
    figure.savefig(options.picture)


if __name__ == "__main__":
    main()
