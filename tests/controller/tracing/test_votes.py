"""Votes in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autottt.controller.tracing.votes import percentages, views_sentence, vote_sentence, votes_of
from autottt.ttt_core.engine.answering import Answer
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.model.generation import TokenScores
from autottt.ttt_core.tasks.kinds import make_task
from tests.controller.tracing.sample_traces import LIST, trace_of

TEXT = make_task([("a", "b"), ("c", "d"), ("e", "f")], "g")


def vote(*candidates: tuple[int, float], answers: int) -> dict:
    return {"answers": answers, "candidates": [{"votes": votes, "log_prob": score} for votes, score in candidates]}


def test_every_answer_has_its_number_of_votes():
    text = vote_sentence(vote((4, -0.1), (2, -0.2), (1, -0.3), answers=7))
    assert text == "4 of 7 votes; the other 2 answers got 2, 1. No tie."


def test_a_tie_is_broken_by_likelihood():
    text = vote_sentence(vote((2, -0.5), (2, -1.25), (1, -0.1), answers=5))
    assert "2 answers had 2 votes each; the tie was broken by likelihood: log-probability -0.500 against -1.250" in text


def test_decoded_answers_without_a_vote_are_counted():
    assert "2 of 5 decoded answers had no vote" in vote_sentence(vote((3, -0.1), answers=5))


def test_the_recorded_votes_are_those_of_the_shares(monkeypatch):
    def answers(self, tasks, adapter=None, **more):
        values = [("x", -0.5), ("y", -2.0), ("y", -3.0), ("x", -1.0), (None, 0.0)]
        scores = [TokenScores((total,), (0.0,), (0.0,), (True,)) for _, total in values]
        return [[Answer(v, str(v), score, True) for (v, _), score in zip(values, scores, strict=True)][: len(tasks)]]

    monkeypatch.setattr(Learner, "answers", answers)
    trace = trace_of("in_context_vote", replace(TEXT, query="gg"))
    recorded = votes_of(trace, "in_context_vote")
    candidates = trace.attempts[0]["candidates"]
    votes = [each["votes"] for each in recorded["candidates"]]
    assert len(votes) == 2
    assert [count / sum(votes) for count in votes] == [each["share"] for each in candidates]
    assert recorded["answers"] >= sum(votes)
    assert recorded["candidates"][0] | {"share": 0} == {"value": "x", "share": 0, "votes": votes[0], "log_prob": -0.5}


def test_an_attempt_without_a_vote_has_no_sentence():
    assert vote_sentence(votes_of(trace_of("in_context", LIST), "in_context")) == ""


@pytest.mark.parametrize(
    ("shares", "percents"), [([7 / 8, 1 / 8], [88, 12]), ([1 / 3] * 3, [34, 33, 33]), ([1.0], [100]), ([], [])]
)
def test_percentages_of_votes_sum_to_100(shares, percents):
    assert percentages(shares) == percents


def test_a_vote_says_which_prompts_were_answered():
    counted = {"views": 8, "transformations": 3, "answers": 8, **vote((8, -0.1), answers=8)}
    text = views_sentence(counted)
    assert text.startswith("8 prompts were answered: the task as it is")
    assert "3 invertible transformations, undone" in text
    assert "adapters" not in text
    assert "by 4 adapters" in views_sentence({**counted, "answers": 32})
    assert views_sentence({}) == ""
