"""Stored traces as rows of a log: outcomes of what was run, with the policy, versions and time of the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autottt.controller.controller import Controller
from autottt.controller.run_facts import RunFacts
from autottt.controller.tracing.answers import answer_sentences
from autottt.controller.tracing.content import without_content
from autottt.controller.tracing.log_rows import log_rows
from autottt.controller.tracing.recorder import TraceRecorder
from autottt.controller.tracing.store import TraceStore
from autottt.controller.tracing.trace import NoResultError, Trace
from autottt.policies.exploration import ExploringPolicy
from autottt.policies.features import NAMES
from autottt.policies.outcome_table import build_outcome_table
from autottt.policies.outcomes import Outcome, OutcomeStore
from autottt.policies.policy import FixedPolicy
from autottt.policies.serving_logs import is_forced, outcomes_of, skipped_counts, unlabelled_queries, with_right_answers
from autottt.policies.store_update import StoreUpdate
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.task import Task
from tests.controller.tracing.sample_traces import small_learner

QUICK = Recipe(rank=2, alpha=2.0, dropout=0.0, learning_rate=1e-3, max_steps=3, batch_size=2, transformations=1)
EXPLORING = ExploringPolicy(FixedPolicy("in_context"), explore=1.0, seed=2)


def task_of(number: int, **more: object) -> Task:
    pairs: list[tuple[object, object]] = [([1, number], [number, 1]), ([3, 4], [4, 3]), ([5, 6], [6, 5])]
    return make_task(pairs, [number, 8], answer=[8, number], id=f"t{number}", family=f"f{number}")


TASKS = [task_of(n) for n in range(6)]


@pytest.fixture(scope="module")
def learner() -> Learner:
    return small_learner(QUICK)


@pytest.fixture(scope="module")
def explored(learner: Learner, tmp_path_factory: pytest.TempPathFactory) -> list[Trace]:
    """Traces of queries whose strategies were drawn."""
    store = TraceStore(tmp_path_factory.mktemp("store") / "traces.sqlite")
    learner.clear()
    Controller(learner, EXPLORING, trace=TraceRecorder([store])).solve_many(TASKS)
    return list(store.traces())


def outcomes(traces: list[Trace]) -> list[Outcome]:
    return outcomes_of(log_rows(traces)[0], forced=False)


def test_a_trace_gives_the_outcomes_of_the_strategies_that_were_run(explored: list[Trace], learner: Learner) -> None:
    rows, reasons = log_rows(explored)
    assert reasons == {}
    assert sorted(row["id"] for row in rows) == [task.id for task in TASKS]
    made = outcomes(explored)
    first = {t.task_facts["id"]: t.attempts[0] for t in explored if not t.attempts[0]["from_cache"]}
    assert {(o.task_id.partition("#")[0], o.strategy) for o in made} == {
        *((task.id, "in_context") for task in TASKS), *((name, attempt["strategy"]) for name, attempt in first.items()),
    }  # fmt: skip
    assert len({o.strategy for o in made}) > 2
    for outcome in made:
        trace = next(t for t in explored if t.task_facts["id"] == outcome.task_id.partition("#")[0])
        right = trace.in_context if outcome.strategy == "in_context" else trace.attempts[0]
        assert outcome.correct == float(right["value"] == trace.attributes["task"]["answer"])
        assert outcome.base_hash == learner.base_hash
        if outcome.strategy == "in_context":
            assert set(outcome.features) == set(NAMES[1])


def test_outcomes_say_which_policy_versions_and_time_they_are_of(
    explored: list[Trace], learner: Learner, tmp_path: Path
) -> None:
    facts = RunFacts.of(learner, EXPLORING)
    times = {trace.task_facts["id"]: trace.time for trace in explored}
    store = OutcomeStore(tmp_path / "outcomes")
    for outcome in outcomes(explored):
        store.append(outcome)
    store.seal()
    for outcome in store.read():
        assert outcome.policy == f"{EXPLORING.name} ({facts.policy['digest']})"
        assert outcome.time == times[outcome.task_id.partition("#")[0]]
        assert f"torch {facts.versions['torch']}" in outcome.versions


def test_a_strategy_that_the_caller_forced_teaches_about_the_in_context_answer_only(
    learner: Learner, tmp_path: Path
) -> None:
    store = TraceStore(tmp_path / "traces.sqlite")
    learner.clear()
    learner_probes = ExploringPolicy(FixedPolicy("ttt_direct"), explore=0.0)
    controller = Controller(learner, learner_probes, trace=TraceRecorder([store]))
    controller.solve(TASKS[0])
    (row,) = log_rows(list(store.traces()))[0]
    assert is_forced(row)
    measured = {**row, "features": dict.fromkeys(NAMES[1], 0.0)}
    assert [o.strategy for o in outcomes_of([measured], forced=False)] == ["in_context"]
    assert [o.strategy for o in outcomes_of([measured], forced=True)] == ["in_context", "ttt_direct"]


def test_traces_that_teach_nothing_are_counted_with_the_reason(
    explored: list[Trace], learner: Learner, tmp_path: Path
) -> None:
    store = TraceStore(tmp_path / "traces.sqlite")
    bare = Controller(learner, EXPLORING, trace=TraceRecorder([store], content=False))
    bare.solve(TASKS[0])
    kept = Controller(learner, EXPLORING, trace=TraceRecorder([store]))
    kept.solve(replace(TASKS[1], answer=None))
    kept.solve_many([replace(TASKS[2], query=tuple(range(9)) * 9000)])
    damaged = Trace({**explored[0].plain, "root": {**explored[0].root, "attributes": {
        **explored[0].attributes, "result": {**explored[0].result, "attempts": 3}}}})  # fmt: skip
    rows, reasons = log_rows([*store.traces(), damaged])
    assert reasons == {
        "the trace was stored without content, so its answers are unknown": 1,
        "the run ended without a result (refused, failed, cancelled or interrupted)": 1,
        "the trace is of another version of this package, or damaged": 1,
    }
    assert skipped_counts(rows) == {"the right answer is unknown (--answers FILES)": 1}
    assert outcomes_of(rows, forced=False) == []
    answered = with_right_answers(rows, [replace(TASKS[1], answer=(8, 1))])
    assert {o.task_id for o in outcomes_of(answered, forced=False)} == {f"t1#{TASKS[1].digest}"}
    _, reasons = log_rows(explored, base_hash="f" * 8)
    assert reasons == {"the run is of another model (--model-hash)": len(explored)}


@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize("right", [True, False])
def test_a_label_makes_outcomes_of_a_run_whose_right_answer_was_unknown(
    learner: Learner, tmp_path: Path, content: bool, right: bool
) -> None:
    store = TraceStore(tmp_path / "traces.sqlite")
    learner.clear()
    exploring = Controller(learner, EXPLORING, trace=TraceRecorder([store], content=content))
    for task in TASKS[:3]:
        exploring.solve(replace(task, answer=None))
    for trace in store.traces():
        first = trace.attempts[0]["strategy"]
        strategies_right = {"in_context": right, first: not right} if first != "in_context" else {first: right}
        store.label(trace.id, {"right": right, "strategies": strategies_right, "answer": [0]})
    rows, reasons = log_rows(store.traces())
    assert reasons == {}
    made = outcomes_of(rows, forced=False)
    assert len(made) > 3
    if not content:
        assert all(o.correct == float(right == (o.strategy == "in_context")) for o in made)
    assert skipped_counts(rows) == {}


@pytest.mark.parametrize("right", [True, False])
def test_a_label_without_the_right_answer_teaches_the_same_with_content_and_without(
    explored: list[Trace], right: bool
) -> None:
    trace = next(t for t in explored if t.attempts[0]["strategy"] != "in_context")
    names = "in_context", trace.attempts[0]["strategy"]
    label = {"right": right, "strategies": dict.fromkeys(names, right)}
    task = {**trace.result["task"], "answer": None}
    answers = {"answer": [0], "in_context": {**trace.in_context, "value": [0]}, "attempts": [
        {**attempt, "value": [0]} for attempt in trace.attempts
    ]}  # fmt: skip
    attributes = {**trace.attributes, "result": {**trace.result, **answers, "task": task}}
    known = Trace({**trace.plain, "root": {**trace.root, "attributes": attributes}, "label": label})
    assert [o.correct for o in outcomes([known])] == [float(right)] * len(outcomes([known])) != []
    assert outcomes([Trace({**known.plain, "label": {**label, "answer": None}})]) == outcomes([known])
    reduced = without_content(known)
    assert [o.correct for o in outcomes([reduced])] == [o.correct for o in outcomes([known])]


def test_a_label_of_another_answer_than_the_first_ones_gives_no_outcome(learner: Learner, tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "traces.sqlite")
    learner.clear()
    controller = Controller(learner, FixedPolicy("ttt_direct"), trace=TraceRecorder([store], content=False))
    controller.solve(replace(TASKS[0], answer=None))
    (trace,) = store.traces()
    store.label(trace.id, {"right": False, "strategies": {"ttt_direct": False}})
    rows, reasons = log_rows(store.traces())
    assert (len(rows), reasons, outcomes_of(rows)) == (1, {}, [])
    assert skipped_counts(rows) == {"their feedback does not say whether each of their answers was right": 1}
    assert with_right_answers(rows, TASKS) == rows, "its answers are unknown"


def test_the_answer_that_came_with_a_task_is_not_right_where_feedback_of_the_served_answer_says_otherwise(
    learner: Learner, tmp_path: Path
) -> None:
    """By a server that no longer has the answers in memory, so it cannot tell what each strategy's was."""
    store = TraceStore(tmp_path / "traces.sqlite")
    learner.clear()
    Controller(learner, EXPLORING, trace=TraceRecorder([store])).solve(TASKS[0])
    (trace,) = store.traces()
    served = {**trace.result, "answer": trace.task_facts["answer"]}
    plain = {**trace.plain, "root": {**trace.root, "attributes": {**trace.attributes, "result": served}}}
    assert outcomes([Trace(plain)])
    label = {"right": False, "strategies": {}}
    refuted = Trace({**plain, "label": label})
    assert (refuted.right_answer, outcomes([refuted])) == (None, [])
    there = Trace({**plain, "label": {**label, "other_server": True}})
    assert outcomes([there]), "the answer of another server was wrong"


@pytest.mark.parametrize("content", [True, False])
def test_outcomes_whose_feedback_was_corrected_and_no_longer_tells_are_found(
    learner: Learner, tmp_path: Path, content: bool
) -> None:
    store, kept = TraceStore(tmp_path / "traces.sqlite"), OutcomeStore(tmp_path / "outcomes")
    learner.clear()
    controller = Controller(learner, EXPLORING, trace=TraceRecorder([store], content=content))
    for task in TASKS:
        controller.solve(replace(task, answer=None))
    traces = {trace.id: trace.attempts[0]["strategy"] for trace in store.traces()}
    for id, strategy in traces.items():
        store.label(id, {"right": True, "strategies": {"in_context": strategy == "in_context", strategy: True}})
    for outcome in outcomes(list(store.traces())):
        kept.append(outcome)
    kept.close()
    assert not planned(kept, store)
    id, strategy = next(item for item in traces.items() if item[1] != "in_context")
    store.label(id, {"right": False, "strategies": {strategy: False}})
    rows, _ = log_rows(store.traces())
    (query,) = unlabelled_queries(rows)
    update = planned(kept, store)
    assert (update.new, update.relabelled) == ([], [])
    gone = [o for o in kept.read() if o.key in update.dropped]
    assert {(o.dataset, o.task_id, o.seed) for o in gone} == {query}
    assert {o.strategy for o in gone} == {"in_context", strategy}
    update.apply()
    assert [o for o in kept.read() if (o.dataset, o.task_id, o.seed) == query] == []
    assert kept.read() == update.outcomes
    assert len(kept.read()) == len(outcomes(list(store.traces()))) > 0
    assert not planned(kept, store)


def planned(kept: OutcomeStore, store: TraceStore) -> StoreUpdate:
    return StoreUpdate.planned(kept, [], log_rows(store.traces())[0], forced=False)


def test_of_contrary_labels_of_one_query_that_of_the_newest_trace_counts(learner: Learner, tmp_path: Path) -> None:
    store, kept = TraceStore(tmp_path / "traces.sqlite"), OutcomeStore(tmp_path / "outcomes")
    controller = Controller(learner, EXPLORING, trace=TraceRecorder([store]))
    for task in [TASKS[1], TASKS[0], TASKS[0]]:
        learner.clear()
        controller.solve(replace(task, answer=None))
    for trace, right in zip(store.traces(), (False, True, True), strict=True):
        strategies = ["in_context", *(attempt["strategy"] for attempt in trace.attempts)]
        store.label(trace.id, {"right": right, "strategies": dict.fromkeys(strategies, right)})
    update = planned(kept, store)
    update.apply()
    assert {o.task_id.partition("#")[0]: o.correct for o in kept.read()} == {"t0": 0.0, "t1": 1.0}
    assert kept.read() == update.outcomes == sorted(update.new, key=lambda o: o.key)
    assert not planned(kept, store), "nothing is relabelled again"
    newest = next(store.traces())
    store.label(newest.id, {"right": True, "strategies": dict.fromkeys(strategies, True)})
    update = planned(kept, store)
    assert {o.task_id.partition("#")[0] for o in update.relabelled} == {"t0"}
    update.apply()
    assert [o.correct for o in kept.read()] == [1.0] * len(kept.read())


def test_an_answer_of_the_task_that_the_label_refutes_is_not_the_right_one(explored: list[Trace]) -> None:
    trace = next(t for t in explored if t.attempts[0]["strategy"] != "in_context")
    attempt = {**trace.result["attempts"][0], "value": [8, 1]}
    task, own = ({**facts["task"], "answer": attempt["value"]} for facts in (trace.attributes, trace.result))
    result = {**trace.result, "task": own, "attempts": [attempt], "answer": attempt["value"]}
    attributes = {**trace.attributes, "task": task, "result": result}
    label = {"right": False, "strategies": {attempt["strategy"]: False}}
    known = Trace({**trace.plain, "root": {**trace.root, "attributes": attributes}})
    refuted = Trace({**known.plain, "label": label})
    assert known.right_answer == attempt["value"]
    assert refuted.right_answer is None
    said = " ".join(answer_sentences(refuted))
    assert "Right answer" not in said
    assert f"{attempt['strategy']}: " in said
    assert "as the right answer" not in said
    assert outcomes([known]) != []
    assert outcomes([refuted]) == []
    confirmed = Trace({**known.plain, "label": {"right": True, "strategies": {attempt["strategy"]: True}}})
    assert confirmed.right_answer == known.right_answer


def test_a_run_without_a_result_takes_no_label(explored: list[Trace], tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "traces.sqlite")
    trace = explored[0]
    attributes = {name: value for name, value in trace.attributes.items() if name != "result"}
    ended = Trace({**trace.plain, "root": {**trace.root, "attributes": attributes, "status": "cancelled"}})
    store.write(ended)
    with pytest.raises(NoResultError, match=r"ended without an answer \(cancelled\)"):
        store.label(ended.id, {"right": True, "strategies": {}})
    labelled = Trace({**ended.plain, "label": {"right": True, "strategies": {}}})
    assert (labelled.is_right, labelled.right_answer) == (None, trace.task_facts["answer"])


def test_a_task_under_two_names_is_in_one_family(explored: list[Trace], learner: Learner, tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "traces.sqlite")
    learner.clear()
    twin = replace(TASKS[0], id="twin", family="another")
    Controller(learner, EXPLORING, trace=TraceRecorder([store])).solve(twin)
    made = [o for o in outcomes([*explored, *store.traces()]) if o.strategy == "in_context"]
    collected = [replace(o, strategy="ttt_direct", features={}, relative_cost=9.0) for o in made]
    table = build_outcome_table([*made, *collected])
    families = dict(zip(table.tasks, table.families, strict=True))
    (first,), (second,) = ([f for t, f in families.items() if t.startswith(name)] for name in ("t0#", "twin#"))
    assert first == second
    assert len(set(families.values())) == len(TASKS)
