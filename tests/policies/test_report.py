"""Scorecards for people say what the numbers say."""

from __future__ import annotations

import builtins
import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autottt.policies.report import _hull, as_markdown, write_report
from autottt.policies.trained import TrainedPolicy

CARD: dict[str, Any] = {
    "cases": 40, "queries": 20, "tasks": 10, "families": 8, "price": 0.001, "measured_share": 0.75, "harm_share": 0.025,
    "arms": {
        "policy": {"accuracy": 0.5, "cost": 20.0, "utility": 0.48},
        "in_context": {"accuracy": 0.3, "cost": 1.0, "utility": 0.299},
        "ttt_in_context": {"accuracy": 0.5, "cost": 60.0, "utility": 0.44},
        "single_best": {"accuracy": 0.5, "cost": 60.0, "utility": 0.44},
    },
    "gain_over_single_best": {"value": 0.04, "interval_90": [0.01, 0.07]},
    "gain_over_first": {"strategy": "ttt_in_context", "value": 0.03, "interval_90": [0.005, 0.06]},
    "gap_closed": {"value": 0.4, "interval_90": [0.1, 0.6]},
    "gap_closed_queries": {"value": 0.2, "interval_90": [0.05, 0.3]},
    "difficulty": {"auroc": 0.9, "brier": 0.1, "ece": 0.05, "reliability": [[0.1, 0.2, 10], [0.9, 0.8, 30]]},
    "difficulty_free": {"auroc": None, "brier": 0.1, "ece": 0.05, "reliability": []},
    "routing": {"apgr": 0.8, "apgr_cost": 0.7, "cpt_95": 0.45, "curve": [[0.0, 0.0], [1.0, 1.0]]},
    "leakage": {
        "families_held_out": {"utility": 0.48, "auroc": 0.9}, "cases_held_out": {"utility": 0.5, "auroc": 0.95},
    },
    "repeats": {"draws": 3, "gap_closed": {"mean": 0.35, "range": [0.31, 0.42]}},
    "kept": {"share": 0.6, "wrong_share": 0.1},
    "shares": {"in_context": 0.6, "ttt_in_context": 0.4},
    "importance": {"loo_hits": 0.02, "answer_mean": 0.01},
    "families_gained": {"lists/a": [0.0, 0.5], "lists/b": [1.0, 0.0]},
    "intervals_90": {"auroc": [0.85, 0.95]},
    "heads": {"in_context": {"auroc": 0.9, "brier": 0.1, "ece": 0.05, "reliability": []}},
    "prices": [[0.01, 0.3, 1.0], [0.0, 0.5, 60.0]],
}  # fmt: skip
POLICY = TrainedPolicy(
    "base", ("in_context", "ttt_in_context"), {}, {}, {"": (1.0, 60.0)}, 0.001, 1.0,
    ("ttt_in_context", "in_context"), (), (), (), (), ("a",), ("d",), 0, scorecard=CARD,
)  # fmt: skip


def test_the_numbers_are_in_the_words() -> None:
    text = as_markdown(POLICY)
    assert "| policy | 50.0% | 20.0x | 0.480 |" in text
    assert "| always `in_context` | 30.0% | 1.0x | 0.299 |" in text
    assert "+0.040 (90% interval +0.010 to +0.070)" in text
    assert "best of each task closed: +0.400 (90% interval +0.100 to +0.600); gap to the best of each query" in text
    assert "AUROC 0.90" in text
    assert "95% of the gain with 45% of the queries" in text
    assert "AUROC none" in text
    assert "auroc 0.85 to 0.95" in text
    assert "lists/a: 0% became right, 50% wrong" in text
    assert text.index("| policy |") < text.index("| always `ttt_in_context` |"), "the best first"


def test_what_the_numbers_are_not_is_said() -> None:
    text = as_markdown(POLICY)
    assert "winner's curse" in text
    assert "all stages for every query" in text
    assert "rule of thumb is judged without `ttt_crossfit`" in text
    assert "left out" not in text
    assert "whose family has others" not in text, "an early scorecard does not tell"
    more = replace(POLICY, scorecard={**CARD, "over_long": 3, "leakage": {**CARD["leakage"], "cases": 12}})
    text = as_markdown(replace(more, strategies=(*POLICY.strategies, "ttt_crossfit")))
    assert "3 queries were left out: over-long" in text
    assert "both of the 12 cases whose family has others" in text
    assert "judged without" not in text


def test_what_is_missing_is_said() -> None:
    none = dict.fromkeys(["routing", "gap_closed", "gap_closed_queries", "leakage"])
    bare = {**CARD, **none, "families_gained": {}}
    text = as_markdown(replace(POLICY, scorecard=bare))
    assert "no family has more than one case" in text
    assert "gains nothing here" in text
    assert "gap to the best" not in text
    assert "None." in text


def test_the_picture_is_drawn_where_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(POLICY, tmp_path / "with")
    assert "<svg" in (tmp_path / "with" / "scorecard.svg").read_text()
    assert "scorecard.svg" in (tmp_path / "with" / "scorecard.md").read_text()
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    write_report(POLICY, tmp_path / "without")
    assert [f.name for f in (tmp_path / "without").iterdir()] == ["scorecard.md"]
    assert "scorecard.svg" not in (tmp_path / "without" / "scorecard.md").read_text()


def test_the_hull_is_what_no_mixture_beats() -> None:
    rng = random.Random(0)
    for _ in range(50):
        points = [(rng.randint(1, 20), rng.random()) for _ in range(rng.randint(1, 8))]
        hull = _hull(points)
        assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(hull))
        assert max(p[1] for p in points) == hull[-1][1]
        for cost, right in points:
            under = [b for b in hull if b[0] <= cost]
            over = [b for b in hull if b[0] >= cost]
            if under and over and under[-1] != over[0]:
                a, b = under[-1], over[0]
                assert right <= a[1] + (b[1] - a[1]) * (cost - a[0]) / (b[0] - a[0]) + 1e-9
            elif under:
                assert right <= under[-1][1]
