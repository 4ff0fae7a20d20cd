"""The candidates of the first decision, as rows of a table. Knows nothing about the policy beyond what a trace says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...policies.outcomes import BASE
from ...ttt_core.engine.cost import token_equivalents
from .trace import Trace


@dataclass(frozen=True)
class CandidateRow:
    """What is known of one strategy for the task of a run."""

    strategy: str
    chosen: bool
    """Whether the first decision chose it."""
    probability: float | None
    """Estimated probability of a right answer; None where it was not estimated."""
    cost: float | None
    """Expected cost in multiples of the in-context cost; None where it was not estimated."""
    utility: float | None
    """Probability minus weighted cost."""
    measured_cost: float | None
    """Cost of its attempt in multiples of an in-context answer of which nothing is cached, 0 for the in-context answer
    itself, which was there before the choice; None where it was not attempted."""
    answered: str
    """`answered`, `no answer`, `failed`, or empty where it was not attempted."""


def candidates_of(trace: Trace) -> list[CandidateRow]:
    """Every strategy that a decision estimated or that was attempted; the chosen one first, then by utility."""
    if not trace.decisions:
        return []
    first = trace.decisions[0]
    attempts = {attempt["strategy"]: attempt for attempt in trace.attempts}
    if trace.in_context:
        attempts[BASE] = trace.in_context
    names = dict.fromkeys([first["strategy"], *first["scores"], *attempts])
    rows = [_candidate(name, first, attempts.get(name), trace) for name in names]
    return sorted(rows, key=lambda row: (not row.chosen, -(row.utility if row.utility is not None else -9e9)))


def mark_of(trace: Trace, row: CandidateRow) -> str:
    """What became of a candidate; empty for one that was not chosen."""
    if row.chosen:
        return "chosen" if trace.strategy in ("", row.strategy) else "chosen first, its answer was not used"
    return "not chosen first, but gave the answer" if row.strategy == trace.strategy else ""


def _candidate(name: str, decision: Mapping[str, Any], attempt: Mapping[str, Any] | None, trace: Trace) -> CandidateRow:
    measured, answered = None, ""
    if attempt is not None:
        base = trace.result.get("in_context_tokens") or (trace.in_context and tokens_of(trace.in_context))
        measured = 0.0 if name == BASE else tokens_of(attempt) / base if base else None
        valid = attempt.get("value") is not None or "value" not in attempt
        answered = "failed" if attempt["error"] else "answered" if valid else "no answer"
    return CandidateRow(
        name, name == decision["strategy"], decision["scores"].get(name), decision["costs"].get(name),
        decision["utilities"].get(name), measured, answered,
    )  # fmt: skip


def tokens_of(attempt: Mapping[str, Any]) -> int:
    """Token equivalents of an attempt, or of a node."""
    cost = attempt["cost"]
    return int(token_equivalents(cost["forward_tokens"], cost["backward_tokens"]))
