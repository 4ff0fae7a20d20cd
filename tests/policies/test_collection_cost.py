"""The estimate of what collecting takes is near what it takes."""

from __future__ import annotations

import dataclasses

import pytest

from autottt.policies.collect import ModelIdentity, collect, missing
from autottt.policies.collection_cost import CollectionEstimate, _Speed, _speed, estimate
from autottt.policies.outcomes import OutcomeStore
from autottt.strategies.registry import get_strategy
from autottt.ttt_core.engine.answering import Answer, Answerer
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.model.loading import wrap_model
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

STRATEGIES = ["in_context_vote", "ttt_direct", "ttt_in_context", "ttt_augmented", "ttt_crossfit"]
RECIPE = Recipe(rank=2, max_steps=3, batch_size=2, views=2, transformations=2)


@pytest.fixture
def learner():
    recipes = dict.fromkeys(STRATEGIES, RECIPE)
    return Learner(wrap_model(tiny_model("llama"), tiny_tokenizer(), recipes=recipes, prompt_format="compact"))


def tasks(count: int, queries: int):
    pairs = [([i, i + 1], [i + 1, i]) for i in range(5)]
    return [
        make_task(pairs[: 3 + t % 2], [q, t], answer=[t, q], id=f"t{t}-{q}", group=f"t{t}", family=f"f{t}")
        for t in range(count)
        for q in range(queries)
    ]


def test_the_token_equivalents_are_near_those_that_are_measured(learner, tmp_path):
    store, chosen = OutcomeStore(tmp_path), [get_strategy(name) for name in STRATEGIES]
    every = tasks(4, 2)
    batches, total = missing(ModelIdentity.of(learner), every, chosen, [0], store)
    expected = estimate(learner, batches)
    collect(learner, every, chosen, [0], store)
    measured = 0.0
    trained = set()
    for outcome in store.read():
        measured += outcome.forward_tokens + outcome.probe_cost * outcome.token_equivalents
        if (outcome.group, outcome.strategy) not in trained:
            measured += 2 * outcome.backward_tokens
        trained.add((outcome.group, outcome.strategy))
    assert expected.outcomes == total == len(every) * (1 + len(STRATEGIES))
    assert measured / 1.5 < expected.token_equivalents < measured * 1.5
    assert expected.seconds > 0
    assert estimate(learner, missing(ModelIdentity.of(learner), every, chosen, [0], store)[0]).outcomes == 0


@pytest.mark.parametrize("shown", [1, 2, 5])
def test_the_probe_is_part_of_the_estimate(shown, learner, tmp_path, monkeypatch):
    """Of answers that can be read: only these are scored again under other views."""
    monkeypatch.setattr(Answerer, "_as_answer", lambda self, task, got: Answer(task.answer, "", got.scores, got.ended))
    store, some = OutcomeStore(tmp_path), tasks(4, 2)
    some = [dataclasses.replace(task, demonstrations=task.demonstrations[:shown]) for task in some]
    expected = estimate(learner, missing(ModelIdentity.of(learner), some, [], [0], store)[0])
    collect(learner, some, [], [0], store)
    measured = sum(o.forward_tokens + o.probe_cost * o.token_equivalents for o in store.read())
    assert measured / 1.25 < expected.token_equivalents < measured * 1.25


def test_the_seconds_are_those_of_answers_that_are_decoded_and_of_tokens_that_are_only_read(
    learner, tmp_path, monkeypatch
):
    chosen, every = [get_strategy(name) for name in STRATEGIES], tasks(4, 2)
    batches = missing(ModelIdentity.of(learner), every, chosen, [0], OutcomeStore(tmp_path))[0]

    def estimated(answer: float, token: float) -> CollectionEstimate:
        monkeypatch.setattr("autottt.policies.collection_cost._speed", lambda *_: _Speed(answer, token))
        return estimate(learner, batches)

    assert estimated(1.0, 0.0).seconds == len(every) * (1 + len(STRATEGIES))
    prompts = sum(map(learner.window.length, every)) * (1 + len(STRATEGIES))
    read = estimated(0.0, 1.0)
    assert read.seconds == pytest.approx(read.token_equivalents - prompts)
    assert read.seconds > prompts


def test_a_token_that_is_only_read_is_timed_over_many_prompts_at_once(learner):
    answer, token = _speed(learner, tasks(1, 1)[0])
    assert 0 < token < answer


def test_a_task_that_does_not_fit_in_the_context_costs_nothing(learner, tmp_path):
    chosen, short = [get_strategy(name) for name in STRATEGIES], tasks(2, 1)
    long = make_task([([1] * 400, [2] * 400)] * 3, [1], answer=[2], id="long", family="long")

    def estimated(some):
        return estimate(learner, missing(ModelIdentity.of(learner), some, chosen, [0], OutcomeStore(tmp_path))[0])

    alone, beside = estimated(short), estimated([long, *short])
    assert beside.token_equivalents == pytest.approx(alone.token_equivalents)
    assert beside.outcomes == alone.outcomes * 3 / 2
    assert estimated([long]).token_equivalents == 0
