"""The commands that train policies: `autottt train-policy` and `autottt retrain`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...policies.bundle_card import ANY_MODEL, policies_folder
from ...ttt_core.errors import PolicyError, SettingsError, TaskError, TraceError
from ..tracing import STORE_SUFFIXES
from .console import interruptible, line, note, reporting, warn
from .locks import exclusive
from .options import AsJson, Demonstrations, Seed, check_amount, check_share, made_folders
from .outcomes import read_outcomes
from .policies import AnswerFiles, OptionalLogs, print_json, print_markdown, tasks_with_answers
from .traces import store_of, time_of

if TYPE_CHECKING:
    from ...policies.outcomes import Outcome
    from ...policies.serving_logs import Row
    from ...policies.store_update import StoreUpdate
    from ...policies.trained_policy import TrainedPolicy


TrainingCostWeight = Annotated[
    float | None,
    typer.Option(
        "--cost-weight",
        callback=check_amount,
        help="Accuracy that one in-context cost is worth; default: the most expensive strategy costs 0.1.",
    ),
]
Risk = Annotated[
    float | None,
    typer.Option(
        callback=check_share, help="At most this share of the answers kept in context is wrong, with 90% confidence."
    ),
]


@dataclass(frozen=True)
class TrainingOptions:
    """How a policy is trained, and where the result is written."""

    out: Annotated[Path, typer.Option(help="Folder that the policy bundle is written to.")]
    runs: Annotated[Path, typer.Option(help="Folder with a record of every training run.")] = Path("runs/policies")
    training_cost_weight: TrainingCostWeight = None
    risk: Risk = None
    seed: Seed = 0
    as_json: AsJson = False

    @contextmanager
    def writing(self, **more: Path) -> Iterator[None]:
        """Makes the folders and locks the one of the policy; see `made_folders` and `exclusive` for what it raises."""
        with made_folders(out=self.out, runs=self.runs, **more), exclusive(self.out):
            yield


def train_policy(
    stores: Annotated[list[Path], typer.Argument(help="Folders of outcomes, from `autottt collect`.")],
    training: TrainingOptions,
    model_hash: Annotated[
        str | None,
        typer.Option(
            metavar="HASH", help="Only outcomes of the model whose content hash begins with this; default: all."
        ),
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATASET",
            help="Without outcomes on the families of this data set, to judge the policy on it; repeatable.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes for the folds of the scorecard.")] = 1,
    any_model: Annotated[
        bool,
        typer.Option(
            "--any-model", help="Train a policy for models without one of their own, on the outcomes of several models."
        ),
    ] = False,
) -> None:
    """Train a policy on outcomes, and evaluate it on families that were held out.

    Example: `autottt train-policy runs/outcomes --out runs/policy`
    """
    from ...policies.outcomes import OutcomeStore

    if any_model:
        _check_for_any_model(training)
    every = read_outcomes(*map(OutcomeStore, stores))
    outcomes = [o for o in every if o.base_hash.startswith(model_hash or "")]
    if not outcomes:
        models = ", ".join(sorted({o.base_hash for o in every}))
        raise TaskError(f"--model-hash {model_hash}: the outcomes in {', '.join(map(str, stores))} are of {models}")
    outcomes = without_families_of(outcomes, leave_out or [])
    with training.writing():
        if any_model:
            _train_any_model(outcomes, stores, training)
        else:
            train_and_write(outcomes, stores, training, workers)


def _check_for_any_model(training: TrainingOptions) -> None:
    """Raises `SettingsError` for an option that a policy for any model does not have."""
    for option, value in (("--cost-weight", training.training_cost_weight), ("--risk", training.risk)):
        if value is not None:
            raise SettingsError(
                f"{option} {value}: a policy for any model is trained without it, since costs and risks differ between "
                "models; leave out this option or --any-model"
            )


def without_families_of(outcomes: Sequence[Outcome], datasets: Sequence[str]) -> list[Outcome]:
    """The outcomes on families that none of the data sets has; families that share a task are one. Raises `TaskError`
    for a data set without outcomes, and where nothing is left."""
    from ...policies.outcome_table import merged_families

    known = sorted({outcome.dataset for outcome in outcomes})
    for dataset in datasets:
        if dataset not in known:
            raise TaskError(f"--leave-out {dataset}: the outcomes are on {', '.join(known)}")
    family_of = merged_families(outcomes)
    families = {family for family, o in zip(family_of, outcomes, strict=True) if o.dataset in datasets}
    remaining = [o for family, o in zip(family_of, outcomes, strict=True) if family not in families]
    if not remaining:
        raise TaskError(f"--leave-out {', '.join(datasets)}: no outcomes are left to train on")
    return remaining


@dataclass(frozen=True)
class TraceSource:
    """Stored traces that a policy is trained on."""

    traces: Annotated[
        str | None,
        typer.Option(
            metavar="STORE", help="Learn from stored traces too: `local` (your store), or a file NAME.sqlite."
        ),
    ] = None
    since: Annotated[
        str | None, typer.Option(help="Only traces from this date on (2026-01-31), or of the last 12h or 7d.")
    ] = None
    until: Annotated[str | None, typer.Option(help="Only traces before this date.")] = None
    model_hash: Annotated[
        str | None,
        typer.Option(metavar="HASH", help="Only traces of the model whose content hash begins with this."),
    ] = None
    forced: Annotated[
        bool, typer.Option("--forced", help="Learn also from attempts whose strategy the caller forced.")
    ] = False

    def rows(self) -> tuple[list[Row], dict[str, int]]:
        """The traces as rows of a log, and why others give none. Raises `SettingsError` for another name."""
        if self.traces is None:
            return [], {}
        if self.traces != "local" and not self.traces.endswith(STORE_SUFFIXES):
            raise SettingsError(
                f"--traces: expected local, or a file that ends with {STORE_SUFFIXES[0]}; received {self.traces!r}"
            )
        from ..tracing.log_rows import DAMAGED, log_rows
        from ..tracing.store import Filter

        times = Filter(since=time_of("--since", self.since), until=time_of("--until", self.until))
        damaged: list[TraceError] = []
        traces = store_of(self.traces).traces(times, on_damaged=damaged.append)
        rows, unusable = log_rows(traces, self.model_hash or "")
        if damaged:
            unusable[DAMAGED] = unusable.get(DAMAGED, 0) + len(damaged)
        return rows, unusable


def retrain(
    store: Annotated[Path, typer.Option(help="Folder of outcomes: those of the logs are added to it.")],
    training: TrainingOptions,
    source: TraceSource,
    logs: OptionalLogs = None,
    answers: AnswerFiles = None,
    demonstrations: Demonstrations = None,
) -> None:
    """Train a policy on logs, stored traces and collected outcomes: adds the outcomes of the runs to a store, then
    trains.

    Example: `autottt retrain answers.jsonl --answers solutions.jsonl --store runs/outcomes --out runs/policy`

    Only queries whose right answer is known, and on which everything was measured, become outcomes; `solve --explore`
    makes sure that there are some of every kind. A policy is evaluated on queries that every strategy was tried on. Of
    traces, attempts whose strategy the caller forced are left out unless `--forced`.
    """
    from ...policies.outcomes import OutcomeStore
    from ...policies.serving_logs import read_log, with_right_answers
    from ...policies.store_update import StoreUpdate
    from ...policies.training import trainable_table

    if not logs and source.traces is None:
        raise TaskError("there is nothing to learn from: name files that `autottt solve --trace` wrote, or --traces")
    with training.writing(store=store):
        (traced, unusable), rows = source.rows(), read_log(logs or [])
        answered = tasks_with_answers(answers, [*rows, *traced], demonstrations)
        rows, traced = with_right_answers(rows, answered), with_right_answers(traced, answered)
        _report_rows(rows, traced, unusable, source.forced)
        update = StoreUpdate.planned(OutcomeStore(store), rows, traced, forced=source.forced)
        table = trainable_table(update.outcomes)  # raises before anything is written
        update.apply()
        _report_update(update)
        is_trained = _training_digest(training.out) == table.digest  # not after a run that ended before it had trained
        if update or not is_trained:
            train_and_write(update.outcomes, [store], training)
        else:
            warn(
                f"nothing new to learn, so {training.out} is unchanged; `autottt train-policy {store} --out "
                f"{training.out}` trains it again"
            )


def _training_digest(bundle: Path) -> str | None:
    """The digest of the outcomes that the policy in a folder was trained on; None where there is none that can be read,
    or where an earlier version wrote it."""
    from ...policies.bundle_card import read_card

    try:
        digest = read_card(bundle)["scorecard"]["training_digest"]
    except (PolicyError, LookupError, TypeError):
        return None
    return digest if isinstance(digest, str) else None


def _report_rows(rows: Sequence[Row], traced: Sequence[Row], unusable: Mapping[str, int], forced: bool) -> None:
    """Says how many queries there are, and why some of them teach nothing."""
    from ...policies.serving_logs import is_forced, skipped_counts

    counts = [(len(rows), "in the logs"), (len(traced) + sum(unusable.values()), "in the traces")]
    line(f"queries: {', '.join(f'{count} {where}' for count, where in counts if count) or 'none'}")
    for why, count in {**unusable, **skipped_counts([*rows, *traced])}.items():
        line(f"{count} teach nothing: {why}")
    chosen_by_caller = 0 if forced else sum(map(is_forced, traced))
    if chosen_by_caller:
        line(f"{chosen_by_caller} teach about in_context only: the caller forced the strategy (--forced uses them)")


def _report_update(update: StoreUpdate) -> None:
    """Says what changed in the store."""
    changed = f", {len(update.relabelled)} relabelled" if update.relabelled else ""
    changed += f", {len(update.dropped)} removed, which changed feedback no longer labels" if update.dropped else ""
    line(f"{update.found} outcomes of them can be learned from, {len(update.new)} new{changed}")


def train_and_write(
    outcomes: Sequence[Outcome], stores: Sequence[Path], training: TrainingOptions, workers: int = 1
) -> None:
    """Trains, writes the bundle and the record of the run, and prints how good the policy is."""
    from ...policies.bundle import save_bundle
    from ...policies.report import REPORT, as_markdown
    from ...policies.training import train_policy

    with interruptible(_remedy(stores)), reporting(f"training on {len(outcomes)} outcomes") as on_progress:
        trained = train_policy(
            outcomes, cost_weight=training.training_cost_weight, risk=training.risk, seed=training.seed,
            workers=workers, on_progress=on_progress,
        )  # fmt: skip
    written = save_bundle(trained, training.out)
    record = _recorded(trained, written, outcomes, stores, training)
    if training.as_json:
        print_json(trained.scorecard)
    else:
        print_markdown(as_markdown(trained))
    _warn_of_weaknesses(trained, outcomes)
    note(f"the policy is in {written}, with {REPORT}; the run is recorded in {record}")
    _report_release(trained, written, training.out)


def _remedy(stores: Sequence[Path]) -> str:
    """What an interruption of training leaves."""
    return f"the outcomes in {', '.join(map(str, stores))} are kept, and the same command trains on them again"


def _recorded(
    trained: TrainedPolicy, written: Path, outcomes: Sequence[Outcome], stores: Sequence[Path],
    training: TrainingOptions,
) -> Path:  # fmt: skip
    """Writes the scorecard of a bundle and the record of its run, whose folder is returned."""
    from ...policies.report import write_report
    from ...policies.tracking import track

    write_report(trained, written)
    return track(
        trained, written, training.runs,
        {
            "store": " ".join(map(str, stores)), "outcomes": len(outcomes),
            "cost_weight": training.training_cost_weight, "risk": training.risk, "seed": training.seed,
        },
    )  # fmt: skip


def _train_any_model(outcomes: Sequence[Outcome], stores: Sequence[Path], training: TrainingOptions) -> None:
    """Trains a policy for any model, writes it and the record of the run, and prints what it gains on each model when
    that was held out."""
    from ...policies.any_model import bundled_vocabulary, train_any_model
    from ...policies.bundle import save_bundle

    with interruptible(_remedy(stores)):
        trained = train_any_model(outcomes, bundled_vocabulary(), seed=training.seed)
    if training.as_json:
        print_json(trained.scorecard)
    for model, card in trained.scorecard["models"].items():
        policy, thumb = card["arms"]["policy"], card["arms"]["rule_of_thumb"]
        line(
            f"{model[:12]}, held out with its families ({card['families']}): accuracy {policy['accuracy']:.1%} at "
            f"{policy['cost']:.0f}% of the most expensive strategy; rule of thumb {thumb['accuracy']:.1%} at "
            f"{thumb['cost']:.0f}%"
        )
    gain = trained.scorecard["gain_over_rule_of_thumb"]
    low, high = gain["interval_90"]
    line(f"gain in utility over the rule of thumb: {gain['value']:+.3f} (90% interval {low:+.3f} to {high:+.3f})")
    written = save_bundle(trained, training.out, over_released=True)
    record = _recorded(trained, written, outcomes, stores, training)
    note(
        f"the policy for any model is in {written}; in `{policies_folder() / ANY_MODEL}` it becomes the default; the "
        f"run is recorded in {record}"
    )
    if not trained.released:
        warn("it does not beat the rule of thumb significantly, so it is no default; collect outcomes of more models")


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
            f"the policy does not choose {', '.join(card['excluded_strategies'])}, which many of the families lack on "
            "which other strategies were tried; collect more of them"
        )
    if 2 * card["cases"] < card["training_cases"]:
        warn(f"evaluated on {card['cases']} of {card['training_cases']} cases, on which every strategy was tried")


def _report_release(trained: TrainedPolicy, written: Path, out: Path) -> None:
    """Says if the policy is not better than the best strategy, nor as good and cheaper. Raises `PolicyError` if a
    better one is in its place."""
    from ...policies.report import REPORT

    best = trained.ranking[0]
    if written != out:
        raise PolicyError(
            f"{out} holds a released policy and is unchanged: the new policy is neither significantly better than "
            f"always {best} nor as good and cheaper, and is in {written}. Collect more; to use it all the same, name "
            "that folder, or remove the released one and train again"
        )
    if not trained.released:
        warn(
            f"this policy is neither significantly better than always {best} nor as good and cheaper (see "
            f"{out / REPORT}): collect more, or use --strategy {best}"
        )
