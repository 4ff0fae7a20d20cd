"""Start-up: seconds until the package is imported, and until an early error is shown; run by `make bench-startup`.

    python benchmarks/startup.py --json benchmarks/results/startup.json [--quick]

Every command runs in a new process, all of them once per round, so that other load on the machine affects all alike.
Values are ratios of medians over the rounds. Writes rows {"name", "value", "unit", "against", "goal", "holds"} with the
seconds, machine, versions, commit and date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

TASK = {"demonstrations": [{"input": [1, 2], "output": [2, 1]}], "query": [3, 4]}
MAIN = "from autottt.controller.cli.main import main; main()"
TORCH, BOTH, CONTROLLER = "import torch", "import torch, transformers", "from autottt import Controller"
COMMANDS: dict[str, list[str]] = {
    TORCH: [TORCH],
    BOTH: [BOTH],
    CONTROLLER: ["from autottt import Controller"],
    "autottt --help": [MAIN, "--help"],
    "autottt solve nofile.jsonl": [MAIN, "solve", "nofile.jsonl"],
    "autottt solve --budget soon": [MAIN, "solve", "tasks.jsonl", "--budget", "soon"],
    "autottt solve --out nodir/a.jsonl": [MAIN, "solve", "tasks.jsonl", "--out", "nodir/a.jsonl"],
}
"""What is run with `python -c`."""


def seconds(words: list[str], folder: str) -> float:
    """Wall-clock seconds of one process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", *words], cwd=folder, capture_output=True, check=False)
    return time.perf_counter() - began


def row(name: str, medians: dict[str, float], against: str, goal: float) -> dict[str, object]:
    value = medians[name] / medians[against]
    return {
        "name": name, "value": round(value, 3), "unit": "times", "against": against, "goal": goal,
        "holds": value <= goal, "seconds": round(medians[name], 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the rows")
    parser.add_argument("--quick", action="store_true", help="two rounds instead of seven")
    options = parser.parse_args()
    runs: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tasks.jsonl").write_text(json.dumps(TASK) + "\n")
        for index in range(3 if options.quick else 8):
            for name, words in COMMANDS.items():
                elapsed = seconds(words, folder)
                if index:  # the first round fills the file cache
                    runs[name].append(elapsed)
            print(f"round {index} done", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in runs.items()}
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    facts = {
        "rows": [row(CONTROLLER, medians, BOTH, 1.2), *(row(n, medians, TORCH, 1.0) for n in list(COMMANDS)[3:])],
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "rounds": len(runs[TORCH]), "commit": git.stdout.strip(), "date": datetime.now(UTC).date().isoformat(),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("torch", "transformers", "autottt")},
    }  # fmt: skip
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts["rows"], indent=1))


if __name__ == "__main__":
    main()
