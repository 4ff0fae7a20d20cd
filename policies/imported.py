"""Outcomes that were measured elsewhere, from a table in a CSV file. Knows nothing about models of this package.

Such outcomes are of whole tasks (accuracy is a share), and have no features.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from ..ttt_core.errors import PolicyError
from .outcomes import BASE, Key, Outcome

SCALES: Mapping[str, float] = {"accuracy": 1.0, "accuracy_percent": 0.01}
"""Columns that say how many answers are right, and what makes shares of them."""
SECONDS = "_seconds"
"""What columns that add up to the cost of a strategy end with, unless there is a column `cost`."""


def import_csv(file: Path, *, in_context: str = BASE, model: str | None = None) -> list[Outcome]:
    """The outcomes in a table with columns task, seed, strategy, `accuracy` (0 to 1) or `accuracy_percent`, and `cost`
    or one or more `..._seconds`. Empty cells of seconds are 0.

    `in_context` is what the table calls answering in context; its outcomes are named `in_context`, and costs become
    multiples of its cost on the same task and seed, or on the task, where it has not that seed. `model` stands for the
    content hash of the model that answered; by default the file's name. Raises `PolicyError` naming the line that
    cannot be read.
    """
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PolicyError(f"{file}: expected a text in UTF-8 ({error})") from None
    reader = csv.DictReader(text.splitlines())
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise PolicyError(f"{file}:{reader.line_num}: not a line of a table ({error})") from None
    columns = reader.fieldnames or []
    accuracy = next((name for name in SCALES if name in columns), None)
    costs = ["cost"] if "cost" in columns else [name for name in columns if name.endswith(SECONDS)]
    if accuracy is None or not costs or not {"task", "seed", "strategy"} <= set(columns):
        raise PolicyError(
            f"{file}: expected columns task, seed, strategy, accuracy or accuracy_percent, and cost or "
            f"..._seconds; received {', '.join(columns) or 'no columns'}"
        )
    if not rows:
        raise PolicyError(f"{file}: a head and no rows")
    found: list[Outcome] = []
    places: dict[Key, str] = {}
    for number, row in rows:
        place = f"{file}:{number}"
        outcome = _outcome(place, row, accuracy, costs, in_context, model or file.stem, file.stem)
        if outcome.key in places:
            raise PolicyError(
                f"{place}: {row['strategy']} on {row['task']} with seed {row['seed']} stands in {places[outcome.key]} "
                "already; one row each"
            )
        places[outcome.key] = place
        found.append(outcome)
    units = {(o.task_id, o.seed): o.seconds for o in found if o.strategy == BASE}
    usual: dict[str, list[float]] = {}
    for (task, _), seconds in units.items():
        usual.setdefault(task, []).append(seconds)
    if lacking := sorted({o.task_id for o in found} - usual.keys()):
        names = ", ".join(sorted({o.strategy for o in found}))
        raise PolicyError(
            f"{file}: no outcome of {in_context!r} for {', '.join(lacking[:3])}{' ...' if lacking[3:] else ''}: costs "
            f"are multiples of it. Strategies in the table: {names}; say which of them answers in context: --in-context"
        )
    return [replace(o, cost=o.seconds / units.get((o.task_id, o.seed), fmean(usual[o.task_id]))) for o in found]


def _outcome(
    place: str, row: Mapping[str, str], accuracy: str, costs: Sequence[str], in_context: str, model: str, dataset: str
) -> Outcome:
    task, strategy = row["task"], row["strategy"]
    if not task or not strategy:
        raise PolicyError(f"{place}: expected a task and a strategy; received {dict(row)}")
    if strategy == BASE != in_context:
        raise PolicyError(
            f"{place}: the table has a strategy {BASE!r} already; then {in_context!r} cannot stand for it"
        )
    if empty := [name for name in ("seed", accuracy) if not row[name]] or ([] if any(map(row.get, costs)) else costs):
        raise PolicyError(f"{place}: nothing in {' or '.join(empty)}; received {', '.join(filter(None, row.values()))}")
    try:
        share = float(row[accuracy]) * SCALES[accuracy]
        spent = sum(float(row[name] or 0) for name in costs)
        seed = int(row["seed"])
    except (ValueError, TypeError) as error:
        raise PolicyError(f"{place}: expected numbers in seed, {accuracy} and {', '.join(costs)}: {error}") from None
    if not (0 <= share <= 1 and 0 < spent < math.inf):
        raise PolicyError(f"{place}: expected an accuracy of 0 to 1 and a cost above 0; received {share} and {spent}")
    return Outcome(
        task_id=task, group=task, family=task, dataset=dataset, kind="text",
        strategy=BASE if strategy == in_context else strategy, seed=seed, status="answered", correct=share,
        seconds=spent, work=0, cost=0.0, base_hash=model,
    )  # fmt: skip
