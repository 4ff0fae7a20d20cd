from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from langgraph.graph import START, StateGraph

from autottt.controller import graph as graph_module
from autottt.controller import nodes
from autottt.controller.budget import Budget
from autottt.controller.controller import Controller
from autottt.controller.graph import build_graph
from autottt.controller.nodes import answering_seconds, judged
from autottt.controller.plain_tasks import task_from_plain, task_to_plain
from autottt.controller.results import Result
from autottt.controller.state import State, attempt_from_plain
from autottt.policies.exploration import ExploringPolicy
from autottt.policies.policy import Decision, FixedPolicy
from autottt.strategies.base import Attempt, Candidate, Cost, run
from autottt.strategies.registry import get_strategy, strategies
from autottt.ttt_core.engine.adapter_provider import AdapterProvider
from autottt.ttt_core.engine.adapter_trainer import AdapterTrainer
from autottt.ttt_core.engine.answering import Answerer
from autottt.ttt_core.engine.guarded_model import GuardedModel
from autottt.ttt_core.errors import (
    AdaptationError,
    BaseChangedError,
    BudgetError,
    Cancelled,
    ModelError,
    StrategyError,
    TooLongError,
)
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora.training import TrainingRecord
from autottt.ttt_core.model import generation as decoding
from autottt.ttt_core.model.loading import wrap_model
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.task import Demonstration, Task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

TASK = make_task([([1, 2], [2, 1]), ([3, 4], [4, 3]), ([5, 6], [6, 5])], [7, 8], answer=[8, 7], id="reverse")
QUICK = Recipe(
    rank=2, alpha=2.0, dropout=0.0, learning_rate=1e-3, max_steps=3, batch_size=2, transformations=2, views=3
)


@pytest.fixture(scope="module")
def learner() -> Learner:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer(), prompt_format="compact")
    learner.loaded = replace(learner.loaded, recipes=dict.fromkeys(strategies(), QUICK))
    return learner


@dataclass
class Scripted:
    """A policy that says what it is told to, in turn."""

    says: list[str]
    more: bool = False
    price: float = 1000.0
    worth: float = 0.1
    name: str = "scripted"
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def needs_more(self, features):
        return self.more

    def decide(self, features, allowed, *, tried=()):
        self.asked.append(tuple(allowed))
        wanted = next((s for s in self.says if s in allowed), "in_context")
        costs = {s: (1.0 if s == "in_context" else self.price) for s in allowed}
        return Decision(
            strategy=wanted,
            difficulty=0.5,
            scores=dict.fromkeys(allowed, 0.5),
            costs=costs,
            utilities=dict.fromkeys(allowed, self.worth),
            reason="as scripted",
            stage=features.stage,
        )

    def card(self):
        return {}


def plain(text: str) -> str:
    """Without indentation, which the formatter changes."""
    return "\n".join(line.strip() for line in text.strip().splitlines())


def test_the_drawing_in_the_docstring_and_the_documents_is_the_graph():
    drawing = plain(build_graph().get_graph().draw_mermaid(with_styles=False))
    assert drawing in plain(graph_module.__doc__ or "")
    assert drawing in plain((Path(__file__).parents[2] / "docs" / "architecture.md").read_text())


def test_every_strategy_has_a_node_and_leads_to_judge():
    edges = build_graph().get_graph().edges
    for name in strategies():
        assert {e.target for e in edges if e.source == name} == {"judge"}
        assert "decide" in {e.source for e in edges if e.target == name}


def test_revert_is_on_every_path_to_the_end():
    assert {e.source for e in build_graph().get_graph().edges if e.target == "__end__"} == {"revert"}


@pytest.mark.parametrize("name", list(strategies()))
def test_a_decided_strategy_answers_and_the_trace_tells_the_path(learner, name):
    result = Controller(learner, Scripted([name])).solve(TASK)
    assert isinstance(result, Result)
    nodes = [e["node"] for e in result.trace]
    assert nodes[:2] == ["measure", "decide"]
    assert nodes[-1] == "revert"
    assert name in nodes
    assert result.proof is not None
    assert result.proof.hash == learner.base_hash
    assert result.cost.seconds > 0
    if strategies()[name].cost_class == "train":
        assert result.attempts[0].training_record is not None
        assert result.attempts[0].training_record.steps == QUICK.max_steps


def test_an_in_context_decision_costs_no_second_pass(learner):
    learner.clear()
    result = Controller(learner, Scripted(["in_context"])).solve(TASK)
    assert result.attempts[0].cost == Cost()
    assert result.in_context is not None
    assert result.cost.forward_tokens == result.in_context.cost.forward_tokens


def test_probing_is_charged_and_shows_in_the_features(learner):
    plain = Controller(learner, Scripted(["in_context"])).solve(TASK)
    probed = Controller(learner, Scripted(["in_context"], more=True)).solve(TASK)
    assert set(plain.features) < set(probed.features)
    assert probed.cost.token_equivalents > plain.cost.token_equivalents


def test_a_failed_training_escalates_and_is_never_an_answer(learner, monkeypatch):
    def fail(*args, **kwargs):
        raise AdaptationError("no memory")

    learner.clear()
    monkeypatch.setattr(learner.trainer, "adapt_many", fail)
    policy = Scripted(["ttt_in_context", "ttt_augmented", "ttt_direct"])
    result = Controller(learner, policy).solve(TASK)
    assert [a.status for a in result.attempts[:3]] == ["failed"] * 3
    assert all(a.value is None for a in result.attempts[:3])
    assert "ttt_in_context" not in policy.asked[1]
    assert len(result.attempts) <= 4


@pytest.mark.parametrize("value", [None, (1,)])
def test_after_a_failure_nothing_is_tried_that_is_not_worth_its_price(learner, monkeypatch, value):
    monkeypatch.setattr(
        learner.trainer, "adapt_many", lambda *a, **k: (_ for _ in ()).throw(AdaptationError("no memory"))
    )
    learner.clear()
    read = Attempt("in_context", value, "?", 0.5)
    monkeypatch.setattr("autottt.policies.measurement.from_answer", lambda name, answer: read)
    result = Controller(learner, Scripted(["ttt_in_context", "ttt_direct"], worth=-0.1)).solve(TASK)
    assert [a.strategy for a in result.attempts] == ["ttt_in_context"] + ["in_context"] * (value is not None)
    assert result.answer == value
    reasons = [event["verdict"]["reason"] for event in result.trace if "verdict" in event]
    assert ("no other strategy is worth its cost" in reasons[0]) == (value is None)


def test_after_failures_the_in_context_answer_stands_and_the_reason_says_so(learner, monkeypatch):
    monkeypatch.setattr(
        learner.trainer, "adapt_many", lambda *a, **k: (_ for _ in ()).throw(AdaptationError("no memory"))
    )
    learner.clear()
    readable = Attempt("in_context", (1,), "1", 0.5)
    monkeypatch.setattr("autottt.policies.measurement.from_answer", lambda name, answer: readable)
    result = Controller(learner, Scripted(["ttt_in_context", "ttt_augmented", "ttt_direct"])).solve(TASK)
    assert result.strategy == "in_context"
    assert result.answer == (1,)
    assert "no memory" in result.reason


def test_the_verdict_of_judge():
    good, bad = Attempt("ttt_direct", (1,), "1", 0.5), Attempt("ttt_direct", None, "?", 0.5)
    failed = Attempt("ttt_direct", None, "", 0.0, error="no memory")
    read, unread = Attempt("in_context", (2,), "2", 0.1), Attempt("in_context", None, "?", 0.1)
    assert judged(good, 1, 0.0, read).action == "accept"
    assert judged(bad, 1, 10.0, read).action == "escalate"
    assert judged(failed, 1, 10.0, read).action == "escalate"
    assert judged(failed, 1, -1.0, read).action == "fall_back"
    assert judged(failed, 3, 10.0, read).action == "fall_back"
    assert judged(failed, 3, 10.0, unread).action == "accept"
    assert judged(unread, 1, 0.0, unread).action == "accept"


def test_the_judge_keeps_the_more_certain_of_the_answers_before_and_after_training():
    trained = Attempt("ttt_direct", (1,), "1", 0.5, training_record=TrainingRecord(1, (1.0,), 1.0, 9, "finished"))
    read = Attempt("in_context", (2,), "2", 0.6)
    verdict = judged(trained, 1, 10.0, read)
    assert verdict.action == "fall_back"
    assert "ttt_direct: the in-context answer is more certain (probability 0.60, probability of the adapted answer" in (
        verdict.reason
    )
    voted = judged(replace(trained, candidates=(Candidate((1,), 0.5),)), 1, 10.0, read)
    assert "vote share of the adapted answer 0.50" in voted.reason
    assert judged(trained, 1, 10.0, replace(read, confidence=0.5)).action == "accept", "it is not more certain"
    assert judged(trained, 1, 10.0, replace(read, value=None)).action == "accept", "there is nothing to fall back on"
    assert judged(trained, 1, 10.0, read, may_keep=False).action == "accept", "a promise forbids to keep it"
    assert judged(trained, 1, 10.0, read, forced=True).action == "accept", "the caller asked for this strategy"
    assert judged(replace(trained, training_record=None), 1, 10.0, read).action == "accept", "nothing was trained"


def test_a_forced_strategy_answers_even_where_the_in_context_answer_is_more_certain(learner, monkeypatch):
    sure, doubtful = Attempt("in_context", (1,), "1", 1.0), Attempt("ttt_direct", (2,), "2", 0.5)
    monkeypatch.setattr("autottt.policies.measurement.from_answer", lambda name, answer: sure)
    monkeypatch.setattr("autottt.strategies.ttt_direct.from_answer", lambda name, answer: doubtful)
    forced = Controller(learner, FixedPolicy("ttt_direct")).solve(TASK)
    assert (forced.strategy, forced.answer) == ("ttt_direct", (2,))
    decided = Controller(learner, Scripted(["ttt_direct"])).solve(TASK)
    assert (decided.strategy, decided.answer) == ("in_context", (1,))
    assert "the in-context answer is more certain (probability 1.00" in decided.reason


def test_a_budget_that_pays_for_no_training_keeps_the_in_context_answer(learner):
    result = Controller(learner, Scripted(["ttt_in_context"])).solve(TASK, budget="2x")
    assert result.strategy == "in_context"
    assert "budget" in result.reason


def test_training_stops_when_the_budget_ends(learner, monkeypatch):
    learner.clear()
    long = replace(QUICK, max_steps=100_000)
    monkeypatch.setattr(learner, "loaded", replace(learner.loaded, recipes=dict.fromkeys(strategies(), long)))
    monkeypatch.setattr(nodes, "answering_seconds", lambda *_: 3.0)  # enough on a machine that is busy otherwise
    policy = Scripted(["ttt_in_context"], price=0.0)
    result = Controller(learner, policy).solve(TASK, budget=Budget(seconds=6.0))
    assert result.attempts[0].training_record is not None
    assert result.attempts[0].training_record.stop_reason == "deadline"
    assert 0 < result.attempts[0].training_record.steps < 100_000


def test_time_reserved_for_answering_counts_every_vote():
    learner = Learner(
        wrap_model(
            tiny_model("llama"), tiny_tokenizer(), recipes={"ttt_augmented": Recipe(views=8), "in_context": Recipe()}
        )
    )
    assert answering_seconds(get_strategy("ttt_augmented"), learner, TASK, 0.5) == 4.0
    assert answering_seconds(get_strategy("in_context"), learner, TASK, 0.5) == 0.5
    own = replace(get_strategy("ttt_crossfit"), recipe=Recipe(views=3), folds=2)
    assert answering_seconds(own, learner, TASK, 0.5) == 3.0


@pytest.mark.parametrize("strategy", ["ttt_augmented", "ttt_crossfit"])
def test_a_budget_is_not_exceeded(strategy: str, learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 10% or 0.2 s; five tries, since other processes have the machine as well."""
    learner.clear()
    long = replace(QUICK, max_steps=100_000, views=2)
    monkeypatch.setattr(learner, "loaded", replace(learner.loaded, recipes=dict.fromkeys(strategies(), long)))
    monkeypatch.setitem(nodes.DEFAULT_RELATIVE_COST, "train", 0.0)  # training is begun whatever the budget
    controller = Controller(learner, FixedPolicy(strategy))
    late = []
    for budget in (1.0, 2.0, 3.0, 5.0, 8.0):
        learner.clear()
        began = time.monotonic()
        result = controller.solve(TASK, budget=Budget(seconds=budget))
        late.append(time.monotonic() - began - budget - max(0.2, 0.1 * budget))
        assert result.attempts[0].training_record is not None
        if late[-1] <= 0:
            return
    pytest.fail(f"seconds past what is allowed: {late}")


@pytest.fixture
def endless(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """An answer in context is three tokens long; one after training does not end. Passes of decoding take 20 ms each;
    their times."""
    passes: list[float] = []
    whole = decoding.forward

    def slow(*given: Any, **named: Any) -> torch.Tensor:
        time.sleep(0.02)
        passes.append(time.monotonic())
        return whole(*given, **named)

    learner.clear()
    once = replace(QUICK, max_steps=1, views=2)
    monkeypatch.setattr(learner, "loaded", replace(learner.loaded, recipes=dict.fromkeys(strategies(), once)))
    monkeypatch.setattr(decoding, "forward", slow)
    monkeypatch.setattr(decoding, "stop_ids", lambda loaded: set())
    monkeypatch.setattr(type(learner.loaded.format), "ends", ())
    monkeypatch.setattr(type(learner.loaded.format), "is_valid_prefix", lambda *given: True)
    monkeypatch.setattr(
        learner.window,
        "available_tokens",
        lambda *given: 300 if learner.adapters.cache.most_recent(1, lambda a: True, "cpu") else 3,
    )
    monkeypatch.setitem(nodes.DEFAULT_RELATIVE_COST, "train", 0.0)
    return passes


@pytest.mark.parametrize("strategy", ["ttt_in_context", "ttt_augmented"])
def test_an_answer_that_would_take_longer_than_the_budget_is_cut_short(
    strategy: str, learner: Learner, endless: list[float]
) -> None:
    began = time.monotonic()
    result = Controller(learner, FixedPolicy(strategy)).solve(TASK, budget=Budget(seconds=2.0))
    assert 10 < len(endless) < 150, "300 tokens were to come"
    assert endless[-1] < began + 3.0
    assert result.attempts[0].strategy == strategy
    assert result.attempts[0].value is None


def test_cancelling_does_not_wait_for_an_answer(learner: Learner, endless: list[float]) -> None:
    cancel = threading.Event()
    threading.Timer(1.5, cancel.set).start()
    with pytest.raises(Cancelled):
        Controller(learner, FixedPolicy("ttt_in_context")).solve(TASK, cancel=cancel)
    assert 10 < len(endless) < 150, "300 tokens were to come"


def test_a_cached_adapter_is_used_within_a_budget_that_does_not_pay_for_training(learner, monkeypatch):
    learner.clear()
    controller = Controller(learner, FixedPolicy("ttt_in_context"))
    monkeypatch.setitem(nodes.DEFAULT_RELATIVE_COST, "train", 1e6)
    before = controller.solve(TASK, budget=Budget(seconds=30.0))
    assert not before.adapted
    controller.solve(TASK)
    again = controller.solve(replace(TASK, query=(9, 8), answer=(8, 9)), budget=Budget(seconds=30.0))
    assert again.attempts[0].strategy == "ttt_in_context"
    assert again.attempts[0].from_cache


@dataclass
class TrainsThenReuses(Scripted):
    """Trains `ttt_direct`, unless another adapter is cached."""

    cached: list[dict[str, float]] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def decide(self, features, allowed, *, tried=()):
        if len(allowed) > 1:  # it does not fall back
            self.cached.append(dict(features.cached_adapters))
            self.shares.append(features.reading_share)
        self.says = [*features.cached_adapters, "ttt_direct"]
        return replace(super().decide(features, allowed, tried=tried), exclusive=True)


def test_a_policy_knows_which_adapters_are_cached_for_the_demonstrations(learner):
    learner.clear()
    policy = TrainsThenReuses([])
    controller = Controller(learner, policy)
    controller.solve(TASK, strategy="ttt_augmented")
    same_task = replace(TASK, query=(9, 8), answer=(8, 9))
    other_task = replace(TASK, demonstrations=TASK.demonstrations[::-1])
    results = [controller.solve(task) for task in (same_task, other_task)]
    assert policy.cached == [{"ttt_augmented": 3.0}, {}], "one answer for each of the recipe's views"
    assert [result.attempts[0].strategy for result in results] == ["ttt_augmented", "ttt_direct"]
    assert [result.attempts[0].from_cache for result in results] == [True, False]
    assert policy.shares == [pytest.approx(policy.shares[0]), 1.0]
    assert policy.shares[0] < 0.5, "the base has read the demonstrations for the first query"
    other_scope = controller.for_scope("another client")
    other_scope.solve(same_task)
    assert policy.cached[-1] == {}
    controller.solve(same_task, seed=1)
    assert policy.cached[-1] == {}, "another seed trains another adapter"


def test_queries_of_a_batch_share_the_adapter_that_one_of_them_trains(learner):
    learner.clear()
    policy = TrainsThenReuses([])
    tasks = [TASK, replace(TASK, query=(9, 8)), replace(TASK, demonstrations=TASK.demonstrations[::-1])]
    results = Controller(learner, policy).solve_many(tasks)
    assert policy.cached == [{}, {"ttt_direct": 1.0}, {}]
    assert [result.attempts[0].from_cache for result in results] == [False, True, False]
    learner.clear()
    cancel = threading.Event()
    policy.cached.clear()
    with pytest.raises(Cancelled):
        Controller(learner, policy).solve_many(tasks, cancel=cancel, on_event=lambda event: cancel.set())
    assert not learner.adapters.may_have_cached, "nothing is expected of a batch that has ended"


@pytest.mark.parametrize("budget", [None, "1000s"])
@pytest.mark.parametrize("kind", [list, iter])
def test_queries_of_a_call_know_how_many_share_their_adapter(learner, kind, budget):
    learner.clear()
    policy = SeesQueries([])
    other = replace(TASK, demonstrations=TASK.demonstrations[::-1])
    tasks = [TASK, other, replace(TASK, query=(9, 8)), replace(TASK, query=(8, 7))]
    Controller(learner, policy).solve_many(kind(tasks), budget=budget, batch_size=3)
    batches = {(list, None): [3, 1, 2, 1], (iter, None): [2, 1, 1, 1], (list, "1000s"): [3, 1, 2, 1]}
    assert [count for count, _ in policy.seen] == batches.get((kind, budget), [1, 1, 1, 1])
    costs = {name: cost for count, cost in policy.seen[:1] if count > 1 for name, cost in cost.items()}
    assert not costs or (costs["ttt_augmented"], costs["ttt_in_context"]) == (3.0, 1.0)
    assert policy.seen[1][1] == {}
    if (kind, budget) == (list, None):
        assert policy.shares == pytest.approx([0.43, 1.0, 0.43, 0.43], abs=0.1), "all read the demonstrations once"
        assert policy.shares[0] == policy.shares[2] == policy.shares[3]
    with pytest.raises(TypeError, match="expected a Task"):
        Controller(learner, policy).solve_many([TASK, "no task"])


@dataclass
class SeesQueries(Scripted):
    """Answers in context, and notes what it is told of queries and adapters."""

    seen: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    views: list[Collection[str]] = field(default_factory=list)

    def decide(self, features, allowed, *, tried=()):
        self.shares.append(features.reading_share)
        self.views.append(features.shared_views)
        self.seen.append((features.queries, dict(features.shared_adapters)))
        return replace(super().decide(features, allowed, tried=tried), exclusive=True)


def test_a_query_of_a_known_task_reads_its_demonstrations_neither_by_the_base_nor_by_the_adapter(learner):
    learner.clear()
    controller = Controller(learner, FixedPolicy("ttt_in_context"))
    first, second = (controller.solve(replace(TASK, query=query)) for query in ((9, 8), (8, 7)))
    shared = learner.window.encode(TASK).shared_prefix_length
    assert second.attempts[-1].from_cache
    assert first.in_context_tokens > shared
    assert second.cost.forward_tokens < 2 * (second.in_context_tokens - shared) + 20


def test_a_vote_of_a_known_task_reads_no_demonstrations_and_decisions_know_it(learner):
    learner.clear()
    policy = SeesQueries(["ttt_augmented", "ttt_augmented"])
    first, second = Controller(learner, policy).solve_many([TASK, replace(TASK, query=(9, 8))])
    assert all({"in_context_vote", "ttt_augmented"} <= set(views) for views in policy.views)
    shared, views = learner.window.encode(TASK).shared_prefix_length, QUICK.views
    assert second.attempts[-1].from_cache
    assert first.attempts[-1].cost.forward_tokens > views * shared
    assert second.attempts[-1].cost.forward_tokens < shared


def test_cancelling_a_cross_fit_waits_for_one_step_at_most(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    learner.clear()
    long = replace(QUICK, max_steps=100_000)
    monkeypatch.setattr(learner, "loaded", replace(learner.loaded, recipes=dict.fromkeys(strategies(), long)))
    cancel, steps = threading.Event(), []
    real = AdapterTrainer.cross_validate

    def crossfit(self: AdapterTrainer, *args: Any, on_step: Any, **rest: Any) -> Any:
        def counted(step: int, loss: float) -> None:
            steps.append(step)
            if step == 3:
                cancel.set()
            on_step(step, loss)

        return real(self, *args, on_step=counted, **rest)

    monkeypatch.setattr(AdapterTrainer, "cross_validate", crossfit)
    with pytest.raises(Cancelled):
        Controller(learner, FixedPolicy("ttt_crossfit")).solve(TASK, cancel=cancel)
    assert steps[-1] <= 4
    learner.verify(full=True)


def test_cancelling_waits_for_one_step_at_most(learner, monkeypatch):
    learner.clear()
    before = learner.verify(full=True)
    long = replace(QUICK, max_steps=100_000)
    monkeypatch.setattr(learner, "loaded", replace(learner.loaded, recipes=dict.fromkeys(strategies(), long)))
    cancel, taken = threading.Event(), []

    def adapt(*args, on_step=None, **rest):
        def counted(step, loss):
            taken.append(step)
            if step == 3:
                cancel.set()
            if on_step is not None:
                on_step(step, loss)

        return real(*args, on_step=counted, **rest)

    real = learner.trainer.adapt_many
    monkeypatch.setattr(learner.trainer, "adapt_many", adapt)
    controller = Controller(learner, Scripted(["ttt_in_context"]))
    with pytest.raises(Cancelled, match="cancelled by the caller"):
        controller.solve(TASK, cancel=cancel)
    assert taken == [1, 2, 3]
    taken.clear()
    cancel.clear()
    with pytest.raises(Cancelled):
        controller.solve_many([TASK, replace(TASK, id="other", query=(4, 4))], cancel=cancel)
    assert taken == [1, 2, 3]
    assert replace(learner.verify(full=True), seconds=before.seconds) == before
    learner.clear()


def test_a_stream_that_is_closed_stops_training(learner, monkeypatch):
    learner.clear()
    long = replace(QUICK, max_steps=100_000)
    monkeypatch.setattr(learner, "loaded", replace(learner.loaded, recipes=dict.fromkeys(strategies(), long)))
    stream = Controller(learner, Scripted(["ttt_in_context"])).stream(TASK)
    assert any(event["event"] == "step" for event in stream)
    stream.close()  # comes back, though 99,999 steps are left
    assert learner.answer([TASK])


@contextmanager
def cancelled_in_pass(learner: Learner, cancel: threading.Event) -> Iterator[tuple[Learner, list[int], list[int]]]:
    """A learner around the same model, whose passes through the first and the second layer are counted; `cancel` is set
    in the pass through the first layer whose number, from 1, is the last element of the second list."""
    passes, last = [0, 0], [10**6]

    def enter_first(*_: Any) -> None:
        passes[0] += 1
        if passes[0] == last[-1]:
            cancel.set()

    def enter_second(*_: Any) -> None:
        passes[1] += 1

    first, second = learner.loaded.model.model.layers[:2]
    handles = [first.register_forward_hook(enter_first), second.register_forward_hook(enter_second)]
    try:
        yield Learner(learner.loaded), passes, last  # hooks that are there at load are part of the base
    finally:
        for handle in handles:
            handle.remove()


def check_cancelling(
    learner: Learner, passes: list[int], last: list[int], solve: Callable[[], Any], between: Sequence[int] = ()
) -> None:
    """Cancels in passes of what `solve` does, of all or of those between two, and checks that each ends before the next
    layer."""
    learner.clear()
    solve()
    begin, end = between or (0, passes[0])
    assert end > begin
    for number in sorted({begin + 1, end, *(begin + max(1, (end - begin) * k // 8) for k in range(8))}):
        passes[:] = [0, 0]
        last.append(number)
        learner.clear()
        with pytest.raises(Cancelled):
            solve()
        assert passes == [number, number - 1], "the second layer does not run once the first has cancelled"
    learner.verify(full=True)


@pytest.mark.parametrize("name", list(strategies()))
def test_cancelling_ends_any_node_before_the_next_layer(name: str, learner: Learner) -> None:
    cancel = threading.Event()
    with cancelled_in_pass(learner, cancel) as (hooked, passes, last):

        def solve() -> None:
            cancel.clear()
            Controller(hooked, FixedPolicy(name)).solve(TASK, cancel=cancel)

        check_cancelling(hooked, passes, last, solve)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", ["ttt_in_context", "ttt_augmented"])
def test_cancelling_a_queue_ends_what_is_prefetched_before_the_next_layer(
    name: str, batched: bool, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GuardedModel, "batches_adapters", batched)  # as on an accelerator: answers are prefetched too
    cancel = threading.Event()
    with cancelled_in_pass(learner, cancel) as (hooked, passes, last):
        prefetch, prefetching = hooked.adapters.prefetch, list[int]()

        def recorded(*arguments: Any) -> Any:
            prefetching.append(passes[0])
            trained = prefetch(*arguments)
            prefetching.append(passes[0])
            return trained

        monkeypatch.setattr(hooked.adapters, "prefetch", recorded)

        def solve() -> None:
            cancel.clear()
            Controller(hooked, FixedPolicy(name)).solve_many(many(), cancel=cancel)

        check_cancelling(hooked, passes, last, solve, prefetching)
        assert prefetching[1] - prefetching[0] > 4


def test_a_solve_inside_a_strategy_ends_when_the_outer_one_is_cancelled(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel = threading.Event()
    with cancelled_in_pass(learner, cancel) as (hooked, passes, last):
        controller = Controller(hooked, FixedPolicy("zero_shot"))

        def attempt(self: Any, learner: Learner, task: Task, **_: Any) -> Attempt:
            last.append(passes[0] + 2)
            return Attempt(self.name, controller.solve(task, strategy="ttt_in_context").answer, "", 1.0)

        monkeypatch.setattr(type(get_strategy("zero_shot")), "attempt", attempt)
        with pytest.raises(Cancelled):
            controller.solve(TASK, cancel=cancel)
        assert passes == [last[-1], last[-1] - 1]


def test_a_cancelled_solve_computes_nothing(learner):
    cancel = threading.Event()
    cancel.set()
    before = learner.guarded.charged
    with pytest.raises(Cancelled):
        Controller(learner, Scripted(["in_context"])).solve(TASK, cancel=cancel)
    assert learner.guarded.charged == before


def test_an_over_long_task_is_refused_with_its_lengths_and_others_are_answered(learner):
    long = make_task([([1] * 900, [2]), ([1], [2])], [3], id="long")
    controller = Controller(learner, Scripted(["in_context"]))
    with pytest.raises(TooLongError, match="tokens"):
        controller.solve(long)
    first, second = controller.solve_many([long, TASK])
    assert first.status == "refused"
    assert "long" in first.error
    assert first.answer is None
    assert second.status != "refused"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ModelError("boom")])
def test_an_error_in_a_node_leaves_the_model_proven_unchanged(learner, monkeypatch, error):
    controller = Controller(learner, Scripted(["ttt_in_context"]))
    before = learner.verify(full=True)
    learner.clear()

    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(learner.trainer, "adapt_many", broken)
    with pytest.raises((KeyboardInterrupt, ModelError)):
        controller.solve(TASK)
    assert learner.verify(full=True).hash == before.hash


def test_a_mistake_in_a_strategy_costs_its_attempt_and_not_the_queue(learner, monkeypatch):
    learner.clear()

    def broken(*args: Any, charged: bool = True, **settings: Any) -> Any:
        raise IndexError("boom") if charged else AdaptationError("boom")

    monkeypatch.setattr(learner.trainer, "adapt_many", broken)
    controller = Controller(learner, FixedPolicy("ttt_in_context"))
    first, second = controller.solve_many([TASK, TASK])
    for result in (first, second):
        assert result.attempts[0].status == "failed"
        assert result.attempts[0].error == "IndexError: boom"
        assert "ttt_in_context failed (IndexError: boom)" in result.reason
        assert (
            "no other strategy can be tried" in result.reason
            or "the in-context answer is the fallback" in result.reason
        )


def test_a_forced_strategy_that_cannot_run_is_said_to(learner):
    one = replace(TASK, demonstrations=TASK.demonstrations[:1])
    result = Controller(learner, FixedPolicy("in_context")).solve(one, strategy="ttt_in_context")
    assert result.attempts[0].strategy == "in_context"
    assert "cannot be used here (too few demonstrations" in result.decision["reason"]


def test_a_call_may_name_its_strategy_and_give_seconds(learner):
    controller = Controller(learner, FixedPolicy("in_context"))
    assert controller.solve(TASK, strategy="zero_shot", budget=1000).attempts[0].strategy == "zero_shot"
    assert [r.attempts[0].strategy for r in controller.solve_many([TASK, TASK], strategy="zero_shot")] == [
        "zero_shot"
    ] * 2
    assert controller.context(2.5).budget.seconds == 2.5
    with pytest.raises(StrategyError, match="did you mean 'zero_shot'"):
        controller.solve(TASK, strategy="zero_shoot")
    for odd in (True, [3], "3"):
        with pytest.raises(BudgetError, match="received"):
            controller.solve(TASK, budget=odd)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda c: c.solve({"query": 3}), "make_task gives; received a dict"),
        (lambda c: c.solve_many(TASK), "several tasks"),
        (lambda c: Controller(c.learner.loaded.model), "Learner.wrap"),
        (lambda c: Controller(c.learner, "in_context"), "FixedPolicy"),
    ],
)
def test_other_objects_than_a_task_learner_or_policy_are_refused(learner, call, says):
    with pytest.raises(TypeError, match=says):
        call(Controller(learner, FixedPolicy("in_context")))


def test_a_controller_needs_no_policy(learner):
    assert Controller(learner).policy.name == "learned for any model"


# --- several threads ------------------------------------------------------------------------------------------------


def test_threads_take_turns_and_each_pays_for_its_own(learner):
    controller = Controller(learner, FixedPolicy("in_context"))
    other = Controller(Learner(learner.loaded), FixedPolicy("in_context"))  # another learner around the same model
    learner.clear()
    alone = controller.solve(TASK, budget="1000s").cost
    stepping, solved = threading.Event(), []

    def slow():
        for event in controller.stream(TASK, strategy="ttt_augmented"):
            if isinstance(event, dict) and event["event"] == "step":
                stepping.set()
                time.sleep(0.05)

    training = threading.Thread(target=slow)
    training.start()
    assert stepping.wait(60)
    for one in (other, controller):
        one.learner.clear()
        solved.append(one.solve(TASK))
    training.join()
    for result in solved:
        assert result.cost.backward_tokens == 0
        assert result.cost.forward_tokens == alone.forward_tokens


def test_a_call_while_the_lock_is_held_does_not_wait(learner):
    controller = Controller(learner, FixedPolicy("in_context"))
    inner = []
    controller.solve_many([TASK, TASK], on_result=lambda _: inner.append(controller.solve(TASK)))
    for event in controller.stream(TASK):
        if isinstance(event, dict):
            inner.append(controller.solve(TASK))
    assert len(inner) > 3


def test_waiting_for_the_lock_can_be_cancelled(learner):
    controller = Controller(learner, FixedPolicy("in_context"))
    cancel = threading.Event()
    cancel.set()
    errors = []

    def waits():
        try:
            controller.solve(TASK, cancel=cancel)
        except Cancelled as error:
            errors.append(error)

    with learner.guarded.lock.exclusive():
        thread = threading.Thread(target=waits)
        thread.start()
        thread.join(60)
    assert len(errors) == 1


def test_numbers_that_another_thread_draws_do_not_come_twice(learner):
    controller, drawn, done = Controller(learner, FixedPolicy("ttt_in_context")), [], threading.Event()

    def draws():
        while not done.is_set():
            drawn.append((random.random(), float(torch.rand(1, dtype=torch.float64))))
            time.sleep(0.001)

    thread = threading.Thread(target=draws)
    thread.start()
    for _ in range(3):
        learner.clear()
        controller.solve(TASK)
    done.set()
    thread.join()
    assert len(drawn) > 20
    assert len({a for a, _ in drawn}) == len({b for _, b in drawn}) == len(drawn)


def test_a_stream_can_be_cancelled_from_another_thread(learner):
    learner.clear()
    cancel = threading.Event()
    stream = Controller(learner).stream(TASK, strategy="ttt_augmented", cancel=cancel)
    assert next(stream)
    cancel.set()
    with pytest.raises(Cancelled):
        list(stream)
    assert learner.verify(full=True)


def test_a_changed_base_is_raised_even_when_a_node_fails_first():
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer(), prompt_format="compact")

    def vandal(*args, **kwargs):
        next(learner.loaded.model.parameters()).data = next(learner.loaded.model.parameters()).data.clone()
        raise RuntimeError("and an error of its own")

    learner.trainer.adapt_many = vandal  # type: ignore[method-assign]
    with pytest.raises(BaseChangedError):
        Controller(learner, Scripted(["ttt_in_context"])).solve(TASK)
    with pytest.raises(BaseChangedError):
        learner.answer([TASK])


def test_streaming_gives_nodes_steps_and_the_result(learner):
    learner.clear()
    seen = list(Controller(learner, Scripted(["ttt_in_context"])).stream(TASK))
    assert isinstance(seen[-1], Result)
    steps = [e for e in seen[:-1] if e["event"] == "step"]
    assert [e["step"] for e in steps] == [1, 2, 3]
    assert {"measure", "decide", "ttt_in_context", "judge", "revert"} <= {e.get("node") for e in seen[:-1]}
    nodes = [e for e in seen[:-1] if e["event"] == "node"]
    assert nodes[1]["update"]["decision"]["strategy"] == "ttt_in_context"
    assert all(e["tasks"] == [TASK.id] for e in seen[:-1])


def test_a_stream_gives_the_phases_as_they_begin(learner):
    learner.clear()
    events = [e for e in Controller(learner, Scripted(["ttt_in_context"])).stream(TASK) if isinstance(e, dict)]
    names = [e["phase"] if e["event"] == "phase" else e["event"] for e in events]
    assert names[:13] == [
        "measure", "node", "decide", "node", "ttt_in_context", "training", "step", "step", "step", "answering", "node",
        "judge", "node",
    ]  # fmt: skip
    assert names[-2:] == ["revert", "node"]


def test_the_phase_of_training_says_how_long_it_will_take(learner):
    learner.clear()
    events = [e for e in Controller(learner, Scripted(["ttt_in_context"])).stream(TASK) if isinstance(e, dict)]
    phases = [e for e in events if e["event"] == "phase"]
    (training,) = [e for e in phases if "expected_seconds" in e]
    assert training["phase"] == "training"
    (answered,) = [e["update"] for e in events if e["event"] == "node" and e["node"] == "measure"]
    (trained,) = [e["update"] for e in events if e["event"] == "node" and e["node"] == "ttt_in_context"]
    cost, tokens = answered["in_context"]["cost"], trained["attempts"][0]["training_record"]["tokens"]
    per_token = cost["seconds"] / (cost["forward_tokens"] + 2 * cost["backward_tokens"])
    assert training["expected_seconds"] == pytest.approx(3 * tokens * per_token, rel=0.25)


def test_what_on_event_receives_is_what_a_stream_gives(learner):
    def comparable(event):
        return {name: event[name] for name in ("event", "tasks", "phase", "node", "step", "loss") if name in event}

    learner.clear()
    controller, received = Controller(learner, Scripted(["ttt_in_context"])), []
    streamed = [e for e in controller.stream(TASK) if isinstance(e, dict)]
    learner.clear()
    assert controller.solve(TASK, on_event=received.append).attempts[0].strategy == "ttt_in_context"
    assert list(map(comparable, received)) == list(map(comparable, streamed))


def test_the_same_seed_gives_the_same_result(learner):
    def solved():
        learner.clear()
        return Controller(learner, Scripted(["ttt_augmented"]), seed=3).solve(TASK)

    one, two = solved(), solved()
    assert one.text == two.text
    first, second = one.attempts[0].training_record, two.attempts[0].training_record
    assert first is not None
    assert second is not None
    assert first.losses == second.losses


def test_the_graph_runs_by_itself_and_its_state_is_json(learner):
    import json

    controller = Controller(learner, Scripted(["ttt_in_context"]))
    output = controller.graph.invoke({"task": task_to_plain(TASK)}, context=controller.context())
    assert set(output) == {"answer", "result"}
    *_, state = controller.graph.stream({"task": TASK}, context=controller.context(), stream_mode="values")
    back = json.loads(json.dumps(state))
    assert task_from_plain(back["task"]) == TASK
    assert attempt_from_plain(back["attempts"][0]).strategy == "ttt_in_context"


def test_exploration_respects_the_budget(learner):
    learner.clear()
    served = ExploringPolicy(Scripted(["in_context"], price=1e6), FixedPolicy("ttt_augmented"), explore=1.0)
    for n in range(6):
        result = Controller(learner, served, budget="2x").solve(replace(TASK, query=(n, 8), answer=(8, n)))
        decision = result.decision
        assert decision["strategy"] == decision["policy_choice"] == decision["shadow"] == "in_context"
        assert decision["propensity"] == 1.0


def test_a_result_as_json_holds_what_is_promised(learner):
    import json

    result = Controller(learner, Scripted(["ttt_in_context"])).solve(TASK)
    plain = json.loads(json.dumps(result.to_plain()))
    for key in (
        "id",
        "answer",
        "strategy",
        "scores",
        "reason",
        "features",
        "cost",
        "adaptation",
        "proof",
        "trace",
        "right",
    ):
        assert key in plain
    assert plain["id"] == "reverse"


def test_reuse_of_an_adapter_for_a_second_query_is_recorded(learner):
    learner.clear()
    controller = Controller(learner, Scripted(["ttt_in_context"]))
    first, second = controller.solve_many([TASK, replace(TASK, query=(9, 1), answer=(1, 9))])
    assert not first.attempts[0].from_cache
    assert second.attempts[0].from_cache
    assert second.cost.backward_tokens == 0


def test_run_refuses_too_few_demonstrations_in_the_graph_too(learner):
    bare = make_task([], [1, 2], kind="list", id="bare")
    policy = Scripted(["ttt_in_context"])
    result = Controller(learner, policy).solve(bare)
    assert set(policy.asked[0]) == {"in_context", "zero_shot"}
    assert result.status in ("answered", "no_answer")
    assert run(strategies()["zero_shot"], learner, bare).strategy == "zero_shot"


# --- many tasks together --------------------------------------------------------------------------------------------


def many() -> list[Task]:
    """Four tasks; the last two share their demonstrations."""
    others = [
        replace(TASK, demonstrations=TASK.demonstrations[::-1], id="turned"),
        replace(TASK, query=(5, 5, 2), id="q"),
    ]
    longer = replace(TASK, demonstrations=(*TASK.demonstrations, Demonstration((8, 1, 1), (1, 1, 8))), id="longer")
    return [longer, *others, replace(TASK, id="last")]


def comparable(result: Result) -> Any:
    attempts = [
        (a.strategy, a.value, a.text, a.from_cache, a.training_record and a.training_record.steps)
        for a in result.attempts
    ]
    nodes = [event["node"] for event in result.trace]
    return result.task.id, result.status, result.answer, result.reason, attempts, nodes


@pytest.mark.parametrize("strategy", ["ttt_in_context", "ttt_augmented", "ttt_crossfit", "in_context"])
def test_tasks_solved_together_are_solved_as_each_alone(strategy: str, learner: Learner, unchanged: Any) -> None:
    controller = Controller(learner, FixedPolicy(strategy))
    learner.clear()
    alone = controller.solve_many(many(), batch_size=1)
    learner.clear()
    trained: list[int] = []
    real = AdapterTrainer.adapt_many
    with pytest.MonkeyPatch.context() as patch, unchanged(learner.loaded.model, but="random state of Python"):
        patch.setattr(
            AdapterTrainer, "adapt_many", lambda self, e, *a, **k: trained.append(len(e)) or real(self, e, *a, **k)
        )
        together = controller.solve_many(many(), batch_size=4)
    assert [comparable(r) for r in together] == [comparable(r) for r in alone]
    if strategy in ("ttt_in_context", "ttt_augmented"):
        assert max(trained) > 1
        assert sum(trained) == 3, "the last two share an adapter"
        assert [r.attempts[0].from_cache for r in together] == [False, False, False, True]
        for one, other in zip(together, alone, strict=True):
            assert one.cost.backward_tokens == other.cost.backward_tokens
            assert one.attempts[0].cost.backward_tokens == other.attempts[0].cost.backward_tokens
        first = together[0].attempts[0]
        assert first.training_record is not None
        assert together[0].cost.seconds > first.cost.seconds > first.training_record.seconds > 0


@pytest.mark.parametrize("strategy", ["ttt_in_context", "ttt_augmented"])
def test_adapters_that_are_trained_together_publish_each_step(strategy: str, learner: Learner) -> None:
    controller, events = Controller(learner, FixedPolicy(strategy)), list[Any]()
    learner.clear()
    results = controller.solve_many(many(), batch_size=4, on_event=events.append)
    steps = [e for e in events if e["event"] == "step"]
    assert [e["step"] for e in steps] == [1, 2, 3]
    assert {e["max_steps"] for e in steps} == {3}
    assert {e["strategy"] for e in steps} == {strategy}
    assert all(sorted(e["tasks"]) == sorted(t.id for t in many()) for e in steps)
    assert steps[-1]["seconds_left"] == 0 < steps[0]["seconds_left"]
    records = [r.attempts[0].training_record for r in results[:3]]  # the last two share an adapter
    for e, losses in zip(steps, zip(*(record.losses for record in records if record), strict=True), strict=True):
        assert e["loss"] == pytest.approx(sum(losses) / 3)
    ends = [(e["tasks"], e["node"]) for e in events if e["event"] == "node" and e["node"] == "revert"]
    assert ends == [([task.id], "revert") for task in many()]


def test_steps_of_adapters_that_are_trained_together_arrive_in_the_stream_of_a_parent(learner: Learner) -> None:
    controller = Controller(learner, FixedPolicy("ttt_in_context"))
    learner.clear()

    def solve(state: State) -> State:
        controller.solve_many(many())
        return {}

    parent = StateGraph(State)
    parent.add_node("solve", solve)
    parent.add_edge(START, "solve")
    steps = list(parent.compile().stream({"seed": 0}, stream_mode="custom"))
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert steps[0]["tasks"] == [task.id for task in many()]


@pytest.mark.parametrize("number", [2**63, -(10**30)])
def test_a_number_of_more_than_64_bits_is_no_answer_and_stops_no_queue(
    number: int, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LangGraph's serializer refuses it."""
    as_answer = Answerer._as_answer
    monkeypatch.setattr(
        Answerer, "_as_answer", lambda self, task, g: as_answer(self, task, replace(g, text=f"{number} 1", ended=True))
    )
    results = Controller(learner, FixedPolicy("in_context")).solve_many([TASK, replace(TASK, query=(8, 9))])
    assert [r.status for r in results] == ["no_answer", "no_answer"]


def test_an_error_while_adapters_are_trained_in_a_batch_ends_no_queue(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each task trains by itself then, and what `on_event` raises is still raised."""
    adapt_many = AdapterTrainer.adapt_many

    def failing(self: AdapterTrainer, examples: Any, *args: Any, **settings: Any) -> Any:
        if len(examples) > 1:
            raise ZeroDivisionError("a mistake in a module")
        return adapt_many(self, examples, *args, **settings)

    learner.clear()
    controller = Controller(learner, FixedPolicy("ttt_in_context"))
    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "adapt_many", failing)
        results = controller.solve_many(many())
    assert [r.attempts[0].error for r in results] == [""] * len(many())
    assert all(r.adaptation is not None for r in results)

    def broken(event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            raise ZeroDivisionError("a mistake of the caller")

    learner.clear()
    with pytest.raises(ZeroDivisionError, match="of the caller"):
        controller.solve_many(many(), on_event=broken)


def test_with_a_budget_no_task_waits_for_others(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AdapterProvider, "prefetch", lambda *_: pytest.fail("waited"))
    controller = Controller(learner, FixedPolicy("ttt_in_context"), budget="60s")
    assert {r.status for r in controller.solve_many(many())} <= {"answered", "no_answer"}


def test_plans_that_cannot_be_batched_are_trained_one_by_one(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    real = AdapterTrainer.adapt_many

    def fail(self: AdapterTrainer, examples: Any, *args: Any, **settings: Any) -> Any:
        if len(examples) > 1:
            raise AdaptationError("the training loss is not a number")
        return real(self, examples, *args, **settings)

    monkeypatch.setattr(AdapterTrainer, "adapt_many", fail)
    learner.clear()
    results = Controller(learner, FixedPolicy("ttt_in_context")).solve_many(many())
    assert all(r.attempts[0].status != "failed" for r in results)
    assert results[0].attempts[0].training_record is not None


def test_one_that_is_refused_and_an_interruption_leave_the_others_and_the_base(
    learner: Learner, unchanged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = Controller(learner, FixedPolicy("ttt_in_context"))
    long = replace(TASK, query=tuple(range(10, 99)) * 9, id="long")
    results = controller.solve_many([TASK, long, replace(TASK, id="again")])
    assert [r.status == "refused" for r in results] == [False, True, False]

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    learner.clear()
    monkeypatch.setattr(AdapterTrainer, "adapt_many", interrupt)
    with unchanged(learner.loaded.model, but="random state of Python"), pytest.raises(KeyboardInterrupt):
        controller.solve_many(many())
    learner.verify(full=True)


def test_prefetched_adapters_are_cached_when_a_queue_is_interrupted(learner: Learner) -> None:
    controller = Controller(learner, FixedPolicy("ttt_in_context"))
    learner.clear()
    before = learner.guarded.charged

    def stop(result: Result) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        controller.solve_many(many(), on_result=stop)
    assert learner.adapters.prefetched_bytes == 0
    charged = learner.guarded.charged - before
    assert charged.backward_tokens > 0
    again = controller.solve_many(many())
    assert [r.attempts[0].from_cache for r in again] == [True] * 4
    assert (learner.guarded.charged - before).backward_tokens == charged.backward_tokens


def test_a_queue_has_ended_when_an_error_of_on_result_is_raised(learner: Learner) -> None:
    controller = Controller(learner, FixedPolicy("ttt_in_context"))
    learner.clear()
    with pytest.raises(ZeroDivisionError) as caught:
        controller.solve_many(many(), on_result=lambda _: 1 / 0)  # type: ignore[arg-type, return-value]
    assert learner.adapters.prefetched_bytes == 0, "even while the error holds the frames of the call"
    assert caught.value.__traceback__ is not None


def test_a_queue_is_trained_in_as_many_batches_as_memory_asks_for(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = AdapterTrainer.adapt_many, []

    def adapt_many(self: AdapterTrainer, examples: Any, *args: Any, **settings: Any) -> Any:
        sizes.append(len(examples))
        return real(self, examples, *args, **settings)

    monkeypatch.setattr(AdapterTrainer, "adapt_many", adapt_many)
    monkeypatch.setattr(learner.guarded, "memory_bytes", 1)
    learner.clear()
    Controller(learner, FixedPolicy("ttt_in_context")).solve_many(many())
    assert sizes == [1, 1, 1]
