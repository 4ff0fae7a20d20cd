"""The graph inside other programs: as a node, with checkpointers, interrupted, resumed, streamed, cancelled."""

from __future__ import annotations

import asyncio
import json
import logging
import operator
import os
import signal
import threading
import time
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import asdict, replace
from functools import partial
from typing import Annotated, Any, TypedDict
from unittest.mock import Mock

import pytest
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph

from autottt.controller import background
from autottt.controller.budget import UNLIMITED
from autottt.controller.controller import DEFAULT_BUDGET, Controller
from autottt.controller.graph import build_graph
from autottt.controller.plain_tasks import checked_task, task_to_plain
from autottt.controller.results import Result
from autottt.controller.task_graph import parent_stream_writer
from autottt.policies.exploration import ExploringPolicy
from autottt.policies.features import Features
from autottt.policies.policy import BUNDLED, AnyModelPolicy, FixedPolicy, HeuristicPolicy
from autottt.strategies.base import Attempt
from autottt.strategies.registry import strategies
from autottt.ttt_core.engine.adapter_trainer import AdapterTrainer
from autottt.ttt_core.errors import Cancelled, ClosedError, PolicyError, StateError, StrategyError, TaskError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.task import Demonstration, Task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

TASK = make_task([([1, 2], [2, 1]), ([3, 4], [4, 3]), ([5, 6], [6, 5])], [7, 8], answer=[8, 7], id="reverse")
QUICK = Recipe(rank=2, alpha=2.0, dropout=0.0, learning_rate=1e-3, max_steps=3, batch_size=2, views=3)
ENDLESS = replace(QUICK, max_steps=100_000)


@pytest.fixture(scope="module")
def shared() -> Learner:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer(), prompt_format="compact")
    learner.loaded = replace(learner.loaded, recipes=dict.fromkeys(strategies(), QUICK))
    return learner


@pytest.fixture
def learner(shared: Learner) -> Learner:
    shared.clear()
    return shared


@pytest.fixture
def endless(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> Learner:
    """A learner whose training takes minutes."""
    monkeypatch.setattr(learner, "loaded", replace(learner.loaded, recipes=dict.fromkeys(strategies(), ENDLESS)))
    return learner


@pytest.fixture
def unparsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No in-context answer can be parsed."""
    monkeypatch.setattr("autottt.policies.measurement.from_answer", lambda name, answer: Attempt(name, None, "?", 0.5))


def queries(count: int) -> list[Task]:
    return [replace(TASK, query=(n, 9), answer=(9, n), id=f"query{n}") for n in range(count)]


def same(one: Result, two: Result) -> bool:
    """The same answer by the same way; times differ."""
    ways = [(r.answer, r.text, r.strategy, r.reason, [a.strategy for a in r.attempts]) for r in (one, two)]
    nodes = [[event["node"] for event in r.trace] for r in (one, two)]
    return ways[0] == ways[1] and nodes[0] == nodes[1]


# --- one task, one run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["in_context", "ttt_in_context"])
def test_every_task_on_one_thread_starts_afresh(learner: Learner, strategy: str) -> None:
    controller, graph = Controller(learner, FixedPolicy(strategy)), build_graph(InMemorySaver())
    config: Any = {"configurable": {"thread_id": "one"}}
    for task in queries(5):
        output = graph.invoke({"task": task}, config, context=controller.context())
        result = Result.from_plain(output["result"])
        learner.clear()
        assert same(result, controller.solve(task))
        assert len(result.attempts) == 1
        learner.clear()


class Parent(TypedDict, total=False):
    task: Any
    seed: int
    answer: Any
    result: Any
    attempts: Annotated[list[Any], operator.add]
    trace: Annotated[list[Any], operator.add]
    decision: Any
    cost: Any


def parent_of(node: Any, checkpointer: Any = None) -> Any:
    graph = StateGraph(Parent)
    graph.add_node("solve", node)
    graph.add_edge(START, "solve")
    graph.add_edge("solve", END)
    return graph.compile(checkpointer=checkpointer)


def test_a_parent_with_the_same_keys_receives_only_the_output(learner: Learner) -> None:
    controller = Controller(learner, FixedPolicy("ttt_in_context"))
    parent, config = parent_of(controller.as_node(), InMemorySaver()), {"configurable": {"thread_id": "one"}}
    for number, task in enumerate(queries(4)):
        state = parent.invoke({"task": task_to_plain(task), "attempts": [number]}, config)
        assert state["attempts"] == list(range(number + 1)), "only the parent adds to its list"
        assert not {"trace", "decision", "cost"} & {key for key in state if state[key]}
        assert len(Result.from_plain(state["result"]).attempts) == 1
        assert state["answer"] == Result.from_plain(state["result"]).answer


class OtherContext(TypedDict):
    user: str


@pytest.mark.parametrize("context", [None, {"user": "somebody"}])
def test_a_node_brings_its_model_along_whatever_the_context_of_the_parent(learner: Learner, context: Any) -> None:
    controller = Controller(learner, FixedPolicy("in_context"))
    graph = StateGraph(Parent, context_schema=OtherContext)
    graph.add_node("solve", controller.as_node(strategy="ttt_in_context"))
    graph.add_edge(START, "solve")
    state = graph.compile().invoke({"task": TASK}, context=context)
    assert Result.from_plain(state["result"]).strategy == "ttt_in_context"


@pytest.mark.parametrize("context", [None, {"user": "somebody"}])
def test_a_graph_without_a_model_says_what_to_do(learner: Learner, context: Any) -> None:
    with pytest.raises(TypeError, match="as_node"):
        parent_of(build_graph()).invoke({"task": TASK}, context=context)
    with pytest.raises(TypeError, match="as_node"):
        build_graph().invoke({"task": TASK})


def test_an_invalid_setting_of_a_node_is_raised_when_the_node_is_made(learner: Learner) -> None:
    with pytest.raises(ValueError, match="budget"):
        Controller(learner, FixedPolicy("in_context")).as_node(budget="soon")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "task"),
        ({"task": None}, "task"),
        ("hello", "input"),
        ({"task": "hello"}, "task"),
        ({"task": {"demonstrations": [], "query": [1]}}, "kind"),
        ({"task": {"kind": "list", "query": [1]}}, "demonstrations"),
        ({"task": {"kind": "list", "demonstrations": []}}, "query"),
        ({"task": {"kind": "list", "demonstrations": [[1, 2]], "query": [1]}}, r"demonstrations\[0\]"),
        ({"task": {"kind": "list", "demonstrations": 5, "query": [1]}}, "demonstrations"),
        ({"task": {"kind": "list", "demonstrations": [{"input": [1], "output": "x"}], "query": [1]}}, "output"),
        ({"task": {"kind": "list", "demonstrations": [], "query": ["a"]}}, "query"),
        ({"task": {"kind": "lists", "demonstrations": [], "query": [1]}}, "kind"),
        ({"task": {"kind": "list", "demonstrations": [], "query": [1], "id": 7}}, "id"),
        ({"task": {"kind": "list", "demonstrations": [], "query": [1], "anwser": [1]}}, "anwser"),
        ({"task": TASK, "seed": "x"}, "seed"),
        ({"task": TASK, "seed": True}, "seed"),
        ({"task": TASK, "seed": 2**70}, "seed"),
    ],
)
def test_an_invalid_input_is_a_task_error_that_names_the_field(learner: Learner, given: Any, field: str) -> None:
    controller = Controller(learner, FixedPolicy("in_context"))
    with pytest.raises(TaskError, match=field):
        controller.graph.invoke(given, context=controller.context())
    with pytest.raises(TaskError, match=field):
        asyncio.run(controller.graph.ainvoke(given, context=controller.context()))
    if isinstance(given, dict):
        with pytest.raises(TaskError, match=field):
            parent_of(controller.as_node()).invoke({"attempts": [], **given})


def test_input_and_output_have_a_json_schema_for_tools_that_draw_forms() -> None:
    graph = build_graph()
    assert set(graph.get_input_jsonschema()["properties"]) == {"task", "seed"}
    assert graph.get_input_jsonschema()["required"] == ["task"]
    assert set(graph.get_output_jsonschema()["properties"]) == {"answer", "result"}
    assert graph.get_context_jsonschema() is None


@pytest.mark.filterwarnings("ignore:This API is in beta")
@pytest.mark.parametrize("seed", [{}, {"seed": 3}])
def test_a_node_is_a_tool(learner: Learner, seed: dict[str, int]) -> None:
    tool = Controller(learner, FixedPolicy("in_context")).as_node().as_tool(name="solve", description="Solves a task.")
    output = tool.invoke({"task": json.loads(json.dumps(task_to_plain(TASK))), **seed})
    assert Result.from_plain(output["result"]).task == TASK
    assert output["result"]["seed"] == seed.get("seed", 0)


def test_a_copy_of_a_node_keeps_its_model(learner: Learner) -> None:
    node = Controller(learner, FixedPolicy("in_context")).as_node().with_config(tags=["copy"])
    assert Result.from_plain(node.invoke({"task": TASK})["result"]).strategy == "in_context"


def test_an_empty_context_as_servers_of_langgraph_give_it_is_none(learner: Learner) -> None:
    node = Controller(learner, FixedPolicy("in_context")).as_node()
    empty: Any = {}
    assert node.invoke({"task": TASK}, context=empty)["result"]["strategy"] == "in_context"
    assert asyncio.run(node.ainvoke({"task": TASK}, context=empty))["result"]["strategy"] == "in_context"


def test_a_server_of_langgraph_whose_runtime_has_no_writer_is_no_parent() -> None:
    token = var_child_runnable_config.set({"configurable": {"__pregel_runtime": object()}})
    try:
        assert parent_stream_writer() is None
    finally:
        var_child_runnable_config.reset(token)


def test_a_seed_of_more_than_64_bits_is_refused(learner: Learner) -> None:
    controller = Controller(learner, FixedPolicy("in_context"))
    with pytest.raises(TaskError, match="seed"):
        controller.solve(TASK, seed=2**70)
    with pytest.raises(TaskError, match="seed"):
        controller.solve_many(queries(2), seed=2**70)


def test_a_task_in_plain_form_is_the_task() -> None:
    assert checked_task(json.loads(json.dumps(task_to_plain(TASK)))) == TASK
    assert checked_task(TASK) is TASK
    assert checked_task({"kind": "list", "demonstrations": [], "query": [1]}).id == "task"


# --- checkpoints, interrupts, time travel ---------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["measure", "decide", "ttt_in_context", "judge", "revert"])
def test_an_interrupted_run_resumes_to_what_an_uninterrupted_one_gives(learner: Learner, stop: str) -> None:
    controller, graph = Controller(learner, FixedPolicy("ttt_in_context")), build_graph(InMemorySaver())
    config: Any = {"configurable": {"thread_id": "one"}}
    whole = controller.solve(TASK)
    learner.clear()
    graph.invoke({"task": TASK}, config, context=controller.context(), interrupt_before=[stop])
    assert graph.get_state(config).next == (stop,)
    output = graph.invoke(None, config, context=controller.context())
    resumed = Result.from_plain(output["result"])
    assert same(resumed, whole)
    assert resumed.adaptation is not None
    assert whole.adaptation is not None
    assert resumed.adaptation.losses == whole.adaptation.losses


def test_the_pause_of_an_interrupt_is_not_charged_to_the_budget(learner: Learner) -> None:
    controller, graph = Controller(learner, FixedPolicy("ttt_in_context")), build_graph(InMemorySaver())
    config: Any = {"configurable": {"thread_id": "one"}}
    context = controller.context(1.5)
    graph.invoke({"task": TASK}, config, context=context, interrupt_before=["decide"])
    time.sleep(2.0)
    result = Result.from_plain(graph.invoke(None, config, context=context)["result"])
    assert result.strategy == "ttt_in_context"


def test_time_travel_gives_the_same_result_from_every_checkpoint(learner: Learner) -> None:
    controller, graph = Controller(learner, FixedPolicy("ttt_in_context")), build_graph(InMemorySaver())
    config: Any = {"configurable": {"thread_id": "one"}}
    whole = Result.from_plain(graph.invoke({"task": TASK}, config, context=controller.context())["result"])
    history = [s for s in graph.get_state_history(config) if s.next and s.next != (START,)]
    assert len(history) > 3
    for snapshot in history:
        learner.clear()
        output = graph.invoke(None, snapshot.config, context=controller.context())
        assert same(Result.from_plain(output["result"]), whole)


NODES = ["measure", "decide", *strategies(), "judge", "revert"]


def checkpoints_before(graph: Any, config: Any, node: str) -> list[Any]:
    """The checkpoints of a thread from which a node runs next, the first one first."""
    snapshots = [s for s in graph.get_state_history(config) if s.next == (node,)]
    assert snapshots
    return snapshots[::-1]


def solved_with(learner: Learner, node: str) -> tuple[Controller, Any, Any, Result]:
    """A controller whose runs enter a node, a checkpointed graph, its thread, and the result of a whole run on it."""
    strategy = node if node in strategies() else "ttt_in_context"
    controller, graph = Controller(learner, FixedPolicy(strategy)), build_graph(InMemorySaver())
    config: Any = {"configurable": {"thread_id": "one"}}
    learner.clear()
    output = graph.invoke({"task": TASK, "seed": 3}, config, context=controller.context())
    return controller, graph, config, Result.from_plain(output["result"])


def losses(result: Result) -> list[Any]:
    return [a.training_record and a.training_record.losses for a in result.attempts]


@pytest.mark.parametrize("clears", [True, False], ids=["cleared", "cached"])
@pytest.mark.parametrize("node", NODES)
def test_a_run_continued_before_any_node_is_a_fresh_run(
    learner: Learner, unchanged: Any, node: str, clears: bool
) -> None:
    controller, graph, config, whole = solved_with(learner, node)
    continued = []
    for snapshot in checkpoints_before(graph, config, node):
        if clears:
            learner.clear()
        with unchanged(learner.loaded.model, but="random state of Python"):
            output = graph.invoke(None, snapshot.config, context=controller.context())
        continued.append(Result.from_plain(output["result"]))
    learner.clear()
    for result in continued:
        for other in (whole, controller.solve(TASK, seed=3)):
            assert same(result, other)
            assert losses(result) == losses(other)


@pytest.mark.parametrize("node", NODES)
def test_a_run_continued_with_another_decision_or_task_is_a_fresh_run_of_that(
    learner: Learner, unchanged: Any, node: str
) -> None:
    controller, graph, config, _ = solved_with(learner, node)
    snapshot = checkpoints_before(graph, config, node)[0]
    other = "ttt_direct" if node != "ttt_direct" else "ttt_augmented"
    if node == "measure":
        task = queries(1)[0]
        fork, expected = graph.update_state(snapshot.config, {"task": task}), controller.solve(task, seed=3)
    else:
        decision = asdict(FixedPolicy(other).decide(Features(**snapshot.values["features"]), [other]))
        values = {"decision": decision, "attempts": [], "verdict": {}}
        fork = graph.update_state(snapshot.config, values, as_node="decide")
        learner.clear()
        expected = controller.solve(TASK, seed=3, strategy=other)
    with unchanged(learner.loaded.model, but="random state of Python"):
        output = graph.invoke(None, fork, context=controller.context())
    forked = Result.from_plain(output["result"])
    assert (forked.answer, forked.text, forked.strategy) == (expected.answer, expected.text, expected.strategy)
    assert forked.decision["strategy"] == expected.decision["strategy"]
    assert losses(forked) == losses(expected)


@pytest.mark.parametrize("node", NODES)
def test_a_state_of_another_model_policy_task_or_seed_is_refused_or_measured_again(learner: Learner, node: str) -> None:
    controller, graph, config, _ = solved_with(learner, node)
    snapshot = checkpoints_before(graph, config, node)[0]
    model = Learner.wrap(tiny_model("llama", 1), tiny_tokenizer(), prompt_format="compact")
    form = Learner.wrap(learner.loaded.model, learner.loaded.tokenizer, prompt_format="standard")
    recipes = dict.fromkeys(strategies(), QUICK)
    model.loaded, form.loaded = replace(model.loaded, recipes=recipes), replace(form.loaded, recipes=recipes)
    others = {
        "model": Controller(model, controller.policy), "prompt format": Controller(form, controller.policy),
        "policy": Controller(learner, HeuristicPolicy(), budget=UNLIMITED),  # its default is a multiple of a time
    }  # fmt: skip
    for name, other in others.items():
        if node == "measure":
            other.learner.clear()  # a decision depends on the adapters that are cached
            output = graph.invoke(None, snapshot.config, context=other.context())
            other.learner.clear()
            assert same(Result.from_plain(output["result"]), other.solve(TASK, seed=3))
            continue
        with pytest.raises(StateError, match=f"measured with the {name} .*before `measure`"):
            graph.invoke(None, snapshot.config, context=other.context())
    for name, value in (("task", task_to_plain(queries(1)[0])), ("seed", 4)):
        if node == "measure":
            continue
        fork = graph.update_state(snapshot.config, {name: value}, as_node=snapshot_node(node))
        with pytest.raises(StateError, match=f"measured with the {name} "):
            graph.invoke(None, fork, context=controller.context())


def snapshot_node(node: str) -> str:
    """The node after which a node runs."""
    return {"decide": "measure", "judge": "ttt_in_context", "revert": "judge"}.get(node, "decide")


def test_a_decision_for_an_unknown_strategy_is_refused(learner: Learner) -> None:
    _, graph, config, _ = solved_with(learner, "in_context")
    snapshot = checkpoints_before(graph, config, "in_context")[0]
    with pytest.raises(StrategyError, match="in_contxt"):
        graph.update_state(snapshot.config, {"decision": {**snapshot.values["decision"], "strategy": "in_contxt"}})


def test_another_task_may_be_put_into_an_earlier_checkpoint(learner: Learner) -> None:
    controller, graph = Controller(learner, FixedPolicy("in_context")), build_graph(InMemorySaver())
    config: Any = {"configurable": {"thread_id": "one"}}
    graph.invoke({"task": TASK}, config, context=controller.context())
    (start,) = [s for s in graph.get_state_history(config) if s.next == ("measure",)]
    other = queries(2)[1]
    for given in (other, task_to_plain(other)):
        fork = graph.update_state(start.config, {"task": given})
        output = graph.invoke(None, fork, context=controller.context())
        assert same(Result.from_plain(output["result"]), controller.solve(other))
    invalid: list[tuple[Any, str]] = [
        ({"task": {"kind": "list"}}, "demonstrations"),
        ({"task": 5}, "task"),
        ({"seed": "x"}, "seed"),
    ]
    for values, field in invalid:
        fork = graph.update_state(start.config, values)
        with pytest.raises(TaskError, match=field):
            graph.invoke(None, fork, context=controller.context())


def test_every_checkpoint_is_plain_data(learner: Learner, caplog: pytest.LogCaptureFixture) -> None:
    controller = Controller(learner, FixedPolicy("ttt_in_context"))
    strict = JsonPlusSerializer(allowed_msgpack_modules=None)
    graph = build_graph(InMemorySaver(serde=strict))
    config: Any = {"configurable": {"thread_id": "one"}}
    graph.invoke({"task": TASK}, config, context=controller.context(), interrupt_before=["judge"])
    graph.invoke(None, config, context=controller.context())
    for snapshot in graph.get_state_history(config):
        json.dumps(snapshot.values)
        assert strict.loads_typed(strict.dumps_typed(snapshot.values)) == json.loads(json.dumps(snapshot.values))
    assert not [r for r in caplog.records if "langgraph" in r.name]


class Keeps(TypedDict, total=False):
    task: Task
    result: Result


def test_a_result_in_the_state_of_a_parent_comes_back_whole(learner: Learner) -> None:
    result = Controller(learner, FixedPolicy("ttt_in_context")).solve(TASK)
    serializer = JsonPlusSerializer(
        allowed_msgpack_modules=[
            (type(part).__module__, type(part).__name__)
            for part in (result, result.task, TASK.demonstrations[0], result.attempts[0], result.cost, result.proof,
                         result.adaptation)
        ]
    )  # fmt: skip
    assert serializer.loads_typed(serializer.dumps_typed(result)) == result

    graph = StateGraph(Keeps)
    graph.add_node("solve", lambda state: {"result": result, "task": result.task})
    graph.add_edge(START, "solve")
    saver = InMemorySaver()
    config: Any = {"configurable": {"thread_id": "one"}}
    graph.compile(checkpointer=saver).invoke({}, config)
    values = graph.compile(checkpointer=saver).get_state(config).values
    assert values == {"result": result, "task": result.task}


def test_a_result_as_json_comes_back_whole(learner: Learner) -> None:
    result = Controller(learner, FixedPolicy("ttt_in_context")).solve(TASK)
    assert Result.from_plain(json.loads(json.dumps(result.to_plain(content=True)))) == result
    assert "demonstrations" not in result.to_plain()["task"]
    with pytest.raises(TaskError, match="content=True"):
        Result.from_plain(result.to_plain())


# --- streaming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subgraphs", [False, True])
@pytest.mark.parametrize("how", ["solve", "as_node", "solve_many"])
def test_training_steps_arrive_in_the_stream_of_a_parent(learner: Learner, how: str, subgraphs: bool) -> None:
    controller = Controller(learner, FixedPolicy("ttt_in_context"))

    def solve(state: Parent) -> Parent:
        if how == "solve_many":
            return {"answer": controller.solve_many([state["task"]])[0].answer}
        return {"answer": controller.solve(state["task"]).answer}

    parent = parent_of(controller.as_node() if how == "as_node" else solve)
    events = list(parent.stream({"task": TASK}, stream_mode="custom", subgraphs=subgraphs))
    steps = [event[1] for event in events] if subgraphs else events
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert {step["max_steps"] for step in steps} == {3}
    assert steps[-1]["seconds_left"] == 0 <= steps[0]["seconds_left"]
    assert {step["strategy"] for step in steps} == {"ttt_in_context"}


def test_training_steps_arrive_in_the_stream_of_an_asynchronous_parent(learner: Learner) -> None:
    parent = parent_of(Controller(learner, FixedPolicy("ttt_in_context")).as_node())

    async def steps() -> list[Any]:
        return [event["step"] async for event in parent.astream({"task": TASK}, stream_mode="custom")]

    assert asyncio.run(steps()) == [1, 2, 3]


def test_training_steps_of_a_coroutine_in_a_node_arrive_in_the_stream_of_the_parent(learner: Learner) -> None:
    controller = Controller(learner, FixedPolicy("ttt_in_context"))

    async def solve(state: Parent) -> Parent:
        return {"answer": (await controller.asolve(state["task"])).answer}

    async def steps() -> list[Any]:
        return [event["step"] async for event in parent_of(solve).astream({"task": TASK}, stream_mode="custom")]

    assert asyncio.run(steps()) == [1, 2, 3]


def test_a_half_read_stream_holds_nobody(learner: Learner) -> None:
    controller = Controller(learner, FixedPolicy("ttt_in_context"))
    stream = controller.stream(TASK)
    next(stream)
    answers: list[Result] = []
    thread = threading.Thread(target=lambda: answers.append(controller.solve(TASK)), daemon=True)
    thread.start()
    thread.join(60)
    assert answers
    assert isinstance(list(stream)[-1], Result)


def test_a_stream_that_is_dropped_stops_its_work(endless: Learner) -> None:
    controller = Controller(endless, FixedPolicy("ttt_in_context"))
    stream = controller.stream(TASK)
    assert any(isinstance(event, dict) and event["event"] == "step" for event in stream)
    del stream
    assert controller.solve(TASK, strategy="in_context").strategy == "in_context"
    assert not [t for t in threading.enumerate() if t.name == "autottt"]


def test_a_slow_reader_loses_old_steps_and_never_a_node() -> None:
    done = threading.Event()

    def work(publish: background.Publish[Any]) -> None:
        for number in range(background.EVENT_LIMIT + 10):
            publish(number, droppable=True)
            if number == 5:
                publish("node")
        done.set()

    run = background.BackgroundRun(work, threading.Event())
    assert done.wait(60)
    events, _ = run.take(wait=True)
    run.stop()
    assert events[0] == "node"
    assert events[1:] == list(range(10, background.EVENT_LIMIT + 10))


def test_an_error_of_the_work_is_raised_where_the_events_are_read(learner: Learner) -> None:
    long = make_task([([1] * 900, [2]), ([1], [2])], [3], id="long")
    controller = Controller(learner, FixedPolicy("in_context"))
    with pytest.raises(ValueError, match="tokens"):
        list(controller.stream(long))
    with pytest.raises(ValueError, match="tokens"):
        asyncio.run(controller.asolve(long))


# --- several callers at once ------------------------------------------------------------------------------------------


def backward_tokens(controller: Controller, tasks: list[Task]) -> list[int]:
    """What training each task alone takes."""
    tokens = []
    for task in tasks:
        controller.learner.clear()
        tokens.append(controller.solve(task).cost.backward_tokens)
    controller.learner.clear()
    return tokens


def trainable(count: int) -> list[Task]:
    """Tasks that share no adapter and differ in length."""
    return [replace(TASK, demonstrations=TASK.demonstrations * (n + 1), id=f"task{n}") for n in range(count)]


def test_a_thread_that_inherits_the_turn_of_a_queue_pays_for_its_own_work(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller, tasks = Controller(learner, FixedPolicy("ttt_crossfit")), trainable(4)
    alone = backward_tokens(controller, tasks)
    inner: list[Result] = []
    contexts: list[Context] = []
    threads: list[threading.Thread] = []
    train = AdapterTrainer.cross_validate

    def train_while_another_thread_solves(self: AdapterTrainer, *arguments: Any, **settings: Any) -> Any:
        if contexts:
            solve = partial(controller.solve, TASK, strategy="in_context")
            threads.append(threading.Thread(target=lambda run: inner.append(run(solve)), args=[contexts.pop().run]))
            threads[-1].start()
            time.sleep(0.1)  # time to begin, were it not for the turn
        return train(self, *arguments, **settings)

    monkeypatch.setattr(AdapterTrainer, "cross_validate", train_while_another_thread_solves)
    outer = controller.solve_many(tasks, on_result=lambda _: contexts.append(copy_context()))
    for thread in threads:
        thread.join(60)
    assert len(inner) == 3
    assert [result.cost.backward_tokens for result in inner] == [0] * 3
    assert [result.cost.backward_tokens for result in outer] == alone


def test_solving_inside_an_open_stream_costs_neither_what_the_other_does(learner: Learner) -> None:
    controller, tasks = Controller(learner, FixedPolicy("ttt_in_context")), trainable(3)
    alone = backward_tokens(controller, tasks)

    async def inside() -> tuple[list[Result], list[Result]]:
        outer, inner = [], []
        for task in tasks:
            async for event in controller.astream(task):
                if isinstance(event, Result):
                    outer.append(event)
                else:
                    inner.append(await asyncio.to_thread(controller.solve, TASK, strategy="in_context"))
        for task in tasks:
            learner.clear()
            for event in controller.stream(task):
                if isinstance(event, Result):
                    outer.append(event)
                else:
                    inner.append(await asyncio.to_thread(controller.solve, TASK, strategy="in_context"))
        return outer, inner

    outer, inner = asyncio.run(inside())
    assert [result.cost.backward_tokens for result in outer] == alone * 2
    assert len(inner) > 12
    assert {result.cost.backward_tokens for result in inner} == {0}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_stream_that_was_open_when_the_process_was_forked_is_closed_in_the_child(endless: Learner) -> None:
    stream: Any = Controller(endless, FixedPolicy("ttt_in_context")).stream(TASK)
    next(stream)
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(20)
            list(stream)
        except ClosedError as error:
            os._exit(10 if "the process that this one was forked from" in str(error) else 11)
        finally:
            os._exit(12)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
    stream.close()


@pytest.mark.parametrize("closes", ["stream", "graph"])
def test_a_stream_that_another_thread_closes_leaves_the_model_free_and_costs_right(
    closes: str, endless: Learner
) -> None:
    controller = Controller(endless, FixedPolicy("ttt_in_context"))
    if closes == "stream":
        stream: Any = controller.stream(TASK)
    else:
        stream = controller.graph.stream({"task": TASK}, context=controller.context(), stream_mode="custom")
    next(stream)
    closing = threading.Thread(target=stream.close)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()
    assert controller.learner.guarded.lock.owner() is None
    results: list[Result] = []

    def solve() -> None:
        results.append(controller.solve(TASK, strategy="in_context"))

    others = [threading.Thread(target=solve) for _ in range(3)]
    for thread in others:
        thread.start()
    results.append(controller.solve(TASK, strategy="in_context"))
    for thread in others:
        thread.join(60)
    assert [result.cost.backward_tokens for result in results] == [0] * 4
    held, ends, cancel = threading.Event(), threading.Event(), threading.Event()
    holder = threading.Thread(target=hold, args=(endless, held, ends))
    holder.start()
    assert held.wait(10)
    threading.Timer(0.05, cancel.set).start()
    with pytest.raises(Cancelled):  # the stream has left this thread no turn: it waits like any other
        controller.solve(TASK, strategy="in_context", cancel=cancel)
    ends.set()
    holder.join()


def hold(learner: Learner, held: threading.Event, ends: threading.Event) -> None:
    """Reserves the model until `ends` is set."""
    with learner.guarded.lock.exclusive():
        held.set()
        ends.wait(10)


# --- coroutines -------------------------------------------------------------------------------------------------------


def test_coroutines_get_what_solve_gives(learner: Learner) -> None:
    controller = Controller(learner, FixedPolicy("ttt_in_context"))
    alone = []
    for task in queries(3):
        learner.clear()
        alone.append(controller.solve(task))
    learner.clear()

    async def together() -> list[Result]:
        return list(await asyncio.gather(*(controller.asolve(task) for task in queries(3))))

    for one, two in zip(alone, asyncio.run(together()), strict=True):
        assert (one.answer, one.text, one.reason) == (two.answer, two.text, two.reason)


def test_an_asynchronous_stream_gives_nodes_steps_and_the_result(learner: Learner) -> None:
    controller = Controller(learner, FixedPolicy("ttt_in_context"))

    async def events() -> list[Any]:
        return [event async for event in controller.astream(TASK)]

    seen = asyncio.run(events())
    assert isinstance(seen[-1], Result)
    assert [e["step"] for e in seen[:-1] if e["event"] == "step"] == [1, 2, 3]
    assert [e["node"] for e in seen[:-1] if e["event"] == "node"] == [
        "measure", "decide", "ttt_in_context", "judge", "revert",
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["asolve", "astream", "ainvoke", "as_node"])
def test_a_cancelled_coroutine_cancels_the_work(endless: Learner, how: str) -> None:
    controller = Controller(endless, FixedPolicy("ttt_in_context"))
    before = endless.verify(full=True)

    async def run() -> None:
        if how == "asolve":
            await controller.asolve(TASK)
        elif how == "astream":
            async for _ in controller.astream(TASK):
                pass
        elif how == "ainvoke":
            await controller.graph.ainvoke({"task": TASK}, context=controller.context())
        else:
            await parent_of(controller.as_node()).ainvoke({"task": TASK})

    async def limited() -> float:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run(), 1.0)
        began = time.monotonic()
        result = await controller.asolve(TASK, strategy="in_context")
        assert result.strategy == "in_context"
        return time.monotonic() - began

    asyncio.run(limited())  # returns, though 100,000 steps were to come
    trained = endless.guarded.charged.backward_tokens
    time.sleep(0.3)
    assert endless.guarded.charged.backward_tokens == trained, "training continues"
    assert endless.verify(full=True).hash == before.hash


def test_a_closed_stream_of_the_graph_cancels_the_work(endless: Learner) -> None:
    controller = Controller(endless, FixedPolicy("ttt_in_context"))
    stream = controller.graph.stream({"task": TASK}, context=controller.context(), stream_mode="custom")
    assert next(stream)["step"] == 1
    stream.close()  # returns, though 99,999 steps were to come
    trained = endless.guarded.charged.backward_tokens
    assert controller.solve(TASK, strategy="in_context")
    assert endless.guarded.charged.backward_tokens == trained


def test_the_event_loop_is_free_while_a_task_is_solved(endless: Learner) -> None:
    controller = Controller(endless, FixedPolicy("ttt_in_context"))

    async def ticks() -> int:
        count = 0
        work = asyncio.ensure_future(controller.asolve(TASK))
        for _ in range(20):
            await asyncio.sleep(0.02)
            count += not work.done()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        return count

    assert asyncio.run(ticks()) == 20


def test_a_budget_and_an_event_work_in_coroutines(endless: Learner) -> None:
    controller, cancel = Controller(endless, FixedPolicy("ttt_in_context")), threading.Event()
    threading.Timer(0.5, cancel.set).start()
    with pytest.raises(Cancelled):
        asyncio.run(controller.asolve(TASK, cancel=cancel))


# --- which strategies run ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unparsed")
@pytest.mark.parametrize("forced", ["call", "policy"])
def test_a_forced_strategy_is_the_only_one(learner: Learner, forced: str) -> None:
    if forced == "call":
        result = Controller(learner, FixedPolicy("zero_shot")).solve(TASK, strategy="in_context")
    else:
        result = Controller(learner, FixedPolicy("in_context")).solve(TASK)
    assert [a.strategy for a in result.attempts] == ["in_context"]
    assert result.status == "no_answer"
    assert "is incomplete or cannot be parsed; no other strategy can be tried" in result.reason


@pytest.mark.usefixtures("unparsed")
@pytest.mark.parametrize("policy", [None, FixedPolicy("in_context")])
def test_a_task_without_demonstrations_and_without_an_answer_says_what_was_spent(
    learner: Learner, policy: FixedPolicy | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for strategy in strategies().values():
        if strategy.name != "in_context":
            monkeypatch.setattr(
                type(strategy), "attempt", lambda self, *a, **k: Attempt(self.name, None, "?", 0.1)
            )  # nothing can be parsed
    bare = make_task([], [1, 2], kind="list", id="bare")
    (result,) = Controller(learner, policy).solve_many([bare])
    assert result.status == "no_answer"
    assert result.cost.forward_tokens > 0
    assert Controller(learner, policy).solve(bare).status == "no_answer"


# --- arguments and settings -------------------------------------------------------------------------------------------


def test_a_policy_may_be_the_folder_of_a_bundle(learner: Learner) -> None:
    with pytest.raises(PolicyError, match="another model"):
        Controller(learner, BUNDLED)
    with pytest.raises(PolicyError, match="no/such"):
        Controller(learner, "no/such")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda c: c.solve_many([TASK, "x"]), "received a str"),
        (lambda c: c.solve(TASK, cancel=True), "threading.Event; received True"),
        (lambda c: c.solve(None), "received a NoneType"),
        (lambda c: asyncio.run(c.asolve("x")), "received a str"),
        (lambda c: list(c.stream("x")), "received a str"),
    ],
)
def test_an_invalid_argument_is_named(learner: Learner, call: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        call(Controller(learner, FixedPolicy("in_context")))


def test_a_model_without_a_policy_gets_a_budget_and_a_warning(
    learner: Learner, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "autottt"):
        controller = Controller(learner)
    assert controller.budget == DEFAULT_BUDGET
    assert "no policy was trained" in caplog.text
    assert str(DEFAULT_BUDGET) in caplog.text
    caplog.clear()
    explored = ExploringPolicy(controller.policy, FixedPolicy("in_context"), explore=0.1)
    assert Controller(learner, explored).budget == DEFAULT_BUDGET
    caplog.clear()
    assert Controller(learner, budget="7s").budget.seconds == 7
    assert Controller(learner, FixedPolicy("in_context")).budget.seconds == float("inf")
    assert isinstance(controller.policy, AnyModelPolicy)
    assert Controller(learner, replace(controller.policy, knows_model=True)).budget == UNLIMITED
    assert not caplog.text


def test_decisions_and_steps_are_logged(learner: Learner, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "autottt"):
        Controller(learner, FixedPolicy("ttt_in_context")).solve(TASK)
    lines = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "autottt"]
    assert [level for level, text in lines if "always ttt_in_context" in text] == ["INFO"]
    assert len([level for level, text in lines if level == "DEBUG" and "step" in text and "of at most 3" in text]) == 3
    assert all("reverse" in text for _, text in lines)


@pytest.mark.parametrize("asked", [False, True])
def test_runs_are_sent_to_langsmith_only_on_request(
    learner: Learner, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    from langchain_core.tracers.langchain import LangChainTracer
    from langsmith import utils

    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    monkeypatch.setenv("LANGSMITH_API_KEY", "none")
    monkeypatch.setattr("langchain_core.tracers.langchain.get_client", Mock)
    utils.get_env_var.cache_clear()
    sent: list[str] = []
    monkeypatch.setattr(LangChainTracer, "_persist_run_single", lambda self, run: sent.append(run.name))
    monkeypatch.setattr(LangChainTracer, "_update_run_single", lambda self, run: None)
    try:
        controller = Controller(learner, FixedPolicy("in_context"), langsmith=asked)
        calls: list[Callable[[], object]] = [
            lambda: controller.solve(TASK), lambda: controller.solve_many(queries(2)),
            lambda: list(controller.stream(TASK)), lambda: asyncio.run(controller.asolve(TASK)),
        ]  # fmt: skip
        for call in calls:
            sent.clear()
            call()
            assert bool(sent) == asked
    finally:
        utils.get_env_var.cache_clear()


def test_demonstrations_from_a_serializer_are_tuples_again() -> None:
    lists: Any = [1, 2]
    assert Demonstration(lists, lists) == Demonstration((1, 2), (1, 2))
