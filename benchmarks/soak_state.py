"""The state of a soak: counters, failures and samples of memory in a small JSON file that a killed run resumes from.

Knows nothing about what is run.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

MAX_SAMPLES = 400
MAX_FAILURES = 200


@dataclass
class Case:
    """What one case did."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class Part(Protocol):
    """One part of the soak."""

    name: str
    goal: int
    unit: str
    """The count that the goal is for."""

    def __init__(self, state: Path) -> None: ...

    def run(self, seed: int) -> Case:
        """Runs the case of a seed."""
        ...


@dataclass
class Progress:
    """The counters of one part over all its runs."""

    next_seed: int = 0
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    """Seed and description of the first `MAX_FAILURES`; the count `failures` has all."""
    memory: list[list[float]] = field(default_factory=list)
    """Resident memory in MB, a list for each run."""
    stride: int = 1
    """Saves between two samples of the last run."""
    saves: int = 0

    @classmethod
    def load(cls, file: Path) -> Progress:
        """The progress in a file, or none yet."""
        return cls(**json.loads(file.read_text("utf-8"))) if file.exists() else cls()

    def save(self, file: Path) -> None:
        """Writes the file atomically."""
        partial = file.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(asdict(self)))
        os.replace(partial, file)

    def start_run(self) -> None:
        """Starts the memory samples of another process."""
        self.memory = [*[samples for samples in self.memory if len(samples) > 1][-8:], []]
        self.stride, self.saves = 1, 0

    def add(self, case: Case, seed: int) -> None:
        """Counts a case."""
        self.next_seed = seed + 1
        counts = Counter(self.counts) + case.counts + Counter(cases=1, failures=len(case.failures))
        self.counts = dict(counts)
        room = MAX_FAILURES - len(self.failures)
        self.failures += [{"seed": seed, "what": what} for what in case.failures[:room]]

    def unresolved(self, notes: dict[str, str]) -> int:
        """Failures whose seed has no note."""
        return self.counts.get("failures", 0) - sum(str(failure["seed"]) in notes for failure in self.failures)

    def line(self, part: Part) -> str:
        """The counts in a line."""
        done, drift = self.counts.get(part.unit, 0), self.memory_drift
        rate = f"{done / self.seconds:.2f} a second" if self.seconds else "none yet"
        memory = "" if drift is None else f", memory {drift:+.1%} in the second half"
        failures = self.counts.get("failures", 0)
        return f"{part.name}: {done:,} of {part.goal:,} {part.unit} ({rate}), {failures} failures{memory}"

    def sample_memory(self) -> None:
        """Adds a sample of the resident memory; a long run keeps every second, fourth, ... of them."""
        self.saves += 1
        if self.saves % self.stride:
            return
        self.memory[-1].append(resident_megabytes())
        if len(self.memory[-1]) > MAX_SAMPLES:
            self.memory[-1] = self.memory[-1][1::2]
            self.stride *= 2

    @property
    def memory_drift(self) -> float | None:
        """Change of the resident memory over the second half of the run with most samples, as a share: the mean of its
        last quarter over that of its first, minus 1. None for fewer than 16 samples."""
        samples = max(self.memory, key=len, default=[])
        half = samples[len(samples) // 2 :]
        quarter = len(half) // 4
        return fmean(half[-quarter:]) / fmean(half[:quarter]) - 1 if quarter >= 2 else None


def read_notes(state: Path, part: str) -> dict[str, str]:
    """Seed of a failure -> what was changed after it. In a file of its own, so that a note survives a run under way."""
    file = state / f"{part}.notes.json"
    notes: dict[str, str] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return notes


def write_note(state: Path, part: str, seed: str, text: str) -> None:
    """Adds a note."""
    (state / f"{part}.notes.json").write_text(json.dumps(read_notes(state, part) | {seed: text}, indent=1))


def resident_megabytes() -> float:
    """Resident memory of this process; 0 where the system has no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
