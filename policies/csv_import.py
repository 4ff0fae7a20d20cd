"""Imports outcomes that were measured elsewhere from a CSV file. Knows nothing about models of this package.

Such outcomes are of whole tasks (`correct` is the accuracy), and have no features.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from ..ttt_core.errors import PolicyError, shortened
from ..ttt_core.tasks.fields import is_utf8
from .outcome_files import Damage
from .outcomes import BASE, Key, Outcome, outcome_from

SCALES: Mapping[str, float] = {"accuracy": 1.0, "accuracy_percent": 0.01}
"""Column with the accuracy -> factor that makes it a share."""
SECONDS = "_seconds"
"""Suffix of the columns that add up to the cost of a strategy, unless there is a column `cost`."""


def import_csv(file: Path, *, in_context: str = BASE, model: str | None = None) -> list[Outcome]:
    """The outcomes in a table with columns task, seed, strategy, `accuracy` (0 to 1) or `accuracy_percent`, and `cost`
    or one or more `..._seconds`. Empty cells of seconds are 0.

    `in_context` is the table's name for answering in context, which becomes `in_context`; relative costs are multiples
    of its cost on the same task and seed, or its mean on the task if it lacks that seed. `model` is the content hash of
    the model, by default the file's name. Raises `PolicyError` naming the line and the field that is invalid.
    """
    table, rows = _read_table(file, in_context, model)
    outcomes = []
    for part in _outcomes(table, rows):
        if isinstance(part, Damage):
            raise PolicyError(
                f"{part}. Correct the line, or `autottt outcomes check {file} --mend` sets it aside; nothing was "
                "imported"
            )
        outcomes.append(part[1])
    return _with_relative_costs(file, outcomes, in_context)


def check_csv(file: Path) -> tuple[list[list[str]], list[Damage]]:
    """The header and the sound rows of a table as cells, and its damaged rows. Raises `PolicyError` for a file without
    the columns of such a table."""
    table, rows = _read_table(file, BASE, None, check_names=False)
    sound, damages = [list(table.columns)], []
    for part in _outcomes(table, rows):
        if isinstance(part, Damage):
            damages.append(part)
        else:
            sound.append(part[0].cells)
    return sound, damages


class Table(NamedTuple):
    """How the rows of a table are to be read."""

    file: Path
    dataset: str
    model: str
    columns: Sequence[str]
    in_context: str
    accuracy: str
    """Column with the accuracy."""
    costs: Sequence[str]
    """Columns that add up to the cost."""


class Row(NamedTuple):
    """A row of a table as text."""

    number: int
    """Line of the file, counted from 1, on which the row ends."""
    cells: list[str]


def _read_table(
    file: Path, in_context: str, model: str | None, *, check_names: bool = True
) -> tuple[Table, list[Row | Damage]]:
    """The columns of a CSV file, and its rows that are not blank. Bytes that are not UTF-8 become lone surrogates,
    which no outcome contains. `check_names` refuses a name of the file or model that no outcome may have."""
    try:
        text = file.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise PolicyError(f"{file}: the table cannot be read ({error.strerror})") from None
    name = file.stem if check_names else "table"
    if not is_utf8(name + (model or "")):
        raise PolicyError(
            f"{shortened(model or name)}: expected names of the file and the model that can be written as UTF-8; "
            "rename the file, or name the model with --name"
        )
    columns, rows = _rows(file, text)
    accuracy = next((column for column in SCALES if column in columns), None)
    costs = ["cost"] if "cost" in columns else [column for column in columns if column.endswith(SECONDS)]
    if accuracy is None or not costs or not {"task", "seed", "strategy"} <= set(columns):
        raise PolicyError(
            f"{file}: expected columns, separated by commas, with the names task, seed, strategy, accuracy or "
            f"accuracy_percent, and cost or ..._seconds; received {', '.join(map(repr, columns)) or 'no columns'}"
        )
    if twice := [column for column in columns if columns.count(column) > 1]:
        raise PolicyError(f"{file}: expected one column of each name; received {shortened(twice[0])} twice")
    if not rows:
        raise PolicyError(f"{file}: a header and no rows")
    return Table(file, name, model or name, columns, in_context, accuracy, costs), rows


def _rows(file: Path, text: str) -> tuple[list[str], list[Row | Damage]]:
    """The cells of the header, and those of each row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""))
    columns: list[str] | None = None
    rows: list[Row | Damage] = []
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            rows.append(Damage(file, reader.line_num, f"not a line of a table ({error})"))
            continue
        if cells is None:
            return columns or [], rows
        if not cells:
            continue
        if columns is None:
            columns = cells
        else:
            rows.append(Row(reader.line_num, cells))


def _outcomes(table: Table, rows: Sequence[Row | Damage]) -> Iterator[tuple[Row, Outcome] | Damage]:
    """Each row with its outcome, without the relative cost, or what is wrong with the row."""
    lines: dict[Key, int] = {}
    for row in rows:
        if isinstance(row, Damage):
            yield row
            continue
        try:
            outcome = _from_row(row.cells, table)
        except ValueError as error:
            yield Damage(table.file, row.number, str(error))
            continue
        before = lines.setdefault(outcome.key, row.number)
        if before == row.number:
            yield row, outcome
        else:
            name = f"{outcome.strategy} on {outcome.task_id} with seed {outcome.seed}"
            yield Damage(table.file, row.number, f"{name} is in line {before} as well; expected one row each")


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
    outcomes_with_costs = []
    for o in outcomes:
        try:
            unit = units.get((o.task_id, o.seed)) or fmean(by_task[o.task_id])
            outcomes_with_costs.append(outcome_from({**vars(o), "relative_cost": o.seconds / unit}))
        except (ValueError, OverflowError):
            raise PolicyError(
                f"{file}: the cost of {o.strategy} on {o.task_id} with seed {o.seed} is no finite multiple of that of "
                f"{in_context!r}; correct the costs"
            ) from None
    return outcomes_with_costs


def _from_row(cells: Sequence[str], table: Table) -> Outcome:
    """The outcome in a row, without its relative cost. Raises `ValueError` naming the field."""
    if len(cells) != len(table.columns):
        raise ValueError(
            f"expected {len(table.columns)} cells ({', '.join(table.columns)}); received {len(cells)}: "
            f"{shortened(', '.join(cells))}"
        )
    row = dict(zip(table.columns, cells, strict=True))
    task, strategy, accuracy, costs = row["task"], row["strategy"], table.accuracy, table.costs
    if not task or not strategy:
        raise ValueError(f"expected a task and a strategy; received {shortened(', '.join(cells))}")
    if strategy == BASE != table.in_context:
        raise ValueError(f"the table has a strategy {BASE!r} already, so {table.in_context!r} cannot be named {BASE!r}")
    if empty := [name for name in ("seed", accuracy) if not row[name]] or ([] if any(map(row.get, costs)) else costs):
        raise ValueError(f"{' or '.join(empty)} is empty; received {shortened(', '.join(filter(None, cells)))}")
    try:
        if any("_" in row[name] for name in ("seed", accuracy, *costs)):  # Python's separator of digits
            raise ValueError
        share = float(row[accuracy]) * SCALES[accuracy]
        parts = [float(row[name] or 0) for name in costs]
        seed = int(row["seed"])
    except ValueError:
        received = ", ".join(shortened(row[name]) for name in ("seed", accuracy, *costs))
        raise ValueError(f"expected numbers in seed, {accuracy} and {', '.join(costs)}; received {received}") from None
    seconds = sum(parts)
    if not (0 <= share <= 1 and min(parts) >= 0 and 0 < seconds < math.inf):
        received = f"{share} and {' + '.join(map(str, parts))}"
        raise ValueError(
            f"expected an accuracy of 0 to 1, and a cost above 0 without negative parts; received {received}"
        )
    return outcome_from({
        "task_id": task, "group": task, "family": task, "dataset": table.dataset, "kind": "text",
        "strategy": BASE if strategy == table.in_context else strategy, "seed": seed, "status": "answered",
        "correct": share, "seconds": seconds, "token_equivalents": 0, "relative_cost": 0.0, "base_hash": table.model,
    })  # fmt: skip
