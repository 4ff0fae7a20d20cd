"""The command `autottt evaluate`: measures strategies side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ...strategies.registry import check_names
from ...ttt_core.errors import StrategyError, TaskError
from ...ttt_core.file_writing import write_whole
from ...ttt_core.standard_json import dumps
from .answer_files import check_output
from .console import interruptible, screen
from .live import LiveProgress, Quiet
from .locks import exclusive
from .options import Files, ModelOptions, PolicyOptions, TaskOptions, load_controller

CONTROLLER = "controller"
"""Stands for the policy's choice; `evaluation` has the same name, and takes seconds to import."""


@dataclass(frozen=True)
class ReportOptions:
    """Where the report of an evaluation is written."""

    json_file: Annotated[Path | None, typer.Option("--json", help="Write summary and rows to this file.")] = None
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue with the rows that an interrupted run left next to --json.")
    ] = False

    @property
    def rows_file(self) -> Path | None:
        """Where rows are stored until the evaluation is complete."""
        return self.json_file and self.json_file.with_name(f"{self.json_file.name.removesuffix('.json')}.rows.jsonl")

    @property
    def remedy(self) -> str:
        """What an interrupted user can do."""
        if self.rows_file is not None and not self.rows_file.exists():
            return "nothing was measured yet"
        place = f"{self.rows_file} keeps the rows so far" if self.json_file else "--json FILE keeps the rows"
        return f"{place}, and --resume continues after them"

    def check(self, inputs: list[Path]) -> None:
        """Raises `TaskError` if writing would overwrite an input or a report, mix runs, or lose rows."""
        if self.json_file is None or self.rows_file is None:
            if self.resume:
                raise TaskError("--resume continues with the rows next to a file: name it with --json")
            return
        for file in (self.json_file, self.rows_file):
            check_output("--json", file, inputs)
        if not self.resume and self.rows_file.exists():
            raise TaskError(
                f"{self.rows_file} holds the rows of an interrupted evaluation: give --resume to continue with them, "
                "another --json, or remove it to start again"
            )
        if self.json_file.exists() and not self.rows_file.exists():
            raise TaskError(f"{self.json_file} holds a finished evaluation; name another --json, or remove it")


def evaluate(
    files: Files,
    report: ReportOptions,
    policy: PolicyOptions,
    model: ModelOptions,
    tasks: TaskOptions,
    strategies: Annotated[
        str, typer.Option(help="Names, separated by commas; `controller` is the policy's choice.")
    ] = ("in_context,ttt_in_context,controller"),
    quiet: Quiet = False,
) -> None:
    """Measure strategies side by side: accuracy, seconds, cost as a multiple of in-context.

    Example: `autottt evaluate tasks.jsonl --strategies in_context,ttt_in_context,controller --limit 20 --json out.json`
    """
    names = strategy_names(strategies)
    check_names(name for name in names if name != CONTROLLER)
    report.check(files)
    policy.check()
    model.check()
    with exclusive(report.rows_file), interruptible(lambda: report.remedy):
        loaded = tasks.read(files)
        from .. import evaluation
        from .display import show_summary

        rows_file = report.rows_file
        if rows_file and evaluation.read_rows(rows_file) and evaluation.read_settings(rows_file) is None:
            raise TaskError(f"{rows_file} does not say what its rows were measured with: remove it to start again")
        controller = load_controller(model, policy, seed=tasks.seed)
        total = len(loaded.tasks) * len(dict.fromkeys(["in_context", *names]))
        with LiveProgress(total, description="evaluating", hidden=quiet) as live:
            rows = evaluation.evaluate(
                controller, loaded.tasks, names, seed=tasks.seed, file=rows_file, on_row=lambda row: live.advance(),
                on_event=live.listener,
            )  # fmt: skip
        screen.print(show_summary(evaluation.summarise(rows)))
        if report.json_file and rows_file:
            settings = {
                "files": [f.name for f in files], "strategies": names, "limit": tasks.limit, "seed": tasks.seed,
            }  # fmt: skip
            text = dumps(evaluation.report(controller, rows, settings), indent=1) + "\n"
            write_whole(report.json_file, text, f"free space on its disk, and --resume writes it from {rows_file}")
            rows_file.unlink()
    if loaded.problems:
        raise typer.Exit(1)


def strategy_names(text: str) -> list[str]:
    """The names in a list with commas. Raises `StrategyError` for a list without any."""
    if not (names := split_names(text)):
        raise StrategyError(
            f"--strategies: expected names separated by commas, such as in_context,ttt_in_context; received {text!r}"
        )
    return names


def split_names(text: str) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
