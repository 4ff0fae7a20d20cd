"""Fixtures that several modules share: tiny learners, a task, processes, and a check of what a run changed."""

from __future__ import annotations

import atexit
import hashlib
import multiprocessing
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

    from torch import nn

    from autottt.ttt_core.engine.adapter_plan import AdapterPlan
    from autottt.ttt_core.learner import Learner
    from autottt.ttt_core.tasks.task import Task

IMPORTED_ONCE = (
    "autottt.controller.cli.main",
    "autottt.controller.controller",
    "autottt.controller.server.app",
    "autottt.controller.server.serving",
    "autottt.controller.task_graph",
    "autottt.controller.tracing.recorder",
    "autottt.policies.parallel",
    "autottt.ttt_core.engine.adapter_trainer",
    "autottt.ttt_core.engine.adapter_cache",
    "autottt.ttt_core.pretraining.pretrain",
    "autottt.ttt_core.testing",
    "langgraph.checkpoint.memory",
    "langsmith.run_helpers",
    "transformers.models.llama.modeling_llama",
)
"""Modules that processes of the `forkserver` have imported when they start."""

os.environ.setdefault("AUTOTTT_TRACE", "off")
"""No test writes to the user's store of traces."""
os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="autottt-data-")
"""No test reads or writes the user's policies."""
atexit.register(shutil.rmtree, os.environ["XDG_DATA_HOME"], ignore_errors=True)
collect_ignore = [] if os.environ.get("AUTOTTT_REAL_MODELS") else ["real"]
"""The tests of real models run with `make test-real` only."""
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


@pytest.fixture(scope="session")
def forkserver() -> ForkServerContext:
    """Starts processes that have imported torch and the package: the import takes seconds, here once a session.

    `forkserver.Process(target=exec, args=(source, variables))` runs a program.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*IMPORTED_ONCE])
    return context


@pytest.fixture
def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that makes training divide its steps as on an accelerator: rows of several adapters in one pass."""
    from autottt.ttt_core.lora import training
    from autottt.ttt_core.lora.gradients import GradientEngine

    class Stacked(GradientEngine):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self._on_cpu, self._workers = False, 1

    return lambda: monkeypatch.setattr(training, "GradientEngine", Stacked)


@pytest.fixture
def make_learner(one_thread: None) -> MakeLearner:
    """A function that builds a learner around a tiny model: architecture, precision, seed, and tokenizer options."""
    import torch

    from autottt.ttt_core.learner import Learner
    from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

    def make(
        architecture: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, **tokenizer: bool
    ) -> Learner:
        prompt_format = "chat" if tokenizer.get("chat") else "standard"
        return Learner.wrap(
            tiny_model(architecture, seed, dtype), tiny_tokenizer(**tokenizer), prompt_format=prompt_format
        )

    return make


@pytest.fixture
def make_plan() -> Callable[..., AdapterPlan]:
    """Builds the plan of an adapter from its key, its examples, recipe, seed, and the prompts that it will answer."""
    from autottt.ttt_core.engine.adapter_plan import AdapterPlan, TrainingExamples

    def make(key: object, examples: Any, recipe: Any, seed: int = 0, prompts: Any = ()) -> AdapterPlan:
        return AdapterPlan(key, examples[0], recipe, seed, lambda: TrainingExamples([examples]), lambda: prompts)

    return make


@pytest.fixture
def task() -> Task:
    """A task with its answer: reverse a list."""
    from autottt.ttt_core.tasks.kinds import make_task

    pairs: list[tuple[object, object]] = [([1, 2, 3], [3, 2, 1]), ([4, 5], [5, 4]), ([7, 8, 9, 9], [9, 9, 8, 7])]
    return make_task(pairs, [6, 2, 4], answer=[4, 2, 6])


def _digest(tensor: Any) -> str:
    import torch

    return hashlib.sha256(
        tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    ).hexdigest()


def _state(model: nn.Module) -> dict[str, Any]:
    """Everything that a run must leave unchanged, read without any code of the package."""
    import numpy as np
    import torch

    parameters = list(model.named_parameters(remove_duplicate=False))
    tensors = parameters + list(model.named_buffers(remove_duplicate=False))
    modules = list(model.named_modules())
    hooks = {
        f"{name}.{attribute}": list(value.items())
        for name, module in modules
        for attribute, value in vars(module).items()
        if "hooks" in attribute and isinstance(value, dict)
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
    """A context manager that asserts that its body leaves the model and the process unchanged, except for the state
    called `but`."""

    @contextmanager
    def witness(model: nn.Module, *, but: str = "") -> Iterator[None]:
        before = _state(model)
        yield
        after = _state(model)
        for name, value in before.items():
            assert name == but or after[name] == value, f"{name} changed"

    return witness
