"""Rows of benchmarks as JSON lines, files of results, and intervals over families. Knows nothing about what was
measured."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
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


def resumed(file: Path, part: str, work: Callable[[], list[Row]]) -> list[Row]:
    """The rows of a part: those in the file, or measured and added to it."""
    rows = [{k: v for k, v in row.items() if k != "part"} for row in read_rows(file) if row.get("part") == part]
    if not rows:
        rows = work()
        with file.open("a", encoding="utf-8") as out:
            out.writelines(json.dumps({"part": part, **row}) + "\n" for row in rows)
    print(json.dumps(rows, indent=1), file=sys.stderr)
    return rows


def write_results(file: Path, rows: Sequence[Row], packages: Sequence[str]) -> None:
    """Prints the rows and writes them with the commit, the date, the machine and the versions of packages."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    facts = {
        "rows": rows, "commit": git.stdout.strip(), "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
        },
        "versions": {package: version(package) for package in packages},
    }  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


def percent_interval(families: Mapping[str, Sequence[float]], repeats: int = 1000) -> list[float]:
    """90% interval of the mean over queries, by bootstrap over families, in percent."""
    rng, names = random.Random(0), list(families)
    means = []
    for _ in range(repeats):
        sample = [value for name in rng.choices(names, k=len(names)) for value in families[name]]
        means.append(100 * statistics.fmean(sample))
    means.sort()
    return [round(means[int(0.05 * repeats)], 1), round(means[int(0.95 * repeats)], 1)]
