"""Long soak: solves with faults, killed processes, and damaged inputs, until each count is reached.

    python benchmarks/soak.py solve kill inputs --minutes 30 --json runs/soak.json
    python benchmarks/soak.py --report --json runs/soak.json
    python benchmarks/soak.py --reproduce solve 1234

| part | goal | what must hold |
|---|---|---|
| `solve` | 10,000 solves with a fault at a random line | base bit-identical, modes, hooks, gradient flags and random states unchanged, locks free, the next answer that of a solve without fault |
| `kill` | 1,000 SIGKILLs of `autottt collect`, `solve --out --resume` and processes that share adapters, a store or an --out | after a resumed run no row lost or doubled, rows as without kills, adapters valid, no old partial file |
| `inputs` | 10 million mutations of valid files, 1 in 181 of them binary or a template | every exception is an `AutotttError`, raised within a second |

Each part resumes from its counters in the folder `--state`, also after a kill. Every case depends on its seed only.
`--report` runs nothing and writes the counts. `--resolve PART SEED TEXT` notes what was changed after a failure.
`--coverage N` runs N blocks of inputs under coverage.py (`pip install coverage`) and reports the branch coverage of the
readers.
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
os.environ.setdefault("OMP_NUM_THREADS", "1")
SAVE_EVERY, SHOW_EVERY = 2.0, 60.0
"""Seconds between two saves, and between two lines of progress."""
PARTS = ("solve", "kill", "inputs")

from soak_state import Part, Progress, read_notes, write_note  # noqa: E402


def class_of(name: str) -> type[Part]:
    """The class of a part; imports only what it needs."""
    if name == "solve":
        from soak_solve import SolvePart

        return SolvePart
    if name == "kill":
        from soak_kill import KillPart

        return KillPart
    from soak_inputs import InputsPart

    return InputsPart


def soak(part: Part, file: Path, minutes: float, cases: float = math.inf) -> Progress:
    """Runs cases until the goal, the minutes or the number of cases is reached. The counters are in `file`."""
    progress = Progress.load(file)
    progress.start_run()
    begin = saved = shown = time.monotonic()
    spent, first = progress.seconds, progress.next_seed
    while progress.counts.get(part.unit, 0) < part.goal and progress.next_seed - first < cases:
        seed = progress.next_seed
        progress.add(part.run(seed), seed)
        now = time.monotonic()
        progress.seconds = spent + now - begin
        if now - saved > SAVE_EVERY:
            saved = now
            progress.sample_memory()
            progress.save(file)
        if now - shown > SHOW_EVERY:
            shown = now
            print(progress.line(part), flush=True)
        if now - begin > 60 * minutes:
            break
    progress.seconds = spent + time.monotonic() - begin
    progress.save(file)
    return progress


def report_of(part: type[Part] | Part, progress: Progress, notes: dict[str, str]) -> dict[str, Any]:
    """The counts of a part for the results file, with what was changed after each failure."""
    done, drift = progress.counts.get(part.unit, 0), progress.memory_drift
    return {
        "unit": part.unit,
        "done": done,
        "goal": part.goal,
        "failures": progress.counts.get("failures", 0),
        "unresolved_failures": progress.unresolved(notes),
        "seconds": round(progress.seconds, 1),
        "per_second": round(done / progress.seconds, 2) if progress.seconds else None,
        "memory_drift_second_half": None if drift is None else round(drift, 4),
        "counts": dict(sorted(progress.counts.items())),
        "first_failures": [f | {"resolved": notes.get(str(f["seed"]))} for f in progress.failures[:40]],
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
        progress = Progress.load(state / f"{name}.json")
        results["parts"][name] = report_of(class_of(name), progress, read_notes(state, name))
    if (coverage := state / "coverage.json").exists():
        results["coverage"] = json.loads(coverage.read_text("utf-8"))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--minutes", type=float, default=math.inf, help="time of each part")
    parser.add_argument("--cases", type=int, help="cases of each part")
    parser.add_argument("--state", type=Path, default=Path("runs/soak"))
    parser.add_argument("--json", type=Path, help="file that counts are written to")
    parser.add_argument("--reproduce", nargs=2, metavar=("PART", "SEED"))
    parser.add_argument("--resolve", nargs=3, metavar=("PART", "SEED", "TEXT"), help="note what was changed")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--coverage", type=int, metavar="N", help="branch coverage over N blocks of inputs")
    options = parser.parse_args(arguments)
    options.state.mkdir(parents=True, exist_ok=True)
    if options.reproduce:
        name, seed = options.reproduce
        case = class_of(name)(options.state).run(int(seed))
        print(json.dumps({"counts": case.counts, "failures": case.failures}, indent=1))
        return int(bool(case.failures))
    if options.coverage:
        from soak_inputs import measure_coverage

        report = measure_coverage(options.state, options.coverage)
        (options.state / "coverage.json").write_text(json.dumps(report))
        print(json.dumps(report, indent=1))
    if options.resolve:
        write_note(options.state, *options.resolve)
    idle = options.coverage or options.report or options.resolve
    failures = 0
    for name in options.parts or ([] if idle else PARTS):
        part = class_of(name)(options.state)
        cases = math.inf if options.cases is None else options.cases
        progress = soak(part, options.state / f"{name}.json", options.minutes, cases)
        print(progress.line(part), flush=True)
        failures += progress.unresolved(read_notes(options.state, name))
    if options.json:
        write_results(options.json, options.state, [n for n in PARTS if (options.state / f"{n}.json").exists()])
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
