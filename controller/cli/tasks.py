"""The commands that export tasks of libraries and programs to files, and show the tasks of files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from ...ttt_core.file_writing import replacing
from .answer_files import check_output
from .console import line, reporting, screen, warn
from .evaluate import split_names
from .options import AsJson, Files, Seed, TaskOptions, command

if TYPE_CHECKING:
    from ...ttt_core.sources.export import Selection
    from ...ttt_core.tasks.task import Task

tasks_app = typer.Typer(
    no_args_is_help=True, help="Export tasks of libraries and programs, and show the tasks of files."
)
Split = Annotated[
    Literal["training", "test"] | None,
    typer.Option(help="Only families of this split: those for policy training, or those for testing policies."),
]


@command(tasks_app, "list", plugins=False)
def list_(
    source: Annotated[str | None, typer.Argument(help="A source; without one, the sources are shown.")] = None,
    split: Split = None,
    as_json: AsJson = False,
) -> None:
    """Show the sources of tasks, or the families of one with their split and difficulties.

    Example: `autottt tasks list english`
    """
    from ...ttt_core.sources.export import SOURCES, source_of

    if source is None:
        for name, one in SOURCES.items():
            line(f"{name:<16}{(type(one).__doc__ or '').splitlines()[0]}")
        return
    families = [family for family in source_of(source).families().values() if split in (None, family.split)]
    if as_json:
        line(json.dumps([asdict(family) for family in families], indent=1))
        return
    for family in families:
        difficulties = f"difficulties {', '.join(family.difficulties)}" if family.difficulties != ("",) else ""
        line(f"{family.name:<28}{family.split:<10}{difficulties:<22}{family.about}".rstrip())
    line(f"{len(families)} families")


@command(tasks_app, plugins=False)
def export(
    families: Annotated[str, typer.Argument(metavar="SOURCE:FAMILY[,FAMILY...]", help="What to draw; or SOURCE:all.")],
    out: Annotated[Path, typer.Option(help="Write JSON lines to this file.")],
    tasks: Annotated[int, typer.Option(min=1, help="Tasks of every family and difficulty.")] = 10,
    demonstrations: Annotated[int, typer.Option(min=1, help="Demonstrations of a task.")] = 5,
    queries: Annotated[int, typer.Option(min=1, help="Queries of a task.")] = 1,
    difficulties: Annotated[
        str | None, typer.Option(help="Only these difficulties, separated by commas; default: all of a family.")
    ] = None,
    split: Split = None,
    seed: Seed = 0,
) -> None:
    """Draw tasks of a source and write them to a file that every command reads.

    The same seed and version give the same file; both are in each line.

    Example: `autottt tasks export english:antonym,plural --tasks 5 --out tasks.jsonl`
    """
    from ...ttt_core.sources.export import Selection
    from ...ttt_core.sources.export import export as lines_of

    check_output("--out", out, [])
    selection = Selection.parse(families, split)
    if wanted := split_names(difficulties or ""):
        selection, left_out = selection.of_difficulties(wanted)
        if left_out:
            warn(f"left out, with none of the difficulties {', '.join(wanted)}: {', '.join(left_out)}")
    with replacing(out) as partial, partial.open("w", encoding="utf-8") as file, reporting("tasks") as report:
        total = _total(selection, tasks)
        number = 0
        for number, text in enumerate(lines_of(selection, tasks, demonstrations, queries, seed), start=1):
            file.write(text + "\n")
            report(number, max(total, number))
    line(f"{out}: {number} tasks of {len(selection.families)} families, {selection.source.version}, seed {seed}")


def _total(selection: Selection, tasks: int) -> int:
    """Tasks that an export draws at most."""
    return tasks * sum(len(family.difficulties) for family in selection.families)


@command(tasks_app, plugins=False)
def show(files: Files, tasks: TaskOptions) -> None:
    """Show the tasks of files: demonstrations, query and answer.

    Example: `autottt tasks show tasks.jsonl --limit 3`
    """
    loaded = tasks.read(files)
    for task in loaded.tasks:
        _show(task)
    families = {task.family for task in loaded.tasks}
    line(f"{len(loaded.tasks)} queries of {len({task.group for task in loaded.tasks})} tasks, {len(families)} families")
    if loaded.problems:
        raise typer.Exit(1)


def _show(task: Task) -> None:
    from .display import show_task, show_value

    screen.print(Text.assemble("\n", (task.id, "bold cyan"), (f"  ({task.family})", "dim")), soft_wrap=True)
    if task.instruction:
        screen.print(Text(task.instruction, style="italic"), soft_wrap=True)
    screen.print(show_task(task), soft_wrap=True)
    if task.answer is not None:
        screen.print(Text("answer", style="bold"))
        screen.print(show_value(task.kind, task.answer), soft_wrap=True)
