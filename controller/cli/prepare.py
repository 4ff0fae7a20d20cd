"""The command `autottt prepare`: trains an adapter from which test-time training of a model starts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...ttt_core.errors import AutotttError, ModelError, TaskError
from .console import interruptible, line, note, warn
from .locks import exclusive
from .options import ModelOptions, TaskOptions, made_folders

if TYPE_CHECKING:
    from ...ttt_core.pretraining.prepare import Preparation
    from ...ttt_core.sources.base import Split
    from ...ttt_core.tasks.task import Task, Value


def prepare(
    tasks: Annotated[list[Path], typer.Option("--tasks", help="Task file or folder; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder that the adapter is written to, in PEFT's format.")],
    options: ModelOptions,
    selection: TaskOptions,
    base: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Folder, GGUF file, hub id, or name in `autottt models list`; default: that of --model, else the "
            "bundled model.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of training at most.")] = 30,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of a round.")] = 10,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter, and of all that start from it.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Learning rate.")] = 3e-4,
    patience: Annotated[int, typer.Option(min=1, help="Rounds without an improvement after which it stops.")] = 4,
) -> None:
    """Train an adapter for a model once, on tasks of many families; with `--starting-adapter` every test-time training
    starts from it.

    Example: `autottt prepare smollm2-135m --tasks tasks.jsonl --out runs/adapter`

    It is trained on the families of the training split and judged, after each round, on those of the test split. It can
    be interrupted: the same command continues after the last round.
    """
    if options.starting_adapter is not None or options.read_with_adapter:
        raise ModelError(
            "prepare trains an adapter from new weights; leave out --starting-adapter and --read-with-adapter, and "
            "their settings in the environment and the configuration file"
        )
    loaded = selection.read(tasks)
    training, held_out = divided(loaded.tasks)
    from ...ttt_core.pretraining.prepare import RECIPE, Preparation

    recipe = replace(RECIPE, max_steps=steps, rank=rank, alpha=float(rank), learning_rate=learning_rate)
    settings = Preparation(recipe, rounds, patience, selection.seed)
    options = options if base is None else replace(options, model=base)
    with (
        made_folders(out=out),
        exclusive(out),
        interruptible(f"the same command continues after the last round of {out}"),
    ):
        result = _prepared(options, training, held_out, out, settings)
    line(f"{out}: the adapter after {result.curve[result.best].steps} steps; use it with --starting-adapter {out}")
    if loaded.problems:
        raise typer.Exit(1)


def _prepared(
    options: ModelOptions, training: Sequence[Task], held_out: Sequence[Task], out: Path, settings: Preparation
) -> Preparation:
    """Loads the model, and trains and judges on the tasks that fit in its context."""
    from ...ttt_core.pretraining.prepare import prepare as train

    learner = options.load_learner()
    fitting = [[task for task in side if learner.fits(task, task.answer)] for side in (training, held_out)]
    queries = len(training) + len(held_out)
    if left_out := queries - sum(map(len, fitting)):
        warn(f"{left_out} of {queries} queries are left out: they do not fit in the model's context")
    note(
        f"{len({t.family for t in fitting[0]})} families to train on; {len(fitting[1])} queries of "
        f"{len({t.family for t in fitting[1]})} held out"
    )
    return train(learner, fitting[0], fitting[1], out, settings, lambda so_far: _report(so_far, len(fitting[1])))


def _report(so_far: Preparation, queries: int) -> None:
    last = so_far.curve[-1]
    note(
        f"after {last.steps} steps: {last.right} of {queries} held-out queries right in context, log-probability "
        f"{last.log_prob:.2f}" + (f", training loss {last.loss:.3f}" if last.steps else "")
    )


def divided(tasks: Sequence[Task]) -> tuple[list[Task], list[Task]]:
    """The tasks of families to train on and of those to hold out: by the published split of their source, else by the
    same rule on their content. Raises `TaskError` for a task without an answer or without a family."""
    by_family: dict[str, list[Task]] = {}
    for task in tasks:
        if task.answer is None or not task.family or not task.demonstrations:
            missing = "the right answer of its query" if task.answer is None else "demonstrations"
            missing = missing if task.family else "the field `family`"
            raise TaskError(f"{task.id}: training an adapter needs {missing}; this task has none")
        by_family.setdefault(task.family, []).append(task)
    from ...ttt_core.sources.base import splits_of

    splits = {name: split for name, (_, split) in splits_of({n: _pairs(ts) for n, ts in by_family.items()}).items()}
    splits |= _published(by_family)
    training = [task for task in tasks if splits[task.family] == "training"]
    return training, [task for task in tasks if splits[task.family] == "test"]


def _pairs(tasks: Sequence[Task]) -> list[tuple[Value, Value]]:
    pairs = {(d.input, d.output): None for task in tasks for d in task.demonstrations}
    return sorted(pairs, key=repr)


def _published(families: Collection[str]) -> dict[str, Split]:
    """The split of each family that a source of tasks publishes, by its name SOURCE/FAMILY."""
    from ...ttt_core.sources.export import SOURCES

    splits: dict[str, Split] = {}
    for source in {name.partition("/")[0] for name in families} & SOURCES.keys():
        with suppress(AutotttError):  # the library of a source may not be installed
            known = SOURCES[source].families()
            own = (name for name in families if name.partition("/")[0] == source)
            splits |= {name: known[family].split for name in own if (family := name.partition("/")[2]) in known}
    return splits
