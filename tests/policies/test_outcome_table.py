"""The outcome table merges families, excludes what cannot be compared, and refuses mixed outcomes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from autottt.policies.features import FEATURES_VERSION, NAMES
from autottt.policies.outcome_table import build_outcome_table
from autottt.policies.outcomes import Outcome
from autottt.ttt_core.errors import PolicyError
from tests.policies.synthetic import ALL, OUTCOMES, SMALL, made, trained


def test_the_vbs_per_task_is_one_strategy_for_all_queries_of_a_task():
    right = {"in_context": (0.0, 1.0), "in_context_vote": (1.0, 0.0), "ttt_in_context": (1.0, 1.0)}
    costs = {"in_context": 1.0, "in_context_vote": 2.0, "ttt_in_context": 4.0}
    pairs = [
        dataclasses.replace(
            o, correct=right[o.strategy][int(o.task_id[-1])], relative_cost=costs[o.strategy],
            group="t0" if o.task_id.startswith("t0") else "",
        )
        for o in SMALL if o.task_id[-1] in "01"
    ]  # fmt: skip
    cases = build_outcome_table(pairs)
    of_a_task = np.array([task.startswith("t0") for task in cases.tasks])
    alone = np.array([right[s] for s in cases.strategies]).T - 0.01 * cases.costs[:2]
    best = cases.best_of_tasks(0.01)
    assert (best[of_a_task] == 2).all(), "two queries of one task: training is right on both"
    own = alone.argmax(axis=1)[[int(name[-1]) for name in cases.tasks]]
    np.testing.assert_array_equal(best[~of_a_task], own[~of_a_task])
    assert len(set(own)) == 2


def test_a_query_that_lacks_a_strategy_is_trained_on_but_not_evaluated_on():
    assert build_outcome_table(OUTCOMES).fully_observed.all()
    cases = build_outcome_table(OUTCOMES[:-1])
    assert len(cases) == 240
    assert len(cases.complete()) == 239
    assert np.isnan(cases.correct).sum() == 1


def test_a_strategy_that_was_rarely_tried_is_excluded():
    rare = [dataclasses.replace(OUTCOMES[n], strategy=s) for n, s in ((1, "ttt_augmented"), (7, "zero_shot"))]
    assert build_outcome_table([*OUTCOMES, *rare]).strategies == tuple(ALL)
    some = [dataclasses.replace(o, strategy="ttt_augmented") for o in OUTCOMES[2::3]]
    assert "ttt_augmented" in build_outcome_table([*OUTCOMES, *some]).strategies


def test_a_strategy_that_was_tried_on_many_queries_of_few_families_is_excluded():
    """The other families have fewer queries and count as much."""
    families = sorted({o.family for o in OUTCOMES})
    several = families[: len(families) // 2]
    queries = sorted({o.task_id for o in OUTCOMES if o.family in families[len(families) // 2 :]})
    single = {o.family: o.task_id for o in OUTCOMES if o.task_id in queries}
    fewer = [o for o in OUTCOMES if o.family in several or single[o.family] == o.task_id]
    more = [dataclasses.replace(o, strategy="zero_shot") for o in fewer if o.family in several and o.strategy == ALL[0]]
    assert len(more) > 0.7 * len({o.task_id for o in fewer})
    table = build_outcome_table([*fewer, *more])
    assert (table.strategies, len(set(table.families))) == (tuple(ALL), len(families))
    assert "zero_shot" in table.excluded


def test_two_tasks_under_one_name_are_refused():
    named = [dataclasses.replace(o, digest=f"digest of {o.task_id}") for o in OUTCOMES]
    assert len(build_outcome_table([*named, *named])) == 240
    last = named[-1]
    elsewhere = [dataclasses.replace(o, task_id=last.task_id, dataset=last.dataset, seed=5) for o in named[:3]]
    with pytest.raises(PolicyError, match=f"two tasks have the name {last.task_id} in the data set 'made'.* apart"):
        build_outcome_table([*named, *elsewhere])
    assert len(build_outcome_table([*named, *(dataclasses.replace(o, digest="") for o in elsewhere)])) == 241


def test_an_outcome_that_was_judged_in_two_ways_is_refused():
    other = dataclasses.replace(OUTCOMES[0], correct=1 - OUTCOMES[0].correct)
    with pytest.raises(PolicyError, match="is right in one of the outcomes and wrong in another one"):
        build_outcome_table([*OUTCOMES, other])


def test_the_group_is_the_family_of_queries_without_one():
    """Four of one group are one family, which is too few for a strategy that was tried on no others."""
    grouped = [dataclasses.replace(o, family="", group=o.family) for o in SMALL]
    assert set(build_outcome_table(grouped).families) == {o.family for o in SMALL}
    rare = [dataclasses.replace(o, strategy="zero_shot") for o in grouped[1:24:3]]
    assert len({o.task_id for o in rare}) == 8
    assert "zero_shot" not in build_outcome_table([*grouped, *rare]).strategies


def test_the_same_query_under_two_names_is_of_one_family():
    named = [dataclasses.replace(o, digest=o.task_id) for o in SMALL]
    again = [dataclasses.replace(o, task_id=f"again {o.task_id}", family=f"again {o.family}") for o in named]
    cases, both = build_outcome_table(named), build_outcome_table([*named, *again])
    assert len(both) == 2 * len(cases)
    assert set(both.families) == {f"again {family}" for family in cases.families}
    unknown = [dataclasses.replace(o, digest="") for o in [*named, *again]]
    assert len(set(build_outcome_table(unknown).families)) == 2 * len(set(cases.families))


def test_rejected_adapters_count_as_the_in_context_answer():
    cases = build_outcome_table(SMALL)
    other = cases.strategies[-1]

    def served(gain: float, confidence: float) -> list[float]:
        answers = {"in_context": "a", other: "b"}
        rows = [
            dataclasses.replace(o, answer=answers.get(o.strategy, ""), confidence=confidence, held_out_gain=gain)
            if o.strategy == other
            else dataclasses.replace(o, answer=answers.get(o.strategy, ""), confidence=0.5)
            for o in SMALL
        ]
        cases = build_outcome_table(rows)
        return cases.correct[:, cases.strategies.index(other)].tolist()

    own, read = cases.correct[:, -1].tolist(), cases.correct[:, 0].tolist()
    assert own != read
    assert served(1.0, 0.1) == own, "nothing was held out"
    assert served(0.0, 0.9) == own
    assert served(0.0, 0.1) == read


@pytest.mark.parametrize(
    ("changed", "rejected"),
    [
        ({}, True),
        ({"confidence": 0.9}, False),
        ({"confidence": 0.0}, False),  # it is unknown
        ({"answer": ""}, False),
        ({"backward_tokens": 0}, False),  # nothing was trained
        ({"held_out_gain": 0.5}, False),  # cross-validation speaks for training
    ],
)
def test_a_less_certain_answer_after_training_counts_as_the_in_context_answer_where_it_is_served(changed, rejected):
    plain = build_outcome_table(SMALL)
    other = plain.strategies[-1]
    trained = {"answer": "b", "confidence": 0.1, "backward_tokens": 5, **changed}
    rows = [
        dataclasses.replace(o, **trained) if o.strategy == other else dataclasses.replace(o, answer="a", confidence=0.5)
        for o in SMALL
    ]
    cases = build_outcome_table(rows)
    own, read = plain.correct[:, -1].tolist(), plain.correct[:, 0].tolist()
    assert own != read
    assert cases.alone[:, -1].tolist() == own
    assert cases.correct[:, -1].tolist() == (read if rejected else own)
    kept = np.flatnonzero(np.arange(len(cases)) % 2)
    assert cases.take(kept).alone.tolist() == cases.alone[kept].tolist()
    assert cases.utilities_alone(0.0).tolist() == cases.alone.tolist()


def test_the_order_of_the_outcomes_changes_nothing():
    shuffled = list(SMALL)
    np.random.default_rng(0).shuffle(shuffled)
    assert build_outcome_table(shuffled).digest == build_outcome_table(SMALL).digest


def test_outcomes_of_several_prompt_formats_are_not_mixed() -> None:
    asked = [dataclasses.replace(o, prompt_format="compact") for o in SMALL]
    assert trained([*asked[:60], *SMALL[60:]]).prompt_format == "compact", "unknown is no other"
    with pytest.raises(PolicyError, match=r"2 prompt formats \(chat, compact\)"):
        build_outcome_table([*(dataclasses.replace(o, prompt_format="chat") for o in asked[:3]), *asked[3:]])


def test_features_that_some_outcomes_lack_are_not_trained_on_and_named() -> None:
    """New features do not invalidate old outcomes: the names that all outcomes share are used."""
    place = NAMES[1].index("answer_entropy_max")

    def older(outcome: Outcome) -> Outcome:
        values = {name: value for name, value in outcome.features.items() if name != "answer_entropy_max"}
        return dataclasses.replace(outcome, features=values | {"retired": 1.0}, features_version=FEATURES_VERSION - 1)

    mixed = [older(o) if o.features and n > 60 else o for n, o in enumerate(SMALL)]
    table = build_outcome_table(mixed)
    assert (table.missing_features, table.ignored_features) == (("answer_entropy_max",), ("retired",))
    assert table.features_versions == (FEATURES_VERSION - 1, FEATURES_VERSION)
    assert table.feature_names[1] == tuple(n for n in NAMES[1] if n != "answer_entropy_max")
    assert table.feature_names[0] == table.feature_names[1][: len(NAMES[0]) - 1]
    np.testing.assert_array_equal(table.X, np.delete(build_outcome_table(SMALL).X, place, axis=1))


def test_outcomes_of_another_features_version_are_trained_on_if_the_names_suffice() -> None:
    other = [dataclasses.replace(o, features_version=o.features_version and 99) for o in SMALL]
    table = build_outcome_table(other)
    assert (table.features_versions, table.missing_features) == ((99,), ())
    np.testing.assert_array_equal(table.X, build_outcome_table(SMALL).X)
    without = {name: 0.0 for name in NAMES[1] if name != "loo_hits"}
    with pytest.raises(PolicyError, match=r"lacks features that every policy needs: loo_hits; collect again"):
        build_outcome_table([dataclasses.replace(o, features=o.features and without) for o in SMALL])


def test_outcomes_of_several_recipes_are_not_mixed() -> None:
    known = [dataclasses.replace(o, recipe="a" if o.strategy == "ttt_in_context" else "") for o in SMALL]
    assert build_outcome_table([*known[:60], *SMALL[60:]]).recipes == {"ttt_in_context/list": "a"}, (
        "unknown is no other"
    )
    mixed = [dataclasses.replace(o, recipe=o.recipe and "b") if n > 60 else o for n, o in enumerate(known)]
    with pytest.raises(PolicyError, match="ttt_in_context on list tasks are of several recipes"):
        build_outcome_table(mixed)


@pytest.mark.parametrize(
    ("outcomes", "reason"),
    [
        ([], "there are no outcomes to train on"),
        ([o for o in OUTCOMES if o.strategy == "in_context"], "a policy chooses between"),
        ([o for o in OUTCOMES if o.strategy != "in_context"], "a policy chooses between"),
        ([*OUTCOMES, dataclasses.replace(OUTCOMES[0], base_hash="other")], "outcomes of 2 models"),
        (made(families=3), "3 families"),
        ([OUTCOMES[0], OUTCOMES[4]], "no query has an outcome for each"),
        ([dataclasses.replace(o, features={}) for o in OUTCOMES], "have no features .imported"),
        (
            [o if o.strategy == "in_context" else dataclasses.replace(o, status="too_few") for o in OUTCOMES],
            "every query has too few demonstrations for in_context_vote, ttt_in_context, so there is nothing to choose",
        ),
        (
            [dataclasses.replace(OUTCOMES[0], correct=0.5), *OUTCOMES[1:]],
            "t0-0: expected outcomes that are right .* received correct = 0.5 of in_context",
        ),
    ],
)
def test_unusable_outcomes_are_refused(outcomes, reason):
    with pytest.raises(PolicyError, match=reason):
        trained(outcomes)
