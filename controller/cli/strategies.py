"""The command `autottt strategies`: a table of the strategies, or one page about one of them."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...strategies.registry import check_names
from .console import screen

if TYPE_CHECKING:
    from ...strategies.base import Strategy
    from ...ttt_core.recipes import Recipe


def strategies(
    name: Annotated[str | None, typer.Argument(help="Show the page of this strategy.")] = None,
) -> None:
    """List the strategies, or show what one does, its recipes, when it wins and when it loses.

    Example: `autottt strategies ttt_in_context`
    """
    if name is not None:
        check_names([name])
    from ...strategies import registry

    if name is None:
        screen.print(_table(registry.strategies()))
    else:
        screen.print(_page(registry.get_strategy(name)))


def _table(every: Mapping[str, Strategy]) -> RenderableType:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("name", no_wrap=True)
    table.add_column("cost class", no_wrap=True)
    table.add_column("demonstrations", justify="right")
    table.add_column("what it does", overflow="fold")
    for name, strategy in every.items():
        table.add_row(
            Text(name, "bold cyan"), strategy.cost_class, str(strategy.min_demonstrations), _summary(strategy)
        )
    return Group(table, Text("One page about a strategy: autottt strategies NAME", style="dim"))


def _summary(strategy: Strategy) -> Text:
    """One line: what the first line of the module says after the name, else the first sentence of the class."""
    module = inspect.getdoc(sys.modules[type(strategy).__module__]) or ""
    prefix = f"`{strategy.name}`: "
    first_line = module.partition("\n")[0]
    if first_line.startswith(prefix):
        return Text(first_line.removeprefix(prefix).rstrip("."))
    return Text(re.split(r"(?<=\w)\.(?:\s|$)", _paragraphs(strategy))[0].removeprefix("Idea: "))


def _paragraphs(strategy: Strategy) -> str:
    """The docstring of a strategy, one line a paragraph."""
    paragraphs = (inspect.getdoc(type(strategy)) or "").split("\n\n")
    return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _page(strategy: Strategy) -> RenderableType:
    count = strategy.min_demonstrations
    needs = f"{strategy.cost_class}; needs {count} demonstration{'' if count == 1 else 's'}"
    sections = re.split(r"\s*\b(?=(?:Idea: |Wins |Loses |Source: ))", _paragraphs(strategy))
    head = Text.assemble((strategy.name, "bold cyan"), f"  ({needs})\n", _summary(strategy), "\n")
    body = Text("\n\n".join(section for section in sections if section) + "\n")
    recipes = _recipes(strategy)
    return Group(head, body, _recipe_table(recipes) if recipes else Text("It needs no recipe: it trains nothing."))


def _recipes(strategy: Strategy) -> dict[str, Recipe]:
    """The recipes of a strategy: its own, or those of the bundled model, of small models and of other models."""
    from ...strategies.base import recipe_for
    from ...ttt_core.model.loading import BUNDLED
    from ...ttt_core.recipes import MEASURED_RATES, SMALL_MODELS, Recipe, recipes_for_model

    if strategy.recipe is not None:
        return {"every model": strategy.recipe}
    if strategy.default_recipe is None:
        return {}
    settings = json.loads((BUNDLED / "autottt.json").read_text("utf-8"))["recipes"]
    bundled = {place: Recipe.from_settings(recipe) for place, recipe in settings.items()}
    kinds = [place.partition("/")[2] for place in bundled if place.startswith(f"{strategy.name}/")]
    columns = {"bundled model": recipe_for(strategy, bundled, "")}
    columns |= {f"bundled model, {kind}": recipe_for(strategy, bundled, kind) for kind in kinds}
    for model_type in ("", *MEASURED_RATES):
        small = recipes_for_model(SMALL_MODELS[0], model_type).get(strategy.name)
        if small is not None and small not in columns.values():
            columns[", ".join(filter(None, ("0.1 to 1B parameters", model_type)))] = small
    return {**columns, "other models": strategy.default_recipe}


def _recipe_table(recipes: Mapping[str, Recipe]) -> Table:
    """A row for each setting, a column for each recipe."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("recipe", no_wrap=True)
    for column in recipes:
        table.add_column(column, justify="right", overflow="fold")
    settings = [asdict(recipe) for recipe in recipes.values()]
    for setting in settings[0]:
        table.add_row(setting, *(Text(_value(recipe[setting])) for recipe in settings))
    return table


def _value(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
