"""Nothing that a plug-in's write to the base has changed is published: to a cache, a store of outcomes, or rows. What a
plug-in returns in place of an attempt is a failed attempt."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from autottt.controller.controller import Controller
from autottt.controller.evaluation import evaluate
from autottt.policies.collect import collect
from autottt.policies.outcomes import OutcomeStore
from autottt.policies.policy import Decision, FixedPolicy
from autottt.strategies import registry
from autottt.strategies.base import Attempt, Candidate, CostClass, OnStep, from_answer
from autottt.strategies.registry import get_strategy, strategies
from autottt.ttt_core.engine.adapter_cache import AdapterCache
from autottt.ttt_core.engine.adapter_plan import AdapterPlan, TrainingExamples
from autottt.ttt_core.errors import BaseChangedError, Cancelled, PolicyError, StrategyError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.model.loading import wrap_model
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.augmentation import leave_one_out
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
TASK = make_task([([1, 2], [2, 1]), ([3, 4], [4, 3]), ([5, 6], [6, 5])], [7, 8], answer=[8, 7], id="reverse")
OTHER = replace(TASK, demonstrations=TASK.demonstrations[::-1], id="turned")
QUICK = Recipe(rank=2, alpha=2.0, dropout=0.0, learning_rate=1e-3, max_steps=2, batch_size=2)


@dataclass(frozen=True)
class Writer:
    """A plug-in that writes four bytes to the base, past the version counter, in one of its methods."""

    name: str = "writer"
    cost_class: CostClass = "train"
    min_demonstrations: int = 0
    recipe: Recipe | None = None
    default_recipe: ClassVar[Recipe | None] = QUICK
    place: ClassVar[str] = ""
    learner: ClassVar[Any] = None

    def write(self, place: str) -> None:
        if place == self.place:
            type(self).place = ""
            next(self.learner.loaded.model.parameters()).data.view(-1)[-1] += 1

    def answers_per_query(self, recipe: Recipe) -> int:
        self.write("answers_per_query")
        return 1

    def plan(self, learner: Learner, task: Task, seed: int) -> AdapterPlan:
        self.write("plan")

        def make_examples() -> TrainingExamples:
            self.write("examples")
            return TrainingExamples([leave_one_out(task)])

        return AdapterPlan(("writer", task.demonstrations), task, QUICK, seed, make_examples)

    def attempt(
        self, learner: Learner, task: Task, *, seed: int = 0, deadline: float = math.inf, on_step: OnStep | None = None
    ) -> Attempt:
        self.write("attempt")
        if self.place == "answer":
            answer = learner.answer([task])[0]
            self.write("answer")
            return from_answer(self.name, answer)
        adapter, _ = learner.adapters.get_or_train(self.plan(learner, task, seed), deadline, on_step)
        return from_answer(self.name, learner.answer([task], adapter)[0])


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Learner, str], None]:
    """Registers the plug-in, and says where it writes."""
    strategies()
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    registry.register(Writer)

    def set_place(learner: Learner, place: str) -> None:
        monkeypatch.setattr(Writer, "learner", learner)
        monkeypatch.setattr(Writer, "place", place)

    return set_place


def learner_with(folder: Path) -> Learner:
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer(), prompt_format="compact")
    loaded = replace(loaded, recipes=dict.fromkeys(strategies(), QUICK))
    return Learner(loaded, adapters=AdapterCache(folder=folder))


class Alternating:
    """A policy that prefers the strategies in turn."""

    name = "alternating"

    def __init__(self, *wanted: str) -> None:
        self.wanted = list(wanted)

    def needs_more(self, features: Any) -> bool:
        return False

    def decide(self, features: Any, allowed: Any, *, tried: Any = ()) -> Decision:
        strategy = self.wanted.pop(0) if len(self.wanted) > 1 else self.wanted[0]
        numbers = dict.fromkeys(allowed, 0.5)
        return Decision(
            strategy=strategy, difficulty=0.5, scores=numbers, costs=numbers, utilities=numbers, reason="in turn",
            stage=features.stage,
        )  # fmt: skip

    def card(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("place", ["attempt", "plan", "examples"])
def test_an_adapter_of_a_changed_base_reaches_no_shared_folder(
    place: str, together: bool, plug_in: Callable[..., None], tmp_path: Path
) -> None:
    learner = learner_with(tmp_path)
    plug_in(learner, place)
    controller = Controller(learner, FixedPolicy("writer"))
    with pytest.raises(BaseChangedError):
        controller.solve_many([TASK, OTHER]) if together else controller.solve(TASK)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BaseChangedError, match="it answers no more"):
        controller.solve(TASK, strategy="in_context")
    next_process, alone = learner_with(tmp_path), learner_with(tmp_path / "empty")
    results = [Controller(each, FixedPolicy("writer")).solve(TASK) for each in (next_process, alone)]
    assert results[0].answer == results[1].answer
    assert results[0].attempts == tuple(replace(a, cost=results[0].attempts[0].cost) for a in results[1].attempts)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


@pytest.mark.parametrize("place", ["plan", "examples"])
def test_no_shipped_strategy_publishes_what_it_trained_after_a_plug_in_wrote(
    place: str, plug_in: Callable[..., None], tmp_path: Path
) -> None:
    learner = learner_with(tmp_path)
    plug_in(learner, place)
    controller = Controller(learner, Alternating("writer", "ttt_in_context"))
    with pytest.raises(BaseChangedError):
        controller.solve_many([TASK, OTHER])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["plan", "answers_per_query"])
def test_a_write_while_costs_are_compared_is_detected_before_training_is_kept(
    place: str, plug_in: Callable[..., None], tmp_path: Path
) -> None:
    learner = learner_with(tmp_path)
    if place == "answers_per_query":  # is called where an adapter exists
        Controller(learner, FixedPolicy("writer")).solve(TASK)
    saved = set(tmp_path.iterdir())
    plug_in(learner, place)
    with pytest.raises(BaseChangedError):
        Controller(learner, Alternating("ttt_in_context"), budget="60s").solve(TASK)
    assert set(tmp_path.iterdir()) == saved


@pytest.mark.parametrize("place", ["attempt", "plan", "examples", "answer"])
def test_no_outcome_of_a_changed_base_reaches_the_store(
    place: str, plug_in: Callable[..., None], tmp_path: Path
) -> None:
    learner = learner_with(tmp_path / "adapters")
    plug_in(learner, place)
    store = OutcomeStore(tmp_path / "store")
    chosen = [get_strategy("writer"), get_strategy("zero_shot")]
    with pytest.raises(BaseChangedError):
        collect(learner, [TASK], chosen, [0], store)
    assert {outcome.strategy for outcome in store.read()} == {"in_context"}, "it came before the write"
    assert list((tmp_path / "adapters").iterdir()) == []


@pytest.mark.parametrize("place", ["attempt", "answer"])
def test_no_row_of_a_changed_base_is_reported(place: str, plug_in: Callable[..., None], tmp_path: Path) -> None:
    learner = learner_with(tmp_path)
    plug_in(learner, place)
    rows: list[str] = []
    with pytest.raises(BaseChangedError):
        evaluate(
            Controller(learner, FixedPolicy("in_context")), [TASK], ["in_context", "writer", "zero_shot"],
            on_row=lambda row: rows.append(row.strategy),
        )  # fmt: skip
    assert rows == ["in_context"]


@pytest.mark.parametrize("together", [False, True])
def test_a_write_before_an_interruption_is_raised_in_its_place(
    together: bool, plug_in: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_with(tmp_path)
    plug_in(learner, "attempt")
    write = Writer.write

    def write_and_interrupt(self: Writer, place: str) -> None:
        if place == self.place:
            write(self, place)
            raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "write", write_and_interrupt)
    controller = Controller(learner, FixedPolicy("writer"))
    with pytest.raises(BaseChangedError):
        controller.solve_many([TASK, OTHER]) if together else controller.solve(TASK)
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class Returns(Writer):
    """A plug-in that returns what it is given."""

    name: str = "returns"
    cost_class: CostClass = "read"
    returned: ClassVar[Any] = None

    def attempt(
        self, learner: Learner, task: Task, *, seed: int = 0, deadline: float = math.inf, on_step: OnStep | None = None
    ) -> Attempt:
        return self.returned


def solved_by(returned: object, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(Returns, "returned", returned)
    learner = Learner(wrap_model(tiny_model("llama"), tiny_tokenizer(), prompt_format="standard"))
    strategies()
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    registry.register(Returns)
    return Controller(learner, FixedPolicy("returns")).solve(TASK)


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        (None, "attempt: expected an Attempt; received a NoneType"),
        ("8 7", "attempt: expected an Attempt; received a str"),
        (Attempt("returns", (8, 7), None, 0.5), "text: expected a text; received a NoneType"),  # type: ignore[arg-type]
        (Attempt("returns", (8, 7), "\ud800", 0.5), "text: expected a text that UTF-8 can hold; received '\\ud800'"),
        (Attempt("returns", (8, 7), "8 7", 7.0), "confidence: expected a number between 0 and 1; received 7.0"),
        (Attempt("returns", (8, 7), "8 7", math.nan), "confidence: expected a number between 0 and 1; received nan"),
        (Attempt("returns", (8, 7), "8 7", torch.tensor(0.5)), "confidence: expected a number between 0 and 1"),
        (Attempt("returns", {1, 2}, "1 2", 0.5), "value: expected a list of integers"),  # type: ignore[arg-type]
        (Attempt("returns", "abc", "abc", 0.5), "value: expected a list of integers"),
        (Attempt("returns", (1.5, 2), "1 2", 0.5), "value: "),  # type: ignore[arg-type]
        (
            Attempt("returns", (8, 7), "8 7", 0.5, candidates=(Candidate("abc", 1.0),)),
            "value: expected a list of integers",
        ),
    ],
)  # fmt: skip
def test_what_is_no_attempt_of_the_task_is_a_failed_one(
    returned: object, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = solved_by(returned, monkeypatch)
    (failed,) = [attempt for attempt in result.attempts if attempt.strategy == "returns"]
    assert failed.status == "failed"
    assert problem in failed.error
    assert result.answer is None or result.strategy == "in_context"
    json.dumps(result.to_plain(content=True))


@dataclass(frozen=True)
class Fails(Returns):
    """A plug-in with errors of this package, of tasks that it makes itself."""

    name: str = "fails"
    attempted: ClassVar[Callable[[Learner], Any]] = staticmethod(lambda _: None)
    answers: ClassVar[Callable[[], Any]] = staticmethod(lambda: 1)

    def answers_per_query(self, recipe: Recipe) -> int:
        return type(self).answers()

    def attempt(self, learner: Learner, task: Task, **more: Any) -> Attempt:
        return type(self).attempted(learner)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> type[Fails]:
    strategies()
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    registry.register(Fails)
    return Fails


@pytest.mark.parametrize(
    ("attempted", "problem"),
    [
        (lambda learner: learner.answer([make_task([("a" * 4000, "b")], "c")]), "TooLongError: task: the prompt is"),
        (lambda learner: make_task([([1], [2])], "x"), "TaskError: query: expected a list of integers"),
        (lambda learner: get_strategy("nowhere"), "StrategyError: no strategy is called 'nowhere'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("together", [False, True])
def test_an_error_about_what_a_plug_in_made_is_a_failed_attempt(
    attempted: Callable[[Learner], Any], problem: str, together: bool, failing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failing, "attempted", staticmethod(attempted))
    learner = Learner(wrap_model(tiny_model("llama"), tiny_tokenizer(), prompt_format="standard"))
    controller = Controller(learner, FixedPolicy("fails"))
    result = controller.solve_many([TASK])[0] if together else controller.solve(TASK)
    assert result.status != "refused"
    (failed,) = [attempt for attempt in result.attempts if attempt.strategy == "fails"]
    assert failed.error.startswith(problem)


class Wordless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def raising(error: BaseException) -> Any:
    def attempted(learner: Learner) -> Attempt:
        raise error

    return staticmethod(attempted)


Solve = Callable[[Controller], Any]
WAYS: dict[str, Solve] = {
    "solve": lambda controller: controller.solve(TASK),
    "together": lambda controller: controller.solve_many([TASK, OTHER], batch_size=2)[0],
    "scheduler": lambda controller: scheduled(controller),
    "stream": lambda controller: list(controller.stream(TASK))[-1],
    "asolve": lambda controller: asyncio.run(controller.asolve(TASK)),
}


def scheduled(controller: Controller, **more: Any) -> Any:
    with controller.scheduler() as scheduler:
        return scheduler.submit(TASK, **more).result(60)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (SystemExit(3), "SystemExit: 3"), (GeneratorExit(), "GeneratorExit: "), (BaseException("own"), "own"),
        (asyncio.CancelledError("inner"), "CancelledError: inner"), (Wordless(), "Wordless: its message cannot be"),
        (BaseExceptionGroup("both", [SystemExit(1), ValueError(2)]), "BaseExceptionGroup: both"),
        (StopIteration(1), "StopIteration: 1"), (ValueError("\ud800"), "ValueError: \ufffd"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)  # fmt: skip
def test_whatever_a_plug_in_raises_is_a_failed_attempt(
    error: BaseException, problem: str, way: str, failing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failing, "attempted", raising(error))
    learner = Learner(wrap_model(tiny_model("llama"), tiny_tokenizer(), prompt_format="standard"))
    result = WAYS[way](Controller(learner, FixedPolicy("fails")))
    (failed,) = [attempt for attempt in result.attempts if attempt.strategy == "fails"]
    assert (failed.status, problem in failed.error) == ("failed", True)
    json.dumps(result.to_plain(content=True)).encode()
    assert learner.verify(full=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("grouped", [False, True])
def test_an_interruption_by_the_user_passes_a_plug_in(
    grouped: bool, way: str, failing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = BaseExceptionGroup("both", [KeyboardInterrupt(), ValueError(2)]) if grouped else KeyboardInterrupt()
    monkeypatch.setattr(failing, "attempted", raising(error))
    learner = Learner(wrap_model(tiny_model("llama"), tiny_tokenizer(), prompt_format="standard"))
    with pytest.raises(type(error)):
        WAYS[way](Controller(learner, FixedPolicy("fails")))
    assert learner.verify(full=True)


@dataclass(frozen=True)
class PlanFails(Writer):
    """A plug-in that ends the program where it plans an adapter."""

    name: str = "plan_fails"

    def plan(self, learner: Learner, task: Task, seed: int) -> AdapterPlan:
        raise SystemExit(4)

    def attempt(self, learner: Learner, task: Task, **more: Any) -> Attempt:
        self.plan(learner, task, 0)
        raise AssertionError


@pytest.mark.parametrize("way", ["together", "scheduler"])
def test_a_plan_that_ends_the_program_is_a_failed_attempt(way: str, failing: Any) -> None:
    registry.register(PlanFails)
    learner = Learner(wrap_model(tiny_model("llama"), tiny_tokenizer(), prompt_format="standard"))
    result = WAYS[way](Controller(learner, FixedPolicy("plan_fails")))
    (failed,) = [attempt for attempt in result.attempts if attempt.strategy == "plan_fails"]
    assert failed.error == "SystemExit: 4"


RAISED = [
    ValueError("callback"), SystemExit(5), StopIteration(1), asyncio.CancelledError("callback"),
    StrategyError("callback"), Cancelled("callback"),
]  # fmt: skip


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("way", ["solve", "alone", "together", "scheduler", "evaluate"])
def test_what_a_callback_raises_is_raised_whenever_it_is_called(
    way: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    learner = Learner(
        wrap_model(tiny_model("llama"), tiny_tokenizer(), prompt_format="standard", recipes={"ttt_direct": QUICK})
    )
    controller = Controller(learner, FixedPolicy("ttt_direct"))

    def run(on_event: Callable[[Any], None]) -> Any:
        learner.clear()
        if way == "solve":
            return controller.solve(TASK, on_event=on_event)
        if way in ("alone", "together"):
            size = 1 if way == "alone" else 2
            return controller.solve_many([TASK, OTHER], batch_size=size, on_event=on_event)
        if way == "evaluate":
            return evaluate(controller, [TASK], ["ttt_direct"], on_event=on_event)
        return scheduled(controller, on_event=on_event)

    events: list[Any] = []
    run(events.append)
    kinds = [(event["event"], event.get("phase") == "training") for event in events]
    assert {kind for kind, _ in kinds} >= {"step", "phase"}
    for number in map(kinds.index, dict.fromkeys(kinds)):
        calls: list[Any] = []

        def fails(event: Any, calls: list[Any] = calls, last: int = number) -> None:
            calls.append(event)
            if len(calls) > last:
                raise error

        with pytest.raises(type(error)) as raised:
            run(fails)
        assert raised.value is error
        assert len(calls) == number + 1, "it is not called again"
        assert raised.value.__context__ is None, "what lies between is not part of the error"
    assert "failed" not in caplog.text, "the strategy has not failed"
    assert learner.verify(full=True)


def broken() -> int:
    raise ValueError("answers")


@pytest.mark.parametrize("answers", [lambda: None, lambda: "3", lambda: 0, lambda: -3, lambda: True, broken])
def test_a_plug_in_that_does_not_say_how_many_answers_it_gives_is_refused_or_counts_as_one(
    answers: Callable[[], Any], failing: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(failing, "answers", staticmethod(answers))
    monkeypatch.setattr(failing, "attempted", staticmethod(lambda learner: Attempt("fails", (8, 7), "8 7", 0.5)))
    learner = Learner(wrap_model(tiny_model("llama"), tiny_tokenizer(), prompt_format="standard"))
    result = Controller(learner, FixedPolicy("fails")).solve(TASK, budget=60)  # it was registered before
    assert (result.strategy, result.answer) == ("fails", (8, 7))
    assert "fails does not say how many answers it gives" in caplog.text
    with pytest.raises(StrategyError, match=r"Fails: answers_per_query cannot be used .*returns 1"):
        registry.register(failing)


class Own:
    """A policy of a program."""

    name = "own"

    def __init__(self, decided: Callable[[], Any]) -> None:
        self.decided = decided

    def needs_more(self, features: object) -> bool:
        return False

    def decide(self, features: object, allowed: object, *, tried: object = ()) -> Any:
        return self.decided()

    def card(self) -> dict[str, Any]:
        return {}


def decided(strategy: str) -> Decision:
    return Decision(strategy=strategy, difficulty=0.0, scores={}, costs={}, utilities={}, reason="mine", stage=0)


@pytest.mark.parametrize(
    ("decision", "problem"),
    [
        (lambda: None, "the policy own: expected a Decision from decide; received None"),
        (lambda: "in_context", "the policy own: expected a Decision from decide; received 'in_context'"),
        (lambda: {}["k"], "the policy own failed: KeyError: 'k'"),
        (lambda: decided("nowhere"), "the policy own: expected a strategy, in_context, .*; received 'nowhere'"),
        (lambda: decided("measure"), "the policy own: expected a strategy, in_context, .*; received 'measure'"),
    ],
)  # fmt: skip
def test_what_is_no_decision_of_a_policy_is_its_error(decision: Callable[[], Any], problem: str) -> None:
    learner = Learner(wrap_model(tiny_model("llama"), tiny_tokenizer(), prompt_format="standard"))
    with pytest.raises(PolicyError, match=problem):
        Controller(learner, Own(decision)).solve(TASK)
    assert "mine" in Controller(learner, Own(lambda: decided("in_context"))).solve(TASK).reason


def test_a_policy_that_lacks_a_member_is_refused_by_its_name() -> None:
    learner = Learner(wrap_model(tiny_model("llama"), tiny_tokenizer(), prompt_format="standard"))
    incomplete = type("Incomplete", (), {"name": "x", "needs_more": None, "decide": None})()
    with pytest.raises(TypeError, match="which lacks card of a Policy"):
        Controller(learner, incomplete)
    with pytest.raises(TypeError, match="which lacks card of a Policy"):
        Controller.from_pretrained(policy=incomplete)
    with pytest.raises(TypeError, match=r"received 3\.5$"):
        Controller(learner, 3.5)  # type: ignore[arg-type]


def test_a_plug_in_whose_recipe_is_none_is_refused(failing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failing, "default_recipe", {"rank": 4})
    with pytest.raises(StrategyError, match=r"expected a Recipe or None as default_recipe; received \{'rank': 4\}"):
        registry.register(failing)


def test_an_attempt_has_the_name_of_its_strategy_and_a_canonical_value(monkeypatch: pytest.MonkeyPatch) -> None:
    confidence = np.float32(0.5)
    result = solved_by(Attempt("in_context", [8, 7], "8 7", confidence), monkeypatch)  # type: ignore[arg-type]
    assert (result.strategy, result.answer, result.right) == ("returns", (8, 7), True)
    assert type(result.attempts[-1].confidence) is float


@dataclass(frozen=True)
class Careless(Writer):
    """A plug-in that leaves parameters with gradients, and the recording of gradients switched."""

    name: str = "careless"
    raises: ClassVar[bool] = False

    def attempt(self, learner: Learner, task: Task, **more: Any) -> Attempt:
        for parameter in learner.loaded.model.parameters():
            parameter.requires_grad_(not parameter.requires_grad)
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        torch.set_grad_enabled(not torch.is_grad_enabled())
        if self.raises:
            raise KeyError("careless")
        return from_answer(self.name, learner.answer([task])[0])


@pytest.mark.parametrize("raises", [False, True])
def test_gradients_are_as_before_a_plug_in(raises: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strategies()
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    registry.register(Careless)
    monkeypatch.setattr(Careless, "raises", raises)
    learner = learner_with(tmp_path)
    parameters = list(learner.loaded.model.parameters())
    for parameter in parameters[::2]:
        parameter.requires_grad_(True)
        parameter.grad = torch.zeros_like(parameter)
    before = [(p.requires_grad, p.grad) for p in parameters]
    for recording in (True, False):
        with torch.set_grad_enabled(recording):
            result = Controller(learner, FixedPolicy("careless")).solve(TASK)
            assert torch.is_grad_enabled() == recording
        assert ("KeyError" in result.attempts[0].error) == raises
        for parameter, (required, gradient) in zip(parameters, before, strict=True):
            assert parameter.requires_grad == required
            assert parameter.grad is gradient
    learner.verify(full=True)
