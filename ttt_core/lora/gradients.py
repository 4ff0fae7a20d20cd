"""Gradients of many adapters: the passes of a step, divided to fit the machine.

Knows nothing about optimizers, tasks or when to stop. Axes: A adapters.
On an accelerator one pass takes many adapters. On a CPU, where one task's rows fill a core already and padding rows of
different tasks to one length costs more than it gives, a pass takes one adapter and several passes go at once, a thread
each, over copies of the model that share its weights.
"""

from __future__ import annotations

import copy
import logging
import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .. import clock
from ..errors import AdaptationError
from ..model.encoding import Encoded, PaddedBatch, forward, pad, pad_id_of
from ..model.fingerprint import HOOKS, state_tensors
from ..model.loading import LoadedModel
from ..model.memory import free_memory, out_of_memory
from ..recipes import Loss, Recipe
from .dropout import Dropout
from .lower_layers import STATES_SHARE, LowerLayers
from .optimizer import BatchedAdamW
from .token_losses import token_losses

_log = logging.getLogger("autottt")
_MEASURED: WeakKeyDictionary[torch.nn.Module, dict[object, tuple[int, float]]] = WeakKeyDictionary()
"""Of each model, by recipe: the longest row whose pass was measured, in tokens, and the bytes kept of each token."""
LONGER_ROWS = 1.5
"""How much longer than the measured row others may be before they are measured too. What attention keeps of a token
grows at most with the length of its row, so the bytes of a token are multiplied by the ratio of the lengths."""
MEMORY_SHARE = 0.6
"""Of the memory that is free when training begins, what its passes may take, unless a bound is given."""
STEP_PASSES = 3
"""Forward passes that take as long as a training step: the way back takes twice as long as the way forward."""


def forget_measurements(model: torch.nn.Module) -> None:
    """The next training of the model measures its memory again."""
    _MEASURED.pop(model, None)


def loss_positions(example: Encoded, loss: Loss) -> list[int]:
    """Positions of the tokens whose prediction is trained.

    Of several answers the first is left out: nothing before it tells what to do.
    """
    if loss == "inputs":
        return list(range(1, len(example.ids)))
    spans = example.answers[-1:] if loss == "last" else example.answers[1:] or example.answers
    return [i for begin, end in spans for i in range(max(1, begin), end)]


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of some adapters, forward and backward at once."""

    first_adapter: int
    end_adapter: int
    """Adapters, from and to."""
    first_row: int
    end_row: int
    """Rows of each, from and to."""
    shard: int = 0
    """Where its gradients go."""

    def halves(self) -> tuple[MicroBatch, MicroBatch] | None:
        """The same in two passes; None for a single row."""
        if self.end_adapter - self.first_adapter > 1:
            middle = (self.first_adapter + self.end_adapter) // 2
            return replace(self, end_adapter=middle), replace(self, first_adapter=middle)
        if self.end_row - self.first_row > 1:
            middle = (self.first_row + self.end_row) // 2
            return replace(self, end_row=middle), replace(self, first_row=middle)
        return None


@dataclass(frozen=True)
class StepBatch:
    """What a step learns from."""

    rows: Sequence[Sequence[Encoded]]
    """Each adapter's rows, [A][batch]."""
    loss_token_counts: Sequence[int]
    """How many tokens each adapter learns."""
    dropout_seeds: Sequence[int]
    """A number for each adapter that decides where dropout falls."""

    @property
    def longest(self) -> list[int]:
        """Tokens of each adapter's longest row."""
        return [max(len(row.ids) for row in mine) for mine in self.rows]

    def lengths(self, one: MicroBatch) -> list[int]:
        """Tokens of each row of a pass."""
        return [
            len(row.ids)
            for mine in self.rows[one.first_adapter : one.end_adapter]
            for row in mine[one.first_row : one.end_row]
        ]

    def padded_tokens(self, one: MicroBatch) -> int:
        """Tokens of a pass, all rows as long as the longest."""
        lengths = self.lengths(one)
        return max(lengths) * len(lengths)


@dataclass(frozen=True)
class _LossBatch:
    """A padded batch, and the predictions in it that are trained."""

    batch: PaddedBatch
    positions: Tensor
    """Where the predictions are made, boolean, [B, T]: one before each trained token."""
    targets: Tensor
    """Ids of the trained tokens of all rows, one row after the other, [N]."""
    counts: Sequence[int]
    """How many of them each row has."""

    def losses(self, logits: Tensor) -> Tensor:
        """Losses of the trained tokens [N] under `logits` [N, V], in nats."""
        return token_losses(logits, self.targets)


def shard_count(adapters: int, batch: int, workers: int) -> int:
    """Into how many parts each adapter's rows go, so that the workers have equally much to do."""
    if adapters >= 4 * workers:
        return 1
    return next((s for s in range(1, batch + 1) if adapters * s % workers == 0), min(batch, workers))


class GradientEngine:
    """Does the passes of training steps. A context manager: the threads and the copies of the model end with it.

    What a pass keeps for its way back is measured on the longest row before the first (`measure_memory`), and passes
    are made to fit in `memory`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        recipes: Sequence[Recipe],
        workers: int | None = None,
        memory: int | None = None,
    ) -> None:
        """`recipes`, one for each adapter, are of one form. `workers` is the most threads on a CPU; None means as many
        as PyTorch would use. `memory` bounds what passes keep, in bytes; None means `MEMORY_SHARE` of what is free when
        the first begins.
        """
        on_cpu = loaded.model.device.type == "cpu"
        self._threads = torch.get_num_threads()
        self._batch = max(recipe.batch_size for recipe in recipes)
        self._workers = min(workers or self._threads, len(recipes) * self._batch) if on_cpu else 1
        self._loaded, self._recipe = loaded, recipes[0]
        self._memory: float | None = memory
        self.token_bytes: float | None = None
        """Bytes that a pass keeps of a padded token for its way back, once they are known."""
        self._on_cpu = on_cpu
        self._lower: LowerLayers | None = None
        """The layers below the lowest adapted one, once the memory is known."""
        self._now = clock.reader()
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._models: queue.SimpleQueue[LoadedModel] = queue.SimpleQueue()

    def __enter__(self) -> GradientEngine:
        copies = _copies_sharing_weights(self._loaded.model, self._workers if self._workers > 1 else 0)
        if copies:
            each = max(1, self._threads // self._workers)
            self._pool = ThreadPoolExecutor(self._workers, "autottt", lambda: torch.set_num_threads(each))
        else:
            self._workers = 1
        for model in copies or [self._loaded.model]:
            self._models.put(replace(self._loaded, model=model))
        return self

    def __exit__(self, *_: object) -> None:
        self._end_threads()

    def _end_threads(self) -> None:
        if self._pool is not None:
            try:
                self._pool.shutdown(cancel_futures=True)
            finally:
                torch.set_num_threads(self._threads)
                self._pool = None

    def shards(self, adapters: int) -> int:
        """Number of shards that a `BatchedAdamW` needs for this number of adapters."""
        return shard_count(adapters, self._batch, self._workers) if self._on_cpu else 1

    def losses(
        self, optimizer: BatchedAdamW, rows: Sequence[Sequence[Encoded]], dropout_seeds: Sequence[int] | None = None
    ) -> list[float]:
        """Mean loss over the trained tokens of each adapter's rows [A][batch], in nats; adds its gradients to those of
        the optimizer.

        `dropout_seeds`, one for each adapter, decide which inputs are dropped. A micro-batch that does not fit in
        memory is halved.
        """
        step = self._step_batch(rows, dropout_seeds)
        if self.token_bytes is None:
            self.measure_memory(optimizer, max((r for mine in rows for r in mine), key=lambda r: len(r.ids)))
        jobs = self._micro_batches(step)
        work = partial(self._run_job, optimizer, step)
        results = list(map(work, jobs) if self._pool is None else self._pool.map(work, jobs))
        totals = [0.0] * len(rows)
        for micro_batch, losses in chain.from_iterable(results):
            for adapter, loss in zip(range(micro_batch.first_adapter, micro_batch.end_adapter), losses, strict=True):
                totals[adapter] += loss
        return totals

    def _step_batch(self, rows: Sequence[Sequence[Encoded]], dropout_seeds: Sequence[int] | None = None) -> StepBatch:
        counts = [sum(len(loss_positions(r, self._recipe.loss)) for r in mine) for mine in rows]
        return StepBatch(rows, counts, dropout_seeds or [0] * len(rows))

    def measure_memory(self, optimizer: BatchedAdamW, row: Encoded) -> None:
        """Learns what a pass keeps for its way back from one row, which should be the longest that will come; the
        model's own memory, and the adapters', are not counted. A model's measurements are kept, and hold for rows that
        are up to `LONGER_ROWS` times as long.

        Adapted layers that a forward pass over text does not use are removed from `optimizer`. Where only the copies of
        the model do not use them (replaced methods may refer to the original), training continues in one thread with
        the model itself. Raises `AdaptationError` where no adapted layer is used.
        """
        key = self._measurement_key(optimizer)
        longest, token_bytes = _MEASURED.get(self._loaded.model, {}).get(key, (0, 0.0))
        if len(row.ids) <= LONGER_ROWS * longest:
            self.token_bytes = token_bytes * max(1.0, len(row.ids) / longest)
        else:
            self.token_bytes = self._measured_bytes(optimizer, row)
        taken = optimizer.values.nbytes  # of what a pass takes gradients of, with those
        if self._memory is None:  # the moments come with the first step
            taken += 2 * optimizer.values.nbytes
            self._memory = MEMORY_SHARE * max(0, free_memory(self._loaded.model.device) - taken)
        else:
            self._memory = max(0.0, self._memory - optimizer.nbytes - taken)
        kept = STATES_SHARE * self._memory
        self._lower = LowerLayers.below(self._loaded.model, optimizer.weights().pairs, kept, row)
        if self._lower is not None:
            self._memory -= kept

    def _measurement_key(self, optimizer: BatchedAdamW) -> object:
        """What the bytes of a token depend on: the model's state, the layers, rank, dropout and loss, and what may be
        lacking in copies of the model, if these are used."""
        recipe, model = self._recipe, self._loaded.model
        attention = getattr(model.config, "_attn_implementation", "")
        layers = tuple(optimizer.weights().pairs)
        replaced = tuple(name for name, module in model.named_modules() if "forward" in vars(module))
        state = model.dtype, model.device, attention, self._pool is not None, replaced
        return state, layers, recipe.rank, recipe.dropout > 0, recipe.loss

    def _measured_bytes(self, optimizer: BatchedAdamW, row: Encoded) -> float:
        """Bytes of a token, measured by a pass; drops layers that have no part in it."""
        key = self._measurement_key(optimizer)
        loaded = self._models.get()
        self._models.put(loaded)
        kept, unused = self._activation_bytes(loaded, optimizer, row)
        complete = not unused
        if unused and self._pool is not None:
            of_model = self._activation_bytes(self._loaded, optimizer, row)
            if of_model[1] != unused:
                _log.debug("%s: copies of it lack a part, so one thread trains", self._loaded.name)
                kept, unused = of_model
                self._use_one_thread()
        if unused:
            self._drop_layers(optimizer, unused)
        if complete:  # else the next training finds out again what is lacking
            _MEASURED.setdefault(self._loaded.model, {})[key] = len(row.ids), kept / len(row.ids)
        return kept / len(row.ids)

    def estimate_seconds(
        self,
        optimizer: BatchedAdamW,
        rows: Sequence[Sequence[Encoded]],
        charge: Callable[[int, int], None] | None = None,
    ) -> float:
        """About how long the step on these rows will take, in seconds. Its largest pass is read for that, without the
        way back, which takes twice as long; `charge` is told its tokens.
        """
        step = self._step_batch(rows)
        passes = [one for job in self._micro_batches(step) for one in job]
        sizes = [step.padded_tokens(one) for one in passes]
        one = passes[sizes.index(max(sizes))]
        if charge is not None:
            charge(sum(step.lengths(one)), 0)

        def reading() -> float:
            loaded = self._models.get()
            began = self._now()
            try:
                self._forward_backward(loaded, optimizer, step, one, backward=False)
            finally:
                self._models.put(loaded)
            return self._now() - began

        try:
            seconds = reading() if self._pool is None else self._pool.submit(reading).result()
        except Exception as error:
            if not out_of_memory(error):
                raise
            if one.halves() is None:
                return 0.0  # the step will say so
            self._split(step, one)
            return self.estimate_seconds(optimizer, rows)
        rounds = min(math.ceil(len(sizes) / self._workers), sum(sizes) / max(sizes))
        return STEP_PASSES * seconds * max(1.0, rounds)

    def _activation_bytes(self, loaded: LoadedModel, optimizer: BatchedAdamW, row: Encoded) -> tuple[int, list[str]]:
        """Bytes that the pass of one row keeps for its way back, and the layers that get no gradient from it."""
        own = {_storage(t)[0] for t in [*self._loaded.model.parameters(), *self._loaded.model.buffers()]}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            place, size = _storage(tensor)
            if place not in own:
                kept[place] = size
            return tensor.detach()  # an output that is kept as it is holds its own graph, and neither is ever freed

        weights = optimizer.leaves(0, 1, loaded.model.dtype)
        own |= {_storage(t)[0] for t in weights.tensors}
        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with torch.enable_grad(), weights.attached(loaded.model, self._dropout([0])), hooks:
            inputs = _loss_batch(loaded, [row], self._recipe.loss)
            total = inputs.losses(forward(loaded.model, inputs.batch, inputs.positions)).sum()
        if not total.requires_grad:
            return sum(kept.values()), list(weights.pairs)
        with _gradient_errors():
            torch.autograd.backward(total, inputs=[up for _, up in weights.pairs.values()])
        unused = [name for name, (_, up) in weights.pairs.items() if up.grad is None and not _is_expert(name)]
        return sum(kept.values()), unused

    def _use_one_thread(self) -> None:
        """From now on one thread, with the model itself."""
        self._end_threads()
        self._workers, self._models = 1, queue.SimpleQueue()
        self._models.put(self._loaded)

    def _drop_layers(self, optimizer: BatchedAdamW, unused: Sequence[str]) -> None:
        """Lets go of layers that get no gradient."""
        name, targets = self._loaded.name, self._recipe.target_modules
        if len(unused) == len(optimizer.weights().pairs):
            raise AdaptationError(f"no layer that {targets} names has a part in how {name} reads text: name others")
        _log.debug("%s: adapters leave out %d layers without gradients, %s", name, len(unused), ", ".join(unused))
        optimizer.drop_layers(unused)

    def _dropout(self, numbers: Sequence[int]) -> Dropout | None:
        """Of rows with these numbers."""
        share = self._recipe.dropout
        return Dropout(share, torch.tensor(numbers, device=self._loaded.model.device)) if share else None

    def _micro_batches(self, step: StepBatch) -> list[list[MicroBatch]]:
        """The passes of a step, each within memory; those of one list add to the same gradients, one after the other.

        On an accelerator neighbours go together as long as they fit and have as many rows.
        """
        fit = max(1.0, (self._memory or 0.0) / self._workers / max(1.0, self.token_bytes or 1.0))
        rows, longest = step.rows, step.longest
        if self._on_cpu:
            parts = self.shards(len(rows))
            cuts = [[len(mine) * p // parts for p in range(parts + 1)] for mine in rows]
            some = [MicroBatch(a, a + 1, cuts[a][p], cuts[a][p + 1], p) for a in range(len(rows)) for p in range(parts)]
            whole = [one for one in some if one.end_row > one.first_row]
        else:
            whole, begin = [], 0
            for adapter in range(1, len(rows) + 1):
                batch = len(rows[begin])
                together = max(longest[begin : adapter + 1]) * batch * (adapter + 1 - begin)
                if adapter == len(rows) or len(rows[adapter]) != batch or together > fit:
                    whole.append(MicroBatch(begin, adapter, 0, batch))
                    begin = adapter
        return [_within(one, longest, fit) for one in whole]

    def _run_job(
        self, optimizer: BatchedAdamW, step: StepBatch, job: Sequence[MicroBatch]
    ) -> list[tuple[MicroBatch, list[float]]]:
        """Runs micro-batches that add to the same gradients, one after the other; one that does not fit in memory is
        halved, and its halves run in its place. Returns those that ran, with their losses."""
        results = []
        remaining = deque(job)
        loaded = self._models.get()
        try:
            while remaining:
                micro_batch = remaining.popleft()
                try:
                    losses, gradients = self._forward_backward(loaded, optimizer, step, micro_batch)
                except Exception as error:
                    halves = micro_batch.halves()
                    if halves is None or not out_of_memory(error):
                        raise
                    self._split(step, micro_batch)
                    remaining.extendleft(reversed(halves))
                    continue
                optimizer.accumulate(gradients, micro_batch.first_adapter, micro_batch.end_adapter, micro_batch.shard)
                del gradients  # before those of the next micro-batch are computed
                results.append((micro_batch, losses))
        finally:
            self._models.put(loaded)
        return results

    def _split(self, step: StepBatch, one: MicroBatch) -> None:
        """From now on no pass as large as this one; others may fail beside it for the same reason."""
        taken = step.padded_tokens(one) * (self.token_bytes or 0.0) * self._workers
        with self._lock:
            self._memory = min(self._memory or 0.0, taken / 2)

    def _forward_backward(
        self, loaded: LoadedModel, optimizer: BatchedAdamW, step: StepBatch, one: MicroBatch, backward: bool = True
    ) -> tuple[list[float], tuple[Tensor, ...]]:
        """A pass there and back: each adapter's loss, over the tokens that it learns in all its passes, and the
        gradients of their sum; none without the way back."""
        places = [(a, n) for a in range(one.first_adapter, one.end_adapter) for n in range(one.first_row, one.end_row)]
        dropout = self._dropout([step.dropout_seeds[a] + n for a, n in places])
        each = one.end_row - one.first_row
        weights = optimizer.leaves(one.first_adapter, one.end_adapter, loaded.model.dtype)
        with torch.enable_grad(), weights.attached(loaded.model, dropout):
            rows = [step.rows[a][n] for a, n in places]
            inputs = _loss_batch(loaded, rows, self._recipe.loss)
            read = forward if self._lower is None else partial(self._lower.logits, rows=rows)
            losses = inputs.losses(read(loaded.model, inputs.batch, inputs.positions))
            counts = [sum(inputs.counts[at : at + each]) for at in range(0, len(places), each)]
            parts = torch.split(losses, counts)
            totals = torch.stack([part.sum() for part in parts])
            means = totals / totals.new_tensor(step.loss_token_counts[one.first_adapter : one.end_adapter])
            with _gradient_errors():
                # An expert that no token of these rows was sent to gets a gradient of zeros.
                gradients = (
                    torch.autograd.grad(means.sum(), weights.tensors, allow_unused=True, materialize_grads=True)
                    if backward
                    else ()
                )
        return means.detach().tolist(), gradients


def _storage(tensor: Tensor) -> tuple[int, int]:
    """The place and the bytes of a tensor's memory; of a tensor without memory of its own, as quantized ones are, its
    identity and size."""
    try:
        storage = tensor.untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    except (RuntimeError, NotImplementedError):
        return id(tensor), tensor.nbytes


def _is_expert(path: str) -> bool:
    """Whether a layer belongs to an expert, which other rows may be sent to."""
    return "experts" in path.split(".")


def _within(one: MicroBatch, longest: Sequence[int], fit: float) -> list[MicroBatch]:
    """The pass in pieces of at most `fit` padded tokens, or of single rows."""
    tokens = (
        max(longest[one.first_adapter : one.end_adapter])
        * (one.end_row - one.first_row)
        * (one.end_adapter - one.first_adapter)
    )
    halves = one.halves()
    if tokens <= fit or halves is None:
        return [one]
    return [small for half in halves for small in _within(half, longest, fit)]


@contextmanager
def _gradient_errors() -> Iterator[None]:
    """Turns what autograd raises into an `AdaptationError`, unless memory ran out."""
    try:
        yield
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise AdaptationError(f"the model gives no gradients to train with: {error}") from error


def _loss_batch(loaded: LoadedModel, rows: Sequence[Encoded], loss: Loss) -> _LossBatch:
    """The rows as one batch, and which of their predictions are trained."""
    batch = pad([row.ids for row in rows], pad_id_of(loaded), loaded.model.device, left=False)
    positions = torch.zeros(batch.ids.shape, dtype=torch.bool, device="cpu")
    counts = []
    for i, row in enumerate(rows):
        targets = loss_positions(row, loss)
        positions[i, [p - 1 for p in targets]] = True
        counts.append(len(targets))
    positions = positions.to(batch.ids.device)
    return _LossBatch(batch, positions, batch.ids[:, 1:][positions[:, :-1]], counts)


def _copies_sharing_weights(model: torch.nn.Module, count: int) -> list[torch.nn.Module]:
    """Modules of their own over the same parameters and buffers, so that hooks on them are their own too; hooks that
    are there already are called as they are. Rotary frequencies that follow the length of a prompt are each copy's own.
    None where something in the model cannot be copied."""
    shared: dict[int, Any] = {id(t): t for t in state_tensors(model).values()}
    shared |= {id(h): h for m in model.modules() for kind in HOOKS for h in getattr(m, kind).values()}
    try:
        return [copy.deepcopy(model, dict(shared)) for _ in range(count)]
    except (TypeError, RuntimeError):
        return []
