"""The five facts about a run that a person wants to know first."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace

import pytest

from autottt.controller.tracing.summary import STOP_REASONS, how_it_stopped, seconds_text, summary_of
from autottt.controller.tracing.trace import Trace, find_spans
from autottt.ttt_core.lora.training import TrainingRecord
from autottt.ttt_core.tasks.kinds import make_task
from tests.controller.tracing.sample_traces import GRID, LIST, failed_trace, long_trace, span, trace_of, trace_with

TEXT = make_task([("a", "b"), ("c", "d"), ("e", "f")], "g")


def facts(trace: Trace):
    return {fact.name: fact for fact in summary_of(trace)}


@pytest.fixture(scope="module")
def crossfit() -> Trace:
    return trace_of("ttt_crossfit", GRID)


def test_a_run_without_a_valid_answer_says_so(crossfit):
    assert crossfit.status == "no_answer"  # the tiny model writes no grids
    assert facts(crossfit)["Answer"].headline == "No answer"


@pytest.mark.parametrize(("answer", "headline", "tone"), [("yes", "Right", "good"), ("no", "Wrong", "bad")])
def test_an_answer_is_right_or_wrong(answer, headline, tone):
    trace = trace_of("ttt_direct", replace(TEXT, answer="yes"))
    trace.attempts[0]["value"] = answer
    trace.result.update(status="answered", strategy="ttt_direct", right=answer == "yes")
    fact = facts(trace)["Answer"]
    assert (fact.headline, fact.tone) == (headline, tone)
    assert fact.text == "The answer is that of ttt_direct. Other attempts: in_context (without training) wrong."


def test_an_answer_without_a_known_answer_is_neither_right_nor_wrong():
    trace = trace_of("in_context", TEXT)
    trace.result.update(status="answered", strategy="in_context")
    fact = facts(trace)["Answer"]
    assert (fact.headline, fact.tone) == ("Answered", "plain")
    assert "in_context" in fact.text


def test_the_decision_has_its_reason(crossfit):
    fact = facts(crossfit)["Decision"]
    assert fact.headline.startswith("ttt_crossfit")
    assert crossfit.decisions[0]["reason"] in fact.text


def test_a_reason_is_not_repeated(crossfit):
    text = facts(crossfit)["Decision"].text
    reasons = {decision["reason"] for decision in crossfit.decisions}
    assert all(text.count(reason) == 1 for reason in reasons)


def test_the_cost_is_in_seconds_tokens_and_multiples(crossfit):
    text = facts(crossfit)["Cost"].text
    cost = crossfit.result["cost"]
    multiple = (cost["forward_tokens"] + 2 * cost["backward_tokens"]) / crossfit.result["in_context_tokens"]
    assert f"{cost['backward_tokens']:,} backward" in text
    assert f"{multiple:.1f}x an in-context answer = 1.0x in-context answer + " in text
    assert f"{crossfit.result['relative_seconds']:.1f}x the seconds" in text


def test_training_says_what_it_did_to_held_out_demonstrations(crossfit):
    fact = facts(crossfit)["Training"]
    held_out = crossfit.attempts[0]["cross_validation"]
    assert f"{sum(held_out['before'])}/3 before training, {sum(held_out['after'])}/3 after" in fact.text
    gain = sum(held_out["after"]) - sum(held_out["before"])
    measured = (
        "Trained, gain measured" if gain > 0 else "Trained, no gain measured" if gain == 0 else "Trained, harm measured"
    )
    assert fact.headline == {"accepted": measured, "rejected": "Adapter rejected"}[crossfit.adaptation]
    assert ("does not say that it is right" in fact.text) == (crossfit.adaptation == "accepted")


@pytest.mark.parametrize(
    ("right", "words"), [(3, "held-out demonstrations were all right"), (1, "held-out demonstrations gained no more")]
)
def test_a_monitor_that_stopped_training_says_which_of_its_reasons_held(right, words):
    assert how_it_stopped("monitor", {"right": right, "of": 3}) == f"stopped because {words}"
    assert how_it_stopped("finished", {"right": right, "of": 3}) == "stopped because all steps of the recipe were done"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [((0, 1), (1, 1), "training helped"), ((1, 1), (0, 1), "training harmed"), ((0, 1), (1, 0), "no gain")],
)
def test_a_gain_on_held_out_demonstrations_is_named(crossfit, before, after, words):
    plain = crossfit.as_stored()
    attempt = plain.attempts[0]
    attempt["cross_validation"] |= {"before": before, "after": after}
    assert words in facts(plain)["Training"].text


def test_training_without_held_out_demonstrations_says_that_nothing_was_measured():
    assert "No demonstrations were held out" in facts(trace_of("ttt_direct", LIST))["Training"].text


def test_a_run_in_context_trained_nothing():
    shown = facts(trace_of("in_context", LIST))
    assert shown["Training"].headline == "None"
    assert (shown["Base weights"].headline, shown["Base weights"].tone) == ("Unchanged", "good")


def test_the_proof_has_its_method_and_hash(crossfit):
    proof = crossfit.result["proof"]
    text = facts(crossfit)["Base weights"].text
    assert f"{proof['tensors']} tensors" in text
    assert proof["hash"] in text


def test_a_refused_run_has_its_error_and_the_proof_after_it():
    shown = facts(failed_trace())
    assert (shown["Answer"].headline, shown["Answer"].text) == ("Refused", "TooLongError: 9000 tokens")
    assert shown["Decision"].headline == "None"
    assert shown["Base weights"].headline == "Unchanged"


def test_a_failed_proof_is_never_called_unchanged():
    verify = span("verify", status="error", error="BaseChangedError: a tensor")
    before = span("verify", attributes={"method": "pointers", "tensors": 58, "hash": "0bbf"})
    root = span("run", attributes={"edges": []}, status="error", error="BaseChangedError: a tensor")
    fact = facts(trace_with({**root, "children": [before, verify]}))["Base weights"]
    assert (fact.headline, fact.tone) == ("Changed", "bad")
    assert "a tensor" in fact.text


def test_a_run_that_ended_without_a_proof_says_so():
    shown = facts(long_trace())
    assert shown["Base weights"].headline == "Not verified"
    assert shown["Training"].headline == "Not finished"


@pytest.mark.parametrize(("seconds", "text"), [(17.567, "17.6 s"), (0.0563, "56.3 ms"), (1.0, "1 s"), (123.4, "123 s")])
def test_seconds_have_three_digits(seconds, text):
    assert seconds_text(seconds) == text


def test_every_stop_reason_of_a_training_has_words():
    documented = inspect.getsource(TrainingRecord).partition("stop_reason: str")[2].partition("error: str")[0]
    assert set(re.findall("`([a-z]+)`", documented)) == set(STOP_REASONS)


def test_the_losses_of_several_folds_are_called_a_mean(runs):
    (training,) = [fact.text for fact in summary_of(runs["crossfit"]) if fact.name == "Training"]
    folds = next(s["attributes"]["folds"] for s in find_spans(runs["crossfit"].root, "adapter"))
    assert folds > 1
    assert f"loss, mean of {folds} adapters, one for each fold, " in training
