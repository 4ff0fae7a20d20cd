"""Outcomes survive a kill, and collecting goes on where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import json
import math
import multiprocessing
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pyarrow.parquet
import pytest

from autottt.policies import outcome_files
from autottt.policies import outcomes as outcomes_module
from autottt.policies.collect import collect
from autottt.policies.features import FEATURES_VERSION, NAMES
from autottt.policies.outcome_check import check_outcomes
from autottt.policies.outcome_files import JOURNAL, VERSION_KEY
from autottt.policies.outcomes import Outcome, OutcomeStore
from autottt.policies.parallel import Source, collect_with_workers
from autottt.strategies.base import Attempt
from autottt.strategies.registry import get_strategy
from autottt.ttt_core.engine.answering import Answer, PromptScores
from autottt.ttt_core.engine.cost import Cost, Meter
from autottt.ttt_core.engine.format_choice import FormatChoice
from autottt.ttt_core.errors import (
    AdaptationError,
    BaseChangedError,
    Cancelled,
    FileError,
    ModelError,
    PolicyError,
    StrategyError,
    TaskError,
    TooLongError,
)
from autottt.ttt_core.lora.training import TrainingRecord
from autottt.ttt_core.model.generation import TokenScores
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

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
    adapters = SimpleNamespace(starting_digest="")
    loaded = SimpleNamespace(
        recipes={"fake": Recipe(max_steps=2)}, prompt_format="compact", parameter_count=100, vocabulary_size=10
    )
    formats = SimpleNamespace(formatted=lambda task: task, choose=lambda task: FormatChoice("compact"))

    def __init__(self) -> None:
        self.guarded = Guarded()
        self.answerer = self
        self.window = SimpleNamespace(encode=lambda task: SimpleNamespace(ids=(0,) * 9))
        self.answered = self.verified = 0

    def clear(self):
        self.prefix_known = False

    reset_charges = clear_scores = clear

    def verify(self):
        self.verified += 1

    def read(self, task):
        return PromptScores((SCORES,) * len(task.demonstrations))

    def answer(self, tasks, adapter=None):
        self.answered += 1
        self.guarded.charged += Cost(0.0, 10 * len(tasks), 0)
        return [Answer(t.query, "", SCORES, True) for t in tasks]

    def answers(self, tasks):
        return [self.answer(tasks)]

    def score(self, tasks):
        self.guarded.charged += Cost(0.0, len(tasks), 0)
        return [[SCORES] for _ in tasks]

    def fits(self, task, answer=None):
        return True


class Guarded:
    """Counts what is charged."""

    def __init__(self) -> None:
        self.charged = Cost()

    def meter(self):
        return Meter(lambda: self.charged)

    def full_proofs(self):
        return contextlib.nullcontext()

    running_plugin = full_proofs


@dataclasses.dataclass(frozen=True)
class Fake:
    """Works a while, then answers or raises."""

    name: str = "fake"
    cost_class: str = "train"
    min_demonstrations: int = 0
    error: Exception | None = None
    value: object = None
    training: TrainingRecord | None = None
    recipe: Recipe | None = None
    default_recipe: Recipe | None = None

    def answers_per_query(self, recipe):
        return 1

    def attempt(self, learner, task, *, seed=0, deadline=0.0, on_step=None):
        learner.guarded.charged += Cost(0.0, 100, 50)
        if self.error:
            raise self.error
        return Attempt(self.name, self.value, "", 1.0, training_record=self.training)


def timeless(outcomes):
    return [dataclasses.replace(o, seconds=0.0) for o in outcomes]


def collected(folder, strategies=(Fake(),), learner=None, tasks=TASKS, seeds=(0,)):
    store = OutcomeStore(folder)
    collect(learner or Echo(), tasks, strategies, seeds, store)
    return store.read()


def line_of(outcome: Outcome, version: int = 2) -> str:
    """A line of a journal."""
    return json.dumps({"version": version, **dataclasses.asdict(outcome)}) + "\n"


# --- the store -------------------------------------------------------------------------------------------------------


def numbered(*seeds: int) -> list[Outcome]:
    return [dataclasses.replace(OUTCOME, seed=n) for n in seeds]


def test_appended_outcomes_are_read(tmp_path):
    store = OutcomeStore(tmp_path / "new")
    assert store.read() == []
    for outcome in numbered(1, 0):
        store.append(outcome)
    assert OutcomeStore(tmp_path / "new").read() == store.read() == numbered(0, 1), "in the order of the keys"
    assert {o.key for o in store.read()} == {OUTCOME.key, OUTCOME.key._replace(seed=1)}


def test_sealed_outcomes_are_the_same_and_lie_in_parquet(tmp_path):
    store = OutcomeStore(tmp_path, shard_rows=2)
    other = dataclasses.replace(OUTCOME, strategy="other", features={}, features_version=0, probe_cost=0.0)
    rows = [*numbered(0, 1, 2), other]
    for outcome in rows:
        store.append(outcome)
    store.append(dataclasses.replace(other, seed=5))
    assert len(list(tmp_path.glob("*.parquet"))) == 2
    assert len(list(tmp_path.glob("*.journal.jsonl"))) == 1
    assert store.read() == [*rows, dataclasses.replace(other, seed=5)]
    assert sorted(pyarrow.parquet.read_table(tmp_path)["seed"].to_pylist()) == [0, 0, 1, 2]
    store.seal()
    assert not list(tmp_path.glob("*.journal.jsonl"))
    assert len(OutcomeStore(tmp_path).read()) == 5


@pytest.mark.parametrize("kept", [1, 40])
def test_a_torn_last_line_is_dropped_and_written_again(tmp_path, kept):
    (tmp_path / "_1-dead.journal.jsonl").write_bytes(
        line_of(OUTCOME).encode() + b'{"task_id": "t1", "group": "t1", "family": "f"'[:kept]
    )
    store = OutcomeStore(tmp_path)
    assert store.read() == [OUTCOME]
    store.append(dataclasses.replace(OUTCOME, seed=1))
    store.seal()
    assert store.read() == numbered(0, 1)
    kept = sorted(f.suffix for f in tmp_path.iterdir())
    assert kept == [".lock", ".parquet"], "what a writer that is gone has left is sealed too"


def test_a_kill_between_sealing_and_tidying_doubles_nothing(tmp_path):
    store = OutcomeStore(tmp_path)
    store.append(OUTCOME)
    (journal,) = tmp_path.glob("*.journal.jsonl")
    before = journal.read_bytes()
    store.seal()
    (tmp_path / "_1-dead.journal.jsonl").write_bytes(before)
    (tmp_path / "_outcomes-torn.parquet.partial").write_bytes(b"PAR1")
    assert OutcomeStore(tmp_path).read() == [OUTCOME]
    OutcomeStore(tmp_path).seal()
    assert OutcomeStore(tmp_path).read() == [OUTCOME]


def test_a_writer_leaves_the_journals_of_the_living_alone(tmp_path):
    one, two = OutcomeStore(tmp_path), OutcomeStore(tmp_path)
    one.append(OUTCOME)
    two.append(dataclasses.replace(OUTCOME, seed=1))
    two.seal()
    assert len(list(tmp_path.glob("*.journal.jsonl"))) == 1
    one.append(dataclasses.replace(OUTCOME, seed=2))
    assert two.read() == numbered(0, 1, 2)
    one.close()
    two.seal()
    assert not list(tmp_path.glob("*.journal.jsonl"))
    assert two.read() == numbered(0, 1, 2)


def test_a_journal_deleted_under_its_writer_loses_nothing_that_comes_after(tmp_path):
    store = OutcomeStore(tmp_path)
    store.append(OUTCOME)
    (journal,) = tmp_path.glob("*.journal.jsonl")
    journal.unlink()
    store.append(dataclasses.replace(OUTCOME, seed=1))
    assert store.read() == numbered(1)


def test_many_sealers_write_each_row_once(tmp_path):
    for n in range(6):
        (tmp_path / f"_{n}-dead.journal.jsonl").write_text(line_of(dataclasses.replace(OUTCOME, seed=n)))
    stores = [OutcomeStore(tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(OutcomeStore.seal, stores))
    assert sorted(pyarrow.parquet.read_table(tmp_path)["seed"].to_pylist()) == list(range(6))


def test_a_single_journal_of_the_first_version_is_read(tmp_path):
    (tmp_path / "outcomes.jsonl").write_text(line_of(OUTCOME))
    store = OutcomeStore(tmp_path)
    assert store.read() == [OUTCOME]
    store.seal()
    assert store.read() == [OUTCOME]
    assert not (tmp_path / "outcomes.jsonl").exists()


@pytest.mark.parametrize(("version", "remedy"), [(1, "collect TASKS --store NEW"), (99, "update this package")])
def test_outcomes_in_another_version_of_the_format_are_refused(tmp_path, version, remedy):
    reason = rf"outcomes in version {version} of the format, and this package reads version 2; .*{remedy}"
    journal = tmp_path / "_1-dead.journal.jsonl"
    journal.write_text(line_of(OUTCOME, version))
    with pytest.raises(PolicyError, match=rf"journal\.jsonl:1: {reason}"):
        OutcomeStore(tmp_path).read()
    journal.write_text(line_of(OUTCOME))
    OutcomeStore(tmp_path).seal()
    (shard,) = tmp_path.glob("*.parquet")
    table = pyarrow.parquet.read_table(shard)
    metadata = {} if version == 1 else {VERSION_KEY: str(version)}
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), shard)
    with pytest.raises(PolicyError, match=rf"parquet: {reason}"):
        OutcomeStore(tmp_path).read()


def test_integers_in_the_first_rows_do_not_round_later_fractions(tmp_path):
    store = OutcomeStore(tmp_path)
    store.append(dataclasses.replace(OUTCOME, correct=1))
    store.append(dataclasses.replace(OUTCOME, correct=0.5, seed=1))
    store.seal()
    assert [o.correct for o in store.read()] == [1.0, 0.5]


def test_numbers_that_are_none_are_refused(tmp_path):
    with pytest.raises(PolicyError, match="cannot be stored: seconds: expected a finite number; received inf"):
        OutcomeStore(tmp_path).append(dataclasses.replace(OUTCOME, seconds=float("inf")))


def test_a_line_that_is_not_an_outcome_is_named_and_hides_no_other(tmp_path, caplog):
    other = line_of(dataclasses.replace(OUTCOME, seed=1))
    (tmp_path / "_1-dead.journal.jsonl").write_text(line_of(OUTCOME) + '{"version": 2, "other": 1}\n' + other)
    assert OutcomeStore(tmp_path).read() == numbered(0, 1)
    assert re.search(r"journal\.jsonl:2: not an outcome .*outcomes check .* --mend", caplog.text)


def test_a_shard_that_is_damaged_is_named(tmp_path):
    (tmp_path / "outcomes-x.parquet").write_bytes(b"no shard")
    with pytest.raises(PolicyError, match=r"outcomes-x\.parquet: not a shard"):
        OutcomeStore(tmp_path).read()


def test_without_pyarrow_journals_do(tmp_path, monkeypatch):
    for module in (outcomes_module, outcome_files):
        monkeypatch.setattr(module, "pyarrow_if_installed", lambda: None)
    store = OutcomeStore(tmp_path, shard_rows=1)
    store.append(OUTCOME)
    assert store.read() == [OUTCOME]
    (tmp_path / "outcomes-x.parquet").write_bytes(b"")
    with pytest.raises(PolicyError, match=r"pip install 'autottt\[policy\]'"):
        store.read()


# --- collecting ------------------------------------------------------------------------------------------------------


def test_every_strategy_is_run_on_every_task_and_seed_and_in_context_always(tmp_path):
    outcomes = collected(tmp_path, seeds=(0, 1))
    assert len({o.key for o in outcomes}) == len(outcomes) == 3 * 2 * 2
    assert {o.strategy for o in outcomes} == {"in_context", "fake"}


def test_cost_is_a_multiple_of_the_in_context_work(tmp_path):
    by = {o.strategy: o for o in collected(tmp_path, tasks=TASKS[:1])}
    assert (by["in_context"].token_equivalents, by["in_context"].relative_cost) == (10, 1.0)
    assert (by["fake"].token_equivalents, by["fake"].relative_cost) == (200, 20.0)


def test_features_and_their_price_stand_on_the_in_context_row_alone(tmp_path):
    by = {o.strategy: o for o in collected(tmp_path, tasks=TASKS[:1])}
    assert set(by["in_context"].features) == set(NAMES[1])
    assert by["in_context"].features_version == FEATURES_VERSION
    assert 0 < by["in_context"].probe_cost < 2
    assert (by["fake"].features, by["fake"].probe_cost) == ({}, 0)


def test_right_and_wrong_answers_are_distinguished(tmp_path):
    by = {o.strategy: o for o in collected(tmp_path, [Fake(value=(4,))], tasks=TASKS[:1])}
    assert (by["in_context"].correct, by["in_context"].status) == (1.0, "answered")
    assert (by["fake"].correct, by["fake"].status) == (0.0, "answered")


def test_tokens_each_way_the_answer_and_what_training_did_are_written_down(tmp_path):
    losses = (2.0, 0.5, math.nan, 0.25)
    training = TrainingRecord(4, losses, 0.0, 50, "finished")
    same, other = Fake("same", value=[3], training=training), Fake("other", value=[4])
    by = {o.strategy: o for o in collected(tmp_path, [same, other], tasks=TASKS[:1])}
    assert [(by[s].forward_tokens, by[s].backward_tokens) for s in ("in_context", "same")] == [(10, 0), (100, 50)]
    assert by["same"].answer == by["in_context"].answer != by["other"].answer
    assert by["in_context"].confidence == pytest.approx(math.exp(SCORES.total))
    assert (by["same"].confidence, by["same"].losses) == (1.0, (2.0, 0.5))
    assert by["other"].losses == ()


@pytest.mark.parametrize(
    ("strategy", "status", "work"),
    [
        (Fake(error=AdaptationError("NaN")), "failed", 200),
        (Fake(error=TooLongError("long")), "failed", 200),
        (Fake(min_demonstrations=3), "too_few", 0),
        (Fake(), "unreadable", 200),
    ],
)
def test_a_failure_is_an_outcome_with_its_full_cost(tmp_path, strategy, status, work):
    outcomes = [o for o in collected(tmp_path, [strategy], tasks=TASKS[:1]) if o.strategy == "fake"]
    assert [(o.status, o.correct, o.token_equivalents, o.relative_cost) for o in outcomes] == [
        (status, 0.0, work, work / 10)
    ]


def test_a_task_too_long_to_be_read_is_an_outcome_without_features(tmp_path):
    class Full(Echo):
        def answer(self, tasks, adapter=None):
            raise TooLongError("long")

    by = {o.strategy: o for o in collected(tmp_path, learner=Full(), tasks=TASKS[:1])}
    assert (by["in_context"].status, by["in_context"].features) == ("too_long", {})
    assert by["fake"].relative_cost == 0.0


def test_an_interrupted_collection_resumes_without_repetition(tmp_path):
    whole = collected(tmp_path / "whole", seeds=(0, 1))

    class Killed(Exception):
        pass

    stops = [4, 5]

    def kill(done, total):
        assert total == 12
        if stops and done == stops[0]:
            stops.pop(0)
            raise Killed

    store, learner = OutcomeStore(tmp_path / "parts"), Echo()
    for _ in range(2):
        with pytest.raises(Killed):
            collect(learner, TASKS, [Fake()], (0, 1), store, kill)
    collect(learner, TASKS, [Fake()], (0, 1), store, kill)

    assert timeless(store.read()) == timeless(whole)
    again = learner.answered
    collect(learner, TASKS, [Fake()], (0, 1), store, kill)
    assert learner.answered == again


def test_a_strategy_can_be_added_to_a_store(tmp_path):
    collected(tmp_path)
    outcomes = collected(tmp_path, [Fake(), Fake("other")])
    assert len(outcomes) == 9
    assert {o.relative_cost for o in outcomes if o.strategy == "other"} == {20.0}


def test_another_task_of_the_same_name_is_refused_before_any_work(tmp_path):
    collected(tmp_path)
    assert {o.digest for o in OutcomeStore(tmp_path).read()} == {t.digest for t in TASKS}
    other = make_task([([1], [2]), ([2], [3])], [3], answer=[4], id="t1", family="f1", dataset="made")
    learner = Echo()
    with pytest.raises(PolicyError, match=r"t1: another task of this name.*'made'.*another --store, or .* other ids"):
        collected(tmp_path, learner=learner, tasks=[TASKS[0], other])
    with pytest.raises(PolicyError, match="t1: another task of this name"):
        collected(tmp_path / "new", learner=learner, tasks=[*TASKS, other])
    assert learner.answered == 0
    collected(tmp_path, learner=learner, tasks=[*TASKS, *TASKS, dataclasses.replace(other, dataset="elsewhere")])
    assert learner.answered > 0


def test_a_task_whose_outcomes_have_another_answer_is_refused_before_any_work(tmp_path):
    collected(tmp_path, [Fake(value=(4,))])
    corrected = [dataclasses.replace(TASKS[0], answer=(4,)), *TASKS[1:]]
    learner = Echo()
    with pytest.raises(PolicyError, match=r"t0: its right answer is not the one .* another --store"):
        collected(tmp_path, [Fake(value=(4,))], learner, corrected)
    assert learner.answered == 0


def test_a_task_whose_answers_are_compared_in_another_way_now_is_refused_before_any_work(tmp_path):
    spoken = [make_task([("a", "b")], f"c{n}", answer="d", id=f"t{n}", family=f"f{n}", dataset="made") for n in (0, 1)]
    collected(tmp_path, tasks=spoken)
    assert {o.comparison for o in OutcomeStore(tmp_path).read()} == {"exact"}
    learner = Echo()
    other = [spoken[0], dataclasses.replace(spoken[1], comparison="words")]
    with pytest.raises(PolicyError, match=r"t1: its right answer is not .* compared with it in another way; .*another"):
        collected(tmp_path, learner=learner, tasks=other)
    collected(tmp_path, learner=learner, tasks=spoken)
    assert learner.answered == 0


def test_one_task_with_two_right_answers_is_refused_before_any_work(tmp_path):
    learner = Echo()
    with pytest.raises(PolicyError, match="t0: the given tasks, in the data set 'made', hold it twice with different"):
        collected(tmp_path, learner=learner, tasks=[*TASKS, dataclasses.replace(TASKS[0], answer=(4,))])
    assert learner.answered == 0


def test_a_family_that_has_changed_is_warned_of_and_stays(tmp_path, caplog):
    collected(tmp_path)
    renamed = [TASKS[0], *(dataclasses.replace(task, family="new") for task in TASKS[1:])]
    collected(tmp_path, tasks=renamed)
    assert "t1 and 1 more tasks: the stored outcomes have the family 'f1', and the task has 'new' now" in caplog.text
    assert {o.family for o in OutcomeStore(tmp_path).read()} == {"f0", "f1", "f2"}


@pytest.mark.parametrize(
    ("tasks", "seed", "field"),
    [
        ([TASKS[0], dataclasses.replace(TASKS[1], id="a\ud800")], 0, "task_id"),
        ([TASKS[0], dataclasses.replace(TASKS[1], family="\ud800")], 0, "family"),
        (TASKS, 2**63, "seed"),
        (TASKS, "0", "seed"),
        (TASKS, True, "seed"),
    ],
)
def test_what_no_store_can_hold_is_refused_before_anything_is_measured(tmp_path, tasks, seed, field):
    learner = Echo()
    with pytest.raises(PolicyError, match=f"cannot be stored: {field}: expected"):
        collected(tmp_path, learner=learner, tasks=tasks, seeds=(0, seed))
    assert learner.answered == 0
    assert OutcomeStore(tmp_path).read() == []


@pytest.mark.parametrize("at", [1, 5])
def test_a_full_disk_is_an_error_with_the_store_and_the_remedy(tmp_path, monkeypatch, at, caplog):
    whole = timeless(collected(tmp_path / "whole"))
    written = 0

    class Full(io.FileIO):
        """Fails in the middle of a line."""

        def write(self, data):
            nonlocal written
            written += 1
            if written == at:
                return super().write(bytes(data)[:40])
            if written > at:
                raise OSError(28, "No space left on device")
            return super().write(data)

    def opened(folder):
        folder.mkdir(exist_ok=True)
        return io.BufferedWriter(Full(folder / f"_full{JOURNAL}", "a"))

    def fails(*arguments, **options):
        raise OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("autottt.policies.outcomes.open_journal", opened)
        patch.setattr("pyarrow.parquet.write_table", fails)
        ignored = []
        patch.setattr(sys, "unraisablehook", ignored.append)
        with pytest.raises(FileError, match=r"an outcome cannot be stored \(No space left.*same command continues"):
            collected(tmp_path / "full")
        gc.collect()
    assert not ignored
    if at > 1:
        assert "the outcomes so far stay in a journal" in caplog.text
    assert not list((tmp_path / "full").glob("*partial*"))
    assert timeless(collected(tmp_path / "full")) == whole


def test_a_store_of_another_prompt_format_is_not_added_to(tmp_path):
    assert {o.prompt_format for o in collected(tmp_path)} == {"compact"}
    other = Echo()
    other.loaded = SimpleNamespace(recipes=Echo.loaded.recipes, prompt_format="standard")
    with pytest.raises(PolicyError, match=r"prompt format 'compact'.*'standard' now; collect into another --store"):
        collected(tmp_path, learner=other)
    assert other.answered == 0


@pytest.mark.parametrize("error", [TaskError("odd"), StrategyError("none"), RuntimeError("no memory"), ValueError("x")])
def test_any_exception_of_a_strategy_is_a_failed_outcome(tmp_path, error):
    outcomes = collected(tmp_path, [Fake(error=error)])
    assert len(outcomes) == 6
    assert {(o.status, o.correct, o.relative_cost) for o in outcomes if o.strategy == "fake"} == {("failed", 0.0, 20.0)}


@pytest.mark.parametrize("error", [BaseChangedError("changed"), Cancelled("by the caller"), ModelError("gone")])
def test_fatal_exceptions_are_raised(tmp_path, error):
    with pytest.raises(type(error)):
        collected(tmp_path, [Fake(error=error)])


@pytest.mark.parametrize("name", ["answer", "score"])
def test_measuring_that_fails_loses_nothing_else(tmp_path, name):
    """Of three tasks the second fails, in context or while it is measured."""

    class Failing(Echo):
        def _asked(self, tasks):
            if any(t.query == (7,) for t in tasks):
                raise RuntimeError("no memory")

        def answer(self, tasks, adapter=None):
            if name == "answer":
                self._asked(tasks)
            return super().answer(tasks, adapter)

        def score(self, tasks):
            self._asked([dataclasses.replace(t, query=(7,)) for t in tasks if t.answer == (7,)])
            return super().score(tasks)

    tasks = [TASKS[0], dataclasses.replace(TASKS[1], query=(7,), answer=(7,)), TASKS[2]]
    outcomes = collected(tmp_path, learner=Failing(), tasks=tasks)
    assert len(outcomes) == 6
    assert [o.task_id for o in outcomes if o.strategy == "in_context" and not o.features] == ["t1"]


def test_confidence_that_is_no_number_is_none(tmp_path):
    class Unsure(Fake):
        def attempt(self, learner, task, *, seed=0, deadline=0.0, on_step=None):
            return dataclasses.replace(super().attempt(learner, task), confidence=math.nan)

    assert {o.confidence for o in collected(tmp_path, [Unsure()]) if o.strategy == "fake"} == {0.0}


def test_new_outcomes_with_another_right_answer_are_refused(tmp_path):
    store = OutcomeStore(tmp_path)
    store.append(OUTCOME)
    new = dataclasses.replace(OUTCOME, seed=5)
    assert store.missing([OUTCOME, new]) == [new]
    with pytest.raises(
        PolicyError,
        match=r"t1: the outcome of in_context with seed 0 has correct = 1 in .*, and also correct = 0; nothing",
    ):
        store.missing([new, dataclasses.replace(OUTCOME, correct=0.0)])
    assert store.missing([new, new]) == [new], "twice in what is to be added"
    assert store.missing([dataclasses.replace(OUTCOME, correct=1 - 1e-16)]) == []
    assert store.missing([dataclasses.replace(OUTCOME, correct=0.0, answer="another")]) == [], "rounded elsewhere"


def test_an_imported_outcome_with_another_cost_is_refused(tmp_path):
    store = OutcomeStore(tmp_path)
    store.append(OUTCOME)
    dearer = dataclasses.replace(OUTCOME, seconds=0.2)
    assert store.missing([dearer]) == [], "measured again"
    with pytest.raises(PolicyError, match=r"seed 0 has seconds = 0\.1 in .*, and also seconds = 0\.2; nothing"):
        store.missing([dearer], same_costs=True)
    assert store.missing([OUTCOME], same_costs=True) == []


@pytest.mark.parametrize("sealed", [True, False])
def test_outcomes_that_were_relabelled_take_the_place_of_the_old_ones(tmp_path, sealed: bool):
    store = OutcomeStore(tmp_path)
    others = [dataclasses.replace(OUTCOME, seed=seed) for seed in (1, 2)]
    for outcome in (OUTCOME, *others):
        store.append(outcome)
    store.seal() if sealed else store.close()
    wrong = dataclasses.replace(OUTCOME, correct=0.0, answer="wrong")
    store.replace([wrong])
    assert OutcomeStore(tmp_path).read() == [wrong, *others]
    assert check_outcomes(tmp_path).damages == ()
    store.append(dataclasses.replace(OUTCOME, seed=3))
    store.seal()
    assert len(OutcomeStore(tmp_path).read()) == 4


def test_an_outcome_of_another_running_writer_is_not_replaced(tmp_path):
    writer = OutcomeStore(tmp_path)
    writer.append(OUTCOME)
    with pytest.raises(PolicyError, match="another process writes to it"):
        OutcomeStore(tmp_path).replace([dataclasses.replace(OUTCOME, correct=0.0)])
    writer.close()
    assert OutcomeStore(tmp_path).read() == [OUTCOME]


@pytest.mark.usefixtures("forked_workers")
def test_a_worker_that_dies_ends_the_collection_in_words(folder, tmp_path):
    """And at once, however much is waiting; what was measured is kept."""
    tasks = [dataclasses.replace(t, id=f"{t.id}#{n}", group=f"{t.id}#{n}") for t in TASKS for n in range(400)]
    store = OutcomeStore(tmp_path)

    def kill(done, total):
        if done:
            for worker in multiprocessing.active_children()[:1]:  # none is left where this is called once more
                worker.kill()

    with pytest.raises(PolicyError, match="a worker process is gone"):
        collect_with_workers(
            Source(str(folder)), tasks, [get_strategy("zero_shot")], [0], store, workers=2, on_progress=kill
        )
    assert store.read()


OPTIONAL = [
    "digest", "forward_tokens", "backward_tokens", "confidence", "answer", "held_out_gain", "losses", "prompt_format",
]  # fmt: skip
"""Columns with a default, which imported outcomes lack."""


def test_outcomes_without_a_digest_stand_for_the_task_of_their_name(tmp_path):
    """Optional columns may be missing, in journals and in shards."""
    collected(tmp_path / "new")
    rows = [dataclasses.asdict(o) for o in OutcomeStore(tmp_path / "new").read()]
    for row in rows:
        for name in OPTIONAL:
            del row[name]
    (tmp_path / "old").mkdir()
    journal = tmp_path / "old" / "_1-dead.journal.jsonl"
    journal.write_text("".join(json.dumps({"version": 2, **row}) + "\n" for row in rows[:3]))
    (shard,) = (tmp_path / "new").glob("*.parquet")
    table = pyarrow.parquet.read_table(shard)
    pyarrow.parquet.write_table(table.drop_columns(OPTIONAL), tmp_path / "old" / "outcomes-0.parquet")
    learner = Echo()
    outcomes = collected(tmp_path / "old", learner=learner)
    assert [o.digest for o in outcomes] == [""] * 6
    assert learner.answered == 0


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


# --- other processes -------------------------------------------------------------------------------------------------


@pytest.fixture
def forked_workers(forkserver, monkeypatch):
    """Workers are forked from a process that has imported the package; they start in milliseconds."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: forkserver)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model on disk."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    """What one process collects."""
    store = OutcomeStore(tmp_path_factory.mktemp("alone"))
    collect(Source(str(folder)).load(), TASKS, STRATEGIES, (0, 1), store)
    return timeless(store.read())


STRATEGIES = [get_strategy("in_context"), get_strategy("zero_shot"), get_strategy("in_context_vote")]


def test_two_workers_collect_what_one_does(folder, alone, tmp_path):
    seen = []
    store = OutcomeStore(tmp_path)
    collect_with_workers(
        Source(str(folder)), TASKS, STRATEGIES, (0, 1), store, workers=2, on_progress=lambda *n: seen.append(n)
    )
    assert timeless(store.read()) == alone
    assert seen[-1] == (18, 18)
    assert sorted(seen) == seen


@pytest.mark.usefixtures("forked_workers")
def test_outcomes_are_the_same_for_every_number_of_workers(folder, tmp_path):
    quick = dataclasses.replace(get_strategy("ttt_in_context"), recipe=Recipe(max_steps=3, batch_size=2, rank=2))
    one, two = OutcomeStore(tmp_path / "one"), OutcomeStore(tmp_path / "two")
    collect(Source(str(folder)).load(), TASKS, [quick], (0,), one)
    collect_with_workers(Source(str(folder)), TASKS, [quick], (0,), two, workers=2)

    def rounded(store):
        outcomes = [o for o in timeless(store.read()) if o.strategy == quick.name]
        return [
            dataclasses.replace(o, confidence=round(o.confidence, 3), losses=tuple(round(x, 3) for x in o.losses))
            for o in outcomes
        ]

    assert rounded(one) == rounded(two)
    assert [len(o.losses) for o in rounded(one)] == [3] * len(TASKS)


@pytest.mark.usefixtures("forked_workers")
def test_strategies_that_no_registry_knows_go_to_workers_too(folder, tmp_path):
    store = OutcomeStore(tmp_path)
    other = dataclasses.replace(get_strategy("in_context_vote"), name="my_own")
    collect_with_workers(Source(str(folder)), TASKS[:1], [other], (0,), store, workers=1)
    assert {o.strategy for o in store.read()} == {"in_context", "my_own"}


@pytest.mark.usefixtures("forked_workers")
def test_interrupted_workers_end_soon_and_their_outcomes_are_stored(folder, tmp_path):
    """In the midst of a batch: every outcome that was told of is in the store, and the same call goes on."""
    tasks = [dataclasses.replace(t, id=f"{t.id}#{n}", query=(n, 6)) for t in TASKS for n in range(4)]
    store, source, seeds = OutcomeStore(tmp_path), Source(str(folder)), [0, 1]
    told = []

    def interrupt(done, total):
        told.append((done, total))
        if done > 1:
            raise KeyboardInterrupt

    chosen = [get_strategy("zero_shot")]
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        collect_with_workers(source, tasks, chosen, seeds, store, workers=2, on_progress=interrupt)
    assert told[0] == (0, 48)
    assert len(store.read()) == told[-1][0] > 1
    assert time.monotonic() - began < 120
    collect_with_workers(source, tasks, chosen, seeds, store, workers=2)
    assert len(store.read()) == 48


@pytest.mark.usefixtures("forked_workers")
def test_workers_that_cannot_begin_are_an_error_in_words(tmp_path):
    with pytest.raises(ModelError, match="no/such/folder"):
        collect_with_workers(Source("no/such/folder"), TASKS, [], (0,), OutcomeStore(tmp_path), workers=2)


def test_a_ray_cluster_collects_what_one_process_does(folder, alone, tmp_path):
    store = OutcomeStore(tmp_path)
    collect_with_workers(Source(str(folder)), TASKS, STRATEGIES, (0, 1), store, workers=2, ray_address="local")
    assert timeless(store.read()) == alone


@pytest.mark.parametrize("workers", [1, 2])
def test_a_kill_loses_and_doubles_no_row(workers, folder, alone, tmp_path, forkserver):
    tasks = tmp_path / "tasks.jsonl"
    lines = [
        {
            "id": t.id, "family": t.family, "dataset": t.dataset, "kind": t.kind,
            "demonstrations": [{"input": d.input, "output": d.output} for d in t.demonstrations],
            "queries": [{"input": t.query, "output": t.answer}],
        }
        for t in TASKS
    ]  # fmt: skip
    tasks.write_text("".join(json.dumps(line) + "\n" for line in lines))
    program = (
        "import multiprocessing, sys; from autottt.controller.cli.main import main; sys.argv = command\n"
        "forked = multiprocessing.get_context('fork'); multiprocessing.get_context = lambda method: forked; main()"
    )
    command = [
        "autottt", "collect", str(tasks), "--store", str(tmp_path / "store"),
        "--strategies", "in_context,zero_shot,in_context_vote", "--seeds", "0,1", "--model", str(folder),
        "--workers", str(workers),
    ]  # fmt: skip
    store = OutcomeStore(tmp_path / "store")
    process, again = (forkserver.Process(target=exec, args=(program, {"command": command})) for _ in range(2))
    process.start()
    until = time.monotonic() + 120
    while len(store.read()) < 2 and process.is_alive() and time.monotonic() < until:
        time.sleep(0.01)
    assert process.is_alive(), "it was done, or failed, before it could be killed"
    process.kill()
    process.join()
    kept = store.read()
    assert 0 < len(kept) < len(alone)
    again.start()
    again.join(120)
    assert again.exitcode == 0
    outcomes = store.read()
    assert timeless(outcomes) == alone
    assert all(outcome in outcomes for outcome in kept), "measured once"


def test_queries_of_a_task_share_one_training_and_are_measured_as_if_alone(make_learner, tmp_path):
    learner = make_learner()
    pairs = [([1, 2], [2, 1]), ([3, 4], [4, 3]), ([5, 6, 7], [7, 6, 5])]
    tasks = [
        make_task(pairs, query, answer=query[::-1], id=f"{group}#{n}", group=group, family=group, dataset="made")
        for group in "ab"
        for n, query in enumerate(([8, 9], [1, 2, 3]))
    ]
    chosen = [get_strategy("ttt_in_context"), get_strategy("in_context_vote")]
    trained = []
    train = learner.trainer.adapt_many
    learner.trainer.adapt_many = lambda *a, **k: trained.append(1) or train(*a, **k)
    together = timeless(collected(tmp_path / "together", chosen, learner, tasks))
    assert len(trained) == 2
    for n in range(4):
        collected(tmp_path / "apart", chosen, learner, tasks[n : n + 1])
    assert len(trained) == 6
    assert timeless(OutcomeStore(tmp_path / "apart").read()) == together
    costs = {(o.task_id, o.strategy): o.relative_cost for o in together}
    assert all(costs[t.id, "ttt_in_context"] > 3 * costs[t.id, "in_context_vote"] for t in tasks)


def test_a_store_of_another_recipe_is_not_added_to(tmp_path):
    fake = Fake(default_recipe=Recipe())
    collected(tmp_path, [fake])
    assert len({o.recipe for o in OutcomeStore(tmp_path).read()}) == 2
    other = Echo()
    other.loaded = SimpleNamespace(recipes={"fake": Recipe(max_steps=3)}, prompt_format="compact")
    with pytest.raises(PolicyError, match=r"fake on list tasks with the recipe .* another --store"):
        collected(tmp_path, [fake], other)
    assert other.answered == 0
    collected(tmp_path, [get_strategy("in_context")], other)  # it has none
