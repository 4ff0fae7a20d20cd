"""The commands of `autottt trace`: list, show, open, explain, replay, compare, export and summarise stored traces."""

from __future__ import annotations

import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...strategies.registry import check_names
from ...ttt_core.errors import AutotttError, SettingsError, TraceError
from ...ttt_core.file_writing import replacing, write_whole
from ...ttt_core.standard_json import dumps
from ..tracing import STORE_SUFFIXES, named_targets
from .answer_files import check_new_output
from .console import line, note, screen, warn
from .options import AsJson, ModelOptions, PolicyOptions, TraceSetting, command, load_controller
from .settings import is_argument

if TYPE_CHECKING:
    from ..tracing.store import Filter, TraceStore
    from ..tracing.trace import Trace

trace_app = typer.Typer(no_args_is_help=True, help="Show, explain, compare and export traces of runs.")
TraceId = Annotated[str, typer.Argument(help="Id of a trace, the beginning of one, or `last`.")]


@dataclass(frozen=True)
class RunOptions:
    """Which stored runs a command is about."""

    strategy: Annotated[str | None, typer.Option(help="Only answers of this strategy.")] = None
    wrong: Annotated[
        bool, typer.Option("--wrong", help="Only answers known to be wrong, and runs without an answer.")
    ] = False
    slower_than: Annotated[
        float | None, typer.Option(min=0.0, help="Only runs that lasted longer, in seconds, waiting included.")
    ] = None
    fallbacks: Annotated[bool, typer.Option("--fallbacks", help="Only runs with an attempt that was not accepted.")] = (
        False
    )
    since: Annotated[
        str | None, typer.Option(help="Only runs from this date on (2026-01-31), or of the last 12h or 7d.")
    ] = None
    until: Annotated[str | None, typer.Option(help="Only runs before this date.")] = None

    def filter(self) -> Filter:
        """What the store is asked for. Raises `SettingsError` for a time that cannot be read."""
        from ..tracing.store import Filter

        times = {"since": time_of("--since", self.since), "until": time_of("--until", self.until)}
        return Filter(**{**asdict(self), **times})


@command(trace_app, "list", plugins=False)
def list_(
    runs: RunOptions,
    limit: Annotated[int, typer.Option(min=1, help="Show this many, the newest first.")] = 20,
    as_json: AsJson = False,
    trace: TraceSetting = None,
) -> None:
    """List stored runs, the newest first.

    Example: `autottt trace list --wrong --since 7d`

    The duration of a run is the time from its beginning to its end, waiting for other runs included. With `--json`,
    `seconds` is the time of its work alone, and `stages` divides the duration.
    """
    from .trace_display import show_list

    summaries = store_of(trace).summaries(runs.filter(), limit)
    if as_json:
        for summary in summaries:
            line(dumps(summary.to_plain()))
    else:
        screen.print(show_list(summaries))


@command(trace_app, plugins=False)
def show(id: TraceId, trace: TraceSetting = None) -> None:
    """Show one run: its path through the graph, seconds of each step, candidates, features and the loss curve.

    Example: `autottt trace show last`
    """
    from .trace_display import show_trace

    stored = store_of(trace).get(id)
    with _naming_damage(stored):
        screen.print(show_trace(stored))


@command(trace_app, plugins=False)
def explain(id: TraceId, trace: TraceSetting = None) -> None:
    """Explain one run in words, from its trace alone.

    Example: `autottt trace explain last`
    """
    from ..tracing.explanation import explanation

    stored = store_of(trace).get(id)
    with _naming_damage(stored):
        line(explanation(stored))


@command(trace_app, plugins=False)
def diff(
    first: TraceId,
    second: Annotated[str, typer.Argument(help="Id of the trace to compare with.")],
    trace: TraceSetting = None,
) -> None:
    """Compare two runs: settings, path, estimates, training and answers, without times.

    Example: `autottt trace diff last last`
    """
    from ..tracing.comparison import compare

    store = store_of(trace)
    one, other = store.get(first), store.get(second)
    with _naming_damage(one, other):
        differences = compare(one, other)
    for difference in differences:
        line(str(difference))
    if not differences:
        line("the runs are identical, except for times")


@command(trace_app, plugins=False)
def stats(
    runs: RunOptions,
    as_json: AsJson = False,
    trace: TraceSetting = None,
) -> None:
    """Summarise stored runs: where the time goes, decisions by strategy, accepted and rejected adaptations.

    Example: `autottt trace stats --since 7d`
    """
    from ..tracing.statistics import statistics_of
    from .trace_display import show_statistics

    statistics = statistics_of(store_of(trace), runs.filter())
    if as_json:
        line(dumps(asdict(statistics)))
    else:
        screen.print(show_statistics(statistics))


@command(trace_app, plugins=False)
def export(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of traces; default: all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file; default: standard output.")] = None,
    content: Annotated[
        bool, typer.Option("--content/--no-content", help="With or without tasks, prompts and answers.")
    ] = True,
    trace: TraceSetting = None,
) -> None:
    """Write traces as JSON lines. Exits with 1 if a trace is damaged; the others are written all the same.

    Example: `autottt trace export last --out trace.jsonl`
    """
    from ..tracing.content import without_content

    if out is not None:
        check_new_output("--out", out)
    store = store_of(trace)
    damaged: list[TraceError] = []
    traces = [store.get(id) for id in ids] if ids else store.traces(on_damaged=damaged.append)
    lines = (dumps((each if content else without_content(each)).plain) for each in traces)
    if out is None:
        for text in lines:
            line(text)
    else:
        with replacing(out) as partial, partial.open("w", encoding="utf-8") as stream:
            stream.writelines(f"{text}\n" for text in lines)
    for error in damaged:
        warn(str(error))
    if damaged:
        warn(f"{len(damaged)} damaged traces were left out")
        raise typer.Exit(1)


@command(trace_app, name="open")
def open_(
    id: TraceId,
    out: Annotated[Path | None, typer.Option(help="Write the page to this file, and open no browser.")] = None,
    trace: TraceSetting = None,
) -> None:
    """Show one run as a page in the browser: one HTML file that needs no network.

    Example: `autottt trace open last --out run.html`
    """
    from ...strategies.registry import strategies
    from ..tracing.page import page_of

    if out is not None:
        check_new_output("--out", out)
    stored = store_of(trace).get(id)
    with _naming_damage(stored):
        page = page_of(stored, list(strategies()))
    if out is not None:
        write_whole(out, page)
        note(f"the page is in {out}")
        return
    folder = Path(tempfile.mkdtemp(prefix="autottt-"))  # which only its owner may read
    file = folder / f"{stored.id}.html"
    file.write_text(page, "utf-8")
    if not webbrowser.open(file.as_uri()):
        warn("no browser could be opened")
    line(str(file))


@command(trace_app)
def replay(
    ctx: typer.Context,
    id: TraceId,
    model: ModelOptions,
    policy: PolicyOptions,
    strategy: Annotated[str | None, typer.Option(help="Ask what this strategy would have done.")] = None,
    budget: Annotated[str | None, typer.Option(help="Ask what would have happened with this budget.")] = None,
    trace: TraceSetting = None,
) -> None:
    """Solve the task of a run again with the same seed, and name every difference. Exits with 1 if there is one that is
    not a rounding.

    Example: `autottt trace replay last --strategy in_context`

    `--policy`, `--strategy` and `--budget` ask what would have happened with another one. The model must be that of the
    run; without `--model` the one that the trace names is loaded.
    """
    stored = store_of(trace).get(id)
    stored.require_content("a replay")
    if strategy is not None:
        check_names([strategy])
    name = str(stored.attributes["model"]["name"])
    if model.model is None and name != "bundled":
        model = replace(model, model=name)
    controller = load_controller(model, policy)
    from ..replay import replay as repeat

    other = is_argument(ctx, "policy") or is_argument(ctx, "cost_weight")
    repeated = repeat(controller, stored, strategy=strategy, budget=budget, other_policy=other)
    for difference in repeated.differences:
        line(str(difference))
    if repeated.is_identical:
        line("identical, except for times")
    elif not repeated.has_same_answers:
        raise typer.Exit(0 if strategy or budget or other else 1)


@contextmanager
def _naming_damage(*traces: Trace) -> Iterator[None]:
    """Turns what readers raise for a field that is missing, or of another type, into a `TraceError` with the id."""
    try:
        yield
    except AutotttError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        ids = " or ".join(dict.fromkeys(trace.id for trace in traces))
        raise TraceError(f"trace {ids} is damaged ({type(error).__name__}: {error})") from error


def store_of(setting: str | None) -> TraceStore:
    """The first store that the setting names; that of the user where it names none."""
    from ..tracing.store import TraceStore, local_store

    stores = [name for name in named_targets(setting or "off") if name == "local" or name.endswith(STORE_SUFFIXES)]
    return TraceStore(stores[0]) if stores and stores[0] != "local" else local_store()


def time_of(option: str, text: str | None) -> float | None:
    """Seconds since 1970 of a date, or of a number of hours (`12h`) or days (`7d`) ago."""
    if text is None:
        return None
    try:
        if text[-1:] in "hd" and text[:-1].isdigit():
            hours = int(text[:-1]) * (24 if text.endswith("d") else 1)
            return (datetime.now().astimezone() - timedelta(hours=hours)).timestamp()
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise SettingsError(
            f"{option}: expected a date such as 2026-01-31, or 12h or 7d for the last hours or days; received {text!r}"
        ) from None
