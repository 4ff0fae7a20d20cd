"""Features are finite floats in a fixed order, whatever the task and the answer."""

from __future__ import annotations

import dataclasses
import math

import pytest

from autottt.policies.feature_measures import ModelFacts, free_features, probe_features
from autottt.policies.features import NEUTRAL, STAGE_0, STAGE_1, VIEWS, Features
from autottt.ttt_core.engine.answering import Answer, PromptScores
from autottt.ttt_core.model.generation import LOG_PROB_FLOOR, TokenScores
from autottt.ttt_core.tasks.kinds import make_task

TASKS = {
    "list": make_task([([1, 2], [2, 1]), ([3, 4, 5], [5, 4, 3]), ([6], [6])], [7, 8], answer=[8, 7]),
    "grid": make_task([([[1, 0]], [[0, 1]]), ([[2, 0]], [[0, 2]])], [[3, 0]], kind="grid"),
    "grid1d": make_task([([[1, 0, 0]], [[0, 1, 0]]), ([[2, 0, 0]], [[0, 2, 0]])], [[3, 0, 0]], kind="grid1d"),
    "text": make_task([("ab", "ba"), ("cd", "dc")], "ef", instruction="Reverse."),
}


def scores(*log_probs: float, hit: bool = True) -> TokenScores:
    n = len(log_probs)
    return TokenScores(log_probs, (0.5,) * n, (1.0,) * n, (hit,) * n)


def answer_of(value, *log_probs: float) -> Answer:
    return Answer(value, str(value), scores(*(log_probs or (-0.1, -0.2, -0.3))), True)


FACTS = ModelFacts(parameters=1_000_000, vocabulary=1000, format_margin=0.5)
READING = PromptScores((scores(-2.0, hit=False), scores(-1.0), scores(-0.5)))


class Scorer:
    """Scores answers by whether the task's demonstrations and query please it; remembers what it was asked."""

    def __init__(self, likelihood, *, fits: bool = True, room: bool = True) -> None:
        self.likelihood = likelihood
        self._fits, self._room = fits, room
        self.asked = []

    def score(self, tasks):
        self.asked.append(list(tasks))
        rows = []
        for task in tasks:
            value = self.likelihood(task)
            rows.append([*(scores(-9.0) for _ in task.demonstrations), scores(value, value, hit=value > -0.7)])
        return rows

    def fits(self, task, answer=None):
        return self._fits if answer is None else self._room


# --- stage 0 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TASKS)
def test_free_features_have_their_names_for_every_kind(kind):
    values = free_features(TASKS[kind], answer_of(TASKS[kind].query), READING, FACTS)
    assert tuple(values) == STAGE_0
    assert all(isinstance(v, float) and math.isfinite(v) for v in values.values())
    assert Features(0, values).kind == kind
    assert sum(values[f"kind_{k}"] for k in TASKS) == 1


def test_names_are_unique_over_the_stages():
    assert len(set(STAGE_0 + STAGE_1)) == len(STAGE_0 + STAGE_1)


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_without_demonstrations_and_an_unreadable_answer_have_features(kind):
    bare = TASKS[kind].with_demonstrations(())
    values = free_features(bare, Answer(None, "?", TokenScores((), (), (), ()), False), PromptScores(()), FACTS)
    assert tuple(values) == STAGE_0
    assert all(map(math.isfinite, values.values()))
    assert (values["answer_readable"], values["answer_ended"], values["reading_hits"]) == (0, 0, 0)
    assert values["reading_mean"] == values["answer_mean"] == NEUTRAL


def test_impossible_tokens_stay_finite():
    values = free_features(TASKS["list"], answer_of((1,), -math.inf), READING, FACTS)
    assert values["answer_total"] == LOG_PROB_FLOOR


def test_a_token_whose_likelihood_is_no_number_counts_as_impossible():
    reading = PromptScores((scores(-0.1), scores(math.nan, -1.0), scores(-0.3)))
    values = free_features(TASKS["list"], answer_of((1,), math.nan, -1.0), reading, FACTS)
    assert (values["answer_total"], values["answer_q00"]) == (LOG_PROB_FLOOR - 1, LOG_PROB_FLOOR)
    assert values["reading_mean"] == pytest.approx((-0.1 + (LOG_PROB_FLOOR - 1) / 2 - 0.3) / 3)


def test_the_likelihood_of_the_answer_is_described_by_quantiles():
    values = free_features(TASKS["list"], answer_of((1,), -4.0, -3.0, -2.0, -1.0, 0.0), READING, FACTS)
    assert (values["answer_total"], values["answer_mean"]) == (-10, -2)
    assert (values["answer_q00"], values["answer_q25"], values["answer_q50"]) == (-4, -3, -2)


def test_an_answer_that_repeats_the_query_or_a_demonstration_is_a_feature():
    task = TASKS["list"]
    repeated = free_features(task, answer_of(task.query), READING, FACTS)
    shown = free_features(task, answer_of((2, 1)), READING, FACTS)
    assert (repeated["answer_is_query"], repeated["answer_is_shown"]) == (1, 0)
    assert (shown["answer_is_query"], shown["answer_is_shown"]) == (0, 1)


def test_sizes_beyond_what_was_shown_are_positive():
    task = dataclasses.replace(TASKS["list"], query=(1,) * 9)
    values = free_features(task, answer_of((1,) * 9), READING, FACTS)
    assert values["query_beyond"] == values["answer_beyond"] == pytest.approx(math.log(10 / 4))
    assert free_features(TASKS["list"], answer_of((1,)), READING, FACTS)["answer_beyond"] < 0


def test_features_of_the_demonstrations_follow_their_order():
    values = free_features(TASKS["list"], answer_of((1,)), READING, FACTS)
    assert values["reading_hits"] == pytest.approx(2 / 3)
    assert (values["reading_hits_late"], values["reading_hit_last"]) == (1, 1)
    assert values["reading_last"] == -0.5
    assert values["reading_slope"] == pytest.approx(1.5)


# --- stage 1 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TASKS)
def test_probe_features_have_their_names_for_every_kind_and_take_one_pass(kind):
    scorer = Scorer(lambda task: -0.5)
    values = probe_features(scorer, TASKS[kind], answer_of(TASKS[kind].query), 0, FACTS)
    assert tuple(values) == STAGE_1
    assert all(isinstance(v, float) and math.isfinite(v) for v in values.values())
    assert len(scorer.asked) == 1


def test_each_demonstration_is_left_out_once_and_scored_alone_once():
    task = TASKS["list"]
    scorer = Scorer(lambda t: -0.5 if t.query == (6,) and t.demonstrations else -1.0 if t.demonstrations else -3.0)
    values = probe_features(scorer, task, answer_of(None), 0, FACTS)
    assert [t.query for t in scorer.asked[0]] == 2 * [d.input for d in task.demonstrations]
    assert values["loo_hits"] == pytest.approx(1 / 3)
    assert values["loo_mean"] == pytest.approx(-2.5 / 3)
    assert values["loo_min"] == -1
    assert values["shots_gain"] == pytest.approx(3 - 2.5 / 3)


def test_the_in_context_answer_is_scored_under_other_orders_and_transformations():
    task = TASKS["list"]
    scorer = Scorer(lambda t: -0.5 if set(t.demonstrations) == set(task.demonstrations) else -1.0)
    values = probe_features(scorer, task, answer_of((9, 9)), 0, FACTS)
    views = scorer.asked[0][2 * len(task.demonstrations) :]
    assert len(views) == 2 * VIEWS
    assert all(v.answer == (9, 9) and v.demonstrations != task.demonstrations for v in views[:VIEWS])
    assert len(set(views)) == 2 * VIEWS
    assert (values["orders_hits"], values["orders_min"]) == (1, -0.5)
    assert (values["turns_hits"], values["turns_min"]) == (0, -1)


def test_the_right_answer_is_never_looked_at():
    task = TASKS["list"]
    scorers = Scorer(lambda t: -0.5), Scorer(lambda t: -0.5)
    probe_features(scorers[0], task, answer_of((9,)), 0, FACTS)
    probe_features(scorers[1], dataclasses.replace(task, answer=None), answer_of((9,)), 0, FACTS)
    shown = [[(t.demonstrations, t.query, t.answer) for t in s.asked[0]] for s in scorers]
    assert shown[0] == shown[1]


@pytest.mark.parametrize(
    "scorer", [Scorer(lambda t: -0.5, fits=False), Scorer(lambda t: -0.5)], ids=["too long", "text"]
)
def test_where_no_transformation_can_be_used_the_orders_stand_in(scorer):
    task = TASKS["list"] if not scorer.fits else TASKS["text"]
    values = probe_features(scorer, task, answer_of(task.query), 0, FACTS)
    assert values["turns_hits"] == values["orders_hits"] == 1
    assert values["turns_min"] == values["orders_min"]


def test_views_that_do_not_fit_with_the_answer_are_not_scored():
    """A view was found to fit with as short an answer as the shortest shown; this one is longer."""
    task, scorer = TASKS["list"], Scorer(lambda t: -0.5, room=False)
    values = probe_features(scorer, task, answer_of((9,) * 50), 0, FACTS)
    assert tuple(values) == STAGE_1
    assert len(scorer.asked[0]) == 2 * len(task.demonstrations)
    assert (values["orders_hits"], values["orders_mean"], values["turns_mean"]) == (0, NEUTRAL, NEUTRAL)


@pytest.mark.parametrize("shown", [0, 1])
def test_with_fewer_than_two_demonstrations_nothing_is_scored(shown):
    task = TASKS["list"].with_demonstrations(TASKS["list"].demonstrations[:shown])
    scorer = Scorer(lambda t: -0.5)
    values = probe_features(scorer, task, answer_of((1,)), 0, FACTS)
    assert tuple(values) == STAGE_1
    assert scorer.asked == []
    assert (values["loo_possible"], values["loo_hits"], values["loo_mean"]) == (0, 0, NEUTRAL)


def test_the_same_seed_asks_the_same():
    task = TASKS["list"]
    scorers = [Scorer(lambda t: -0.5) for _ in range(2)]
    for scorer in scorers:
        probe_features(scorer, task, answer_of((1,)), 5, FACTS)
    assert scorers[0].asked == scorers[1].asked


# --- comparable between models ---------------------------------------------------------------------------------------


def test_features_of_models_are_shares_of_a_uniform_distribution():
    small, large = (ModelFacts(10**6, vocabulary) for vocabulary in (100, 10_000))
    of_small, of_large = (
        free_features(
            TASKS["list"], answer_of((1,), -math.log(v)), PromptScores((scores(-1.0), scores(-math.log(v)))), facts
        )
        for v, facts in ((100, small), (10_000, large))
    )
    assert of_small["answer_mean_normalised"] == pytest.approx(-1) == of_large["answer_mean_normalised"]
    assert of_small["model_parameters"] == 6.0
    assert (of_small["model_vocabulary"], of_large["model_vocabulary"]) == (2.0, 4.0)
    assert of_small["answer_tokens"] == math.log(2)


def test_ranks_are_those_of_the_answers_after_the_first():
    first, second = (dataclasses.replace(scores(-1.0, -1.0), ranks=ranks) for ranks in ((50, 50), (0, 3)))
    values = free_features(TASKS["list"], answer_of((1,)), PromptScores((first, second)), FACTS)
    assert values["reading_rank"] == pytest.approx(math.log(4) / 2)


def test_the_margin_of_the_format_is_bounded():
    for margin, expected in ((0.5, 0.5), (1e9, -LOG_PROB_FLOOR), (-1e9, LOG_PROB_FLOOR)):
        facts = dataclasses.replace(FACTS, format_margin=margin)
        assert free_features(TASKS["list"], answer_of((1,)), READING, facts)["format_margin"] == expected
