"""Scorecards for people say what the numbers say."""

from __future__ import annotations

import builtins
import errno
import itertools
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autottt.controller.cli.display import show_comparison
from autottt.policies.report import _hull, as_markdown, write_report
from autottt.policies.tracking import track
from autottt.policies.trained_policy import TrainedPolicy
from autottt.ttt_core.errors import FileError, PolicyError

CARD: dict[str, Any] = {
    "cases": 40, "queries": 20, "tasks": 10, "families": 8, "cost_weight": 0.001, "probe_share": 0.75,
    "training_cases": 60, "harm_share": 0.025,
    "arms": {
        "policy": {"accuracy": 0.5, "cost": 20.0, "utility": 0.48, "interval_90": [0.4, 0.5]},
        "in_context": {"accuracy": 0.3, "cost": 1.0, "utility": 0.299, "interval_90": [0.25, 0.35]},
        "ttt_in_context": {"accuracy": 0.5, "cost": 60.0, "utility": 0.44, "interval_90": [0.4, 0.5]},
        "sbs": {"accuracy": 0.5, "cost": 60.0, "utility": 0.44, "interval_90": [0.4, 0.5]},
    },
    "gain_over_sbs": {"value": 0.04, "interval_90": [0.01, 0.07]},
    "gain_over_best_fixed": {"strategy": "ttt_in_context", "value": 0.03, "interval_90": [0.005, 0.06]},
    "gap_closed_per_task": {"value": 0.4, "interval_90": [0.1, 0.6]},
    "gap_closed_per_query": {"value": 0.2, "interval_90": [0.05, 0.3]},
    "difficulty": {"auroc": 0.9, "brier": 0.1, "ece": 0.05, "reliability": [[0.1, 0.2, 10], [0.9, 0.8, 30]]},
    "difficulty_stage_0": {"auroc": None, "brier": 0.1, "ece": 0.05, "reliability": []},
    "routing": {"apgr": 0.8, "apgr_cost": 0.7, "cpt_95": 0.45, "curve": [[0.0, 0.0], [1.0, 1.0]]},
    "leakage": {
        "families_held_out": {"utility": 0.48, "auroc": 0.9}, "cases_held_out": {"utility": 0.5, "auroc": 0.95},
        "cases": 12,
    },
    "repeats": {"draws": 3, "gap_closed_per_task": {"mean": 0.35, "range": [0.31, 0.42]}},
    "kept": {"share": 0.6, "wrong_share": 0.1},
    "shares": {"in_context": 0.6, "ttt_in_context": 0.4},
    "permutation_importance": {"loo_hits": 0.02, "answer_mean": 0.01},
    "changes_per_family": {"lists/a": [0.0, 0.5], "lists/b": [1.0, 0.0]},
    "intervals_90": {"auroc": [0.85, 0.95]},
    "classifiers": {"in_context": {"auroc": 0.9, "brier": 0.1, "ece": 0.05, "reliability": []}},
    "cost_weight_curve": [[0.01, 0.3, 1.0], [0.0, 0.5, 60.0]],
}  # fmt: skip
POLICY = TrainedPolicy(
    "base", ("in_context", "ttt_in_context"), {}, {}, {"": (1.0, 60.0)}, 0.001, 1.0,
    ("ttt_in_context", "in_context"), (), (), (), (), ("a",), ("d",), 0, scorecard=CARD,
)  # fmt: skip


def test_a_full_disk_is_named_and_leaves_no_part_of_a_file(tmp_path, monkeypatch) -> None:
    def full(path, *more, **named):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    bundle = tmp_path / "bundle"
    write_report(POLICY, bundle)
    before = {file.name: file.read_bytes() for file in bundle.iterdir()}
    (bundle / "card.json").write_text("{}")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(
        FileError, match=r"scorecard\.md cannot be written \(No space left.*the policy itself is stored"
    ):
        write_report(replace(POLICY, scorecard={**CARD, "cases": 41}), bundle)
    assert (bundle / "scorecard.md").read_bytes() == before["scorecard.md"]
    assert {file.name for file in bundle.iterdir()} == {*before, "card.json"}
    monkeypatch.setattr(shutil, "copy2", lambda source, target: full(target / "card.json"))
    with pytest.raises(FileError, match=r"runs cannot be written \(No space left.*the policy itself is stored"):
        track(POLICY, bundle, tmp_path / "runs", {})


def test_the_numbers_are_in_the_words() -> None:
    text = as_markdown(POLICY)
    assert "| policy | 50.0% | 20.0x | 0.480 [0.400, 0.500] |" in text
    assert "| always `in_context` | 30.0% | 1.0x | 0.299 [0.250, 0.350] |" in text
    assert "+0.040 (90% interval +0.010 to +0.070)" in text
    assert "Gap closed to the VBS per task: 40.0% (90% interval 10.0% to 60.0%)" in text
    assert "Gap closed to the VBS per query: 20.0%" in text
    assert "Gap closed: (U - U_SBS) / (U_VBS - U_SBS)" in text
    assert "SBS: single best strategy" in text
    assert "VBS: virtual best strategy" in text
    assert "AUROC 0.90" in text
    assert "95% of the gain with 45% of the queries" in text
    assert "AUROC undefined" in text
    assert "AUROC 0.85 to 0.95" in text
    assert "lists/a: 0% became right, 50% became wrong" in text
    assert text.index("| policy |") < text.index("| always `ttt_in_context` |"), "the best first"


def test_the_scorecard_states_its_limits() -> None:
    text = as_markdown(POLICY)
    assert "winner's curse" in text
    assert "all stages for every query" in text
    assert "rule of thumb is evaluated without `ttt_crossfit`" in text
    assert "excluded" not in text
    assert "features of versions" not in text
    assert "12 cases whose family has other cases" in text
    extra = {"over_long": 3, "missing_features": ["new"], "ignored_features": ["retired"], "features_versions": [1, 2]}
    more = replace(POLICY, scorecard={**CARD, **extra})
    text = as_markdown(replace(more, strategies=(*POLICY.strategies, "ttt_crossfit")))
    assert "3 queries are excluded: they exceed the model's context window" in text
    assert "not used, since some outcomes lack them: new." in text
    assert "that this package does not measure: retired." in text
    assert "features of versions 1, 2" in text
    assert "evaluated without" not in text


def test_the_scorecard_names_missing_metrics() -> None:
    none = dict.fromkeys(["routing", "gap_closed_per_task", "gap_closed_per_query", "leakage"])
    bare = {**CARD, **none, "changes_per_family": {}}
    text = as_markdown(replace(POLICY, scorecard=bare))
    assert "no family has more than one case" in text
    assert "gains nothing here" in text
    assert "Gap closed to the VBS" not in text
    assert "None." in text


def damaged(card: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Copies of a scorecard with one part missing, or of another type, and the path of the part."""
    parts = card.items() if isinstance(card, dict) else enumerate(card) if isinstance(card, list) else ()
    for key, part in parts:
        rest = dict(card) if isinstance(card, dict) else list(card)
        del rest[key]
        yield (key,), rest
        for value in (None, True, -1, 1.5, float("nan"), 10**400, "text", [], [1, "a", None], {}, {"a": [1]}):
            other = card.copy()
            other[key] = value
            yield (key, value), other
        for path, inner in damaged(part):
            other = card.copy()
            other[key] = inner
            yield (key, *path), other


def test_a_scorecard_that_training_did_not_write_is_shown_or_refused() -> None:
    refused, shown, reasons = set(), 0, set()
    for path, card in damaged(CARD):
        policy = replace(POLICY, scorecard=card)
        for show in (as_markdown, lambda policy: show_comparison([("one", POLICY), ("two", policy)])):
            try:
                show(policy)
                shown += 1
            except PolicyError as error:
                reasons.add(str(error).partition(":")[0])
                refused.add(path[0])
    assert reasons == {"the scorecard of the policy cannot be shown"}
    assert shown > 100
    assert refused >= {"arms", "gain_over_sbs", "difficulty", "routing", "intervals_90", "changes_per_family", "kept"}
    with pytest.raises(PolicyError, match=r"it has no 'kept'.*autottt train-policy"):
        as_markdown(replace(POLICY, scorecard={k: v for k, v in CARD.items() if k != "kept"}))


def test_the_plot_is_written_if_matplotlib_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
