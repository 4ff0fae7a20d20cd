"""Arguments of another kind are refused before any work, with what was received and what is expected."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from autottt import Controller
from autottt.controller.budget import Budget
from autottt.policies.policy import FixedPolicy
from autottt.ttt_core.errors import AutotttError, PolicyError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def controller() -> Controller:
    return Controller(Learner.wrap(tiny_model("llama"), tiny_tokenizer()), FixedPolicy("in_context"))


@pytest.mark.parametrize("strategy", [1, ["in_context"], b"in_context", {}])
@pytest.mark.parametrize("call", ["solve", "solve_many", "as_node"])
def test_a_strategy_is_a_text(controller: Controller, task: Task, call: str, strategy: Any) -> None:
    arguments = {"solve": (task,), "solve_many": ([task],), "as_node": ()}[call]
    with pytest.raises(AutotttError, match=r"strategy: expected the name of one.*received.*Known: in_context"):
        getattr(controller, call)(*arguments, strategy=strategy)


@pytest.mark.parametrize("budget", [0, -1, True, [], {}, (1, 2), b"3s", float("nan")])
def test_a_budget_is_a_number_above_zero_or_a_text(controller: Controller, task: Task, budget: Any) -> None:
    with pytest.raises(AutotttError, match="budget: expected seconds above 0, as a number; received"):
        controller.solve(task, budget=budget)


@pytest.mark.parametrize("amounts", [{"seconds": "3"}, {"multiples": None}, {"multiples": True}])
def test_amounts_of_a_budget_are_numbers(amounts: dict[str, Any]) -> None:
    with pytest.raises(AutotttError, match=f"budget: expected {next(iter(amounts))} above 0"):
        Budget(**amounts)


def test_a_budget_too_large_for_a_float_is_no_limit() -> None:
    assert Budget.of(10**400) == Budget()
    assert str(Budget.of(10**400)) == "unlimited"
    with pytest.raises(AutotttError, match="above 0"):
        Budget(seconds=-(10**400))


@pytest.mark.parametrize("size", ["3", 0, -2, 2.5, True, None])
def test_a_batch_size_is_an_integer_of_at_least_one(controller: Controller, task: Task, size: Any) -> None:
    with pytest.raises(ValueError, match="batch_size: expected an integer of at least 1; received"):
        controller.solve_many([task], batch_size=size)


@pytest.mark.parametrize("tasks", [None, 5])
def test_tasks_are_several(controller: Controller, tasks: Any) -> None:
    with pytest.raises(TypeError, match="tasks: expected a list of tasks; received"):
        controller.solve_many(tasks)


@pytest.mark.parametrize("function", [5, "print"])
def test_a_callback_can_be_called(controller: Controller, task: Task, function: Any) -> None:
    for call in (
        lambda: controller.solve(task, on_event=function),
        lambda: controller.solve_many([task], on_event=function),
        lambda: controller.solve_many([task], on_result=function),
    ):
        with pytest.raises(TypeError, match=r"on_(event|result): expected a function of one argument; received"):
            call()


@pytest.mark.parametrize("scope", [5, None])
def test_a_scope_is_a_text(controller: Controller, scope: Any) -> None:
    with pytest.raises(TypeError, match="scope: expected a text"):
        controller.for_scope(scope)


@pytest.mark.parametrize("name", ["policy", "trace"])
def test_a_policy_and_a_recorder_have_their_methods(controller: Controller, name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}: expected .*; received 5"):
        Controller(controller.learner, **{name: 5})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=f"{name}: expected .*; received 5"):
        Controller.from_pretrained(**{name: 5})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["model", "adapters", "starting_adapter", "shadow"])
def test_paths_are_paths(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}: expected a path"):
        Controller.from_pretrained(**{name: 5})  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value"), [("explore", "x"), ("explore", True), ("cost_weight", "x")])
def test_numbers_of_a_policy_are_numbers(name: str, value: Any) -> None:
    with pytest.raises(AutotttError, match=f"{name.replace('_', ' ')}: expected .*; received {value!r}"):
        Controller.from_pretrained(**{name: value})


@pytest.mark.parametrize("size", [-1, 0, "1GB", True])
def test_a_bound_of_memory_is_a_number_above_zero(controller: Controller, size: Any) -> None:
    with pytest.raises(AutotttError, match="memory_bytes: expected a number of bytes above 0; received"):
        Learner(controller.learner.loaded, memory_bytes=size)


@pytest.mark.parametrize("way", [pickle.dumps, copy.deepcopy])
def test_a_controller_is_not_copied_to_other_processes(controller: Controller, way: Any) -> None:
    for value in (controller, controller.learner):
        with pytest.raises(TypeError, match="make one in each process"):
            way(value)


def test_a_strategy_leaves_a_policy_no_choice() -> None:
    with pytest.raises(PolicyError, match=r"strategy='in_context' and policy='public'.*give one"):
        Controller.from_pretrained(strategy="in_context", policy="public")
