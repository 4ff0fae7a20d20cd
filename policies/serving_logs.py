"""What was served, read back from logs of results: outcomes to learn from, the shadow's choices, and drift.

Knows nothing about how results are made: a log is JSON lines as `autottt solve --trace` and `Result.to_plain` write
them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ttt_core.errors import PolicyError
from ..ttt_core.lora.cross_validation import CrossValidationResult
from ..ttt_core.tasks.task import content_digest
from .fast_inference import Floats
from .features import FEATURES_VERSION, NAMES, STAGE_0
from .outcomes import BASE, Outcome, finite
from .trained import TrainedPolicy

DRIFTED = 0.25
"""Population stability index from which a feature is said to have drifted, as is usual (Siddiqi 2006)."""
KNOWN = (
    "id", "status", "answer", "attempts", "in_context", "features", "features_version", "cost", "in_context_tokens", "proof", "task",
    "decision", "seed",
)  # fmt: skip
"""What a line of a log has."""
RESAMPLES = 2000
"""Of queries like those in training, to see what chance does to their index."""
Row = Mapping[str, Any]


def read_log(files: Iterable[Path]) -> list[Row]:
    """The results in logs, but those of refused tasks; a last line that an interruption tore is passed over.

    Raises `PolicyError` naming the file and line that is no result, or one with features of another version.
    """
    found: list[Row] = []
    for file in files:
        try:
            lines = file.read_text("utf-8").splitlines(keepends=True)
        except UnicodeDecodeError as error:
            raise PolicyError(f"{file}: expected a text in UTF-8 ({error})") from None
        for number, line in enumerate(lines, start=1):
            place = f"{file}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                if number == len(lines) and not line.endswith("\n"):
                    continue
                raise PolicyError(f"{place}: not JSON ({error})") from None
            lacking = [name for name in KNOWN if not isinstance(row, dict) or name not in row]
            if lacking:
                raise PolicyError(f"{place}: lacks {', '.join(lacking)}: a log is what `autottt solve --trace` writes")
            if row["status"] == "refused":
                continue
            if row["features_version"] != FEATURES_VERSION:
                raise PolicyError(
                    f"{place}: features of version {row['features_version']}; this package measures {FEATURES_VERSION}"
                )
            found.append(row)
    return found


def base_of(rows: Sequence[Row]) -> str:
    """The content hash of the model that answered. Raises `PolicyError` when there were several, or no answers."""
    if not rows:
        raise PolicyError("these logs hold no answered query: they are empty, or all their tasks were refused")
    hashes = sorted({row["proof"]["hash"] for row in rows})
    if len(hashes) != 1:
        names = ", ".join(name[:12] for name in hashes)
        raise PolicyError(f"{len(hashes)} models answered in these logs ({names}); give those of one model")
    return str(hashes[0])


def outcomes_of(rows: Sequence[Row], answers: Mapping[str, Any]) -> list[Outcome]:
    """What the in-context answer and the first strategy tried achieved, where the right answer is known: from
    `answers`, by the task's digest, or from the log.

    Only queries on which all was measured, since a policy learns from features of every stage. Strategies that were
    tried because another had failed are left out: nothing in the features says so. So is an answer by an adapter that
    was known already, or whose training a deadline cut short: it says nothing of what training costs.
    """
    found: list[Outcome] = []
    for row in rows:
        right, read, unit = _right(row, answers), row["in_context"], row["in_context_tokens"]
        if right is None or set(row["features"]) != set(NAMES[1]) or not unit:
            continue
        others = [attempt for attempt in row["attempts"] if attempt["strategy"] != BASE]
        probing = _passes(row) - _passes(read) - sum(map(_passes, others))
        base = {"features": row["features"], "features_version": FEATURES_VERSION, "probe_cost": probing / unit}
        found.append(_outcome(row, read, right, unit, base))
        first = row["attempts"][0]
        if first["strategy"] != BASE and _paid_in_full(first):
            found.append(_outcome(row, first, right, _passes(first), {}))
    return found


def skipped_counts(rows: Sequence[Row], answers: Mapping[str, Any]) -> dict[str, int]:
    """Why queries give no outcomes to learn from (`outcomes_of`), and how many of them for each reason."""

    def why(row: Row) -> str:
        if _right(row, answers) is None:
            return "their right answer is not known (--answers FILES)"
        if set(row["features"]) != set(NAMES[1]):
            return "settled by the free features alone (`solve --explore 0.05` measures some of them whole)"
        return "" if row["in_context_tokens"] else "what answering in context took is not known"

    return dict(Counter(reason for row in rows if (reason := why(row))))


def _right(row: Row, answers: Mapping[str, Any]) -> Any:
    """The right answer as JSON has it; None where it is not known."""
    return _plain(answers.get(row["task"]["digest"], row["task"]["answer"]))


def _paid_in_full(attempt: Row) -> bool:
    """Whether the attempt cost what it costs: its adapter was not known before, and no deadline cut its training."""
    return not attempt["from_cache"] and (attempt["training_record"] or {}).get("stop_reason") != "deadline"


def _outcome(row: Row, attempt: Row, right: Any, work: int, more: Mapping[str, Any]) -> Outcome:
    task = row["task"]
    read = "answered" if attempt["value"] is not None else "unreadable"
    return Outcome(
        task_id=f"{row['id']}#{task['digest']}", group=task["group"], family=task["family"], dataset=task["dataset"],
        kind=task["kind"], strategy=attempt["strategy"], seed=row["seed"],
        status="failed" if attempt["error"] else read, correct=float(_plain(attempt["value"]) == right),
        seconds=attempt["cost"]["seconds"], work=work, cost=work / row["in_context_tokens"],
        base_hash=row["proof"]["hash"], recipe=attempt.get("recipe", ""), digest=task["digest"],
        forward=work - 2 * attempt["cost"]["backward_tokens"], backward=attempt["cost"]["backward_tokens"],
        confidence=attempt["confidence"], answer="" if attempt["value"] is None else content_digest(attempt["value"]),
        gain=CrossValidationResult(**attempt["cross_validation"]).gain if attempt["cross_validation"] else 1.0,
        losses=finite((attempt["training_record"] or {}).get("losses", ())),
        votes={content_digest(c["value"]): c["share"] for c in attempt["candidates"]},
        prompt_format=row.get("prompt_format", ""), **more,
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
    """What so few queries of the same distribution stay under, all features together, in 19 of 20 cases."""
    median: float
    training_median: float
    """The median in training."""

    @property
    def drifted(self) -> bool:
        return self.index > max(DRIFTED, self.by_chance)


def drift(policy: TrainedPolicy, rows: Sequence[Row]) -> list[Drift]:
    """Each free feature of what was served against the training set, the furthest first."""
    found = []
    for place, name in enumerate(STAGE_0):
        values = np.array([row["features"][name] for row in rows])
        edges, shares = _bins(policy.deciles[place], policy.cdf[place])
        counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(shares))
        drawn = np.random.default_rng(place).multinomial(len(values), shares, RESAMPLES)
        by_chance = float(np.quantile(_stability(drawn, shares), 1 - 0.05 / len(STAGE_0)))
        found.append(
            Drift(
                name,
                float(_stability(counts, shares)),
                by_chance,
                float(np.median(values)),
                policy.feature_medians[place],
            )
        )
    return sorted(found, key=lambda d: max(DRIFTED, d.by_chance) - d.index)


def _bins(deciles: Sequence[float], below: Sequence[float]) -> tuple[Floats, Floats]:
    """Edges without repetition, and the share of the training set up to each edge and beyond the last."""
    edges, place = np.unique(np.array(deciles), return_index=True)
    return edges, np.diff(np.concatenate([[0.0], np.array(below)[place], [1.0]]))


def _stability(counts: NDArray[np.int64], expected: Floats) -> Floats:
    """The index of counts [..., B] against shares [B] -> [...]; half a query more in each bin keeps it finite."""
    seen = (counts + 0.5) / (counts.sum(axis=-1, keepdims=True) + 0.5 * len(expected))
    least = np.maximum(expected, 1e-3)
    index: Floats = ((seen - least) * np.log(seen / least)).sum(axis=-1)
    return index


def summary(rows: Sequence[Row], answers: Mapping[str, Any], policy: TrainedPolicy | None) -> dict[str, Any]:
    """What was served, as plain JSON: choices, how often they were right where that is known, exploration, the shadow
    beside the policy's own choice, and drift from what the policy was trained on."""
    decisions = [row["decision"] for row in rows]
    own = [d["policy_choice"] or d["strategy"] for d in decisions]
    answered = [(row, right) for row in rows if (right := _right(row, answers)) is not None]
    shadowed = [
        (mine, d["shadow"], d["shadow_had_features"]) for mine, d in zip(own, decisions, strict=True) if d["shadow"]
    ]
    failed = [other for _, other, _ in shadowed if other.startswith("failed")]
    changes = [f"{mine} -> {other}" for mine, other, _ in shadowed if other not in (mine, *failed)]
    found: dict[str, Any] = {
        "queries": len(rows),
        "chosen": {name: own.count(name) / len(rows) for name in sorted(set(own))},
        "explored": sum(bool(d["policy_choice"]) for d in decisions),
        "known": len(answered),
        "right": fmean(_plain(row["answer"]) == right for row, right in answered) if answered else None,
        "shadow": {
            "queries": len(shadowed),
            "otherwise": {name: changes.count(name) for name in sorted(set(changes))},
            "would_have_measured_more": sum(not knew for _, _, knew in shadowed),
            "failed": len(failed),
        },
    }
    if policy is not None:
        far = drift(policy, rows)
        free = np.array([[row["features"][name] for name in STAGE_0] for row in rows])
        strange = policy.is_out_of_distribution(free, [row["task"]["kind"] for row in rows])
        found |= {"strange": float(strange.mean()), "drifted": [d.feature for d in far if d.drifted]}
        found["drift"] = {d.feature: {"index": d.index, "by_chance": d.by_chance} for d in far}
    return found
