"""What a run leaves in its trace, wherever it runs and however it ends."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph

from autottt.controller.controller import Controller
from autottt.controller.graph import build_graph
from autottt.controller.tracing.recorder import TraceRecorder
from autottt.controller.tracing.trace import Trace, find_spans
from autottt.policies.policy import FixedPolicy
from autottt.strategies.base import Attempt
from autottt.strategies.registry import get_strategy, strategies
from autottt.ttt_core import spans
from autottt.ttt_core.engine.adapter_trainer import AdapterTrainer
from autottt.ttt_core.errors import Cancelled, SettingsError, TooLongError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora.training import train
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.kinds import make_task
from tests.controller.tracing.sample_traces import small_learner

TASK = make_task([([1, 2], [2, 1]), ([3, 4], [4, 3]), ([5, 6], [6, 5])], [7, 8], answer=[8, 7], id="reverse")
TOO_LONG = make_task([([1] * 9000, [2] * 9000)] * 3, [3] * 9000, id="long")
QUICK = Recipe(
    rank=2, alpha=2.0, dropout=0.0, learning_rate=1e-3, max_steps=3, batch_size=2, transformations=2, views=3
)


class Memory:
    """A target that keeps traces in a list."""

    def __init__(self) -> None:
        self.traces: list[Trace] = []

    def write(self, trace: Trace) -> None:
        self.traces.append(Trace(json.loads(json.dumps(trace.plain, allow_nan=False))))

    @property
    def only(self) -> Trace:
        (trace,) = self.traces
        return trace


@pytest.fixture(scope="module")
def learner() -> Learner:
    return small_learner(QUICK)


@pytest.fixture
def memory() -> Memory:
    return Memory()


def controller_of(learner: Learner, memory: Memory, strategy: str, **settings: Any) -> Controller:
    learner.clear()
    return Controller(learner, FixedPolicy(strategy), trace=TraceRecorder([memory], **settings))


@pytest.mark.parametrize("name", list(strategies()))
def test_the_edges_of_every_strategy_are_recorded_as_nodes_are_entered(learner, memory, name):
    result = controller_of(learner, memory, name).solve(TASK)
    trace = memory.only
    assert trace.id == result.trace_id
    assert [node["name"] for node in trace.nodes] == [event["node"] for event in result.trace] == list(trace.path)
    assert trace.edges[0] == ("__start__", "measure")
    assert trace.edges[-1] == ("revert", "__end__")
    assert all(one[1] == other[0] for one, other in zip(trace.edges, trace.edges[1:], strict=False))
    assert trace.result["strategy"] == result.strategy
    assert trace.task == TASK


def test_a_training_strategy_has_spans_of_examples_steps_decoding_and_the_proof(learner, memory):
    result = controller_of(learner, memory, "ttt_in_context").solve(TASK)
    (node,) = [n for n in memory.only.nodes if n["name"] == "ttt_in_context"]
    (adapter,), (training,) = find_spans(node, "adapter"), find_spans(node, "train")
    assert result.adaptation
    assert tuple(event["loss"] for event in training["events"]) == result.adaptation.losses
    assert [event["step"] for event in training["events"]] == [1, 2, 3]
    assert adapter["attributes"]["source"] == "trained"
    assert adapter["attributes"]["rank"] == QUICK.rank
    assert adapter["attributes"]["training"]["stop_reason"] == result.adaptation.stop_reason
    assert len(adapter["attributes"]["hash"]) == 12
    assert adapter["attributes"]["bytes"] > 0
    assert find_spans(node, "examples")[0]["attributes"]["examples"][0] > 0
    assert find_spans(node, "verify")[0]["attributes"]["hash"] == learner.base_hash
    (decoding,) = find_spans(node, "decode")
    assert decoding["attributes"]["texts"] == [result.text]
    assert len(decoding["attributes"]["ids"][0]) == len(decoding["attributes"]["log_probs"][0])


def test_held_out_scores_and_the_vote_of_a_cross_validation_are_recorded(learner, memory):
    result = controller_of(learner, memory, "ttt_crossfit").solve(TASK)
    root = memory.only.root
    evaluations = [span["attributes"] for span in find_spans(root, "evaluate")]
    assert evaluations
    assert {e["of"] for e in evaluations} == {len(TASK.demonstrations)}
    assert find_spans(root, "score")
    shares = [c["share"] for c in find_spans(root, "vote")[0]["attributes"]["candidates"]]
    assert shares == [c.share for c in result.attempts[0].candidates]
    assert memory.only.attempts[0]["cross_validation"]["before"] == list(result.attempts[0].cross_validation.before)


def test_an_adapter_from_the_cache_says_so(learner, memory):
    controller = controller_of(learner, memory, "ttt_in_context")
    controller.solve(TASK)
    controller.solve(TASK)
    sources = [find_spans(trace.root, "adapter")[0]["attributes"]["source"] for trace in memory.traces]
    assert sources == ["trained", "cached"]
    assert not find_spans(memory.traces[1].root, "train")


def test_every_task_of_a_batch_has_a_trace_with_its_own_spans(learner, memory):
    tasks = [replace(TASK, id=str(i), query=(i, i + 1)) for i in range(3)]
    other = [replace(t, demonstrations=t.demonstrations[i:]) for i, t in enumerate(tasks[:2])]
    results = controller_of(learner, memory, "ttt_direct").solve_many([*other, TOO_LONG, tasks[2]])
    assert {t.id for t in memory.traces} >= {r.trace_id for r in results if r.trace_id}
    assert sorted(t.task_facts["id"] for t in memory.traces) == ["0", "1", "2", "long"]
    by_id = {t.task_facts["id"]: t for t in memory.traces}
    assert by_id["long"].status == "refused"
    assert find_spans(by_id["0"].root, "adapter")[0]["attributes"]["source"] == "prefetched"
    assert by_id["0"].edges[-1] == ("revert", "__end__")


def test_training_in_a_batch_is_in_the_trace_of_each_task(learner, memory):
    tasks = [replace(TASK, id=str(i), demonstrations=(*TASK.demonstrations, TASK.demonstrations[i])) for i in range(3)]
    results = controller_of(learner, memory, "ttt_direct").solve_many(tasks)
    assert [trace.id for trace in memory.traces] == [result.trace_id for result in results]
    for trace, result in zip(memory.traces, results, strict=True):
        (training,) = find_spans(trace.root, "train")
        (adapter,) = find_spans(trace.root, "adapter")
        assert [event["step"] for event in training["events"]] == [1, 2, 3]
        assert [event["loss"] for event in training["events"]] == list(result.attempts[0].training_record.losses)
        assert [event["loss"] for event in training["events"]] == adapter["attributes"]["training"]["losses"]
        assert training["attributes"]["stop_reasons"] == ["finished"]
        assert training["attributes"]["shared_by"] == 3
        assert training["attributes"]["recipe"]["max_steps"] == 3
        assert 0 <= training["at"] <= training["at"] + training["seconds"] <= trace.root["seconds"]
        share = trace.stages()["train"]
        assert share == pytest.approx(training["seconds"] / 3)


def test_a_training_that_several_tasks_share_is_counted_once_over_their_traces(learner, memory):
    same = [replace(TASK, id=str(i), query=(i, i + 1)) for i in range(3)]
    other = replace(TASK, id="other", demonstrations=(*TASK.demonstrations, TASK.demonstrations[0]))
    controller_of(learner, memory, "ttt_direct").solve_many([*same, other])
    trainings = [find_spans(trace.root, "train")[0] for trace in memory.traces]
    assert [training["attributes"]["shared_by"] for training in trainings] == [4, 4, 4, 4]
    longest = max(training["seconds"] for training in trainings)
    assert sum(trace.stages()["train"] for trace in memory.traces) <= longest + 1e-5


def waits_of(trace):
    return [span for span in trace.root["children"] if span["name"] == "wait"]


@pytest.mark.parametrize("how", ["solve_many", "scheduler"])
def test_what_a_run_waited_for_others_is_recorded_and_its_stages_add_up_to_its_duration(learner, memory, how):
    tasks = [replace(TASK, id=str(i), demonstrations=(*TASK.demonstrations, TASK.demonstrations[i])) for i in range(3)]
    controller = controller_of(learner, memory, "ttt_direct")
    if how == "solve_many":
        controller.solve_many(tasks)
    else:
        with controller.scheduler() as scheduler:
            for future in [scheduler.submit(task) for task in tasks]:
                future.result()
    assert len(memory.traces) == 3
    for trace in memory.traces:
        assert sum(trace.stages().values()) == pytest.approx(trace.duration, abs=1e-4)
        assert [span["status"] for span in waits_of(trace)] == ["ok", "ok"]
        trained = [child for wait in waits_of(trace) for child in wait.get("children", ())]
        assert [span["name"] for span in trained] == ["train"] * bool(trace.batch_training("ttt_direct"))
    if how == "solve_many":  # a scheduler may begin a training before there is a second one
        assert all(trace.batch_training("ttt_direct") for trace in memory.traces)


def test_a_run_that_waited_for_its_turn_at_the_model_says_for_how_long(learner, memory):
    controller = controller_of(learner, memory, "in_context")
    with ThreadPoolExecutor(1) as pool:
        with learner.guarded.lock.exclusive():
            future = pool.submit(controller.solve, TASK)
            time.sleep(0.3)
        future.result()
    assert memory.only.stages()["wait"] >= 0.2
    assert len(waits_of(memory.only)) == 1


def test_training_in_a_batch_that_is_cancelled_is_recorded_up_to_its_last_step(learner, memory, monkeypatch):
    cancel, real = threading.Event(), AdapterTrainer.adapt_many

    def adapt(self, *arguments, on_batch_step, **rest):
        def step(number, losses):
            on_batch_step(number, losses)
            if number == 2:
                cancel.set()

        return real(self, *arguments, on_batch_step=step, **rest)

    monkeypatch.setattr(AdapterTrainer, "adapt_many", adapt)
    tasks = [replace(TASK, id=str(i), demonstrations=(*TASK.demonstrations, TASK.demonstrations[i])) for i in range(2)]
    with pytest.raises(Cancelled):
        controller_of(learner, memory, "ttt_direct").solve_many(tasks, cancel=cancel)
    assert len(memory.traces) == 2
    for trace in memory.traces:
        (training,) = find_spans(trace.root, "train")
        assert [event["step"] for event in training["events"]] == [1, 2]
        assert training["attributes"]["shared_by"] == 2
        assert trace.status == "cancelled"


def test_a_run_that_raises_is_recorded_up_to_the_failure(learner, memory, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr("autottt.controller.nodes.judged", fail)
    with pytest.raises(MemoryError):
        controller_of(learner, memory, "in_context").solve(TASK)
    trace = memory.only
    assert trace.status == "failed"
    assert trace.error == "MemoryError: no more"
    assert list(trace.path) == ["measure", "decide", "in_context", "judge"]
    assert [n["status"] for n in trace.nodes] == ["ok", "ok", "ok", "error"]
    assert trace.decisions[0]["strategy"] == "in_context"
    assert trace.root["children"][-1]["name"] == "verify", "the proof after the failure"


def test_steps_before_a_training_that_fails_are_recorded(learner, memory, monkeypatch):
    def failing(loaded, examples, recipe, seeds, **settings):
        train(loaded, examples, recipe, seeds, **{**settings, "monitor": broken})

    def broken(step, weights):
        if step == 2:
            raise ValueError("broken at step 2")
        return False

    monkeypatch.setattr("autottt.ttt_core.engine.adapter_trainer.train", failing)
    result = controller_of(learner, memory, "ttt_in_context").solve(TASK)
    (training,) = find_spans(memory.only.root, "train")
    assert "broken at step 2" in result.attempts[0].error
    assert (training["status"], [e["step"] for e in training["events"]]) == ("error", [1, 2])
    assert memory.only.attempts[0]["error"] == "ValueError: broken at step 2"


def test_a_cancelled_run_is_recorded_as_cancelled(learner, memory, monkeypatch):
    cancel = threading.Event()
    adapt_many = AdapterTrainer.adapt_many

    def cancelling(*args, **settings):
        cancel.set()
        return adapt_many(*args, **settings)

    monkeypatch.setattr(AdapterTrainer, "adapt_many", cancelling)
    with pytest.raises(Cancelled):
        controller_of(learner, memory, "ttt_direct").solve(TASK, cancel=cancel)
    assert memory.only.status == "cancelled"
    assert memory.only.path[-1] == "ttt_direct"


def test_a_run_whose_time_is_up_is_recorded_with_what_it_did(learner, memory):
    controller_of(learner, memory, "ttt_direct").solve(TASK, budget=1e-6)
    assert memory.only.attributes["budget"] == "1e-06s"
    assert memory.only.status in ("answered", "no_answer")
    assert memory.only.edges[-1] == ("revert", "__end__")


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("length", [9000, 400])
def test_the_result_of_a_refused_task_agrees_with_its_trace(learner, memory, together, length):
    """One that is too long for any prompt is refused at once, a shorter one where its prompt is made."""
    long = make_task([([1] * length, [2])] * 2, [3], id="long", answer=[1])
    controller = Controller(learner, FixedPolicy("in_context"), trace=TraceRecorder([memory]))
    *_, result = controller.solve_many([TASK, long] if together else [long], seed=9)
    (trace,) = [trace for trace in memory.traces if trace.attributes["task"]["id"] == "long"]
    assert (result.status, result.seed, result.trace_id) == ("refused", 9, trace.id)
    assert (trace.status, trace.attributes["seed"]) == ("refused", 9)


def test_a_refused_task_is_recorded(learner, memory):
    with pytest.raises(TooLongError):
        controller_of(learner, memory, "in_context").solve(TOO_LONG)
    assert memory.only.status == "refused"
    assert memory.only.error.startswith("TooLongError: ")
    assert memory.only.task.id == "long"


def test_threads_coroutines_and_streams_have_one_root_each(learner, memory):
    controller = controller_of(learner, memory, "in_context_vote")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: controller.solve(TASK), range(3)))

    async def both() -> None:
        await asyncio.gather(controller.asolve(TASK), controller.asolve(TASK))

    asyncio.run(both())
    list(controller.stream(TASK))
    assert len(memory.traces) == 6
    assert {tuple(t.path) for t in memory.traces} == {("measure", "decide", "in_context_vote", "judge", "revert")}
    assert all(len(find_spans(t.root, "vote")) == 1 for t in memory.traces)


def test_a_stream_that_is_closed_early_is_recorded_as_cancelled(learner, memory):
    events = controller_of(learner, memory, "ttt_direct").stream(TASK)
    next(events)
    events.close()
    assert memory.only.status == "cancelled"


class Work(TypedDict, total=False):
    task: Any
    answer: Any
    result: Any


@pytest.mark.parametrize("use_own_context", [True, False])
def test_a_graph_inside_another_graph_has_one_root(learner, memory, use_own_context):
    controller = controller_of(learner, memory, "ttt_in_context")
    parent = StateGraph(Work)
    parent.add_node("solve", controller.as_node() if use_own_context else controller.graph)
    parent.add_edge(START, "solve")
    settings = {} if use_own_context else {"context": controller.context()}
    state = parent.compile().invoke({"task": TASK}, **settings)
    assert memory.only.id == state["result"]["trace_id"]
    assert len(find_spans(memory.only.root, "train")) == 1

    async def run() -> None:
        await parent.compile().ainvoke({"task": TASK}, **settings)

    asyncio.run(run())
    assert len(memory.traces) == 2
    assert memory.traces[1].edges == memory.traces[0].edges


def test_a_run_that_is_paused_and_resumed_leaves_two_traces(learner, memory):
    controller = controller_of(learner, memory, "in_context")
    graph = build_graph(InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    graph.invoke({"task": TASK}, config, context=controller.context(), interrupt_before=["judge"])
    graph.invoke(None, config, context=controller.context())
    paused, resumed = memory.traces
    assert (paused.status, resumed.status) == ("interrupted", str(resumed.result["status"]))
    assert resumed.edges == [("__resume__", "judge"), ("judge", "revert"), ("revert", "__end__")]
    assert resumed.task == TASK


def test_nothing_is_recorded_and_no_span_is_created_when_tracing_is_off(learner, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a span was created")

    monkeypatch.setattr(spans.Span, "__init__", fail)
    learner.clear()
    result = Controller(learner, FixedPolicy("ttt_crossfit")).solve(TASK)
    assert result.trace_id == ""
    assert result.adaptation


def test_the_variable_switches_tracing_on_and_an_argument_overrides_it(learner, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTTT_TRACE", str(tmp_path / "traces.sqlite"))
    policy = FixedPolicy("in_context")
    assert Controller(learner, policy, trace="off").recorder is None
    result = Controller(learner, policy).solve(TASK)
    assert result.trace_id
    assert (tmp_path / "traces.sqlite").exists()
    with pytest.raises(SettingsError, match="expected off, local"):
        Controller(learner, policy, trace="somewhere")


@dataclass(frozen=True)
class Leaks:
    """A strategy whose error quotes the task."""

    name: str = "leaks"
    cost_class: str = "read"
    min_demonstrations: int = 0
    recipe: None = None
    default_recipe: None = None

    def answers_per_query(self, recipe):
        return 1

    def attempt(self, learner, task, *, seed=0, deadline=0.0, on_step=None) -> Attempt:
        raise RuntimeError(f"the query {task.query} is odd")


def test_a_trace_without_content_holds_neither_task_nor_answers(learner, memory, monkeypatch):
    from autottt.strategies import registry

    monkeypatch.setattr(registry, "_REGISTRY", {**{n: get_strategy(n) for n in strategies()}, "leaks": Leaks()})
    secret = make_task([("dog", "SECRET1"), ("cat", "SECRET2"), ("cow", "SECRET3")], "SECRET4", id="animals")
    for name in ("ttt_crossfit", "leaks"):
        controller_of(learner, memory, name, content=False).solve(secret)
    for trace in memory.traces:
        assert "SECRET" not in json.dumps(trace.plain)
        assert not trace.has_content
        assert trace.attributes["sizes"] == {"demonstration_count": 3, "digest": secret.digest}
    assert memory.traces[1].attempts[0]["error"] == "RuntimeError"
    assert find_spans(memory.traces[0].root, "train")[0]["events"]


class Broken:
    def write(self, trace: Trace) -> None:
        raise OSError("the disk is full")


def test_a_target_that_fails_warns_once_and_never_fails_an_answer(learner, caplog):
    controller = Controller(learner, FixedPolicy("in_context"), trace=TraceRecorder([Broken()]))
    assert controller.solve(TASK).status in ("answered", "no_answer")
    controller.solve(TASK)
    messages = [r.getMessage() for r in caplog.records if "disk is full" in r.getMessage()]
    assert messages == ["the disk is full; answers are not affected"]
