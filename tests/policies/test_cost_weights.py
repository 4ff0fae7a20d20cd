"""Printed cost weights agree with the choices that they announce."""

import re

import numpy as np

from autottt.policies.cost_weights import CostWeightRange, cost_weight_ranges

NAMES = ["in_context", "in_context_vote", "ttt_in_context", "ttt_augmented"]


def test_a_printed_range_gives_the_announced_choice_everywhere():
    draws = np.random.default_rng(0)
    forms = set()
    for _ in range(6000):
        scores = dict(zip(NAMES, draws.uniform(0, 1, 4), strict=True))
        costs = dict(zip(NAMES, [0.0, *draws.uniform(5, 300, 3)], strict=True))
        current = 10 ** draws.uniform(-4.5, -2)

        def best(weight, scores=scores, costs=costs):
            return max(scores, key=lambda name: scores[name] - weight * costs[name])

        for one in cost_weight_ranges(scores, costs, best(current), current):
            text = one.text(current)
            form, first, second, now, strategy = re.fullmatch(
                r"(Below|Above|Between) cost weights? (\S+)(?: and (\S+))? \(now (\S+)\) these estimates choose (\w+)",
                text,
            ).groups()
            forms.add(form)
            assert strategy == one.strategy
            bounds = [float(first), float(second)] if second else [float(first)]
            low, high = {"Below": [0.0, *bounds], "Above": [*bounds, 100.0], "Between": bounds}[form]
            assert low < high
            assert not low <= float(now) <= high
            inside = [low + share * (high - low) for share in (0.001, 0.3, 0.5, 0.999)]
            assert {best(weight) for weight in inside} == {strategy}, text
    assert forms == {"Below", "Above", "Between"}


def test_close_cost_weights_are_printed_apart():
    text = CostWeightRange("ttt_augmented", 0.00039299996, 0.0).text(0.000393)
    crossing, now = map(float, re.search(r"weight (\S+) \(now (\S+)\)", text).groups())
    assert crossing <= 0.00039299996 < now


def test_a_narrow_range_is_printed_with_more_digits():
    scores, costs = {"a": 0.5, "b": 0.501239, "c": 0.501300925}, {"a": 0.0, "b": 1.0, "c": 1.05}
    (above,) = cost_weight_ranges(scores, costs, "c", 0.001)
    assert above.strategy == "b"
    low, high = map(float, re.search(r"weights (\S+) and (\S+)", above.text(0.001)).groups())
    assert 0.0012385 * (1 - 1e-9) <= low < high <= 0.001239 * (1 + 1e-9)


def test_a_strategy_that_wins_at_one_point_only_is_not_announced():
    scores, costs = {"a": 0.5, "b": 0.6, "c": 0.7}, {"a": 0.0, "b": 1.0, "c": 2.0}
    (above,) = cost_weight_ranges(scores, costs, "c", 0.01)
    assert above.strategy == "a"
    assert above.text(0.01) == "Above cost weight 0.1 (now 0.01) these estimates choose a"


def test_strategies_of_equal_cost_and_single_ones_have_no_other_choice():
    assert cost_weight_ranges({"a": 0.5}, {"a": 0.0}, "a", 0.1) == ()
    assert cost_weight_ranges({"a": 0.5, "b": 0.4}, {"a": 1.0, "b": 1.0}, "a", 0.1) == ()
