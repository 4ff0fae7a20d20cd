"""The object `autottt` of an answer: decision, scores, cost, adaptation, proof. Knows nothing about HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Any

from .api_errors import without_paths
from .schemas import Adaptation, Cost, Facts, Proof, Source

if TYPE_CHECKING:
    from ..results import Result


def facts_of(result: Result, source: Source | None = None) -> Facts:
    """The facts of a solved task, with who gave the answer."""
    return Facts(
        decision=str(result.decision.get("strategy", result.strategy)),
        strategy=result.strategy,
        status=result.status,
        reason=without_paths(result.reason),
        difficulty=number(result.difficulty),
        scores=numbers(result.scores),
        cost=Cost(**asdict(result.cost), relative_seconds=number(result.relative_seconds)),
        adaptation=_adaptation(result),
        proof=None if result.proof is None else Proof(**asdict(result.proof)),
        trace_id=result.trace_id,
        right=result.right,
        source=source,
        in_context_answer=result.in_context_answer,
    )


def _adaptation(result: Result) -> Adaptation | None:
    record = result.adaptation
    if record is None:
        return None
    losses = [number(loss) for loss in record.losses] or [None]
    return Adaptation(
        steps=record.steps, first_loss=losses[0], last_loss=losses[-1], seconds=record.seconds, tokens=record.tokens,
        stop_reason=record.stop_reason, from_cache=result.attempts[-1].from_cache,
    )  # fmt: skip


def progress_of(event: Mapping[str, Any]) -> dict[str, Any]:
    """What clients see of an event of `Controller.astream`: of a node only what says nothing about the task, no prompt
    and no answer."""
    if event["event"] != "node":
        facts = {name: value for name, value in event.items() if name != "tasks"}
        return {name: number(value) if isinstance(value, float) else value for name, value in facts.items()}
    node, update = event["node"], event["update"]
    progress: dict[str, Any] = {"event": "node", "node": node}
    if update and (decision := update.get("decision")):
        progress |= {name: decision[name] for name in ("strategy", "difficulty")}
        progress |= {name: numbers(decision[name]) for name in ("scores", "costs", "utilities")}
        progress |= {"reason": without_paths(decision["reason"])}
        progress["difficulty"] = number(progress["difficulty"])
    if update and (verdict := update.get("verdict")):
        progress |= {"action": verdict["action"], "reason": without_paths(verdict["reason"])}
    return progress


def number(value: float | None) -> float | None:
    """The number; None where it is not finite, which JSON cannot hold."""
    return value if value is not None and isfinite(value) else None


def numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    """The numbers, as `number` gives them."""
    return {name: number(value) for name, value in values.items()}
