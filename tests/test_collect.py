"""Outcomes survive a kill, and collecting goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json

import pytest

from autottt.policies.collect import collect
from autottt.policies.features import FEATURES_VERSION, NAMES
from autottt.policies.outcomes import Outcome, OutcomeStore
from autottt.strategies.base import Attempt
from autottt.ttt_core.decoding import TokenScores
from autottt.ttt_core.errors import AdaptationError, PolicyError, TaskError, TooLongError
from autottt.ttt_core.kinds import make_task
from autottt.ttt_core.learner import Answer, Reading, Work

OUTCOME = Outcome(
    "t1", "t1", "f", "d", "list", "in_context", 0, "answered", 1.0, 0.1, 10, 1.0, "base", {"a": 0.5}, 1, 2.0
)
TASKS = [
    make_task([([1], [1]), ([2], [2])], [3], answer=[3], id=f"t{i}", family=f"f{i}", dataset="made") for i in range(3)
]
SCORES = TokenScores((-0.1, -0.1), (0.3, 0.3), (1.0, 1.0), (True, True))


class Echo:
    """A learner that answers with the query; every answer takes ten tokens, every scored task one."""

    base_hash = "base"

    def __init__(self) -> None:
        self.work = Work()
        self.ahead = 0.0
        self.answered = 0

    def forget(self):
        self.prefix_known = False

    def read(self, task):
        return Reading((SCORES,) * len(task.demonstrations))

    def answer(self, tasks, adapter=None):
        self.answered += 1
        self.work = Work(self.work.forward + 10 * len(tasks), self.work.backward)
        return [Answer(t.query, "", SCORES, True) for t in tasks]

    def score(self, tasks):
        self.work = Work(self.work.forward + len(tasks), self.work.backward)
        return [[SCORES] for _ in tasks]

    def fits(self, task):
        return True


@dataclasses.dataclass(frozen=True)
class Fake:
    """Works a while, then answers or raises."""

    name: str = "fake"
    cost_class: str = "train"
    needs: int = 0
    error: Exception | None = None
    value: object = None

    def attempt(self, learner, task, *, seed=0, deadline=0.0, on_step=None):
        learner.work = Work(learner.work.forward + 100, learner.work.backward + 50)
        if self.error:
            raise self.error
        return Attempt(self.name, self.value, "", 1.0)


def collected(folder, strategies=(Fake(),), learner=None, tasks=TASKS, seeds=(0,)):
    store = OutcomeStore(folder)
    collect(learner or Echo(), tasks, strategies, seeds, store)
    return store.read()


# --- the store -------------------------------------------------------------------------------------------------------


def test_what_is_appended_is_read(tmp_path):
    store = OutcomeStore(tmp_path / "new")
    assert store.read() == []
    store.append(OUTCOME)
    store.append(dataclasses.replace(OUTCOME, seed=1))
    assert [o.seed for o in OutcomeStore(tmp_path / "new").read()] == [0, 1]
    assert store.read()[0] == OUTCOME
    assert store.done() == {OUTCOME.key, OUTCOME.key._replace(seed=1)}


@pytest.mark.parametrize("kept", [1, 40])
def test_a_torn_last_line_is_dropped_and_written_over(tmp_path, kept):
    store = OutcomeStore(tmp_path)
    store.append(OUTCOME)
    with open(store.path, "ab") as file:
        file.write(json.dumps(dataclasses.asdict(OUTCOME)).encode()[:kept])
    assert store.read() == [OUTCOME]
    store.append(dataclasses.replace(OUTCOME, seed=1))
    assert [o.seed for o in store.read()] == [0, 1]


def test_a_first_line_that_is_torn_leaves_nothing(tmp_path):
    store = OutcomeStore(tmp_path)
    store.path.write_bytes(b'{"task_id": "t')
    assert store.read() == []
    store.append(OUTCOME)
    assert store.read() == [OUTCOME]


def test_a_line_that_is_no_outcome_is_named(tmp_path):
    store = OutcomeStore(tmp_path)
    store.append(OUTCOME)
    with open(store.path, "ab") as file:
        file.write(b'{"other": 1}\n')
    with pytest.raises(PolicyError, match=r"outcomes\.jsonl:2: not an outcome"):
        store.read()


# --- collecting ------------------------------------------------------------------------------------------------------


def test_every_strategy_is_run_on_every_task_and_seed_and_in_context_always(tmp_path):
    outcomes = collected(tmp_path, seeds=(0, 1))
    assert len({o.key for o in outcomes}) == len(outcomes) == 3 * 2 * 2
    assert {o.strategy for o in outcomes} == {"in_context", "fake"}


def test_cost_is_a_multiple_of_the_in_context_work(tmp_path):
    by = {o.strategy: o for o in collected(tmp_path, tasks=TASKS[:1])}
    assert (by["in_context"].work, by["in_context"].cost) == (10, 1.0)
    assert (by["fake"].work, by["fake"].cost) == (200, 20.0)


def test_features_and_their_price_stand_on_the_in_context_row_alone(tmp_path):
    by = {o.strategy: o for o in collected(tmp_path, tasks=TASKS[:1])}
    assert set(by["in_context"].features) == set(NAMES[1])
    assert by["in_context"].features_version == FEATURES_VERSION
    assert 0 < by["in_context"].probe_cost < 2
    assert (by["fake"].features, by["fake"].probe_cost) == ({}, 0)


def test_right_and_wrong_answers_are_told_apart(tmp_path):
    by = {o.strategy: o for o in collected(tmp_path, [Fake(value=(4,))], tasks=TASKS[:1])}
    assert (by["in_context"].correct, by["in_context"].status) == (1.0, "answered")
    assert (by["fake"].correct, by["fake"].status) == (0.0, "answered")


@pytest.mark.parametrize(
    ("strategy", "status", "work"),
    [
        (Fake(error=AdaptationError("NaN")), "failed", 200),
        (Fake(error=TooLongError("long")), "too_long", 200),
        (Fake(needs=3), "too_few", 0),
        (Fake(), "unreadable", 200),
    ],
)
def test_a_failure_is_an_outcome_with_its_full_cost(tmp_path, strategy, status, work):
    found = [o for o in collected(tmp_path, [strategy], tasks=TASKS[:1]) if o.strategy == "fake"]
    assert [(o.status, o.correct, o.work, o.cost) for o in found] == [(status, 0.0, work, work / 10)]


def test_a_task_too_long_to_be_read_is_an_outcome_without_features(tmp_path):
    class Full(Echo):
        def answer(self, tasks, adapter=None):
            raise TooLongError("long")

    by = {o.strategy: o for o in collected(tmp_path, learner=Full(), tasks=TASKS[:1])}
    assert (by["in_context"].status, by["in_context"].features) == ("too_long", {})
    assert by["fake"].cost == 0.0


def test_collecting_goes_on_where_it_stopped_without_repeating(tmp_path):
    whole = collected(tmp_path / "whole", seeds=(0, 1))

    class Killed(Exception):
        pass

    def kill(done, total):
        assert total == 12
        if done in (4, 5):
            raise Killed

    store, learner = OutcomeStore(tmp_path / "parts"), Echo()
    for _ in range(2):
        with pytest.raises(Killed):
            collect(learner, TASKS, [Fake()], (0, 1), store, kill)
    collect(learner, TASKS, [Fake()], (0, 1), store, kill)

    def facts(outcomes):
        return [dataclasses.replace(o, seconds=0.0) for o in outcomes]

    assert facts(store.read()) == facts(whole)
    again = learner.answered
    collect(learner, TASKS, [Fake()], (0, 1), store, kill)
    assert learner.answered == again


def test_a_strategy_can_be_added_to_a_store(tmp_path):
    collected(tmp_path)
    outcomes = collected(tmp_path, [Fake(), Fake("other")])
    assert len(outcomes) == 9
    assert {o.cost for o in outcomes if o.strategy == "other"} == {20.0}


def test_outcomes_of_another_model_do_not_count(tmp_path):
    collected(tmp_path)
    other = Echo()
    other.base_hash = "other"
    assert len(collected(tmp_path, learner=other)) == 12


def test_a_task_without_its_answer_is_refused_before_any_work(tmp_path):
    learner = Echo()
    with pytest.raises(TaskError, match=r"t9: .*needs the right answer"):
        collected(tmp_path, learner=learner, tasks=[*TASKS, dataclasses.replace(TASKS[0], id="t9", answer=None)])
    assert learner.answered == 0
