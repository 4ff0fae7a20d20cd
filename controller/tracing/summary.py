"""What a person wants to know first of a run, in five facts: answer, decision, cost, training, weights. Knows nothing
about pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...policies.outcomes import BASE
from .answers import is_right_in
from .choice import margin_sentences, shadow_sentences, threshold_sentences
from .cost_parts import cost_sentence, missed_estimates, recipe_of
from .explanation import other_cost_weights
from .proof import proof_of, weights_sentence
from .trace import Trace, find_spans

Tone = Literal["good", "bad", "plain"]
STOP_REASONS = {
    "finished": "all steps of the recipe were done",
    "converged": "the loss of two steps in a row was below the recipe's limit",
    "monitor": "held-out demonstrations were all right, or gained no more",
    "deadline": "the time limit was reached",
    "cancelled": "the caller no longer waited for it",
    "failed": "training failed",
}
"""The stop reasons of `TrainingRecord` in words."""
_STOPPED = "stopped because"


@dataclass(frozen=True)
class Fact:
    """One fact about a run."""

    name: str
    headline: str
    """A word or a number."""
    text: str
    """One or two sentences."""
    tone: Tone = "plain"


def summary_of(trace: Trace) -> list[Fact]:
    """Answer, decision, cost, training, and whether the weights are unchanged."""
    return [_answer(trace), _decision(trace), _cost(trace), _training(trace), _weights(trace)]


def _answer(trace: Trace) -> Fact:
    result = trace.result
    if trace.status != "answered":
        text = trace.error or str(result.get("error", "")) or "No attempt gave an answer that can be parsed."
        return Fact("Answer", trace.status.replace("_", " ").capitalize(), text, "bad")
    source = f"The answer is that of {result['strategy']}."
    if trace.is_right is None:
        return Fact("Answer", "Answered", f"{source} The task has no known answer to compare it with.")
    attempts = {attempt["strategy"]: attempt for attempt in [trace.in_context, *trace.attempts] if attempt}
    others = [
        f"{name}{' (without training)' if name == BASE else ''} {'right' if is_right_in(trace, attempt) else 'wrong'}"
        for name, attempt in attempts.items()
        if name != result["strategy"]
    ]
    text = f"{source} Other attempts: {', '.join(others)}." if others else source
    return Fact("Answer", "Right" if trace.is_right else "Wrong", text, "good" if trace.is_right else "bad")


def _decision(trace: Trace) -> Fact:
    if not trace.decisions:
        return Fact("Decision", "None", "The run ended before the first decision.", "bad")
    first, *others = trace.decisions
    text = f"{first['strategy']} was chosen: {first['reason']}."
    text += "".join(f" {sentence}." for sentence in (*margin_sentences(trace), *threshold_sentences(trace)))
    reasons = [first["reason"]]
    for decision in others:
        if decision["reason"] not in reasons:
            text += f" Then {decision['strategy']}: {decision['reason']}."
            reasons.append(decision["reason"])
    text += "".join(f" {sentence}." for sentence in shadow_sentences(trace))
    return Fact("Decision", " → ".join(d["strategy"] for d in trace.decisions), text)


def _cost(trace: Trace) -> Fact:
    cost = trace.result.get("cost")
    if not cost:
        return Fact("Cost", seconds_text(trace.seconds), "The run ended before its cost was summed.")
    parts = [part] if (part := cost_sentence(trace)) else []
    if multiple := trace.result.get("relative_seconds"):
        parts.append(f"{multiple:.1f}x the seconds of the in-context answer")
    parts.append(f"{cost['forward_tokens']:,} tokens read forward and {cost['backward_tokens']:,} backward")
    parts.append(f"budget {trace.attributes.get('budget')}")
    if peak := trace.attributes.get("peak_bytes"):
        parts.append(f"peak memory of the process {peak / 2**20:,.0f} MiB")
    estimates = "".join(f" {sentence}." for sentence in missed_estimates(trace))
    return Fact("Cost", seconds_text(trace.seconds), f"{'; '.join(parts)}.{estimates}")


def seconds_text(seconds: float) -> str:
    """Seconds with three digits, in milliseconds below one second."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _training(trace: Trace) -> Fact:
    adapted = [attempt for attempt in trace.attempts if attempt["training_record"]]
    if not adapted:
        if find_spans(trace.root, "adapter"):
            return Fact("Training", "Not finished", "The run ended while an adapter was trained.", "bad")
        return Fact("Training", "None", "No adapter was trained or used.")
    text = " ".join(sentence for attempt in adapted for sentence in _adaptation(trace, attempt))
    if trace.adaptation == "rejected":
        text += f" The adapted answer gave way to that of {trace.strategy}; the decision says why."
        return Fact("Training", "Adapter rejected", text)
    if trace.adaptation == "accepted":
        text += " The adapted answer was accepted because it is well-formed, which does not say that it is right."
    return Fact("Training", _measured_gain(adapted[-1]["cross_validation"]), text)


def _measured_gain(held_out: Mapping[str, Any] | None) -> str:
    """What training did to held-out demonstrations, as a headline."""
    if not held_out:
        return "Trained, gain not measured"
    gain = sum(held_out["after"]) - sum(held_out["before"])
    return (
        "Trained, gain measured" if gain > 0 else "Trained, harm measured" if gain < 0 else "Trained, no gain measured"
    )


def _adaptation(trace: Trace, attempt: Mapping[str, Any]) -> Iterator[str]:
    """What training did, and what it did to held-out demonstrations."""
    record = attempt["training_record"]
    steps = f"{record['steps']} training step{'' if record['steps'] == 1 else 's'}"
    source = " (adapter from the cache)" if attempt["from_cache"] else ""
    losses = [loss for loss in record["losses"] if loss is not None]
    folds = _folds(trace, attempt["strategy"])
    of_folds = f", mean of {folds} adapters, one for each fold," if folds > 1 else ""
    loss = f", loss{of_folds} {losses[0]:.3f} to {losses[-1]:.3f}" if losses else ""
    if losses and (least := min(losses)) < losses[-1]:
        loss += f" (lowest {least:.3f} at step {losses.index(least) + 1})"
    planned = recipe_of(trace, attempt["strategy"]).get("max_steps")
    steps += f" of at most {planned}" if planned else ""
    stopped = stopped_in(trace, attempt["strategy"], record["stop_reason"])
    yield f"{attempt['strategy']}{source}: {steps}{loss}; {stopped}."
    if held_out := attempt["cross_validation"]:
        count, before, after = len(held_out["before"]), sum(held_out["before"]), sum(held_out["after"])
        change = "training helped" if after > before else "training harmed" if after < before else "no gain"
        yield f"Held-out demonstrations right: {before}/{count} before training, {after}/{count} after ({change})."
    else:
        yield "No demonstrations were held out, so this run does not measure whether training helped on them."


def _folds(trace: Trace, strategy: str) -> int:
    """How many adapters of a strategy were trained side by side, one for each fold."""
    return max((int(span["attributes"].get("folds") or 1) for span in trace.adapters(strategy)), default=1)


def last_evaluation(trace: Trace, strategy: str) -> Mapping[str, Any]:
    """What the last evaluation of held-out demonstrations gave in the training of a strategy; empty without one."""
    spans = [span for adapter in trace.adapters(strategy) for span in find_spans(adapter, "evaluate")]
    evaluations = [span["attributes"] for span in spans if "right" in span.get("attributes", {})]
    return evaluations[-1] if evaluations else {}


def stopped_in(trace: Trace, strategy: str, reason: str) -> str:
    """The stop reason of the training of a strategy in words."""
    return how_it_stopped(reason, last_evaluation(trace, strategy), recipe_of(trace, strategy))


def how_it_stopped(reason: str, evaluation: Mapping[str, Any], recipe: Mapping[str, Any] | None = None) -> str:
    """The stop reason of a training in words, given its last evaluation of held-out demonstrations and its recipe."""
    if reason == "converged" and recipe:
        return f"{_STOPPED} {STOP_REASONS[reason]}, {recipe['early_stop_loss']:g}"
    if reason == "monitor" and evaluation:
        all_right = evaluation["right"] == evaluation["of"]
        return f"{_STOPPED} held-out demonstrations {'were all right' if all_right else 'gained no more'}"
    return f"{_STOPPED} {STOP_REASONS.get(reason, reason)}"


def _weights(trace: Trace) -> Fact:
    verifications = find_spans(trace.root, "verify")
    if problem := next((span["error"] for span in verifications if span["status"] == "error"), ""):
        return Fact("Base weights", "Changed", f"The proof failed: {problem}.", "bad")
    if not proof_of(trace):
        text = "The run ended without a proof that the weights of the base model are those that were loaded."
        return Fact("Base weights", "Not verified", text, "bad")
    return Fact("Base weights", "Unchanged", f"{weights_sentence(trace)}.", "good")


def estimates_note(trace: Trace) -> str:
    """What the estimates of the candidates are, and where there are none, why."""
    if not trace.decisions:
        return "The run ended before the candidates were compared."
    policy = trace.attributes.get("policy", {})
    if not trace.decisions[0]["utilities"]:
        return (
            f"The policy ({policy.get('name')}) did not estimate the other strategies. Where {BASE} has a "
            "probability, it is from the rule of thumb for models without a policy."
        )
    weight = policy.get("thresholds", {}).get("cost_weight")
    formula = "P(right) − cost weight × cost" if weight is None else f"P(right) − {weight:.3g} × cost"
    tokens = trace.result.get("in_context_tokens")
    unit = f" ({tokens} tokens)" if tokens else ""
    return (
        f"Estimates of the policy ({policy.get('name')}) before the choice; difficulty is the estimated probability "
        f"that the in-context answer is wrong. Utility is {formula}, in units of probability. Costs, estimated and "
        f"measured, are further costs: those after the in-context answer, which every run pays, as multiples of its "
        f"tokens{unit}. " + " ".join(other_cost_weights(trace))
    ).rstrip()
