"""Every data set, and every kind of task in it, is judged by policies that never saw it."""

from __future__ import annotations

import dataclasses

import pytest

from autottt.policies import held_out_domains
from autottt.policies.held_out_domains import at_cost_weights, domains_held_out, domains_of
from autottt.policies.outcome_table import build_outcome_table
from autottt.policies.training import TrainingSettings
from tests.policies.synthetic import made


def outcomes():
    for number, (dataset, kind) in enumerate([("a", "list"), ("a", "text"), ("b", "list")]):
        for o in made(6, 8, number):
            features = dict(o.features)
            if features:
                features |= {"kind_list": float(kind == "list"), "kind_text": float(kind == "text")}
            yield dataclasses.replace(
                o, dataset=dataset, kind=kind, family=f"{dataset}{kind}{o.family}", features=features,
                task_id=f"{kind}{o.task_id}", group=f"{kind}{o.group}",
            )  # fmt: skip


TABLE = build_outcome_table(outcomes())
SETTINGS = TrainingSettings(0.1 / 60, 0, 3, ("logistic",))


def test_each_domain_is_held_out_whole(monkeypatch) -> None:
    assert set(domains_of(TABLE)) == {"a/list", "a/text", "b"}
    trained_on, real = [], held_out_domains.fit

    def spied(table, settings):
        trained_on.append({(d, k) for d, k in zip(table.datasets, table.kinds, strict=True)})
        return real(table, settings)

    monkeypatch.setattr(held_out_domains, "fit", spied)
    result = domains_held_out(TABLE, SETTINGS)
    assert [len(seen) for seen in trained_on] == [2, 2, 2]
    assert ("a", "text") not in trained_on[1]
    assert result["domains"]["a/text"]["unfamiliar_share"] == 1.0, "its kind was never seen"
    assert result["domains"]["b"]["unfamiliar_share"] < 0.5
    every = result["all"]
    assert every["cases"] == len(TABLE)
    assert every["accuracy_first"]["accuracy_difference"]["value"] > -0.05
    assert every["policy"]["cost_share"] < every["accuracy_first"]["cost_share"] + 0.2
    low, high = every["policy"]["accuracy_difference"]["interval_90"]
    assert low <= every["policy"]["accuracy_difference"]["value"] <= high


def test_one_domain_cannot_be_held_out() -> None:
    one = TABLE.take([i for i, d in enumerate(domains_of(TABLE)) if d == "b"])
    assert domains_held_out(one, SETTINGS) is None
    assert at_cost_weights(one, SETTINGS, (0.1,)) == {}


def test_a_higher_cost_weight_spends_less() -> None:
    curve = at_cost_weights(TABLE, SETTINGS, (0.9, 0.01))
    assert curve["0.9"]["cost_share"] < curve["0.01"]["cost_share"]
    assert pytest.approx(curve["0.01"]["accuracy_difference"]["value"], abs=0.1) == 0
