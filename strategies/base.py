"""What a strategy is, what it returns, and the registry that finds the strategies of this folder by itself.

Knows no strategy by name. A new strategy is one file in this folder with a frozen dataclass under `@register`.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import math
import os
import pkgutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from ..ttt_core.engine.answering import Answer
from ..ttt_core.errors import AdaptationError, AutotttError, StrategyError
from ..ttt_core.learner import Learner
from ..ttt_core.lora.cross_validation import CrossValidationResult
from ..ttt_core.lora.training import OnStep as OnStep
from ..ttt_core.lora.training import TrainingRecord
from ..ttt_core.recipes import Recipe, recipe_digest, recipe_for
from ..ttt_core.tasks.task import Task, Value

CostClass = Literal["read", "sample", "train"]
"""One pass over the prompt; several; or training."""


@dataclass(frozen=True)
class Cost:
    """What something took."""

    seconds: float = 0.0
    forward_tokens: int = 0
    backward_tokens: int = 0

    @property
    def passes(self) -> int:
        """Forward-token equivalents: a backward pass counts as two forward passes."""
        return self.forward_tokens + 2 * self.backward_tokens

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            self.forward_tokens + other.forward_tokens,
            self.backward_tokens + other.backward_tokens,
        )


@dataclass(frozen=True)
class Candidate:
    """An answer that was voted for."""

    value: Value
    share: float
    """Of the votes, 0 to 1."""


@dataclass(frozen=True)
class Attempt:
    """What a strategy made of a task."""

    strategy: str
    value: Value | None
    """The answer; None when there is none that can be read."""
    text: str
    """The answer as the model wrote it."""
    confidence: float
    """Probability that the model gives its answer, or the share of votes for it; 0 to 1."""
    candidates: tuple[Candidate, ...] = ()
    training_record: TrainingRecord | None = None
    cross_validation: CrossValidationResult | None = None
    """Of cross-fitted training: what held-out demonstrations say of it."""
    from_cache: bool = False
    """Whether the adapter was known already."""
    recipe: str = ""
    """Digest of the recipe that was used; empty for strategies without one."""
    error: str = ""
    """Why there is no answer, where an attempt failed."""
    cost: Cost = Cost()

    @property
    def status(self) -> Literal["answered", "unreadable", "failed"]:
        """A failure is never dressed up as an answer."""
        if self.error:
            return "failed"
        return "answered" if self.value is not None else "unreadable"


class Strategy(Protocol):
    """One way to answer a task. Fields of the dataclass are its settings; None means the model's own recipe."""

    @property
    def name(self) -> str: ...

    @property
    def cost_class(self) -> CostClass: ...

    @property
    def min_demonstrations(self) -> int:
        """Demonstrations without which it cannot run."""
        ...

    def attempt(
        self, learner: Learner, task: Task, *, seed: int = 0, deadline: float = math.inf, on_step: OnStep | None = None
    ) -> Attempt:
        """Answers the task. The learner is as before when it returns or raises.

        `deadline` is a time of `time.monotonic` by which training stops. Raises `TooLongError` when the task does not
        fit and `AdaptationError` when training fails; `run` is the door that turns the latter into a failed attempt.
        """
        ...


S = TypeVar("S")
COST_CLASSES = ("read", "sample", "train")
NODES = ("measure", "decide", "judge", "revert")
"""Names of the graph's other nodes."""
ENTRY_POINTS = "autottt.strategies"
"""The group of entry points under which an installed package names its strategies' modules."""
PLUGINS = "AUTOTTT_PLUGINS"
"""The environment variable with further modules or .py files, separated as in PATH."""
_PACKAGE = __name__.rpartition(".")[0]
_REGISTRY: dict[str, Strategy] = {}
_DISCOVERED: list[bool] = []


def register(cls: type[S]) -> type[S]:
    """Class decorator: makes a strategy, with its default settings, known by its name.

    Raises `StrategyError` when the name is taken by another class, or its name, cost class or needs are none.
    """
    if not cls.__module__.startswith(f"{_PACKAGE}."):
        _discover()  # so that a name that is taken here is found to be
    strategy: Strategy = cls()  # type: ignore[assignment]
    name, where = strategy.name, f"{cls.__module__}.{cls.__qualname__}"
    if not (isinstance(name, str) and name.isidentifier()) or name in NODES:
        raise StrategyError(
            f"{where}: expected a name of letters, digits and _, and not {', '.join(NODES)}; received {name!r}"
        )
    if strategy.cost_class not in COST_CLASSES:
        raise StrategyError(
            f"{where}: expected a cost_class of {', '.join(COST_CLASSES)}; received {strategy.cost_class!r}"
        )
    if not isinstance(strategy.min_demonstrations, int) or strategy.min_demonstrations < 0:
        raise StrategyError(
            f"{where}: expected a number of demonstrations as needs; received {strategy.min_demonstrations!r}"
        )
    other = type(_REGISTRY.get(name, strategy))
    if (there := f"{other.__module__}.{other.__qualname__}") != where:
        raise StrategyError(f"two strategies are called {name!r}: {there} and {where}")
    _REGISTRY[name] = strategy
    return cls


def _discover() -> None:
    """Imports the modules of this folder, then those of installed packages and of `PLUGINS`, once."""
    if _DISCOVERED:
        return
    _DISCOVERED.append(True)  # first: what is imported registers strategies, and comes here again
    try:
        for module in pkgutil.iter_modules(importlib.import_module(_PACKAGE).__path__):
            importlib.import_module(f"{_PACKAGE}.{module.name}")
        for point in entry_points(group=ENTRY_POINTS):
            _plugged(f"{point.name} ({point.value})", point.load)
        for source in filter(None, os.environ.get(PLUGINS, "").split(os.pathsep)):
            _plugged(source, partial(_import, source))
    except BaseException:
        _DISCOVERED.clear()
        raise


def _plugged(name: str, load: Callable[[], object]) -> None:
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
    if path.stem in sys.modules and getattr(sys.modules[path.stem], "__file__", None) == str(path):
        return
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise StrategyError(f"{source}: no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)


def strategies() -> Mapping[str, Strategy]:
    """Every strategy by name, cheapest cost class first."""
    _discover()
    return dict(sorted(_REGISTRY.items(), key=lambda item: (COST_CLASSES.index(item[1].cost_class), item[0])))


def get_strategy(name: str) -> Strategy:
    """The strategy of that name. Raises `StrategyError` with the names there are and the nearest."""
    known = strategies()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise StrategyError(f"no strategy is called {name!r}{hint} Known: {', '.join(known)}")
    return known[name]


def strategy_recipe_digest(strategy: Strategy, recipes: Mapping[str, Recipe], kind: str) -> str:
    """What tells outcomes of a strategy from those with another recipe; empty for strategies without one."""
    if not hasattr(strategy, "recipe"):
        return ""
    return recipe_digest(strategy.recipe or recipe_for(recipes, strategy.name, kind))


def run(
    strategy: Strategy,
    learner: Learner,
    task: Task,
    *,
    seed: int = 0,
    deadline: float = math.inf,
    on_step: OnStep | None = None,
) -> Attempt:
    """Runs an attempt and adds what it cost. Training that fails makes a failed attempt, and so does what a strategy
    raises by mistake, which is logged; other errors of this package are raised.

    Raises `StrategyError` when the task has too few demonstrations and `TooLongError` when it does not fit.
    """
    if len(task.demonstrations) < strategy.min_demonstrations:
        raise StrategyError(
            f"{task.id}: {strategy.name} needs {strategy.min_demonstrations} demonstrations; the task has {len(task.demonstrations)}"
        )
    began, before, ahead = time.perf_counter(), learner.work, learner.prefetch_seconds
    try:
        attempt = strategy.attempt(learner, task, seed=seed, deadline=deadline, on_step=on_step)
    except AdaptationError as error:
        attempt = Attempt(strategy.name, None, "", 0.0, error=str(error))
    except AutotttError:
        raise
    except Exception as error:
        logging.getLogger("autottt").warning("%s failed on %s", strategy.name, task.id, exc_info=True)
        attempt = Attempt(strategy.name, None, "", 0.0, error=f"{type(error).__name__}: {error}")
    done = learner.work - before
    seconds = time.perf_counter() - began + learner.prefetch_seconds - ahead
    recipe = strategy_recipe_digest(strategy, learner.loaded.recipes, task.kind)
    return replace(attempt, cost=Cost(seconds, done.forward, done.backward), recipe=recipe)


def from_answer(name: str, answer: Answer) -> Attempt:
    """The attempt that a single decoded answer makes."""
    return Attempt(name, answer.value, answer.text, math.exp(answer.scores.total))


def hierarchical_vote(groups: Sequence[Sequence[Answer]], top: int = 3) -> tuple[Candidate, ...]:
    """Votes within each group, then over the groups' first `top`; likeliest first among equals.

    Each group holds the answers from one view of a task under several orders, mapped back to the task's own
    representation (Akyürek et al. 2025, section 4.2).
    """
    votes: dict[Value, float] = {}
    likelihood: dict[Value, float] = {}
    for group in groups:
        counts: dict[Value, int] = {}
        for answer in group:
            if answer.value is not None:
                counts[answer.value] = counts.get(answer.value, 0) + 1
                likelihood[answer.value] = max(likelihood.get(answer.value, -math.inf), answer.scores.total)
        best = sorted(counts, key=lambda v: (-counts[v], -likelihood[v]))[:top]
        for value in best:
            votes[value] = votes.get(value, 0.0) + counts[value]
    total = sum(votes.values())
    ranked = sorted(votes, key=lambda v: (-votes[v], -likelihood[v]))
    return tuple(Candidate(v, votes[v] / total) for v in ranked)
