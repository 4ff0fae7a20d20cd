"""The command `autottt solve`: answers tasks, and shows them to people or writes JSON lines."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.rule import Rule
from rich.text import Text

from ...strategies.registry import check_names
from ...ttt_core.errors import FileError, PolicyError, TaskError
from ...ttt_core.file_writing import explained
from .answer_files import Answers, check_output, line_of, line_of_problem
from .console import interruptible, print_problems, screen, warn
from .live import LiveProgress, Quiet
from .locks import exclusive
from .options import (
    ModelOptions,
    PolicyOptions,
    ResourceOptions,
    TaskOptions,
    TraceOptions,
    check_bundle,
    load_controller,
)
from .settings import is_argument

if TYPE_CHECKING:
    from ...ttt_core.tasks.readers import LoadedTasks, Problem
    from ..controller import Controller
    from ..results import Result
    from ..run_facts import RunFacts

STDIN = Path("-")


@dataclass(frozen=True)
class OutputOptions:
    """Where answers are written, and in which form."""

    out: Annotated[Path | None, typer.Option(help="Write JSON lines to this file.")] = None
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the answers in --out and answer only the other tasks.")
    ] = False
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON lines on a terminal too; pipes always get them."),
    ] = False
    with_features: Annotated[
        bool, typer.Option("--trace", help="JSON lines with features, attempts, versions: a log for `autottt retrain`.")
    ] = False
    trace_content: Annotated[
        bool, typer.Option("--trace-content", help="As --trace, with the demonstrations and the query of each task.")
    ] = False

    @property
    def for_people(self) -> bool:
        """Whether answers are shown on a terminal."""
        return screen.is_terminal and not (self.out or self.as_json or self.with_features or self.trace_content)

    @property
    def remedy(self) -> str:
        """What an interrupted user can do."""
        if self.out is not None and not self.out.exists():
            return "nothing was answered yet"
        place = f"{self.out} keeps the answers so far" if self.out else "--out FILE keeps the answers"
        return f"{place}, and --resume continues after them"

    def check(self, inputs: list[Path]) -> None:
        """Raises `TaskError` for an --out that cannot be written to, or must not be."""
        if self.out is None:
            if self.resume:
                raise TaskError("--resume continues a file: name it with --out")
            return
        check_output("--out", self.out, inputs)
        if self.out.exists() and not self.resume:
            raise TaskError(f"{self.out} exists; give --resume to continue it, or another --out")

    def existing(self, seed: int) -> Answers | None:
        """The answers in --out that the run continues."""
        if self.out is None or not self.resume:
            return None
        answers = Answers.read(self.out, seed)
        if answers.incomplete:
            warn(f"{self.out}: dropping an incomplete last line, which an interruption left")
        if answers.without_digest:
            warn(
                f"{self.out}: {answers.without_digest} answers are of an earlier version, which did not note what was "
                "asked; they count as answers to the tasks of the same ids"
            )
        return answers


@dataclass(frozen=True)
class ExplorationOptions:
    """What is recorded for the training of the next policy."""

    shadow: Annotated[
        Path | None, typer.Option(help="Bundle of a second policy, whose choice is logged and not followed.")
    ] = None
    explore: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of queries with a random strategy, to learn from.")
    ] = 0.0


def solve(
    ctx: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Task files or folders: JSONL, ARC JSON, BIG-Bench Hard JSON, chat messages. `-` is standard input: "
            "JSON lines, each answered before the next is read."
        ),
    ],
    output: OutputOptions,
    resources: ResourceOptions,
    exploration: ExplorationOptions,
    policy: PolicyOptions,
    model: ModelOptions,
    tasks: TaskOptions,
    tracing: TraceOptions,
    strategy: Annotated[str | None, typer.Option(help="Use this strategy for every task.")] = None,
    quiet: Quiet = False,
) -> None:
    """Answer the queries of task files: shown on a terminal, JSON lines in a pipe, with `--json` or with `--out`.

    Example: `autottt solve tasks.jsonl --budget 20x --out answers.jsonl`

    Exits with 1 if a task could not be read, or did not fit in the model; the other tasks are answered all the same.
    """
    if strategy is not None:
        policy = _without_policy(ctx, policy)
        check_names([strategy])
    if (live := STDIN in files) and (len(files) > 1 or tasks.limit is not None):
        raise TaskError("- (standard input) is read line by line: give it alone, and without --limit")
    output.check([] if live else files)
    check_bundle(policy.policy, exploration.shadow)
    model.check()
    with exclusive(output.out), interruptible(lambda: output.remedy):
        answers = output.existing(tasks.seed)
        groups = _from_stdin(tasks) if live else [tasks.read(files)]
        controller = load_controller(
            model, policy, strategy=strategy, budget=resources.budget, seed=tasks.seed, adapters=resources.adapters,
            shadow=exploration.shadow, explore=exploration.explore, memory_bytes=resources.memory_bytes,
            trace=tracing.recorder,
        )  # fmt: skip
        total = None if live else sum(len(loaded.tasks) for loaded in groups)
        progress = LiveProgress(total, hidden=live or quiet or output.as_json)
        failures = _answer(controller, groups, output, answers, resources.batch_size, progress, total)
    if failures:
        raise typer.Exit(1)


def _without_policy(ctx: typer.Context, policy: PolicyOptions) -> PolicyOptions:
    """The options without what --strategy overrides: a policy and a cost weight that are not arguments."""
    if is_argument(ctx, "policy"):
        raise PolicyError("--strategy and --policy: one strategy for every task leaves a policy no choice; give one")
    weight = policy.cost_weight if is_argument(ctx, "cost_weight") else None
    return replace(policy, policy=None, cost_weight=weight)


def _from_stdin(tasks: TaskOptions) -> Iterator[LoadedTasks]:
    """The tasks of each line of standard input, as soon as it arrives. Problems are printed."""
    from ...ttt_core.tasks.readers import read_lines

    for loaded in read_lines(sys.stdin.buffer, demonstrations=tasks.demonstrations, seed=tasks.seed):
        print_problems(loaded.problems)
        yield loaded


def _answer(
    controller: Controller, groups: Iterable[LoadedTasks], output: OutputOptions, answers: Answers | None,
    batch_size: int, progress: LiveProgress, total: int | None,
) -> int:  # fmt: skip
    """Answers the tasks that have no answer yet, and returns how many tasks could not be read or tried."""
    from ..run_facts import RunFacts, outcome_settings

    facts = RunFacts.of(controller.learner, controller.policy)
    settings = outcome_settings(controller.learner, controller.policy, controller.budget)
    if answers is not None:
        answers.prepare_to_append(settings)
    reported = answers.problems if answers else frozenset()
    failures = 0
    stream: AbstractContextManager[TextIO]
    stream = output.out.open("a", encoding="utf-8") if output.out else nullcontext(sys.stdout)
    with stream as lines, progress:
        printer = _Printer(output, lines, facts, settings, progress, total)
        for loaded in groups:
            failures += len(loaded.problems)
            for problem in loaded.problems:
                if (problem.id or problem.where, str(problem)) not in reported:
                    printer.problem(problem)
            remaining = [task for task in loaded.tasks if not (answers and answers.have(task))]
            if answers and total is not None and (changed := sum(task.id in answers.ids for task in remaining)):
                warn(
                    f"{answers.file}: {changed} tasks have changed since they were answered; they are answered again, "
                    "in later lines"
                )
            printer.skip(len(loaded.tasks) - len(remaining))
            controller.solve_many(
                remaining, batch_size=batch_size, on_result=printer.result, on_event=progress.listener
            )
    return failures + printer.refused


class _Printer:
    """Shows results on a terminal, or writes them as JSON lines."""

    def __init__(
        self, output: OutputOptions, lines: TextIO, facts: RunFacts, settings: Mapping[str, str],
        progress: LiveProgress, total: int | None,
    ) -> None:  # fmt: skip
        self.refused = 0
        self._settings = settings
        self._output, self._lines, self._facts, self._progress, self._total = output, lines, facts, progress, total
        self._number = 0

    def skip(self, count: int) -> None:
        """Counts tasks that have an answer already."""
        self._number += count
        self._progress.advance(count)

    def problem(self, problem: Problem) -> None:
        """Writes the line of a task that cannot be read; people have seen it on standard error."""
        if not self._output.for_people:
            self._write(line_of_problem(problem))

    def result(self, result: Result) -> None:
        """Shows or writes a result."""
        self.refused += result.status == "refused"
        self.skip(1)
        if self._output.for_people:
            self._show(result)
            return
        if result.status == "refused":
            warn(f"refused: {result.error}")
        facts = self._facts if self._output.with_features or self._output.trace_content else None
        self._write(line_of(result, facts, self._output.trace_content, self._settings))

    def _write(self, text: str) -> None:
        with self._progress.hidden():
            if self._output.out is None:
                print(text, file=self._lines, flush=True)
                return
            try:
                with explained(self._output.out, f"free space on its disk; {self._output.remedy}"):
                    print(text, file=self._lines, flush=True)
            except FileError:
                with suppress(OSError):  # closing tries to write the rest of the line
                    self._lines.close()
                raise

    def _show(self, result: Result) -> None:
        """The task, the answer, the decision and its reason."""
        from .display import show_result, show_task

        task, of = result.task, "" if self._total is None else f"/{self._total}"
        with self._progress.hidden():
            screen.print(Rule(Text(f"{self._number}{of}  {task.id} ({task.kind})"), align="left"))
            screen.print(show_task(task))
            if result.status == "refused":
                screen.print(Text(f"refused: {result.error}", "yellow"))
            else:
                screen.print(show_result(result))
