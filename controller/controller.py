"""The object that other programs hold: `Controller.from_pretrained().solve(task)`. The algorithm is in `graph`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from ..policies.policy import FixedPolicy, Policy, load_policy
from ..strategies.base import Cost, get_strategy
from ..ttt_core.adapters import AdapterCache
from ..ttt_core.errors import AutotttError, BaseChangedError
from ..ttt_core.learner import Learner
from ..ttt_core.tasks import Task
from .budget import Budget
from .graph import Graph, build_graph
from .results import Result, refused, result_of
from .state import Context, State, task_to_plain


class Controller:
    """A model that judges by itself whether to answer a task at once or to learn from it first.

    It is safe to use from several threads: the learner does one thing at a time.
    """

    def __init__(self, learner: Learner, policy: Policy, *, budget: Budget | str | None = None, seed: int = 0) -> None:
        self.learner = learner
        self.policy = policy
        self.budget = _budget(budget)
        self.seed = seed
        self.graph: Graph = build_graph()
        """The compiled LangGraph graph. Run it yourself with `context=controller.context()`."""

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        policy: str | os.PathLike[str] | None = None,
        *,
        strategy: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        prompt_format: str | None = None,
        verify: Literal["pointers", "full"] = "pointers",
        budget: Budget | str | None = None,
        seed: int = 0,
        adapters: str | os.PathLike[str] | None = None,
    ) -> Controller:
        """Loads a model (folder, hub id, or the bundled one) and a policy (bundle folder, or the one that fits it).

        `strategy` forces one strategy for every task. `verify="full"` hashes all weights after every answer.
        `adapters` is a folder where trained adapters are kept and found again, also by other processes. Raises
        `ModelError`, `PolicyError`, `StrategyError` or `BudgetError`, each with the remedy.
        """
        if strategy is not None:
            get_strategy(strategy)
        cache = AdapterCache(folder=None if adapters is None else Path(adapters))
        learner = Learner.load(
            model, device=device, dtype=dtype, prompt_format=prompt_format, verify=verify, adapters=cache
        )
        chosen = FixedPolicy(strategy) if strategy else load_policy(policy, base_hash=learner.base_hash)
        return cls(learner, chosen, budget=budget, seed=seed)

    def context(self, budget: Budget | str | None = None) -> Context:
        """What the graph's nodes work with."""
        return Context(self.learner, self.policy, self.budget if budget is None else _budget(budget))

    def solve(self, task: Task, *, budget: Budget | str | None = None, seed: int | None = None) -> Result:
        """Answers one task. Raises `TooLongError` when it does not fit in the model's context.

        Whatever is raised, the model is as it was; if it is not, `BaseChangedError` is raised instead.
        """
        meter = self._meter()
        state: State = {}
        for update in self._run(task, budget, seed, "values"):
            state = update
        return result_of(task, state, meter())

    def solve_many(
        self,
        tasks: Iterable[Task],
        *,
        budget: Budget | str | None = None,
        seed: int | None = None,
        on_result: Callable[[Result], None] | None = None,
    ) -> list[Result]:
        """Answers tasks in order. One that cannot be tried gives a result with status `refused`."""
        found = []
        for task in tasks:
            try:
                result = self.solve(task, budget=budget, seed=seed)
            except BaseChangedError:
                raise
            except AutotttError as error:
                result = refused(task, error, self.learner.verify())
            found.append(result)
            if on_result is not None:
                on_result(result)
        return found

    def stream(
        self, task: Task, *, budget: Budget | str | None = None, seed: int | None = None
    ) -> Iterator[dict[str, Any] | Result]:
        """What happens as it happens: a dictionary per finished node and training step, and the result at the end."""
        meter = self._meter()
        state: State = {}
        for mode, data in self._run(task, budget, seed, ["updates", "custom", "values"]):
            if mode == "values":
                state = data
            else:
                yield {"event": "step" if mode == "custom" else "node", **data}
        yield result_of(task, state, meter())

    def _run(self, task: Task, budget: Budget | str | None, seed: int | None, mode: Any) -> Iterator[Any]:
        """Runs the graph; the base is verified also when a node raises, since later nodes do not run then."""
        start: State = {"task": task_to_plain(task), "seed": self.seed if seed is None else seed}
        finished = False
        try:
            yield from self.graph.stream(start, context=self.context(budget), stream_mode=mode)
            finished = True
        finally:
            if not finished:
                self.learner.verify()

    def _meter(self) -> Callable[[], Cost]:
        """What has been spent since now, whenever it is asked."""
        began, before = time.perf_counter(), self.learner.work

        def spent() -> Cost:
            done = self.learner.work - before
            return Cost(time.perf_counter() - began, done.forward, done.backward)

        return spent


def _budget(budget: Budget | str | None) -> Budget:
    if budget is None:
        return Budget()
    return Budget.parse(budget) if isinstance(budget, str) else budget
