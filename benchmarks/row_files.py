"""Rows of benchmarks as JSON lines, and intervals over families. Knows nothing about what was measured."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_rows(file: Path) -> list[Row]:
    """The rows of a file, none where there is no file; a line that an interruption left incomplete is skipped."""
    rows = []
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def percent_interval(families: Mapping[str, Sequence[float]], repeats: int = 1000) -> list[float]:
    """90% interval of the mean over queries, by bootstrap over families, in percent."""
    rng, names = random.Random(0), list(families)
    means = []
    for _ in range(repeats):
        sample = [value for name in rng.choices(names, k=len(names)) for value in families[name]]
        means.append(100 * statistics.fmean(sample))
    means.sort()
    return [round(means[int(0.05 * repeats)], 1), round(means[int(0.95 * repeats)], 1)]
