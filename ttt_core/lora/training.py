"""Trains adapters on encoded examples, A adapters in one batch.

Knows nothing about tasks, strategies or caches. Axis: A adapters.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from statistics import fmean

from .. import clock
from ..errors import AdaptationError, DeadlineError
from ..model.encoding import Encoded
from ..model.loading import LoadedModel
from ..recipes import Recipe, recipes_for_each
from ..spans import NoSpan, Span, span
from .gradients import STEP_PASSES, GradientEngine
from .modules import coverage, warn_of_checkpointing
from .optimizer import BatchedAdamW
from .weights import LoraWeights


@dataclass(frozen=True)
class TrainingRecord:
    """What happened while an adapter was trained."""

    steps: int
    losses: tuple[float, ...]
    """Mean loss over the loss positions at each step, in nats."""
    seconds: float
    """Of a batch of adapters: this adapter's share, in proportion to the tokens of each step."""
    tokens: int
    """Tokens of the training examples, each read forward and backward."""
    stop_reason: str
    """`finished` after all steps, `converged` at the recipe's `early_stop_loss`, `monitor` when the monitor stopped
    training, `deadline` when the time, or this adapter's share of it, was up, `cancelled` when nobody wanted the
    adapter any more, or `failed`."""
    error: str = ""
    """Why training failed."""
    zero_update: bool = False
    """Whether the adapter's update is exactly zero, so that it changes no answer: with alpha 0, or without a step."""
    modules: tuple[tuple[str, int], ...] = ()
    """Paths of the adapted modules, with `*` for the number of the layer, and how many each stands for."""
    weight_share: float = 0.0
    """Share of the model's weights that the adapted modules hold, 0 to 1."""
    left_out: tuple[str, ...] = ()
    """Parts of the model's layers without an adapted module, of attention, MLP, experts and recurrent."""
    started_from: str = ""
    """Digest of the adapter that training started from, as `LoraWeights.digest` returns it; empty for new weights."""
    estimate_tokens: int = 0
    """Tokens that were read forward to estimate the seconds of the first step: this adapter's share."""
    evaluation_tokens: int = 0
    """Tokens that were read forward to evaluate the folds of a cross-validation, before training, during it and
    after it."""
    evaluation_seconds: float = 0.0
    """Of what a cross-validation did beside training: preparing the prompts, and evaluation."""


AMPLE = 0.1
"""A first step that takes at most this share of the time needs no closer estimate."""
AMPLE_BY_RATE = 0.25
"""A first step that takes at most this share of the time, at the rate of earlier prompts, needs no estimate."""
OnStep = Callable[[int, float], None]
"""Called after each training step with its number (from 1) and its loss in nats."""
OnBatchStep = Callable[[int, Mapping[int, float]], None]
"""Called after each training step of a batch with its number (from 1) and the losses in nats of the adapters that were
trained in it, by their place in the batch; not where no loss is finite."""
TrainingMonitor = Callable[[int, Callable[[], LoraWeights]], bool]
"""Called after each step with its number (from 1) and a function that returns the current weights; True stops all."""


def merge_records(records: Sequence[TrainingRecord]) -> TrainingRecord:
    """One record for adapters that were trained as a batch: mean losses, sums of seconds and tokens."""
    longest = max(records, key=lambda r: r.steps)
    losses = zip_longest(*(r.losses for r in records))
    means = tuple(fmean(loss for loss in step if loss is not None) for step in losses)
    reasons = {r.stop_reason for r in records}
    stop_reason = next((reason for reason in ("failed", "deadline") if reason in reasons), longest.stop_reason)
    error = next((r.error for r in records if r.error), "")
    zero_update = all(r.zero_update for r in records)
    return replace(
        longest, losses=means, seconds=sum(r.seconds for r in records), tokens=sum(r.tokens for r in records),
        estimate_tokens=sum(r.estimate_tokens for r in records), stop_reason=stop_reason, error=error,
        zero_update=zero_update,
    )  # fmt: skip


def train(
    loaded: LoadedModel,
    examples: Sequence[Sequence[Encoded]],
    recipe: Recipe | Sequence[Recipe],
    seeds: Sequence[int],
    *,
    deadline: float = math.inf,
    max_seconds: Sequence[float] = (),
    step_limit: int | None = None,
    on_step: OnStep | None = None,
    on_batch_step: OnBatchStep | None = None,
    monitor: TrainingMonitor | None = None,
    workers: int | None = None,
    memory: int | None = None,
    charge: Callable[[int, int], None] | None = None,
    start: LoraWeights | None = None,
    is_wanted: Callable[[int], bool] = lambda place: True,
    token_seconds: float | None = None,
) -> tuple[LoraWeights, list[TrainingRecord]]:
    """Trains one adapter for each list of `examples`, all in one batch; each gets the weights that it would get alone.

    `recipe` is one for all adapters, or one for each, with equal batching keys. The adapters start from `start` (the
    weights of a single adapter), or from new weights. `deadline` is a time of `clock.monotonic`; training stops before
    a step that would exceed it, and weights without a step change nothing. `max_seconds`, one for each adapter, bounds
    its share of the batch's seconds: an adapter stops before a step whose share would exceed it, and the others
    continue. `step_limit` is the number of steps after which a deadline stopped the training that is repeated: it stops
    there again, with the same stop reason. `workers` is the number of threads on a CPU and `memory` a bound in bytes
    (see `GradientEngine`). `charge` receives the numbers of forward and backward tokens before each pass. Before each
    step an adapter is taken out of the batch where `is_wanted` is false for its place. `token_seconds` is the mean
    time of reading a token so far: where a first step at that rate leaves ample time, nothing is read to estimate it.

    An adapter whose loss or weights become non-finite fails, and its record says so; the others continue, unless there
    is a monitor. Raises `AdaptationError` where there are no examples, `ModelError` for different batching keys.
    """
    if not examples or not all(examples):
        raise AdaptationError("there is nothing to train on: the task gives no examples with an answer to learn")
    recipes = recipes_for_each(recipe, len(seeds))
    began = clock.monotonic()
    started_from = "" if start is None else start.digest()
    warn_of_checkpointing(loaded.model)
    bounds = max_seconds or [math.inf] * len(seeds)
    runs = [_AdapterRun(*parts) for parts in zip(examples, recipes, seeds, bounds, strict=True)]
    with span("train") as step, GradientEngine(loaded, recipes, workers, memory) as engine:
        step.set(adapters=len(runs), examples=[len(run.examples) for run in runs], seeds=list(seeds))
        loop = _TrainingLoop(loaded, runs, engine, start, began, token_seconds)
        loop.run(deadline, step_limit, _recorded(step, recipes[0], on_step), on_batch_step, monitor, charge, is_wanted)
        weights = loop.weights()
        step.set(stop_reasons=[run.stop_reason for run in runs], tokens=sum(run.tokens for run in runs))
    for run, finite in zip(runs, weights.finite(), strict=True):
        if not finite and not run.error:
            run.error = f"the adapter's weights are not finite after {len(run.losses)} steps"
    covered = coverage(loaded.model, weights.pairs)._asdict()
    zero_updates = weights.zero_updates()
    loop.divide_seconds(runs)
    records = [run.record(zero) for run, zero in zip(runs, zero_updates, strict=True)]
    return weights, [replace(record, **covered, started_from=started_from) for record in records]


def _recorded(step: Span | NoSpan, recipe: Recipe, on_step: OnStep | None) -> OnStep | None:
    """`on_step` that also adds each training step to a span, which gets the recipe."""
    if not step.recording:
        return on_step
    step.set(recipe=asdict(recipe))

    def record(number: int, loss: float) -> None:
        step.event(step=number, loss=loss)
        if on_step is not None:
            on_step(number, loss)

    return record


@dataclass(eq=False)
class _AdapterRun:
    """The training of one adapter: its examples in random order, and what happened so far."""

    examples: Sequence[Encoded]
    recipe: Recipe
    seed: int
    max_seconds: float
    """How many seconds may be charged to it; infinite: as many as there are."""
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    """What has been charged to it of the batch's seconds."""
    slowest: float = 0.0
    """Its share of the slowest step, in seconds; before the first step an estimate."""
    estimate_tokens: int = 0
    stop_reason: str = ""
    """Empty while it is trained."""
    error: str = ""
    final_weights: LoraWeights | None = None
    """Of an adapter that stopped before others."""

    def __post_init__(self) -> None:
        self._order = _ShuffledRounds(len(self.examples), random.Random(self.seed))
        self.longest = max(self.examples, key=lambda e: len(e.ids))

    @property
    def max_step_tokens(self) -> int:
        """Tokens of a step in which all examples are as long as the longest."""
        return len(self.longest.ids) * self.recipe.batch_size

    def next_batch(self) -> list[Encoded]:
        """The examples of the next step."""
        return [self.examples[next(self._order)] for _ in range(self.recipe.batch_size)]

    def dropout_seed(self, step: int) -> int:
        """Seed of the dropout masks of a step (from 0)."""
        return random.Random(f"dropout-{self.seed}-{step}").getrandbits(62)

    def add_step(self, step: int, loss: float, tokens: int) -> None:
        """Records the loss and tokens of a step (from 0)."""
        self.tokens += tokens
        if math.isfinite(loss):
            self.losses.append(loss)
        else:
            self.error = f"the training loss is not finite at step {step + 1}"

    def stop_if_done(self, steps: int) -> None:
        """Sets the stop reason, where there is one after this number of steps."""
        if self.error:
            self.stop_reason = "failed"
        elif len(self.losses) > 1 and max(self.losses[-2:]) < self.recipe.early_stop_loss:
            self.stop_reason = "converged"
        elif steps == self.recipe.max_steps:
            self.stop_reason = "finished"

    def record(self, zero_update: bool) -> TrainingRecord:
        """The record of the whole training."""
        reason = "failed" if self.error else self.stop_reason
        error = f"{self.error}; a lower learning rate may help" if self.error else ""
        return TrainingRecord(
            len(self.losses), tuple(self.losses), self.seconds, self.tokens, reason, error, zero_update,
            estimate_tokens=self.estimate_tokens,
        )  # fmt: skip


class _TrainingLoop:
    """The training of several adapters in one batch."""

    def __init__(
        self, loaded: LoadedModel, runs: Sequence[_AdapterRun], engine: GradientEngine, start: LoraWeights | None,
        began: float, token_seconds: float | None = None,
    ) -> None:  # fmt: skip
        self._runs, self._engine, self._token_seconds = runs, engine, token_seconds
        self._divided_until = began
        """Time of `clock.monotonic` up to which the seconds are divided among the adapters."""
        # Neighbours share a micro-batch: sorted by batch size and length, they need little padding.
        self._active = sorted(runs, key=lambda run: (-run.recipe.batch_size, len(run.longest.ids)))
        recipes = [run.recipe for run in self._active]
        if start is None:
            start = LoraWeights.initial(loaded.model, runs[0].recipe, [run.seed for run in self._active])
        elif len(runs) > 1:
            start = LoraWeights.stacked([start] * len(runs))
        self._optimizer = BatchedAdamW(start, recipes, engine.shards(len(self._active)))

    def run(
        self,
        deadline: float,
        step_limit: int | None,
        on_step: OnStep | None,
        on_batch_step: OnBatchStep | None,
        monitor: TrainingMonitor | None,
        charge: Callable[[int, int], None] | None,
        is_wanted: Callable[[int], bool],
    ) -> None:
        """Trains until all adapters have stopped, the monitor returns True, or the deadline is near."""
        self._engine.measure_memory(self._optimizer, max((r.longest for r in self._runs), key=lambda e: len(e.ids)))
        slowest = self._estimated_seconds(deadline, charge)
        for step in range(max(run.recipe.max_steps for run in self._runs)):
            began = clock.monotonic()
            if began + slowest > deadline or step == step_limit:
                return self._stop_all("deadline")
            self._drop_before_step(is_wanted)
            if not self._active:
                return None
            rows, tokens = self._next_batches(charge)
            try:
                losses = self._engine.losses(self._optimizer, rows, [run.dropout_seed(step) for run in self._active])
            except DeadlineError:
                return self._stop_all("deadline")
            self._update(step, losses, tokens)
            if on_step is not None:
                on_step(step + 1, fmean([run.losses[-1] for run in self._runs if run.losses] or [math.nan]))
            losses_by_place = {self._runs.index(run): run.losses[-1] for run in self._active if not run.error}
            if on_batch_step is not None and losses_by_place:
                on_batch_step(step + 1, losses_by_place)
            if monitor is not None and (any(run.error for run in self._runs) or monitor(step + 1, self.weights)):
                return self._stop_all("monitor")
            self._end_step(step, tokens)
            if not self._active:
                return None
            slowest = clock.monotonic() - began if step == 0 else max(slowest, clock.monotonic() - began)
        return None

    def divide_seconds(self, runs: Sequence[_AdapterRun], tokens: Sequence[int] = ()) -> list[float]:
        """Charges the seconds since the last call to adapters, in proportion to their tokens; without these, to the
        tokens of their largest steps. Returns the shares."""
        now = clock.monotonic()
        seconds, self._divided_until = now - self._divided_until, now
        weights = tokens or [run.max_step_tokens for run in runs]
        shares = [seconds * weight / sum(weights) for weight in weights]
        for run, share in zip(runs, shares, strict=True):
            run.seconds += share
        return shares

    def _estimated_seconds(self, deadline: float, charge: Callable[[int, int], None] | None) -> float:
        """Estimated seconds of the first step, where time is bounded and not up yet; else 0. The adapters with a bound
        pay for the estimate, and each gets its share as that of its slowest step. At the rate at which tokens were read
        so far, forward and backward, it may take at most a quarter of the time: then nothing is read. Otherwise one
        prompt of each adapter is, and where the step may still take more than that, its largest pass."""
        self.divide_seconds(self._active)
        bounds = [(run, min(deadline, run.max_seconds)) for run in self._active]
        bounded = [run for run, bound in bounds if bound < math.inf and run.seconds < run.max_seconds]
        if not bounded or clock.monotonic() >= deadline:
            return 0.0
        every, paying = (sum(run.max_step_tokens for run in runs) for runs in (self._active, bounded))
        left = min([deadline - clock.monotonic(), *(run.max_seconds - run.seconds for run in bounded)])
        seconds = STEP_PASSES * every * (math.inf if self._token_seconds is None else self._token_seconds)
        seconds, read = (seconds, 0) if seconds <= AMPLE_BY_RATE * left else self._read_estimate(left, charge)
        self.divide_seconds(bounded)
        for run in bounded:
            run.slowest = seconds * run.max_step_tokens / every
            run.estimate_tokens = round(read * run.max_step_tokens / paying)
        return seconds

    def _read_estimate(self, left: float, charge: Callable[[int, int], None] | None) -> tuple[float, int]:
        """Seconds of the first step, estimated by reading one prompt of each adapter, or its largest pass where it may
        take more than a tenth of the seconds that are left; and how many tokens were read."""
        read = 0

        def count(forward: int, backward: int) -> None:
            nonlocal read
            read += forward
            if charge is not None:
                charge(forward, backward)

        sizes = [run.recipe.batch_size for run in self._active]
        single = [[run.longest] for run in self._active]
        seconds = self._engine.estimate_seconds(self._optimizer, single, count) * fmean(sizes)
        if seconds > AMPLE * left and max(sizes) > 1:
            batches = [[run.longest] * size for run, size in zip(self._active, sizes, strict=True)]
            seconds = self._engine.estimate_seconds(self._optimizer, batches, count)
        return seconds, read

    def weights(self) -> LoraWeights:
        """The current weights of all adapters, in the order of the runs."""
        current = {id(run): self._optimizer.weights(i, i + 1) for i, run in enumerate(self._active)}
        return LoraWeights.stacked([run.final_weights or current[id(run)] for run in self._runs])

    def _next_batches(self, charge: Callable[[int, int], None] | None) -> tuple[list[list[Encoded]], list[int]]:
        """Each active adapter's examples of the next step, and how many tokens they have, which are charged."""
        rows = [run.next_batch() for run in self._active]
        tokens = [sum(len(row.ids) for row in mine) for mine in rows]
        if charge is not None:
            charge(sum(tokens), sum(tokens))
        return rows, tokens

    def _update(self, step: int, losses: Sequence[float], tokens: Sequence[int]) -> None:
        """Takes an optimizer step (from 0) with the gradients, and records each active adapter's loss and tokens."""
        self._optimizer.step([run.recipe.learning_rate * _schedule(step, run.recipe) for run in self._active])
        for run, loss, count in zip(self._active, losses, tokens, strict=True):
            run.add_step(step, loss, count)

    def _drop_before_step(self, is_wanted: Callable[[int], bool]) -> None:
        """Takes the adapters that nobody wants any more, and those whose share of the next step may exceed what they
        may take, out of the batch."""
        for run in self._active:
            if not is_wanted(self._runs.index(run)):
                run.stop_reason = "cancelled"
            elif run.seconds + run.slowest > run.max_seconds:
                run.stop_reason = "deadline"
        self._remove_stopped()

    def _end_step(self, step: int, tokens: Sequence[int]) -> None:
        """Charges a step (from 0) to the active adapters, whose tokens in it are given, and takes those that are done
        out of the batch."""
        for run, share in zip(self._active, self.divide_seconds(self._active, tokens), strict=True):
            run.slowest = share if step == 0 else max(run.slowest, share)
            run.stop_if_done(step + 1)
        self._remove_stopped()

    def _remove_stopped(self) -> None:
        remaining = [i for i, run in enumerate(self._active) if not run.stop_reason]
        if len(remaining) == len(self._active):
            return
        for i, run in enumerate(self._active):
            if run.stop_reason:
                run.final_weights = self._optimizer.weights(i, i + 1).copied()
        self._active = [self._active[i] for i in remaining]
        if remaining:
            self._optimizer.keep_adapters(remaining, self._engine.shards(len(remaining)))

    def _stop_all(self, reason: str) -> None:
        for run in self._active:
            run.stop_reason = reason


def _schedule(step: int, recipe: Recipe) -> float:
    """Factor of the learning rate at a step (from 0): linear warm-up, then a cosine to 0."""
    warmup = max(1, math.ceil(recipe.warmup_ratio * recipe.max_steps)) if recipe.warmup_ratio else 0
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, recipe.max_steps - warmup)))


class _ShuffledRounds:
    """An endless iterator over indices below `count`, in a new random order each round."""

    def __init__(self, count: int, rng: random.Random) -> None:
        self._count, self._rng, self._remaining = count, rng, list[int]()

    def __next__(self) -> int:
        if not self._remaining:
            self._remaining = self._rng.sample(range(self._count), self._count)
        return self._remaining.pop()
