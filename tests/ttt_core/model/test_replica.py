"""Replicas of models: the same answers from the same memory, with hooks, modes and proofs of their own."""

from __future__ import annotations

import gc
import threading
import types
import weakref
from dataclasses import replace

import pytest
import torch

from autottt import BaseChangedError
from autottt.ttt_core.learner import learner_of_replica
from autottt.ttt_core.lora.training import train
from autottt.ttt_core.model.fingerprint import state_tensors
from autottt.ttt_core.model.replica import replica_of
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.augmentation import leave_one_out
from autottt.ttt_core.testing import ARCHITECTURES

RECIPE = Recipe(rank=2, alpha=2, max_steps=3, batch_size=2, early_stop_loss=0.0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_replica_answers_and_trains_as_the_model_does(make_learner, architecture, task, unchanged):
    learner = make_learner(architecture)
    with unchanged(learner.loaded.model):
        replica = learner_of_replica(learner)
        assert replica.answer([task]) == learner.answer([task])
        one, other = (some.adapt(leave_one_out(task), RECIPE) for some in (learner, replica))
    assert other.weights.digest() == one.weights.digest()
    assert replica.answer([task], one) == learner.answer([task], other)
    assert replica.verify(full=True).hash == learner.verify(full=True).hash


def test_a_replica_takes_no_memory_for_weights_and_has_its_own_gradients_and_hooks(make_learner):
    model = make_learner().loaded.model
    replica = replica_of(model)
    own, other = state_tensors(model), state_tensors(replica)
    assert {n: t.data_ptr() for n, t in own.items()} == {n: t.data_ptr() for n, t in other.items()}
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in replica.parameters())
    handle = replica.model.layers[0].register_forward_pre_hook(lambda module, args: pytest.fail("called by the model"))
    model(input_ids=torch.tensor([[1, 2]]))
    handle.remove()


def test_hooks_of_the_host_are_called_by_the_replica(make_learner):
    model, calls = make_learner().loaded.model, []
    model.model.layers[0].register_forward_pre_hook(lambda module, args: calls.append(module))
    replica = replica_of(model)
    calls.clear()
    replica(input_ids=torch.tensor([[1, 2]]))
    assert calls == [replica.model.layers[0]]


def replaced_method(model):
    layer = model.model.layers[0]
    layer.forward = types.MethodType(type(layer).forward, layer)


def lock_among_attributes(model):
    model.lock = threading.Lock()


def another_type_of_weight(model):
    class Quantized(torch.nn.Parameter):
        pass

    model.lm_head.weight = Quantized(model.lm_head.weight.detach())


def module_behind_a_function(model):
    inner = model.model.layers[0].mlp

    class Calls(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner
            self.call = lambda x: inner(x)

        def forward(self, x):
            return self.call(x)

    model.model.layers[0].mlp = Calls()


@pytest.mark.parametrize(
    "change", [replaced_method, lock_among_attributes, another_type_of_weight, module_behind_a_function]
)
def test_a_model_whose_copies_would_not_stand_for_themselves_has_no_replica(make_learner, change, unchanged):
    model = make_learner().loaded.model
    change(model)
    with unchanged(model):
        assert replica_of(model) is None


@pytest.mark.parametrize("writes_to", ["model", "replica"])
def test_a_write_to_the_weights_is_found_from_both_sides(make_learner, writes_to):
    learner = make_learner()
    replica = learner_of_replica(learner)
    written = (learner if writes_to == "model" else replica).loaded.model
    with torch.no_grad():
        written.lm_head.weight.add_(1.0)
    for each in (learner, replica):
        with pytest.raises(BaseChangedError, match=r"lm_head.weight.*written"):
            each.verify()


def test_a_write_that_no_version_counts_is_found_by_full_proofs_of_both(make_learner):
    learner = make_learner()
    replica = learner_of_replica(learner)
    replica.loaded.model.lm_head.weight.data.add_(1.0)
    for each in (learner, replica):
        with pytest.raises(BaseChangedError):
            each.verify(full=True)


def test_a_replica_leaves_nothing_behind(make_learner):
    learner = make_learner()
    replica = learner_of_replica(learner)
    gone = weakref.ref(replica.loaded.model)
    del replica
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("workers", [1, 2])
def test_every_thread_of_a_training_pauses(make_learner, task, workers):
    learner, threads = make_learner(), set()
    learner.guarded.pause = lambda: threads.add(threading.current_thread().name)
    examples = [learner.window.encode(t, t.answer) for t in leave_one_out(task)]
    with learner.guarded.compute(None):
        train(learner.loaded, [examples], replace(RECIPE, batch_size=2), [0], workers=workers)
    ours = {name for name in threads if name.startswith("autottt")}
    assert len(ours) == (workers if workers > 1 else 0)


def test_two_threads_use_the_model_and_its_replica_at_a_time(make_learner, task):
    learner = make_learner()
    alone = learner.answer([task])
    replica, rounds, done = learner_of_replica(learner), 6, threading.Event()
    adapters = []

    def train_again() -> None:
        for seed in range(rounds):
            adapters.append(replica.adapt(leave_one_out(task), RECIPE, seed=seed))
        done.set()

    thread = threading.Thread(target=train_again)
    thread.start()
    answers = []
    while not done.is_set() or not answers:
        learner.clear()
        answers.append(learner.answer([task]))
    thread.join()
    assert answers == [alone] * len(answers)
    expected = [learner.adapt(leave_one_out(task), RECIPE, seed=seed).weights.digest() for seed in range(rounds)]
    assert [adapter.weights.digest() for adapter in adapters] == expected
    assert learner.verify(full=True).hash == replica.verify(full=True).hash
