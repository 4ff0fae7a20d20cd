"""The layers below the lowest adapted one: they compute the same at every step, so each row is read by them once, and
what they gave is kept while adapters are trained.

Only layers in the list of the decoder's layers count, and only in models where this is proven on the first rows to give
the same logits: not where layers pass something else on to later ones. Knows nothing about losses or optimizers.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..model.encoding import Encoded, PaddedBatch, forward
from .modules import layer_number

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STATES_SHARE = 0.1
"""Of the memory that passes may take, what kept states may take."""
ROUNDING = {torch.float32: 0.002, torch.float16: 0.05, torch.bfloat16: 0.1}
"""Largest rounding differences of logits, as a share of their standard deviation: rows are padded otherwise when they
are read on their own."""
_PROVEN: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()
"""Of each model, by path of the lowest adapted layer: whether states that were kept give the same logits."""


class LowerLayers:
    """Reads rows by the lower layers once, and goes on from there."""

    def __init__(self, base: PreTrainedModel, layers: str, lowest: int, max_bytes: float) -> None:
        """`layers` is the path of the decoder's layers in `base`, the lowest adapted one has the number `lowest`.
        States take `max_bytes` at most; rows that have no room are read whole."""
        self._base, self._layers, self._lowest, self._room = base, layers, lowest, max_bytes
        self._states: dict[tuple[int, ...], Tensor] = {}
        """Ids of a row -> what enters the lowest adapted layer, [T, d]."""
        self._lock = threading.Lock()

    @classmethod
    def below(cls, model: PreTrainedModel, names: Collection[str], max_bytes: float) -> LowerLayers | None:
        """The layers below all modules and parameters of these paths; None where there are none."""
        numbers = {name: layer_number(name) for name in names}
        lists = {name.partition(f".{number}.")[0] for name, number in numbers.items()}
        lowest = min((-1 if number is None else number for number in numbers.values()), default=-1)
        return cls(model, lists.pop(), lowest, max_bytes) if len(lists) == 1 and lowest > 0 else None

    def logits(self, model: PreTrainedModel, batch: PaddedBatch, positions: Tensor, rows: Sequence[Encoded]) -> Tensor:
        """Logits [N, V] at `positions`, as of `forward`. `batch` has the rows, padded on the right; `model` is
        the base, or a copy that shares its weights."""
        if not self._may_keep(model, batch, positions) or not self._read(model, rows):
            return forward(model, batch, positions)
        states = [self._states[tuple(row.ids)] for row in rows]
        with self._skipped(model, nn.utils.rnn.pad_sequence(states, batch_first=True)):
            return forward(model, batch, positions)

    def _may_keep(self, model: PreTrainedModel, batch: PaddedBatch, positions: Tensor) -> bool:
        """Whether kept states give the same logits in this model; tried on the first batch."""
        proven = _PROVEN.setdefault(self._base, {})
        key = f"{self._layers}.{self._lowest}"
        if key not in proven:
            with torch.no_grad():
                whole = forward(model, batch, positions)
                try:
                    same = self._from_states(model, batch, positions)
                except (_NoSuchStateError, LookupError, TypeError, AttributeError, ValueError):
                    proven[key] = False
                else:
                    allowed = ROUNDING.get(model.dtype, 0.0) * float(whole.std())
                    proven[key] = whole.shape == same.shape and float((whole - same).abs().max()) <= allowed
        return proven[key]

    def _from_states(self, model: PreTrainedModel, batch: PaddedBatch, positions: Tensor) -> Tensor:
        """Logits of a batch that the lower layers have read, and other rows since then: what layers keep elsewhere is
        of these."""
        entering = self._entering(model, batch)
        self._entering(model, replace(batch, ids=batch.ids.roll(1, 1)))
        with self._skipped(model, entering):
            return forward(model, batch, positions)

    def _read(self, model: PreTrainedModel, rows: Sequence[Encoded]) -> bool:
        """Reads the rows that have not been read. False where their states have no room."""
        with self._lock:
            missing = [ids for ids in dict.fromkeys(tuple(row.ids) for row in rows) if ids not in self._states]
            size = sum(map(len, missing)) * self._row_bytes(model)
            if size > self._room:
                return False
            self._room -= size
        for ids in missing:  # one by one: its states do not depend on other rows of a batch
            tokens = torch.tensor([ids], device=model.device)
            places = torch.arange(len(ids), device=model.device)[None]
            with torch.no_grad():
                state = self._entering(model, PaddedBatch(tokens, torch.ones_like(tokens), places))
            self._states[ids] = state[0]
        return True

    def _row_bytes(self, model: PreTrainedModel) -> int:
        """Bytes of a token's state."""
        return int(model.get_input_embeddings().weight.shape[1]) * int(model.dtype.itemsize)

    def _entering(self, model: PreTrainedModel, batch: PaddedBatch) -> Tensor:
        """What enters the lowest adapted layer, [B, T, d]. Raises `_NoSuchStateError` where that is not one tensor."""
        layer = model.get_submodule(f"{self._layers}.{self._lowest}")

        def stop(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            raise _StateRead(args[0] if args else named.get("hidden_states"))

        handle = layer.register_forward_pre_hook(stop, with_kwargs=True)
        nowhere = torch.zeros(batch.ids.shape, dtype=torch.bool, device=batch.ids.device)
        try:
            forward(model, batch, nowhere)
        except _StateRead as read:
            if isinstance(read.state, Tensor) and read.state.shape[:2] == batch.ids.shape:
                return read.state
            raise _NoSuchStateError from None
        finally:
            handle.remove()
        raise _NoSuchStateError

    @contextmanager
    def _skipped(self, model: PreTrainedModel, entering: Tensor) -> Iterator[None]:
        """While inside, the lower layers do nothing, and `entering` enters the lowest adapted one."""
        modules = list(model.get_submodule(self._layers).children())
        below, lowest = modules[: self._lowest], modules[self._lowest]

        def enter(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return ((entering, *args[1:]), named) if args else (args, {**named, "hidden_states": entering})

        handle = lowest.register_forward_pre_hook(enter, with_kwargs=True)
        replaced = [(layer, vars(layer).get("forward")) for layer in below]
        try:
            for layer in below:
                layer.forward = _unchanged
            yield
        finally:
            handle.remove()
            for layer, own in replaced:
                if own is None:
                    vars(layer).pop("forward", None)
                else:
                    layer.forward = own


class _StateRead(Exception):
    """Ends a pass where the lower layers are done."""

    def __init__(self, state: object) -> None:
        self.state = state


class _NoSuchStateError(Exception):
    """No single tensor with a state for each token enters the lowest adapted layer."""


def _unchanged(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    """What a layer does that is skipped."""
    return hidden_states
