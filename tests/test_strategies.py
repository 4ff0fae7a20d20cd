"""One contract over every strategy that the registry finds, and what some of them promise besides."""

from __future__ import annotations

import importlib
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from autottt import strategies as package
from autottt.strategies import registry, voting
from autottt.strategies.adapter_training import adapter_answers
from autottt.strategies.base import Attempt, Candidate, Cost, answer_count, recipe_for, run
from autottt.strategies.registry import get_strategy, register, strategies
from autottt.strategies.voting import _ranked, _tally
from autottt.ttt_core.engine.adapter_plan import AdapterPlan, TrainingExamples
from autottt.ttt_core.engine.adapter_trainer import AdapterTrainer
from autottt.ttt_core.engine.answering import Answer, Answerer
from autottt.ttt_core.errors import AdaptationError, StrategyError, TooLongError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.model.context_window import ContextWindow
from autottt.ttt_core.model.generation import TokenScores
from autottt.ttt_core.model.loading import wrap_model
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.augmentation import leave_one_out_orders
from autottt.ttt_core.tasks.kinds import KINDS, make_task
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = list(strategies())
TRAINED = [n for n, s in strategies().items() if s.cost_class == "train"]
QUICK = Recipe(
    rank=4, alpha=8.0, dropout=0.1, learning_rate=1e-2, max_steps=2, batch_size=2, transformations=2, views=3
)  # fmt: skip
TASKS = {
    "grid": make_task([([[1, 0]], [[0, 1]]), ([[2, 0]], [[0, 2]]), ([[3, 3], [4, 0]], [[3, 3], [0, 4]])], [[5, 0]]),
    "grid1d": make_task([([[1, 0]], [[0, 1]]), ([[2, 0]], [[0, 2]]), ([[0, 3]], [[3, 0]])], [[5, 0]], kind="grid1d"),
    "list": make_task([([1, 2], [2, 1]), ([3], [3]), ([4, 5], [5, 4])], [6, 7]),
    "text": make_task([("ab", "ba"), ("cd", "dc"), ("e", "e")], "fg", instruction="Reverse."),
}  # fmt: skip
every_strategy = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def learner(monkeypatch: pytest.MonkeyPatch) -> Learner:
    """Quick recipes for every strategy, and answers of a few tokens."""
    real = ContextWindow.max_new_tokens
    monkeypatch.setattr(ContextWindow, "max_new_tokens", lambda self, task: min(8, real(self, task)))
    recipes = dict.fromkeys(NAMES, QUICK)
    return Learner(wrap_model(tiny_model("llama"), tiny_tokenizer(), prompt_format="standard", recipes=recipes))


def timeless(attempt: Attempt) -> Attempt:
    """Without what a clock says."""
    record = attempt.training_record
    training = record and replace(record, seconds=0.0, evaluation_seconds=0.0)
    return replace(attempt, cost=replace(attempt.cost, seconds=0.0), training_record=training)


def test_a_step_has_no_more_prompts_than_there_are_different_ones(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two demonstrations make two leave-one-out prompts, each in one order."""
    seen: list[tuple[int, int]] = []
    real = AdapterTrainer.adapt_many

    def adapt_many(self: AdapterTrainer, examples: Any, recipes: Any, *given: Any, **settings: Any) -> Any:
        seen.extend((len(one), recipe.batch_size) for one, recipe in zip(examples, recipes, strict=True))
        return real(self, examples, recipes, *given, **settings)

    monkeypatch.setattr(AdapterTrainer, "adapt_many", adapt_many)
    task = replace(TASKS["list"], demonstrations=TASKS["list"].demonstrations[:2])
    strategy = replace(get_strategy("ttt_in_context"), recipe=replace(QUICK, batch_size=6))  # type: ignore[type-var]
    assert run(strategy, learner, task).training_record is not None
    assert seen == [(2, 2)]


@pytest.mark.parametrize(("prompts", "batch"), [(0.0, 6), (0.5, 1), (2.5, 2), (100.0, 6)])
def test_a_step_has_fewer_prompts_where_they_are_long(prompts: float, batch: int, learner: Learner) -> None:
    task = TASKS["list"]
    recipe = replace(QUICK, batch_size=6, max_steps=20)
    orders = leave_one_out_orders(task, 100, random.Random(0))
    longest = max(learner.window.length(t) for t in orders)
    recipe = replace(recipe, max_tokens_per_step=round(prompts * longest))
    plan = AdapterPlan("key", task, recipe, 0, lambda: TrainingExamples([orders]))
    examples, fitted = plan.fitted_examples(learner.window)
    assert ([len(fold) for fold in examples.folds], fitted.batch_size) == ([6], batch)


# --- the contract ---------------------------------------------------------------------------------------------------


@every_strategy
@pytest.mark.parametrize("kind", KINDS)
def test_an_attempt_keeps_the_contract(name: str, kind: str, learner: Learner, unchanged: Any) -> None:
    task = TASKS[kind]
    steps: list[int] = []
    with unchanged(learner.loaded.model):
        attempt = run(get_strategy(name), learner, task, seed=3, on_step=lambda step, loss: steps.append(step))
        learner.verify(full=True)
    assert attempt.strategy == name
    assert attempt.status == ("answered" if attempt.value is not None else "unreadable")
    assert attempt.error == ""
    assert 0 <= attempt.confidence <= 1
    assert attempt.cost.seconds > 0
    assert attempt.cost.forward_tokens >= len(learner.window.encode(task.with_demonstrations(())).ids)
    assert (attempt.cost.backward_tokens > 0) == (attempt.training_record is not None) == (name in TRAINED)
    assert steps == ([1, 2] if name in TRAINED else [])
    if attempt.value is not None:
        assert KINDS[kind].check(attempt.value) == attempt.value
    learner.clear()
    assert timeless(run(get_strategy(name), learner, task, seed=3)) == timeless(attempt)


@every_strategy
def test_an_answer_does_not_depend_on_what_was_answered_before(name: str, learner: Learner) -> None:
    first = TASKS["list"]
    second = replace(first, query=(8, 9, 4), id="second")
    alone = run(get_strategy(name), learner, second)
    learner.clear()
    run(get_strategy(name), learner, first)
    after = run(get_strategy(name), learner, second)
    assert (after.value, after.text, after.candidates) == (alone.value, alone.text, alone.candidates)
    assert after.confidence == pytest.approx(alone.confidence, rel=1e-3)
    losses = [a.training_record.losses if a.training_record is not None else () for a in (after, alone)]
    assert losses[0] == losses[1]


@every_strategy
def test_too_few_demonstrations_are_refused(name: str, learner: Learner) -> None:
    strategy = get_strategy(name)
    few = TASKS["list"].with_demonstrations(TASKS["list"].demonstrations[: max(0, strategy.min_demonstrations - 1)])
    if strategy.min_demonstrations:
        with pytest.raises(
            StrategyError,
            match=rf"task: {name} needs {strategy.min_demonstrations} .* has {strategy.min_demonstrations - 1}",
        ):
            run(strategy, learner, few)
    enough = few.with_demonstrations(TASKS["list"].demonstrations[: strategy.min_demonstrations])
    assert run(strategy, learner, enough).status in ("answered", "unreadable")


@every_strategy
def test_a_failure_to_adapt_is_a_failed_attempt_and_never_an_answer(
    name: str, learner: Learner, monkeypatch: pytest.MonkeyPatch, unchanged: Any
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AdaptationError("the loss is not a number")

    owner, methods = (AdapterTrainer, ("adapt_many", "cross_validate")) if name in TRAINED else (Answerer, ("answers",))
    for method in methods:
        monkeypatch.setattr(owner, method, fail)
    with unchanged(learner.loaded.model):
        attempt = run(get_strategy(name), learner, TASKS["grid"])
    assert attempt.status == "failed"
    assert (attempt.value, attempt.text, attempt.confidence) == (None, "", 0.0)
    assert attempt.error == "the loss is not a number"


@every_strategy
def test_other_errors_are_raised_and_the_model_is_as_it_was(name: str, learner: Learner, unchanged: Any) -> None:
    long = make_task([("a" * 200, "b" * 200)] * 3, "c" * 600)
    with unchanged(learner.loaded.model), pytest.raises(TooLongError):
        run(get_strategy(name), learner, long)
    assert learner.verify(full=True).method == "full"


@every_strategy
def test_a_deadline_that_has_passed_leaves_no_time_to_train(name: str, learner: Learner) -> None:
    attempt = run(get_strategy(name), learner, TASKS["list"], deadline=time.monotonic() - 1)
    assert attempt.cost.backward_tokens == 0
    if name in TRAINED:
        assert attempt.training_record is not None
        assert (attempt.training_record.steps, attempt.training_record.stop_reason) == (0, "deadline")


@every_strategy
def test_its_docstring_says_the_idea_when_it_wins_when_it_loses_and_the_folder_lists_it(name: str) -> None:
    strategy = get_strategy(name)
    doc = str(type(strategy).__doc__)
    assert doc.startswith("Idea: ")
    assert " Wins " in doc.replace("\n", " ")
    assert " Loses " in doc.replace("\n", " ")
    assert f"| `{name}` | {strategy.cost_class} | {strategy.min_demonstrations} |" in str(package.__doc__)


# --- the registry ---------------------------------------------------------------------------------------------------


def test_strategies_come_cheapest_first() -> None:
    order = ["read", "sample", "train"]
    ranks = [order.index(s.cost_class) for s in strategies().values()]
    assert ranks == sorted(ranks)
    assert {"zero_shot", "in_context", "in_context_vote", *TRAINED} <= set(NAMES)
    assert all(strategy.name == name for name, strategy in strategies().items())


def test_an_unknown_name_gives_the_nearest_and_all_there_are() -> None:
    with pytest.raises(StrategyError, match=r"'ttt_incontext'; did you mean 'ttt_in_context'\? Known: .*zero_shot"):
        get_strategy("ttt_incontext")
    with pytest.raises(StrategyError, match=r"'xyz'\. Known: "):
        get_strategy("xyz")


NEW = '''
"""`echo`: gives the query back."""
from dataclasses import dataclass
from .base import Attempt
from .registry import register

@register
@dataclass(frozen=True)
class Echo:
    name: str = "echo"
    cost_class: str = "read"
    min_demonstrations: int = 0
    recipe: object = None
    default_recipe: object = None

    def answers_per_query(self, recipe):
        return 1

    def attempt(self, learner, task, *, seed=0, deadline=0.0, on_step=None):
        return Attempt(self.name, task.query, "", 1.0)
'''


@pytest.fixture
def with_echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "echo.py").write_text(NEW)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    registry._DISCOVERED.clear()
    yield
    sys.modules.pop(f"{package.__name__}.echo", None)
    if hasattr(package, "echo"):
        del package.echo
    registry._DISCOVERED.clear()


def test_a_strategy_is_one_file(with_echo: None, learner: Learner) -> None:
    assert set(strategies()) == {*NAMES, "echo"}
    assert run(get_strategy("echo"), learner, TASKS["list"]).value == (6, 7)


def test_a_strategy_of_a_plug_in_file_is_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "plugged_echo.py"
    file.write_text(NEW.replace("from .", "from autottt.strategies.").replace('"echo"', '"plugged"'))
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(registry, "_DISCOVERED", [])
    monkeypatch.setenv(registry.PLUGINS, str(file))
    assert "plugged" in strategies()
    assert "plugged" in strategies()
    monkeypatch.setattr(registry, "_DISCOVERED", [])
    monkeypatch.setenv(registry.PLUGINS, f"{file}{os.pathsep}no.such.module")
    for _ in range(2):  # not forgotten the second time
        with pytest.raises(StrategyError, match=r"no\.such\.module cannot be imported"):
            strategies()


def test_a_plug_in_file_that_fails_is_refused_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "failing_plugin.py"
    file.write_text("raise RuntimeError('not today')\n")
    monkeypatch.setattr(registry, "_DISCOVERED", [])
    monkeypatch.setenv(registry.PLUGINS, str(file))
    for _ in range(2):
        with pytest.raises(StrategyError, match=r"failing_plugin.*RuntimeError: not today"):
            strategies()
    file.write_text("imported = True\n")
    strategies()
    assert sys.modules.pop("failing_plugin").imported


def test_a_plug_in_file_replaces_no_module_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "wave.py"  # a module of the standard library, which may not have been imported yet
    file.write_text("imported = True\n")
    monkeypatch.setattr(registry, "_DISCOVERED", [])
    monkeypatch.setenv(registry.PLUGINS, str(file))
    strategies()
    assert not hasattr(importlib.import_module("wave"), "imported")
    (name,) = (name for name, module in sys.modules.items() if getattr(module, "__file__", None) == str(file))
    monkeypatch.setattr(registry, "_DISCOVERED", [])
    before = sys.modules[name]
    strategies()
    assert sys.modules.pop(name) is before, "a file is run once"


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ({"name": "measure"}, "not measure, decide"),
        ({"name": "two words"}, "received 'two words'"),
        ({"cost_class": "cheap"}, "read, sample, train; received 'cheap'"),
        ({"min_demonstrations": -1}, "number of demonstrations, at least 0, as min_demonstrations; received -1"),
        ({"name": "ttt_direct"}, r"TttDirect and .*\.TttDirect"),
    ],
)
def test_a_strategy_that_cannot_be_used_is_not_registered(odd: dict[str, object], says: str) -> None:
    before = dict(strategies())
    members = {"recipe": None, "default_recipe": None, "answers_per_query": None, "attempt": None}
    fields = {"name": "fine", "cost_class": "read", "min_demonstrations": 0, "__module__": __name__, **members, **odd}
    with pytest.raises(StrategyError, match=says):
        register(type("TttDirect", (), fields))
    assert strategies() == before


def test_a_strategy_that_lacks_members_is_not_registered() -> None:
    fields = {"name": "fine", "cost_class": "read", "min_demonstrations": 0, "attempt": None, "__module__": __name__}
    with pytest.raises(StrategyError, match=r"recipe, default_recipe, answers_per_query missing"):
        register(type("Fine", (), fields))
    assert "fine" not in strategies()


# --- adapters that are known ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINED)
def test_another_query_of_the_same_demonstrations_finds_the_adapter(name: str, learner: Learner) -> None:
    strategy, task = get_strategy(name), TASKS["list"]
    first = run(strategy, learner, task)
    second = run(strategy, learner, replace(task, query=(1, 9), id="second"))
    assert (first.from_cache, second.from_cache) == (False, True)
    assert second.training_record == first.training_record
    assert first.cost.backward_tokens > 0 == second.cost.backward_tokens
    for other in (
        lambda: run(strategy, learner, task, seed=1),
        lambda: run(strategy, learner, replace(task, instruction="Reverse.")),
        lambda: run(strategy, learner, task.with_demonstrations(task.demonstrations[::-1])),
        lambda: run(replace(strategy, recipe=replace(QUICK, rank=2)), learner, task),  # type: ignore[type-var]
    ):
        assert not other().from_cache


def test_ttt_warm_starts_from_the_adapter_of_an_earlier_task_and_so_depends_on_the_order(learner: Learner) -> None:
    warm, reverse = get_strategy("ttt_warm"), TASKS["list"]
    near = replace(reverse, demonstrations=(*reverse.demonstrations[1:], *TASKS["list"].demonstrations[:1]), id="near")

    def solved(*tasks: Task) -> list[Attempt]:
        learner.clear()
        return [timeless(run(warm, learner, task, seed=1)) for task in tasks]

    def digest(task: Task) -> str:
        return learner.adapters.get_or_train(warm.plan(learner, task, 1))[0].weights.digest()  # type: ignore[attr-defined]

    def starts(attempts: list[Attempt]) -> list[str]:
        return [a.training_record.started_from for a in attempts if a.training_record is not None]

    one, other = solved(reverse, near), solved(near, reverse)
    assert starts(other) == ["", digest(near)]
    assert solved(reverse, near) == one, "in one order, the same seed gives the same answers"
    assert starts(one) == ["", digest(reverse)]
    assert one[0].training_record != other[1].training_record
    assert solved(near)[0] == other[0], "the first task depends on no other"


# --- votes ----------------------------------------------------------------------------------------------------------


def answer(value: Any, total: float = -1.0) -> Answer:
    return Answer(value, str(value), TokenScores((total,), (0.0,), (0.0,), (True,)), True)


def test_votes_are_counted_within_groups_and_then_over_their_first_three() -> None:
    many = [answer("a")] * 4 + [answer("b", -0.5)] * 3 + [answer("c")] * 2 + [answer("d")]
    ranked = _ranked(_tally([many, [answer("d"), answer("b")]]))
    assert [(c.value, round(c.share * 11, 9)) for c in ranked] == [("b", 4), ("a", 4), ("c", 2), ("d", 1)]


def test_the_likeliest_of_equals_comes_first() -> None:
    groups = [[answer("a", -3.0), answer("b", -0.5)], [answer("b", -9.0), answer("a", -2.0)]]
    assert _ranked(_tally(groups)) == (Candidate("b", 0.5), Candidate("a", 0.5))
    likely = [[answer("x", -4.0), answer("y", -3.0), answer("z", -2.0), answer("w", -1.0)]]
    assert [c.value for c in _ranked(_tally(likely, top=2))] == ["w", "z"]


def test_an_answer_that_cannot_be_parsed_has_no_vote() -> None:
    assert _ranked(_tally([[answer(None, 0.0)] * 5, [answer((1,))]])) == (Candidate((1,), 1.0),)
    assert _ranked(_tally([[answer(None)]])) == _ranked(_tally([])) == ()


def test_views_are_mapped_back_before_they_vote(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    def right(self: Learner, tasks: list[Task], *_: Any, **__: Any) -> list[list[Answer]]:
        return [[answer(tuple(row[::-1] for row in t.query)) for t in tasks]]  # type: ignore[union-attr]

    monkeypatch.setattr(Learner, "answers", right)
    shown = [([[1, 0, 2]], [[2, 0, 1]]), ([[3, 4]], [[4, 3]]), ([[7, 0]], [[0, 7]])]
    task = make_task(shown, [[5, 6, 0]], kind="grid1d")
    for name in ("in_context_vote", "ttt_augmented", "ttt_crossfit"):
        strategy: Any = get_strategy(name)
        views = replace(strategy, recipe=replace(QUICK, views=6, transformations=4))
        attempt = run(views, learner, task)
        assert attempt.candidates == (Candidate(((0, 6, 5),), 1.0),)
        assert (attempt.value, attempt.text, attempt.confidence) == (((0, 6, 5),), "0 6 5", 1.0)


# --- values ---------------------------------------------------------------------------------------------------------


def test_costs_add_up() -> None:
    assert Cost(1.0, 2, 3) + Cost(0.5, 20, 30) == Cost(1.5, 22, 33)


def test_confidence_is_the_probability_of_the_greedy_answer(learner: Learner) -> None:
    attempt = run(get_strategy("in_context"), learner, TASKS["list"])
    (given,) = learner.answer([TASKS["list"]])
    assert attempt.confidence == pytest.approx(math.exp(given.scores.total))
    assert attempt.text == given.text


def test_a_name_that_is_taken_is_refused_when_a_strategy_registers():
    with pytest.raises(StrategyError, match="two strategies are called 'in_context'"):

        @registry.register
        @dataclass(frozen=True)
        class Rival:
            name: str = "in_context"
            cost_class: str = "read"
            min_demonstrations: int = 0
            recipe: None = None
            default_recipe: None = None
            answers_per_query: None = None
            attempt: None = None


# --- folds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 4, 5])
@pytest.mark.parametrize("name", ["ttt_race", "ttt_crossfit"])
def test_the_answers_of_folds_are_counted_as_they_are_planned(
    name: str, count: int, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy: Any = get_strategy(name)
    task = make_task([([n, n + 1], [n + 1, n]) for n in range(count)], [7, 8])
    folds = len(strategy.plan(learner, task, 0).make_examples().folds)
    recipes = learner.loaded.recipes
    assert answer_count(strategy, recipes, task) == folds * recipe_for(strategy, recipes, "list").views
    assert adapter_answers(learner, [strategy], task, 0)[1] == {name: answer_count(strategy, recipes, task)}


def test_a_race_is_planned_once(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = voting.distinct_transformations

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(voting, "distinct_transformations", counted)
    run(get_strategy("ttt_race"), learner, TASKS["list"])
    assert len(calls) == 1


# --- racing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "steps"), [(1e-12, 3), (3e-2, 12)])
def test_a_race_gives_up_after_a_quarter_of_the_steps_where_training_does_not_pay(
    rate: float, steps: int, learner: Learner, unchanged: Any
) -> None:
    """At a rate of nearly 0 nothing improves; at a high one the likelihood of the held-out demonstrations rises."""
    recipe = replace(QUICK, learning_rate=rate, max_steps=12, warmup_ratio=0.0, dropout=0.0)
    pairs: list[tuple[object, object]] = [([n, n + 1], [1, 1]) for n in range(6)]
    race = replace(get_strategy("ttt_race"), recipe=recipe)  # type: ignore[type-var]
    with unchanged(learner.loaded.model):
        attempt = run(race, learner, make_task(pairs, [7, 8]))
    assert attempt.training_record is not None
    assert attempt.cross_validation is not None
    assert attempt.training_record.steps <= steps
    assert (attempt.training_record.steps == 3) == (rate < 1e-6)
    assert (attempt.cross_validation.steps == 0) == (rate < 1e-6)
    assert attempt.cross_validation.gain >= 0


def test_threads_that_ask_for_strategies_while_they_are_imported_get_all_of_them():
    program = """
import threading
from autottt.strategies.registry import strategies
counts, gate = [], threading.Barrier(8)
def ask():
    gate.wait()
    counts.append(len(strategies()))
threads = [threading.Thread(target=ask) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert counts == [len(strategies())] * 8, counts
assert counts[0] > 4
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
