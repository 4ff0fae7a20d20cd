"""A self-examination: versions, device, model, policy, and a test that the weights come back."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import version

from ...strategies.base import run
from ...strategies.registry import get_strategy
from ...ttt_core.tasks.kinds import make_task
from ..controller import Controller

_PACKAGES = ("autottt", "torch", "transformers", "peft", "scikit-learn", "langgraph", "numpy", "skops")


def examine(controller: Controller) -> Iterator[tuple[str, str, bool]]:
    """Rows of (what, finding, whether it is well)."""
    learner = controller.learner
    model = learner.loaded.model
    yield "python", platform.python_version(), True
    yield "versions", ", ".join(f"{n} {version(n)}" for n in _PACKAGES), True
    yield (
        "device",
        f"{model.device}, {learner.guarded.precision}, {learner.guarded.threads} threads of {os.cpu_count()} cores",
        True,
    )
    size = sum(p.numel() for p in model.parameters())
    yield (
        "model",
        f"{learner.loaded.name}: {type(model).__name__}, {size / 1e6:.1f}M parameters, hash {learner.base_hash}",
        True,
    )
    yield "prompts", f"{learner.loaded.format.name} format, context {learner.loaded.context_length} tokens", True
    yield "policy", controller.policy.name, True
    task = make_task([([1, 2, 3], [3, 2, 1]), ([4, 5], [5, 4]), ([7, 8, 9], [9, 8, 7])], [6, 2], id="doctor")
    attempt = run(get_strategy("ttt_in_context"), learner, task)
    trained = attempt.training_record.steps if attempt.training_record else 0
    yield (
        "training",
        attempt.error or f"{trained} steps in {attempt.cost.seconds:.2f} s",
        attempt.training_record is not None,
    )
    proof = learner.verify(full=True)
    yield "revert", f"base unchanged after training: {proof.tensors} tensors, content hash {proof.hash} equal", True
