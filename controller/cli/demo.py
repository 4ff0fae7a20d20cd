"""The demonstration: a seeded sample of public tasks, solved and shown one by one, with a table at the end.

Half of the tasks are of families that the model answers well in context, half of families that it does not. For the
bundled model these are public tasks; `benchmarks/demo_families.py` measured its rates on other tasks of the same
families. For real models of the catalogue they are English tasks; `benchmarks/demo_english.py` measured the rates on
other pairs, in context and after training: what no training helps shows nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...ttt_core.sources.base import Pair
from ...ttt_core.sources.english import draw_from, halves
from ...ttt_core.tasks.answers import is_right
from ...ttt_core.tasks.kinds import make_task
from ...ttt_core.tasks.readers import read_tasks
from ...ttt_core.tasks.task import Task
from ..controller import Controller
from ..results import Result
from .display import mark, show_task, show_value
from .live import LiveProgress

T = TypeVar("T")
Band = Literal["read", "hard"]
READ, HARD = 0.8, 0.3
"""In-context accuracy of the families in the two halves of the demo: READ or more, and less than HARD."""
ENGLISH_HARD, LEARNED = 0.5, 0.5
"""Of the hard English families: in-context accuracy less than ENGLISH_HARD, and after training LEARNED or more."""
TITLES: dict[Band, str] = {
    "read": f"families with {READ:.0%} or more right in context",
    "hard": f"families with less than {HARD:.0%} right in context",
}
ENGLISH_TITLES: dict[Band, str] = {
    **TITLES,
    "hard": f"families with less than {ENGLISH_HARD:.0%} right in context and {LEARNED:.0%} or more after training",
}
"""For English families, whose accuracy after training was measured as well."""
TASKS = Path(__file__).parent / "demo_tasks.jsonl"
"""Public tasks that the bundled model was not trained on; sources and licences are in docs/tasks.md."""
FAMILIES = Path(__file__).parent / "demo_families.json"
"""In-context accuracy of each family, the ids of the tasks that it was measured on, and those of its tasks in TASKS."""
ENGLISH = Path(__file__).parent / "demo_english.json"
"""Accuracy of each real model of the catalogue on the English families, on one half of their pairs: in context, and for
those that are hard after training."""
DEMONSTRATIONS, POOL = 8, 8
"""Demonstrations of an English task, and tasks of a family that the demo draws from."""
COUNT = 12
ALWAYS = "ttt_augmented"
"""The fixed strategy for comparison: of those that train for every query, the most accurate one on the held-out
families of the shipped policy's scorecard."""
ALWAYS_ENGLISH = "ttt_in_context"
"""The same for English tasks, whose texts have no transformations."""
WORDS = {
    "read": ("bold green", "right in context, and no training was tried"),
    "learned": ("bold bright_green", "wrong in context, right after training"),
    "voted": ("bold cyan", "wrong in context, right by a vote without training"),
    "redundant": ("yellow", "right in context, and still right after training"),
    "unchanged": ("yellow", "wrong in context, and still wrong after training"),
    "missed": ("dark_orange", "wrong in context, and no training was tried"),
    "harmed": ("bold red", "right in context, but wrong as decided"),
    "refused": ("bold red", "the task does not fit in the model's context"),
}
"""Each word for what happened to a task, with its style and meaning."""


@dataclass(frozen=True)
class Family:
    """A family of tasks with its in-context accuracy, measured on other tasks than `tasks`."""

    name: str
    """Data set and family."""
    band: Band
    right: int
    queries: int
    tasks: tuple[Task, ...]
    learned: tuple[int, int] | None = None
    """Right answers after training, and the queries they are of; None where that was not measured."""

    @property
    def dataset(self) -> str:
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Solved:
    """A task of the demo with its results."""

    family: Family
    result: Result
    always: Result | None = None
    """The result of the strategy that is compared, if there is one."""


def is_english(model: str | None) -> bool:
    """Whether the demo has English tasks for a model: one whose rates on them were measured."""
    return model in _english_rates()


def _english_rates() -> dict[str, Any]:
    """Model -> what was measured."""
    rates: dict[str, Any] = json.loads(ENGLISH.read_text("utf-8"))["models"]
    return rates


def english_families(model: str, seed: int) -> tuple[Family, ...]:
    """The English families with tasks that the seed draws from the half of their pairs that was not measured."""
    measured = _english_rates()[model]
    return tuple(
        Family(
            f"english/{entry['name']}", entry["band"], entry["right"], entry["queries"],
            tuple(english_tasks(entry["name"], halves(entry["name"], measured["seed"])[1], POOL, seed)),
            (entry["learned"], entry["learned_queries"]) if "learned" in entry else None,
        )
        for entry in measured["families"]
        if entry["band"]
    )  # fmt: skip


def english_tasks(family: str, pairs: Sequence[Pair], count: int, seed: int, queries: int = 1) -> list[Task]:
    """The queries of `count` tasks of some pairs of a family."""
    return [
        make_task(
            task.demonstrations, query, answer=answer, family=f"english/{family}",
            id=f"{family}-{seed}-{number}" + (f"#{place}" if queries > 1 else ""),
        )
        for number, task in enumerate(draw_from(pairs, count, DEMONSTRATIONS, queries, seed, family))
        for place, (query, answer) in enumerate(task.queries)
    ]  # fmt: skip


def demo_families() -> tuple[Family, ...]:
    """The families of public tasks that the demo draws from, with their tasks."""
    tasks = {(task.dataset, task.id): task for task in read_tasks([TASKS]).tasks}
    return tuple(
        Family(
            entry["name"], entry["band"], entry["right"], entry["queries"],
            tuple(tasks[entry["name"].partition("/")[0], task_id] for task_id in entry["pool"]),
        )
        for entry in json.loads(FAMILIES.read_text("utf-8"))["families"]
        if entry["band"]
    )  # fmt: skip


def draw(seed: int, count: int = COUNT, model: str | None = None) -> list[tuple[Family, Task]]:
    """A random sample of tasks for a model: half of each band; "read" has one more where `count` is odd.

    The data sets take turns, and the families of each data set do, so that as many as possible of both are shown.
    """
    rng = random.Random(f"demo-{seed}")
    families = english_families(model, seed) if model is not None and is_english(model) else demo_families()
    sample: list[tuple[Family, Task]] = []
    sizes: dict[Band, int] = {"read": (count + 1) // 2, "hard": count // 2}
    for band, size in sizes.items():
        members = [family for family in families if family.band == band]
        by_dataset: dict[str, list[list[tuple[Family, Task]]]] = {}
        for family in rng.sample(members, len(members)):
            tasks = rng.sample(family.tasks, len(family.tasks))
            by_dataset.setdefault(family.dataset, []).append([(family, task) for task in tasks])
        datasets = [_take_turns(tasks) for tasks in by_dataset.values()]
        sample += _take_turns(rng.sample(datasets, len(datasets)))[:size]
    return sample


def _take_turns(queues: Sequence[Sequence[T]]) -> list[T]:
    """The first of every queue, then the second of every queue, and so on."""
    return [item for turn in zip_longest(*queues) for item in turn if item is not None]


def word_of(result: Result) -> str:
    """What happened to a task whose answer is known: a key of `WORDS`."""
    if result.status == "refused" or result.in_context is None:
        return "refused"
    if is_right(result.task, result.in_context.value):
        return "harmed" if not result.right else "redundant" if result.adapted else "read"
    if result.right:
        return "learned" if result.adapted else "voted"
    return "unchanged" if result.adapted else "missed"


def run_demo(
    controller: Controller, sample: Sequence[tuple[Family, Task]], screen: Console, *, compare: str | None = None,
    quiet: bool = False,
) -> list[Solved]:  # fmt: skip
    """Solves and shows the tasks one by one, then a table. `compare` is a strategy that is run on each task as well;
    `quiet` hides the progress."""

    def solve(task: Task, strategy: str | None = None) -> Result:
        with LiveProgress(len(sample), hidden=quiet) as live:
            live.advance(len(solved))
            return controller.solve_many([task], strategy=strategy, on_event=live.listener)[0]

    solved: list[Solved] = []
    for number, (family, task) in enumerate(sample, 1):
        screen.print(show_heading(f"{number}/{len(sample)}  {task.id}", family), soft_wrap=True)
        screen.print(show_task(task))
        result = solve(task)
        screen.print(show_solved(result), soft_wrap=True)
        always = None
        if compare:
            controller.learner.reset_charges()  # an adapter that the controller has just trained costs as much again
            always = solve(task, compare)
            screen.print(Text.assemble((f"always {compare}: ", "dim"), mark(always.right)))
        solved.append(Solved(family, result, always))
    show_end(controller, solved, screen, compare or ALWAYS)
    return solved


def show_heading(title: str, family: Family) -> Text:
    """The number and id of a task, and the in-context accuracy of its family."""
    rate = f"of the family {family.name}, {family.right} of {family.queries} queries of other tasks right in context"
    if family.learned is not None:
        rate += ", {} of {} after training".format(*family.learned)
    return Text.assemble("\n", (title, "bold cyan"), (f"  ({rate})", "dim"))


def show_solved(result: Result) -> RenderableType:
    """The answer in context, the answer as decided if another strategy gave it, the reason, and the task's word."""
    style, meaning = WORDS[word_of(result)]
    word = Text.assemble((word_of(result), style), f": {meaning}; {result.cost.seconds:.1f} s")
    if result.in_context is None:
        return Group(Text(result.error), word)
    kind, first = result.task.kind, result.in_context.value
    answers = Table.grid(padding=(0, 2))
    answers.add_row("in context", show_value(kind, first), mark(is_right(result.task, first)))
    if result.strategy != "in_context":
        answers.add_row(result.strategy, show_value(kind, result.answer), mark(result.right))
    return Group(answers, Text(f"decision: {result.reason}"), word)


def titles_of(families: Sequence[Family]) -> dict[Band, str]:
    """Band -> by what rule its families were chosen."""
    return ENGLISH_TITLES if any(family.dataset == "english" for family in families) else TITLES


def show_end(controller: Controller, solved: Sequence[Solved], screen: Console, compared: str) -> None:
    """The words of all tasks, the table, and the proof that the base model is unchanged."""
    proof = controller.learner.verify(full=True)
    screen.print()
    for band, title in titles_of([one.family for one in solved]).items():
        words = [word_of(one.result) for one in solved if one.family.band == band]
        screen.print(Text.assemble(f"{title}: ", Text(" ").join(Text(w, WORDS[w][0]) for w in words)), soft_wrap=True)
    screen.print(summary_table(solved, compared))
    screen.print(
        f"The base model is unchanged: its {proof.tensors} tensors have the content hash {proof.hash}, as at load.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def summary_table(solved: Sequence[Solved], compared: str = ALWAYS) -> Table:
    """Right answers in each band and in all, and seconds: in context, as decided, and always with the strategy
    `compared`, where it was run."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    hard_rate = HARD if titles_of([one.family for one in solved]) is TITLES else ENGLISH_HARD
    for name in (f"right, {READ:.0%} or more", f"right, under {hard_rate:.0%}", "right, all", "seconds"):
        table.add_column(name, justify="right")

    def add(name: str, right: Sequence[bool], seconds: float) -> None:
        read, hard = ([r for r, one in zip(right, solved, strict=True) if one.family.band == b] for b in TITLES)
        counts = [f"{sum(part)} of {len(part)}" for part in (read, hard, right)]
        table.add_row(name, *counts, f"{seconds:.1f}")

    results = [one.result for one in solved]
    first = [result.in_context for result in results]
    add(
        "in context", [a is not None and is_right(r.task, a.value) for a, r in zip(first, results, strict=True)],
        sum(a.cost.seconds for a in first if a is not None),
    )  # fmt: skip
    add("as decided", [bool(r.right) for r in results], sum(r.cost.seconds for r in results))
    always = [one.always for one in solved if one.always is not None]
    if always:
        add(f"always {compared}", [bool(r.right) for r in always], sum(r.cost.seconds for r in always))
    return table
