"""The glossary has every feature, in order, and the ranges that it states hold for what is measured."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from autottt.policies.feature_glossary import FREE, GLOSSARY, stage_of
from autottt.policies.features import NAMES, STAGE_0, STAGE_1
from autottt.policies.measurement import measure_task
from autottt.ttt_core.engine.answering import PromptScores
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer
from tests.policies.test_features import (
    FACTS,
    TASKS,
    Scorer,
    answer_of,
    free_features,
    probe_features,
    scores,
)

ALONE = make_task([([9, 9, 9], [9])], [1], answer=[2])


def test_the_glossary_has_every_feature_in_order_and_no_other():
    assert tuple(GLOSSARY) == NAMES[1]
    assert [name for name in GLOSSARY if stage_of(name) == 0] == list(STAGE_0)
    assert len({meaning.meaning for meaning in GLOSSARY.values()}) == len(GLOSSARY), "each has a meaning of its own"


def test_only_the_probe_costs_passes():
    assert {GLOSSARY[name].cost for name in STAGE_0} == {FREE}
    assert [name for name in STAGE_1 if GLOSSARY[name].cost == FREE] == ["loo_possible"]


@pytest.fixture(scope="module")
def learner() -> Learner:
    return Learner.wrap(tiny_model("llama"), tiny_tokenizer(), prompt_format="compact")


@pytest.mark.parametrize("task", [*TASKS.values(), ALONE], ids=[*TASKS, "alone"])
def test_measured_features_are_in_their_ranges(learner: Learner, task) -> None:
    values = measure_task(learner, task, 0, lambda *_: True).features.values
    assert tuple(values) == NAMES[1]
    for name, value in values.items():
        assert GLOSSARY[name].low - 1e-6 <= value <= GLOSSARY[name].high + 1e-6, name


@pytest.mark.parametrize("likelihood", [-1e9, -3.0, 0.0])
def test_extreme_likelihoods_are_in_their_ranges(likelihood: float) -> None:
    for hopeless in (likelihood, 0.0):
        reading = PromptScores((scores(hopeless), scores(likelihood), scores(likelihood)))
        answer = answer_of((1, 2), likelihood, hopeless)
        facts = replace(FACTS, vocabulary=2, format_margin=-likelihood)
        values = free_features(TASKS["list"], answer, reading, facts)
        values |= probe_features(Scorer(lambda _: likelihood), TASKS["list"], answer, 0, facts)
        for name, value in values.items():
            assert math.isfinite(value)
            if "entropy_normalised" not in name:  # the entropies of these scores are not those of two tokens
                assert GLOSSARY[name].low - 1e-6 <= value <= GLOSSARY[name].high + 1e-6, name
