"""Printed cost weights agree with the choices that they announce."""

import re

import numpy as np

from autottt.policies.cost_weights import change_text, cost_weight_changes


def test_a_printed_cost_weight_gives_the_announced_choice():
    draws = np.random.default_rng(0)
    sides = set()
    for _ in range(300):
        names = ["in_context", "in_context_vote", "ttt_in_context", "ttt_augmented"]
        scores = dict(zip(names, draws.uniform(0, 1, 4), strict=True))
        costs = dict(zip(names, [0.0, *draws.uniform(5, 300, 3)], strict=True))
        current = 10 ** draws.uniform(-4.5, -2)

        def best(weight, scores=scores, costs=costs):
            return max(scores, key=lambda name: scores[name] - weight * costs[name])

        for crossing, strategy in cost_weight_changes(scores, costs, best(current), current):
            side, printed = re.match(
                r"(Below|Above) cost weight (\S+)", change_text(crossing, strategy, current)
            ).groups()
            sides.add(side)
            assert best(float(printed)) == strategy
            assert float(printed) <= crossing if side == "Below" else float(printed) >= crossing
    assert sides == {"Below", "Above"}


def test_close_cost_weights_are_printed_apart():
    text = change_text(0.00039299996, "ttt_augmented", 0.000393)
    crossing, now = map(float, re.search(r"weight (\S+) \(now (\S+)\)", text).groups())
    assert crossing <= 0.00039299996 < now
