"""Trains adapters on encoded examples, A adapters side by side in one batch. Knows nothing of tasks and strategies."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from statistics import fmean

import torch
from torch import Tensor

from .encoding import Encoded, forward, pad, pad_id_of
from .errors import AdaptationError
from .lora import LoraWeights
from .model import LoadedModel
from .recipes import Loss, Recipe


@dataclass(frozen=True)
class Training:
    """What training an adapter did."""

    steps: int
    losses: tuple[float, ...]
    """Mean loss over the learned tokens at each step, in nats."""
    seconds: float
    tokens: int
    """Tokens read, forward and backward each."""
    stopped: str
    """`finished`, `converged` when the recipe's `stop_loss` was reached, `watched` when whoever watched had seen
    enough, or `deadline` when the time was up."""


Watch = Callable[[int, LoraWeights], bool]
"""Called after a step with the number of steps and the weights, which are attached; True stops the training."""


def joint(trainings: Sequence[Training]) -> Training:
    """One account of adapters that were trained side by side: mean losses, all tokens."""
    longest = max(trainings, key=lambda t: t.steps)
    losses = zip_longest(*(t.losses for t in trainings))
    means = tuple(fmean(x for x in step if x is not None) for step in losses)
    return Training(longest.steps, means, longest.seconds, sum(t.tokens for t in trainings), longest.stopped)


def learned(example: Encoded, loss: Loss) -> list[int]:
    """Positions of the tokens whose prediction is trained.

    Of several answers the first is left out: nothing before it tells what to do.
    """
    if loss == "inputs":
        return list(range(1, len(example.ids)))
    spans = example.answers[-1:] if loss == "last" else example.answers[1:] or example.answers
    return [i for begin, end in spans for i in range(max(1, begin), end)]


def train(
    loaded: LoadedModel,
    examples: Sequence[Sequence[Encoded]],
    recipe: Recipe,
    seeds: Sequence[int],
    *,
    deadline: float = math.inf,
    on_step: Callable[[int, float], None] | None = None,
    watch: Watch | None = None,
    charge: Callable[[int, int], None] | None = None,
) -> tuple[LoraWeights, list[Training]]:
    """Trains one adapter per list of `examples`, all in one batch; each gets what it would have got alone, but for
    the places where dropout falls.

    `deadline` is a time of `time.monotonic`; training stops before the step that would pass it, and weights that had
    no step change nothing. `charge` is told the tokens that go forward and backward before they go. Raises
    `AdaptationError` when there is nothing to train on, or a loss or a weight is not a number.
    """
    if not examples or not all(examples):
        raise AdaptationError("there is nothing to train on: the task gives no examples with an answer to learn")
    began = time.monotonic()
    weights = LoraWeights.initial(loaded.model, recipe, seeds)
    for tensor in weights.tensors:
        tensor.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        weights.tensors, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.999), fused=True
    )
    orders = [_endless(len(e), random.Random(s)) for e, s in zip(examples, seeds, strict=True)]
    losses: list[list[float]] = [[] for _ in seeds]
    tokens = [0] * len(seeds)
    stopped, slowest = "finished", 0.0
    done: dict[int, LoraWeights] = {}
    with _dropout_from(seeds, loaded.model.device), torch.enable_grad(), weights.attached(loaded.model, recipe.dropout):
        for step in range(recipe.steps):
            at = time.monotonic()
            if at + slowest > deadline:
                stopped = "deadline"
                break
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(step, recipe)
            rows = [e[next(o)] for e, o in zip(examples, orders, strict=True) for _ in range(recipe.batch)]
            read = sum(len(r.ids) for r in rows)
            if charge is not None:
                charge(read, read)
            each = _losses(loaded, rows, recipe, len(seeds))
            values = each.detach().tolist()
            if not all(math.isfinite(v) for i, v in enumerate(values) if i not in done):
                raise AdaptationError(
                    f"the training loss is not a number at step {step + 1}: {values}; a lower learning rate may help"
                )
            optimizer.zero_grad()
            each.sum().backward()  # type: ignore[no-untyped-call]
            _clip(weights, recipe.clip)
            optimizer.step()
            for index, (history, value) in enumerate(zip(losses, values, strict=True)):
                if index not in done:
                    history.append(value)
                    tokens[index] += sum(len(r.ids) for r in rows[index * recipe.batch : (index + 1) * recipe.batch])
                    if len(history) > 1 and max(history[-2:]) < recipe.stop_loss:
                        done[index] = weights.select(index).detached()
            if on_step is not None:
                on_step(step + 1, sum(values) / len(values))
            if watch is not None and watch(step + 1, weights):
                stopped = "watched"
                break
            slowest = max(slowest, time.monotonic() - at)
            if len(done) == len(seeds):
                break
    weights = weights.detached()
    for index, kept in done.items():
        weights.put(index, kept)
    if not all(bool(t.isfinite().all()) for t in weights.tensors):
        raise AdaptationError(
            f"the adapter's weights are not numbers after {max(map(len, losses))} steps; a lower learning rate may help"
        )
    seconds = time.monotonic() - began
    return weights, [
        Training(len(h), tuple(h), seconds, read, "converged" if i in done else stopped)
        for i, (h, read) in enumerate(zip(losses, tokens, strict=True))
    ]


def _losses(loaded: LoadedModel, rows: Sequence[Encoded], recipe: Recipe, adapters: int) -> Tensor:
    """Mean loss over the learned tokens of each adapter's rows, [A]."""
    batch = pad([r.ids for r in rows], pad_id_of(loaded), loaded.model.device, left=False)
    chosen = torch.zeros_like(batch.mask, dtype=torch.bool)
    counts = []
    for i, row in enumerate(rows):
        positions = learned(row, recipe.loss)
        chosen[i, [p - 1 for p in positions]] = True
        counts.append(len(positions))
    logits = forward(loaded.model, batch, chosen)
    targets = batch.ids[:, 1:][chosen[:, :-1]]
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    per = len(rows) // adapters
    sizes = [sum(counts[a * per : (a + 1) * per]) for a in range(adapters)]
    return torch.stack([part.mean() for part in torch.split(losses, sizes)])


@contextmanager
def _dropout_from(seeds: Sequence[int], device: torch.device) -> Iterator[None]:
    """While inside, dropout follows the seeds; the random state of torch comes back."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(random.Random(repr(tuple(seeds))).getrandbits(63))
        yield


def _schedule(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine to 0."""
    warm = max(1, math.ceil(recipe.warmup * recipe.steps)) if recipe.warmup else 0
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, recipe.steps - warm)))


def _clip(weights: LoraWeights, limit: float) -> None:
    """Scales each adapter's gradient to a norm of at most `limit`."""
    grads = [t.grad for t in weights.tensors if t.grad is not None]
    norms = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()
    scale = (limit / norms.clamp(min=1e-12)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(scale[:, None, None])


class _endless:
    """Indices below n for ever, in a new random order each round."""

    def __init__(self, n: int, rng: random.Random) -> None:
        self._n, self._rng, self._left = n, rng, list[int]()

    def __next__(self) -> int:
        if not self._left:
            self._left = self._rng.sample(range(self._n), self._n)
        return self._left.pop()
