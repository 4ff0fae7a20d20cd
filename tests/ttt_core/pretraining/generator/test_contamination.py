"""No pair of a public benchmark is pre-trained on: hashes, the filter, and the file that ships."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autottt.ttt_core.pretraining.generator import families
from autottt.ttt_core.pretraining.generator.contamination import KnownPairs, hash_of, known_pairs, symmetric_pairs
from autottt.ttt_core.pretraining.generator.families import draw_task_pairs
from autottt.ttt_core.tasks.readers import read_tasks

OPEN = Path(__file__).resolve().parents[5] / "shared" / "data" / "open"

grids = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.tuples(*[st.integers(0, 9)] * width), min_size=1, max_size=4).map(tuple)
)
pairs = st.tuples(grids, grids)


@settings(deadline=None)  # a test process may wait for a core
@given(pairs, st.permutations(range(10)))
def test_the_hash_of_grids_ignores_colours(pair: Any, colours: list[int]) -> None:
    painted = tuple(tuple(tuple(colours[c] for c in row) for row in grid) for grid in pair)
    assert hash_of("grid", painted) == hash_of("grid", pair)


@settings(deadline=None)  # a test process may wait for a core
@given(pairs)
def test_a_pair_of_grids_is_recognised_under_every_symmetry(pair: Any) -> None:
    known = KnownPairs.of([("grid", [pair])])
    for same in symmetric_pairs(pair):
        assert known.contaminates("grid", [same])


def test_different_pairs_have_different_hashes() -> None:
    a, b = ((1, 2, 1),), ((1, 2),)
    assert len({hash_of("grid", p) for p in [(a, b), (b, a), (a, a), (b, b)]}) == 4
    assert hash_of("list", ((1, 2), (2,))) != hash_of("list", ((2, 1), (1,)))
    assert hash_of("grid", (((1, 1, 2),), ((1,),))) != hash_of("grid", (((1,), (1,), (2,)), ((1,),)))


def test_a_list_task_is_contaminated_by_two_pairs_of_one_task() -> None:
    first, second, other = ((1,), (2,)), ((3,), (4,)), ((5,), (6,))
    known = KnownPairs.of([("list", [first, second]), ("list", [other])])
    assert not known.contaminates("list", [first, ((9,), (9,))])
    assert not known.contaminates("list", [first, other])
    assert known.contaminates("list", [first, ((9,), (9,)), second])
    assert not known.contaminates("text", [first, second])
    assert KnownPairs.of([("list", [first]), ("list", [first, second])]).contaminates("list", [first, second])


def test_long_rows_have_a_hash() -> None:
    row = ((1,) * 300,)
    assert hash_of("grid1d", (row, row)) != hash_of("grid1d", (row, ((1,) * 299,)))


def test_saved_pairs_are_loaded(tmp_path: Path) -> None:
    known = KnownPairs.of([("list", [((1,), (2,)), ((3,), (4,))]), ("list", [((1,), (2,))])])
    known.save(tmp_path / "known.bin")
    again = KnownPairs.load(tmp_path / "known.bin")
    assert again.hits("list", [((3,), (4,)), ((7,), (7,)), ((1,), (2,))]) == [(0,), (0, 1)]


def test_the_generator_rejects_a_benchmark_task(monkeypatch: pytest.MonkeyPatch) -> None:
    family, first = draw_task_pairs("pretrain", 6, random.Random(3), "rows", filtered=False)
    monkeypatch.setattr(families, "known_pairs", lambda: KnownPairs.of([(family.domain.kind, [first[2]])]))
    assert draw_task_pairs("pretrain", 6, random.Random(3), "rows", filtered=False)[1] == first
    assert draw_task_pairs("pretrain", 6, random.Random(3), "rows")[1] != first


@pytest.mark.skipif(not OPEN.is_dir(), reason="the public benchmarks are not here")
def test_the_shipped_file_contains_every_benchmark_task() -> None:
    for task in read_tasks([OPEN]).tasks:
        pairs = [*((d.input, d.output) for d in task.demonstrations), (task.query, task.answer)]
        assert len(known_pairs().hits(task.kind, pairs)) == len(pairs)
