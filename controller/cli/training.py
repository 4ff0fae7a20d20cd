"""The commands that train policies: `autottt train-policy` and `autottt retrain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...ttt_core.errors import PolicyError, TaskError
from .console import line, note, reporting, warn
from .locks import exclusive
from .options import AsJson, Demonstrations, Seed, make_folders
from .outcomes import add_outcomes, read_outcomes
from .policies import AnswerFiles, Logs, print_json, print_markdown, right_answers

if TYPE_CHECKING:
    from ...policies.outcomes import Outcome
    from ...policies.trained_policy import TrainedPolicy


@dataclass(frozen=True)
class TrainingOptions:
    """How a policy is trained, and where the result is written."""

    out: Annotated[Path, typer.Option(help="Folder that the policy bundle is written to.")]
    runs: Annotated[Path, typer.Option(help="Folder with a record of every training run.")] = Path("runs/policies")
    training_cost_weight: Annotated[
        float | None,
        typer.Option(
            "--cost-weight",
            help="Accuracy that one in-context cost is worth; default: the most expensive strategy costs 0.1.",
        ),
    ] = None
    risk: Annotated[
        float | None,
        typer.Option(help="At most this share of the answers kept in context is wrong, with 90% confidence."),
    ] = None
    seed: Seed = 0
    as_json: AsJson = False

    def make_folders(self) -> None:
        """Makes the folders. Raises `PolicyError` for one that cannot be written to."""
        make_folders(out=self.out, runs=self.runs)


def train_policy(
    stores: Annotated[list[Path], typer.Argument(help="Folders of outcomes, from `autottt collect`.")],
    training: TrainingOptions,
    model_hash: Annotated[
        str | None,
        typer.Option(
            metavar="HASH", help="Only outcomes of the model whose content hash begins with this; default: all."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes for the folds of the scorecard.")] = 1,
) -> None:
    """Train a policy on outcomes, and evaluate it on families that were held out.

    Example: `autottt train-policy runs/outcomes --out runs/policy`
    """
    from ...policies.outcomes import OutcomeStore

    every = read_outcomes(*map(OutcomeStore, stores))
    outcomes = [o for o in every if o.base_hash.startswith(model_hash or "")]
    if not outcomes:
        models = ", ".join(sorted({o.base_hash for o in every}))
        raise TaskError(f"--model-hash {model_hash}: the outcomes in {', '.join(map(str, stores))} are of {models}")
    training.make_folders()
    with exclusive(training.out):
        _train(outcomes, stores, training, workers)


def retrain(
    logs: Logs,
    store: Annotated[Path, typer.Option(help="Folder of outcomes: those of the logs are added to it.")],
    training: TrainingOptions,
    answers: AnswerFiles = None,
    demonstrations: Demonstrations = None,
) -> None:
    """Train a policy on logs and on collected outcomes: adds the outcomes in the logs to a store, then trains.

    Example: `autottt retrain answers.jsonl --answers solutions.jsonl --store runs/outcomes --out runs/policy`

    Only queries whose right answer is known, and on which everything was measured, become outcomes; `solve --explore`
    makes sure that there are some of every kind. A policy is evaluated on queries that every strategy was tried on.
    """
    from ...policies.bundle_card import CARD
    from ...policies.outcomes import OutcomeStore
    from ...policies.serving_logs import base_of, outcomes_of, read_log, skipped_counts
    from ...policies.training import trainable_table

    training.make_folders()
    make_folders(store=store)
    with exclusive(training.out):
        rows = read_log(logs)
        outcome_store, right = OutcomeStore(store), right_answers(answers, rows, demonstrations)
        logged, base = outcomes_of(rows, right), base_of(rows)
        stored = [o for o in outcome_store.read() if o.base_hash == base]
        trainable_table([*stored, *outcome_store.missing(logged)])  # raises before anything is written
        new = add_outcomes(outcome_store, logged)
        line(f"{len(rows)} queries in the logs; {len(logged)} outcomes of them can be learned from, {len(new)} new")
        for why, count in skipped_counts(rows, right).items():
            line(f"{count} teach nothing: {why}")
        if new or not (training.out / CARD).exists():
            _train([o for o in read_outcomes(outcome_store) if o.base_hash.startswith(base)], [store], training)
        else:
            warn(
                f"nothing new to learn, so {training.out} is unchanged; `autottt train-policy {store} --out "
                f"{training.out}` trains it again"
            )


def _train(outcomes: Sequence[Outcome], stores: Sequence[Path], training: TrainingOptions, workers: int = 1) -> None:
    """Trains, writes the bundle and the record of the run, and prints how good the policy is."""
    from ...policies.bundle import save_bundle
    from ...policies.report import REPORT, as_markdown, write_report
    from ...policies.tracking import track
    from ...policies.training import train_policy

    with reporting(f"training on {len(outcomes)} outcomes") as on_progress:
        trained = train_policy(
            outcomes, cost_weight=training.training_cost_weight, risk=training.risk, seed=training.seed,
            workers=workers, on_progress=on_progress,
        )  # fmt: skip
    if training.as_json:
        print_json(trained.scorecard)
    else:
        print_markdown(as_markdown(trained))
    _warn_of_weaknesses(trained, outcomes)
    written = save_bundle(trained, training.out)
    write_report(trained, written)
    record = track(
        trained, written, training.runs,
        {
            "store": " ".join(map(str, stores)), "outcomes": len(outcomes), "price": training.training_cost_weight,
            "risk": training.risk, "seed": training.seed,
        },
    )  # fmt: skip
    note(f"the policy is in {written}, with {REPORT}; the run is recorded in {record}")
    _report_release(trained, written, training.out)


def _warn_of_weaknesses(trained: TrainedPolicy, outcomes: Sequence[Outcome]) -> None:
    """Warns if no strategy is ever right, if strategies were left out, or if few cases evaluate the policy."""
    card = trained.scorecard
    if not any(card["arms"][name]["accuracy"] for name in trained.strategies):
        unreadable = sum(o.status == "unreadable" for o in outcomes)
        warn(
            f"no strategy was right on any of {card['cases']} cases ({unreadable} of {len(outcomes)} answers cannot be "
            "read): look at the model, the tasks or --prompt-format before more is collected"
        )
    if card["excluded_strategies"]:
        warn(
            f"left out, since too few queries were tried with all: {', '.join(card['excluded_strategies'])}; collect "
            "more of them"
        )
    if 2 * card["cases"] < card["training_cases"]:
        warn(f"evaluated on {card['cases']} of {card['training_cases']} cases, on which every strategy was tried")


def _report_release(trained: TrainedPolicy, written: Path, out: Path) -> None:
    """Says if the policy is not significantly better than the best strategy. Raises `PolicyError` if a better one is in
    its place."""
    from ...policies.report import REPORT

    best = trained.ranking[0]
    if written != out:
        raise PolicyError(
            f"{out} holds a released policy and is unchanged: the new policy does not beat always {best} "
            f"significantly, and is in {written}. Collect more; to use it all the same, name that folder, or remove "
            "the released one and train again"
        )
    if not trained.released:
        warn(
            f"this policy does not beat always {best} significantly (see {out / REPORT}): collect more, or use "
            f"--strategy {best}"
        )
