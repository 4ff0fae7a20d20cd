"""The object that other programs hold: `Controller.from_pretrained().solve(task)`. The algorithm is in `graph`."""

from __future__ import annotations

import copy
import logging
import os
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, aclosing, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast

from ..policies.calibration import Calibrates
from ..policies.exploration import ExploringPolicy, without_exploration
from ..policies.policy import AnyModelPolicy, Decision, FixedPolicy, HeuristicPolicy, LearnedPolicy, Policy, load_policy
from ..strategies.adapter_training import PlansAdapter
from ..strategies.base import is_plugin, nominal_cost, recipe_digest_for
from ..strategies.registry import get_strategy, plugin_proofs, strategies
from ..ttt_core.arguments import check_callable, check_path
from ..ttt_core.engine.adapter_cache import AdapterCache
from ..ttt_core.engine.adapter_provider import Prefetched
from ..ttt_core.errors import AutotttError, BaseChangedError, Cancelled, PolicyError, ignoring_errors
from ..ttt_core.learner import Learner
from ..ttt_core.model.fingerprint import RevertProof
from ..ttt_core.tasks.fields import check_seed
from ..ttt_core.tasks.task import Task
from . import background, lazy
from .budget import UNLIMITED, Budget
from .events import CallbackErrors, OnEvent, PlannedRun, PrefetchProgress, last_state, watched
from .results import Result, refused, result_of
from .runs import PausedRun, input_of, queries_of_call, recorded, require_task
from .scheduler.scheduler import Scheduler
from .state import Context, Recorder, State
from .tracing import lazy as lazy_tracing

if TYPE_CHECKING:
    from langgraph.types import StreamMode

    from .task_graph import TaskGraph

T = TypeVar("T")
_LOG = logging.getLogger("autottt")
DEFAULT_BUDGET = Budget(multiples=50)
"""For models without a trained policy, whose costs nobody has measured: 50 times the in-context answer."""


def _check_policy(policy: object) -> None:
    """Raises `TypeError` for what is no policy and no name or folder of one."""
    if policy is not None and not isinstance(policy, (Policy, str, os.PathLike)):
        missing = [name for name in ("name", "needs_more", "decide", "card") if not hasattr(policy, name)]
        lacks = f", which lacks {', '.join(missing)} of a Policy" if len(missing) < 4 else ""
        raise TypeError(f"policy: expected a policy, or the folder of a bundle; received {policy!r}{lacks}")


class Controller:
    """A model that judges by itself whether to answer a task at once or to learn from it first.

    It is safe to use from several threads: tasks take turns, also those of other controllers around the same model.
    """

    def __init__(
        self,
        learner: Learner,
        policy: Policy | str | os.PathLike[str] | None = None,
        *,
        budget: Budget | str | float | None = None,
        seed: int = 0,
        langsmith: bool = False,
        trace: str | os.PathLike[str] | Recorder | None = None,
    ) -> None:
        """A controller around a learner; `Controller(Learner.wrap(model, tokenizer))` is one around a model that the
        program holds.

        `policy` is a policy, the folder of a bundle, or None for the one that fits the learner. A model without a
        trained policy gets the one for any model, else `HeuristicPolicy`. Where that was not trained on this model
        too, and without `budget`, the budget is `DEFAULT_BUDGET`; a warning says so.
        `langsmith` allows LangChain's environment variables to send this controller's runs to LangSmith. `trace` is
        where runs are recorded: `off`, `local` (this user's store), the file of a store (`NAME.sqlite`), `otlp` or
        `otlp:URL` (OpenTelemetry), several of these with commas, or a `TraceRecorder`; None: what the variable
        `AUTOTTT_TRACE` says, else `off`.
        Raises `TypeError` for another argument and `PolicyError` for a bundle that cannot be used.
        """
        if not isinstance(learner, Learner):
            raise TypeError(
                f"expected a Learner, such as Learner.wrap(model, tokenizer); received a {type(learner).__name__}"
            )
        if isinstance(policy, str) and policy in strategies() and not Path(policy).exists():
            raise TypeError(
                f"expected a policy or the folder of a bundle; received {policy!r}: FixedPolicy({policy!r}) forces "
                "this strategy"
            )
        self.learner = learner
        _check_policy(policy)
        if policy is None or isinstance(policy, (str, os.PathLike)):
            policy = policy_for(learner, policy)
        self.policy = policy
        self.budget = Budget.of(budget)
        deciding = without_exploration(self.policy)
        if budget is None and _is_unmeasured(deciding):
            self.budget = DEFAULT_BUDGET
            basis = "a rule of thumb" if isinstance(deciding, HeuristicPolicy) else "a policy of other models"
            _LOG.warning(
                "%s: no policy was trained for this model; decisions follow %s, with the budget %s per query unless "
                "another is given. `autottt policy fit` trains one on your tasks",
                learner.loaded.name, basis, DEFAULT_BUDGET,
            )  # fmt: skip
        self.seed = check_seed(seed)
        self.langsmith = langsmith
        self.recorder = _recorder(trace)
        self.scope = ""
        """Whose trained adapters are reused; see `for_scope`."""
        self._graphs: tuple[tuple[str, ...], TaskGraph] | None = None
        self._schedulers: list[Scheduler] = []
        self._is_copy = False
        """Whether another controller around the same learner made it."""
        lazy.import_all()

    def for_scope(self, scope: str) -> Controller:
        """A controller around the same model, with the same policy and settings, that reuses only adapters that were
        trained in the same scope, such as the name of a client. The scope of a new controller is empty. `close` on it
        closes its own schedulers alone, and leaves what the learner caches to this one."""
        if not isinstance(scope, str):
            raise TypeError(f"scope: expected a text, such as the name of a client; received {scope!r}")
        scoped = copy.copy(self)
        scoped.scope, scoped._schedulers, scoped._is_copy = scope, [], True
        return scoped

    @property
    def graph(self) -> TaskGraph:
        """The compiled LangGraph graph, with all strategies there are. Run it yourself with
        `context=controller.context()`, or add `as_node()` to a graph of your own."""
        names = tuple(strategies())
        if self._graphs is None or self._graphs[0] != names:
            self._graphs = names, lazy.graph.build_graph()
        return self._graphs[1]

    def scheduler(self, *, queue: int = 64, batch: int = 16) -> Scheduler:
        """A scheduler for queries of many threads and coroutines: `queue` may wait, and the adapters of up to `batch`
        are trained together. `close` ends its threads, or a `with` block. Raises `ValueError` as `Scheduler` does."""
        scheduler = Scheduler(self, queue=queue, batch=batch)
        self._schedulers[:] = [*(other for other in self._schedulers if not other.is_closed), scheduler]
        return scheduler

    def close(self) -> None:
        """Closes the schedulers that this controller made, once they have finished the queries that they took (see
        `Scheduler.close`), and drops what the learner caches in memory. The model stays as it is, and the controller
        can be used again."""
        for scheduler in self._schedulers:
            scheduler.close()
        if not self._is_copy:
            self.learner.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for scheduler in self._schedulers:
                scheduler.close(cancel=True)
        self.close()

    def as_node(self, *, budget: Budget | str | float | None = None, strategy: str | None = None) -> TaskGraph:
        """The graph as a node of another LangGraph graph: it brings its model and policy along.

        It reads `task` and `seed` of the parent's state and writes `answer` and `result` (plain data for
        `Result.from_plain`); nothing else of its state reaches the parent. `budget` and `strategy` are as in `solve`.

        >>> parent.add_node("solve", controller.as_node())  # doctest: +SKIP
        """
        self.context(budget, strategy=strategy)  # raises for an invalid setting now and not in the run
        return lazy.graph.build_graph(context_of=partial(self.context, budget, strategy=strategy))

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        policy: Policy | str | os.PathLike[str] | None = None,
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
        starting_adapter: str | os.PathLike[str] | None = None,
        read_with_adapter: bool = False,
        shadow: str | os.PathLike[str] | None = None,
        explore: float = 0.0,
        ignore_mismatch: bool = False,
        cost_weight: float | None = None,
        langsmith: bool = False,
        trace: str | os.PathLike[str] | Recorder | None = None,
    ) -> Controller:
        """Loads a model (folder, hub id, or the bundled one) and a policy (bundle folder, or the one that fits it).
        `policy` may also be a `Policy` of the program.

        `strategy` forces one strategy for every task. `verify="full"` hashes all weights after every answer.
        `adapters` is a folder where trained adapters are kept and found again, also by other processes. `memory_bytes`
        bounds what training and answering take beside the model; batches are split to fit. `starting_adapter` is the
        folder of an adapter, as `autottt prepare` or PEFT writes it, from which every training starts; with
        `read_with_adapter` it answers in context as well. `shadow` is the bundle of a second policy, asked for the
        record only, and `explore` a share of tasks, 0 to 1, for which the strategy is drawn. With `ignore_mismatch` a
        policy of another model or other recipes is used as it is. `cost_weight` is the accuracy that one in-context
        cost is worth, in place of that which the policy was trained with; `langsmith` and `trace` are as in
        `Controller`. Raises `ModelError`, `PolicyError`, `StrategyError` or `BudgetError`, each with the remedy.
        """
        if strategy is not None:
            get_strategy(strategy)
            if policy is not None:
                raise PolicyError(
                    f"expected a strategy or a policy; received strategy={strategy!r} and policy={str(policy)!r}: one "
                    "strategy for every task leaves a policy no choice; give one"
                )
        paths = {
            "model": model, "adapters": adapters, "starting_adapter": starting_adapter, "shadow": shadow,
        }  # fmt: skip
        _check_policy(policy)
        for name, path in paths.items():
            check_path(name, path)
        cache = AdapterCache(folder=None if adapters is None else Path(adapters))
        learner = Learner.load(
            model, device=device, dtype=dtype, prompt_format=prompt_format, verify=verify, adapters=cache,
            memory_bytes=memory_bytes, starting_adapter=starting_adapter, read_with_adapter=read_with_adapter,
        )  # fmt: skip
        if strategy is not None:
            chosen: Policy = FixedPolicy(strategy)
        else:
            chosen = policy if isinstance(policy, Policy) else policy_for(learner, policy, ignore_mismatch)
        chosen = chosen if cost_weight is None else weighted(chosen, cost_weight)
        if shadow is not None or explore:
            other = None if shadow is None else policy_for(learner, shadow, ignore_mismatch)
            chosen = ExploringPolicy(chosen, other, explore, seed)
        return cls(learner, chosen, budget=budget, seed=seed, langsmith=langsmith, trace=trace)

    def context(
        self,
        budget: Budget | str | float | None = None,
        cancel: threading.Event | None = None,
        strategy: str | None = None,
    ) -> Context:
        """What the graph's nodes work with. `strategy` forces one, in place of the policy."""
        limit = self.budget if budget is None else Budget.of(budget)
        policy = self.policy if strategy is None else FixedPolicy(get_strategy(strategy).name)
        policy = policy.snapshot() if isinstance(policy, Calibrates) else policy
        if not isinstance(cancel, (threading.Event, type(None))):
            raise TypeError(f"cancel: expected a threading.Event; received {cancel!r}")
        stops = () if cancel is None else (cancel,)
        return Context(self.learner, policy, limit, stops, recorder=self.recorder, scope=self.scope)

    def solve(
        self,
        task: Task,
        *,
        strategy: str | None = None,
        budget: Budget | str | float | None = None,
        seed: int | None = None,
        cancel: threading.Event | None = None,
        on_event: OnEvent | None = None,
    ) -> Result:
        """Answers one task: as the policy decides, or by the strategy that is named.

        A budget is a `Budget`, a text such as `10s` or `20x`, or seconds; it begins when the task's turn comes. Raises
        `TooLongError` when the task does not fit in the model's context, and `Cancelled` soon after another thread sets
        `cancel`: while it waits for its turn, before the next step of training, or before the next node. `on_event`
        receives the events of `stream` while the task is solved; what it raises is raised.

        Whatever is raised, the model is as it was; if it is not, `BaseChangedError` is raised instead.
        """
        return self.solve_with(self.context(budget, cancel, strategy), task, seed=seed, on_event=on_event)

    def solve_with(
        self, context: Context, task: Task, *, seed: int | None = None, on_event: OnEvent | None = None
    ) -> Result:
        """As `solve`, with a context that `context()` made and that the caller may have changed."""
        return result_of(task, self._run(task, context, seed, on_event))

    def decide(
        self,
        task: Task,
        *,
        budget: Budget | str | float | None = None,
        seed: int | None = None,
        cancel: threading.Event | None = None,
    ) -> tuple[Decision, RevertProof]:
        """Measures one task and returns the first decision, which is not followed, with the proof that the base is
        unchanged. Nothing is recorded. Arguments and errors are as in `solve`.
        """
        context = replace(self.context(budget, cancel), recorder=None)
        with self._started(task, context, seed, "updates") as updates:
            plain = next(update["decide"]["decision"] for update in updates if "decide" in update)
            cast("Generator[Any]", updates).close()  # before the chosen strategy begins
            return Decision(**plain), self.learner.verify()

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
        on_event: OnEvent | None = None,
    ) -> list[Result]:
        """Answers tasks in order. One that cannot be tried gives a result with status `refused`. Raises `Cancelled` as
        `solve` does; `on_result` has been given the results until then, and `on_event` the events of `stream`. Raises
        `TypeError` or `ValueError` for an argument of another kind.

        Up to `batch_size` tasks are measured and decided on first; then the adapters that they need are trained in
        batches. With a budget each task is solved by itself, so that none waits for others. Queries of the same
        demonstrations share an adapter, and decisions count what it costs each of them: of all tasks where `tasks` is a
        sequence, else of a batch.
        """
        if isinstance(tasks, Task):
            raise TypeError("solve_many answers several tasks, such as a list of them; for one there is solve")
        if not isinstance(tasks, Iterable):
            raise TypeError(f"tasks: expected a list of tasks; received {tasks!r}")
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"batch_size: expected an integer of at least 1; received {batch_size!r}")
        check_callable("on_result", on_result)
        check_callable("on_event", on_event)
        errors = CallbackErrors()
        on_event = errors.watch_events(on_event)
        context = self.context(budget, cancel, strategy)
        chosen_seed = check_seed(self.seed if seed is None else seed)
        size = batch_size if context.budget == UNLIMITED else 1

        def solve_alone(task: Task) -> Result:
            alone = replace(self.context(budget, cancel, strategy), queries=context.queries)
            work = partial(self.solve_with, alone, task, seed=chosen_seed, on_event=on_event)
            return self._or_refused(task, chosen_seed, work)

        results = []
        known = queries_of_call(tasks) if isinstance(tasks, Sequence) else {}
        remaining = iter(tasks)
        while batch := list(islice(remaining, size)):
            for task in batch:
                require_task(task)
            context = replace(context, queries=known or queries_of_call(batch))
            with errors, self.learner.guarded.lock.exclusive(context.raise_if_cancelled):
                together = len(batch) > 1
                batched = self._solve_batch(batch, context, chosen_seed, on_event) if together else None
                with closing(batched or (solve_alone(task) for task in batch)) as answered:
                    for result in answered:
                        results.append(result)
                        if on_result is not None:
                            on_result(result)
        return results

    def _solve_batch(
        self, tasks: Sequence[Task], context: Context, seed: int, on_event: OnEvent | None
    ) -> Generator[Result]:
        """The results of tasks whose adapters are trained in batches."""
        graph = lazy.graph.build_graph(lazy.memory.InMemorySaver())
        refusals: dict[int, Result] = {}
        chosen: list[tuple[PlansAdapter, Task, PausedRun]] = []
        with self._verified_on_failure(), self._isolated(context) as context:
            runs = [PausedRun(graph, task, context, seed, str(number), on_event) for number, task in enumerate(tasks)]
            try:
                for index, run in enumerate(runs):
                    decided = self._or_refused(run.task, seed, run.to_the_decision)
                    if isinstance(decided, Result):
                        refusals[index] = decided
                        continue
                    name, formatted = decided
                    if isinstance(strategy := get_strategy(name), PlansAdapter):
                        chosen.append((strategy, formatted, run))
                        self._expect(strategy, formatted, context.scope, seed)
                self._prefetch(chosen, watched(context, [task for _, task, _ in chosen], on_event), seed)
                for index, run in enumerate(runs):
                    yield refusals[index] if index in refusals else self._or_refused(run.task, seed, run.to_the_end)
            finally:
                for run in runs:
                    run.end(Cancelled("another task of the batch ended it"))
                with plugin_proofs(self.learner):
                    self.learner.adapters.release_prefetched()

    def _expect(self, strategy: PlansAdapter, task: Task, scope: str, seed: int) -> None:
        """Lets later queries of a batch count on the adapter that one of them will train."""
        if not is_plugin(strategy):
            with self.learner.adapters.scoped(scope), suppress(Exception):  # as in `_prefetch`
                self.learner.adapters.expect(strategy.plan(self.learner, task, seed))

    def _prefetch(self, chosen: Sequence[tuple[PlansAdapter, Task, PausedRun]], context: Context, seed: int) -> None:
        """Trains the adapters that strategies plan for tasks. Raises `BaseChangedError` if a plug-in wrote to the base
        while it planned: nothing that was trained since is kept."""
        planned: list[PlannedRun] = []
        own = self.learner.adapters.scoped(context.scope)
        with own, plugin_proofs(self.learner), self.learner.guarded.stop_when(context.cancelled):
            for strategy, task, run in chosen:
                with ignoring_errors():  # a mistake in a strategy is raised again, and reported, when it runs
                    planned.append(PlannedRun(strategy.plan(self.learner, task, seed), task, run.waiting))
            progress, trained = PrefetchProgress(planned, context.on_event), list[Prefetched]()
            if planned:
                context.begin_phase("training")
            try:
                trained = self.learner.adapters.prefetch([each.plan for each in planned], progress.on_step)
            finally:
                progress.finish(trained)
            self.learner.verify()

    def _run(self, task: Task, context: Context, seed: int | None, on_event: OnEvent | None) -> State:
        """Runs the graph to its end and returns the last state; `on_event` receives what happens meanwhile."""
        check_callable("on_event", on_event)
        mode: StreamMode | list[StreamMode] = "values" if on_event is None else ["updates", "values"]
        errors = CallbackErrors()
        on_event = errors.watch_events(on_event)
        watched_context = watched(context, [task], on_event) if isinstance(task, Task) else context
        with self._started(task, watched_context, seed, mode) as parts, errors:
            return last_state(parts, task, on_event)

    @contextmanager
    def _started(
        self, task: Task, context: Context, seed: int | None, mode: StreamMode | list[StreamMode] = "values"
    ) -> Iterator[Iterator[Any]]:
        """A run of the graph, which advances as its events of `mode` are read. The model is reserved until it ends.

        The base is verified also when a node raises: later nodes do not run then.
        """
        seed = self.seed if seed is None else seed
        with (
            recorded(context, task, seed) as context,
            context.learner.guarded.lock.exclusive(context.raise_if_cancelled),
        ):
            start = input_of(self.learner, task, seed)
            with self._verified_on_failure(), self._isolated(context) as context:
                yield self.graph.stream(start, context=context, stream_mode=mode)

    def _or_refused(self, task: Task, seed: int, work: Callable[[], T]) -> T | Result:
        """What `work` returns, or the result of a task that cannot be tried."""
        try:
            return work()
        except (BaseChangedError, Cancelled):
            raise
        except AutotttError as error:
            return refused(task, error, self.learner.verify(), seed)

    def stream(
        self,
        task: Task,
        *,
        strategy: str | None = None,
        budget: Budget | str | float | None = None,
        seed: int | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[dict[str, Any] | Result]:
        """What happens as it happens: a dictionary per phase, training step and finished node, and the result at the
        end.

        Each has `event` and `tasks`, the ids of its tasks: one, or those whose adapters `solve_many` trains in one
        batch. A finished node adds `node`, its name, and `update`, the keys of the state that it changed; a step adds
        `strategy`, `step`, `loss`, `max_steps` and `seconds_left` (estimated); a phase that begins adds `phase`: the
        name of a node, or inside the node of a strategy `training` and `answering`; `training` adds `expected_seconds`,
        what all its steps take at the speed of the in-context answer: an upper bound, since that answer decodes one
        token after another, and training may stop early.

        The work runs in a thread of its own and never waits for its reader: of more than 1,024 steps that were not read
        yet the oldest are dropped. Closed before its end, the stream cancels the work and waits until the model is
        free; so does `cancel`, set from another thread.
        """
        stop = threading.Event()
        yield from background.iterate(self._streamed(task, stop, strategy, budget, seed, cancel), stop)

    async def asolve(
        self,
        task: Task,
        *,
        strategy: str | None = None,
        budget: Budget | str | float | None = None,
        seed: int | None = None,
        cancel: threading.Event | None = None,
    ) -> Result:
        """`solve` for coroutines: the event loop is free meanwhile. Cancelling the coroutine, as `asyncio.wait_for` and
        `asyncio.timeout` do, cancels the work and waits until the model is free: for a token or a training step at
        most.
        """
        stop = threading.Event()
        context = self._stoppable(stop, budget, cancel, strategy)

        def work(publish: background.Publish[Result]) -> None:
            publish(result_of(task, self._run(task, context, seed, None)))

        async with aclosing(background.aiterate(work, stop)) as results:
            return await anext(results)

    async def astream(
        self,
        task: Task,
        *,
        strategy: str | None = None,
        budget: Budget | str | float | None = None,
        seed: int | None = None,
        cancel: threading.Event | None = None,
    ) -> AsyncGenerator[dict[str, Any] | Result, None]:
        """`stream` for coroutines. Cancelling, or closing the iterator, cancels the work."""
        stop = threading.Event()
        work = self._streamed(task, stop, strategy, budget, seed, cancel)
        async with aclosing(background.aiterate(work, stop)) as events:
            async for event in events:
                yield event

    def _streamed(
        self, task: Task, stop: threading.Event, strategy: str | None, budget: Budget | str | float | None,
        seed: int | None, cancel: threading.Event | None,
    ) -> Callable[[background.Publish[dict[str, Any] | Result]], None]:  # fmt: skip
        """Work that publishes the events of `stream`."""
        context = self._stoppable(stop, budget, cancel, strategy)

        def work(publish: background.Publish[dict[str, Any] | Result]) -> None:
            def on_event(event: dict[str, Any]) -> None:
                publish(event, droppable=event["event"] == "step")

            publish(result_of(task, self._run(task, context, seed, on_event)))

        return work

    def _stoppable(
        self, stop: threading.Event, budget: Budget | str | float | None, cancel: threading.Event | None,
        strategy: str | None,
    ) -> Context:  # fmt: skip
        """A context whose work ends also when `stop` is set, which is not the caller's own event."""
        context = self.context(budget, cancel, strategy)
        return replace(context, stops=(*context.stops, stop))

    @contextmanager
    def _verified_on_failure(self) -> Iterator[None]:
        """Verifies the base where the body does not finish: the graph's `revert` node does not run then."""
        finished = False
        try:
            yield
            finished = True
        finally:
            if not finished:
                with plugin_proofs(self.learner):
                    self.learner.verify()

    @contextmanager
    def _isolated(self, context: Context) -> Iterator[Context]:
        """Runs of our own graph inside are no part of a surrounding LangGraph run, whose stream only receives the
        training steps, and are not sent to LangSmith unless `langsmith` is set."""
        writer = context.on_event or lazy.task_graph.parent_stream_writer()
        with ExitStack() as stack:
            stack.enter_context(lazy.task_graph.no_parent_run())
            if not self.langsmith:
                stack.enter_context(lazy.run_helpers.tracing_context(enabled=False))
            yield replace(context, on_event=writer)


def _recorder(trace: str | os.PathLike[str] | Recorder | None) -> Recorder | None:
    """What records the runs of a controller. Raises `SettingsError` for a setting that names no store."""
    setting = os.environ.get("AUTOTTT_TRACE") or "off" if trace is None else trace
    if isinstance(setting, Recorder):
        return setting
    check_path("trace", setting, "a TraceRecorder, or one of off, local and otlp")
    return None if setting == "off" else lazy_tracing.recorder.TraceRecorder.of(setting)


def _is_unmeasured(policy: Policy) -> bool:
    """Whether a policy knows no outcomes of the model that answers, and so not what its strategies cost."""
    return isinstance(policy, HeuristicPolicy) or (isinstance(policy, AnyModelPolicy) and not policy.knows_model)


def weighted(policy: Policy, cost_weight: float) -> Policy:
    """The policy with another cost weight. Raises `PolicyError` for one that weighs no costs."""
    if not isinstance(policy, (LearnedPolicy, AnyModelPolicy)):
        raise PolicyError(
            f"cost_weight: only a learned policy weighs costs; this one is {policy.name}: give one of the two"
        )
    return policy.with_cost_weight(cost_weight)


def policy_for(learner: Learner, source: str | os.PathLike[str] | None = None, ignore_mismatch: bool = False) -> Policy:
    """The policy in a folder, or the one that fits the learner; see `load_policy`."""

    def recipe_of(strategy: str, kind: str) -> str | None:
        known = strategies().get(strategy)
        return None if known is None else recipe_digest_for(known, learner.loaded.recipes, kind)

    def cost_of(strategy: str) -> float:
        return nominal_cost(learner.loaded.recipes, get_strategy(strategy))

    return load_policy(
        source, base_hash=learner.base_hash, prompt_format=learner.loaded.prompt_format, recipe_of=recipe_of,
        starting_adapter=learner.adapters.starting_digest, nominal_cost=cost_of,
        ignore_mismatch=ignore_mismatch and source is not None,
    )  # fmt: skip
