"""The arithmetic of the benchmarks: the division of tasks among processes, and the rows of results."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch

from autottt import Controller
from autottt.controller.evaluation import Row
from autottt.policies.bundle import load_bundle
from autottt.policies.features import FEATURES_VERSION, NAMES
from autottt.policies.outcome_table import build_outcome_table
from autottt.policies.outcomes import Outcome
from autottt.policies.policy import BUNDLED, LearnedPolicy
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.model.loading import wrap_model
from autottt.ttt_core.pretraining.tokenizer import build_tokenizer
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(FOLDER))  # `engine` imports `engine_growth` from its folder, as a script does


def script(name: str) -> ModuleType:
    """A benchmark as a module; benchmarks are scripts outside the package."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


model = script("model")
policy = script("policy")
trials = script("pretrain_trials")
crossfit = script("crossfit")
warm = script("warm")


def row(dataset: str, name: str, strategy: str, right: bool, family: str = "f", second: bool = False) -> Row:
    return Row(dataset, family, name, name, strategy, right, "answered", strategy, False, 1.0, 10, second=second)


def rows_of(dataset: str, shares: dict[str, int], family: str = "f") -> list[Row]:
    """Ten queries for each strategy, with the number of right answers in `shares`."""
    return [row(dataset, str(n), s, n < shares.get(s, 0), family) for s in model.STRATEGIES for n in range(10)]


class TestDivision:
    def test_every_query_is_measured_by_one_process_and_no_task_is_divided(self) -> None:
        tasks = model.tasks_of("test", Path(), 12, 0)
        parts = [model.part_of(tasks, part, 3) for part in range(3)]
        assert sorted(t.id for part in parts for t in part) == sorted(t.id for t in tasks)
        assert len({t.id for t in tasks}) == len(tasks)
        groups = [group for part in parts for group in {t.group for t in part}]
        assert len(groups) == len(set(groups))

    def test_a_set_of_the_generator_has_tasks_of_every_domain(self) -> None:
        tasks = model.tasks_of("policy", Path(), 4, 0)
        assert {t.family.split("/")[0] for t in tasks} == {"lists", "rows", "grids", "strings"}


class TestNumbers:
    def by_name(self, rows: list[Row], names: list[str]) -> dict[str, dict[str, object]]:
        return {r["name"]: r for r in model.numbers(rows, names)}

    def test_goals_and_ratios_also_of_sets_without_a_right_in_context_answer(self) -> None:
        rows = rows_of("mini_arc", {"ttt_augmented": 4}) + rows_of("arc_1d", {"in_context": 5, "ttt_augmented": 6})
        results = self.by_name(rows, ["mini_arc", "arc_1d"])
        assert results["arc_1d: in_context"]["value"] == 50.0
        best = results["mini_arc: best of 5, chosen afterwards (ttt_augmented)"]
        assert (best["value"], best["goal"], best["holds"]) == (40.0, 30.0, True)
        every = next(r for n, r in results.items() if n.startswith("all (mini_arc, arc_1d)"))
        assert (every["value"], every["holds"]) == (2.0, True)
        low = next(r for n, r in results.items() if n.startswith("under 10% in context (mini_arc)"))
        assert (low["value"], low["holds"]) == (None, False)  # nothing right in context: no ratio

    def test_the_goal_of_other_sets_is_a_gain_from_training(self) -> None:
        rows = [
            r
            for f, before, after in (("f", 5, 9), ("g", 5, 6), ("h", 5, 5))
            for r in rows_of("letter_string", {"in_context": before, "ttt_augmented": after}, f)
        ]
        gain = self.by_name(rows, ["letter_string"])["letter_string: ttt_augmented beyond in_context"]
        assert (gain["value"], gain["holds"], gain["interval_90"]) == (16.7, True, [3.33, 30.0])
        loss = self.by_name(rows_of("letter_string", {"in_context": 5, "ttt_augmented": 4}), ["letter_string"])
        assert loss["letter_string: ttt_augmented beyond in_context"]["holds"] is False

    def test_intervals_of_ratios_are_over_families(self) -> None:
        rows = [
            r
            for f, after in (("f", 4), ("g", 8))
            for r in rows_of("arc_1d", {"in_context": 4, "ttt_augmented": after}, f)
        ]
        every = next(r for n, r in self.by_name(rows, ["arc_1d"]).items() if n.startswith("all"))
        assert (every["value"], every["interval_90"]) == (1.5, [1.0, 2.0])

    def test_two_attempts_count_for_arc_alone(self) -> None:
        rows = [row("arc_agi_1", str(n), s, False, second=True) for s in model.STRATEGIES for n in range(4)]
        assert self.by_name(rows, ["arc_agi_1"])["arc_agi_1: ttt_augmented"]["value"] == 100.0
        rows = [row("mini_arc", str(n), s, False, second=True) for s in model.STRATEGIES for n in range(4)]
        assert self.by_name(rows, ["mini_arc"])["mini_arc: ttt_augmented"]["value"] == 0.0

    def test_a_split_is_reported_by_domain(self) -> None:
        rows = [
            r
            for d, right in (("lists", 8), ("rows", 6), ("grids", 4), ("strings", 2))
            for r in rows_of("generator_test", {"in_context": right}, f"{d}/f")
        ]
        results = self.by_name(rows, ["test"])
        assert results["generator, test, lists: in_context"]["value"] == 80.0
        assert results["generator, test: in_context"]["value"] == 50.0


class TestTrials:
    def test_symmetries_preserve_the_rule_and_the_cells(self) -> None:
        pairs = [(((1, 2, 3), (4, 5, 6)), ((1, 2, 3), (4, 5, 6)))]
        grids = {trials.transformed("grid", pairs, random.Random(n))[0] for n in range(40)}
        assert len(grids) == 8
        assert all(a == b and sorted(x for r in a for x in r) == [1, 2, 3, 4, 5, 6] for a, b in grids)
        assert {trials.transformed("grid1d", [(((1, 2),), ((2, 1),))], random.Random(n))[0][0] for n in range(20)} == {
            ((1, 2),),
            ((2, 1),),
        }
        assert trials.transformed("list", [((1, 2), (3,))], random.Random(0)) == [((1, 2), (3,))]

    def test_numbers_of_rows_replace_the_separators(self) -> None:
        assert trials.numbered_rows(" 1 2 / 3 4 / 5 6") == [" 1 2 11 3 4 12 5 6"]

    def tasks(self, name: str, domain: str, tokens: int = 4096) -> list[tuple[str, int]]:
        """Text of each task in a variant's first batch, all of one domain, and its number of labelled runs."""
        tokenizer = build_tokenizer()
        phases = (trials.Phase(0, ((trials.ROW, 1.0),), ((domain, 1.0),)),)
        config = trials.PretrainConfig(tokens=tokens, phases=phases)
        batch = trials.TrialStream(trials.VARIANTS[name], config, tokenizer).batch(0)
        assert batch.ids.shape == batch.labels.shape == batch.positions.shape == (tokens // trials.ROW, trials.ROW)
        labelled = batch.labels != trials.IGNORED
        assert (batch.labels[labelled] == batch.ids[labelled]).all()
        tasks = []
        for ids, marks in zip(batch.ids.tolist(), labelled.tolist(), strict=True):
            ids = ids[: ids.index(tokenizer.pad_token_id)] if tokenizer.pad_token_id in ids else ids
            starts = [i for i, token in enumerate(ids) if token == tokenizer.bos_token_id]
            for a, b in zip(starts, [*starts[1:], len(ids)], strict=True):
                runs = sum(now and not before for before, now in pairwise([False, *marks[a:b]]))
                tasks.append((tokenizer.decode(ids[a + 1 : b]), runs))
        return tasks

    @pytest.mark.parametrize("domain", ["lists", "grids"])
    def test_only_the_last_answer_is_labelled(self, domain: str) -> None:
        assert {runs for _, runs in self.tasks("last answer", domain)} == {1}
        assert min(runs for _, runs in self.tasks("base", domain)) > 1

    def test_every_task_is_repeated_in_another_order(self) -> None:
        def repetitions(name: str) -> tuple[int, int]:
            """The number of tasks with two pairs or more of the previous task, in another order; and of all tasks."""
            pairs = [text.split("\nI")[:-1] for text, _ in self.tasks(name, "lists")]
            again = [a != b and len(set(a) & set(b)) > 1 for a, b in pairwise(pairs)]
            return sum(again), len(pairs)

        again, count = repetitions("two orders")
        assert count > 20
        assert again > count / 3  # half, but for copies that do not fit
        assert repetitions("base")[0] == 0

    def test_only_ends_of_grid_rows_are_numbered(self) -> None:
        assert any(" /" in text for text, _ in self.tasks("base", "grids"))
        texts = [text for text, _ in self.tasks("numbered rows", "grids")]
        assert not any("/" in text for text in texts)
        assert all(" 11" in text for text in texts)
        assert self.tasks("numbered rows", "rows") == self.tasks("base", "rows")


def outcome(family: str, strategy: str, run: int, right: float, cost: float, stage: bool = False) -> Outcome:
    values = dict.fromkeys(NAMES[1], 0.0) | {"kind_list": 1.0} if stage else {}
    version = FEATURES_VERSION if stage else 0
    return Outcome(
        family, family, family, "made", "list", strategy, run, "answered", right, 1.0, 10, cost, "base", values, version
    )


class TestPolicy:
    def test_the_vbs_per_sub_task_is_evaluated_on_other_runs(self) -> None:
        """With random outcomes, the best strategy of a sub-task is better only on the runs that selected it."""
        rng = random.Random(0)
        costs = {"in_context": 1.0, "a": 5.0, "b": 50.0}
        coins = [
            outcome(f"f{n}", s, run + 40 * (s == "b"), rng.random(), costs[s])
            for n in range(60) for s in costs for run in range(5)
        ]  # fmt: skip
        by_chance = policy.utilities_by_sub_task(coins)
        assert by_chance["vbs_same_runs"] > by_chance["sbs"] + 0.05
        assert abs(by_chance["vbs_other_runs"] - by_chance["sbs"]) < 0.05
        assert (by_chance["families"], by_chance["runs"]) == (60, 5)
        deterministic = [
            outcome(f"f{n}", s, run, float(s == ("a" if n % 2 else "b")), 1.0)
            for n in range(10) for s in costs for run in range(5)
        ]  # fmt: skip
        by_rule = policy.utilities_by_sub_task(deterministic)
        assert by_rule["vbs_other_runs"] == by_rule["vbs_same_runs"] > by_rule["sbs"] + 0.4

    def test_other_queries_of_a_task_predict_its_best_strategy_unless_outcomes_are_random(self) -> None:
        rng = random.Random(0)

        def outcomes(random_outcomes: bool) -> list[Outcome]:
            return [
                replace(outcome(f"f{n}", s, 0, right, 1.0), task_id=f"f{n}#{query}")
                for n in range(200) for place, s in enumerate(policy.ARMS) for query in range(2)
                for right in [rng.random() < 0.5 if random_outcomes else (n + place) % 4 == 0]
            ]  # fmt: skip

        gap = policy.gap_closed_by_other_queries(outcomes(random_outcomes=True), 0.001, "ttt_augmented")
        assert abs(gap["value"]) < 0.2
        assert gap["interval_90"][0] < gap["value"] < gap["interval_90"][1]
        gap = policy.gap_closed_by_other_queries(outcomes(random_outcomes=False), 0.001, "ttt_augmented")
        assert (gap["value"], gap["tasks"], gap["queries_each"]) == (1.0, 200, 2)
        same = [replace(o, correct=1.0) for o in outcomes(random_outcomes=True)]
        gap = policy.gap_closed_by_other_queries(same, 0.001, "ttt_augmented")
        assert (gap["value"], gap["interval_90"]) == (None, None), "there is no gap"
        alone = [o for o in same if o.task_id.endswith("#0")]
        assert policy.gap_closed_by_other_queries(alone, 0.001, "ttt_augmented")["tasks"] == 0

    def test_an_undefined_metric_reaches_no_goal(self) -> None:
        shipped = policy.load_bundle(policy.BUNDLED)
        sure = {"value": 0.2, "interval_90": [0.1, 0.3]}
        shipped = replace(shipped, scorecard={**shipped.scorecard, "gap_closed_per_task": sure})
        rows = {r["name"]: r for r in policy.scorecard_rows(shipped)}
        assert rows["gap closed, lower bound, all draws"]["holds"] is True
        draws = {k: v for k, v in shipped.scorecard["repeats"].items() if k not in ("gap_closed_per_task", "apgr")}
        even = {"value": 0.0, "interval_90": [0.0, 0.0]}
        level = policy.scorecard_rows(replace(shipped, scorecard={**shipped.scorecard, "gap_closed_per_task": even}))
        assert {r["name"]: r for r in level}["gap closed, lower bound, all draws"]["holds"] is False
        none = dict.fromkeys(["gap_closed_per_task", "gap_closed_per_query", "routing"])
        bare = {**shipped.scorecard, **none, "repeats": draws}
        without = {r["name"]: r for r in policy.scorecard_rows(replace(shipped, scorecard=bare))}
        assert list(without) == list(rows)
        undefined = [name for name, r in without.items() if r["value"] is None]
        assert len(undefined) == 5
        assert all(without[name]["holds"] is (None if rows[name]["goal"] is None else False) for name in undefined)

    def test_the_shipped_bundle_differs_from_one_of_other_outcomes_or_another_model(self) -> None:
        shipped = policy.load_bundle(policy.BUNDLED)
        assert policy.same_as_shipped(shipped, shipped, 1.0)[0]["holds"] is True
        arms = shipped.scorecard["arms"]
        more = {**arms, "ttt_augmented": {**arms["ttt_augmented"], "cost": arms["ttt_augmented"]["cost"] + 1}}
        others = [
            replace(shipped, scorecard={**shipped.scorecard, "arms": more, "digest": ""}),
            replace(shipped, base_hash="other"),
        ]
        for other in others:
            assert policy.same_as_shipped(other, shipped, 1.0)[0]["holds"] is False
        two = [replace(shipped, scorecard={**shipped.scorecard, "digest": name}) for name in "ab"]
        assert policy.same_as_shipped(*two, 1.0)[0]["holds"] is False

    def test_the_interval_of_a_gain_on_another_set_is_over_families(self) -> None:
        learned = LearnedPolicy(policy.load_bundle(policy.BUNDLED))
        strategies = learned.trained.strategies
        outcomes = [
            outcome(f"f{n}", s, 0, float(s == "in_context" or n < 2), c, s == "in_context")
            for n in range(6) for s, c in zip(strategies, (1.0, 8.0, 200.0, 300.0), strict=True)
        ]  # fmt: skip
        transfer = policy.evaluate_transfer(learned, build_outcome_table(outcomes))
        assert transfer["gain"] == pytest.approx(transfer["utility"] - transfer["sbs_utility"], abs=1e-3)
        low, high = transfer["interval_90"]
        assert low - 0.001 < transfer["gain"] < high + 0.001
        assert transfer["queries"] == 6

    def test_a_decision_is_timed_by_the_features_that_the_outcomes_have(self) -> None:
        learned = LearnedPolicy(policy.load_bundle(policy.BUNDLED))
        names = learned.trained.feature_names[1]
        assert set(names) < set(NAMES[1]), "its outcomes lack some features"
        outcomes = [
            replace(one, features={name: one.features[name] for name in names} if one.features else {})
            for n in range(6) for s in learned.trained.strategies
            for one in [outcome(f"f{n}", s, 0, 1.0, 1.0, s == "in_context")]
        ]  # fmt: skip
        assert policy.decision_time(learned, build_outcome_table(outcomes))["value"] > 0

    def test_every_public_set_is_evaluated_or_omitted_with_a_reason(self) -> None:
        assert not set(policy.SETS) & set(policy.OMITTED)
        assert all(policy.OMITTED.values())


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of few bootstrap draws."""
    monkeypatch.setattr(crossfit.interval, "__defaults__", (50,))


@pytest.mark.usefixtures("few_draws")
class TestCrossfit:
    def case(
        self, family: int, in_context: bool, voted: bool, before: float, after: float, sure: float = 0.4
    ) -> object:
        return crossfit.Case(
            f"{family}", "model", f"f{family}", "set, list", in_context, voted, before, after, 0.5, 40.0, sure,
            family < 2,
        )  # fmt: skip

    def test_without_a_cross_validated_gain_a_more_certain_in_context_answer_is_returned(self) -> None:
        assert self.case(0, True, False, 0.5, 0.25, 0.9).with_rule is True
        assert self.case(0, True, False, 0.5, 0.5, 0.9).with_rule is True
        assert self.case(0, True, False, 0.5, 0.5, 0.1).with_rule is False
        assert self.case(0, False, True, 0.5, 0.75, 0.9).with_rule is True

    def test_accepted_and_rejected_adapters_are_counted_by_their_effect(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        cases = [
            self.case(0, True, False, 1.0, 0.5, 0.9),  # harm, rejected
            self.case(1, True, False, 0.5, 0.5),  # harm, accepted
            self.case(2, False, True, 0.0, 0.5, 0.9),  # help, accepted
            self.case(3, False, True, 0.5, 0.0, 0.9),  # help, rejected
            self.case(4, True, True, 1.0, 1.0),
        ]
        results = {r["name"].removeprefix("s: "): r for r in crossfit.rows_of("s", cases)}
        assert results["right in context"]["value"] == 0.6
        assert results["right by one adapter"]["value"] == 0.4
        assert results["right by the vote of the folds"]["value"] == 0.6
        assert results["right by the vote, with the verdict"]["value"] == 0.6
        assert results["harmful adapters that the verdict rejects"]["value"] == 0.5
        assert results["helpful adapters that the verdict rejects"]["value"] == 0.5
        below = results["estimated gain below 0: true gain"]
        assert (below["better"], below["worse"], below["queries"]) == (1, 1, 2)
        low, high = results["right in context"]["interval_90"]
        assert low < 0.6 < high
        assert "5 queries of 5 families" in capsys.readouterr().out

    def test_one_query_of_each_task_is_selected(self) -> None:
        tasks = crossfit.draw_tasks("policy", 3, 0, "lists", 2)
        assert crossfit.first_queries(tasks) == tasks[::2]
        alone = [replace(t, group="") for t in tasks]
        assert crossfit.first_queries(alone) == alone

    def test_a_statistic_without_cases_has_no_value(self) -> None:
        results = {r["name"]: r for r in crossfit.rows_of("s", [self.case(0, True, True, 1.0, 1.0)])}
        assert results["s: helpful adapters that the verdict rejects"]["value"] is None


class TestWarm:
    def test_recurring_tasks_are_of_the_most_frequent_families(self) -> None:
        (one,) = warm.draw_tasks("policy", 1, 0, "lists")
        tasks = [replace(one, family=family) for family in "aaaabbbbbcc"]
        recurring = warm.recurring(tasks, 6, 4, random.Random(0))
        assert sorted(t.family for t in recurring) == list("aaaabbbbb")
        assert warm.recurring(tasks, 6, 6, random.Random(0)) == []

    def test_differences_are_paired(self) -> None:
        rows = [{"warm_steps": n + 2, "cold_steps": n} for n in (1, 100, 1000)]
        assert warm.compare(rows, "steps")["difference_90"] == [2.0, 2.0]


class TestEngine:
    def test_a_ratio_is_of_times_that_are_measured_in_turn(self) -> None:
        engine = script("engine")
        calls: list[str] = []
        ratio, mine, other = engine.side_by_side(
            lambda: calls.append("ours"), lambda: (calls.append("theirs"), time.sleep(0.02)), 3, torch.device("cpu")
        )
        assert ratio > 1
        assert mine < other
        assert sorted(calls) == ["ours"] * 4 + ["theirs"] * 4

    def test_a_goal_is_a_minimum_or_a_maximum(self, capsys: pytest.CaptureFixture[str]) -> None:
        engine = script("engine")
        assert engine.row("n", 3.0, "times", "x", 2.0)["holds"] is True
        assert engine.row("n", 3.0, "times", "x", 2.0, most=True)["holds"] is False
        assert engine.row("n", 3.0, "times", "x", None)["holds"] is None
        assert "goal 2: does not hold" in capsys.readouterr().out

    def test_operations_grow_with_rows_and_rank(self) -> None:
        engine = script("engine")
        growth = sys.modules["engine_growth"]
        loaded = wrap_model(tiny_model("llama"), tiny_tokenizer())
        recipe = Recipe(rank=4, max_steps=1, batch_size=2, dropout=0.0)
        rows = growth.prompts_of(loaded, growth.lists_task(3), recipe)
        assert len(rows) == 2
        once = growth.operations(loaded, recipe, rows[:1]) + growth.operations(loaded, recipe, rows[1:])
        assert growth.operations(loaded, recipe, rows) == pytest.approx(once)
        assert growth.operations(loaded, replace(recipe, rank=8), rows) > once
        assert engine.operations is growth.operations
        times, nbytes, _ = growth.Step(loaded, recipe, [rows]).run(2)
        assert len(times) == 2
        assert nbytes > 0


@pytest.mark.usefixtures("few_draws")
def test_tables_of_the_documents_are_written_from_the_results(tmp_path: Path) -> None:
    measured = script("result_tables")
    facts = {"commit": "c0ffee", "date": "2026-01-02", "machine": {"cores": 2}, "versions": {"torch": "2"}}
    goals = [
        {"name": "one", "value": 3.0, "unit": "times", "against": "x", "goal": 2.0, "holds": True},
        {"name": "two", "value": 1.0, "unit": "times", "against": "x", "goal": 2.0, "holds": False},
        {"name": "three", "value": None, "unit": "ms", "against": "-", "goal": None, "holds": None},
    ]
    step = {"adapters": 1000, "tokens": 2000, "seconds": 0.5, "share_of_rate": 0.4, "megabytes": 7.5}
    engine = facts | {"rows": goals, "growth": {"adapters": [step]}, "profile": {"matrix products": 0.6, "mul": 0.4}}
    (tmp_path / "engine.json").write_text(json.dumps(engine))
    cases = [TestCrossfit().case(n, n < 2, n > 0, 0.5, 0.25, 0.9) for n in range(3)]
    fitted = {"strategy": "ttt_crossfit", "limit": 40, "generated": 20, "rows": crossfit.rows_of("lists", cases)}
    (tmp_path / "crossfit.json").write_text(json.dumps(facts | fitted))
    page = measured.measured(tmp_path)
    assert "| one | 3 times | x | 2: reached |" in page
    assert "| two | 1 times | x | 2: **not reached** |" in page
    assert "| three | - | - |  |" in page
    assert "| adapters | 1,000 | 2,000 | 0.500 | 40% | 7.5 |" in page
    assert "matrix products 60%, mul 40%." in page
    assert "`make bench-engine`, 2026-01-02, commit c0ffee; cores 2, torch 2." in page
    (line,) = [line for line in page.splitlines() if line.startswith("| lists | 3 |")]
    assert "| 1 of 1 | 1 of 1 |" in line
    assert "0.67 [" in line


class TestRecipeFrontier:
    """Recipes of a real model: paired by task, against seconds."""

    @staticmethod
    def rows(recipe: str, group: str, right: list[bool], seconds: float) -> dict[str, object]:
        return {
            "model": "m", "recipe": recipe, "settings": {}, "seed": 0, "group": group, "family": group, "right": right,
            "seconds": seconds,
        }  # fmt: skip

    def test_only_tasks_of_every_recipe_count_and_seconds_are_beside_the_trainer(self) -> None:
        frontier = script("recipe_frontier")
        rows = [
            self.rows("in_context", "a", [True, False], 0.0), self.rows("in_context", "b", [False, False], 0.0),
            self.rows("in_context", "c", [True, True], 0.0),
            self.rows("Trainer + PEFT, published", "a", [True, True], 8.0),
            self.rows("Trainer + PEFT, published", "b", [False, True], 12.0),
            self.rows("default", "a", [False, True], 1.0), self.rows("default", "b", [True, True], 3.0),
        ]  # fmt: skip
        base, mine, trainer = frontier.summary(rows)
        assert [r["name"] for r in (base, mine, trainer)] == ["in_context", "default", "Trainer + PEFT, published"]
        assert {r["queries"] for r in (base, mine, trainer)} == {4}
        assert (base["accuracy"], mine["accuracy"], trainer["accuracy"]) == (25.0, 75.0, 75.0)
        assert (mine["gain"], mine["harm"], mine["gain_interval_90"]) == (50.0, 25.0, [0.0, 100.0])
        assert (mine["seconds"], mine["of_trainer_seconds"]) == (2.0, 0.2)

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
    def test_an_interrupted_run_continues_and_both_engines_train(self, tmp_path: Path) -> None:
        frontier = script("recipe_frontier")
        learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer(), prompt_format="compact")
        pairs = [([n, n + 1], [n + 1, n]) for n in range(4)]
        tasks = [[make_task(pairs, [q, 9], answer=[9, q], group=group) for q in (5, 6)] for group in ("one", "two")]
        recipe = Recipe(rank=2, alpha=2.0, max_steps=2, batch_size=2, target_modules=("q_proj", "v_proj"), dropout=0.0)
        recipes = {frontier.IN_CONTEXT: None, frontier.TRAINER: recipe, "ours": recipe}
        file = tmp_path / "rows.jsonl"
        frontier.measure(learner, tasks[:1], recipes, file, 0)
        file.write_text(file.read_text() + '{"model": "incomp')
        file.write_text(file.read_text().rpartition("\n")[0] + "\n")
        frontier.measure(learner, tasks, recipes, file, 0)
        rows = frontier.read_rows(file)
        assert [(r["recipe"], r["group"]) for r in rows] == [(name, g) for g in ("one", "two") for name in recipes]
        assert all(len(r["right"]) == 2 and r["seconds"] >= 0 for r in rows)
        assert learner.verify(full=True).hash == learner.base_hash


class TestServingCapacity:
    """Rates of one process and of two, which take turns on tasks of their own."""

    class Worker:
        """Notes what it is asked, in place of a process."""

        def __init__(self) -> None:
            self.asked: list[tuple[str, list[int], int]] = []

        def begin(self, workload: str, seeds: list[int], callers: int) -> None:
            self.asked.append((workload, list(seeds), callers))

        def result(self) -> dict[str, float]:
            return {"seconds": 1.0}

    def test_tasks_are_new_but_for_those_whose_adapter_is_cached(self) -> None:
        capacity = script("serving_capacity")
        alone, pair = self.Worker(), [self.Worker(), self.Worker()]
        found = capacity.rates(alone, pair, {"easy": 4, "hard": 4, "cached": 4, "mixed": 8}, 2)
        assert found.keys() == set(capacity.WORKLOADS)
        assert all(one > 0 and two > 0 for one, two in found.values())
        for worker, callers in ((alone, 16), (pair[0], 8), (pair[1], 8)):
            assert [(name, asked) for name, _, asked in worker.asked] == [(n, callers) for n in capacity.WORKLOADS] * 2
            hard, cached = ([s for name, s, _ in worker.asked if name == which] for which in ("hard", "cached"))
            assert hard == cached
        seeds = [n for w in (alone, *pair) for name, asked, _ in w.asked if name != "cached" for n in asked]
        assert len(seeds) == len(set(seeds)) == 2 * 2 * (4 + 4 + 8)

    def test_the_mixture_stands_beside_the_rates_of_its_parts(self) -> None:
        capacity = script("serving_capacity")
        found = {"easy": (8.0, 10.0), "hard": (1.0, 1.5), "mixed": (4.0, 5.0)}
        rows = capacity.rate_rows(found, dict.fromkeys(found, 16), {"model": "m", "rounds": 1})
        (mixed,) = [row for row in rows if row["quantity"] == "mixed"]
        assert mixed["against"].startswith("4.27 ")  # 1 / (7/8 / 8 + 1/8 / 1)
        assert (mixed["value"], mixed["of_two_processes"], mixed["goal"], mixed["holds"]) == (4.0, 5.0, None, None)
        (hard,) = [row for row in rows if row["quantity"] == "hard, two processes"]
        assert hard["value"] == 1.5

    def test_the_page_of_capacity_follows_from_the_rows(self, tmp_path: Path) -> None:
        tables, capacity = script("capacity_tables"), script("serving_capacity")
        assert tables.capacity(tmp_path) == ""
        facts = {"commit": "c0ffee", "date": "2026-01-02", "machine": {"cores": 2}, "versions": {"torch": "2"}}
        found = {"easy": (8.0, 10.0), "hard": (1.0, 1.5), "cached": (6.0, 7.0), "mixed": (4.0, 5.0)}
        rows = capacity.rate_rows(found, dict.fromkeys(found, 16), {"model": "m", "rounds": 1})
        held = {"held": 500.0, "added": 300.0, "working": 800.0, "adapter": 2.0}
        rows += [{"name": n, "quantity": n, "model": "m", "value": v, "file_megabytes": 4.0} for n, v in held.items()]
        rows.append({"name": tables.HTTP, "value": 5.0})
        (tmp_path / "serve.json").write_text(json.dumps(facts | {"rows": rows}))
        page = tables.capacity(tmp_path).splitlines()
        assert page[0] == "`make bench-serve`, 2026-01-02, commit c0ffee; cores 2, torch 2."
        assert "| hard queries a second, 16 callers | 1; 1.5 (1.50 times) |" in page
        assert "| one in eight hard, by the formula | 4.27 |" in page
        assert "HTTP takes 5 ms of a query: alone it bounds a process at 200 a second." in "\n".join(page)
        # ten hard queries: 10 (1 + 0.005) / 0.7 processes with two threads, 10 (2 / 1.5 + 0.005) / 0.7 with one
        assert "| m | 10 | all | 15 (30) | 20 (20) | 16.0 | 40.0 | hard queries (100%) |" in page
        # a thousand easy ones: 1000 (1 / 8 + 0.005) / 0.7, and 1000 (2 / 10 + 0.005) / 0.7
        assert "| m | 1,000 | none | 186 (372) | 293 (293) | 146.5 | 0.0 | answers in context (96%) |" in page


class TestTracing:
    def test_works_take_turns_on_the_same_tasks(self) -> None:
        tracing = script("tracing")
        calls: list[tuple[str, str]] = []
        tasks = [make_task([("a", "b")], query, id=query) for query in "xyz"]
        works = {name: lambda task, name=name: calls.append((name, task.id)) for name in ("off", "on")}
        seconds = tracing.paired(works, tasks, 4)
        assert {name: len(values) for name, values in seconds.items()} == {"off": 4, "on": 4}
        pairs = [calls[n : n + 2] for n in range(0, len(calls), 2)]
        assert all(one[1] == other[1] and one[0] != other[0] for one, other in pairs)
        assert {one[0] for one, _ in pairs} == {"off", "on"}

    def test_the_interval_of_a_median_contains_it(self) -> None:
        tracing = script("tracing")
        low, high = tracing.median_interval([1.0, 2.0, 3.0, 4.0, 50.0])
        assert low <= 3.0 <= high

    def test_replays_are_counted_and_continued(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tracing = script("tracing")
        verdicts = itertools.cycle(["identical", "same tokens", "different"])
        monkeypatch.setattr(tracing, "replayed", lambda *_: {"verdict": next(verdicts), "differences": []})
        monkeypatch.setattr(tracing.Learner, "load", lambda: None)
        (row,) = tracing.replay_rows(tmp_path / "rows.jsonl", "", 6)
        assert (row["value"], row["goal"], row["holds"]) == (4, 6, False)
        assert row["against"] == "2 identical, 2 different"
        monkeypatch.setattr(tracing, "replayed", None)
        assert tracing.replay_rows(tmp_path / "rows.jsonl", "", 6) == [row]


class TestRealModels:
    def test_rows_of_time_stay_with_the_commit_of_their_measurement(self, tmp_path: Path) -> None:
        real = script("real_models")
        file = tmp_path / "real.json"
        assert real.rows_kept(file, []) == {"rows": []}
        rows = [
            {"name": "m, set: in_context, chat", "value": 1.0, "queries": 8},
            {"name": "m: automatic minus chat", "value": 4.0},
            {"name": "m: second load", "value": 0.2},
        ]
        file.write_text(json.dumps({"date": "2026-01-01", "commit": "c0ffee", "rows": rows}))
        kept = real.rows_kept(file, [{"name": "m: automatic minus chat", "value": 5.0}])
        assert (kept["rows"], kept["date"], kept["commit"]) == (rows[2:], "2026-01-01", "c0ffee")
        before = {"time_and_memory": {"date": "2025-01-01", "commit": "beef"}}
        file.write_text(json.dumps({"date": "2026-01-01", "commit": "c0ffee", "rows": rows, **before}))
        assert real.rows_kept(file, [])["commit"] == "beef"

    def test_the_controller_is_compared_with_the_best_strategy_that_answered_all_of_its_tasks(self) -> None:
        def row(strategy: str, group: str, right: list[bool], cost: int) -> dict[str, object]:
            return {
                "model": "hash", "set": "function_vectors", "group": group, "family": group, "strategy": strategy,
                "right": right, "seconds": 2.0, "token_equivalents": cost,
            }  # fmt: skip

        rows = [row("in_context", group, [True, False], 10) for group in "abc"]
        rows += [row("ttt_in_context", group, [True, True], 200) for group in "ab"]
        rows += [row("ttt_augmented", group, [True, True], 500) for group in "a"]
        rows += [row("controller", group, [True, group == "a"], 60) for group in "ab"]
        rows += [row("controller, cost weight 0.5", group, [True, False], 20) for group in "ab"]
        numbers = script("real_strategies").strategy_rows(
            rows, "m", "hash", ["function_vectors"], "both sets of the goals"
        )
        values = {each["name"].removeprefix("m, both sets of the goals: "): each for each in numbers}
        assert values["controller"]["gain"] == 25.0
        assert (values["controller"]["goal"], values["controller"]["holds"]) == (
            10.0,
            False,
        )  # the interval begins at 0
        assert values["controller minus the best fixed strategy"]["value"] == -25.0
        cost = values["controller, cost of the best fixed strategy's"]
        assert (cost["value"], cost["against"], cost["holds"]) == (0.3, "ttt_in_context", True)
        dear = values["controller, cost weight 0.5"]
        assert (dear["gain"], dear["relative_cost"], dear["goal"]) == (0.0, 2.0, 10.0)
        assert values["controller, cost weight 0.5, cost of the best fixed strategy's"]["value"] == 0.1
        bound = "a choice that knows every gain, "
        assert values[f"{bound}cost of as many right answers"]["value"] == (2 + 20 + 20) / 40
        assert values[f"{bound}over in_context at 0.4 of the cost"]["value"] == 0.0, "one task costs 22 of 40"

    def test_the_row_of_a_controller_has_the_strategy_of_each_answer(self) -> None:
        controller = Controller.from_pretrained(strategy="in_context")
        demonstrations = [([1, 2], [2, 1]), ([3, 4, 5], [5, 4, 3])]
        tasks = [make_task(demonstrations, query, answer=query[::-1]) for query in ([6, 7], [8, 9, 7])]
        row = script("real_strategies").controller_row(controller, "controller", "lists", tasks, None)
        assert row["strategy"] == "controller"
        assert row["right"] == [controller.solve(task).right for task in tasks]
        assert row["strategies"] == ["in_context", "in_context"]
        assert row["token_equivalents"] > 0
        assert script("real_strategies").controller_row(controller, "controller", "lists", tasks, 2)["right"] == []

    def test_a_controller_for_each_cost_weight(self) -> None:
        learner = Controller.from_pretrained(strategy="in_context").learner
        controllers = script("real_models").controllers_of(learner, BUNDLED, [0.5])
        assert list(controllers) == ["controller", "controller, cost weight 0.5"]
        weights = [each.policy.trained.cost_weight for each in controllers.values()]
        assert weights == [load_bundle(BUNDLED).cost_weight, 0.5]
        assert script("real_models").controllers_of(learner, None, [0.5]) == {}


class TestRealPolicies:
    """Rows with goals and the table of policies for real models."""

    @staticmethod
    def card(policy: float, cost: float) -> dict[str, object]:
        arms = {
            "in_context": {"accuracy": 0.4, "cost": 1.0}, "ttt_in_context": {"accuracy": 0.5, "cost": 20.0},
            "ttt_augmented": {"accuracy": 0.6, "cost": 50.0}, "policy": {"accuracy": policy, "cost": cost},
            "vbs_per_task": {"accuracy": 0.7, "cost": 9.0},
        }  # fmt: skip
        return {
            "arms": arms, "strategies": ["in_context", "ttt_in_context", "ttt_augmented"],
            "best_fixed": "ttt_augmented", "accuracy_beyond_best_fixed": policy - 0.6, "cost_of_best_fixed": cost / 50,
            "gap_closed_per_task": {"value": 0.4, "interval_90": [-0.1, 0.6]}, "harm_share": 0.01, "auroc": 0.9,
            "ece": 0.05, "cases": 30, "families": 10,
        }  # fmt: skip

    def test_goals_hold_only_where_they_are_reached(self) -> None:
        rows_of = script("policy_real_rows").goal_rows
        race = {"cases": 0}
        certain = {"accuracy_alone": 0.5, "gain": 0.02, "gain_interval_90": [1.0, 3.0], "harm_share": 0.01}
        certain = {"ttt_direct": {**certain, "harm_share_alone": 0.03}}
        models = {"m": {"own_policy": self.card(0.61, 25.0), "domains": {"held_out": None}, "race": race}}
        models["m"]["more_certain"] = certain
        gain = {"value": 0.02, "interval_90": [0.01, 0.03]}
        unknown = {"models": {"m": self.card(0.5, 5.0)}, "gain_over_rule_of_thumb": gain}
        holds = {row["name"]: row["holds"] for row in rows_of(models, unknown)}
        assert holds["m, own policy: accuracy beyond"]
        assert not holds["m, own policy: cost of"]  # half, where 40% is the goal
        assert holds["m, own policy: gap closed, SBS to VBS per task"]
        assert not holds["m, own policy: gap closed, lower bound"]
        assert holds["policy for unknown models, all models: utility beyond, lower bound"]
        more, harm = (row for row in rows_of(models, None) if "more certain" in row["name"])
        assert (more["value"], more["interval_90"], more["against"]) == (0.02, [0.01, 0.03], "always ttt_direct")
        assert (harm["value"], harm["against"]) == (0.01, "3.0% of all queries by always ttt_direct")
        assert rows_of(models, None) == rows_of(models, unknown)[: len(rows_of(models, None))]

    def test_the_table_has_a_line_for_each_policy(self, tmp_path: Path) -> None:
        numbers = {"cases": 3, "families": 1, "accuracy": 0.5, "gain": 0.25, "gain_interval_90": [-5.0, 30.0]}
        numbers |= {"harm_share": 0.125, "cost": 20.0, "seconds": 1.5}
        own = {"own_policy": self.card(0.61, 25.0), "strategies": {"ttt_in_context": numbers}}
        facts = {"models": {"m": own}, "any_model": {"models": {"m": self.card(0.5, 5.0)}}}
        (tmp_path / "policy_real.json").write_text(json.dumps(facts))
        lines = script("policy_real_rows").policies_table(tmp_path).splitlines()
        assert lines[2].startswith("| m, own policy | 30, 10 | 40.0% | `ttt_augmented` 60.0% at 50.0x | 61.0% at 25.0x")
        assert lines[3].startswith("| m, policy for unknown models | 30, 10 |")
        assert len({line.count("|") for line in lines}) == 1
        (line,) = script("policy_real_rows").strategies_table(tmp_path).splitlines()[2:]
        assert line == "| m | `ttt_in_context` | 3, 1 | 50.0 | +25.0 [-5.0, +30.0] | 12.5 | 20.0x | 1.50 |"

    def test_what_the_more_certain_answer_gains_is_counted_by_strategy(self) -> None:
        def outcome(number: int, strategy: str, correct: float, confidence: float) -> Outcome:
            trained = {"answer": strategy, "confidence": confidence, "backward_tokens": 5 * (strategy == "ttt_direct")}
            features = dict.fromkeys(NAMES[1], 0.0)
            return Outcome(
                task_id=str(number), group=str(number), family=f"f{number % 5}", dataset="d", kind="text",
                strategy=strategy, seed=0, status="answered", correct=correct, seconds=2.0, token_equivalents=10,
                relative_cost=3.0, base_hash="m", features=features, features_version=FEATURES_VERSION, probe_cost=0.0,
                **trained,
            )  # fmt: skip

        right_before = [outcome(n, "in_context", float(n < 4), 0.9) for n in range(10)]
        after = [outcome(n, "ttt_direct", float(n not in (0, 9)), 0.5 if n in (0, 5) else 0.95) for n in range(10)]
        votes = [outcome(n, "in_context_vote", 1.0, 0.5) for n in range(10)]
        numbers = script("policy_real").more_certain([*right_before, *after, *votes])
        assert set(numbers) == {"ttt_direct"}, "a vote without training stands"
        row = numbers["ttt_direct"]
        assert (row["cases"], row["accuracy_alone"], row["harm_share_alone"]) == (10, 0.8, 0.1)
        assert (row["gain"], row["harm_share"]) == (0.0, 0.0), "one is right again, and one wrong again"

    def test_a_strategy_is_compared_on_the_queries_that_it_was_tried_on(self) -> None:
        def outcome(task: str, strategy: str, correct: float) -> Outcome:
            return Outcome(
                task_id=task, group=task, family=task, dataset="d", kind="text", strategy=strategy, seed=0,
                status="answered", correct=correct, seconds=2.0, token_equivalents=10, relative_cost=3.0,
                base_hash="m", features={}, features_version=FEATURES_VERSION, probe_cost=0.0,
            )  # fmt: skip

        outcomes = [outcome(str(n), "in_context", float(n < 2)) for n in range(4)]
        outcomes += [outcome("0", "ttt_direct", 0.0), outcome("3", "ttt_direct", 1.0), outcome("9", "ttt_direct", 1.0)]
        row = script("policy_real").strategy_numbers(outcomes)["ttt_direct"]
        assert (row["cases"], row["accuracy"], row["gain"], row["harm_share"]) == (2, 0.5, 0.0, 0.5)
        assert row["gain_interval_90"] == [-100.0, 100.0]
