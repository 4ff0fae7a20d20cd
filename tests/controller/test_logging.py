"""What is logged: decisions, fallbacks and steps; and above DEBUG nothing that a task or an answer contains."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from autottt.controller.controller import Controller
from autottt.controller.tracing.recorder import TraceRecorder
from autottt.policies.collect import collect
from autottt.policies.exploration import ExploringPolicy
from autottt.policies.outcomes import OutcomeStore
from autottt.policies.policy import FixedPolicy, HeuristicPolicy
from autottt.strategies import registry
from autottt.strategies.base import Attempt, CostClass
from autottt.strategies.registry import get_strategy, strategies
from autottt.ttt_core.engine.adapter_trainer import AdapterTrainer
from autottt.ttt_core.errors import AdaptationError, Cancelled, TooLongError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

MARK = "zqxjv"
QUICK = Recipe(rank=2, alpha=2.0, dropout=0.0, learning_rate=1e-3, max_steps=3, batch_size=2, views=3)
TASK = make_task(
    [(f"{MARK} a", f"a {MARK}"), (f"{MARK} b", f"b {MARK}"), (f"{MARK} c", f"c {MARK}")], f"{MARK} d",
    answer=f"d {MARK}", instruction=f"swap {MARK}", id="swap",
)  # fmt: skip
OTHER = replace(TASK, demonstrations=TASK.demonstrations[:2], query=f"{MARK} e", id="other")
TOO_LONG = replace(TASK, query=f"{MARK} " * 9000, id="long")


@pytest.fixture(scope="module")
def shared() -> Learner:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer(chat=True), prompt_format="auto")
    learner.loaded = replace(learner.loaded, recipes=dict.fromkeys(strategies(), QUICK))
    return learner


@pytest.fixture
def learner(shared: Learner) -> Learner:
    shared.clear()
    return shared


class Records:
    """What the test has logged so far."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def __iter__(self) -> Iterator[logging.LogRecord]:
        return iter(list(self._caplog.get_records("call")))


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Iterator[Records]:
    """What is logged, and afterwards a check that no record above DEBUG has the mark, in its text or traceback."""
    caplog.set_level(logging.DEBUG)
    yield Records(caplog)
    formatter = logging.Formatter()
    logged = list(Records(caplog))
    assert logged
    for record in logged:
        if record.levelno > logging.DEBUG:
            assert MARK not in formatter.format(record), record.name


@pytest.mark.parametrize("name", list(strategies()))
def test_a_run_of_any_strategy_logs_no_content(learner: Learner, records: Records, name: str) -> None:
    Controller(learner, FixedPolicy(name)).solve(TASK)
    learner.clear()
    Controller(learner, FixedPolicy(name)).solve_many([TASK, OTHER])
    assert any(r.levelno == logging.INFO and f"swap: {name}: always {name}" in r.getMessage() for r in records)
    trains = get_strategy(name).cost_class == "train"
    assert any("step 3 of at most 3: loss" in r.getMessage() for r in records) == trains
    together = any("swap, other: trained together, step 3 of at most 3: mean loss" in r.getMessage() for r in records)
    assert together == (name in ("ttt_in_context", "ttt_direct", "ttt_augmented"))


def raise_error(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", [ValueError(MARK), KeyError(MARK), AdaptationError("no memory"), MemoryError(MARK)])
@pytest.mark.parametrize("name", ["ttt_in_context", "ttt_direct", "ttt_augmented", "ttt_crossfit", "ttt_warm"])
def test_a_training_that_fails_logs_no_content_and_is_a_fallback(
    learner: Learner, records: Records, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    for method in ("adapt_many", "cross_validate"):
        monkeypatch.setattr(AdapterTrainer, method, raise_error(error))
    Controller(learner, FixedPolicy(name)).solve(TASK)
    Controller(learner, FixedPolicy(name)).solve_many([TASK, OTHER], batch_size=1)
    said = [r for r in records if r.levelno == logging.INFO and f"{name} failed" in r.getMessage()]
    assert said, "the fallback is at INFO"
    if MARK in str(error):
        assert any(r.levelno == logging.DEBUG and MARK in r.getMessage() for r in records), "all of it is at DEBUG"


@dataclass(frozen=True)
class Indiscreet:
    """A strategy of a plug-in whose errors quote the task."""

    error: type[Exception]
    name: str = "indiscreet"
    cost_class: CostClass = "train"
    min_demonstrations: int = 1
    recipe: Recipe | None = None
    default_recipe: Recipe | None = None

    def answers_per_query(self, recipe: Recipe) -> int:
        return 1

    def plan(self, learner: Learner, task: Task, seed: int) -> Any:
        raise self.error(f"cannot plan {task.query}")

    def attempt(self, learner: Learner, task: Task, **_: Any) -> Attempt:
        raise self.error(f"cannot answer {task.query}")


@pytest.mark.parametrize("error", [ValueError, AdaptationError])
def test_a_plugin_that_quotes_the_task_is_not_quoted(
    learner: Learner, records: Records, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    every = {**strategies(), "indiscreet": Indiscreet(error)}
    for module in (registry, *_modules_with("strategies")):
        monkeypatch.setattr(module, "strategies", lambda: every)
    kept: list[Any] = []
    target = type("Kept", (), {"write": lambda self, trace: kept.append(trace)})()
    recorder = TraceRecorder([target], content=False)
    controller = Controller(learner, FixedPolicy("indiscreet"), trace=recorder)
    controller.solve(TASK)
    controller.solve_many([TASK, OTHER])
    assert any("indiscreet failed" in r.getMessage() for r in records if r.levelno == logging.INFO)
    assert len(kept) == 3
    assert all(MARK not in str(trace.plain) for trace in kept)


def _modules_with(name: str) -> list[Any]:
    from autottt.controller import controller, graph, nodes

    return [module for module in (controller, graph, nodes) if hasattr(module, name)]


class Broken:
    """A target of traces that quotes them."""

    def write(self, trace: Any) -> None:
        raise ValueError(f"cannot write {trace.plain}")


def test_other_ends_of_a_run_log_no_content(learner: Learner, records: Records, tmp_path: Path) -> None:
    controller = Controller(learner, FixedPolicy("ttt_direct"), trace=TraceRecorder([Broken()]))
    controller.solve(TASK, budget=1e-6)
    controller.solve(TASK, budget="20x")
    with pytest.raises(TooLongError):
        controller.solve(TOO_LONG)
    controller.solve_many([TOO_LONG, TASK])
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        controller.solve(TASK, cancel=cancel)
    controller.solve(replace(TASK, demonstrations=()), strategy="ttt_crossfit")
    for policy in (HeuristicPolicy(), ExploringPolicy(HeuristicPolicy(), HeuristicPolicy(), explore=1.0)):
        Controller(learner, policy).solve(TASK)
    said = [r.getMessage() for r in records if "answers are not affected" in r.getMessage()]
    assert said[0] == "ValueError; answers are not affected"


def test_collecting_logs_no_content(
    learner: Learner, records: Records, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(AdapterTrainer, "adapt_many", raise_error(ValueError(MARK)))
    chosen = [get_strategy(name) for name in ("in_context", "ttt_direct")]
    collect(learner, [TASK, OTHER], chosen, [0], OutcomeStore(tmp_path / "store"))
    assert any("ttt_direct failed on swap: ValueError" in r.getMessage() for r in records)


def test_a_chat_template_that_quotes_the_task_is_not_quoted(records: Records) -> None:
    tokenizer = tiny_tokenizer(chat=True)
    raised = "{% if messages | length > 12 %}{{ raise_exception(messages[1]['content']) }}{% endif %}"
    tokenizer.chat_template = raised + tokenizer.chat_template
    learner = Learner.wrap(tiny_model("llama"), tokenizer, prompt_format="auto")
    long = replace(TASK, demonstrations=TASK.demonstrations * 4)
    Controller(learner, FixedPolicy("in_context")).solve(long)
    (warning,) = [r for r in records if "prompt format" in r.getMessage() and r.levelno == logging.WARNING]
    assert "the prompt format chat is not used: the tokenizer's chat template" in warning.getMessage()
