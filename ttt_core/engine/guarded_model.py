"""A model in use: whose turn it is, what work is charged, and the proof that it is given back unchanged.

Knows nothing about tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from .. import clock
from ..arguments import as_number
from ..errors import AdaptationError, BaseChangedError, DeadlineError, ModelError
from ..lora.adapter import Adapter
from ..model.fingerprint import (
    Fingerprint,
    ModelParts,
    RevertProof,
    RevocableChangeError,
    RotaryState,
    freeze,
    restoring,
    restoring_gradients,
)
from ..model.generation import MAX_BATCH_TOKENS
from ..model.host_modes import without_host_modes
from ..model.interruption import checked_passes
from ..model.loading import LoadedModel
from ..model.locks import lock_of
from ..model.memory import free_memory, out_of_memory, peak_memory, tokens_that_fit
from ..model.probe import refuse_unnamed_outputs
from ..spans import span
from .cost import Cost, Meter

OnPhase = Callable[[str, int], None]
"""Receives the name of a phase that begins, and the token equivalents that it will take at most; 0: unknown."""


@dataclass(frozen=True)
class StepLimit:
    """Where a deadline stopped the training of a run that is repeated."""

    steps: int
    evaluated: bool
    """Whether held-out demonstrations were evaluated after the last step."""


class GuardedModel:
    """A loaded model that is used by one caller at a time and is afterwards what it was before."""

    def __init__(
        self, loaded: LoadedModel, verify: Literal["pointers", "full"] = "pointers", memory_bytes: int | None = None,
        original: GuardedModel | None = None,
    ) -> None:  # fmt: skip
        """`verify` is how `verify` proves the base unchanged; `memory_bytes` bounds what is read side by side, and in
        training what is kept for the backward pass (None: a share of what is free). `original` guards the model that
        this one is a replica of.
        """
        if verify not in ("pointers", "full"):
            raise ValueError(f"verify: expected 'pointers' or 'full'; received {verify!r}")
        self.loaded = loaded
        self.verification = verify
        if memory_bytes is not None and not as_number(memory_bytes) > 0:
            raise ModelError(f"memory_bytes: expected a number of bytes above 0; received {memory_bytes!r}")
        self.memory_bytes = memory_bytes
        self.charged = Cost()
        """All tokens so far, and the seconds of prefetched training and answering that have been used; see `meter`."""
        self.lock = lock_of(loaded.model)
        """Whose turn it is at the model; others around it wait for the same."""
        self.should_stop: Callable[[], bool] | None = None
        """Whether the caller no longer waits for the work; see `stop_when`."""
        self.pause: Callable[[], None] | None = None
        """Called wherever `should_stop` is; returns once other work, which goes first, is done."""
        self.step_limit: StepLimit | None = None
        """Where training stops as if its deadline had passed; see `limiting_steps`."""
        self.on_phase: OnPhase | None = None
        """Receives `training` and `answering` when they begin; see `reporting_phases`."""
        self._read = Cost()
        """What reading has cost so far; see `reading`."""
        self._fingerprint: Fingerprint = Fingerprint(loaded.model, None if original is None else original._fingerprint)
        self._rotary = RotaryState(loaded.model.modules())
        self._parts = ModelParts(loaded.model)
        self._full_proofs = False
        self._changed: BaseChangedError | None = None

    @property
    def base_hash(self) -> str:
        """Content hash of the base model, as loaded."""
        return self._fingerprint.hash

    @property
    def precision(self) -> str:
        """Type of the weights, such as bfloat16."""
        return str(self.loaded.model.dtype).removeprefix("torch.")

    @property
    def threads(self) -> int:
        """Threads that computing on the CPU uses."""
        return torch.get_num_threads()

    @property
    def peak_bytes(self) -> int:
        """Largest number of bytes that the process has held so far, on the model's device."""
        return peak_memory(self.loaded.model.device)

    @property
    def batches_adapters(self) -> bool:
        """Whether passes take rows of many adapters."""
        return self.loaded.supports_padding and bool(self.loaded.model.device.type != "cpu")

    def verify(self, *, full: bool | None = None) -> RevertProof:
        """Proves that the base is what was loaded. Raises `BaseChangedError`; from then on all work is refused, unless
        only hooks or modes of modules differ: the caller can set them back."""
        with self.lock.compute, span("verify") as step:
            self._refuse_if_changed()
            if full is None:
                full = self._full_proofs or self.verification == "full"
            try:
                proof = self._fingerprint.verify(self.loaded.model, full=full)
                step.set(
                    method=proof.method, tensors=proof.tensors, hash=proof.hash, bytes=self._fingerprint.bytes,
                    compared_bytes=self._fingerprint.compared_bytes(full=proof.method == "full"),
                )  # fmt: skip
                return proof
            except RevocableChangeError:
                raise
            except BaseChangedError as error:
                self._changed = error
                raise

    @contextmanager
    def running_plugin(self) -> Iterator[None]:
        """For code of others that works with the model: while inside, every proof is a full one, since the cheap proof
        may not see such code's writes at once; at the end `requires_grad` and gradients, which no proof compares, are
        as before."""
        with self.lock.compute, restoring_gradients(list(self.loaded.model.parameters())), self.full_proofs():
            yield

    @contextmanager
    def full_proofs(self) -> Iterator[None]:
        """While inside, every proof is a full one: for code whose writes the cheap proof may not see at once."""
        with self.lock.compute:
            before, self._full_proofs = self._full_proofs, True
            try:
                yield
            finally:
                self._full_proofs = before

    @contextmanager
    def compute(self, adapter: Adapter | None) -> Iterator[None]:
        """The model in evaluation mode without gradients, with the adapter attached; all of it undone at the end."""
        with self.lock.compute:
            self._refuse_if_changed()
            if adapter is not None:
                self.refuse_other_base(adapter)
            model = self.loaded.model
            refuse_unnamed_outputs(model)
            is_checked = self.should_stop is not None or self.pause is not None
            checks = checked_passes(model, self.raise_if_stopped) if is_checked else nullcontext()
            with restoring(model, self._parts) as parts, without_host_modes(model.device), checks:
                self._parts = parts
                freeze(parts)
                self._rotary.restore()
                with adapter.weights.attached(model) if adapter is not None else nullcontext():
                    yield

    @contextmanager
    def stop_when(self, should_stop: Callable[[], bool]) -> Iterator[None]:
        """While inside, `should_stop` is called before every prompt and every layer of a pass, and may raise.

        Once it is true, decoding ends with the tokens so far and training with the weights of the last complete step;
        other work raises `DeadlineError`. Inside another `stop_when`, that one ends the work too.
        """
        with self.lock.compute:
            before = self.should_stop
            self.should_stop = should_stop if before is None else lambda: before() or should_stop()
            try:
                yield
            finally:
                self.should_stop = before

    @contextmanager
    def limiting_steps(self, limit: StepLimit | None) -> Iterator[None]:
        """While inside, training stops where the limit says, and is not replaced by a cached adapter; None: as ever."""
        with self.lock.compute:
            before, self.step_limit = self.step_limit, limit
            try:
                yield
            finally:
                self.step_limit = before

    @contextmanager
    def reporting_phases(self, on_phase: OnPhase) -> Iterator[None]:
        """While inside, `on_phase` receives `training` and `answering` when they begin."""
        with self.lock.compute:
            before, self.on_phase = self.on_phase, on_phase
            try:
                yield
            finally:
                self.on_phase = before

    def begin_phase(self, name: str, tokens: int = 0) -> None:
        """Reports that a phase begins, which takes this many token equivalents; 0: unknown."""
        if self.on_phase is not None:
            self.on_phase(name, tokens)

    def raise_if_stopped(self) -> None:
        """Raises `DeadlineError`, or what `should_stop` raises, where the caller no longer waits; pauses first, where
        other work goes first."""
        if self.pause is not None:
            self.pause()
        if self.should_stop is not None and self.should_stop():
            raise DeadlineError("the deadline passed while the model computed; allow more time or give a shorter task")

    def refuse_other_base(self, adapter: Adapter) -> None:
        """Raises `AdaptationError` for an adapter of another base."""
        if adapter.base_hash != self.base_hash:
            raise AdaptationError("this adapter was trained on another base model; train it again on this one")

    def max_batch_tokens(self) -> int:
        """Tokens that are read side by side."""
        return min(MAX_BATCH_TOKENS, tokens_that_fit(self.loaded.model, self.memory_bytes))

    def available_bytes(self) -> int:
        """Bytes that may be used: the bound, or what is free."""
        return free_memory(self.loaded.model.device) if self.memory_bytes is None else self.memory_bytes

    def charge(self, forward: int = 0, backward: int = 0, prefetch_seconds: float = 0.0) -> None:
        """Counts tokens that go through the model, and seconds that prefetching had spent on them."""
        self.charged += Cost(prefetch_seconds, forward, backward)

    def meter(self) -> Meter:
        """A meter of what is spent from now on. Prefetched work counts when it is used."""
        return Meter(lambda: self.charged)

    @contextmanager
    def reading(self, tokens: int) -> Iterator[None]:
        """Measures how long it takes to read whole prompts with this number of tokens, for `token_seconds`."""
        began = clock.monotonic()
        yield
        self._read += Cost(clock.monotonic() - began, tokens)

    @property
    def token_seconds(self) -> float | None:
        """Mean seconds of a token that went forward through the model in `reading`; None before any did."""
        return self._read.seconds / self._read.forward_tokens if self._read.forward_tokens else None

    def _refuse_if_changed(self) -> None:
        if self._changed is not None:
            raise BaseChangedError(
                f"this learner's base model is not what was loaded, so it answers no more: {self._changed}"
            )


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Turns what running out of memory raises into an `AdaptationError`."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise AdaptationError(f"out of memory while {what}: {error}") from error
