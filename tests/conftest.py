"""Fixtures that several modules share: learners around tiny models, a task, and a witness of what a run changed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import nn

    from autottt.ttt_core.learner import Learner
    from autottt.ttt_core.tasks.task import Task

MakeLearner = Callable[..., "Learner"]
Unchanged = Callable[["nn.Module"], AbstractContextManager[None]]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny models are fastest on one thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called, a step of training is divided as there: rows of several adapters in one pass."""
    from autottt.ttt_core.lora import training
    from autottt.ttt_core.lora.gradients import GradientEngine

    class Stacked(GradientEngine):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self._on_cpu, self._workers = False, 1

    return lambda: monkeypatch.setattr(training, "GradientEngine", Stacked)


@pytest.fixture
def make_learner(one_thread: None) -> MakeLearner:
    """Builds a learner around a tiny model: architecture, precision, and what its tokenizer has."""
    import torch

    from autottt.ttt_core.learner import Learner
    from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

    def make(
        architecture: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, **tokenizer: bool
    ) -> Learner:
        return Learner.wrap(tiny_model(architecture, seed, dtype), tiny_tokenizer(**tokenizer))

    return make


@pytest.fixture
def task() -> Task:
    """Lists to be reversed; with its answer."""
    from autottt.ttt_core.tasks.kinds import make_task

    pairs: list[tuple[object, object]] = [([1, 2, 3], [3, 2, 1]), ([4, 5], [5, 4]), ([7, 8, 9, 9], [9, 9, 8, 7])]
    return make_task(pairs, [6, 2, 4], answer=[4, 2, 6])


def _digest(tensor: Any) -> str:
    import torch

    return hashlib.sha256(
        tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    ).hexdigest()


def _seen(model: nn.Module) -> dict[str, Any]:
    """Everything that a run must leave as it was, seen without any code of the package."""
    import numpy as np
    import torch

    parameters = list(model.named_parameters(remove_duplicate=False))
    tensors = parameters + list(model.named_buffers(remove_duplicate=False))
    modules = list(model.named_modules())
    hooks = {
        f"{name}.{attribute}": list(found.items())
        for name, module in modules
        for attribute, found in vars(module).items()
        if "hooks" in attribute and isinstance(found, dict)
    }
    return {
        "weights": {n: (id(t), t.data_ptr(), _digest(t)) for n, t in tensors},
        "requires_grad": {n: p.requires_grad for n, p in parameters},
        "grad": {n: None if p.grad is None else (id(p.grad), _digest(p.grad)) for n, p in parameters},
        "training": {n: m.training for n, m in modules},
        "hooks": hooks,
        "recording gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "random state of Python": random.getstate(),
        "random state of NumPy": repr(np.random.get_state(legacy=False)),
        "random state of torch": _digest(torch.get_rng_state()),
    }


@pytest.fixture
def unchanged() -> Unchanged:
    """A context manager that asserts that what happens inside leaves the model and the process as they were, `but` for
    what may change."""

    @contextmanager
    def witness(model: nn.Module, *, but: str = "") -> Iterator[None]:
        before = _seen(model)
        yield
        after = _seen(model)
        for what, value in before.items():
            assert what == but or after[what] == value, f"{what} changed"

    return witness
