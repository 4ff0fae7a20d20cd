"""The votes of an attempt that answered more than once: how many each answer got, and what decided between equals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .trace import Trace, find_spans


def votes_of(trace: Trace, strategy: str) -> Mapping[str, Any]:
    """What the vote of a strategy's attempt recorded: `answers` (how many were decoded) and `candidates`, each with
    `votes` and `log_prob` in nats; empty without a vote, and for a trace that has no counts."""
    nodes = [node for node in trace.nodes if node["name"] == strategy]
    votes = [span.get("attributes", {}) for node in nodes for span in find_spans(node, "vote")]
    counted = [each for each in votes if each.get("candidates") and "votes" in each["candidates"][0]]
    return counted[-1] if counted else {}


def vote_sentence(vote: Mapping[str, Any]) -> str:
    """How many votes each answer got, and how a tie was broken; empty without a vote."""
    if not vote:
        return ""
    candidates: Sequence[Mapping[str, Any]] = vote["candidates"]
    counts = [int(each["votes"]) for each in candidates]
    cast = sum(counts)
    text = f"{counts[0]} of {cast} votes"
    if others := counts[1:]:
        text += f"; the other {_answers(len(others))} got {', '.join(map(str, others))}"
    if without := vote["answers"] - cast:
        text += (
            f"; {without} of {vote['answers']} decoded answers had no vote, since they could not be parsed or others "
        )
        text += "of the same view were more frequent"
    tied = [each for each in candidates if each["votes"] == counts[0]]
    if len(tied) == 1:
        return f"{text}. No tie."
    return (
        f"{text}. {len(tied)} answers had {counts[0]} vote{'' if counts[0] == 1 else 's'} each; the tie was broken by "
        f"likelihood: log-probability {tied[0]['log_prob']:.3f} against {tied[1]['log_prob']:.3f}."
    )


def views_sentence(vote: Mapping[str, Any]) -> str:
    """What the answers of a vote are answers to; empty without a vote."""
    if not vote:
        return ""
    views, adapters = int(vote["views"]), max(1, round(vote["answers"] / max(1, vote["views"])))
    text = (
        f"{views} prompts were answered: the task as it is, and the same task with its demonstrations in other orders"
    )
    if kinds := vote["transformations"]:
        text += f" and under {kinds} invertible transformation{'' if kinds == 1 else 's'}, undone in the answers"
    if adapters > 1:
        text += f"; each was answered by {adapters} adapters, one for each fold"
    return f"{text}. Each answer is a vote."


def percentages(shares: Sequence[float]) -> list[int]:
    """Shares that sum to 1 as percentages that sum to 100: those with the largest remainders are rounded up."""
    whole = [int(100 * share + 1e-9) for share in shares]
    order = sorted(range(len(shares)), key=lambda i: (whole[i] - 100 * shares[i], i))
    for index in order[: max(0, round(100 * sum(shares)) - sum(whole))]:
        whole[index] += 1
    return whole


def _answers(count: int) -> str:
    return "answer" if count == 1 else f"{count} answers"
