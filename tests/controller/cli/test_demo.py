"""The demo: what it draws, what its words and its table say."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from autottt.controller.cli import demo
from autottt.controller.results import Result
from autottt.strategies.base import Attempt, Cost
from autottt.ttt_core.lora.training import TrainingRecord
from autottt.ttt_core.sources import english
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.task import Value

FAMILIES = json.loads(demo.FAMILIES.read_text("utf-8"))["families"]
SEEDS = range(25)
RIGHT, WRONG = (2, 1), (9, 9)
TASK = make_task([([1, 2], [2, 1]), ([3, 4], [4, 3])], query=[1, 2], answer=[2, 1])


def attempt(value: Value | None, trained: bool, seconds: float = 0.0) -> Attempt:
    record = TrainingRecord(1, (1.0,), 0.0, tokens=8, stop_reason="finished") if trained else None
    return Attempt("in_context", value, "", 1.0, training_record=record, cost=Cost(seconds=seconds))


def result(first: Value, last: Value | None, trained: bool, seconds: float = 1.0) -> Result:
    read = attempt(first, False, 0.25)
    return Result(
        task=TASK, status="no_answer" if last is None else "answered", answer=last, text="", strategy="in_context",
        reason="", difficulty=0.0, scores={}, features={}, in_context=read, attempts=(read, attempt(last, trained)),
        adaptation=None, cost=Cost(seconds=seconds), relative_seconds=1.0, proof=None, trace=(),
    )  # fmt: skip


class TestDrawing:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_half_of_the_tasks_are_of_families_that_are_read_and_half_of_hard_ones(self, seed: int) -> None:
        bands = [family.band for family, _ in demo.draw(seed)]
        assert bands == ["read"] * 6 + ["hard"] * 6

    @pytest.mark.parametrize("seed", SEEDS)
    def test_sampled_tasks_are_distinct_and_have_answers(self, seed: int) -> None:
        tasks = [task for _, task in demo.draw(seed)]
        assert len({task.digest for task in tasks}) == len(tasks) == 12
        assert all(task.answer is not None for task in tasks)

    def test_a_seed_gives_the_same_tasks_and_another_seed_gives_others(self) -> None:
        samples = [tuple(task.id for _, task in demo.draw(seed)) for seed in SEEDS]
        assert samples == [tuple(task.id for _, task in demo.draw(seed)) for seed in SEEDS]
        assert len(set(samples)) == len(samples)

    def test_data_sets_and_families_take_turns(self) -> None:
        for band in ("read", "hard"):
            present = {family.dataset for family in demo.demo_families() if family.band == band}
            half = [family for family, _ in demo.draw(0) if family.band == band]
            assert len({family.dataset for family in half}) == min(6, len(present))

    @pytest.mark.parametrize(("count", "read", "hard"), [(1, 1, 0), (2, 1, 1), (5, 3, 2), (12, 6, 6)])
    def test_a_smaller_sample_is_halved_too(self, count: int, read: int, hard: int) -> None:
        bands = [family.band for family, _ in demo.draw(3, count)]
        assert (bands.count("read"), bands.count("hard")) == (read, hard)


class TestFamilies:
    def test_a_band_holds_the_families_whose_measured_rate_is_in_it(self) -> None:
        for family in FAMILIES:
            rate = family["right"] / family["queries"]
            expected = "read" if rate >= demo.READ else "hard" if rate < demo.HARD else None
            assert family["band"] == expected, family["name"]

    def test_no_task_of_the_pool_was_measured(self) -> None:
        measured = {task for family in FAMILIES for task in family["measured"]}
        pool = [task for family in FAMILIES for task in family["pool"]]
        assert measured.isdisjoint(pool)
        assert len(set(pool)) == len(pool)

    def test_every_task_that_ships_is_of_the_pool_of_a_band(self) -> None:
        shipped = [task.id for family in demo.demo_families() for task in family.tasks]
        assert sorted(shipped) == sorted(json.loads(line)["id"] for line in demo.TASKS.read_text("utf-8").splitlines())
        assert demo.TASKS.stat().st_size < 1 << 20


@pytest.mark.parametrize(
    ("first", "last", "trained", "word"),
    [
        (RIGHT, RIGHT, False, "read"),
        (WRONG, RIGHT, True, "learned"),
        (WRONG, RIGHT, False, "voted"),
        (RIGHT, RIGHT, True, "redundant"),
        (WRONG, WRONG, True, "unchanged"),
        (WRONG, None, True, "unchanged"),
        (WRONG, WRONG, False, "missed"),
        (RIGHT, WRONG, True, "harmed"),
        (RIGHT, WRONG, False, "harmed"),
        (RIGHT, None, True, "harmed"),
    ],
)
def test_a_word_says_what_happened(first: Value, last: Value | None, trained: bool, word: str) -> None:
    assert demo.word_of(result(first, last, trained)) == word


def test_a_task_that_does_not_fit_is_called_refused() -> None:
    over_long = replace(result(WRONG, None, False), status="refused", in_context=None, attempts=())
    assert demo.word_of(over_long) == "refused"


@pytest.mark.parametrize("compare", [False, True])
def test_the_table_counts_right_answers_and_seconds(compare: bool) -> None:
    read, hard = (demo.Family(f"set/{band}", band, 1, 2, ()) for band in demo.TITLES)
    always = result(RIGHT, RIGHT, True, 7.0) if compare else None
    solved = [
        demo.Solved(read, result(RIGHT, RIGHT, False), always),
        demo.Solved(hard, result(WRONG, RIGHT, True, 4.0), always),
        demo.Solved(hard, result(WRONG, WRONG, True, 4.0), always),
    ]
    screen = Console(file=io.StringIO(), width=100)
    screen.print(demo.summary_table(solved))
    lines = [line.split("  ") for line in screen.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    cells = {line[0].strip(): [cell.strip() for cell in line[1:] if cell.strip()] for line in lines}
    assert cells["in context"] == ["1 of 1", "0 of 2", "1 of 3", "0.8"]
    assert cells["as decided"] == ["1 of 1", "1 of 2", "2 of 3", "9.0"]
    assert cells.get(f"always {demo.ALWAYS}") == (["1 of 1", "2 of 2", "3 of 3", "21.0"] if compare else None)


class TestEnglish:
    """The demo of real models, whose rates are in a file."""

    MODELS = tuple(json.loads(demo.ENGLISH.read_text("utf-8"))["models"])

    @pytest.mark.parametrize("model", MODELS)
    def test_a_band_holds_the_families_whose_measured_rate_is_in_it(self, model: str) -> None:
        measured = json.loads(demo.ENGLISH.read_text("utf-8"))["models"][model]
        assert measured["demonstrations"] == demo.DEMONSTRATIONS
        large = {name for name in english.RULES if len(english.halves(name)[1]) > demo.DEMONSTRATIONS}
        assert {entry["name"] for entry in measured["families"]} == large
        for entry in measured["families"]:
            share = entry["right"] / entry["queries"]
            assert ("learned" in entry) == (share < demo.ENGLISH_HARD), entry["name"]
            expected = "read" if share >= demo.READ else None
            if share < demo.ENGLISH_HARD and entry["learned"] / entry["learned_queries"] >= demo.LEARNED:
                expected = "hard"
            assert entry["band"] == expected, entry["name"]

    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("seed", range(5))
    def test_tasks_are_of_the_half_that_was_not_measured(self, model: str, seed: int) -> None:
        sample = demo.draw(seed, 12, model)
        assert [family.band for family, _ in sample] == ["read"] * 6 + ["hard"] * 6
        assert sample == demo.draw(seed, 12, model)
        assert [task.id for _, task in sample] != [task.id for _, task in demo.draw(seed + 100, 12, model)]
        for family, task in sample:
            measured, _ = english.halves(family.name.removeprefix("english/"))
            pairs = {(task.query, task.answer), *((d.input, d.output) for d in task.demonstrations)}
            assert pairs.isdisjoint(measured)
            assert len(task.demonstrations) == demo.DEMONSTRATIONS

    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("seed", range(5))
    def test_families_take_turns(self, model: str, seed: int) -> None:
        families = demo.english_families(model, seed)
        for band in ("read", "hard"):
            present = {family.name for family in families if family.band == band}
            names = {family.name for family, _ in demo.draw(seed, 12, model) if family.band == band}
            assert len(names) == min(6, len(present))

    @pytest.mark.parametrize("learned", [None, (9, 12)])
    def test_the_rule_and_the_rates_are_printed(self, learned: tuple[int, int] | None) -> None:
        family = demo.Family("english/antonym", "hard", 3, 20, (), learned)
        heading = demo.show_heading("1/12", family).plain
        assert "3 of 20 queries of other tasks right in context" in heading
        assert ("9 of 12 after training" in heading) == (learned is not None)
        assert demo.titles_of([family])["hard"].endswith("in context and 50% or more after training")
        assert demo.titles_of([replace(family, name="set/one")]) == demo.TITLES

    def test_at_least_one_model_was_measured(self) -> None:
        assert demo.is_english("smollm2-135m")
        assert not demo.is_english(None)
        assert not demo.is_english("some/model")

    @pytest.mark.parametrize("queries", [1, 3])
    def test_queries_of_a_task_share_its_demonstrations(self, queries: int) -> None:
        tasks = demo.english_tasks("antonym", english.pairs_of("antonym"), 2, 0, queries)
        assert len(tasks) == 2 * queries
        assert len({task.demonstrations for task in tasks}) == 2
        assert len({task.id for task in tasks}) == len(tasks)
