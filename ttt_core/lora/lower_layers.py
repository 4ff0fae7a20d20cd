"""The layers below the lowest adapted one: they compute the same at every step, so each row is read by them once, and
what they gave is kept while adapters are trained.

Only layers in the list of the decoder's layers count, and only in models where this is proven on a row of the training
to give the same logits: not where layers pass something else on to later ones. Knows nothing about losses or
optimizers.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import AutotttError
from ..model.encoding import Encoded, PaddedBatch, forward, pad
from ..model.fingerprint import fixed_rotary_length
from ..model.memory import out_of_memory
from .modules import layer_number

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STATES_SHARE = 0.1
"""Of the memory that passes may take, what kept states may take."""
ROUNDING = {torch.float32: 0.002, torch.float16: 0.05, torch.bfloat16: 0.1}
"""Largest mean of rounding differences of logits, as a share of their standard deviation: rows are padded otherwise
when they are read on their own."""
SAME = 0.01
"""Share of `ROUNDING` by which the largest difference may exceed that of a repeated pass, if rows are padded alike."""
COMPARED = 4
"""Tokens at the end of a row whose logits are compared."""


@dataclass(frozen=True)
class _Proof:
    """What was found out about a model whose kept states give the same logits."""

    outputs: tuple[int, ...]
    """Of each lower layer: the length of the tuple that it returns; 0: it returns a tensor."""
    token_bytes: int
    """Bytes of the state of a token."""


_PROVEN: WeakKeyDictionary[nn.Module, dict[object, _Proof | None]] = WeakKeyDictionary()
"""Of each model, by the lowest adapted layer and the model's state: the proof; None where the logits differ."""


class LowerLayers:
    """Reads rows by the lower layers once, and goes on from there."""

    def __init__(self, base: PreTrainedModel, layers: str, lowest: int, max_bytes: float) -> None:
        """`layers` is the path of the decoder's layers in `base`, the lowest adapted one has the number `lowest`.
        States take `max_bytes` at most; rows that have no room are read whole."""
        self._base, self._layers, self._lowest, self._room = base, layers, lowest, max_bytes
        self._proof: _Proof | None = None
        self._longest = fixed_rotary_length(base)
        """Tokens of the longest row for which positions are encoded as in any shorter one."""
        self._states: dict[tuple[int, ...], Tensor] = {}
        """Ids of a row -> what enters the lowest adapted layer, [T, d]."""
        self._lock = threading.Lock()

    @classmethod
    def below(
        cls, model: PreTrainedModel, names: Collection[str], max_bytes: float, row: Encoded
    ) -> LowerLayers | None:
        """The layers below all modules and parameters of these paths; None where there are none, or where kept states
        do not give the same logits. That is tried on `row`, once in each state of the model."""
        numbers = {name: layer_number(name) for name in names}
        lists = {name.partition(f".{number}.")[0] for name, number in numbers.items()}
        lowest = min((-1 if number is None else number for number in numbers.values()), default=-1)
        if len(lists) != 1 or lowest <= 0:
            return None
        lower = cls(model, lists.pop(), lowest, max_bytes)
        return lower if lower._prove(row) else None

    def logits(self, model: PreTrainedModel, batch: PaddedBatch, positions: Tensor, rows: Sequence[Encoded]) -> Tensor:
        """Logits [N, V] at `positions`, as of `forward`. `batch` has the rows, padded on the right; `model` is
        the base, or a copy that shares its weights."""
        ids = [row.ids for row in rows]
        if batch.ids.shape[1] > self._longest or not self._read(model, ids):
            return forward(model, batch, positions)
        with self._skipped(model, self._padded(ids)):
            return forward(model, batch, positions)

    def _prove(self, row: Encoded) -> bool:
        """Whether kept states give the same logits in this model."""
        proven = _PROVEN.setdefault(self._base, {})
        key = self._layers, self._lowest, _state_key(self._base)
        if key not in proven:
            try:
                with torch.no_grad():
                    proven[key] = self._tried(row.ids[: min(len(row.ids), self._longest)])
            except AutotttError:  # the caller does not wait any more
                raise
            except Exception as error:
                if out_of_memory(error):
                    return False
                proven[key] = None
        self._proof = proven[key]
        return self._proof is not None

    def _tried(self, ids: tuple[int, ...]) -> _Proof | None:
        """The proof, by passes of a row and its first half, which is padded; None where logits differ."""
        model, rows = self._base, [ids, ids[: max(1, len(ids) // 2)]]
        batch = pad(rows, ids[0], model.device, left=False)
        lengths = batch.mask.sum(1, keepdim=True)
        places = batch.mask.bool() & (batch.positions >= lengths - COMPARED)
        whole = forward(model, batch, places)
        allowed = ROUNDING.get(model.dtype, 0.0) * float(whole.std())
        outputs = [0] * self._lowest
        entering = self._entering(model, batch, outputs)
        trial = type(self)(self._base, self._layers, self._lowest, math.inf)
        trial._proof = proof = _Proof(tuple(outputs), entering[0, 0].nbytes)
        # What layers keep elsewhere is now of other rows.
        self._entering(model, replace(batch, ids=batch.ids.roll(1, 1)))
        with trial._skipped(model, entering):
            same = forward(model, batch, places)
        if not torch.equal(whole, same):
            noise = float((whole - forward(model, batch, places)).abs().max())
            if not float((whole - same).abs().max()) <= 4 * noise + SAME * allowed:
                return None
        trial._read(model, rows)
        with trial._skipped(model, trial._padded(rows)):
            kept = forward(model, batch, places)
        return proof if float((whole - kept).abs().mean()) <= allowed else None

    def _read(self, model: PreTrainedModel, rows: Sequence[tuple[int, ...]]) -> bool:
        """Reads the rows that have not been read. False where their states have no room."""
        token_bytes = self._proof.token_bytes if self._proof else 0
        missing = [ids for ids in dict.fromkeys(rows) if ids not in self._states]
        if sum(map(len, missing)) * token_bytes > self._room:
            return False
        for ids in missing:  # one by one: its states do not depend on other rows of a batch
            tokens = torch.tensor([ids], device=model.device)
            places = torch.arange(len(ids), device=model.device)[None]
            with torch.no_grad():
                state = self._entering(model, PaddedBatch(tokens, torch.ones_like(tokens), places))[0]
            with self._lock:
                if ids in self._states:  # by another thread
                    continue
                if state.nbytes > self._room:
                    return False
                self._room -= state.nbytes
                self._states[ids] = state
        return True

    def _padded(self, rows: Sequence[tuple[int, ...]]) -> Tensor:
        """The states of rows as a batch [B, T, d], in memory of its own. Padding has the state of the row's last token:
        layers may have no finite output, or gradient, for zeros."""
        longest = max(map(len, rows))
        places = torch.arange(longest, device=self._base.device)
        return torch.stack([self._states[ids][places.clamp(max=len(ids) - 1)] for ids in rows])

    def _entering(self, model: PreTrainedModel, batch: PaddedBatch, outputs: list[int] | None = None) -> Tensor:
        """What enters the lowest adapted layer, [B, T, d]. Raises `_NoSuchStateError` where that is not one tensor.
        `outputs`, one for each lower layer, is told the lengths of the tuples that they return."""
        below, lowest = self._split(model)

        def stop(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            raise _StateRead(args[0] if args else named.get("hidden_states"))

        def note(_: nn.Module, args: tuple[Any, ...], output: Any, number: int) -> None:
            if outputs is not None and isinstance(output, tuple):
                outputs[number] = len(output)

        nowhere = torch.zeros(batch.ids.shape, dtype=torch.bool, device=batch.ids.device)
        with ExitStack() as hooks:
            hooks.callback(lowest.register_forward_pre_hook(stop, with_kwargs=True).remove)
            for number, layer in enumerate(below if outputs is not None else ()):
                hooks.callback(layer.register_forward_hook(partial(note, number=number)).remove)
            try:
                forward(model, batch, nowhere)
            except _StateRead as read:
                if isinstance(read.state, Tensor) and read.state.shape[:2] == batch.ids.shape:
                    return read.state
        raise _NoSuchStateError

    @contextmanager
    def _skipped(self, model: PreTrainedModel, entering: Tensor) -> Iterator[None]:
        """While inside, the lower layers do nothing, and `entering` enters the lowest adapted one."""
        below, lowest = self._split(model)
        lengths = self._proof.outputs if self._proof else ()

        def enter(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return ((entering, *args[1:]), named) if args else (args, {**named, "hidden_states": entering})

        with ExitStack() as undo:
            for layer, length in zip(below, lengths, strict=True):
                own = vars(layer).get("forward")
                undo.callback(_set_forward, layer, own)
                layer.forward = partial(_unchanged, length)
            undo.callback(lowest.register_forward_pre_hook(enter, with_kwargs=True).remove)
            yield

    def _split(self, model: PreTrainedModel) -> tuple[list[nn.Module], nn.Module]:
        """The lower layers, and the lowest adapted one."""
        modules = list(model.get_submodule(self._layers).children())
        return modules[: self._lowest], modules[self._lowest]


class _StateRead(Exception):
    """Ends a pass where the lower layers are done."""

    def __init__(self, state: object) -> None:
        self.state = state


class _NoSuchStateError(Exception):
    """No single tensor with a state for each token enters the lowest adapted layer."""


def _state_key(model: nn.Module) -> object:
    """What may change in a model between trainings so that a proof no longer holds: precision, attention, hooks, and
    methods that were replaced."""
    own = []
    for name, module in model.named_modules():
        hooks = [hook for kind in ("_forward_hooks", "_forward_pre_hooks") for hook in getattr(module, kind).values()]
        own += [(name, getattr(hook, "__qualname__", type(hook).__qualname__)) for hook in hooks]
        own += [(name, "forward")] if "forward" in vars(module) else []
    return model.dtype, model.device, getattr(model.config, "_attn_implementation", ""), tuple(own)


def _set_forward(layer: nn.Module, own: Any) -> None:
    """Sets a layer's method back; None: the layer has none of its own."""
    if own is None:
        vars(layer).pop("forward", None)
    else:
        layer.forward = own


def _unchanged(length: int, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
    """What a layer does that is skipped. It returns a tuple of this length; 0: a tensor."""
    return (hidden_states, *[None] * (length - 1)) if length else hidden_states
