"""The commands that list, verify and delete cached adapters and stored traces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...ttt_core.errors import SettingsError
from .console import line, warn
from .options import Adapters, TraceSetting, command
from .settings import variable
from .traces import store_of

if TYPE_CHECKING:
    from ..tracing.store import TraceStore

cache_app = typer.Typer(no_args_is_help=True, help="List, verify and delete cached adapters and stored traces.")
Folder = Annotated[Path | None, typer.Argument(help="Folder of adapters; default: the setting `adapters`.")]


@command(cache_app, "list", plugins=False)
def list_(folder: Folder = None, adapters: Adapters = None, trace: TraceSetting = None) -> None:
    """Show every adapter of a folder, the most recently used first, and the number and size of stored traces.

    Example: `autottt cache list runs/adapters`
    """
    store = store_of(trace)
    if folder or adapters or not store.exists():
        _list_adapters(folder or adapters)
    if store.exists():
        traces, size = store.size()
        line(f"{store.file}: {traces} traces, {size} bytes")


def _list_adapters(folder: Path | None) -> None:
    """Shows every adapter of a folder."""
    from ...ttt_core.engine.adapter_cache import cached_files

    entries = cached_files(_existing(folder))
    for entry in entries:
        content = (
            f"{entry.strategy or 'unknown strategy'}  {entry.kind or 'unknown kind'}  model {entry.base_hash[:12]}"
        )
        state = f"not used: {entry.problem}" if entry.problem else content
        line(f"{entry.file.name}  {entry.size} bytes  used {entry.age:.0f} s ago  {state}")
    line(f"{len(entries)} adapters, {sum(entry.size for entry in entries)} bytes")


@command(cache_app, plugins=False)
def check(folder: Folder = None, adapters: Adapters = None) -> None:
    """Verify every adapter of a folder and rename each damaged file to `NAME.damaged`; exit code 1 if there is one.

    Files in the format of another version are counted and stay.

    Example: `autottt cache check runs/adapters`
    """
    from ...ttt_core.engine.adapter_cache import cached_files, set_aside_damaged

    existing = _existing(folder or adapters)
    damaged = set_aside_damaged(existing)
    for entry in damaged:
        warn(f"{entry.problem}; renamed to {entry.file.name}.damaged")
    outdated = [entry.outdated for entry in cached_files(existing)]
    line(f"{existing}: {outdated.count(False)} adapters are sound, {len(damaged)} were damaged")
    if any(outdated):
        warn(
            f"{outdated.count(True)} adapters are in the format of another version and are not used; "
            "`autottt cache clear` deletes them with the others"
        )
    if damaged:
        raise typer.Exit(1)


@command(cache_app, plugins=False)
def clear(
    folder: Folder = None,
    adapters: Adapters = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without a question.")] = False,
    traces: Annotated[bool, typer.Option("--traces", help="Delete the stored traces, and no adapters.")] = False,
    trace: TraceSetting = None,
) -> None:
    """Delete the adapters of a folder, with damaged files and those of killed processes; other files stay. Or with
    `--traces` delete all stored traces.

    Example: `autottt cache clear runs/adapters --yes`
    """
    if traces:
        _clear_traces(store_of(trace), folder, yes)
        return
    from ...ttt_core.engine.adapter_cache import delete_cached, partial_files

    existing = _existing(folder or adapters)
    _require_consent(f"Delete all adapters in {existing}?", yes)
    line(f"{existing}: {delete_cached(existing)} files were deleted")
    if writing := partial_files(existing):
        warn(f"{len(writing)} files that another process may be writing stay; run the command again in an hour")


def _clear_traces(store: TraceStore, folder: Path | None, yes: bool) -> None:
    """Deletes the traces of a store."""
    if folder is not None:
        raise SettingsError(
            f"--traces deletes traces and no adapters, and {folder} is a folder of adapters: give one of the two "
            "(--trace-store names another store)"
        )
    if not store.exists():
        line(f"{store.file}: there are no traces")
        return
    _require_consent(f"Delete the {store.size()[0]} traces in {store.file}?", yes)
    line(f"{store.file}: {store.clear()} traces were deleted")


def _require_consent(question: str, yes: bool) -> None:
    """Ends the command unless the user agrees, or has agreed by `--yes`."""
    if not yes and not _confirmed(question):
        warn("no file was deleted; --yes deletes without a question")
        raise typer.Exit(1)


def _confirmed(question: str) -> bool:
    """The user's answer; no where standard input has none."""
    try:
        return typer.confirm(question)
    except typer.Abort:
        return False


def _existing(folder: Path | None) -> Path:
    """The folder. Raises `SettingsError` if there is none."""
    if folder is None:
        raise SettingsError(f"expected a folder of adapters: name one, or set --adapters or {variable('adapters')}")
    if not folder.is_dir():
        raise SettingsError(f"{folder}: expected a folder of adapters; there is no such folder")
    return folder
