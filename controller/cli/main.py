"""The command line: `autottt solve`, `evaluate`, `policy`, `collect`, `train-policy`, `retrain`, `doctor`, and more.

Only wiring is here: every command reads its options, calls the package, and prints. The commands about policies are in
`cli_policies`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from ...ttt_core.errors import AutotttError, PolicyError, TaskError
from . import policies as cli_policies
from .options import (
    CostWeight,
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
    print_problems,
    progress,
    quiet,
    read,
    screen,
    warn,
)

if TYPE_CHECKING:
    from ...ttt_core.tasks.readers import LoadedTasks
    from ..results import Result
    from .answer_files import Answers

STDIN = Path("-")
INTERRUPTED = 130
"""Exit code, as shells have it."""


class _Group(TyperGroup):
    """The commands; an interruption is one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            warn("; ".join(["interrupted", *map(str, interruption.args)]))
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode="markdown", help="A language model that knows when to learn from the examples it is given.",
)  # fmt: skip
app.add_typer(cli_policies.policy_app, name="policy")
app.add_typer(cli_policies.outcomes_app, name="outcomes")


def main() -> None:
    """Runs a command; an error of the package, or of the file system, is one clear line."""
    try:
        app(standalone_mode=True)
    except (AutotttError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        errors.print(f"[bold red]error:[/] {type(error).__name__}: ", end="")
        text = str(error)
        if isinstance(error, OSError) and error.filename and error.strerror:
            text = f"{error.filename}: {error.strerror}"
        errors.print(text, markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        screen.print(f"autottt {version('autottt')}", highlight=False)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of no command in particular."""


@app.command()
def solve(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Task files or folders: JSONL, ARC JSON, BIG-Bench Hard JSON, chat messages. `-` is standard input: "
            "JSON lines, each answered before the next is read."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Write answers here instead of to the screen.")] = None,
    strategy: Annotated[str | None, typer.Option(help="Use this strategy for every task.")] = None,
    budget: Annotated[str | None, typer.Option(help="Per query: 10s, or 20x the in-context time.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what --out holds and go on after it.")] = False,
    adapters: Annotated[
        Path | None, typer.Option(help="Keep trained adapters in this folder; find them again.")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Also write features, attempts and the trace: a log for `autottt retrain`.")
    ] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Queries that are decided on, and trained for, side by side; 1 answers soonest.")
    ] = 32,
    memory: Annotated[
        float | None, typer.Option(min=0.0, help="GiB that training and answering may take beside the model.")
    ] = None,
    shadow: Annotated[
        Path | None, typer.Option(help="Bundle of a second policy: what it would choose is logged, not done.")
    ] = None,
    explore: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of queries whose strategy is drawn, to learn from.")
    ] = 0.0,
    cost_weight: CostWeight = None,
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
    """Answer the queries of task files, one JSON line each.

    Example: `autottt solve tasks.jsonl --budget 20x --out answers.jsonl`

    Exits with 1 when a task could not be read, or did not fit in the model; the others are answered all the same.
    """
    from ..budget import Budget
    from .answer_files import line_of, line_of_problem

    if strategy is not None and policy is not None:
        raise PolicyError("--strategy and --policy: one strategy for every task leaves a policy no choice; give one")
    if (live := STDIN in files) and (len(files) > 1 or limit is not None):
        raise TaskError("- (standard input) is read line by line: give it alone, and without --limit")
    if budget is not None:
        Budget.parse(budget)  # before anything slow is imported
    kept = _kept(out, resume, [] if live else files, seed)
    readings = _from_stdin(seed, shown) if live else [read(files, limit, seed, shown)]
    controller = load_controller(
        model=model, policy=policy, strategy=strategy, device=device, dtype=dtype, prompt_format=prompt_format,
        budget=budget, seed=seed, adapters=adapters, shadow=shadow, explore=explore,
        memory_bytes=None if memory is None else round(memory * (1 << 30)), ignore_mismatch=ignore_mismatch,
        cost_weight=cost_weight,
    )  # fmt: skip
    if kept is not None:
        kept.prepare_to_append(controller.learner.base_hash)
    done = kept.ids if kept is not None else frozenset()
    stream: AbstractContextManager[TextIO] = out.open("a", encoding="utf-8") if out else nullcontext(sys.stdout)
    left = f"{out} keeps the answers so far" if out else "--out FILE keeps the answers"
    failed = 0
    with interruptible(f"{left}, and --resume goes on after them"), stream as lines, progress(hidden=live) as bars:
        bar = bars.add_task("solving", total=None if live else sum(len(reading.tasks) for reading in readings))

        def show(result: Result) -> None:
            nonlocal failed
            if result.status == "refused":
                failed += 1
                warn(f"refused: {result.error}")
            print(line_of(result, trace), file=lines, flush=True)
            bars.advance(bar)

        for reading in readings:
            failed += len(reading.problems)
            for problem in reading.problems if live else ():
                print(line_of_problem(problem), file=lines, flush=True)
            waiting = [task for task in reading.tasks if task.id not in done]
            bars.advance(bar, len(reading.tasks) - len(waiting))
            controller.solve_many(waiting, batch_size=batch_size, on_result=show)
    if failed:
        raise typer.Exit(1)


def _kept(out: Path | None, resume: bool, inputs: list[Path], seed: int) -> Answers | None:
    """What --out holds already, where that is gone on with."""
    from .answer_files import Answers, refuse_input

    if out is None:
        if resume:
            raise TaskError("--resume continues a file: name it with --out")
        return None
    if out.is_dir():
        raise TaskError(f"--out {out} is a folder; name a file in it")
    if not out.parent.is_dir():
        raise TaskError(f"--out {out}: there is no folder {out.parent}; create it first")
    refuse_input(out, inputs)
    if not resume:
        if out.exists():
            raise TaskError(f"{out} exists; give --resume to continue it, or another --out")
        return None
    kept = Answers.read(out, seed)
    if kept.torn:
        warn(f"{out}: dropping a last line that an interruption tore")
    return kept


def _from_stdin(seed: int, shown: int | None) -> Iterator[LoadedTasks]:
    """What each line of standard input holds, when it comes; problems are printed."""
    from ...ttt_core.tasks.readers import read_lines

    for reading in read_lines(sys.stdin.buffer, demonstrations=shown, seed=seed):
        print_problems(reading.problems)
        yield reading


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
    cost_weight: CostWeight = None,
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
    """Measure strategies side by side: accuracy, seconds, cost as a multiple of in-context.

    Example: `autottt evaluate tasks.jsonl --strategies in_context,ttt_in_context,controller --limit 20 --json out.json`
    """
    from ...strategies.registry import get_strategy
    from ..evaluation import CONTROLLER, evaluate, report, summarise
    from .display import show_summary

    names = [n.strip() for n in strategies.split(",") if n.strip()]
    for name in names:
        if name != CONTROLLER:
            get_strategy(name)
    partial = _rows_file(json_file, resume, files)
    reading = read(files, limit, seed, shown)
    controller = load_controller(
        model=model, policy=policy, ignore_mismatch=ignore_mismatch, device=device, dtype=dtype,
        prompt_format=prompt_format, seed=seed, cost_weight=cost_weight,
    )  # fmt: skip
    total = len(reading.tasks) * len(dict.fromkeys(["in_context", *names]))
    left = f"{partial} keeps the rows so far" if partial else "--json FILE keeps the rows"
    with interruptible(f"{left}, and --resume goes on after them"), progress() as bars:
        bar = bars.add_task("evaluating", total=total)
        rows = evaluate(controller, reading.tasks, names, seed=seed, file=partial, on_row=lambda row: bars.advance(bar))
    screen.print(show_summary(summarise(rows)))
    if json_file and partial:
        settings = {"files": [f.name for f in files], "strategies": names, "limit": limit, "seed": seed}
        json_file.write_text(json.dumps(report(controller, rows, settings), indent=1) + "\n")
        partial.unlink()
    if reading.problems:
        raise typer.Exit(1)


def _rows_file(json_file: Path | None, resume: bool, inputs: list[Path]) -> Path | None:
    """Where rows are kept until all are there. Raises `TaskError` where that would mix runs or lose rows."""
    from ..evaluation import read_rows, read_settings
    from .answer_files import refuse_input

    if json_file is None:
        if resume:
            raise TaskError("--resume goes on with the rows beside a file: name it with --json")
        return None
    partial = json_file.with_suffix(".rows.jsonl")
    for file in (json_file, partial):
        refuse_input(file, inputs)
    if not resume and partial.exists():
        raise TaskError(
            f"{partial} holds the rows of an interrupted evaluation: give --resume to go on with them, another --json, "
            "or remove it to begin anew"
        )
    if read_rows(partial) and read_settings(partial) is None:
        raise TaskError(f"{partial} does not say what its rows were measured with: remove it to begin anew")
    return partial


@app.command("strategies")
def list_strategies(plugin: Plugin = None, debug: Debug = False) -> None:
    """List the strategies: what each does, when it wins and loses.

    Example: `autottt strategies`
    """
    quiet()
    import inspect

    from ...strategies.registry import strategies

    for name, strategy in strategies().items():
        screen.print(
            f"[bold cyan]{name}[/]  ({strategy.cost_class}; needs {strategy.min_demonstrations} demonstrations)"
        )
        screen.print(inspect.getdoc(type(strategy)) or "", markup=False, highlight=False)
        screen.print()


app.command()(cli_policies.collect)
app.command("train-policy")(cli_policies.train_policy)
app.command()(cli_policies.retrain)


@app.command()
def doctor(
    model: Model = None,
    policy: Policy = None,
    ignore_mismatch: IgnoreMismatch = False,
    plugin: Plugin = None,
    device: Device = None,
    dtype: Dtype = None,
    debug: Debug = False,
) -> None:
    """Say what runs where, and test that the model comes back after training.

    Example: `autottt doctor`
    """
    from .doctor import examine

    controller = load_controller(
        model=model, policy=policy, device=device, dtype=dtype, ignore_mismatch=ignore_mismatch
    )
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
    policy: Policy = None,
    ignore_mismatch: IgnoreMismatch = False,
    plugin: Plugin = None,
    seed: Seed = 0,
    limit: Limit = None,
    debug: Debug = False,
) -> None:
    """Solve the example tasks that ship with the package and show every decision.

    Example: `autottt demo`
    """
    from .demo import demo_tasks, run_demo

    controller = load_controller(model=model, policy=policy, seed=seed, ignore_mismatch=ignore_mismatch)
    run_demo(controller, demo_tasks()[:limit], screen)
