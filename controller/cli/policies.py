"""The commands that collect outcomes, train policies and look at them: wiring only, as in `cli`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markdown import Markdown

from ...policies.outcomes import BASE
from ...ttt_core.errors import PolicyError, TaskError, TooLongError
from .options import (
    Debug,
    Device,
    Dtype,
    Files,
    Format,
    IgnoreMismatch,
    Limit,
    Model,
    Plugin,
    Policy,
    Seed,
    Shown,
    errors,
    interruptible,
    load_controller,
    make_folders,
    quiet,
    read,
    screen,
    telling,
    warn,
)

policy_app = typer.Typer(no_args_is_help=True, help="Look at policies.")
outcomes_app = typer.Typer(no_args_is_help=True, help="Look at collected outcomes, and bring in others.")


@policy_app.command("show")
def policy_show(
    model: Model = None,
    policy: Policy = None,
    ignore_mismatch: IgnoreMismatch = False,
    plugin: Plugin = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show the policy that a model gets: what it was trained on and how well it decides.

    Example: `autottt policy show`
    """
    from ...policies.policy import LearnedPolicy
    from ...policies.report import as_markdown

    chosen = load_controller(model=model, policy=policy, ignore_mismatch=ignore_mismatch).policy
    if as_json or not isinstance(chosen, LearnedPolicy):
        screen.print_json(json.dumps({"policy": chosen.name, **chosen.card()}, default=str))
        return
    screen.print(Markdown(as_markdown(chosen.trained)))


@policy_app.command("explain")
def policy_explain(
    files: Files,
    model: Model = None,
    policy: Policy = None,
    ignore_mismatch: IgnoreMismatch = False,
    plugin: Plugin = None,
    seed: Seed = 0,
    limit: Limit = None,
    shown: Shown = None,
    device: Device = None,
    dtype: Dtype = None,
    prompt_format: Format = None,
    debug: Debug = False,
) -> None:
    """Say why the policy decides as it does on tasks: what pushed it, and what would have changed it.

    Example: `autottt policy explain tasks.jsonl --limit 1`
    """
    from ...policies.explain import as_text, explain
    from ...policies.measurement import measure_task
    from ...policies.policy import LearnedPolicy
    from ..nodes import applicable

    reading = read(files, limit, seed, shown)
    controller = load_controller(
        model=model, policy=policy, seed=seed, ignore_mismatch=ignore_mismatch, device=device, dtype=dtype,
        prompt_format=prompt_format,
    )  # fmt: skip
    if not isinstance(controller.policy, LearnedPolicy):
        raise PolicyError(
            f"only a learned policy can be taken apart; this model gets {controller.policy.name!r}. Train one: "
            "`autottt collect`, then `autottt train-policy`, then --policy FOLDER"
        )
    refused = 0
    for task in reading.tasks:
        try:
            features = measure_task(
                controller.learner, task, seed, lambda free, cost: controller.policy.needs_more(free)
            ).features
        except TooLongError as error:
            refused += 1
            warn(f"refused: {error}")
            continue
        screen.print(f"[bold cyan]{task.id}[/]")
        screen.print(as_text(explain(controller.policy, features, applicable(task))), markup=False, highlight=False)
        screen.print()
    if reading.problems or refused:
        raise typer.Exit(1)


@policy_app.command("compare")
def policy_compare(
    first: Annotated[Path, typer.Argument(help="Folder of a policy bundle.")],
    second: Annotated[Path, typer.Argument(help="Folder of another.")],
    debug: Debug = False,
) -> None:
    """Show two policies' scorecards side by side.

    Example: `autottt policy compare runs/policy runs/other`
    """
    from ...policies.bundle import load_bundle
    from ...policies.policy import bundle_folder
    from .display import show_comparison

    screen.print(show_comparison([(str(folder), load_bundle(bundle_folder(folder))) for folder in (first, second)]))


Logs = Annotated[list[Path], typer.Argument(help="What `autottt solve --trace` wrote.")]
Answers = Annotated[
    list[Path] | None, typer.Option(help="Task files with the right answers of queries that were solved without.")
]
Runs = Annotated[Path, typer.Option(help="Folder in which every training run is kept track of.")]
Price = Annotated[
    float | None,
    typer.Option(help="Accuracy that one in-context cost is worth; default: the dearest strategy costs 0.1."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")]
Of = Annotated[
    str | None,
    typer.Option(
        "--model-hash", metavar="HASH", help="Only outcomes of the model whose content hash begins so; default: all."
    ),
]
Risk = Annotated[
    float | None,
    typer.Option(help="Promise that at most this share of the answers kept in context is wrong, with 90% confidence."),
]


@policy_app.command("monitor")
def policy_monitor(
    logs: Logs,
    answers: Answers = None,
    policy: Annotated[
        Path | None, typer.Option(help="Bundle whose training set to compare with; default: the one that ships.")
    ] = None,
    shown: Shown = None,
    debug: Debug = False,
) -> None:
    """Say what was served: choices, how often right, what the shadow would have done, and drift from training.

    Example: `autottt policy monitor answers.jsonl`
    """
    from ...policies.bundle import load_bundle
    from ...policies.policy import BUNDLED, bundle_folder
    from ...policies.serving_logs import base_of, read_log, summary

    rows = read_log(logs)
    trained = load_bundle(bundle_folder(policy) if policy else BUNDLED)
    fits = trained.base_hash == base_of(rows)
    if policy is not None and not fits:
        raise PolicyError(f"{policy} is for another model than the one that answered: drift from it says nothing")
    if not fits:
        warn("no drift is told: the policy that ships was trained for another model; name yours with --policy")
    found = summary(rows, _right_answers(answers, rows, shown), trained if fits else None)
    screen.print_json(json.dumps(found))
    if found.get("drifted"):
        errors.print(
            f"drifted from training: {', '.join(found['drifted'])}; `autottt retrain` learns from what was served",
            style="yellow",
        )


def _right_answers(files: list[Path] | None, rows: Sequence[Mapping[str, Any]], shown: int | None) -> dict[str, Any]:
    """The answers in task files by what is asked, read with the seeds that the queries of a log were read with: where a
    file leaves the demonstrations open, the seed draws them."""
    seeds = sorted({row["seed"] for row in rows})
    tasks = [task for seed in seeds for task in read(files, None, seed, shown).tasks] if files else []
    return {task.digest: task.answer for task in tasks if task.answer is not None}


def retrain(
    logs: Logs,
    store: Annotated[Path, typer.Option(help="Folder of outcomes: those that are served are added to it.")],
    out: Annotated[Path, typer.Option(help="Folder that the policy bundle is written to.")],
    answers: Answers = None,
    runs: Runs = Path("runs/policies"),
    cost_weight: Price = None,
    risk: Risk = None,
    as_json: AsJson = False,
    plugin: Plugin = None,
    seed: Seed = 0,
    shown: Shown = None,
    debug: Debug = False,
) -> None:
    """Learn from what was served, beside what was collected: adds the outcomes in logs to a store, then trains.

    Example: `autottt retrain answers.jsonl --answers solutions.jsonl --store runs/outcomes --out runs/policy`

    Only queries whose right answer is known, and on which everything was measured, teach something; `solve --explore`
    makes sure that there are some of every kind. A policy is still judged on queries that every strategy was tried on.
    """
    from ...policies.bundle import CARD
    from ...policies.outcomes import OutcomeStore
    from ...policies.serving_logs import base_of, outcomes_of, read_log, skipped_counts
    from ...policies.training import trainable_table

    make_folders(out=out, runs=runs, store=store)
    rows = read_log(logs)
    kept, right = OutcomeStore(store), _right_answers(answers, rows, shown)
    found, passed = outcomes_of(rows, right), skipped_counts(rows, right)
    new = kept.missing(found)
    base = base_of(rows)
    together = [*(o for o in kept.read() if o.base_hash == base), *new]
    trainable_table(together)  # raises before anything is written
    for outcome in new:
        kept.append(outcome)
    kept.seal()
    screen.print(f"{len(rows)} queries in the logs; {len(found)} outcomes of them can be learned from, {len(new)} new")
    for why, count in passed.items():
        screen.print(f"{count} teach nothing: {why}", highlight=False)
    if new or not (out / CARD).exists():
        _train([store], out, runs, cost_weight, risk, seed, model_hash=base, as_json=as_json)
    else:
        warn(f"nothing new to learn, so {out} is as it was; `autottt train-policy {store} --out {out}` trains it anew")


def collect(
    store: Annotated[Path, typer.Option(help="Folder that outcomes are added to.")],
    files: Annotated[list[Path] | None, typer.Argument(help="Task files or folders.")] = None,
    generated: Annotated[int, typer.Option(min=0, help="Also this many tasks of the generator's policy families.")] = 0,
    queries_per_task: Annotated[
        int, typer.Option(min=1, help="Queries of each generated task; they share adapters, so that more cost little.")
    ] = 1,
    strategies: Annotated[str, typer.Option(help="Names, separated by commas.")] = (
        "in_context,in_context_vote,ttt_in_context,ttt_augmented"
    ),
    seeds: Annotated[
        str | None, typer.Option(help="Seeds of the strategies, separated by commas; default: --seed.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, with a model each.")] = 1,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster for the workers; `local` starts one.")
    ] = None,
    model: Model = None,
    plugin: Plugin = None,
    seed: Seed = 0,
    limit: Limit = None,
    shown: Shown = None,
    device: Device = None,
    dtype: Dtype = None,
    prompt_format: Format = None,
    debug: Debug = False,
) -> None:
    """Run every strategy on every task and keep what each achieved and cost, to train a policy on.

    Example: `autottt collect --generated 200 --store runs/outcomes --workers 2`

    Stop it when you like: the same command goes on where it was.
    """
    from ...policies.collect import collect
    from ...policies.outcomes import OutcomeStore
    from ...policies.parallel import Source, collect_with_workers
    from ...strategies.registry import get_strategy
    from ...ttt_core.learner import Learner
    from ...ttt_core.pretraining.generator.families import draw_tasks

    chosen = [get_strategy(n.strip()) for n in strategies.split(",") if n.strip()]
    if not {s.name for s in chosen} - {BASE}:
        raise TaskError(
            f"--strategies {strategies!r}: {BASE} is run anyway, and a policy chooses between it and others; name some"
        )
    make_folders(store=store)
    reading = read(files, limit, seed, shown) if files else None
    tasks = [*(reading.tasks if reading else ()), *draw_tasks("policy", generated, seed, queries=queries_per_task)]
    if not tasks:
        raise TaskError("there is nothing to collect from: name task files, or give --generated 200")
    quiet()
    drawn = _seeds(seeds) if seeds else [seed]
    kept = OutcomeStore(store)
    kept_so_far = f"{store} keeps the outcomes so far, and the same command goes on after them"
    with interruptible(kept_so_far), telling("collecting") as on_progress:
        if workers == 1 and ray is None:
            learner = Learner.load(model, device=device, dtype=dtype, prompt_format=prompt_format)
            collect(learner, tasks, chosen, drawn, kept, on_progress)
        else:
            source = Source(model, device, dtype, prompt_format)
            collect_with_workers(
                source, tasks, chosen, drawn, kept, workers=workers, ray_address=ray, on_progress=on_progress
            )
    stored = kept.read()
    done = f"{store} holds {len(stored)} outcomes; next: autottt train-policy {store} --out ..."
    screen.print(done, highlight=False, soft_wrap=True)
    if len(models := {o.base_hash for o in stored}) > 1:
        warn(
            f"they are of {len(models)} models, and a policy is for one: train-policy --model-hash HASH takes those of "
            "one"
        )
    if reading and reading.problems:
        raise typer.Exit(1)


@outcomes_app.command("show")
def outcomes_show(store: Annotated[Path, typer.Argument(help="Folder of outcomes.")], debug: Debug = False) -> None:
    """Summarise a store: how often each strategy was right, what it cost, and what failed.

    Example: `autottt outcomes show runs/outcomes`
    """
    from ...policies.outcomes import OutcomeStore
    from .display import show_outcomes

    outcomes = OutcomeStore(store).read()
    if not outcomes:
        raise TaskError(f"{store} holds no outcomes; collect some with `autottt collect TASKS --store {store}`")
    screen.print(show_outcomes(outcomes))


@outcomes_app.command("import")
def outcomes_import(
    file: Annotated[Path, typer.Argument(help="CSV with task, seed, strategy, accuracy and cost.")],
    store: Annotated[Path, typer.Option(help="Folder that outcomes are added to.")],
    in_context: Annotated[str, typer.Option(help="What the table calls answering in context.")] = "in_context",
    name: Annotated[str | None, typer.Option(help="Name of the model that answered; default: the file's.")] = None,
    debug: Debug = False,
) -> None:
    """Add outcomes that were measured elsewhere to a store.

    Example: `autottt outcomes import table.csv --store runs/elsewhere --in-context ICL_10`
    """
    from ...policies.imported import import_csv
    from ...policies.outcomes import OutcomeStore

    kept, found = OutcomeStore(store), import_csv(file, in_context=in_context, model=name)
    new = kept.missing(found)
    for outcome in new:
        kept.append(outcome)
    kept.seal()
    added = f"{len(new)} outcomes added to {store}; {len(found) - len(new)} are there already"
    screen.print(added, soft_wrap=True)


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise TaskError(
            f"--seeds: expected whole numbers separated by commas, such as 0,1,2; received {text!r}"
        ) from None


def train_policy(
    stores: Annotated[list[Path], typer.Argument(help="Folders of outcomes, from `autottt collect`.")],
    out: Annotated[Path, typer.Option(help="Folder that the policy bundle is written to.")],
    runs: Runs = Path("runs/policies"),
    cost_weight: Price = None,
    risk: Risk = None,
    model_hash: Of = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw the folds of the scorecard.")] = 1,
    as_json: AsJson = False,
    plugin: Plugin = None,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Learn from outcomes which strategy pays on which task, and judge that on families held out.

    Example: `autottt train-policy runs/outcomes --out runs/policy`
    """
    _train(stores, out, runs, cost_weight, risk, seed, workers, model_hash, as_json)


def _train(
    stores: Sequence[Path], out: Path, runs: Path, cost_weight: float | None, risk: float | None, seed: int,
    workers: int = 1, model_hash: str | None = None, as_json: bool = False,
) -> None:  # fmt: skip
    """Trains, writes the bundle, keeps track of the run, and prints how good it is."""
    from ...policies.bundle import save_bundle
    from ...policies.outcomes import OutcomeStore
    from ...policies.report import REPORT, as_markdown, write_report
    from ...policies.tracking import track
    from ...policies.training import train_policy

    known = []
    for store in stores:
        known += (found := OutcomeStore(store).read())
        if not found:
            raise TaskError(f"{store} holds no outcomes; collect some with `autottt collect TASKS --store {store}`")
    outcomes = [o for o in known if o.base_hash.startswith(model_hash or "")]
    if not outcomes:
        models = ", ".join(sorted({o.base_hash for o in known}))
        raise TaskError(f"--model-hash {model_hash}: the outcomes in {', '.join(map(str, stores))} are of {models}")
    make_folders(out=out, runs=runs)
    with telling(f"training on {len(outcomes)} outcomes") as on_progress:
        trained = train_policy(
            outcomes, cost_weight=cost_weight, risk=risk, seed=seed, workers=workers, on_progress=on_progress
        )
    card = trained.scorecard
    if as_json:
        screen.print_json(json.dumps(card, default=float))
    else:
        screen.print(Markdown(as_markdown(trained)))
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
        warn(f"judged by {card['cases']} of {card['training_cases']} cases, those on which every strategy was tried")
    written = save_bundle(trained, out)
    write_report(trained, written)
    settings = {
        "store": " ".join(map(str, stores)),
        "outcomes": len(outcomes),
        "price": cost_weight,
        "risk": risk,
        "seed": seed,
    }
    kept = track(trained, written, runs, settings)
    errors.print(
        f"the policy is in {written}, with {REPORT}; the run is kept in {kept}", highlight=False, soft_wrap=True
    )
    if written != out:
        raise PolicyError(
            f"{out} holds a released policy and is left as it was: the new one does not beat always "
            f"{trained.ranking[0]} for sure, and is in {written}. Collect more; to use it as it is, name that folder, "
            "or remove the released one and train again"
        )
    if not trained.released:
        errors.print(
            f"this policy does not beat always {trained.ranking[0]} for sure (see {out / REPORT}): collect more, or "
            f"use --strategy {trained.ranking[0]}",
            style="yellow",
        )
