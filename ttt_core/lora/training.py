"""Trains adapters on encoded examples, A adapters side by side in one batch. Knows nothing of tasks and strategies."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import fmean

from ..errors import AdaptationError
from ..model.encoding import Encoded
from ..model.loading import LoadedModel
from ..recipes import Recipe, recipes_for_each
from .gradients import GradientEngine
from .optimizer import BatchedAdamW
from .weights import LoraWeights


@dataclass(frozen=True)
class TrainingRecord:
    """What training an adapter did."""

    steps: int
    losses: tuple[float, ...]
    """Mean loss over the learned tokens at each step, in nats."""
    seconds: float
    """Of several that were trained side by side and are used apart, each one's share."""
    tokens: int
    """Tokens read, forward and backward each."""
    stop_reason: str
    """`finished`, `converged` when the recipe's `stop_loss` was reached, `watched` when whoever watched had seen
    enough, `deadline` when the time was up, or `failed`."""
    error: str = ""
    """Why the adapter is of no use, where it failed."""


OnStep = Callable[[int, float], None]
"""Called after each training step with its number (from 1) and its loss in nats."""
TrainingMonitor = Callable[[int, Callable[[], LoraWeights]], bool]
"""Called after a step with its number (from 1) and with what gives all adapters as they are; True stops all."""


def merge_records(trainings: Sequence[TrainingRecord]) -> TrainingRecord:
    """One account of adapters that were trained side by side: mean losses, all tokens."""
    longest = max(trainings, key=lambda t: t.steps)
    losses = zip_longest(*(t.losses for t in trainings))
    means = tuple(fmean(x for x in step if x is not None) for step in losses)
    stopped = next(
        (s for s in ("failed", "deadline") if any(t.stop_reason == s for t in trainings)), longest.stop_reason
    )
    error = next((t.error for t in trainings if t.error), "")
    return TrainingRecord(longest.steps, means, longest.seconds, sum(t.tokens for t in trainings), stopped, error)


def train(
    loaded: LoadedModel,
    examples: Sequence[Sequence[Encoded]],
    recipe: Recipe | Sequence[Recipe],
    seeds: Sequence[int],
    *,
    deadline: float = math.inf,
    on_step: OnStep | None = None,
    monitor: TrainingMonitor | None = None,
    workers: int | None = None,
    memory: int | None = None,
    charge: Callable[[int, int], None] | None = None,
    start: LoraWeights | None = None,
) -> tuple[LoraWeights, list[TrainingRecord]]:
    """Trains one adapter per list of `examples`, all in one batch; each gets what it would have got alone. They begin
    as `start` (of one adapter alone), or as new ones. `recipe` is for all of them, or one for each, of one form.

    `deadline` is a time of `time.monotonic`; training stops before the step that would pass it, and weights that had
    no step change nothing. `workers` is the number of threads on a CPU and `memory` a bound in bytes (see `Passes`).
    `charge` is told the tokens that go forward and backward before they go. An adapter whose loss or weights are not
    numbers is given up, and its `Training` says so; the others go on, unless they are watched together. Raises
    `AdaptationError` when there is nothing to train on, and `ModelError` for recipes of several forms.
    """
    if not examples or not all(examples):
        raise AdaptationError("there is nothing to train on: the task gives no examples with an answer to learn")
    recipes = recipes_for_each(recipe, len(seeds))
    began = time.monotonic()
    orders = [_endless(len(e), random.Random(s)) for e, s in zip(examples, seeds, strict=True)]
    losses: list[list[float]] = [[] for _ in seeds]
    tokens = [0] * len(seeds)
    stopped = "finished"
    converged: set[int] = set()
    ended: set[int] = set()
    longest = [max(some, key=lambda e: len(e.ids)) for some in examples]
    # Neighbours share a pass: as many rows of each, and little padding.
    active = sorted(range(len(seeds)), key=lambda a: (-recipes[a].batch_size, len(longest[a].ids)))
    done: dict[int, LoraWeights] = {}
    errors: dict[int, str] = {}
    with GradientEngine(loaded, recipes, workers, memory) as passes:
        begin = LoraWeights.initial(loaded.model, recipes[0], [seeds[a] for a in active]) if start is None else start
        buffer = BatchedAdamW(begin, [recipes[a] for a in active], passes.shards(len(active)))
        passes.measure_memory(buffer, max(longest, key=lambda e: len(e.ids)))
        slowest = 0.0
        if time.monotonic() < deadline < math.inf:
            slowest = passes.estimate_seconds(buffer, [[longest[a]] * recipes[a].batch_size for a in active], charge)

        def current() -> LoraWeights:
            """All adapters as they are now."""
            now = {a: buffer.weights(i, i + 1) for i, a in enumerate(active)} | done
            return LoraWeights.stacked([now[a] for a in range(len(seeds))])

        for step in range(max(one.max_steps for one in recipes)):
            at = time.monotonic()
            if at + slowest > deadline:
                stopped = "deadline"
                break
            rows = [[examples[a][next(orders[a])] for _ in range(recipes[a].batch_size)] for a in active]
            read = [sum(len(r.ids) for r in mine) for mine in rows]
            if charge is not None:
                charge(sum(read), sum(read))
            chances = [random.Random(f"dropout-{seeds[a]}-{step}").getrandbits(62) for a in active]
            values = passes.losses(buffer, rows, chances)
            buffer.step([recipes[a].learning_rate * _schedule(step, recipes[a]) for a in active])
            for adapter, value, count in zip(active, values, read, strict=True):
                tokens[adapter] += count
                if math.isfinite(value):
                    losses[adapter].append(value)
                else:
                    errors[adapter] = f"the training loss is not a number at step {step + 1}"
            if on_step is not None:
                on_step(step + 1, fmean([history[-1] for history in losses if history] or [math.nan]))
            if monitor is not None and (errors or monitor(step + 1, current)):
                stopped = "watched"
                break
            converged |= {a for a in active if a not in errors and _converged(losses[a], recipes[a].early_stop_loss)}
            ended |= {a for a in active if recipes[a].max_steps == step + 1} | converged | errors.keys()
            going = [i for i, a in enumerate(active) if a not in ended]
            if not going:
                break
            if len(going) < len(active):
                done |= {a: buffer.weights(i, i + 1).copied() for i, a in enumerate(active) if i not in going}
                active = [active[i] for i in going]
                buffer.keep_adapters(going, passes.shards(len(going)))
            slowest = time.monotonic() - at if step == 0 else max(slowest, time.monotonic() - at)
        weights = current()
    for adapter, sound in enumerate(weights.finite()):
        if not sound:
            errors.setdefault(adapter, f"the adapter's weights are not numbers after {len(losses[adapter])} steps")
    seconds = time.monotonic() - began
    hint = "; a lower learning rate may help"
    ends = [_end(a in errors, a in converged, a in ended, stopped) for a in range(len(seeds))]
    return weights, [
        TrainingRecord(len(h), tuple(h), seconds, tokens[a], ends[a], errors[a] + hint if a in errors else "")
        for a, h in enumerate(losses)
    ]


def _end(failed: bool, converged: bool, ended: bool, stopped: str) -> str:
    """How training an adapter ended; `stopped` is how that of those ended that had not."""
    return "failed" if failed else "converged" if converged else "finished" if ended else stopped


def _converged(losses: Sequence[float], stop_loss: float) -> bool:
    """Whether the last two steps had a loss below the recipe's limit."""
    return len(losses) > 1 and max(losses[-2:]) < stop_loss


def _schedule(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine to 0."""
    warm = max(1, math.ceil(recipe.warmup_ratio * recipe.max_steps)) if recipe.warmup_ratio else 0
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, recipe.max_steps - warm)))


class _endless:
    """Indices below n for ever, in a new random order each round."""

    def __init__(self, n: int, rng: random.Random) -> None:
        self._n, self._rng, self._left = n, rng, list[int]()

    def __next__(self) -> int:
        if not self._left:
            self._left = self._rng.sample(range(self._n), self._n)
        return self._left.pop()
