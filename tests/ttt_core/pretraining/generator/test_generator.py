"""The generator of few-shot tasks: values, splits, repeatability."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from autottt.ttt_core.pretraining.generator.core import Domain, Family, Primitive, Reject, draw_pairs, strict_fault
from autottt.ttt_core.pretraining.generator.families import (
    MIXTURE,
    domains,
    draw_family,
    draw_task_pairs,
    draw_tasks,
    split_of,
)
from autottt.ttt_core.tasks.kinds import KINDS

SPLITS = ("pretrain", "policy", "test")
CHAINS = (
    ("lists", "mirror>map_positions>dedupe", "policy"),
    ("lists", "map_where>blocks>filter", "test"),
    ("lists", "constant_tail>combine_scalar>remove_value", "pretrain"),
    ("rows", "fill_span>keep_chosen", "policy"),
    ("rows", "reflect_over_pivot>delete_chosen>crop", "test"),
    ("rows", "recolour_chosen>tails", "pretrain"),
    ("grids", "complete_symmetry>crop_chosen", "policy"),
    ("grids", "crop_chosen>keep_chosen", "test"),
    ("grids", "recolour_chosen>scale", "pretrain"),
    ("strings", "reverse_words>repeat", "policy"),
    ("strings", "separator>rotate", "test"),
    ("strings", "replace_char>extreme_word>arithmetic", "pretrain"),
    ("lists", "sort_by", "policy"),
    ("lists", "reverse>sort_by", "policy"),
    ("lists", "reverse", "pretrain"),
)
"""Domain, chain, split: published, so they do not change. The last three are told by their primitives, all others by
the hash of their names."""

COINCIDING = {
    "lists": {"sort_by": "sort"},
    "rows": {},
    "grids": {
        "crop_colour": "crop",
        "recolour_by_rank": "recolour_all",
        "histogram": "count",
        "overlay": "complete_symmetry",
    },
    "strings": {
        "alternate_case": "map_where",
        "swap_fields": "reverse_words",
        "camel": "separator",
        "compare": "extreme_word",
        "date_part": "nth_word",
    },
}
"""Held-out primitives of which a training primitive solves a quarter of the tasks or more; see docs/model.md."""


def script():
    """benchmarks/families.py as a module."""
    file = Path(__file__).parents[4] / "benchmarks" / "families.py"
    spec = importlib.util.spec_from_file_location("families_script", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def domain_of(*primitives: Primitive) -> Domain:
    def scene(rng):
        return lambda: [rng.randint(0, 9) for _ in range(4)]

    return Domain("fake", "list", {"any": scene}, primitives, tuple, lambda v: True)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", MIXTURE)
def test_tasks_are_valid_values_of_their_kind_and_their_split(name, split):
    tasks = draw_tasks(split, 8, seed=1, domain=name)
    for task in tasks:
        kind = KINDS[task.kind]
        for value in [v for d in task.demonstrations for v in (d.input, d.output)] + [task.query, task.answer]:
            assert kind.check(value) == value
        assert task.query not in [d.input for d in task.demonstrations]
        assert len(task.demonstrations) >= 3


def test_the_same_seed_draws_the_same_tasks_and_another_seed_others():
    assert draw_tasks("policy", 10, seed=3) == draw_tasks("policy", 10, seed=3)
    assert draw_tasks("policy", 10, seed=3) != draw_tasks("policy", 10, seed=4)


def test_queries_of_one_task_share_their_demonstrations():
    first, second, third, fourth = draw_tasks("test", 2, seed=0, domain="lists", queries=2)
    assert first.demonstrations == second.demonstrations
    assert first.group == second.group != third.group == fourth.group


def test_pretraining_uses_no_held_out_primitive_and_no_chain_of_another_split():
    rng = random.Random(0)
    chains: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split in SPLITS:
        for name in MIXTURE:
            for _ in range(300):
                family = draw_family(domains()[name], split, rng)
                assert split_of(family) == split
                chain = f"{name}/" + ">".join(p.name for p in family.chain)
                chains[split].add(chain)
                if split == "pretrain":
                    assert not any(p.held_out for p in family.chain)
    assert not chains["pretrain"] & chains["policy"]
    assert not chains["pretrain"] & chains["test"]
    assert not chains["policy"] & chains["test"]


@pytest.mark.parametrize(("name", "chain", "split"), CHAINS)
def test_the_split_of_a_chain_does_not_change(name, chain, split):
    by_name = {p.name: p for p in domains()[name].primitives}
    primitives = tuple(by_name[p] for p in chain.split(">"))
    assert {split_of(Family(domains()[name], scene, primitives)) for scene in domains()[name].scenes} == {split}


def test_the_tasks_of_a_seed_do_not_change():
    """The bundled weights and the policy's outcomes were measured on these tasks."""
    tasks = [t for split in SPLITS for name in domains() for t in draw_tasks(split, 3, seed=0, domain=name)]
    text = "".join(repr((t.family, t.demonstrations, t.query, t.answer)) for t in tasks)
    digest = "7e5d3e59b82e265dd991316173308e3a1032d6b9efdc1e3b7de8094d45c6d802"
    assert hashlib.sha256(text.encode()).hexdigest() == digest


@pytest.mark.parametrize("name", MIXTURE)
def test_training_primitives_equal_only_the_listed_held_out_ones(name):
    results = script().coinciding(domains()[name], tasks=8, draws=40, seed=0)
    frequent = {held_out: counts for held_out, counts in results.items() if counts["known"] >= counts["tasks"] / 4}
    assert set(frequent) == set(COINCIDING[name])
    assert all(frequent[one][other] >= frequent[one]["tasks"] / 4 for one, other in COINCIDING[name].items())
    assert all(counts["tasks"] == 8 for counts in results.values())


def test_solvers_of_public_tasks_are_detected(tmp_path):
    pairs = [([3, 1, 4], [4, 1, 3]), ([2, 7], [7, 2]), ([5, 0, 8, 8], [8, 8, 0, 5]), ([1, 6, 9], [9, 6, 1])]
    rows = [
        {
            "demonstrations": [{"input": a, "output": f(b)} for a, b in pairs[:3]],
            "query": q,
            "answer": f(b),
            "family": n,
        }
        for q, b in pairs[3:]
        for n, f in (("back", list), ("odd", lambda x: [*x, sum(x) ** 2 % 97]))
    ]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (families,) = script().solved([tmp_path / "set.jsonl"], draws=10, seed=0).values()
    assert (families["back"]["lists/reverse"], families["back"]["solved"], families["back"]["tasks"]) == (1, 1, 1)
    assert (families["odd"]["solved"], families["odd"]["tasks"]) == (0, 1)


def test_an_operation_that_changes_nothing_can_be_left_out():
    twice = Primitive("sort", lambda rng: sorted)
    back = Primitive("reverse", lambda rng: lambda x: x[::-1])
    for chain, expected in (((twice, twice), 6), ((twice, back), 0)):
        module, domain = script(), domain_of(*chain)
        module.draw_family = lambda domain, split, rng, chain=chain: Family(domain, "any", chain)
        counts = module.shorter(domain, "test", tasks=6, draws=1, seed=0)[2]
        assert (counts["tasks"], counts["left_out"], counts["alone"]) == (6, expected, expected)


def test_a_fifth_of_the_primitives_is_held_out_in_every_domain():
    for domain in domains().values():
        share = sum(p.held_out for p in domain.primitives) / len(domain.primitives)
        assert 0.1 < share < 0.3
        assert len({p.name for p in domain.primitives}) == len(domain.primitives)


def test_every_scene_and_primitive_is_described_and_no_other():
    for domain in domains().values():
        assert domain.origin
        assert set(domain.inputs) == set(domain.scenes) >= set(domain.also_benchmark)
        assert {p.name for p in domain.primitives} >= {name for names in domain.solves.values() for name in names}


def test_trivial_and_constant_tasks_are_rejected():
    same = Primitive("same", lambda rng: lambda x: x)
    constant = Primitive("constant", lambda rng: lambda x: [1])
    for primitive in (same, constant):
        with pytest.raises(Reject):
            draw_pairs(Family(domain_of(primitive), "any", (primitive,)), 6, random.Random(0))


def test_a_strict_task_is_not_ambiguous_and_needs_every_operation():
    back = Primitive("reverse", lambda rng: lambda x: x[::-1])
    idle = Primitive("sort_twice", lambda rng: lambda x: x)
    rare = Primitive("rare", lambda rng: lambda x: x if x[0] < 9 else [0])

    def lists(rng):
        return lambda: [next(firsts), 2, 3, 5]

    def drawn(*chain: Primitive, **options: bool) -> list[object]:
        nonlocal firsts
        firsts = iter([1, 2, 3, 9, 4, 5, 6, 7] * 5)
        return draw_pairs(Family(Domain("fake", "list", {"any": lists}, chain, tuple, lambda v: True), "any", chain),
                          6, random.Random(0), **options)  # fmt: skip

    firsts: Iterator[int] = iter(())
    assert drawn(back, strict=True) == drawn(back)
    for chain, fault in (((back, idle), "needless"), ((rare, back), "ambiguous")):
        assert len(drawn(*chain)) == 6
        with pytest.raises(Reject, match=fault):
            drawn(*chain, strict=True)


def test_a_task_that_other_parameters_explain_but_for_one_pair_is_ambiguous():
    least = Primitive("at_least", lambda rng: partial(at_least, rng.choice([2, 8])))
    pairs = [([9, 9], [9, 9]), ([8, 9], [8, 9]), ([5, 9], [9]), ([1, 1], []), ([1, 0], [])]
    inputs, targets = [a for a, _ in pairs], [tuple(b) for _, b in pairs]
    family = Family(domain_of(least), "any", (least,))
    assert strict_fault(family, [partial(at_least, 8)], inputs, targets, random.Random(0)) == "ambiguous"
    more = [*inputs, [4, 9]]
    assert strict_fault(family, [partial(at_least, 8)], more, [*targets, (9,)], random.Random(0)) is None


def at_least(bound, values):
    return [v for v in values if v >= bound]


@pytest.mark.parametrize("name", MIXTURE)
def test_strict_tasks_are_deterministic_and_some_are_rejected(name):
    tasks = draw_tasks("test", 6, seed=2, domain=name, strict=True)
    assert tasks == draw_tasks("test", 6, seed=2, domain=name, strict=True)
    assert tasks != draw_tasks("test", 6, seed=2, domain=name)
    counts = script().faults(domains()[name], "test", 40, seed=0)
    assert counts["tasks"] == 40 > counts["drawn"] > 20


@pytest.mark.parametrize("name", MIXTURE)
def test_no_chain_of_primitives_raises_anything_but_a_rejection(name):
    rng, pairs = random.Random(5), 0
    for _ in range(400):
        family = draw_family(domains()[name], rng.choice(SPLITS), rng)
        try:
            pairs += len(draw_pairs(family, 4, rng))
        except Reject:
            continue
    assert pairs > 400


@pytest.mark.parametrize("name", MIXTURE)
def test_operations_are_deterministic_and_leave_their_input_alone(name):
    domain, rng = domains()[name], random.Random(2)
    for primitive in domain.primitives:
        scene = (primitive.scenes or tuple(domain.scenes))[0]
        sample = domain.scenes[scene](rng)
        operation = primitive.draw(rng)
        for _ in range(5):
            value = sample()
            before = domain.to_value(value)
            try:
                first = domain.to_value(operation(value))
            except Reject:
                continue
            assert domain.to_value(value) == before, primitive.name
            assert domain.to_value(operation(value)) == first, primitive.name


def test_the_mixture_has_tasks_of_every_domain():
    rng = random.Random(0)
    names = {draw_task_pairs("pretrain", 4, rng)[0].domain.name for _ in range(60)}
    assert names == set(MIXTURE)
