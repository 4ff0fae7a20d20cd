"""What was served, read back from logs of results: outcomes to learn from, the shadow's choices, and drift.

Knows nothing about how results are made: a log is JSON lines as `autottt solve --full` and `Result.to_plain` write
them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ..ttt_core.errors import PolicyError
from .cases import BASE
from .features import FEATURES_VERSION, NAMES, STAGE_0
from .heads import Floats
from .outcomes import Outcome
from .trained import TrainedPolicy

DRIFTED = 0.25
"""Population stability index from which a feature is said to have drifted, as is usual (Siddiqi 2006)."""
KNOWN = ("id", "status", "attempts", "in_context", "features", "cost", "proof", "task", "decision", "seed")
"""What a line of a log has."""
Row = Mapping[str, Any]


def read_log(files: Iterable[Path]) -> list[Row]:
    """The results in logs, but those of refused tasks. Raises `PolicyError` naming the file and line that is none."""
    found: list[Row] = []
    for file in files:
        for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise PolicyError(f"{file}:{number}: not JSON ({error})") from None
            lacking = [name for name in KNOWN if not isinstance(row, dict) or name not in row]
            if lacking:
                raise PolicyError(
                    f"{file}:{number}: lacks {', '.join(lacking)}: a log is what `autottt solve --full` writes"
                )
            if row["status"] != "refused":
                found.append(row)
    return found


def outcomes_of(rows: Sequence[Row], answers: Mapping[str, Any]) -> list[Outcome]:
    """What each strategy that was tried achieved, where the right answer is known from `answers` (by id) or the log.

    Only queries on which all was measured, since a policy learns from features of every stage. An answer by an adapter
    that was known already, or whose training a deadline cut short, is left out: it says nothing of what training costs.
    """
    found = []
    for row in rows:
        right = _plain(answers.get(row["id"], row["task"].get("answer")))
        read = row["in_context"]
        unit = _passes(read)
        if right is None or set(row["features"]) != set(NAMES[1]) or not unit:
            continue
        others = [a for a in row["attempts"] if a["strategy"] != BASE]
        probing = _passes(row) - unit - sum(map(_passes, others))
        base = {"features": row["features"], "features_version": FEATURES_VERSION, "probe_cost": probing / unit}
        found.append(_outcome(row, read, right, unit, base))
        found += [_outcome(row, attempt, right, unit, {}) for attempt in others if _paid_in_full(attempt)]
    return found


def _paid_in_full(attempt: Row) -> bool:
    """Whether the attempt cost what it costs: its adapter was not known before, and no deadline cut its training."""
    return not attempt["reused"] and (attempt["training"] or {}).get("stopped") != "deadline"


def _outcome(row: Row, attempt: Row, right: Any, unit: int, more: Mapping[str, Any]) -> Outcome:
    task = row["task"]
    read = "answered" if attempt["value"] is not None else "unreadable"
    return Outcome(
        task_id=row["id"], group=task["group"], family=task["family"], dataset=task["dataset"], kind=task["kind"],
        strategy=attempt["strategy"], seed=row["seed"], status="failed" if attempt["error"] else read,
        correct=float(_plain(attempt["value"]) == right), seconds=attempt["cost"]["seconds"], work=_passes(attempt),
        cost=_passes(attempt) / unit, base_hash=row["proof"]["hash"], **more,
    )  # fmt: skip


def _passes(row: Row) -> int:
    cost = row["cost"]
    return int(cost["forward_tokens"] + 2 * cost["backward_tokens"])


def _plain(value: Any) -> Any:
    """The value as JSON has it."""
    return json.loads(json.dumps(value))


@dataclass(frozen=True)
class Drift:
    """How far a feature of what was served lies from training."""

    feature: str
    index: float
    """Population stability index over the deciles of training: 0 for the same distribution."""
    by_chance: float
    """What so few queries of the same distribution would give on average."""
    median: float
    usual: float
    """The median in training."""

    @property
    def drifted(self) -> bool:
        return self.index > DRIFTED + self.by_chance


def drift(policy: TrainedPolicy, rows: Sequence[Row]) -> list[Drift]:
    """Each free feature of what was served against the training set, the furthest first."""
    found = []
    for place, name in enumerate(STAGE_0):
        values = np.array([row["features"][name] for row in rows])
        edges, shares = _bins(policy.deciles[place], policy.below[place])
        counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(shares))
        index = _stability(counts / max(1, len(values)), shares)
        by_chance = (len(shares) - 1) / max(1, len(values))
        found.append(Drift(name, index, by_chance, float(np.median(values)), policy.usual[place]))
    return sorted(found, key=lambda d: d.by_chance - d.index)


def _bins(deciles: Sequence[float], below: Sequence[float]) -> tuple[Floats, Floats]:
    """Edges without repetition, and the share of the training set up to each edge and beyond the last."""
    edges, place = np.unique(np.array(deciles), return_index=True)
    return edges, np.diff(np.concatenate([[0.0], np.array(below)[place], [1.0]]))


def _stability(seen: Floats, expected: Floats) -> float:
    least = 1e-3
    a, b = np.maximum(seen, least), np.maximum(expected, least)
    return float(((a - b) * np.log(a / b)).sum())


def summary(rows: Sequence[Row], answers: Mapping[str, Any], policy: TrainedPolicy | None) -> dict[str, Any]:
    """What was served, as plain JSON: choices, how often they were right where that is known, exploration, the shadow,
    and drift from what the policy was trained on."""
    chosen = [row["decision"]["strategy"] for row in rows]
    known = [(row, _plain(answers.get(row["id"], row["task"].get("answer")))) for row in rows]
    right = {row["id"]: _plain(row["answer"]) == answer for row, answer in known if answer is not None}
    shadowed = [row for row in rows if row["decision"].get("shadow")]
    other = [row for row in shadowed if row["decision"]["shadow"] != row["decision"]["strategy"]]
    found: dict[str, Any] = {
        "queries": len(rows),
        "chosen": {name: chosen.count(name) / len(rows) for name in sorted(set(chosen))},
        "known": len(right),
        "right": fmean(right.values()) if right else None,
        "explored": sum(row["decision"]["explored"] for row in rows),
        "shadow": {
            "queries": len(shadowed),
            "otherwise": len(other),
            "instead": _pairs([(r["decision"]["strategy"], r["decision"]["shadow"]) for r in other]),
            "failed": sum(row["decision"]["shadow"].startswith("failed") for row in shadowed),
        },
    }
    if policy is not None:
        far = drift(policy, rows)
        free = np.array([[row["features"][name] for name in STAGE_0] for row in rows])
        strange = policy.strange(free, [row["task"]["kind"] for row in rows])
        found |= {"strange": float(strange.mean()), "drifted": [d.feature for d in far if d.drifted]}
        found["drift"] = {d.feature: {"index": d.index, "by_chance": d.by_chance} for d in far}
    return found


def _pairs(changes: Sequence[tuple[str, str]]) -> dict[str, int]:
    names = [f"{served} -> {other}" for served, other in changes]
    return {name: names.count(name) for name in sorted(set(names))}
