"""Imports outcomes that were measured elsewhere from a CSV file. Knows nothing about models of this package.

Such outcomes are of whole tasks (`correct` is the accuracy), and have no features.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from ..ttt_core.errors import PolicyError
from .outcomes import BASE, Key, Outcome

SCALES: Mapping[str, float] = {"accuracy": 1.0, "accuracy_percent": 0.01}
"""Column with the accuracy -> factor that makes it a share."""
SECONDS = "_seconds"
"""Suffix of the columns that add up to the cost of a strategy, unless there is a column `cost`."""


def import_csv(file: Path, *, in_context: str = BASE, model: str | None = None) -> list[Outcome]:
    """The outcomes in a table with columns task, seed, strategy, `accuracy` (0 to 1) or `accuracy_percent`, and `cost`
    or one or more `..._seconds`. Empty cells of seconds are 0.

    `in_context` is the table's name for answering in context, which becomes `in_context`; relative costs are multiples
    of its cost on the same task and seed, or its mean on the task if it lacks that seed. `model` is the content hash of
    the model, by default the file's name. Raises `PolicyError` naming the line that is invalid.
    """
    columns, rows = _read_table(file)
    accuracy = next((name for name in SCALES if name in columns), None)
    costs = ["cost"] if "cost" in columns else [name for name in columns if name.endswith(SECONDS)]
    if accuracy is None or not costs or not {"task", "seed", "strategy"} <= set(columns):
        raise PolicyError(
            f"{file}: expected columns task, seed, strategy, accuracy or accuracy_percent, and cost or "
            f"..._seconds; received {', '.join(columns) or 'no columns'}"
        )
    if not rows:
        raise PolicyError(f"{file}: a header and no rows")
    table = Table(file.stem, model or file.stem, in_context, accuracy, costs)
    outcomes: list[Outcome] = []
    places: dict[Key, str] = {}
    for number, row in rows:
        place = f"{file}:{number}"
        outcome = _from_row(place, row, table)
        if outcome.key in places:
            raise PolicyError(
                f"{place}: {row['strategy']} on {row['task']} with seed {row['seed']} is in {places[outcome.key]} as "
                "well; expected one row each"
            )
        places[outcome.key] = place
        outcomes.append(outcome)
    return _with_relative_costs(file, outcomes, in_context)


class Table(NamedTuple):
    """How the rows of a table are to be read."""

    dataset: str
    model: str
    in_context: str
    accuracy: str
    """Column with the accuracy."""
    costs: Sequence[str]
    """Columns that add up to the cost."""


def _read_table(file: Path) -> tuple[Sequence[str], list[tuple[int, dict[str, str]]]]:
    """The columns of a CSV file, and its rows with their line numbers."""
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PolicyError(f"{file}: expected a text in UTF-8 ({error})") from None
    reader = csv.DictReader(text.splitlines())
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise PolicyError(f"{file}:{reader.line_num}: not a line of a table ({error})") from None
    return reader.fieldnames or [], rows


def _with_relative_costs(file: Path, outcomes: Sequence[Outcome], in_context: str) -> list[Outcome]:
    """The outcomes with costs as multiples of the in-context cost."""
    units = {(o.task_id, o.seed): o.seconds for o in outcomes if o.strategy == BASE}
    by_task: dict[str, list[float]] = {}
    for (task, _), seconds in units.items():
        by_task.setdefault(task, []).append(seconds)
    if missing := sorted({o.task_id for o in outcomes} - by_task.keys()):
        names = ", ".join(sorted({o.strategy for o in outcomes}))
        raise PolicyError(
            f"{file}: no outcome of {in_context!r} for {', '.join(missing[:3])}{' ...' if missing[3:] else ''}: costs "
            f"are multiples of its cost. Strategies in the table: {names}; name the in-context one with --in-context"
        )
    return [
        replace(o, relative_cost=o.seconds / units.get((o.task_id, o.seed), fmean(by_task[o.task_id])))
        for o in outcomes
    ]


def _from_row(place: str, row: Mapping[str, str], table: Table) -> Outcome:
    """The outcome in a row, without its relative cost."""
    task, strategy, accuracy, costs = row["task"], row["strategy"], table.accuracy, table.costs
    if not task or not strategy:
        raise PolicyError(f"{place}: expected a task and a strategy; received {dict(row)}")
    if strategy == BASE != table.in_context:
        raise PolicyError(
            f"{place}: the table has a strategy {BASE!r} already, so {table.in_context!r} cannot be named {BASE!r}"
        )
    if empty := [name for name in ("seed", accuracy) if not row[name]] or ([] if any(map(row.get, costs)) else costs):
        raise PolicyError(f"{place}: {' or '.join(empty)} is empty; received {', '.join(filter(None, row.values()))}")
    try:
        share = float(row[accuracy]) * SCALES[accuracy]
        seconds = sum(float(row[name] or 0) for name in costs)
        seed = int(row["seed"])
    except (ValueError, TypeError) as error:
        raise PolicyError(f"{place}: expected numbers in seed, {accuracy} and {', '.join(costs)}: {error}") from None
    if not (0 <= share <= 1 and 0 < seconds < math.inf):
        raise PolicyError(f"{place}: expected an accuracy of 0 to 1 and a cost above 0; received {share} and {seconds}")
    return Outcome(
        task_id=task, group=task, family=task, dataset=table.dataset, kind="text",
        strategy=BASE if strategy == table.in_context else strategy, seed=seed, status="answered", correct=share,
        seconds=seconds, token_equivalents=0, relative_cost=0.0, base_hash=table.model,
    )  # fmt: skip
