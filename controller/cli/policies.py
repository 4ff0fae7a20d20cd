"""The commands of `autottt policy`, except `fit`: list, show, explain, compare, monitor and remove policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markdown import Markdown
from rich.text import Text

from ...policies.bundle_card import ANY_MODEL, CARD, bundle_folder, bundles, policies_folder, read_card
from ...ttt_core.errors import PolicyError, TooLongError
from ...ttt_core.standard_json import dumps
from .console import line, screen, warn
from .options import (
    AsJson,
    Demonstrations,
    Files,
    ModelOptions,
    PolicyOptions,
    TaskOptions,
    check_bundle,
    command,
    load_controller,
)

if TYPE_CHECKING:
    from ...policies.policy import LearnedPolicy, Policy
    from ...policies.trained_policy import TrainedPolicy
    from ...ttt_core.tasks.task import Task

policy_app = typer.Typer(no_args_is_help=True, help="Fit, list, show, explain, compare and monitor policies.")
Logs = Annotated[list[Path], typer.Argument(help="Files that `autottt solve --trace` wrote.")]
OptionalLogs = Annotated[list[Path] | None, typer.Argument(help="Files that `autottt solve --trace` wrote.")]
AnswerFiles = Annotated[
    list[Path] | None,
    typer.Option("--answers", help="Task files with the right answers of queries that were solved without them."),
]


@command(policy_app)
def show(policy: PolicyOptions, model: ModelOptions, as_json: AsJson = False) -> None:
    """Show the policy that a model gets, or the one that --policy names: its training and how well it decides.

    A policy that is named is shown without a model, also one that was trained for another model.

    Example: `autottt policy show --policy smollm2-135m`
    """
    policy.check()
    from ...policies.report import as_markdown

    chosen = load_controller(model, policy).policy if policy.policy is None else _named(policy, policy.policy)
    learned = _learned(chosen)
    if as_json or learned is None:
        print_json({"policy": chosen.name, **chosen.card()})
    else:
        print_markdown(as_markdown(learned.trained))


def _named(policy: PolicyOptions, name: Path) -> LearnedPolicy:
    """The policy in a folder, or of a name, for whatever model it was trained."""
    from ...policies.bundle import load_bundle
    from ...policies.policy import LearnedPolicy

    named = LearnedPolicy(load_bundle(bundle_folder(name), policy.ignore_mismatch))
    return named if policy.cost_weight is None else named.with_cost_weight(policy.cost_weight)


def _learned(policy: Policy) -> LearnedPolicy | None:
    """The learned policy that decides; None where none does."""
    from ...policies.policy import AnyModelPolicy, LearnedPolicy

    if isinstance(policy, AnyModelPolicy):
        return policy.learned
    return policy if isinstance(policy, LearnedPolicy) else None


@command(policy_app, "list", plugins=False)
def list_(as_json: AsJson = False) -> None:
    """Show the policies on this machine: yours, which `policy fit` installed, and the shipped ones, and whether they
    are defaults. Each name works as --policy NAME.

    Example: `autottt policy list`
    """
    rows = [_listed(name, folder, folder.parent == policies_folder()) for name, folder in bundles()]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        model = "any model" if row["model"] == ANY_MODEL else f"model {row['model'][:12]}"
        line(f"{row['name']}  {row['origin']}, {model}, {row['state']}\n    {row['folder']}")


def _listed(name: str, folder: Path, own: bool) -> dict[str, Any]:
    """What a list shows of a policy, from its card alone."""
    row = {"name": name, "folder": str(folder), "origin": "yours" if own else "shipped"}
    try:
        card = read_card(folder)
        families = len(card["families"])
        return {
            **row, "model": str(card["base_hash"]), "prompt_format": card["prompt_format"],
            "starting_adapter": card.get("starting_adapter", ""), "families": families,
            "strategies": card["strategies"], "released": card["released"],
            "state": f"{families} families, {_use(card, name, own)}",
        }  # fmt: skip
    except (PolicyError, LookupError, TypeError) as error:
        return {**row, "model": "unknown", "state": f"damaged: {error}"}


def _use(card: Mapping[str, Any], name: str, own: bool) -> str:
    """Whether a policy is released, and which models get it by default."""
    from ...policies.installed import installed_folder

    installed = installed_folder(card["base_hash"], card["prompt_format"], card.get("starting_adapter", ""))
    released = "released" if card["released"] else "not released"
    if name == ANY_MODEL and card["base_hash"] == ANY_MODEL:
        default = "the default of models without one of their own" if card["released"] else "so no default"
        if card["released"] and not own and _is_released(policies_folder() / ANY_MODEL):
            default = "no default, since yours of this name precedes it"
    elif own and name == installed.name:
        always = f"so its model always gets {card['ranking'][0]} by default"
        default = "the default of its model" if card["released"] else always
    elif own or name == "public":
        default = f"used with --policy {name} only"
    elif (installed / CARD).is_file():
        default = "no default, since its model has yours"
    else:
        default = "the default of its model" if card["released"] else "so not used by default"
    return f"{released}, {default}"


def _is_released(folder: Path) -> bool:
    """Whether there is a policy in a folder that is released."""
    try:
        return bool(read_card(folder)["released"])
    except (PolicyError, LookupError):
        return False


@command(policy_app, plugins=False)
def remove(name: Annotated[str, typer.Argument(help="Name of one of your policies, as in `policy list`.")]) -> None:
    """Delete one of your policies. Its outcomes stay, so `policy fit` trains it again in minutes.

    Example: `autottt policy remove a4b5ca0a954061f8-auto`
    """
    from ...policies.installed import remove_policy

    if not remove_policy(name):
        own = [known for known, folder in bundles() if folder.parent == policies_folder()]
        raise PolicyError(f"{name}: expected the name of one of your policies: {', '.join(own) or 'there are none'}")
    line(f"{name}: deleted")


@command(policy_app)
def explain(files: Files, policy: PolicyOptions, model: ModelOptions, tasks: TaskOptions) -> None:
    """Explain the decisions of the policy on tasks: the contributions of features, and what would change the choice.

    Example: `autottt policy explain tasks.jsonl --limit 1`
    """
    policy.check()
    loaded = tasks.read(files)
    from ...policies import explain as explanations
    from ...policies.measurement import measure_task
    from ..nodes import applicable

    controller = load_controller(model, policy, seed=tasks.seed)
    chosen = _learned(controller.policy)
    if chosen is None:
        raise PolicyError(
            f"only a learned policy can be taken apart; this model gets {controller.policy.name!r}. Train one: "
            "`autottt collect`, then `autottt train-policy`, then --policy FOLDER"
        )
    refused = 0
    for task in loaded.tasks:
        try:
            features = measure_task(
                controller.learner, task, tasks.seed, lambda free, cost: chosen.needs_more(free)
            ).features
        except TooLongError as error:
            refused += 1
            warn(f"refused: {error}")
            continue
        screen.print(Text(task.id, "bold cyan"))
        line(explanations.as_text(explanations.explain(chosen, features, applicable(task))))
        line("")
    if loaded.problems or refused:
        raise typer.Exit(1)


@command(policy_app, plugins=False)
def compare(
    policies: Annotated[list[Path], typer.Argument(help="Folders or names of policies, of one model or of several.")],
) -> None:
    """Show the scorecards of policies side by side.

    Example: `autottt policy compare runs/policy runs/other`
    """
    check_bundle(*policies)
    from ...policies.bundle import load_bundle
    from .display import show_comparison

    columns = []
    for folder in policies:
        trained = load_bundle(bundle_folder(folder))
        if not trained.models:
            columns.append((str(folder), trained))
        for model in trained.models:
            card = trained.scorecard["models"][model]
            columns.append((f"{folder}, model held out", replace(trained, base_hash=model, scorecard=card)))
    screen.print(show_comparison(columns))


@command(policy_app, plugins=False)
def monitor(
    logs: Logs,
    answers: AnswerFiles = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="Bundle with the training set to compare with; default: that of the policy the model gets."),
    ] = None,
    demonstrations: Demonstrations = None,
) -> None:
    """Summarise what was served: choices, accuracy, the choices of the shadow policy, and drift from the training set.

    Example: `autottt policy monitor answers.jsonl`
    """
    check_bundle(policy)
    from ...policies.bundle import load_bundle
    from ...policies.serving_logs import base_of, read_log, summary, with_right_answers

    rows = read_log(logs)
    base = base_of(rows)
    trained = _default_of(rows[0], base) if policy is None else load_bundle(bundle_folder(policy))
    if trained is None:
        warn("drift is not reported: the model that answered gets no learned policy by default; name one with --policy")
    elif trained.base_hash not in (base, ANY_MODEL):
        raise PolicyError(f"{policy} is for another model than the one that answered: drift from it means nothing")
    report = summary(with_right_answers(rows, tasks_with_answers(answers, rows, demonstrations)), trained)
    print_json(report)
    if report.get("drifted"):
        warn(f"drifted from training: {', '.join(report['drifted'])}; `autottt retrain` learns from what was served")


def _default_of(row: Mapping[str, Any], base_hash: str) -> TrainedPolicy | None:
    """The training of the policy that the model of a result gets by default; None where no learned one is."""
    from ...policies.policy import load_policy

    model = row.get("run", {}).get("model", {})
    learned = _learned(
        load_policy(
            base_hash=base_hash, prompt_format=model.get("prompt_format", ""),
            starting_adapter=model.get("starting_adapter", ""), nominal_cost=lambda _: 1.0,
        )
    )  # fmt: skip
    return None if learned is None else learned.trained


def tasks_with_answers(
    files: list[Path] | None, rows: Sequence[Mapping[str, Any]], demonstrations: int | None
) -> list[Task]:
    """The tasks of files, read with the seeds of the log: if a file leaves the choice of demonstrations open, the seed
    determines it."""
    seeds = sorted({row["seed"] for row in rows})
    groups = [TaskOptions(seed, None, demonstrations).read(files).tasks for seed in seeds] if files else []
    return [task for tasks in groups for task in tasks]


def print_json(content: Any) -> None:
    """Prints content as JSON."""
    screen.print_json(dumps(content, default=_plain), ensure_ascii=True)


def _plain(value: object) -> object:
    """A number of NumPy as a number of Python, anything else as text."""
    item = getattr(value, "item", None)
    return item() if callable(item) else str(value)


def print_markdown(text: str) -> None:
    """Shows Markdown on a terminal; prints it as it is elsewhere."""
    if screen.is_terminal:
        screen.print(Markdown(text, hyperlinks=False))
    else:
        line(text)
