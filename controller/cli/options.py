"""What the commands share: their options, where they print, and how they load a controller and read tasks."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ...ttt_core.errors import PolicyError

if TYPE_CHECKING:
    from ...ttt_core.tasks.readers import LoadedTasks, Problem
    from ..controller import Controller

screen, errors = Console(), Console(stderr=True)


def quiet() -> None:
    """Keeps libraries from writing between our lines."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", module=r"(transformers|torch|langgraph|langchain_core)\b.*")
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _plug_in(given: list[str] | None) -> list[str] | None:
    """Puts them where this process, and workers that it starts, look for strategies; and looks."""
    if given:
        quiet()
        from ...strategies.registry import PLUGINS, strategies

        known = filter(None, [os.environ.get(PLUGINS)])
        os.environ[PLUGINS] = os.pathsep.join([*known, *given])
        strategies()
    return given


Files = Annotated[
    list[Path], typer.Argument(help="Task files or folders: JSONL, ARC JSON, BIG-Bench Hard JSON, chat messages.")
]
Model = Annotated[
    str | None, typer.Option(help="Folder or hub id of a causal language model; default: the bundled one.")
]
Policy = Annotated[
    Path | None, typer.Option(help="Folder of a policy bundle, or `public`; default: the one that fits the model.")
]
IgnoreMismatch = Annotated[
    bool,
    typer.Option("--ignore-mismatch", help="Use --policy even if it was trained for another model or other recipes."),
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
Plugin = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin", metavar="MODULE_OR_FILE", callback=_plug_in,
        help="Module or .py file with strategies of your own; may be repeated.",
    ),
]  # fmt: skip
CostWeight = Annotated[
    float | None,
    typer.Option(
        "--cost-weight", help="Accuracy that one in-context cost is worth; default: what the policy was trained at."
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def load_controller(**options: Any) -> Controller:
    """See `Controller.from_pretrained`."""
    quiet()
    from ..controller import Controller

    return Controller.from_pretrained(**options)


def read(files: list[Path], limit: int | None, seed: int, shown: int | None) -> LoadedTasks:
    """The tasks; problems are printed."""
    from ...ttt_core.tasks.readers import read_tasks

    reading = read_tasks(files, limit=limit, seed=seed, demonstrations=shown)
    print_problems(reading.problems)
    return reading


def print_problems(problems: Iterable[Problem]) -> None:
    """A line each."""
    for problem in problems:
        warn(f"problem: {problem}")


def warn(text: str) -> None:
    """A line on standard error."""
    errors.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def progress(*, hidden: bool = False) -> Progress:
    """A bar on standard error, where that is a terminal."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=errors, transient=True, disable=hidden or not errors.is_terminal,
        speed_estimate_period=3600,  # one task may take minutes
    )  # fmt: skip


@contextmanager
def telling(what: str) -> Iterator[Callable[[int, int], None]]:
    """What is to be told how many of how many are done: a bar, or where nobody watches a line each minute."""
    with progress() as bars:
        bar, said = bars.add_task(what, total=None), -math.inf

        def tell(done: int, total: int) -> None:
            nonlocal said
            bars.update(bar, completed=done, total=total)
            if not errors.is_terminal and time.monotonic() > said + 60:
                said = time.monotonic()
                errors.print(f"{what}: {done} of {total}", highlight=False)

        yield tell


def make_folders(**folders: Path) -> None:
    """Makes the folders that options name. Raises `PolicyError` for one that cannot be written to."""
    for option, folder in folders.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PolicyError(f"--{option} {folder}: no folder can be made there ({error.strerror})") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PolicyError(f"--{option} {folder}: this folder cannot be written to")


@contextmanager
def interruptible(kept: str) -> Iterator[None]:
    """An interruption inside says what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(kept) from None
