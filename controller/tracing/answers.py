"""What is said of the answers of a run: the query and the answers, and on the card of an answer when it was given, how
it differs from the right one, its votes, and its probabilities by the model and by the policy. Knows nothing about
pages."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ...policies.outcomes import BASE
from ...ttt_core.tasks.answers import is_right
from ...ttt_core.tasks.task import Task, as_tuples
from .differences import difference_text, size_text
from .trace import Trace
from .votes import views_sentence, vote_sentence, votes_of

LONGEST = 300
"""Characters of a value that are shown."""


def answer_sentences(trace: Trace) -> Iterator[str]:
    """The query, the answer of every attempt and the right one, where the trace has content."""
    if not trace.has_content or not trace.in_context:
        return
    task = task_with_answer(trace)
    yield f"Query: {_shown(task.query)}"
    for name, attempt in {attempt["strategy"]: attempt for attempt in [trace.in_context, *trace.attempts]}.items():
        right = {True: ", right", False: ", wrong", None: ""}[is_right_in(trace, attempt)]
        yield f"Answer of {name}: {'none' if attempt['value'] is None else _shown(attempt['value'])}{right}"
        if right == ", wrong" and (said := difference_text(task.kind, attempt["value"], task.answer)):
            yield f"It has {said}"
    if task.answer is not None:
        yield f"Right answer: {_shown(task.answer)}"


def _shown(value: object) -> str:
    """A value as JSON, of a long one the beginning."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def task_with_answer(trace: Trace) -> Task:
    """The task, with the right answer that the label tells in place of its own, and none that it refutes."""
    return replace(trace.task, answer=as_tuples(trace.right_answer))


def is_right_in(trace: Trace, attempt: Mapping[str, Any]) -> bool | None:
    """Whether the value of an attempt is right, as the label says, else by the answer of the task; None where neither
    tells."""
    said: bool | None = trace.label.get("strategies", {}).get(attempt["strategy"]) if "strategy" in attempt else None
    if said is not None or not trace.has_content:
        return said
    task = task_with_answer(trace)
    return None if task.answer is None else is_right(task, as_tuples(attempt["value"]))


def moment(trace: Trace, attempt: Mapping[str, Any]) -> str:
    """Whether an attempt answered before training, after it, or without any."""
    if attempt["training_record"]:
        return "after training"
    trained = any(other["training_record"] for other in trace.attempts)
    return "before training" if attempt["strategy"] == BASE and trained else "without training"


def card_sentences(trace: Trace, attempt: Mapping[str, Any]) -> list[str]:
    """What is said of the answer of an attempt, most important first."""
    kind, right = trace.task_facts.get("kind", "text"), trace.right_answer
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
