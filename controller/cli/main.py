"""The command line: the application with its commands, and how errors and interruptions are printed.

Each command is in the module of its name; `options` declares what they share. Knows nothing about how tasks are solved.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ...ttt_core.errors import AutotttError, SettingsError
from .cache import cache_app
from .console import Terminated, install_excepthook, line, note, print_error, quiet, screen, warn
from .doctor import doctor
from .evaluate import evaluate
from .live import Quiet
from .models import models_app
from .options import (
    CONFIG_ERROR,
    CONFIG_VALUES,
    DEBUG,
    ModelOptions,
    PolicyOptions,
    Seed,
    TraceOptions,
    command,
    defaults_of,
    load_controller,
    settings,
)
from .outcomes import collect, outcomes_app
from .policies import policy_app
from .policy_fit import fit as _fit  # noqa: F401 - registers the command
from .prepare import prepare
from .serve import serve
from .settings import read_config
from .solve import solve
from .strategies import strategies
from .tasks import tasks_app
from .traces import trace_app
from .training import retrain, train_policy

FAILED, INTERRUPTED, TERMINATED = 2, 130, 143
"""Exit codes of an error and, as in shells, of Ctrl-C and of SIGTERM."""
UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""The error for wrong arguments; Typer contains its own click, or uses the installed one."""


class _Group(TyperGroup):
    """The commands. Settings of the configuration file become defaults; errors and interruptions are one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            values = read_config(settings())
            ctx.meta[CONFIG_VALUES], ctx.default_map = values, defaults_of(self, values)
        except SettingsError as error:
            ctx.meta[CONFIG_ERROR] = error  # raised by the command, so that its help can be read
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            is_signal = isinstance(interruption, Terminated)
            warn("; ".join(["terminated" if is_signal else "interrupted", *map(str, interruption.args)]))
            raise typer.Exit(TERMINATED if is_signal else INTERRUPTED) from None
        except BrokenPipeError:
            raise
        except (AutotttError, OSError) as error:
            if ctx.meta.get(DEBUG):
                raise
            print_error(error)
            raise typer.Exit(FAILED) from None


app = typer.Typer(
    cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode="markdown", help="A language model that knows when to learn from the examples it is given.",
)  # fmt: skip


def main() -> None:
    """Runs a command. An error of the package, of the file system or of the arguments is one clear line."""
    quiet()
    install_excepthook()
    try:
        code = app(standalone_mode=False, prog_name="autottt")
    except typer.Abort:  # Ctrl-C, or the end of standard input, where a question was asked
        warn("interrupted")
        code = INTERRUPTED
    except UsageError as error:
        if text := error.format_message():  # type: ignore[attr-defined]
            print_error(typer.BadParameter(text))
            note("Try --help.")
        code = FAILED
    raise SystemExit(code or 0)


def _print_version(wanted: bool) -> None:
    if wanted:
        line(f"autottt {version('autottt')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """The option of the application itself."""


command(app)(solve)
command(app)(serve)
command(app)(evaluate)
command(app)(strategies)
command(app)(collect)
command(app, "train-policy", plugins=False)(train_policy)
command(app, plugins=False)(retrain)
command(app, plugins=False)(prepare)
command(app)(doctor)
app.add_typer(policy_app, name="policy")
app.add_typer(outcomes_app, name="outcomes")
app.add_typer(cache_app, name="cache")
app.add_typer(trace_app, name="trace")
app.add_typer(models_app, name="models")
app.add_typer(tasks_app, name="tasks")


@command(app)
def demo(
    policy: PolicyOptions,
    model: ModelOptions,
    tracing: TraceOptions,
    seed: Seed = 0,
    limit: Annotated[int, typer.Option(min=1, help="Number of tasks: half of each kind of family.")] = 12,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also train on every task, to compare answers and seconds.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Solve a sample of tasks and show every decision, and in a table what it gained.

    The tasks are public ones, or English ones for a model of `autottt models list`. Half of them are of families that
    the model answers in context at 80% or more (on other tasks), half of families under 30%; with English tasks, of
    families under 50% in context and at 50% or more after training. The rates are of other tasks: none is chosen by
    its own result.

    Example: `autottt demo --compare`
    """
    from .demo import ALWAYS, ALWAYS_ENGLISH, draw, is_english, run_demo

    controller = load_controller(model, policy, seed=seed, trace=tracing.recorder)
    always = ALWAYS_ENGLISH if is_english(model.model) else ALWAYS
    run_demo(controller, draw(seed, limit, model.model), screen, compare=always if compare else None, quiet=quiet)
