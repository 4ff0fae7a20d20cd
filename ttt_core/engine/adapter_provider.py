"""Adapters by the plans that they were trained from: cached, prefetched for a queue of tasks, or trained now.

Knows nothing about how adapters are trained. A queue of tasks calls `prefetch` first, each task calls `get_or_train`,
and the queue calls `release_prefetched` at its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial

from ..errors import BaseChangedError, Cancelled, ignoring_errors
from ..lora.adapter import Adapter
from ..lora.training import OnBatchStep, OnStep, TrainingRecord
from ..model.context_window import GenerationRequest
from ..model.encoding import prompt_digest
from ..recipes import Recipe
from ..spans import NoSpan, Span, span
from ..tasks.task import Task
from .adapter_cache import AdapterCache
from .adapter_plan import AdapterPlan, TrainingExamples
from .adapter_trainer import AdapterTrainer
from .answering import Answerer
from .cost import training_cost
from .guarded_model import GuardedModel
from .prefetch import AnswerPrefetch


@dataclass(frozen=True)
class PrefetchedLoss:
    """The loss of an adapter at a training step of a batch."""

    plans: Sequence[AdapterPlan]
    """The plans that share the adapter."""
    recipe: Recipe
    loss: float
    """In nats."""


OnPrefetchStep = Callable[[int, Sequence[PrefetchedLoss]], None]
"""Called after each training step of a batch with its number (from 1) and the losses of the adapters in it."""


@dataclass(frozen=True)
class Prefetched:
    """An adapter that was trained in a batch with others."""

    plans: Sequence[AdapterPlan]
    """The plans that share the adapter."""
    recipe: Recipe
    training: TrainingRecord


@dataclass(frozen=True)
class _Planned:
    """An adapter that is missing, with what it is trained on."""

    plans: Sequence[AdapterPlan]
    """The plans that share the adapter."""
    examples: Sequence[Task]
    recipe: Recipe


def _with_plans(planned: Sequence[_Planned], on_step: OnPrefetchStep, raised: list[Exception]) -> OnBatchStep:
    """Calls `on_step` with the plans in place of their places in the batch; what it raises is added to `raised`."""

    def on_batch_step(step: int, losses: Mapping[int, float]) -> None:
        try:
            on_step(step, [PrefetchedLoss(planned[at].plans, planned[at].recipe, loss) for at, loss in losses.items()])
        except Exception as error:
            raised.append(error)
            raise

    return on_batch_step


def _is_any_wanted(planned: Sequence[_Planned], is_wanted: Callable[[AdapterPlan], bool], place: int) -> bool:
    """Whether one of the plans that share the adapter of a place in the batch is still wanted."""
    return any(map(is_wanted, planned[place].plans))


class AdapterProvider:
    """The adapters of one model. Methods take turns at the model."""

    def __init__(
        self, guarded: GuardedModel, trainer: AdapterTrainer, answerer: Answerer, answers: AnswerPrefetch,
        cache: AdapterCache,
    ) -> None:  # fmt: skip
        """`answerer` scores candidates for a warm start; `answers` holds what prefetched adapters have answered."""
        self._guarded = guarded
        self._trainer = trainer
        self._answerer = answerer
        self.answers = answers
        """Answers of prefetched adapters."""
        self.cache = cache
        """Adapters that were trained before."""
        self.starting: Adapter | None = None
        """The adapter that training starts from; None: new weights. Set before the first use."""
        self.scope = ""
        """Whose adapters are trained and reused now; see `scoped`."""
        self._prefetched: dict[object, Adapter] = {}
        """Adapters that were trained ahead; the first attempt that uses one is charged for it."""
        self._expected: set[object] = set()
        """Full keys of adapters that earlier queries of a queue will have trained; see `expect`."""
        self._prompt_digests: dict[str, str] = {}
        """By the name of the prompt format."""

    @contextmanager
    def scoped(self, scope: str) -> Iterator[None]:
        """While inside, only adapters of one scope are reused: those that were trained inside the same scope, also by
        other processes that share the folder. The empty scope is one like all others."""
        with self._guarded.lock.compute:
            before, self.scope = self.scope, scope
            try:
                yield
            finally:
                self.scope = before

    def get_or_train(
        self, plan: AdapterPlan, deadline: float = math.inf, on_step: OnStep | None = None
    ) -> tuple[Adapter, bool]:
        """The adapter of a plan, and whether it came from the cache. One that had to be trained, and was not cut
        short, is cached; a prefetched one is charged to the first caller and does not count as cached.

        `deadline` is a time of `clock.monotonic`. Raises `AdaptationError` as the trainer does, and `TooLongError` for
        examples that do not fit in the context.
        """
        with self._guarded.lock.compute, span("adapter", strategy=plan.strategy) as step:
            key = self._full_key(plan)
            repeated = self._guarded.step_limit is not None
            if key in self._prefetched and not repeated:
                return _recorded(step, "prefetched", self._release(key)), False
            cached = None if repeated else self._cached(key)
            if cached is not None:
                return _recorded(step, "cached", cached), True
            with span("examples") as building:
                examples, recipe = self._fitted(plan)
                tokens = examples.training_tokens(recipe, self._trainer.window)
                building.set(
                    examples=[len(fold) for fold in examples.folds], held_out=[len(fold) for fold in examples.held_out],
                    batch_size=recipe.batch_size, expected_tokens=tokens,
                )  # fmt: skip
            self._guarded.begin_phase("training", tokens)
            if plan.cross_validates:
                adapter = self._trainer.cross_validate(
                    examples.folds, examples.held_out, recipe, seed=plan.seed, deadline=deadline, on_step=on_step,
                    start=self.starting, trial_steps=plan.trial_steps,
                )  # fmt: skip
            else:
                start = self._warm_start(plan) or self.starting
                (adapter,) = self._trainer.adapt_many(
                    examples.folds, [recipe], [plan.seed], deadline=deadline, on_step=on_step, start=start,
                    prefetched_bytes=self.prefetched_bytes,
                )  # fmt: skip
            adapter = replace(adapter, strategy=plan.strategy, scope=self._scope_of(plan))
            self._guarded.verify()  # an adapter of a changed base is neither cached nor returned
            self._cache_complete(key, adapter)
            return _recorded(step, "trained", adapter), False

    def has_adapter(self, plan: AdapterPlan) -> bool:
        """Whether `get_or_train` would return without training."""
        with self._guarded.lock.compute:
            key = self._full_key(plan)
            return key in self._prefetched or self._cached(key) is not None

    def expect(self, plan: AdapterPlan) -> None:
        """Lets `is_cached` count the adapter of a plan, which an earlier query of a queue trains and pays for, until
        `release_prefetched`."""
        with self._guarded.lock.compute:
            self._expected.add(self._full_key(plan))

    def is_cached(self, plan: AdapterPlan) -> bool:
        """Whether `get_or_train` would return without charging anything, or is expected to."""
        with self._guarded.lock.compute:
            key = self._full_key(plan)
            return key in self._expected or (key not in self._prefetched and self._cached(key) is not None)

    @property
    def may_have_cached(self) -> bool:
        """Whether `is_cached` could be true for some plan."""
        return bool(self._expected) or not self.cache.is_empty

    def prefetch(
        self, plans: Sequence[AdapterPlan], on_step: OnPrefetchStep | None = None,
        is_wanted: Callable[[AdapterPlan], bool] = lambda plan: True,
    ) -> list[Prefetched]:  # fmt: skip
        """Trains the adapters of plans that have none yet, in batches that fit in memory; where the device batches
        adapters, they also answer their prompts in batches. Nothing is charged yet. Returns the adapters that were
        trained.

        Each plan's `get_or_train` then finds its adapter. A plan that fails here is left to its `get_or_train`, which
        raises; so is one that shares its adapter with an earlier plan of other `max_seconds`, which it will find cached
        unless that time was too short. What `on_step` raises is raised. Before each step an adapter leaves its batch,
        and is dropped, where `is_wanted` is false for all its plans.
        """
        with self._guarded.lock.compute:
            missing = [plan for plan in plans if plan.can_be_prefetched and not self.has_adapter(plan)]
            new: dict[object, list[AdapterPlan]] = {}
            for plan in missing:
                same = new.setdefault(self._full_key(plan), [])
                if not same or same[0].max_seconds == plan.max_seconds:
                    same.append(plan)
            batches: dict[object, list[_Planned]] = {}
            for same in new.values():
                with ignoring_errors():  # over-long, or a strategy's mistake: its `get_or_train` raises it
                    examples, recipe = self._fitted(same[0])
                    batches.setdefault(recipe.batching_key, []).append(_Planned(same, examples.folds[0], recipe))
            trained = [each for batch in batches.values() for each in self._train_batch(batch, on_step, is_wanted)]
            if self._guarded.batches_adapters:
                self.prefetch_answers(plans)
            return trained

    def prefetch_answers(self, plans: Sequence[AdapterPlan]) -> None:
        """Lets the prefetched adapters of plans answer their prompts in batches. A plan whose prompts fail is left to
        its attempt, which raises."""
        with self._guarded.lock.compute:
            requests: dict[object, list[GenerationRequest]] = {}
            for plan in plans:
                with ignoring_errors():  # over-long, or a strategy's mistake
                    key = self._full_key(plan)
                    if plan.can_be_prefetched and key in self._prefetched:
                        mine = [self._trainer.window.request(task) for task in plan.inference_prompts()]
                        requests.setdefault(key, []).extend(mine)
            ready = {key: mine for key, mine in requests.items() if mine}
            self.answers.decode([self._prefetched[key].weights for key in ready], list(ready.values()))

    def release_prefetched(self) -> None:
        """Charges the prefetched adapters that nobody used and caches them; drops their answers."""
        with self._guarded.lock.compute:
            self.answers.clear()
            self._expected.clear()
            for key in list(self._prefetched):
                self._release(key)

    def clear(self) -> None:
        """Drops every adapter in memory. Adapters in a folder stay there."""
        with self._guarded.lock.compute:
            self.cache.clear()
            self._prefetched.clear()
            self._expected.clear()
            self.answers.clear()

    def reset_charges(self) -> None:
        """Makes the adapters in memory count as prefetched, so that the next caller pays for them again.

        Costs can so be measured as if nothing were cached, without training anything twice. What choosing a warm start
        costs is not charged again. Adapters of earlier versions that do not tell what evaluating their folds cost are
        dropped.
        """
        with self._guarded.lock.compute:
            known = {k: a for k, a in self.cache.clear() if a.cross_validation is None or a.training.evaluation_tokens}
            unpaid = self._prefetched | known
            self.clear()
            self._prefetched.update(unpaid)

    @property
    def prefetched_bytes(self) -> int:
        """Bytes of the weights of all prefetched adapters."""
        return sum(adapter.weights.nbytes for adapter in self._prefetched.values())

    def nearest(self, task: Task, recipe: Recipe, candidates: int) -> Adapter | None:
        """Of the adapters used last (up to `candidates` of the task's kind and the recipe's rank and modules), the one
        that gives the demonstrations' answers the highest likelihood; None where the base gives them a higher one.
        """

        def suits(adapter: Adapter) -> bool:
            same_base = adapter.base_hash == self._guarded.base_hash and adapter.scope == self.scope
            return same_base and adapter.kind == task.kind and adapter.matches(recipe, self._guarded.loaded.model)

        with self._guarded.lock.compute:
            recent = self.cache.most_recent(candidates, suits, self._guarded.loaded.model.device)
            if not recent:
                return None
            prompt = [task.leave_out(len(task.demonstrations) - 1)]
            adapters = [None, *recent]
            likelihoods = [sum(s.total for s in self._answerer.score(prompt, a)[0][1:]) for a in adapters]
            return adapters[likelihoods.index(max(likelihoods))]

    def _warm_start(self, plan: AdapterPlan) -> Adapter | None:
        if not plan.warm_start_candidates:
            return None
        return self.nearest(plan.task, self._shaped(plan.recipe), plan.warm_start_candidates)

    def _fitted(self, plan: AdapterPlan) -> tuple[TrainingExamples, Recipe]:
        """See `AdapterPlan.fitted_examples`; the recipe has the shape of the starting adapter."""
        examples, recipe = plan.fitted_examples(self._trainer.window)
        return examples, self._shaped(recipe)

    def _shaped(self, recipe: Recipe) -> Recipe:
        """The recipe with the rank, alpha, modules and layers of the starting adapter, where there is one."""
        if self.starting is None:
            return recipe
        start = self.starting.recipe
        return replace(
            recipe, rank=start.rank, alpha=start.alpha, target_modules=start.target_modules,
            layers_to_transform=start.layers_to_transform,
        )  # fmt: skip

    def _train_batch(
        self, batch: Sequence[_Planned], on_step: OnPrefetchStep | None, is_wanted: Callable[[AdapterPlan], bool]
    ) -> list[Prefetched]:
        """Trains adapters whose recipes share a batching key, as many at once as fit in memory."""
        recipes = [planned.recipe for planned in batch]
        trained: list[Prefetched] = []
        position = 0
        while position < len(batch) and (count := self._trainer.max_batched_adapters(recipes, self.prefetched_bytes)):
            some = batch[position : position + count]
            position += count
            raised: list[Exception] = []
            try:
                adapters = self._trainer.adapt_many(
                    [planned.examples for planned in some], [planned.recipe for planned in some],
                    [planned.plans[0].seed for planned in some], charged=False, prefetched_bytes=self.prefetched_bytes,
                    on_batch_step=None if on_step is None else _with_plans(some, on_step, raised),
                    start=self.starting, max_seconds=[planned.plans[0].max_seconds for planned in some],
                    is_wanted=partial(_is_any_wanted, some, is_wanted),
                )  # fmt: skip
            except (BaseChangedError, Cancelled):
                raise
            except Exception as error:
                if error in raised:
                    raise
                continue  # one of them may be the cause; each fails, or not, in its own `get_or_train`
            for planned, adapter in zip(some, adapters, strict=True):
                trained.append(Prefetched(planned.plans, planned.recipe, adapter.training))
                if adapter.training.stop_reason not in ("failed", "cancelled"):
                    plan = planned.plans[0]
                    scoped = replace(adapter, strategy=plan.strategy, scope=self._scope_of(plan))
                    self._prefetched[self._full_key(plan)] = scoped
        return trained

    def _full_key(self, plan: AdapterPlan) -> object:
        """The plan's key with everything else that decides an adapter: prompt format, tokenizer and precision; and the
        adapter that training starts from and the scope, where there are some."""
        loaded = self._guarded.loaded
        chosen = loaded.format_of(plan.task)
        if chosen.name not in self._prompt_digests:
            self._prompt_digests[chosen.name] = prompt_digest(loaded, chosen)
        key: tuple[object, ...] = plan.key, chosen.name, self._prompt_digests[chosen.name], self._guarded.precision
        if self.starting is not None:
            key = (*key, "start", self._starting_digest)
        return (*key, "scope", scope) if (scope := self._scope_of(plan)) else key

    def _scope_of(self, plan: AdapterPlan) -> str:
        return self.scope if plan.scope is None else plan.scope

    @property
    def starting_digest(self) -> str:
        """What identifies the adapter that training starts from, and whether it also answers in context; empty without
        one."""
        return self._starting_digest if self._answerer.reading is None else f"{self._starting_digest}+read"

    @cached_property
    def _starting_digest(self) -> str:
        return "" if self.starting is None else self.starting.weights.digest()

    def _cached(self, key: object) -> Adapter | None:
        """The cached adapter of a full key, if there is one."""
        return self.cache.get(key, self._guarded.base_hash, self._guarded.loaded.model.device)

    def _release(self, key: object) -> Adapter:
        """The prefetched adapter of a full key, now charged, and cached unless its training was cut short. Raises
        `BaseChangedError` where the base is not what was loaded."""
        self._guarded.verify()
        adapter = self._prefetched.pop(key)
        cost = training_cost(adapter.training)
        self._guarded.charge(cost.forward_tokens, cost.backward_tokens, prefetch_seconds=cost.seconds)
        self._cache_complete(key, adapter)
        return adapter

    def _cache_complete(self, key: object, adapter: Adapter) -> None:
        """Caches an adapter whose training was not cut short."""
        if adapter.training.stop_reason not in ("deadline", "failed"):
            self.cache.put(key, adapter)


def _recorded(step: Span | NoSpan, source: str, adapter: Adapter) -> Adapter:
    """The adapter. Where it came from and what identifies it is added to a span."""
    if step.recording:
        step.set(
            source=source, rank=adapter.recipe.rank, alpha=adapter.recipe.alpha, modules=dict(adapter.training.modules),
            weight_share=adapter.training.weight_share, bytes=adapter.weights.nbytes, hash=adapter.weights.digest(),
            folds=adapter.weights.adapter_count, training=asdict(adapter.training),
        )  # fmt: skip
    return adapter
