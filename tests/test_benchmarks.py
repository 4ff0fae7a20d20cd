"""The arithmetic of the benchmarks: how tasks are shared out, and what their rows amount to."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

from autottt.controller.evaluation import Row
from autottt.ttt_core.tokenizer import build_tokenizer

FOLDER = Path(__file__).parents[1] / "benchmarks"


def script(name: str) -> ModuleType:
    """A benchmark as a module: they are scripts beside the package, not in it."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


model = script("model")
trials = script("pretrain_trials")


def row(dataset: str, name: str, strategy: str, right: bool, family: str = "f", second: bool = False) -> Row:
    return Row(dataset, family, name, name, strategy, right, "answered", strategy, False, 1.0, 10, second=second)


def rows_of(dataset: str, shares: dict[str, int], family: str = "f") -> list[Row]:
    """Ten queries for each strategy, of which it has so many right."""
    return [row(dataset, str(n), s, n < shares.get(s, 0), family) for s in model.STRATEGIES for n in range(10)]


class TestSharingOut:
    def test_every_query_is_measured_by_one_process_and_tasks_are_not_torn(self) -> None:
        tasks = model.tasks_of("test", Path(), 12, 0)
        parts = [model.part_of(tasks, part, 3) for part in range(3)]
        assert sorted(t.id for part in parts for t in part) == sorted(t.id for t in tasks)
        assert len({t.id for t in tasks}) == len(tasks)
        groups = [group for part in parts for group in {t.group for t in part}]
        assert len(groups) == len(set(groups))

    def test_a_set_drawn_by_the_generator_holds_every_domain(self) -> None:
        tasks = model.tasks_of("policy", Path(), 4, 0)
        assert {t.family.split("/")[0] for t in tasks} == {"lists", "rows", "grids", "strings"}


class TestNumbers:
    def found(self, rows: list[Row], names: list[str]) -> dict[str, dict[str, object]]:
        return {r["name"]: r for r in model.numbers(rows, names)}

    def test_goals_ratios_and_the_sets_that_reading_cannot_do(self) -> None:
        rows = rows_of("mini_arc", {"ttt_augmented": 4}) + rows_of("arc_1d", {"in_context": 5, "ttt_augmented": 6})
        found = self.found(rows, ["mini_arc", "arc_1d"])
        assert found["arc_1d: in_context"]["value"] == 50.0
        best = found["mini_arc: best of 5, chosen afterwards (ttt_augmented)"]
        assert (best["value"], best["goal"], best["holds"]) == (40.0, 30.0, True)
        every = next(r for n, r in found.items() if n.startswith("all (mini_arc, arc_1d)"))
        assert (every["value"], every["holds"]) == (2.0, True)
        low = next(r for n, r in found.items() if n.startswith("under 10% in context (mini_arc)"))
        assert (low["value"], low["holds"]) == (None, False)  # nothing right in context: no ratio

    def test_a_set_without_a_goal_is_to_be_gained_on_by_training(self) -> None:
        rows = [
            r
            for f, before, after in (("f", 5, 9), ("g", 5, 6), ("h", 5, 5))
            for r in rows_of("letter_string", {"in_context": before, "ttt_augmented": after}, f)
        ]
        gained = self.found(rows, ["letter_string"])["letter_string: ttt_augmented beyond in_context"]
        assert (gained["value"], gained["holds"], gained["interval_90"]) == (16.7, True, [3.33, 30.0])
        lost = self.found(rows_of("letter_string", {"in_context": 5, "ttt_augmented": 4}), ["letter_string"])
        assert lost["letter_string: ttt_augmented beyond in_context"]["holds"] is False

    def test_ratios_have_the_spread_of_their_families(self) -> None:
        rows = [
            r
            for f, after in (("f", 4), ("g", 8))
            for r in rows_of("arc_1d", {"in_context": 4, "ttt_augmented": after}, f)
        ]
        every = next(r for n, r in self.found(rows, ["arc_1d"]).items() if n.startswith("all"))
        assert (every["value"], every["interval_90"]) == (1.5, [1.0, 2.0])

    def test_two_attempts_count_for_arc_alone(self) -> None:
        rows = [row("arc_agi_1", str(n), s, False, second=True) for s in model.STRATEGIES for n in range(4)]
        assert self.found(rows, ["arc_agi_1"])["arc_agi_1: ttt_augmented"]["value"] == 100.0
        rows = [row("mini_arc", str(n), s, False, second=True) for s in model.STRATEGIES for n in range(4)]
        assert self.found(rows, ["mini_arc"])["mini_arc: ttt_augmented"]["value"] == 0.0

    def test_a_split_is_reported_by_domain(self) -> None:
        rows = [
            r
            for d, right in (("lists", 8), ("rows", 6), ("grids", 4), ("strings", 2))
            for r in rows_of("generator_test", {"in_context": right}, f"{d}/f")
        ]
        found = self.found(rows, ["test"])
        assert found["generator, test, lists: in_context"]["value"] == 80.0
        assert found["generator, test: in_context"]["value"] == 50.0


class TestTrials:
    def test_symmetries_keep_the_rule_and_the_cells(self) -> None:
        pairs = [(((1, 2, 3), (4, 5, 6)), ((1, 2, 3), (4, 5, 6)))]
        seen = {trials.turned("grid", pairs, random.Random(n))[0] for n in range(40)}
        assert len(seen) == 8
        assert all(a == b and sorted(x for r in a for x in r) == [1, 2, 3, 4, 5, 6] for a, b in seen)
        assert {trials.turned("grid1d", [(((1, 2),), ((2, 1),))], random.Random(n))[0][0] for n in range(20)} == {
            ((1, 2),),
            ((2, 1),),
        }
        assert trials.turned("list", [((1, 2), (3,))], random.Random(0)) == [((1, 2), (3,))]

    def test_rows_are_numbered_without_a_token_more(self) -> None:
        assert trials.numbered_rows(" 1 2 / 3 4 / 5 6") == [" 1 2 11 3 4 12 5 6"]

    @pytest.mark.parametrize("name", ["last answer", "two orders", "numbered rows"])
    def test_a_variant_labels_what_it_says(self, name: str) -> None:
        config = trials.PretrainConfig(tokens=1024, phases=trials.phases_of(name, trials.VARIANTS[name], 2))
        stream = trials.TrialStream(trials.VARIANTS[name], config, build_tokenizer())
        batch = stream.batch(0)
        assert batch.ids.shape == batch.labels.shape == batch.positions.shape
        learned = batch.labels != trials.IGNORED
        assert (batch.labels[learned] == batch.ids[learned]).all()
        if name == "last answer":
            ends = [int(n) for n in (learned[:, 1:] & ~learned[:, :-1]).sum(1)]
            starts = [int(n) for n in (batch.positions == 0).sum(1)]
            assert all(0 < e <= s for e, s in zip(ends, starts, strict=True))
