"""Explains a run in words, from its trace alone. Knows nothing about the policy beyond what the trace says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...policies.cost_weights import cost_weight_ranges
from ...strategies.registry import strategies
from .adapters import adapter_sentence, recipe_sentence
from .answers import answer_sentences
from .candidates import candidates_of, mark_of
from .choice import margin_sentences, not_compared, shadow_sentences, threshold_sentences, unusable
from .cost_parts import cost_sentence, missed_estimates, recipe_of, time_sentence
from .proof import weights_sentence
from .trace import Trace, find_spans
from .votes import views_sentence, vote_sentence, votes_of


def explanation(trace: Trace) -> str:
    """What happened and why, one statement a line."""
    return "\n".join(_statements(trace))


def _statements(trace: Trace) -> Iterator[str]:
    policy, model = trace.attributes.get("policy", {}), trace.attributes.get("model", {})
    yield f"Run {trace.id} of {trace.time}: task {trace.task_facts.get('id', '(none)')}, status {trace.status}."
    yield (
        f"Model {model.get('name')} ({str(model.get('hash', ''))[:12]}, {model.get('device')}, {model.get('dtype')}); "
        f"policy {policy.get('name')} ({policy.get('digest')}); seed {trace.attributes.get('seed')}; "
        f"budget {trace.attributes.get('budget')}."
    )
    versions = trace.attributes.get("versions", {})
    yield f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}."
    yield f"Path: {' -> '.join(trace.path)}."
    for sentence in answer_sentences(trace):
        yield f"{sentence}."
    yield from _prompt_format(trace)
    yield from _measured(trace)
    for number, decision in enumerate(trace.decisions, start=1):
        yield f"Decision {number}: {decision['strategy']}, because {decision['reason']}."
    for sentence in shadow_sentences(trace):
        yield f"{sentence}."
    yield from _alternatives(trace, policy.get("thresholds", {}))
    yield from _attempted(trace)
    for verdict in trace.verdicts:
        yield f"Verdict: {verdict['action']}, because {verdict['reason']}."
    if cost := cost_sentence(trace):
        yield f"Cost: {cost}."
    for sentence in missed_estimates(trace):
        yield f"{sentence}."
    if seconds := time_sentence(trace):
        yield f"{seconds}."
    yield from _cached(trace)
    yield from _stages(trace)
    yield from _ending(trace)


def _prompt_format(trace: Trace) -> Iterator[str]:
    """The prompt format, and the scores of those compared."""
    choices = [span["attributes"] for span in find_spans(trace.root, "format") if span.get("attributes")]
    if not choices:
        yield f"Prompt format {trace.attributes.get('model', {}).get('prompt_format')}: the only one of the model."
    for choice in choices:
        scores = ", ".join(f"{name} {score:.2f}" for name, score in choice.get("scores", {}).items())
        why = choice.get("reason") or ("the best of those compared" if scores else "the format of the model")
        compared = f"; log-probability of the demonstrations' answers by format: {scores}" if scores else ""
        yield f"Prompt format {choice.get('name')}: {why}{compared}."


def _cached(trace: Trace) -> Iterator[str]:
    """What was not computed in this run."""
    facts = []
    reads = [span["attributes"] for span in find_spans(trace.root, "read") if span.get("attributes")]
    if reused := sum(read["prompt_tokens"] - read["new_tokens"] for read in reads):
        facts.append(f"{reused} tokens of prompts")
    if scores := sum(span["attributes"].get("cached", 0) for span in find_spans(trace.root, "score")):
        facts.append(f"the scores of {scores} prompts")
    for span in find_spans(trace.root, "adapter"):
        if span.get("attributes", {}).get("source") == "cached":
            facts.append(f"the adapter of {span['attributes']['strategy']}")
    yield f"From the cache: {', '.join(facts) or 'nothing'}."


def _stages(trace: Trace) -> Iterator[str]:
    stages = sorted(trace.stages().items(), key=lambda stage: -stage[1])
    shown = ", ".join(f"{name} {seconds:.2f}" for name, seconds in stages if seconds >= 0.005)
    yield f"Seconds by stage: {shown or 'less than 0.01 each'}."


def _measured(trace: Trace) -> Iterator[str]:
    if attempt := trace.in_context:
        probability = f"a token sequence of probability {attempt['confidence'] or 0:.2f}"
        given = f"answered with {probability}" if _valid(attempt) else "gave no answer"
        yield f"The unadapted model {given} in {attempt['cost']['seconds']:.2f} s."
    probed = bool(find_spans(trace.root, "probe"))
    if probed and not trace.features.get("loo_possible", True):
        yield f"{len(trace.features)} features were measured, without the probe: no demonstration can be held out."
    elif trace.features:
        settled = "" if not trace.decisions or trace.decisions[0].get("exclusive") else _WHY_PROBED[probed]
        yield f"{len(trace.features)} features were measured, {'with' if probed else 'without'} the probe{settled}."


_WHY_PROBED = {
    True: ": those that cost nothing did not settle the choice",
    False: ": those that cost nothing settled the choice, or the policy uses no others",
}
"""Why features that need forward passes were measured, or not."""


def _valid(attempt: Mapping[str, Any]) -> bool:
    return attempt.get("value", True) is not None


def _alternatives(trace: Trace, thresholds: Mapping[str, Any]) -> Iterator[str]:
    calibrated = bool(trace.decisions and trace.decisions[0]["utilities"])
    estimate = "estimated" if calibrated else "by a rule of thumb, calibrated on no model,"
    for row in candidates_of(trace):
        if row.probability is None and not row.chosen:
            continue
        estimated = "not estimated" if row.probability is None else f"{estimate} right at {row.probability:.2f}"
        cost = "" if row.cost is None else f" at further cost {row.cost:.0f}x"
        utility = "" if row.utility is None else f", utility {row.utility:+.3f}"
        measured = "" if row.measured_cost is None else f"; measured further cost {row.measured_cost:.1f}x"
        mark = mark_of(trace, row) or ("not usable here" if unusable(trace, row.strategy) else "not chosen")
        yield f"Candidate {row.strategy} ({mark}): {estimated}{cost}{utility}{measured}."
    for sentence in (*margin_sentences(trace), *threshold_sentences(trace), *not_compared(trace, list(strategies()))):
        yield f"{sentence}."
    if thresholds:
        known = [f"{name} {value:.3g}" for name, value in thresholds.items() if value]
        unused = [name for name, value in thresholds.items() if not value]
        yield f"Settings of the policy: {', '.join(known) or 'none'}; not used: {', '.join(unused) or 'none'}."
    yield from other_cost_weights(trace)
    if trace.decisions and trace.decisions[0].get("exclusive"):
        yield "No estimate changes the first decision, only another --strategy or --policy."


def other_cost_weights(trace: Trace) -> Iterator[str]:
    """The nearest ranges of cost weights in which another candidate has the highest utility, one sentence each."""
    weight = trace.attributes.get("policy", {}).get("thresholds", {}).get("cost_weight")
    if weight is None:
        return
    rows = [row for row in candidates_of(trace) if row.probability is not None and row.cost is not None]
    scores = {row.strategy: row.probability for row in rows if row.probability is not None}
    costs = {row.strategy: row.cost for row in rows if row.cost is not None}
    chosen = next((row.strategy for row in rows if row.chosen), "")
    if not chosen or any(scores[s] - weight * costs[s] > scores[chosen] - weight * costs[chosen] for s in scores):
        return  # the choice does not maximise the utility, so that no cost weight follows from the estimates
    for one in cost_weight_ranges(scores, costs, chosen, weight):
        yield f"{one.text(weight)}."


def _attempted(trace: Trace) -> Iterator[str]:
    for attempt in trace.attempts:
        text = f"Attempt {attempt['strategy']}: {attempt['cost']['seconds']:.2f} s"
        if record := attempt["training_record"]:
            losses = record["losses"]
            change = f", loss {losses[0]:.3f} to {losses[-1]:.3f}" if losses else ""
            source = ", adapter from the cache" if attempt["from_cache"] else ""
            text += f", {record['steps']} training steps (stopped: {record['stop_reason']}){change}{source}"
        if held_out := attempt["cross_validation"]:
            count = len(held_out["before"])
            text += f"; held-out demonstrations right {sum(held_out['before'])}/{count} before training"
            text += f", {sum(held_out['after'])}/{count} after"
        yield f"{text}{'; failed: ' + attempt['error'] if attempt['error'] else ''}."
        for adapter in _adapters(trace, attempt["strategy"]):
            yield f"Adapter of {attempt['strategy']}: {adapter[0].lower()}{adapter[1:]}"
        if recipe := recipe_sentence(recipe_of(trace, attempt["strategy"])):
            yield recipe
        if voted := vote_sentence(votes_of(trace, attempt["strategy"])):
            yield f"Votes for the answer of {attempt['strategy']}: {voted}"
            yield views_sentence(votes_of(trace, attempt["strategy"]))


def _adapters(trace: Trace, strategy: str) -> Iterator[str]:
    """What the adapters of an attempt are."""
    for span in trace.adapters(strategy):
        if sentence := adapter_sentence(span["attributes"], trace.batch_training(strategy)):
            yield sentence


def _ending(trace: Trace) -> Iterator[str]:
    if result := trace.result:
        right = {True: "right", False: "wrong", None: "of unknown correctness"}[trace.is_right]
        yield f"The answer is {right}; it came from {result['strategy']} after {trace.duration:.2f} s."
        if result["proof"]:
            yield f"The weights are unchanged. {weights_sentence(trace)}."
    elif trace.error:
        proofs = [s for s in trace.root.get("children", ()) if s["name"] == "verify" and s["status"] == "ok"]
        yield f"The run ended with {trace.error}."
        yield "The weights were proven unchanged afterwards." if proofs else "No proof of the weights was recorded."
