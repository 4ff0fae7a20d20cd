"""The object that other programs hold: `Controller.from_pretrained().solve(task)`. The algorithm is in `graph`."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from ..policies.exploration import ExploringPolicy
from ..policies.policy import FixedPolicy, LearnedPolicy, Policy, load_policy
from ..strategies.base import Cost, recipe_digest_for
from ..strategies.registry import get_strategy, strategies
from ..strategies.training import PlansAdapter
from ..ttt_core.engine.adapter_cache import AdapterCache
from ..ttt_core.engine.adapter_plan import AdapterPlan
from ..ttt_core.errors import AutotttError, BaseChangedError, Cancelled, PolicyError
from ..ttt_core.learner import Learner
from ..ttt_core.tasks.task import Task
from . import lazy
from .budget import UNLIMITED, Budget
from .results import Result, refused, result_of
from .state import Context, State, task_to_plain

if TYPE_CHECKING:
    from .graph import Graph

T = TypeVar("T")


class Controller:
    """A model that judges by itself whether to answer a task at once or to learn from it first.

    It is safe to use from several threads: tasks take turns, also those of other controllers around the same model.
    """

    def __init__(
        self,
        learner: Learner,
        policy: Policy | None = None,
        *,
        budget: Budget | str | float | None = None,
        seed: int = 0,
    ) -> None:
        """A controller around a learner; `Controller(Learner.wrap(model, tokenizer))` is one around a model that the
        program holds. Without a policy, the one that fits the learner.
        """
        if not isinstance(learner, Learner):
            raise TypeError(
                f"expected a Learner, such as Learner.wrap(model, tokenizer); received a {type(learner).__name__}"
            )
        if isinstance(policy, (str, os.PathLike)):
            raise TypeError(
                f"expected a policy; received {policy!r}: FixedPolicy({policy!r}) forces a strategy, and "
                "load_policy(folder, base_hash=learner.base_hash) reads a bundle"
            )
        self.learner = learner
        self.policy = policy_for(learner) if policy is None else policy
        self.budget = _budget(budget)
        self.seed = seed
        self._graph: tuple[tuple[str, ...], Graph] | None = None

    @property
    def graph(self) -> Graph:
        """The compiled LangGraph graph, with all strategies there are. Run it yourself with
        `context=controller.context()`."""
        names = tuple(strategies())
        if self._graph is None or self._graph[0] != names:
            self._graph = names, lazy.graph.build_graph()
        return self._graph[1]

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
        budget: Budget | str | float | None = None,
        seed: int = 0,
        adapters: str | os.PathLike[str] | None = None,
        memory_bytes: int | None = None,
        shadow: str | os.PathLike[str] | None = None,
        explore: float = 0.0,
        ignore_mismatch: bool = False,
        cost_weight: float | None = None,
    ) -> Controller:
        """Loads a model (folder, hub id, or the bundled one) and a policy (bundle folder, or the one that fits it).

        `strategy` forces one strategy for every task. `verify="full"` hashes all weights after every answer.
        `adapters` is a folder where trained adapters are kept and found again, also by other processes. `memory_bytes`
        bounds what training and answering take beside the model; batches are split to fit. `shadow` is the bundle of a
        second policy, asked for the record only, and `explore` a share of tasks, 0 to 1, for which the strategy is
        drawn. With `ignore_mismatch` a policy of another model or other recipes is used as it is. `cost_weight` is the
        accuracy that one in-context cost is worth, in place of that which the policy was trained with. Raises
        `ModelError`, `PolicyError`, `StrategyError` or `BudgetError`, each with the remedy.
        """
        if strategy is not None:
            get_strategy(strategy)
        cache = AdapterCache(folder=None if adapters is None else Path(adapters))
        learner = Learner.load(
            model, device=device, dtype=dtype, prompt_format=prompt_format, verify=verify, adapters=cache,
            memory_bytes=memory_bytes,
        )  # fmt: skip
        chosen: Policy = FixedPolicy(strategy) if strategy else policy_for(learner, policy, ignore_mismatch)
        if cost_weight is not None:
            if not isinstance(chosen, LearnedPolicy):
                raise PolicyError(f"cost_weight: only a learned policy weighs costs; this one is {chosen.name}")
            chosen = chosen.with_cost_weight(cost_weight)
        if shadow is not None or explore:
            other = None if shadow is None else policy_for(learner, shadow, ignore_mismatch)
            chosen = ExploringPolicy(chosen, other, explore, seed)
        return cls(learner, chosen, budget=budget, seed=seed)

    def context(
        self,
        budget: Budget | str | float | None = None,
        cancel: threading.Event | None = None,
        strategy: str | None = None,
    ) -> Context:
        """What the graph's nodes work with. `strategy` forces one, in place of the policy."""
        limit = self.budget if budget is None else _budget(budget)
        policy = self.policy if strategy is None else FixedPolicy(get_strategy(strategy).name)
        return Context(self.learner, policy, limit, cancel or threading.Event())

    def solve(
        self,
        task: Task,
        *,
        strategy: str | None = None,
        budget: Budget | str | float | None = None,
        seed: int | None = None,
        cancel: threading.Event | None = None,
    ) -> Result:
        """Answers one task: as the policy decides, or by the strategy that is named.

        A budget is a `Budget`, a text such as `10s` or `20x`, or seconds; it begins when the task's turn comes. Raises
        `TooLongError` when the task does not fit in the model's context, and `Cancelled` soon after another thread sets
        `cancel`: while it waits for its turn, before the next step of training, or before the next node.

        Whatever is raised, the model is as it was; if it is not, `BaseChangedError` is raised instead.
        """
        context = self.context(budget, cancel, strategy)
        with self.learner.guarded.lock.exclusive(context.raise_if_cancelled):
            return self._solve(task, context, seed)

    def solve_many(
        self,
        tasks: Iterable[Task],
        *,
        strategy: str | None = None,
        budget: Budget | str | float | None = None,
        seed: int | None = None,
        batch_size: int = 32,
        on_result: Callable[[Result], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Result]:
        """Answers tasks in order. One that cannot be tried gives a result with status `refused`. Raises `Cancelled` as
        `solve` does; `on_result` has been given the results until then.

        Up to `batch_size` tasks are measured and decided on first; then the adapters that they need are trained in
        batches. With a budget each task is solved by itself, so that none waits for others.
        """
        if isinstance(tasks, Task):
            raise TypeError("solve_many answers several tasks, such as a list of them; for one there is solve")
        context = self.context(budget, cancel, strategy)
        size = max(1, batch_size) if context.budget == UNLIMITED else 1
        results = []
        remaining = iter(tasks)
        while batch := list(islice(remaining, size)):
            with self.learner.guarded.lock.exclusive(context.raise_if_cancelled):
                for result in self._solve_batch(batch, context, self.seed if seed is None else seed):
                    results.append(result)
                    if on_result is not None:
                        on_result(result)
        return results

    def _solve_batch(self, tasks: Sequence[Task], context: Context, seed: int) -> Iterator[Result]:
        """The results of tasks whose adapters are trained in batches."""
        if len(tasks) == 1:
            yield self._or_refused(tasks[0], partial(self._solve, tasks[0], context, seed))
            return
        graph = lazy.graph.build_graph(lazy.memory.InMemorySaver())
        runs = [_PausedRun(graph, task, context, seed, str(number)) for number, task in enumerate(tasks)]
        refusals: dict[int, Result] = {}
        plans: list[AdapterPlan] = []
        with self._verified_on_failure():
            for index, run in enumerate(runs):
                decided = self._or_refused(run.task, run.to_the_decision)
                if isinstance(decided, Result):
                    refusals[index] = decided
                elif isinstance(strategy := get_strategy(decided), PlansAdapter):
                    with suppress(Exception):  # a mistake in a strategy is raised again, and reported, when it runs
                        plans.append(strategy.plan(self.learner, run.task, seed))
            try:
                self.learner.adapters.prefetch(plans, lambda step, loss: context.raise_if_cancelled())
                for index, run in enumerate(runs):
                    yield refusals[index] if index in refusals else self._or_refused(run.task, run.to_the_end)
            finally:
                self.learner.adapters.release_prefetched()

    def _solve(self, task: Task, context: Context, seed: int | None) -> Result:
        """Runs the graph to its end. The base is verified also when a node raises: later nodes do not run then."""
        start, meter = self._start(task, seed), self.learner.guarded.meter()
        state: State = {}
        with self._verified_on_failure():
            for values in self.graph.stream(start, context=context, stream_mode="values"):
                state = cast(State, values)
        return result_of(task, state, meter.read())

    def _or_refused(self, task: Task, work: Callable[[], T]) -> T | Result:
        """What `work` returns, or the result of a task that cannot be tried."""
        try:
            return work()
        except (BaseChangedError, Cancelled):
            raise
        except AutotttError as error:
            return refused(task, error, self.learner.verify())

    def stream(
        self,
        task: Task,
        *,
        strategy: str | None = None,
        budget: Budget | str | float | None = None,
        seed: int | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[dict[str, Any] | Result]:
        """What happens as it happens: a dictionary per finished node and training step, and the result at the end.

        A node gives `{"event": "node", "node": its name, "update": the keys of the state that it changed}`, a step
        `{"event": "step", "strategy", "step", "loss"}`. Closed before its end, it cancels what is under way; so does
        `cancel`, set from another thread. Until the end, other threads wait for their turn.
        """
        closed = threading.Event()  # not the caller's event, which must not report that the stream was closed
        context = replace(self.context(budget, cancel, strategy), closed=closed)
        with self.learner.guarded.lock.exclusive(context.raise_if_cancelled):
            start, meter = self._start(task, seed), self.learner.guarded.meter()
            state: State = {}
            with self._verified_on_failure():
                modes: Any = ["updates", "custom", "values"]
                stream: Any = self.graph.stream(start, context=context, stream_mode=modes)
                try:
                    for mode, data in stream:
                        if mode == "values":
                            state = data
                        elif mode == "custom":
                            yield {"event": "step", **data}
                        else:
                            for node, update in data.items():
                                yield {"event": "node", "node": node, "update": update}
                finally:
                    closed.set()  # first: closing the stream waits for the node that is running
                    stream.close()
        yield result_of(task, state, meter.read())

    def _start(self, task: Task, seed: int | None) -> State:
        """The input of the graph."""
        if not isinstance(task, Task):
            raise TypeError(f"expected a Task, such as make_task gives; received a {type(task).__name__}")
        return {"task": task_to_plain(task), "seed": self.seed if seed is None else seed}

    @contextmanager
    def _verified_on_failure(self) -> Iterator[None]:
        """Verifies the base where the body does not finish: the graph's `revert` node does not run then."""
        finished = False
        try:
            yield
            finished = True
        finally:
            if not finished:
                self.learner.verify()


def _budget(budget: Budget | str | float | None) -> Budget:
    if budget is None or isinstance(budget, Budget):
        return budget or Budget()
    if isinstance(budget, (int, float)) and not isinstance(budget, bool):
        return Budget(seconds=budget)
    return Budget.parse(str(budget))


class _PausedRun:
    """One task's run of the graph, paused between the decision and the strategy's node."""

    def __init__(self, graph: Graph, task: Task, context: Context, seed: int, thread: str) -> None:
        self.task = task
        self._graph, self._context, self._learner = graph, context, context.learner
        self._start: State = {"task": task_to_plain(task), "seed": seed}
        self._config: Any = {"configurable": {"thread_id": thread}}
        self._cost = Cost()

    def to_the_decision(self) -> str:
        """Measures and decides; returns the name of the strategy."""
        return str(self._advance(self._start, list(strategies()))["decision"]["strategy"])

    def to_the_end(self) -> Result:
        """Runs the strategy and everything after it."""
        state = self._advance(None, None)
        return result_of(self.task, state, self._cost)

    def _advance(self, start: State | None, stops: list[str] | None) -> State:
        meter = self._learner.guarded.meter()
        states = self._graph.stream(
            start, self._config, context=self._context, stream_mode="values", interrupt_before=stops
        )
        (state,) = deque(states, maxlen=1)
        self._cost += meter.read()
        return cast(State, state)


def policy_for(learner: Learner, source: str | os.PathLike[str] | None = None, ignore_mismatch: bool = False) -> Policy:
    """The policy in a folder, or the one that fits the learner; see `load_policy`."""

    def recipe_of(strategy: str, kind: str) -> str | None:
        known = strategies().get(strategy)
        return None if known is None else recipe_digest_for(known, learner.loaded.recipes, kind)

    return load_policy(
        source, base_hash=learner.base_hash, prompt_format=learner.loaded.format.name, recipe_of=recipe_of,
        ignore_mismatch=ignore_mismatch and source is not None,
    )  # fmt: skip
