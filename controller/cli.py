"""The command line: `autottt solve`, `evaluate`, `policy`, `collect`, `train-policy`, `retrain`, `doctor`, and more.

Only wiring is here: every command reads its options, calls the package, and prints.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..ttt_core.errors import AutotttError, PolicyError, TaskError

if TYPE_CHECKING:
    from ..ttt_core.readers import Reading
    from .controller import Controller

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown",
    help="A language model that knows when to learn from the examples it is given.",
)  # fmt: skip
policy_app = typer.Typer(no_args_is_help=True, help="Look at policies.")
app.add_typer(policy_app, name="policy")
outcomes_app = typer.Typer(no_args_is_help=True, help="Look at collected outcomes, and bring in others.")
app.add_typer(outcomes_app, name="outcomes")
screen, errors = Console(), Console(stderr=True)

Files = Annotated[
    list[Path], typer.Argument(help="Task files or folders: JSONL, ARC JSON, BIG-Bench Hard JSON, chat messages.")
]
Model = Annotated[
    str | None, typer.Option(help="Folder or hub id of a causal language model; default: the bundled one.")
]
PolicyOption = Annotated[
    Path | None, typer.Option(help="Folder of a policy bundle; default: the one that fits the model.")
]
AnyPolicy = Annotated[
    bool, typer.Option("--any-policy", help="Use --policy even if it was trained for another model or other recipes.")
]
Seed = Annotated[int, typer.Option(help="Same seed, same answers.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use this many tasks of each file, drawn by the seed.")]
Shown = Annotated[
    int | None, typer.Option("--demonstrations", min=1, help="Demonstrations to draw where a file leaves it open.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps ...; default: the best there is.")]
Dtype = Annotated[str | None, typer.Option(help="bf16 or fp32; default: what the device computes fastest.")]
Format = Annotated[
    str | None, typer.Option("--prompt-format", help="chat, standard or compact; default: what fits the model.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main() -> None:
    """Runs a command; an error of the package, or of the file system, is one clear line."""
    try:
        app(standalone_mode=True)
    except (AutotttError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        errors.print(f"[bold red]error:[/] {type(error).__name__}: ", end="")
        errors.print(str(error), markup=False, highlight=False)
        raise SystemExit(2) from None


def _quiet() -> None:
    """Keeps libraries from writing between our lines."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", module=r"(transformers|torch|langgraph|langchain_core)\b.*")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from ..ttt_core.model import without_progress_bars

    without_progress_bars()


def _controller(**options: Any) -> Controller:
    _quiet()
    from .controller import Controller

    return Controller.from_pretrained(**options)


def _read(files: list[Path], limit: int | None, seed: int, shown: int | None) -> Reading:
    """The tasks; problems are printed as they are found."""
    from ..ttt_core.readers import read_tasks

    reading = read_tasks(files, limit=limit, seed=seed, demonstrations=shown)
    for problem in reading.problems:
        errors.print(f"problem: {problem}", style="yellow", markup=False, highlight=False)
    return reading


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=errors, transient=True, speed_estimate_period=3600,  # one task may take minutes
    )  # fmt: skip


@app.command()
def solve(
    files: Files,
    out: Annotated[Path | None, typer.Option(help="Write answers here instead of to the screen.")] = None,
    strategy: Annotated[str | None, typer.Option(help="Use this strategy for every task.")] = None,
    budget: Annotated[str | None, typer.Option(help="Per query: 10s, or 20x the in-context time.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what --out holds and go on after it.")] = False,
    adapters: Annotated[
        Path | None, typer.Option(help="Keep trained adapters in this folder; find them again.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Also write features, attempts and the trace: a log for `autottt retrain`.")
    ] = False,
    memory: Annotated[
        float | None, typer.Option(min=0.0, help="GiB that training and answering may take beside the model.")
    ] = None,
    shadow: Annotated[
        Path | None, typer.Option(help="Bundle of a second policy: what it would choose is logged, not done.")
    ] = None,
    explore: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of queries whose strategy is drawn, to learn from.")
    ] = 0.0,
    model: Model = None,
    policy: PolicyOption = None,
    any_policy: AnyPolicy = False,
    seed: Seed = 0,
    limit: Limit = None,
    shown: Shown = None,
    device: Device = None,
    dtype: Dtype = None,
    prompt_format: Format = None,
    debug: Debug = False,
) -> None:
    """Answer the queries of task files, one JSON line each.

    Example: `autottt solve tasks.jsonl --budget 20x --out answers.jsonl`

    Exits with 1 when a task could not be read, or did not fit in the model; the others are answered all the same.
    """
    from ..ttt_core.kinds import STANDARD, kind_of

    if resume and out is None:
        raise TaskError("--resume continues a file: name it with --out")
    if out is not None and out.exists() and not resume:
        raise TaskError(f"{out} exists; give --resume to continue it, or another --out")
    reading = _read(files, limit, seed, shown)
    controller = _controller(
        model=model, policy=policy, strategy=strategy, device=device, dtype=dtype, prompt_format=prompt_format,
        budget=budget, seed=seed, adapters=adapters, shadow=shadow, explore=explore,
        memory_bytes=None if memory is None else round(memory * (1 << 30)), any_policy=any_policy,
    )  # fmt: skip
    done = _answered(out) if out is not None and resume else set()
    waiting = [t for t in reading.tasks if t.id not in done]
    refused = 0
    stream = out.open("a", encoding="utf-8") if out is not None else sys.stdout
    try:
        with _progress() as progress:
            bar = progress.add_task("solving", total=len(reading.tasks), completed=len(reading.tasks) - len(waiting))

            def show(result: Any) -> None:
                nonlocal refused
                refused += result.status == "refused"
                plain = result.to_plain()
                if result.status == "refused":
                    errors.print(f"refused: {result.error}", style="yellow", markup=False, highlight=False)
                elif result.answer is not None and kind_of(result.task).name == "text":
                    plain["text"] = kind_of(result.task).render(result.answer, STANDARD)
                kept = plain if full else {k: plain[k] for k in _SHORT}
                print(json.dumps(kept), file=stream, flush=True)
                progress.advance(bar)

            controller.solve_many(waiting, on_result=show)
    finally:
        if out is not None:
            stream.close()
    if reading.problems or refused:
        raise typer.Exit(1)


_SHORT = (
    "id",
    "status",
    "answer",
    "strategy",
    "reason",
    "difficulty",
    "scores",
    "right",
    "adapted",
    "multiples",
    "cost",
    "proof",
    "error",
)


def _answered(out: Path) -> set[str]:
    """Ids that a file of answers holds; a last line torn by an interruption is cut off."""
    if not out.exists():
        return set()
    found, whole = set(), []
    for line in out.read_text(encoding="utf-8").splitlines():
        try:
            found.add(str(json.loads(line)["id"]))
            whole.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            errors.print(f"{out}: dropping a line that is not an answer", style="yellow")
    out.write_text("".join(whole), encoding="utf-8")
    return found


@app.command()
def evaluate(
    files: Files,
    strategies: Annotated[
        str, typer.Option(help="Names, separated by commas; `controller` is the policy's choice.")
    ] = ("in_context,ttt_in_context,controller"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write summary and rows here.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the rows that an interrupted run left beside --json.")
    ] = False,
    model: Model = None,
    policy: PolicyOption = None,
    any_policy: AnyPolicy = False,
    seed: Seed = 0,
    limit: Limit = None,
    shown: Shown = None,
    device: Device = None,
    dtype: Dtype = None,
    prompt_format: Format = None,
    debug: Debug = False,
) -> None:
    """Measure strategies side by side: accuracy, seconds, cost as a multiple of in-context.

    Example: `autottt evaluate tasks.jsonl --strategies in_context,ttt_in_context,controller --limit 20 --json out.json`
    """
    from ..strategies.base import get_strategy
    from .display import show_summary
    from .evaluation import CONTROLLER, evaluate, report, summarise

    names = [n.strip() for n in strategies.split(",") if n.strip()]
    for name in names:
        if name != CONTROLLER:
            get_strategy(name)
    reading = _read(files, limit, seed, shown)
    controller = _controller(
        model=model, policy=policy, any_policy=any_policy, device=device, dtype=dtype, prompt_format=prompt_format,
        seed=seed,
    )  # fmt: skip
    partial = json_file.with_suffix(".rows.jsonl") if json_file else None
    if partial and not resume:
        partial.unlink(missing_ok=True)
    total = len(reading.tasks) * len(dict.fromkeys(["in_context", *names]))
    with _progress() as progress:
        bar = progress.add_task("evaluating", total=total)
        rows = evaluate(
            controller, reading.tasks, names, seed=seed, file=partial, on_row=lambda row: progress.advance(bar)
        )
    screen.print(show_summary(summarise(rows)))
    if json_file and partial:
        settings = {"files": [f.name for f in files], "strategies": names, "limit": limit, "seed": seed}
        json_file.write_text(json.dumps(report(controller, rows, settings), indent=1) + "\n")
        partial.unlink()
    if reading.problems:
        raise typer.Exit(1)


@app.command("strategies")
def list_strategies() -> None:
    """List the strategies: what each does, when it wins and loses.

    Example: `autottt strategies`
    """
    _quiet()
    import inspect

    from ..strategies.base import strategies

    for name, strategy in strategies().items():
        screen.print(f"[bold cyan]{name}[/]  ({strategy.cost_class}; needs {strategy.needs} demonstrations)")
        screen.print(inspect.getdoc(type(strategy)) or "", markup=False, highlight=False)
        screen.print()


@policy_app.command("show")
def policy_show(
    model: Model = None, policy: PolicyOption = None, any_policy: AnyPolicy = False, debug: Debug = False
) -> None:
    """Show the policy that a model gets: what it was trained on and how well it decides.

    Example: `autottt policy show`
    """
    controller = _controller(model=model, policy=policy, any_policy=any_policy)
    screen.print_json(json.dumps({"policy": controller.policy.name, **controller.policy.card()}, default=str))


@policy_app.command("explain")
def policy_explain(
    files: Files,
    model: Model = None,
    policy: PolicyOption = None,
    any_policy: AnyPolicy = False,
    seed: Seed = 0,
    limit: Limit = None,
    shown: Shown = None,
    debug: Debug = False,
) -> None:
    """Say why the policy decides as it does on tasks: what pushed it, and what would have changed it.

    Example: `autottt policy explain tasks.jsonl --limit 1`
    """
    from ..policies.explain import as_text, explain
    from ..policies.policy import LearnedPolicy
    from .nodes import measured, possible

    reading = _read(files, limit, seed, shown)
    controller = _controller(model=model, policy=policy, seed=seed, any_policy=any_policy)
    if not isinstance(controller.policy, LearnedPolicy):
        raise PolicyError(
            f"only a learned policy can be taken apart; this model gets {controller.policy.name!r}. Train one: "
            "`autottt collect`, then `autottt train-policy`, then --policy FOLDER"
        )
    for task in reading.tasks:
        features = measured(controller.learner, controller.policy, task, seed).features
        screen.print(f"[bold cyan]{task.id}[/]")
        screen.print(as_text(explain(controller.policy, features, possible(task))), markup=False, highlight=False)
        screen.print()
    if reading.problems:
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
    from ..policies.bundle import load_bundle
    from .display import show_comparison

    screen.print(show_comparison([(str(folder), load_bundle(folder)) for folder in (first, second)]))


Logs = Annotated[list[Path], typer.Argument(help="What `autottt solve --full` wrote.")]
Answers = Annotated[
    list[Path] | None, typer.Option(help="Task files with the right answers of queries that were solved without.")
]
Runs = Annotated[Path, typer.Option(help="Folder in which every training run is kept track of.")]
Price = Annotated[
    float | None,
    typer.Option(help="Accuracy that one in-context cost is worth; default: the dearest strategy costs 0.1."),
]
Risk = Annotated[
    float | None,
    typer.Option(help="Promise that at most this share of the answers kept in context is wrong, with 90% confidence."),
]


@policy_app.command("served")
def policy_served(
    logs: Logs,
    answers: Answers = None,
    policy: Annotated[
        Path | None, typer.Option(help="Bundle whose training set to compare with; default: the one that ships.")
    ] = None,
    shown: Shown = None,
    debug: Debug = False,
) -> None:
    """Say what was served: choices, how often right, what the shadow would have done, and drift from training.

    Example: `autottt policy served answers.jsonl`
    """
    from ..policies.bundle import load_bundle
    from ..policies.policy import BUNDLED
    from ..policies.traces import base_of, read_log, summary

    rows = read_log(logs)
    trained = load_bundle(policy or BUNDLED)
    fits = trained.base_hash == base_of(rows)
    if policy is not None and not fits:
        raise PolicyError(f"{policy} is for another model than the one that answered: drift from it says nothing")
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
    tasks = [task for seed in seeds for task in _read(files, None, seed, shown).tasks] if files else []
    return {task.digest: task.answer for task in tasks if task.answer is not None}


@app.command()
def retrain(
    logs: Logs,
    store: Annotated[Path, typer.Option(help="Folder of outcomes: those that are served are added to it.")],
    out: Annotated[Path, typer.Option(help="Folder that the policy bundle is written to.")],
    answers: Answers = None,
    runs: Runs = Path("runs/policies"),
    price: Price = None,
    risk: Risk = None,
    seed: Seed = 0,
    shown: Shown = None,
    debug: Debug = False,
) -> None:
    """Learn from what was served, beside what was collected: adds the outcomes in logs to a store, then trains.

    Example: `autottt retrain answers.jsonl --answers solutions.jsonl --store runs/outcomes --out runs/policy`

    Only queries whose right answer is known, and on which everything was measured, teach something; `solve --explore`
    makes sure that there are some of every kind. A policy is still judged on queries that every strategy was tried on.
    """
    from ..policies.cases import cases_of
    from ..policies.outcomes import OutcomeStore
    from ..policies.traces import outcomes_of, read_log

    rows = read_log(logs)
    kept = OutcomeStore(store)
    stored, found = kept.read(), outcomes_of(rows, _right_answers(answers, rows, shown))
    keys = {outcome.key for outcome in stored}
    new = [outcome for outcome in found if outcome.key not in keys]
    cases_of([*stored, *new])  # refuses what does not go together, before anything is written
    for outcome in new:
        kept.append(outcome)
    kept.seal()
    screen.print(f"{len(rows)} queries in the logs; {len(found)} outcomes of them can be learned from, {len(new)} new")
    _train(store, out, runs, price, risk, seed)


@app.command()
def collect(
    store: Annotated[Path, typer.Option(help="Folder that outcomes are added to.")],
    files: Annotated[list[Path] | None, typer.Argument(help="Task files or folders.")] = None,
    generated: Annotated[int, typer.Option(min=0, help="Also this many tasks of the generator's policy families.")] = 0,
    queries: Annotated[
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
    from ..policies.collect import collect
    from ..policies.outcomes import OutcomeStore
    from ..policies.parallel import Source, collect_with_workers
    from ..strategies.base import get_strategy
    from ..ttt_core.generator.families import draw_tasks
    from ..ttt_core.learner import Learner

    chosen = [get_strategy(n.strip()) for n in strategies.split(",") if n.strip()]
    reading = _read(files, limit, seed, shown) if files else None
    tasks = [*(reading.tasks if reading else ()), *draw_tasks("policy", generated, seed, queries=queries)]
    if not tasks:
        raise TaskError("there is nothing to collect from: name task files, or give --generated 200")
    _quiet()
    drawn = _seeds(seeds) if seeds else [seed]
    kept = OutcomeStore(store)
    with _progress() as progress:
        bar = progress.add_task("collecting", total=None)

        def on_progress(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        if workers == 1 and ray is None:
            learner = Learner.load(model, device=device, dtype=dtype, prompt_format=prompt_format)
            collect(learner, tasks, chosen, drawn, kept, on_progress)
        else:
            source = Source(model, device, dtype, prompt_format)
            collect_with_workers(
                source, tasks, chosen, drawn, kept, workers=workers, ray_address=ray, on_progress=on_progress
            )
    if reading and reading.problems:
        raise typer.Exit(1)


@outcomes_app.command("show")
def outcomes_show(store: Annotated[Path, typer.Argument(help="Folder of outcomes.")], debug: Debug = False) -> None:
    """Summarise a store: how often each strategy was right, what it cost, and what failed.

    Example: `autottt outcomes show runs/outcomes`
    """
    from ..policies.outcomes import OutcomeStore
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
    from ..policies.imported import import_csv
    from ..policies.outcomes import OutcomeStore

    kept = OutcomeStore(store)
    known = kept.done()
    new = [o for o in import_csv(file, in_context=in_context, model=name) if o.key not in known]
    for outcome in new:
        kept.append(outcome)
    kept.seal()
    screen.print(f"{len(new)} outcomes added to {store}")


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise TaskError(
            f"--seeds: expected whole numbers separated by commas, such as 0,1,2; received {text!r}"
        ) from None


@app.command("train-policy")
def train_policy(
    store: Annotated[Path, typer.Argument(help="Folder of outcomes, from `autottt collect`.")],
    out: Annotated[Path, typer.Option(help="Folder that the policy bundle is written to.")],
    runs: Runs = Path("runs/policies"),
    price: Price = None,
    risk: Risk = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw the folds of the scorecard.")] = 1,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Learn from outcomes which strategy pays on which task, and judge that on families held out.

    Example: `autottt train-policy runs/outcomes --out runs/policy`
    """
    _train(store, out, runs, price, risk, seed, workers)


def _train(
    store: Path, out: Path, runs: Path, price: float | None, risk: float | None, seed: int, workers: int = 1
) -> None:
    """Trains, writes the bundle, keeps track of the run, and prints how good it is."""
    from ..policies.bundle import save_bundle
    from ..policies.outcomes import OutcomeStore
    from ..policies.report import REPORT, write_report
    from ..policies.tracking import track
    from ..policies.training import train_policy

    outcomes = OutcomeStore(store).read()
    if not outcomes:
        raise TaskError(f"{store} holds no outcomes; collect some with `autottt collect TASKS --store {store}`")
    with _progress() as progress:
        bar = progress.add_task(f"training on {len(outcomes)} outcomes", total=None)
        trained = train_policy(
            outcomes, price=price, risk=risk, seed=seed, workers=workers,
            on_progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )  # fmt: skip
    save_bundle(trained, out)
    write_report(trained, out)
    settings = {"store": str(store), "outcomes": len(outcomes), "price": price, "risk": risk, "seed": seed}
    screen.print_json(json.dumps(trained.scorecard, default=float))
    errors.print(f"the run is kept in {track(trained, out, runs, settings)}", highlight=False)
    if not trained.released:
        errors.print(
            f"this policy does not beat always {trained.ranking[0]} for sure (see {out / REPORT}): collect more, or "
            f"use --strategy {trained.ranking[0]}",
            style="yellow",
        )


@app.command()
def doctor(
    model: Model = None,
    policy: PolicyOption = None,
    any_policy: AnyPolicy = False,
    device: Device = None,
    dtype: Dtype = None,
    debug: Debug = False,
) -> None:
    """Say what runs where, and test that the model comes back after training.

    Example: `autottt doctor`
    """
    from .doctor import examine

    controller = _controller(model=model, policy=policy, device=device, dtype=dtype, any_policy=any_policy)
    healthy = True
    for name, value, good in examine(controller):
        healthy &= good
        screen.print(f"[{'green' if good else 'red'}]{'ok ' if good else 'BAD'}[/] [bold]{name:14}[/] ", end="")
        screen.print(value, markup=False, highlight=False)
    if not healthy:
        raise typer.Exit(1)


@app.command()
def demo(
    model: Model = None,
    policy: PolicyOption = None,
    any_policy: AnyPolicy = False,
    seed: Seed = 0,
    limit: Limit = None,
    debug: Debug = False,
) -> None:
    """Solve the example tasks that ship with the package and show every decision.

    Example: `autottt demo`
    """
    from .demo import demo_tasks, run_demo

    controller = _controller(model=model, policy=policy, seed=seed, any_policy=any_policy)
    run_demo(controller, demo_tasks()[:limit], screen)
