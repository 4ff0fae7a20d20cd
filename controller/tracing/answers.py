"""What the card of an answer says: when it was given, how it differs from the right one, its votes, and its
probabilities by the model and by the policy. Knows nothing about pages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...policies.outcomes import BASE
from .differences import difference_text, size_text
from .trace import Trace
from .votes import views_sentence, vote_sentence, votes_of


def moment(trace: Trace, attempt: Mapping[str, Any]) -> str:
    """Whether an attempt answered before training, after it, or without any."""
    if attempt["training_record"]:
        return "after training"
    trained = any(other["training_record"] for other in trace.attempts)
    return "before training" if attempt["strategy"] == BASE and trained else "without training"


def card_sentences(trace: Trace, attempt: Mapping[str, Any]) -> list[str]:
    """What is said of the answer of an attempt, most important first."""
    kind, right = trace.task_facts.get("kind", "text"), trace.task_facts.get("answer")
    value, vote = attempt["value"], votes_of(trace, attempt["strategy"])
    said = [difference_text(kind, value, right) or size_text(kind, value)]
    if value is not None and value == trace.task_facts.get("query"):
        said.append("it repeats the query")
    if vote:
        said += [vote_sentence(vote), views_sentence(vote)]
    elif not attempt["candidates"]:
        said.append(_certainty(attempt))
    said.append(_estimated(trace, str(attempt["strategy"])))
    return [sentence for sentence in said if sentence]


def _certainty(attempt: Mapping[str, Any]) -> str:
    """The model's own number, and what it is not."""
    if attempt["value"] is None or attempt["confidence"] is None:
        return "one answer, no vote"
    who = "the adapted model" if attempt["training_record"] else "the model"
    return (
        f"one answer, no vote; {who} gave its token sequence probability {attempt['confidence']:.2f}, the product over "
        "the tokens: how likely it was to write this, not how likely this is to be right"
    )


def _estimated(trace: Trace, strategy: str) -> str:
    """The probability of a right answer by which the strategy was compared with others."""
    first: Mapping[str, Any] = trace.decisions[0] if trace.decisions else {}
    score = first.get("scores", {}).get(strategy)
    if score is None or not math.isfinite(score):
        return ""
    if not first.get("utilities"):
        rule = "a rule of thumb, calibrated on no model,"
        return f"{rule} estimated before the choice that it is right with probability {score:.2f}"
    return (
        f"before the choice the policy estimated that it is right with probability {score:.3f}; the decision used this "
        "number"
    )
