"""The commands that collect, import and show outcomes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...policies.outcomes import BASE
from ...strategies.registry import check_names
from ...ttt_core.errors import TaskError, TooLongError
from .console import in_words, interruptible, line, note, reporting, screen, warn
from .evaluate import strategy_names
from .options import ModelOptions, TaskOptions, command, made_folders

if TYPE_CHECKING:
    from ...policies.outcomes import Outcome, OutcomeStore
    from ...ttt_core.learner import Learner
    from ...ttt_core.tasks.task import Task

COLLECTED_STRATEGIES = "in_context,in_context_vote,ttt_in_context,ttt_augmented"
"""What policies choose between unless others are named: cross-validated strategies cost several times as much."""
CollectedStrategies = Annotated[str, typer.Option(help="Names, separated by commas.")]
CollectedSeeds = Annotated[str | None, typer.Option(help="Seeds of the strategies, such as 0,1,2; default: --seed.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Leave out tasks with a longer prompt.")]
outcomes_app = typer.Typer(no_args_is_help=True, help="Show and check collected outcomes, and import others.")


@dataclass(frozen=True)
class WorkerOptions:
    """Which processes collect outcomes."""

    workers: Annotated[int, typer.Option(min=1, help="Processes, with one model each.")] = 1
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster for the workers; `local` starts one.")] = (
        None
    )


@dataclass(frozen=True)
class GeneratedOptions:
    """Tasks of the generator that outcomes are collected on."""

    generated: Annotated[int, typer.Option(min=0, help="Also this many tasks of the generator's policy families.")] = 0
    queries_per_task: Annotated[
        int, typer.Option(min=1, help="Queries of each generated task; they share its adapters.")
    ] = 1

    def tasks(self, seed: int) -> list[Task]:
        """The generated tasks."""
        if not self.generated:
            return []
        from ...ttt_core.pretraining.generator.families import draw_tasks

        return list(draw_tasks("policy", self.generated, seed, queries=self.queries_per_task))


def collect(
    store: Annotated[Path, typer.Option(help="Folder that outcomes are added to.")],
    generated: GeneratedOptions,
    workers: WorkerOptions,
    model: ModelOptions,
    tasks: TaskOptions,
    files: Annotated[list[Path] | None, typer.Argument(help="Task files or folders.")] = None,
    strategies: CollectedStrategies = COLLECTED_STRATEGIES,
    seeds: CollectedSeeds = None,
    max_tokens: MaxTokens = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show how many outcomes are missing, and estimate how long they will take."),
    ] = False,
) -> None:
    """Run strategies on every task and store the result and the cost of each, to train a policy on.

    Example: `autottt collect --generated 200 --store runs/outcomes --workers 2`

    It can be interrupted: the same command continues where it stopped.
    """
    names = strategies_to_collect(strategies)
    strategy_seeds = parse_seeds(seeds) if seeds else [tasks.seed]
    if not files and not generated.generated:
        raise TaskError("there is nothing to collect from: name task files, or give --generated 200")
    loaded = tasks.read(files) if files else None
    with nullcontext() if dry_run else made_folders(store=store):
        all_tasks = [*(loaded.tasks if loaded else ()), *generated.tasks(tasks.seed)]
        learner = None
        if max_tokens or dry_run:
            learner = model.load_learner()
            all_tasks = choose_tasks(learner, all_tasks, max_tokens)
            if dry_run:
                return _show_estimate(learner, all_tasks, names, strategy_seeds, store, workers.workers)
        with interruptible(f"{store} keeps the outcomes so far, and the same command continues after them"):
            stored = collect_into(store, all_tasks, names, strategy_seeds, model, workers, learner)
    line(f"{store} holds {len(stored)} outcomes; next: autottt train-policy {store} --out ...")
    if len(models := {o.base_hash for o in stored}) > 1:
        warn(
            f"they are of {len(models)} models, and a policy is for one: train-policy --model-hash HASH selects those "
            "of one"
        )
    if loaded and loaded.problems:
        raise typer.Exit(1)


def strategies_to_collect(text: str) -> list[str]:
    """The names in the option `--strategies`. Raises `StrategyError` for one that is unknown, and `TaskError` where
    there is none besides `in_context`."""
    names = strategy_names(text)
    check_names(names)
    if not set(names) - {BASE}:
        also = f"{BASE} is run anyway, and a policy chooses between it and others; name some"
        raise TaskError(f"--strategies {text!r}: {also}")
    return names


def collect_into(
    folder: Path,
    tasks: Sequence[Task],
    names: Sequence[str],
    seeds: Sequence[int],
    model: ModelOptions,
    options: WorkerOptions,
    learner: Learner | None = None,
    remedy: str | None = None,
) -> list[Outcome]:
    """Collects what a store lacks, in this process or in workers, and returns what it then holds. `learner` is the
    model, where it is loaded already; `remedy` says what to do where outcomes must not be added to the store."""
    from ...policies.collect import ANOTHER_STORE, collect
    from ...policies.outcomes import OutcomeStore
    from ...policies.parallel import Source, collect_with_workers
    from ...strategies.registry import get_strategy

    store, chosen = OutcomeStore(folder), [get_strategy(name) for name in names]
    remedy = remedy or ANOTHER_STORE
    with reporting("collecting") as on_progress:
        if options.workers == 1 and options.ray is None:
            collect(learner or model.load_learner(), tasks, chosen, seeds, store, on_progress, remedy)
        else:
            start = None if model.starting_adapter is None else str(model.starting_adapter)
            source = Source(model.model, model.device, model.dtype, model.prompt_format, start, model.read_with_adapter)
            collect_with_workers(
                source, list(tasks), chosen, seeds, store, workers=options.workers, ray_address=options.ray,
                on_progress=on_progress, remedy=remedy,
            )  # fmt: skip
    return store.read()


def choose_tasks(learner: Learner, tasks: Sequence[Task], max_tokens: int | None) -> list[Task]:
    """The tasks whose prompts have at most `max_tokens` tokens; says how many have more. Raises `TaskError` where all
    have."""
    if max_tokens is None:
        return list(tasks)
    short = [task for task in tasks if _length(learner, task) <= max_tokens]
    if tasks and not short:
        raise TaskError(f"--max-tokens {max_tokens}: each of the {len(tasks)} tasks has a longer prompt; allow more")
    if len(short) < len(tasks):
        note(f"{len(tasks) - len(short)} of {len(tasks)} tasks have more than {max_tokens} tokens and are left out")
    return short


def _length(learner: Learner, task: Task) -> float:
    """Tokens of a task's prompt; infinite where it does not fit in the context."""
    try:
        return learner.window.length(task)
    except TooLongError:
        return math.inf


def _show_estimate(
    learner: Learner, tasks: list[Task], names: list[str], seeds: list[int], folder: Path, workers: int
) -> None:
    """Prints what the outcomes that a store lacks will take."""
    from ...policies.collect import ModelIdentity, missing
    from ...policies.collection_cost import estimate
    from ...policies.outcomes import OutcomeStore
    from ...strategies.registry import get_strategy

    chosen = [get_strategy(name) for name in names]
    batches, total = missing(ModelIdentity.of(learner), tasks, chosen, seeds, OutcomeStore(folder))
    expected = estimate(learner, batches)
    line(
        f"{expected.outcomes} of {total} outcomes are missing: about {expected.token_equivalents:,.0f} token "
        f"equivalents, {in_words(expected.seconds)} of one process at the speed of a few answers just now"
        + (f", {in_words(expected.seconds / workers)} with {workers} workers that have a core each" * (workers > 1))
    )


def parse_seeds(text: str) -> list[int]:
    """The seeds in an option. Raises `TaskError` for another text."""
    try:
        if "_" in text:  # Python's separator of digits
            raise ValueError
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise TaskError(
            f"--seeds: expected whole numbers separated by commas, such as 0,1,2; received {text!r}"
        ) from None


@command(outcomes_app, "show", plugins=False)
def show(store: Annotated[Path, typer.Argument(help="Folder of outcomes.")]) -> None:
    """Summarise a store: how often each strategy was right, what it cost, and what failed.

    Example: `autottt outcomes show runs/outcomes`
    """
    from ...policies.outcomes import OutcomeStore
    from .display import show_outcomes

    screen.print(show_outcomes(read_outcomes(OutcomeStore(store))))


@command(outcomes_app, "check", plugins=False)
def check(
    store: Annotated[Path, typer.Argument(help="Folder of outcomes, or a CSV file to import.")],
    mend: Annotated[
        bool, typer.Option("--mend", help="Move damaged files to the folder `damaged`; their other rows stay.")
    ] = False,
) -> None:
    """Verify every row of a store: types, checksums, keys that occur again, and versions of the format.

    Example: `autottt outcomes check runs/outcomes --mend`

    The exit code is 0 if all is sound, and 1 if something is damaged. Nothing is ever deleted.
    """
    from ...policies.outcome_check import DAMAGED, check_outcomes

    report = check_outcomes(store, mend)
    for damage in report.damages:
        warn(f"damaged: {damage}")
    line(f"{report.outcomes} outcomes can be read; {len(report.damages)} parts are damaged")
    if report.mended:
        folder = store / DAMAGED if store.is_dir() else store.parent / DAMAGED
        line(f"{len(report.mended)} damaged parts were moved to {folder}, with a report")
    elif report.damages and not mend:
        line(f"next: autottt outcomes check {store} --mend")
    if len(report.mended) < len(report.damages) and mend:
        warn("the other damaged parts are in journals that running processes write to; check again when they end")
    if report.damages:
        raise typer.Exit(1)


@command(outcomes_app, "import", plugins=False)
def import_outcomes(
    file: Annotated[Path, typer.Argument(help="CSV with task, seed, strategy, accuracy and cost.")],
    store: Annotated[Path, typer.Option(help="Folder that outcomes are added to.")],
    in_context: Annotated[str, typer.Option(help="The table's name for answering in context.")] = "in_context",
    name: Annotated[
        str | None, typer.Option(help="Name of the model that answered; default: the name of the file.")
    ] = None,
) -> None:
    """Add outcomes that were measured elsewhere to a store.

    Example: `autottt outcomes import table.csv --store runs/elsewhere --in-context ICL_10`
    """
    from ...policies.csv_import import import_csv
    from ...policies.outcomes import OutcomeStore

    outcomes = import_csv(file, in_context=in_context, model=name)
    new = add_outcomes(OutcomeStore(store), outcomes, same_costs=True)
    line(f"{len(new)} outcomes added to {store}; {len(outcomes) - len(new)} are there already")


def add_outcomes(store: OutcomeStore, outcomes: list[Outcome], same_costs: bool = False) -> list[Outcome]:
    """Adds to a store the outcomes that it lacks, and returns those. Raises as `OutcomeStore.missing`."""
    new = store.missing(outcomes, same_costs)
    store.add(new)
    return new


def read_outcomes(*stores: OutcomeStore) -> list[Outcome]:
    """The outcomes in stores. Raises `TaskError` for one that is empty or does not exist."""
    outcomes: list[Outcome] = []
    for store in stores:
        folder = store.folder
        if not folder.is_dir():
            raise TaskError(
                f"{folder}: expected a folder of outcomes; there is none. Name another, or collect some with `autottt "
                f"collect TASKS --store {folder}`"
            )
        stored = store.read()
        if not stored:
            raise TaskError(f"{folder} holds no outcomes; collect some with `autottt collect TASKS --store {folder}`")
        outcomes += stored
    return outcomes
