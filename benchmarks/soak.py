"""Long soak: solves with faults, killed processes, and damaged inputs, until each count is reached.

    python benchmarks/soak.py solve kill inputs --minutes 30 --json runs/soak.json
    python benchmarks/soak.py --reproduce solve 1234

| part | goal | what must hold |
|---|---|---|
| `solve` | 10,000 solves with a fault at a random line | base bit-identical, modes, hooks, gradient flags and random states unchanged, locks free, the next answer that of a solve without fault |
| `kill` | 1,000 SIGKILLs of `autottt collect`, `solve --out --resume` and processes with one adapters folder | after a resumed run no row lost or doubled, rows as without kills, adapters valid, no old partial file |
| `inputs` | 10 million mutations of valid files | every exception is an `AutotttError` |

Each part resumes from its counters in the folder `--state`, also after a kill. Every case depends on its seed only.
`--coverage N` runs N inputs under coverage.py (`pip install coverage`) and reports the branch coverage of the readers.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # children are forked
SAVE_EVERY = 2.0
"""Seconds between two saves of the counters."""

from soak_state import Part, Progress  # noqa: E402


def part_of(name: str, state: Path) -> Part:
    """The part of a name; imports only what it needs."""
    if name == "solve":
        from soak_solve import SolvePart

        return SolvePart(state)
    if name == "kill":
        from soak_kill import KillPart

        return KillPart(state)
    from soak_inputs import InputsPart

    return InputsPart(state)


def soak(part: Part, file: Path, minutes: float, cases: float = math.inf) -> Progress:
    """Runs cases until the goal, the minutes or the number of cases is reached. The counters are in `file`."""
    progress = Progress.load(file)
    progress.start_run()
    begin = saved = time.monotonic()
    spent, first = progress.seconds, progress.next_seed
    while progress.counts.get(part.unit, 0) < part.goal and progress.next_seed - first < cases:
        seed = progress.next_seed
        progress.add(part.run(seed), seed)
        now = time.monotonic()
        if now - saved > SAVE_EVERY or now - begin > 60 * minutes:
            saved, progress.seconds = now, spent + now - begin
            progress.sample_memory()
            progress.save(file)
        if now - begin > 60 * minutes:
            break
    progress.seconds = spent + time.monotonic() - begin
    progress.save(file)
    return progress


def report_of(part: Part, progress: Progress) -> dict[str, Any]:
    """The counts of a part for the results file."""
    done, drift = progress.counts.get(part.unit, 0), progress.memory_drift
    return {
        "unit": part.unit,
        "done": done,
        "goal": part.goal,
        "failures": progress.counts.get("failures", 0),
        "seconds": round(progress.seconds, 1),
        "per_second": round(done / progress.seconds, 2) if progress.seconds else None,
        "memory_drift_second_half": None if drift is None else round(drift, 4),
        "counts": dict(sorted(progress.counts.items())),
        "first_failures": progress.failures[:20],
    }


def machine() -> dict[str, Any]:
    """What the rates depend on."""
    import torch

    return {
        "cpus": os.cpu_count(), "machine": platform.machine(), "system": platform.system(),
        "python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads(),
    }  # fmt: skip


def write_results(file: Path, state: Path, names: list[str]) -> None:
    """Adds the counts of the parts to a results file."""
    results: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {"parts": {}}
    results["machine"] = machine()
    for name in names:
        results["parts"][name] = report_of(part_of(name, state), Progress.load(state / f"{name}.json"))
    if (coverage := state / "coverage.json").exists():
        results["coverage"] = json.loads(coverage.read_text("utf-8"))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["solve", "kill", "inputs", []], help="default: all")
    parser.add_argument("--minutes", type=float, default=math.inf, help="time of each part")
    parser.add_argument("--cases", type=int, help="cases of each part")
    parser.add_argument("--state", type=Path, default=Path("runs/soak"))
    parser.add_argument("--json", type=Path, help="file that counts are written to")
    parser.add_argument("--reproduce", nargs=2, metavar=("PART", "SEED"))
    parser.add_argument("--coverage", type=int, metavar="N", help="branch coverage of the readers over N inputs")
    options = parser.parse_args(arguments)
    options.state.mkdir(parents=True, exist_ok=True)
    if options.reproduce:
        name, seed = options.reproduce
        case = part_of(name, options.state).run(int(seed))
        print(json.dumps({"counts": case.counts, "failures": case.failures}, indent=1))
        return int(bool(case.failures))
    if options.coverage:
        from soak_inputs import measure_coverage

        report = measure_coverage(options.state, options.coverage)
        (options.state / "coverage.json").write_text(json.dumps(report))
        print(json.dumps(report, indent=1))
    names = options.parts or ([] if options.coverage else ["solve", "kill", "inputs"])
    failures = 0
    for name in names:
        part = part_of(name, options.state)
        cases = math.inf if options.cases is None else options.cases
        progress = soak(part, options.state / f"{name}.json", options.minutes, cases)
        report = report_of(part, progress)
        print(f"{name}: {report['done']:,} of {report['goal']:,} {part.unit}, {report['failures']} failures")
        failures += report["failures"]
    if options.json:
        states = [name for name in ("solve", "kill", "inputs") if (options.state / f"{name}.json").exists()]
        write_results(options.json, options.state, states)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
