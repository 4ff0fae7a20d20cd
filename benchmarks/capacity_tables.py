"""The tables of docs/capacity.md: what one process answers, and how many processes a number of queries needs.

`make docs` runs it. Everything follows from the rows that benchmarks/serving_capacity.py has written into
benchmarks/results/serve.json; knows nothing about how they were measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUSY = 0.7
"""Share of its time in which a process may be busy, so that queries do not wait long."""
RATES = (1, 10, 1000)
"""Queries a second."""
SHARES = {"none": 0.0, "1 in 8": 0.125, "all": 1.0}
"""Share of hard queries."""
LAYOUTS = {"two threads": 1, "one thread": 2}
"""Threads of a process -> processes on two cores."""
MEMORY_CACHE, FOLDER = 1 << 27, 1 << 30
"""Bytes of adapters in the memory of a process and in their folder (`AdapterCache`)."""
HTTP = "HTTP and scheduler, added to an easy query"


@dataclass(frozen=True)
class Capacity:
    """What was measured of a model on two cores."""

    model: str
    rates: Mapping[str, tuple[float, float]]
    """Queries a second by workload: of one process with two threads, and of two with one thread each."""
    ratios: Mapping[str, float]
    """Of those two."""
    expected: str
    """The rate of the mixture that follows from those of easy and hard queries, as its row says it."""
    megabytes: Mapping[str, float]
    """Of a process (`held`, `added`, `working`) and of an adapter (`adapter`, `file`)."""
    http: float
    """Seconds that HTTP adds to a query."""

    def parts(self, processes: int, hard: float) -> dict[str, float]:
        """Seconds for a query, by what they are spent on, in one of the processes on two cores."""
        seconds = {name: processes / both[processes - 1] for name, both in self.rates.items()}
        return {
            "answers in context": (1 - hard) * seconds["easy"], "hard queries": hard * seconds["hard"],
            "HTTP": self.http,
        }  # fmt: skip

    def processes(self, rate: float, processes: int, hard: float) -> int:
        """How many processes answer a rate, each `BUSY` of its time."""
        return math.ceil(rate * sum(self.parts(processes, hard).values()) / BUSY)


def capacity(folder: Path) -> str:
    """Both tables; nothing where they have not been measured."""
    file = folder / "serve.json"
    facts = json.loads(file.read_text("utf-8")) if file.exists() else {"rows": []}
    models = capacities(facts["rows"])
    if not models:
        return ""
    where = [f"{k} {v}" for of in ("machine", "versions") for k, v in facts[of].items()]
    made = f"`make bench-serve`, {facts['date']}, commit {facts['commit']}; {', '.join(where)}."
    return "\n".join([made, "", *measured_table(models), "", needed_heading(models), "", *needed_table(models)])


def capacities(rows: Sequence[Mapping[str, Any]]) -> list[Capacity]:
    """What the rows say of each model."""
    http = next((row["value"] for row in rows if row["name"] == HTTP), 0.0) / 1000
    models = dict.fromkeys(row["model"] for row in rows if "quantity" in row)
    found = []
    for model in models:
        of = {row["quantity"]: row for row in rows if row.get("model") == model and "quantity" in row}
        rates = {name: (row["value"], row["of_two_processes"]) for name, row in of.items() if "of_two_processes" in row}
        ratios = {name: of[f"{name}, two processes"]["value"] for name in rates}
        megabytes = {name: of[name]["value"] for name in ("held", "added", "working", "adapter")}
        megabytes["file"] = of["adapter"]["file_megabytes"]
        expected = of["mixed"]["against"].partition(" ")[0]
        found.append(Capacity(model, rates, ratios, expected, megabytes, http))
    return found


def measured_table(models: Sequence[Capacity]) -> list[str]:
    """What one process and two have answered, and what they hold."""

    def cells(name: str, each: Capacity) -> str:
        one, two = each.rates[name]
        return f"{one:.3g}; {two:.3g} ({each.ratios[name]:.2f} times)"

    def of_memory(name: str) -> list[str]:
        return [_megabytes(each.megabytes[name]) for each in models]

    lines: dict[str, Iterable[str]] = {
        "easy queries a second": (cells("easy", each) for each in models),
        "hard queries a second, 16 callers": (cells("hard", each) for each in models),
        "the same tasks again, adapters cached": (cells("cached", each) for each in models),
        "one in eight hard": (cells("mixed", each) for each in models),
        "one in eight hard, by the formula": (each.expected for each in models),
        "memory of a process after an easy answer": of_memory("held"),
        "memory that a second process adds then": of_memory("added"),
        "memory after training 16 adapters at once": of_memory("working"),
        "an adapter in memory": of_memory("adapter"),
        "an adapter in the folder": of_memory("file"),
        "adapters in 128 MiB of memory": (f"{MEMORY_CACHE / 1e6 / each.megabytes['adapter']:.0f}" for each in models),
        "adapters in a folder of 1 GiB": (f"{FOLDER / 1e6 / each.megabytes['file']:.0f}" for each in models),
    }
    head = ["measured on two cores", *(each.model for each in models)]
    return [_line(*head), _rule(len(head)), *(_line(name, *texts) for name, texts in lines.items())]


def needed_heading(models: Sequence[Capacity]) -> str:
    """What HTTP alone would allow."""
    http = models[0].http
    alone = (
        f" HTTP takes {1000 * http:.2g} ms of a query: alone it bounds a process at {1 / http:.0f} a second."
        if http
        else ""
    )
    return f"Processes that are busy for {BUSY:.0%} of their time, by the formula.{alone}"


def needed_table(models: Sequence[Capacity]) -> list[str]:
    """A line for each model, rate and share of hard queries."""
    columns = (
        "model", "queries/s", "hard", *(f"processes with {name} (cores)" for name in LAYOUTS), "memory, GB",
        "new adapters, MB/s", "most of the time goes to",
    )  # fmt: skip
    lines = [_line(*columns), _rule(len(columns))]
    for each in models:
        for rate in RATES:
            for name, hard in SHARES.items():
                counts = [each.processes(rate, processes, hard) for processes in LAYOUTS.values()]
                cores = [count * 2 // processes for count, processes in zip(counts, LAYOUTS.values(), strict=True)]
                fewest = counts[cores.index(min(cores))]
                held = each.megabytes["working" if hard else "held"]
                parts = each.parts(1, hard)
                largest = max(parts, key=lambda part: parts[part])
                lines.append(_line(
                    each.model, f"{rate:,}", name, *(f"{n:,} ({c:,})" for n, c in zip(counts, cores, strict=True)),
                    f"{fewest * held / 1000:,.1f}", f"{rate * hard * each.megabytes['file']:,.1f}",
                    f"{largest} ({parts[largest] / sum(parts.values()):.0%})",
                ))  # fmt: skip
    return lines


def _line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _rule(columns: int) -> str:
    return "|---" * columns + "|"


def _megabytes(value: float) -> str:
    return f"{value:,.0f} MB" if value >= 100 else f"{value:.3g} MB"
