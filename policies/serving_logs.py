"""Serving logs: outcomes for training, agreement of the shadow policy, and feature drift, from logs of results.

Knows nothing about how results are made: a log is JSON lines as `autottt solve --trace` and `Result.to_plain` write
them.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ttt_core.engine.cost import BACKWARD_WEIGHT, token_equivalents
from ..ttt_core.errors import PolicyError, shortened
from ..ttt_core.lora.cross_validation import CrossValidationResult
from ..ttt_core.tasks.answers import same_answer
from ..ttt_core.tasks.task import Task, content_digest
from .fast_inference import Floats
from .features import FEATURES_VERSION, REQUIRED, STAGE_0, STAGE_1
from .outcomes import BASE, Outcome, finite, outcome_from
from .policy import was_forced
from .trained_policy import TrainedPolicy
from .versions import LOG_VERSION

DRIFT_THRESHOLD = 0.25
"""Population stability index from which a feature counts as drifted, as is common (Siddiqi 2006)."""
FIELDS = (
    "id", "status", "answer", "attempts", "in_context", "features", "features_version", "cost", "in_context_tokens",
    "proof", "task", "decision", "seed",
)  # fmt: skip
"""Fields that every line of a log has."""
JUDGED = "judged"
"""A field that is true in rows whose answers are not stored: marks that say which were right stand for them."""
UNLABELLED = "unlabelled"
"""A field that is true in rows whose feedback leaves open whether the answers were right that outcomes are made of."""
RESAMPLES = 2000
"""Samples from the training distribution, for the sampling error of the stability index."""
REMOVE = "Remove the line if it is damaged"
Row = Mapping[str, Any]


def read_log(files: Iterable[Path]) -> list[Row]:
    """The results in logs, without refused tasks. Blank lines and an incomplete last line, which an interruption
    leaves, are skipped; a line that occurs again, as in a copy of a log, counts once, however it is spaced.

    Raises `PolicyError` naming the file and line that is not a result, or that has another version of the format or of
    the features.
    """
    rows, seen = list[Row](), set[str]()
    for file in files:
        try:
            lines = file.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines(keepends=True)
        except OSError as error:
            raise PolicyError(f"{file}: the log cannot be read ({error.strerror})") from None
        for number, line in enumerate(lines, start=1):
            place = f"{file}:{number}"
            if not line.strip():
                continue
            if number == len(lines) and line.startswith(b"{") and not line.endswith((b"\n", b"}")):
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise PolicyError(
                    f"{file}: expected a text in UTF-8 (line {number}: {error}): unpack a log that is compressed, or "
                    "convert one in another encoding"
                ) from None
            except (ValueError, RecursionError) as error:
                if number == len(lines) and line.startswith(b"{") and not line.endswith(b"\n"):
                    continue
                raise PolicyError(
                    f"{place}: expected a result, as each line of what `autottt solve --trace` writes (it is not JSON: "
                    f"{error}). {REMOVE}"
                ) from None
            refused = isinstance(row, dict) and row.get("status") == "refused"
            if refused and row.get("log_version", LOG_VERSION) == LOG_VERSION:
                continue  # the line of a task that could not be read has few fields
            if problem := problem_of(row):
                raise PolicyError(f"{place}: {problem}")
            if (content := json.dumps(row, sort_keys=True)) not in seen:
                rows.append(row)
            seen.add(content)
    return rows


def problem_of(row: Any) -> str:
    """Why decoded JSON is not a result as this version writes it; empty if it is one."""
    if missing := [name for name in FIELDS if not isinstance(row, dict) or name not in row]:
        return f"lacks {', '.join(missing)}: a log is what `autottt solve --trace` writes"
    if (version := row.get("log_version", 1)) != LOG_VERSION:
        return (
            f"a log in version {shortened(version)} of the format, and this package reads version {LOG_VERSION}; write "
            "a new one with `autottt solve TASKS --trace`"
        )
    if row["features_version"] != FEATURES_VERSION:
        version = shortened(row["features_version"])
        return f"features of version {version}; this package measures version {FEATURES_VERSION}"
    problem = _problem(row)
    return f"not a result ({problem}). {REMOVE}" if problem else ""


def _problem(row: Row) -> str:
    """What is wrong with the fields that a policy is trained on or monitored by; empty if nothing is."""
    try:
        with_tokens = {**row, "in_context_tokens": row["in_context_tokens"] or 1}
        # JSON has null for numbers that were not finite; such queries are skipped and counted later.
        features = {"features": {name: 0.0 if value is None else value for name, value in row["features"].items()}}
        for attempt in [row["in_context"], *row["attempts"]]:
            outcome_from(vars(_attempt_outcome(with_tokens, attempt, None, _token_equivalents(attempt), features)))
            _paid_in_full(attempt)
        outcome_from(vars(_attempt_outcome(with_tokens, row["attempts"][0], None, _token_equivalents(row), {})))
        _format_choice_tokens(row)
        _plain([row["task"]["answer"], row["answer"]])
        decision = row["decision"]
        names = [decision["strategy"], decision["policy_choice"] or "", decision["shadow"] or ""]
        bool(decision["shadow_had_features"])
        if not all(isinstance(name, str) for name in names):
            return "decision: expected names of strategies"
        if lacking := sorted(set(REQUIRED) & set(STAGE_0) - set(row["features"])):
            return f"features: expected {lacking[0]} as well"
    except ValueError as error:
        return str(error)
    except (KeyError, IndexError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        return f"a field is missing or has another type: {type(error).__name__}: {shortened(str(error))}"
    return ""


def base_of(rows: Sequence[Row]) -> str:
    """The content hash of the model that answered. Raises `PolicyError` if there are several models, or no answers."""
    if not rows:
        raise PolicyError("these logs hold no answered query: they are empty, or all their tasks were refused")
    hashes = sorted({row["proof"]["hash"] for row in rows})
    if len(hashes) != 1:
        names = ", ".join(name[:12] for name in hashes)
        raise PolicyError(f"{len(hashes)} models answered in these logs ({names}); give those of one model")
    return str(hashes[0])


def with_right_answers(rows: Sequence[Row], tasks: Iterable[Task]) -> list[Row]:
    """The rows with the right answers of these tasks, and how answers are compared with them, where a task has the
    digest of the row's. Rows whose answers are unknown (`JUDGED`) stay as they are."""
    known = {
        task.digest: {"answer": task.answer, "comparison": task.comparison} for task in tasks if task.answer is not None
    }
    return [
        row if row.get(JUDGED) else {**row, "task": {**row["task"], **known.get(row["task"]["digest"], {})}}
        for row in rows
    ]


def outcomes_of(rows: Sequence[Row], *, forced: bool = True) -> list[Outcome]:
    """The outcomes of the in-context answer and of the first attempt, where the right answer is known.

    Only queries with the features of every stage count. Later attempts are excluded: they depend on the failure of the
    first, which no feature shows. So are answers by a cached adapter, or by one whose training a deadline stopped:
    their cost is not that of the strategy. Without `forced` so are attempts whose strategy the caller forced: a policy
    chooses by the features, which an estimator knows, and a caller for reasons that it does not know.
    """
    outcomes: list[Outcome] = []
    for row in rows:
        right, in_context, tokens = _right(row), row["in_context"], row["in_context_tokens"]
        if right is None or not _fully_measured(row) or not _finite(row) or not tokens:
            continue
        paid = [in_context, *(attempt for attempt in row["attempts"] if attempt["strategy"] != BASE)]
        probe = _token_equivalents(row) - _format_choice_tokens(row) - sum(map(_token_equivalents, paid))
        measured = {"features": row["features"], "features_version": FEATURES_VERSION, "probe_cost": probe / tokens}
        outcomes.append(_attempt_outcome(row, in_context, right, tokens, measured))
        first = row["attempts"][0]
        if first["strategy"] != BASE and _paid_in_full(first) and (forced or not is_forced(row)):
            outcomes.append(_attempt_outcome(row, first, right, _token_equivalents(first), {}))
    return outcomes


def unlabelled_queries(rows: Iterable[Row]) -> set[tuple[str, str, int]]:
    """Data set, name and seed of the queries whose outcomes, if there are any, were judged by feedback that has changed
    since, in a way that no longer says whether they are right."""
    return {
        (row["task"]["dataset"], _task_id(row), row["seed"])
        for row in rows if row.get(UNLABELLED) and _right(row) is None
    }  # fmt: skip


def _task_id(row: Row) -> str:
    return f"{row['id']}#{row['task']['digest']}"


def is_forced(row: Row) -> bool:
    """Whether the caller forced the strategy of the first attempt; one that was drawn to explore is not forced."""
    return was_forced(row["decision"])


def skipped_counts(rows: Sequence[Row]) -> dict[str, int]:
    """Reasons why queries yield no outcomes (`outcomes_of`), with the number of queries for each."""

    def why(row: Row) -> str:
        if _right(row) is None:
            unlabelled = "their feedback does not say whether each of their answers was right"
            return unlabelled if row.get(UNLABELLED) else "the right answer is unknown (--answers FILES)"
        if not _fully_measured(row):
            return "the probe was skipped (`solve --explore 0.05` runs it on a share of the queries)"
        if not _finite(row):
            return "the model's scores are not finite (are its weights?)"
        return "" if row["in_context_tokens"] else "the in-context cost is unknown"

    return dict(Counter(reason for row in rows if (reason := why(row))))


def _right(row: Row) -> Any:
    """The right answer as decoded JSON; None if unknown."""
    return _plain(row["task"]["answer"])


def _same(task: Row, value: Any, right: Any) -> bool:
    """Whether an answer is right by the comparison that the task names."""
    return same_answer(_plain(value), right, task.get("comparison", "exact"))


def _fully_measured(row: Row) -> bool:
    """Whether the features include those of the probe."""
    return not set(STAGE_1).isdisjoint(row["features"])


def _finite(row: Row) -> bool:
    """Whether all features are finite: JSON holds null for one that is not."""
    return None not in row["features"].values()


def _paid_in_full(attempt: Row) -> bool:
    """Whether the attempt's cost is that of its strategy: no cached adapter, and no training stopped by a deadline."""
    return not attempt["from_cache"] and (attempt["training_record"] or {}).get("stop_reason") != "deadline"


def _attempt_outcome(row: Row, attempt: Row, right: Any, tokens: int, measured: Mapping[str, Any]) -> Outcome:
    task = row["task"]
    parsed = "answered" if attempt["value"] is not None else "unreadable"
    return Outcome(
        task_id=_task_id(row), group=task["group"], family=task["family"], dataset=task["dataset"],
        kind=task["kind"], strategy=attempt["strategy"], seed=row["seed"],
        status="failed" if attempt["error"] else parsed, correct=float(_same(task, attempt["value"], right)),
        seconds=attempt["cost"]["seconds"], token_equivalents=tokens, relative_cost=tokens / row["in_context_tokens"],
        base_hash=row["proof"]["hash"], recipe=attempt.get("recipe", ""), digest=task["digest"],
        comparison="" if row.get(JUDGED) else task.get("comparison", ""),
        forward_tokens=tokens - BACKWARD_WEIGHT * attempt["cost"]["backward_tokens"],
        backward_tokens=attempt["cost"]["backward_tokens"], confidence=attempt["confidence"] or 0.0,
        answer="" if attempt["value"] is None else content_digest(attempt["value"]),
        held_out_gain=CrossValidationResult(**attempt["cross_validation"]).gain if attempt["cross_validation"] else 1.0,
        losses=finite((attempt["training_record"] or {}).get("losses", ())),
        vote_shares={content_digest(c["value"]): c["share"] for c in attempt["candidates"]},
        prompt_format=row.get("prompt_format", ""), **_origin(row), **measured,
    )  # fmt: skip


def _origin(row: Row) -> dict[str, Any]:
    """The policy, the time, the versions and the starting adapter of the run, where the log has them."""
    run = row.get("run", {})
    policy = run.get("policy", {})
    versions = ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items())
    name = f"{policy['name']} ({policy['digest']})" if policy else ""
    adapter = run.get("model", {}).get("starting_adapter", "")
    return {"policy": name, "time": str(run.get("time", "")), "versions": versions, "starting_adapter": adapter}


def _token_equivalents(row: Row) -> int:
    cost = row["cost"]
    return int(token_equivalents(cost["forward_tokens"], cost["backward_tokens"]))


def _format_choice_tokens(row: Row) -> int:
    """Token equivalents of choosing the prompt format, which are part of the total and of no strategy's cost."""
    choice = row.get("format_choice", {})
    return 0 if choice == {} else _token_equivalents(choice)


def _plain(value: Any) -> Any:
    """The value as decoded JSON."""
    return json.loads(json.dumps(value))


@dataclass(frozen=True)
class Drift:
    """Distance of a feature's served distribution from its training distribution."""

    feature: str
    index: float
    """Population stability index over the training deciles: 0 for equal distributions."""
    critical: float
    """The index that all features together stay below with 95% probability, for this number of queries from the
    training distribution."""
    median: float
    """Median of the served queries."""
    training_median: float
    """Median in training."""

    @property
    def drifted(self) -> bool:
        return self.index > max(DRIFT_THRESHOLD, self.critical)


def drift(policy: TrainedPolicy, rows: Sequence[Row]) -> list[Drift]:
    """Drift of each free feature, the largest first."""
    drifts, names = [], policy.feature_names[0]
    for place, name in enumerate(names):
        values = np.array([row["features"][name] for row in rows])
        edges, shares = _bins(policy.deciles[place], policy.cdf[place])
        counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(shares))
        samples = np.random.default_rng(place).multinomial(len(values), shares, RESAMPLES)
        critical = float(np.quantile(_stability(samples, shares), 1 - 0.05 / len(names)))
        index, median = float(_stability(counts, shares)), float(np.median(values))
        drifts.append(Drift(name, index, critical, median, policy.feature_medians[place]))
    return sorted(drifts, key=lambda d: max(DRIFT_THRESHOLD, d.critical) - d.index)


def _bins(deciles: Sequence[float], cdf: Sequence[float]) -> tuple[Floats, Floats]:
    """Edges without ties, and the share of the training cases in each bin."""
    edges, place = np.unique(np.array(deciles), return_index=True)
    return edges, np.diff(np.concatenate([[0.0], np.array(cdf)[place], [1.0]]))


def _stability(counts: NDArray[np.int64], expected: Floats) -> Floats:
    """The index of counts [..., B] against shares [B] -> [...]; half a query is added to each bin to keep it finite."""
    observed = (counts + 0.5) / (counts.sum(axis=-1, keepdims=True) + 0.5 * len(expected))
    smallest = np.maximum(expected, 1e-3)
    index: Floats = ((observed - smallest) * np.log(observed / smallest)).sum(axis=-1)
    return index


def _shares(names: Sequence[str]) -> dict[str, float]:
    """The share of each name."""
    return {name: names.count(name) / len(names) for name in sorted(set(names))}


def summary(rows: Sequence[Row], policy: TrainedPolicy | None) -> dict[str, Any]:
    """Summarises served decisions as plain JSON: shares of the strategies as they were served, to which the accuracy
    belongs where it is known, and as the policy itself chose, with which the shadow's choices are compared;
    exploration, and feature drift from the policy's training."""
    decisions = [row["decision"] for row in rows]
    own = [d["policy_choice"] or d["strategy"] for d in decisions]
    answered = [(row, right) for row in rows if (right := _right(row)) is not None]
    shadowed = [
        (mine, d["shadow"], d["shadow_had_features"]) for mine, d in zip(own, decisions, strict=True) if d["shadow"]
    ]
    failed = [other for _, other, _ in shadowed if other.startswith("failed")]
    changes = [f"{mine} -> {other}" for mine, other, _ in shadowed if other not in (mine, *failed)]
    result: dict[str, Any] = {
        "queries": len(rows),
        "shares": _shares([d["strategy"] for d in decisions]),
        "policy_shares": _shares(own),
        "explored": sum(bool(d["policy_choice"]) for d in decisions),
        "with_known_answer": len(answered),
        "not_finite": len(rows) - len(list(filter(_finite, rows))),
        "accuracy": fmean(_same(row["task"], row["answer"], right) for row, right in answered) if answered else None,
        "shadow": {
            "queries": len(shadowed),
            "disagreements": {name: changes.count(name) for name in sorted(set(changes))},
            "lacked_features": sum(not had_features for _, _, had_features in shadowed),
            "failed": len(failed),
        },
    }
    finite_rows = [row for row in rows if _finite(row)]
    if policy is not None:  # older logs lack features that a newer policy reads
        finite_rows = [row for row in finite_rows if set(policy.feature_names[0]) <= set(row["features"])]
    if policy is not None and finite_rows:
        drifts = drift(policy, finite_rows)
        free = np.array([[row["features"][name] for name in policy.feature_names[0]] for row in finite_rows])
        unusual = policy.is_out_of_distribution(free, [row["task"]["kind"] for row in finite_rows])
        result["out_of_distribution_share"] = float(unusual.mean())
        result["drifted"] = [d.feature for d in drifts if d.drifted]
        result["drift"] = {d.feature: {"index": d.index, "critical": d.critical} for d in drifts}
    return result
