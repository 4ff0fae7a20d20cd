"""The generator of few-shot tasks: values, splits, repeatability."""

from __future__ import annotations

import random

import pytest

from autottt.ttt_core.generator.core import Domain, Family, Primitive, Reject, draw_pairs
from autottt.ttt_core.generator.families import MIXTURE, domains, draw_family, draw_task_pairs, draw_tasks, split_of
from autottt.ttt_core.kinds import KINDS

SPLITS = ("pretrain", "policy", "test")


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


def test_pretraining_never_sees_a_held_out_primitive_nor_a_chain_of_another_split():
    rng = random.Random(0)
    seen: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split in SPLITS:
        for name in MIXTURE:
            for _ in range(300):
                family = draw_family(domains()[name], split, rng)
                assert split_of(family) == split
                chain = f"{name}/" + ">".join(p.name for p in family.chain)
                seen[split].add(chain)
                if split == "pretrain":
                    assert not any(p.held_out for p in family.chain)
    assert not seen["pretrain"] & seen["policy"]
    assert not seen["pretrain"] & seen["test"]
    assert not seen["policy"] & seen["test"]


def test_a_fifth_of_the_primitives_is_held_out_in_every_domain():
    for domain in domains().values():
        share = sum(p.held_out for p in domain.primitives) / len(domain.primitives)
        assert 0.1 < share < 0.3
        assert len({p.name for p in domain.primitives}) == len(domain.primitives)


def test_trivial_and_constant_tasks_are_rejected():
    same = Primitive("same", lambda rng: lambda x: x)
    constant = Primitive("constant", lambda rng: lambda x: [1])
    for primitive in (same, constant):
        with pytest.raises(Reject):
            draw_pairs(Family(domain_of(primitive), "any", (primitive,)), 6, random.Random(0))


@pytest.mark.parametrize("name", MIXTURE)
def test_no_chain_of_primitives_raises_anything_but_a_rejection(name):
    rng, drawn = random.Random(5), 0
    for _ in range(400):
        family = draw_family(domains()[name], rng.choice(SPLITS), rng)
        try:
            drawn += len(draw_pairs(family, 4, rng))
        except Reject:
            continue
    assert drawn > 400


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


def test_a_task_of_any_domain_comes_by_the_mixture():
    rng = random.Random(0)
    found = {draw_task_pairs("pretrain", 4, rng)[0].domain.name for _ in range(60)}
    assert found == set(MIXTURE)
