"""Measures strategies and the controller side by side on files of tasks whose answers are known.

Knows nothing about the command line. Every row is kept, so that an interrupted evaluation continues.
"""

from __future__ import annotations

import json
import logging
import math
import platform
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import MISSING, asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from ..policies.calibration import Calibrates, Calibration
from ..policies.policy import Policy
from ..strategies.base import Attempt, Strategy, recipe_for, run
from ..strategies.registry import get_strategy, plugin_proofs
from ..ttt_core import clock
from ..ttt_core.errors import BaseChangedError, FileError, StrategyError, TaskError, TooLongError, shortened
from ..ttt_core.file_writing import explained
from ..ttt_core.learner import Learner
from ..ttt_core.standard_json import dumps
from ..ttt_core.tasks.answers import is_right
from ..ttt_core.tasks.fields import MAX_SEED, is_utf8
from ..ttt_core.tasks.task import Task, content_digest
from .controller import Controller
from .events import CallbackErrors, OnEvent, step_facts
from .run_facts import different_settings, outcome_settings

CONTROLLER = "controller"
"""The name that stands for the controller's own choice, beside the strategies' names."""


@dataclass(frozen=True)
class Row:
    """One strategy on one query."""

    dataset: str
    family: str
    group: str
    id: str
    strategy: str
    right: bool
    status: str
    """`answered`, `unreadable`, `failed` or `no_answer`; `refused` where the task is over-long, `inapplicable` where it
    has too few demonstrations for the strategy. All but the first count as wrong."""
    chosen: str
    """The strategy whose answer it is."""
    adapted: bool
    seconds: float
    work: int
    """Forward-token equivalents: forward tokens and twice the backward tokens."""
    error: str = ""
    second: bool = False
    """Wrong, but the second of the answers that were voted for is right: ARC allows two attempts."""
    digest: str = ""
    """What was asked (see `Task.digest`); empty in files of earlier versions."""
    expected: str = ""
    """Digest of the right answer and of how answers are compared; empty in files of earlier versions."""
    calibration: str = ""
    """What a policy that calibrates itself had observed when the query was answered (`Calibration`, as JSON)."""


@dataclass(frozen=True)
class Summary:
    """One strategy on one data set."""

    dataset: str
    strategy: str
    query_accuracy: float
    """Share of queries answered right, 0 to 1."""
    task_accuracy: float
    """Share of tasks with every query answered right, 0 to 1."""
    queries: int
    tasks: int
    seconds: float
    cost: float | None
    """Seconds, as a multiple of those of `in_context`, on the queries that both could try in the same run; None where
    there are none."""
    work: float | None
    """Forward-token equivalents, as the same multiple: free of the machine's noise."""
    adapted: float
    """Share of queries that were answered by, or after, training; 0 to 1."""
    refused: int
    """Queries that were over-long."""
    inapplicable: int
    """Queries with too few demonstrations for the strategy."""


def evaluate(
    controller: Controller,
    tasks: Sequence[Task],
    names: Sequence[str],
    *,
    seed: int = 0,
    file: Path | None = None,
    on_row: Callable[[Row], None] | None = None,
    on_event: OnEvent | None = None,
) -> list[Row]:
    """Rows for every query and strategy; `in_context` is always measured, since costs are multiples of it.

    Queries of one task come one after the other and share the task's adapter, which its first query pays for; where the
    controller chooses what a strategy before it has trained, it pays as much and nothing is trained twice. `on_event`
    receives phases and training steps (see `Controller.stream`). Rows are added to `file` as they come, after a line
    with the settings; those that it holds are not measured again, unless it lacks the strategy's row of another query
    of the task: a later row counts in place of an earlier one. Raises `TaskError` when an answer is not known, or when
    the file holds rows of other settings or other queries, and `StrategyError` for a name that is not known. A policy
    that calibrates itself continues with what it had observed.
    """
    _require_answers(tasks)
    wanted = list(dict.fromkeys(["in_context", *names]))
    for name in wanted:
        if name != CONTROLLER:
            get_strategy(name)
    settings = settings_of(controller, seed)
    done = _done(file, settings, tasks) if file else {}
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(f"{task.dataset}/{task.group}", []).append(task)
    rows = []
    errors = CallbackErrors()
    on_event = errors.watch_events(on_event)
    with errors, file.open("a", encoding="utf-8") if file else nullcontext() as stream:
        if file and stream and file.stat().st_size and not file.read_bytes().endswith(b"\n"):
            print(file=stream)  # ends the line that an interruption tore
        if file and stream and read_settings(file) is None and not done:
            _add_line(stream, file, {"settings": settings})
        for group in groups.values():
            controller.learner.clear()
            for name in wanted:
                controller.learner.reset_charges()
                known = [done.get((name, task.id)) for task in group]
                complete = None not in known  # the rows share an adapter, so their costs belong to one run
                for task, row in zip(group, known, strict=True):
                    if row is None or not complete:
                        row = _row(controller, task, name, seed, on_event)
                        if stream is not None and file is not None:
                            _add_line(stream, file, asdict(row))
                    elif row.calibration and isinstance(controller.policy, Calibrates):
                        controller.policy.restore(Calibration.from_plain(json.loads(row.calibration)))
                    rows.append(row)
                    if on_row is not None:
                        on_row(row)
    return rows


def _add_line(stream: TextIO, file: Path, values: Mapping[str, Any]) -> None:
    """Adds a line to the file of rows. Raises `FileError` where it cannot be written."""
    try:
        with explained(
            file, "free space on its disk; the file keeps the rows so far, and --resume continues after them"
        ):
            print(dumps(values), file=stream, flush=True)
    except FileError:
        with suppress(OSError):  # closing tries to write the rest of the line
            stream.close()
        raise


def _require_answers(tasks: Sequence[Task]) -> None:
    """Raises `TaskError` for a task whose answer is not known."""
    for task in tasks:
        if task.answer is None:
            raise TaskError(
                f"{task.id}: evaluating needs the right answer of every query; this one has none (use solve)"
            )


def settings_of(controller: Controller, seed: int) -> dict[str, Any]:
    """What rows depend on beside the tasks."""
    return {"seed": seed, **outcome_settings(controller.learner, controller.policy, controller.budget)}


def _expected(task: Task) -> str:
    return content_digest([task.answer, task.comparison])


def _done(file: Path, settings: Mapping[str, Any], tasks: Sequence[Task]) -> dict[tuple[str, str], Row]:
    """The rows that a file holds. Raises `TaskError` when they do not go together with those to come."""
    begun = read_settings(file)
    if begun is not None and (different := different_settings(begun, settings)):
        raise TaskError(
            f"{file} was started with other settings ({different}): continue with the same options, or remove the file "
            "to start again"
        )
    if begun is not None and (unknown := sorted(settings.keys() - begun.keys())):
        logging.getLogger("autottt").warning(
            "%s was written by an earlier version, which did not note %s: they are taken to be the same",
            file, ", ".join(unknown),
        )  # fmt: skip
    rows, by_id = read_rows(file), {task.id: task for task in tasks}
    for row in rows:
        task = by_id.get(row.id)
        if task is None:
            continue
        same_place = (row.dataset, row.family, row.group) == (task.dataset, task.family, task.group)
        if not same_place or row.digest not in ("", task.digest) or row.expected not in ("", _expected(task)):
            raise TaskError(
                f"{file} holds a row of another query called {row.id!r}, or of one with another right answer: continue "
                "with the same files and options, or remove it to start again"
            )
    return {(row.strategy, row.id): row for row in rows}


def _row(controller: Controller, task: Task, name: str, seed: int, on_event: OnEvent | None) -> Row:
    common: dict[str, Any] = {n: getattr(task, n) for n in ("dataset", "family", "group", "id", "digest")}
    common |= {"strategy": name, "expected": _expected(task)}
    try:
        if name == CONTROLLER:
            result = controller.solve(task, seed=seed, on_event=on_event)
            return Row(
                **common, right=bool(result.right), status=result.status, chosen=result.strategy,
                adapted=result.adapted, seconds=result.cost.seconds, work=result.cost.token_equivalents,
                error=result.error,
                second=bool(result.attempts) and _second_is_right(result.attempts[-1], task),
                calibration=_observed(controller.policy),
            )  # fmt: skip
        with plugin_proofs(controller.learner):
            attempt = _attempt(get_strategy(name), controller.learner, task, seed, on_event)
            controller.learner.verify()
        return Row(
            **common, right=is_right(task, attempt.value), status=attempt.status, chosen=name,
            adapted=attempt.training_record is not None, seconds=attempt.cost.seconds,
            work=attempt.cost.token_equivalents,
            error=attempt.error, second=_second_is_right(attempt, task),
        )  # fmt: skip
    except BaseChangedError:
        raise
    except (TooLongError, StrategyError) as error:
        status = "refused" if isinstance(error, TooLongError) else "inapplicable"
        return Row(
            **common, right=False, status=status, chosen="", adapted=False, seconds=0.0, work=0, error=str(error)
        )


def _observed(policy: Policy) -> str:
    """What a policy that calibrates itself has observed, as JSON; empty for others."""
    return dumps(policy.observed().to_plain()) if isinstance(policy, Calibrates) else ""


def _attempt(strategy: Strategy, learner: Learner, task: Task, seed: int, on_event: OnEvent | None) -> Attempt:
    """The attempt of a strategy; `on_event` (see `CallbackErrors`) receives its phases and training steps."""
    if on_event is None:
        return run(strategy, learner, task, seed=seed)
    began, max_steps = clock.monotonic(), recipe_for(strategy, learner.loaded.recipes, task.kind).max_steps

    def on_phase(name: str, tokens: int = 0) -> None:
        on_event({"event": "phase", "tasks": [task.id], "phase": name})

    def on_step(step: int, loss: float) -> None:
        facts = step_facts(strategy.name, step, loss, max_steps, began)
        on_event({"event": "step", "tasks": [task.id], **facts})

    on_phase(strategy.name)
    with learner.guarded.reporting_phases(on_phase):
        return run(strategy, learner, task, seed=seed, on_step=on_step)


def _second_is_right(attempt: Attempt, task: Task) -> bool:
    return any(is_right(task, c.value) for c in attempt.candidates[1:2])


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """Per data set and strategy, in the order of the rows."""
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row.dataset, row.strategy), []).append(row)
    summaries = []
    for (dataset, strategy), cell in cells.items():
        seconds, work = _costs(cell, cells[dataset, "in_context"])
        groups: dict[str, bool] = {}
        for row in cell:
            groups[row.group] = groups.get(row.group, True) and row.right
        summaries.append(
            Summary(
                dataset, strategy, sum(r.right for r in cell) / len(cell), sum(groups.values()) / len(groups),
                len(cell), len(groups), sum(r.seconds for r in cell), seconds, work,
                sum(r.adapted for r in cell) / len(cell), sum(r.status == "refused" for r in cell),
                sum(r.status == "inapplicable" for r in cell),
            )
        )  # fmt: skip
    return summaries


def _costs(rows: Sequence[Row], base: Sequence[Row]) -> tuple[float | None, float | None]:
    """Seconds and forward-token equivalents of a strategy as multiples of those of `in_context`, on the queries that
    both could try; None where there are none, or where `in_context` took nothing."""
    of_base = {row.id: row for row in base if _was_tried(row)}
    pairs = [(row, of_base[row.id]) for row in rows if _was_tried(row) and row.id in of_base]

    def multiple(mine: float, others: float) -> float | None:
        return mine / others if others else None

    return (
        multiple(sum(row.seconds for row, _ in pairs), sum(other.seconds for _, other in pairs)),
        multiple(sum(row.work for row, _ in pairs), sum(other.work for _, other in pairs)),
    )


def _was_tried(row: Row) -> bool:
    return row.status not in ("refused", "inapplicable")


def accuracy_interval(rows: Sequence[Row], repeats: int = 1000, seed: int = 0) -> tuple[float, float]:
    """90% interval of the query accuracy, by bootstrap over families."""
    families: dict[str, list[bool]] = {}
    for row in rows:
        families.setdefault(row.family, []).append(row.right)
    rng, names = random.Random(seed), list(families)
    draws = []
    for _ in range(repeats):
        picked = [right for n in rng.choices(names, k=len(names)) for right in families[n]]
        draws.append(sum(picked) / len(picked))
    draws.sort()
    return draws[int(0.05 * repeats)], draws[int(0.95 * repeats)]


def report(controller: Controller, rows: Sequence[Row], settings: dict[str, Any]) -> dict[str, Any]:
    """What `--json` writes: the summary, every row, and what it was measured with."""
    learner = controller.learner
    summaries = []
    for summary in summarise(rows):
        cell = [r for r in rows if (r.dataset, r.strategy) == (summary.dataset, summary.strategy)]
        low, high = accuracy_interval(cell)
        summaries.append({**asdict(summary), "query_accuracy_90": [low, high]})
    return {
        "summary": summaries,
        "settings": settings,
        "machine": {"processor": platform.processor() or platform.machine(), "python": platform.python_version()},
        "versions": {n: version(n) for n in ("autottt", "torch", "transformers", "peft", "scikit-learn", "langgraph")},
        "model": {"name": learner.loaded.name, "hash": learner.base_hash, "device": str(learner.loaded.model.device)},
        "policy": controller.policy.name,
        "rows": [asdict(r) for r in rows],
    }


def read_rows(file: Path) -> list[Row]:
    """Rows of an interrupted evaluation, without its line of settings. A line that an interruption left incomplete is
    skipped. Raises `TaskError` for a line that holds something else, or a field of another type."""
    rows = []
    for number, values in _lines(file):
        if not isinstance(values, dict) or "settings" not in values:
            if problem := _problem(values):
                raise TaskError(f"{file}:{number}: {problem}; remove the line to measure this query again")
            rows.append(Row(**values))
    return rows


def _problem(values: object) -> str:
    """Why the values of a line are not a row; empty where they are one."""
    if not isinstance(values, dict):
        return f"expected a row of an evaluation; received {shortened(values)}"
    known = {field.name: field for field in fields(Row)}
    for name in [name for name, field in known.items() if field.default is MISSING and name not in values]:
        return f"the field {name} is missing"
    for name, value in values.items():
        if name not in known:
            return f"unknown field {shortened(name)}; expected {', '.join(known)}"
        if not _is_a(value, str(known[name].type)):
            return f"{name}: expected a {known[name].type}; received {shortened(value)}"
    return ""


def _is_a(value: object, kind: str) -> bool:
    """Whether a value of JSON has the type that a field of a row names: a finite number, an integer of at most 64 bits,
    or a text in UTF-8."""
    match value:
        case bool():
            return kind == "bool"
        case int():
            return kind in ("int", "float") and abs(value) <= MAX_SEED
        case float():
            return kind == "float" and math.isfinite(value)
        case str():
            return kind == "str" and is_utf8(value)
    return False


def read_settings(file: Path) -> dict[str, Any] | None:
    """What the rows of a file were measured with; None where it does not say."""
    for _, values in _lines(file):
        if isinstance(values, dict) and isinstance(settings := values.get("settings"), dict):
            return settings
    return None


def _lines(file: Path) -> Iterator[tuple[int, Any]]:
    """The numbers and values of the lines that are JSON."""
    for number, line in enumerate(file.read_bytes().splitlines() if file.exists() else (), start=1):
        with suppress(ValueError, RecursionError):
            yield number, json.loads(line)
