"""The command `autottt doctor`: settings with their sources, versions, device, model, policy, and a test that training
leaves the weights unchanged."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text

from .console import screen
from .options import CONFIG_VALUES, ModelOptions, PolicyOptions, load_controller, settings
from .settings import config_file, source_of, variable

if TYPE_CHECKING:
    from ..controller import Controller


def doctor(ctx: typer.Context, policy: PolicyOptions, model: ModelOptions) -> None:
    """Report settings, versions, device, model and policy, and test that training leaves the model unchanged.

    Example: `autottt doctor`
    """
    screen.print(Text(f"configuration  {config_file()}{'' if config_file().exists() else ' (there is no such file)'}"))
    for name, value, source in resolved(ctx):
        screen.print(Text.assemble((f"  {name:14} ", "bold"), f"{value}", (f"  ({source})", "dim")))
    healthy = True
    for name, value, good in examine(load_controller(model, policy)):
        healthy &= good
        mark = ("ok  ", "green") if good else ("BAD ", "red")
        screen.print(Text.assemble(mark, (f"{name:14} ", "bold"), value))
    if not healthy:
        raise typer.Exit(1)


def resolved(ctx: typer.Context) -> Iterator[tuple[str, str, str]]:
    """Every setting with its value and the source of the value: also those that this command does not take."""
    in_file = ctx.meta.get(CONFIG_VALUES, {})
    for name in settings():
        if name in ctx.params or ctx.get_parameter_source(name) is not None:
            value, source = ctx.params.get(name), source_of(ctx, name)
        elif in_environment := os.environ.get(variable(name)):
            value, source = in_environment, f"variable {variable(name)}"
        else:
            value, source = in_file.get(name), f"file {config_file()}" if name in in_file else "default"
        yield name, _shown(value), source


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return os.pathsep.join(map(str, value)) or "not set"
    return "not set" if value is None else str(value)


def examine(controller: Controller) -> Iterator[tuple[str, str, bool]]:
    """Rows of (name, finding, whether it is as it should be)."""
    from ...strategies.base import run
    from ...strategies.registry import get_strategy
    from ...ttt_core.tasks.kinds import make_task
    from ..run_facts import package_versions

    learner = controller.learner
    model = learner.loaded.model
    yield "python", platform.python_version(), True
    yield "versions", ", ".join(f"{name} {version}" for name, version in package_versions().items()), True
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
    prompts = f"{learner.loaded.prompt_format} format, context {learner.loaded.context_length} tokens"
    reason = learner.loaded.format_reason
    yield "prompts", f"{prompts} (no chat prompts: {reason})" if reason else prompts, True
    yield "policy", controller.policy.name, True
    task = make_task([([1, 2, 3], [3, 2, 1]), ([4, 5], [5, 4]), ([7, 8, 9], [9, 8, 7])], [6, 2], id="doctor")
    attempt = run(get_strategy("ttt_in_context"), learner, task)
    steps = attempt.training_record.steps if attempt.training_record else 0
    yield (
        "training",
        attempt.error or f"{steps} steps in {attempt.cost.seconds:.2f} s",
        attempt.training_record is not None,
    )
    proof = learner.verify(full=True)
    yield "revert", f"base unchanged after training: {proof.tensors} tensors, content hash {proof.hash} equal", True
