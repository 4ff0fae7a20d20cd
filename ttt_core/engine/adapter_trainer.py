"""Trains adapters of tasks: as many in one batch as fit in memory, or the folds of a cross-validation.

Knows nothing about cached adapters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from .. import clock
from ..errors import AdaptationError
from ..lora.adapter import Adapter
from ..lora.cross_validation import HeldOutMonitor, fold_seeds, score_of
from ..lora.gradients import shard_count
from ..lora.training import OnBatchStep, OnStep, TrainingRecord, merge_records, train
from ..lora.weights import LoraWeights
from ..model.context_window import ContextWindow
from ..model.encoding import Encoded
from ..recipes import Recipe, recipes_for_each
from ..tasks.task import Task
from .answering import Answerer, require_answer
from .cost import training_cost
from .guarded_model import GuardedModel, memory_errors

COPIES = 8
"""Copies of an adapter's weights that training holds at most: initial, current, at this and at the best evaluation, two
moments, and the gradients of a micro-batch and of a step; the last once more for each further shard."""
RESERVED_COPIES = 4
"""Of these, the copies that the optimizer does not count (see `BatchedAdamW.nbytes`)."""


class AdapterTrainer:
    """Trains adapters for a model."""

    def __init__(self, guarded: GuardedModel, window: ContextWindow, answerer: Answerer) -> None:
        """`answerer` scores held-out tasks by the base."""
        self._guarded = guarded
        self._loaded = guarded.loaded
        self.window = window
        self._answerer = answerer

    def adapt_many(
        self, examples: Sequence[Sequence[Task]], recipes: Sequence[Recipe], seeds: Sequence[int], *,
        deadline: float = math.inf, on_step: OnStep | None = None, charged: bool = True, start: Adapter | None = None,
        prefetched_bytes: int = 0, on_batch_step: OnBatchStep | None = None,
        is_wanted: Callable[[int], bool] = lambda place: True, max_seconds: Sequence[float] = (),
    ) -> list[Adapter]:  # fmt: skip
        """Trains an adapter for each list of examples, as many in one batch as fit in memory beside prefetched adapters
        of `prefetched_bytes`; each gets what it would have got alone. The recipes share one batching key.

        With `charged=False` the cost is charged when an adapter is used, and a failed adapter says so in its record
        instead of raising. Before each step an adapter leaves the batch where `is_wanted` is false for its place, or
        where its share of the batch's seconds would exceed its entry in `max_seconds`. Raises `AdaptationError`; then
        all that was trained is lost.
        """
        recipes = recipes_for_each(recipes, len(examples))
        begin = None if start is None else self._starting_weights(start, recipes[0])
        adapters: list[Adapter] = []
        with (
            memory_errors(f"training (batch {max((r.batch_size for r in recipes), default=0)})"),
            self._guarded.compute(None),
        ):
            encoded, limit = self._encoded(examples), self._guarded.step_limit
            beside = max(1, self.max_batched_adapters(recipes, prefetched_bytes)) if len(examples) > 1 else 1
            for at in range(0, max(1, len(examples)), beside):
                some, now = slice(at, at + beside), clock.monotonic()
                share = min(1.0, beside / max(1, len(examples) - at))
                weights, trainings = train(
                    self._loaded, encoded[some], recipes[some], seeds[some],
                    deadline=now + share * (deadline - now), max_seconds=max_seconds[some], on_step=on_step,
                    memory=self._guarded.memory_bytes,
                    charge=self._guarded.charge if charged else None, on_batch_step=_from_place(at, on_batch_step),
                    start=None if begin is None else begin.copied(),
                    step_limit=None if limit is None else limit.steps,
                    is_wanted=partial(_is_wanted_from, at, is_wanted), token_seconds=self._guarded.token_seconds,
                )  # fmt: skip
                if charged:
                    _refuse_failed(trainings)
                adapters += [
                    Adapter(weights.select(a), recipe, record, self._guarded.base_hash, kind=mine[0].kind)
                    for a, (record, recipe, mine) in enumerate(
                        zip(trainings, recipes[some], examples[some], strict=True)
                    )
                ]
                del weights  # before the next are trained
        return adapters

    def cross_validate(
        self, examples: Sequence[Sequence[Task]], held_out: Sequence[Sequence[Task]], recipe: Recipe, *, seed: int = 0,
        eval_steps: int | None = None, patience: int = 4, deadline: float = math.inf, on_step: OnStep | None = None,
        start: Adapter | None = None, trial_steps: int = 0,
    ) -> Adapter:  # fmt: skip
        """As `Learner.cross_validate`."""
        begin = None if start is None else self._starting_weights(start, recipe)
        with memory_errors(f"training (batch {recipe.batch_size})"), self._guarded.compute(None):
            total = self._guarded.meter()
            learned, judged = self._encoded(examples), self._encoded(held_out)
            aside = self._reserved_bytes(len(held_out), recipe)
            meter = self._guarded.meter()
            scores = iter(self._answerer.score([t for fold in held_out for t in fold]))
            before = [[score_of(next(scores)[-1]) for _ in fold] for fold in held_out]
            scoring = meter.read()
            watch = HeldOutMonitor(
                self._loaded, judged, before, eval_steps or max(1, recipe.max_steps // 12), patience,
                self._guarded.charge,
                self._guarded.max_batch_tokens(), trial_steps,
            )  # fmt: skip
            looking = watch.estimate_seconds(scoring.seconds, scoring.forward_tokens) if deadline < math.inf else 0.0
            seeds = fold_seeds(seed, len(held_out))
            bound, limit = self._guarded.memory_bytes, self._guarded.step_limit
            weights, trainings = train(
                self._loaded, learned, recipe, seeds, deadline=deadline - looking, on_step=on_step, monitor=watch,
                charge=self._guarded.charge, memory=None if bound is None else bound - aside,
                step_limit=None if limit is None else limit.steps, start=begin,
                token_seconds=self._guarded.token_seconds,
            )  # fmt: skip
            training = merge_records(trainings)
            if training.error and watch.best is None:
                _refuse_failed(trainings)
            in_time = watch.best is None or clock.monotonic() + watch.seconds <= deadline
            in_time = in_time if limit is None else limit.evaluated
            if training.steps and not training.error and in_time:
                watch.evaluate(training.steps, weights)
            best = watch.best or self._untrained(recipe, seeds)
            beside = total.read() - training_cost(training)
            training = replace(
                training, zero_update=all(best.zero_updates()),
                evaluation_tokens=beside.forward_tokens, evaluation_seconds=max(0.0, beside.seconds),
            )  # fmt: skip
            return Adapter(best, recipe, training, self._guarded.base_hash, watch.result(), examples[0][0].kind)

    def _untrained(self, recipe: Recipe, seeds: Sequence[int]) -> LoraWeights:
        """Adapters, one per seed, that answer as if nothing had been trained."""
        reading = self._answerer.reading
        if reading is None:
            return LoraWeights.initial(self._loaded.model, recipe, seeds)
        return LoraWeights.stacked([reading.weights] * len(seeds))

    def max_batched_adapters(self, recipes: Sequence[Recipe], prefetched_bytes: int) -> int:
        """How many adapters of these recipes may be trained side by side: weights, gradients, moments and copies of
        them take no more than a quarter of the memory that is free, or the bound, and prefetched adapters of
        `prefetched_bytes` as much; 0: none.
        """
        recipe = max(recipes, key=lambda r: r.batch_size)
        one = self._adapter_bytes(recipe)
        quarter = self._guarded.available_bytes() / 4
        room = int((quarter - prefetched_bytes) / one)
        counts = range(int(quarter / (COPIES * one)), 1, -1)
        fit = next((n for n in counts if n * one * self._copies(n, recipe) <= quarter), 1)
        return max(0 if prefetched_bytes else 1, min(room, fit))

    def _encoded(self, tasks: Sequence[Sequence[Task]]) -> list[list[Encoded]]:
        """The tasks' prompts with their answers."""
        return [[self.window.encode(t, require_answer(t)) for t in some] for some in tasks]

    def _starting_weights(self, start: Adapter, recipe: Recipe) -> LoraWeights:
        """The weights of an adapter on the device of the model. Raises `AdaptationError` where adapters of a recipe
        cannot start from it."""
        self._guarded.refuse_other_base(start)
        if not start.matches(recipe, self._loaded.model):
            raise AdaptationError(
                f"training of rank {recipe.rank}, alpha {recipe.alpha:g}, on {_places(recipe)} cannot start from "
                f"{start.weights.adapter_count} of rank {start.recipe.rank}, alpha {start.recipe.alpha:g}, on "
                f"{_places(start.recipe)}: one adapter of the same rank and alpha on the same modules is expected; "
                "change the recipe, or start from zero"
            )
        return start.weights.to(self._loaded.model.device)

    def _reserved_bytes(self, folds: int, recipe: Recipe) -> int:
        """Bytes of the folds' adapters that training does not count. Raises `AdaptationError` where all that training
        holds of them does not fit.
        """
        size, most = self._adapter_bytes(recipe), self._guarded.available_bytes()
        source = "there are" if self._guarded.memory_bytes is None else "the bound is"
        needed = folds * size * self._copies(folds, recipe)
        if needed > most:
            raise AdaptationError(
                f"{folds} adapters of rank {recipe.rank} that are trained side by side need up to "
                f"{needed / 1e6:,.1f} MB; {source} {most / 1e6:,.1f} MB; fewer folds or a lower rank need less"
            )
        return RESERVED_COPIES * folds * size

    def _adapter_bytes(self, recipe: Recipe) -> int:
        """Bytes of an adapter."""
        return LoraWeights.initial(self._loaded.model, replace(recipe, rank=1), [0]).nbytes * recipe.rank

    def _copies(self, adapters: int, recipe: Recipe) -> int:
        """Largest number of copies of their weights that training these adapters in one batch holds."""
        workers = 1 if self._guarded.batches_adapters else min(self._guarded.threads, adapters * recipe.batch_size)
        return COPIES - 1 + shard_count(adapters, recipe.batch_size, workers)


def _is_wanted_from(first: int, is_wanted: Callable[[int], bool], place: int) -> bool:
    """`is_wanted` for a batch whose first adapter has the place `first` among all adapters."""
    return is_wanted(first + place)


def _from_place(first: int, on_batch_step: OnBatchStep | None) -> OnBatchStep | None:
    """`on_batch_step` for a batch whose first adapter has the place `first` among all adapters."""
    if on_batch_step is None or first == 0:
        return on_batch_step
    return lambda step, losses: on_batch_step(step, {first + place: loss for place, loss in losses.items()})


def _places(recipe: Recipe) -> str:
    """The modules and layers that a recipe names, in words."""
    names = recipe.target_modules
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    layers = ", ".join(map(str, recipe.layers_to_transform))
    return f"{listed} of the layers {layers}" if layers else listed


def _refuse_failed(trainings: Sequence[TrainingRecord]) -> None:
    """Raises `AdaptationError` where one of them failed."""
    for training in trainings:
        if training.error:
            raise AdaptationError(training.error)
