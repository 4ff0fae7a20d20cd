"""The registry of strategies: finds the files of this folder, installed plug-ins, and those that a program registers.

Knows nothing about what strategies do.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.util
import os
import pkgutil
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..ttt_core.errors import StrategyError, shortened

if TYPE_CHECKING:
    from ..ttt_core.learner import Learner
    from .base import Strategy

S = TypeVar("S")
COST_CLASSES = ("read", "sample", "train")
RESERVED_NAMES = ("measure", "decide", "judge", "revert")
"""Names of the other nodes of the controller's graph."""
ENTRY_POINTS = "autottt.strategies"
"""The group of entry points under which an installed package names its strategies' modules."""
PLUGINS = "AUTOTTT_PLUGINS"
"""The environment variable with further modules or .py files, separated as in PATH."""
_PACKAGE = __name__.rpartition(".")[0]
_REGISTRY: dict[str, Strategy] = {}
_DISCOVERED: list[bool] = []
_DISCOVERING = threading.Lock()
_DISCOVERING_THREAD: list[int] = []
"""The thread that imports the strategies now."""


def register(cls: type[S]) -> type[S]:
    """Class decorator: adds a strategy with its default settings to the registry, under its name.

    Raises `StrategyError` when the class lacks a member of `Strategy`, when its name, cost class, number of
    demonstrations, recipe or number of answers is invalid, or when another class has the name.
    """
    if not cls.__module__.startswith(f"{_PACKAGE}."):
        _discover(wait=False)  # so that the names of this folder are taken; waiting in an import could block for ever
    strategy: Strategy = cls()  # type: ignore[assignment]
    where = f"{cls.__module__}.{cls.__qualname__}"
    _check(strategy, where)
    other = type(_REGISTRY.get(strategy.name, strategy))
    if (there := f"{other.__module__}.{other.__qualname__}") != where:
        raise StrategyError(f"two strategies are called {strategy.name!r}: {there} and {where}")
    _check_recipe(strategy, where)
    _REGISTRY[strategy.name] = strategy
    return cls


def _check(strategy: Strategy, where: str) -> None:
    """Raises `StrategyError` for what cannot be registered."""
    name, needs = getattr(strategy, "name", None), getattr(strategy, "min_demonstrations", None)
    cost_class = getattr(strategy, "cost_class", None)
    if not (isinstance(name, str) and name.isidentifier()) or name in RESERVED_NAMES:
        raise StrategyError(
            f"{where}: expected a name of letters, digits and _, and not {', '.join(RESERVED_NAMES)}; received {name!r}"
        )
    if cost_class not in COST_CLASSES:
        raise StrategyError(f"{where}: expected a cost_class of {', '.join(COST_CLASSES)}; received {cost_class!r}")
    if not isinstance(needs, int) or needs < 0:
        raise StrategyError(
            f"{where}: expected a number of demonstrations, at least 0, as min_demonstrations; received {needs!r}"
        )
    members = ("name", "cost_class", "min_demonstrations", "recipe", "default_recipe", "answers_per_query", "attempt")
    if missing := [member for member in members if member not in dir(strategy)]:
        raise StrategyError(
            f"{where}: expected the members of a Strategy; {', '.join(missing)} missing (a strategy without training "
            "has recipe = default_recipe = None, and answers_per_query returns 1)"
        )


def _check_recipe(strategy: Strategy, where: str) -> None:
    """Raises `StrategyError` for a recipe, or a number of answers, that is none."""
    from ..ttt_core.recipes import Recipe
    from .base import checked_count

    for place, recipe in (("recipe", strategy.recipe), ("default_recipe", strategy.default_recipe)):
        if recipe is not None and not isinstance(recipe, Recipe):
            raise StrategyError(f"{where}: expected a Recipe or None as {place}; received {shortened(recipe)}")
    try:
        checked_count(strategy.answers_per_query(strategy.recipe or strategy.default_recipe or Recipe()))
    except Exception as error:
        raise StrategyError(
            f"{where}: answers_per_query cannot be used ({type(error).__name__}: {error}); a strategy that does not "
            "vote returns 1"
        ) from error


def _discover(*, wait: bool = True) -> None:
    """Imports the modules of this folder, then those of installed packages and of `PLUGINS`, once. While another thread
    does so, this one waits: the registry is not complete yet."""
    if _DISCOVERED and not _DISCOVERING.locked():
        return
    if not _DISCOVERING.acquire(blocking=wait and [threading.get_ident()] != _DISCOVERING_THREAD):
        return
    _DISCOVERING_THREAD[:] = [threading.get_ident()]
    try:
        _import_all()
    finally:
        _DISCOVERING_THREAD.clear()
        _DISCOVERING.release()


def _import_all() -> None:
    if _DISCOVERED:
        return
    _DISCOVERED.append(True)  # first: what is imported registers strategies, and comes here again
    try:
        for module in pkgutil.iter_modules(importlib.import_module(_PACKAGE).__path__):
            importlib.import_module(f"{_PACKAGE}.{module.name}")
        for point in entry_points(group=ENTRY_POINTS):
            _load_plugin(f"{point.name} ({point.value})", point.load)
        for source in plugin_sources():
            _load_plugin(source, partial(_import, source))
    except BaseException:
        _DISCOVERED.clear()
        raise


def _load_plugin(name: str, load: Callable[[], object]) -> None:
    try:
        load()
    except StrategyError:
        raise
    except Exception as error:
        raise StrategyError(f"the plug-in {name} cannot be imported: {type(error).__name__}: {error}") from error


def _import(source: str) -> None:
    """A module by its name, or a file that ends in .py."""
    if not source.endswith(".py"):
        importlib.import_module(source)
        return
    path = Path(source).resolve()
    name = _module_name(path)
    if getattr(sys.modules.get(name), "__file__", None) == str(path):
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise StrategyError(f"{source}: no Python file")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # else the next attempt would take it for imported
        raise


def _module_name(path: Path) -> str:
    """The name of a plug-in file as a module: its own, unless another module has that name."""
    try:
        other = importlib.util.find_spec(path.stem)
    except (ImportError, ValueError):  # a module without a specification, such as `__main__`
        other = None
    known = path.stem in sys.modules or other is not None
    if not known or str(path) in (getattr(sys.modules.get(path.stem), "__file__", None), other and other.origin):
        return path.stem
    return f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def strategies() -> Mapping[str, Strategy]:
    """Every strategy by name, cheapest cost class first."""
    _discover()
    return dict(sorted(_REGISTRY.items(), key=lambda item: (COST_CLASSES.index(item[1].cost_class), item[0])))


def plugin_proofs(learner: Learner, *others: Strategy) -> AbstractContextManager[None]:
    """Inside, every proof of the base is a full one if a registered strategy, or one of `others`, is a plug-in: any of
    its methods may write to the base in a way that the cheap proof does not detect at once."""
    from .base import is_plugin

    uses_plugins = any(map(is_plugin, [*others, *strategies().values()]))
    return learner.guarded.full_proofs() if uses_plugins else nullcontext()


def get_strategy(name: str) -> Strategy:
    """The strategy of that name. Raises `StrategyError` with the names there are and the nearest."""
    known = strategies()
    if not isinstance(name, str) or name not in known:
        raise _unknown(name, known)
    return known[name]


def check_names(names: Iterable[str]) -> None:
    """Raises `StrategyError` for a name that no strategy has. Imports strategies only if there are plug-ins that may
    register the name, so that the error comes before torch is imported."""
    shipped = _shipped_names()
    for name in names:
        if name in shipped or name in _REGISTRY:
            continue
        if not plugin_sources() and not entry_points(group=ENTRY_POINTS):
            raise _unknown(name, [*shipped, *(n for n in _REGISTRY if n not in shipped)])
        get_strategy(name)


def plugin_sources() -> list[str]:
    """The modules and .py files that the environment variable `PLUGINS` names."""
    return [source for source in os.environ.get(PLUGINS, "").split(os.pathsep) if source]


def check_plugins(sources: Iterable[str]) -> None:
    """Raises `StrategyError` for a plug-in that does not exist. Imports nothing but the parents of a dotted module."""
    for source in sources:
        if source.endswith(".py"):
            if not Path(source).is_file():
                raise StrategyError(f"the plug-in {source} cannot be imported: there is no such file")
            continue
        try:
            exists = source in sys.modules or importlib.util.find_spec(source) is not None
        except (ImportError, ValueError):
            exists = False
        if not exists:
            raise StrategyError(
                f"the plug-in {source} cannot be imported: there is no such module, and a file ends in .py"
            )


def _shipped_names() -> list[str]:
    """The names of the strategies in this folder, read from the source: importing them would import torch."""
    folder = Path(__file__).parent
    classes = (
        node
        for path in sorted(folder.glob("*.py"))
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(d) == register.__name__ for d in node.decorator_list)
    )
    names = (
        statement.value.value
        for node in classes
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == "name"
        if isinstance(statement.value, ast.Constant)
    )
    return [name for name in names if isinstance(name, str)]


def _unknown(name: object, known: Collection[str]) -> StrategyError:
    if not isinstance(name, str):
        return StrategyError(
            f"strategy: expected the name of one, as a text; received {name!r} ({type(name).__name__}). "
            f"Known: {', '.join(known)}"
        )
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return StrategyError(f"no strategy is called {name!r}{hint} Known: {', '.join(known)}")
