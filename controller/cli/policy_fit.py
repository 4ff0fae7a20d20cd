"""The command `autottt policy fit`: collects outcomes of a model, trains its policy and installs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...policies.outcomes import BASE
from ...ttt_core.errors import PolicyError, TaskError
from .console import in_words, interruptible, line, note, warn
from .locks import exclusive
from .options import ModelOptions, TaskOptions, command, make_folder
from .outcomes import (
    COLLECTED_STRATEGIES,
    CollectedSeeds,
    CollectedStrategies,
    MaxTokens,
    WorkerOptions,
    choose_tasks,
    collect_into,
    parse_seeds,
    strategies_to_collect,
)
from .policies import policy_app
from .training import Risk, TrainingCostWeight, TrainingOptions, train_and_write

if TYPE_CHECKING:
    from ...policies.collect import Batch
    from ...policies.outcomes import Outcome
    from ...ttt_core.learner import Learner
    from ...ttt_core.tasks.task import Task

_PLACE = "set XDG_DATA_HOME to a folder that can be written to"
"""What to do where the folder of this user's policies cannot be used."""
FEW_FAMILIES = 30
"""Families below which a policy is rarely better than a fixed strategy."""


@dataclass(frozen=True)
class FitOptions:
    """What a policy is fitted for."""

    training_cost_weight: TrainingCostWeight = None
    risk: Risk = None
    yes: Annotated[bool, typer.Option("--yes", help="Begin without a question.")] = False


@command(policy_app, "fit")
def fit(
    tasks: Annotated[list[Path], typer.Option("--tasks", help="Task file or folder; may be repeated.")],
    options: FitOptions,
    workers: WorkerOptions,
    model: ModelOptions,
    selection: TaskOptions,
    strategies: CollectedStrategies = COLLECTED_STRATEGIES,
    seeds: CollectedSeeds = None,
    max_tokens: MaxTokens = None,
) -> None:
    """Make a policy for a model: run strategies on tasks with known answers, train on the outcomes, and install the
    policy, which that model then gets by default.

    Example: `autottt policy fit --model smollm2-135m --tasks tasks.jsonl`

    The expected time is printed first, with a question where there is a terminal. It can be interrupted: the same
    command continues where it stopped. `autottt policy list` shows the installed policies.
    """
    names = strategies_to_collect(strategies)
    strategy_seeds = parse_seeds(seeds) if seeds else [selection.seed]
    loaded = selection.read(tasks)
    from ...policies.bundle_card import CARD, policies_folder
    from ...policies.collect import ModelIdentity
    from ...policies.installed import installed_folder, outcomes_folder

    make_folder(policies_folder(), str(policies_folder()), _PLACE)
    learner = model.load_learner()
    chosen = choose_tasks(learner, loaded.tasks, max_tokens)
    _check_families(chosen)
    identity = ModelIdentity.of(learner)
    place = identity.base_hash, identity.prompt_format, identity.starting_adapter
    out, store = installed_folder(*place), outcomes_folder(*place)
    for folder in (out.parent, store):
        make_folder(folder, str(folder), _PLACE)
    remedy = f"delete the folder {store}, or move it away, and the same command measures everything again"
    with exclusive(out, is_option=False):
        if _announce(learner, chosen, names, strategy_seeds, store, workers.workers, remedy):
            _require_consent(options.yes)
        with interruptible(f"{store} keeps the outcomes so far, and the same command continues after them"):
            outcomes = collect_into(store, chosen, names, strategy_seeds, model, workers, learner, remedy)
        outcomes = _of(outcomes, chosen, names, strategy_seeds, store)
        if not outcomes:
            raise PolicyError(f"{store} holds no outcomes of these tasks")
        settings = TrainingOptions(
            out, out.parent.parent / "runs", options.training_cost_weight, options.risk, selection.seed
        )
        train_and_write(outcomes, [store], settings, workers.workers)
    if (out / CARD).is_file():
        line(f"installed: {out.name} is the policy of this model from now on; `autottt policy show` prints it")
    if loaded.problems:
        raise typer.Exit(1)


def _of(
    outcomes: Sequence[Outcome], tasks: Sequence[Task], names: Sequence[str], seeds: Sequence[int], store: Path
) -> list[Outcome]:
    """The outcomes of these tasks, strategies and seeds, and of `in_context`; says how many others are left out."""
    wanted, ids = {BASE, *names}, {(task.dataset, task.id) for task in tasks}
    mine = [o for o in outcomes if (o.dataset, o.task_id) in ids and o.strategy in wanted and o.seed in seeds]
    if others := len(outcomes) - len(mine):
        note(
            f"{others} outcomes of other tasks, strategies or seeds in {store} are left out; name their task files as "
            "well to train on all"
        )
    return mine


def _check_families(tasks: Sequence[Task]) -> None:
    """Raises `TaskError` for too few families to hold some out; warns of few."""
    from ...policies.outcome_table import MIN_FAMILIES, merged_by_content

    names = [task.family or task.group for task in tasks]
    families = len(set(merged_by_content(names, [task.digest for task in tasks])))
    if families < MIN_FAMILIES:
        shared = f" ({len(set(names))} names; families that have a query in common count as one)"
        raise TaskError(
            f"--tasks: expected tasks of at least {MIN_FAMILIES} families, so that some can be held out; received "
            f"{families}{shared if len(set(names)) > families else ''}: give more tasks, each with its `family`"
        )
    if families < FEW_FAMILIES:
        warn(
            f"{families} families of tasks: below {FEW_FAMILIES}, a policy is rarely significantly better than a fixed "
            "strategy"
        )


def _announce(
    learner: Learner, tasks: Sequence[Task], names: Sequence[str], seeds: Sequence[int], store: Path, workers: int,
    remedy: str,
) -> bool:  # fmt: skip
    """Prints what the command will take; false where no outcome is missing."""
    from ...policies.collection_cost import estimate

    batches, total = _missing(learner, tasks, names, seeds, store, remedy)
    expected = estimate(learner, batches)
    if not expected.outcomes:
        note(f"all {total} outcomes are in {store}; the policy is trained on them")
        return False
    note(
        f"{expected.outcomes} of {total} outcomes are missing: {in_words(expected.seconds / workers)} at the speed of "
        "a few answers just now, then minutes of training"
    )
    return True


def _missing(
    learner: Learner, tasks: Sequence[Task], names: Sequence[str], seeds: Sequence[int], store: Path, remedy: str
) -> tuple[list[Batch], int]:
    from ...policies.collect import ModelIdentity, missing
    from ...policies.outcomes import OutcomeStore
    from ...strategies.registry import get_strategy

    chosen = [get_strategy(name) for name in names]
    return missing(ModelIdentity.of(learner), tasks, chosen, seeds, OutcomeStore(store), remedy)


def _require_consent(yes: bool) -> None:
    """Ends the command unless the user agrees. Where nobody can be asked, or with `--yes`, nobody is."""
    if yes or not sys.stdin.isatty() or typer.confirm("Begin?"):
        return
    warn("nothing was measured")
    raise typer.Exit(1)
