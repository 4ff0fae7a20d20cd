"""Models whose code differs from that of transformers answer and train rightly, or are refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from autottt.ttt_core.errors import BaseChangedError, ModelError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora.modules import linear_modules
from autottt.ttt_core.lora.weights import LoraWeights
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.augmentation import leave_one_out
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
TASK = make_task([([1, 2, 3], [3, 2, 1]), ([4, 5], [5, 4]), ([7, 8, 9, 9], [9, 9, 8, 7])], [6, 2, 4], answer=[4, 2, 6])
RECIPE = Recipe(rank=4, alpha=4.0, max_steps=3, batch_size=2, learning_rate=1e-2, dropout=0.0)


def wrapped(model: Any) -> Learner:
    return Learner.wrap(model, tiny_tokenizer(), prompt_format="standard")


def hidden_states(model: Any, **arguments: Any) -> Any:
    arguments.pop("return_dict", None)
    return model.model(**arguments)


class FunctionalHead(LlamaForCausalLM):
    """Computes its logits from the head's weight, without a call of the head."""

    def forward(self, **arguments: Any) -> CausalLMOutputWithPast:
        output = hidden_states(self, **arguments)
        logits = nn.functional.linear(output.last_hidden_state, self.lm_head.weight)
        return CausalLMOutputWithPast(logits=logits, past_key_values=output.past_key_values)


class NoHead(FunctionalHead):
    def get_output_embeddings(self) -> Any:
        return None


class PassesOn(LlamaForCausalLM):
    def forward(self, *args: Any, **named: Any) -> Any:
        return super().forward(*args, **named)


class LastLogits(FunctionalHead):
    def forward(self, **arguments: Any) -> CausalLMOutputWithPast:
        output = super().forward(**arguments)
        return CausalLMOutputWithPast(logits=output.logits[:, -1:], past_key_values=output.past_key_values)


def passes_on_by_instance(model: Any) -> Any:
    before = model.forward
    model.forward = lambda *args, **named: before(*args, **named)
    return model


def of_class(kind: type) -> Callable[[Any], Any]:
    def change(model: Any) -> Any:
        model.__class__ = kind
        return model

    return change


def calls_by_name(model: Any) -> Any:
    for layer in model.model.layers:
        layer.mlp.forward = lambda x, mlp=layer.mlp: mlp.down_proj(
            input=mlp.act_fn(mlp.gate_proj(input=x)) * mlp.up_proj(x)
        )
    return model


SAME: dict[str, Callable[[Any], Any]] = {
    "functional head": of_class(FunctionalHead), "no head": of_class(NoHead), "passes on": of_class(PassesOn),
    "passes on by instance": passes_on_by_instance, "calls by name": calls_by_name,
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_code_that_computes_the_same_answers_and_trains_the_same(name: str) -> None:
    learners = [wrapped(tiny_model("llama")), wrapped(SAME[name](tiny_model("llama")))]
    (reference, answer) = (learner.answer([TASK])[0] for learner in learners)
    assert (answer.text, answer.scores.hits) == (reference.text, reference.scores.hits)
    assert answer.scores.log_probs == pytest.approx(reference.scores.log_probs, abs=1e-4)
    losses = [learner.adapt(leave_one_out(TASK), RECIPE).training.losses for learner in learners]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
    learners[1].verify(full=True)


def without_values() -> Any:
    model = tiny_model("llama")
    model.model.layers[1].to("meta")
    return model


def returns_tuples() -> Any:
    model = tiny_model("llama")
    model.config.return_dict = False
    return model


def compiled_in_place() -> Any:
    model = tiny_model("llama")
    model.compile(backend="eager")
    return model


class PeftPart(nn.Linear):
    """Stands for a module of an adapter that is no tuner layer, such as those of an adaption prompt."""


PeftPart.__module__ = "peft.tuners.adaption_prompt.layer"


def with_a_part_of_peft() -> Any:
    import peft  # noqa: F401

    model = tiny_model("llama")
    model.model.layers[0].mlp.down_proj.__class__ = PeftPart
    return model


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "last logits": (lambda: of_class(LastLogits)(tiny_model("llama")), "gives logits of the shape"),
    "no values": (without_values, "load the whole model on one device"),
    "no head": (lambda: tiny_model("llama").model, "AutoModelForCausalLM"),
    "data parallel": (lambda: nn.DataParallel(tiny_model("llama")), "give the model in it, `model.module`"),
    "compiled": (lambda: torch.compile(tiny_model("llama"), backend="eager"), "model._orig_mod"),
    "compiled in place": (compiled_in_place, "model._orig_mod"),
    "no config": (lambda: nn.Linear(2, 2), "has no `config`"),
    "tuples": (returns_tuples, "set it to True"),
    "part of peft": (with_a_part_of_peft, "carries adapters of PEFT"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_with_the_reason(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(ModelError, match=reason):
        wrapped(make())


def test_logits_of_tokens_that_are_ruled_out_change_no_check() -> None:
    class RulesOut(FunctionalHead):
        def forward(self, **arguments: Any) -> CausalLMOutputWithPast:
            output = super().forward(**arguments)
            output.logits[..., 5] = float("-inf")
            return output

    assert wrapped(of_class(RulesOut)(tiny_model("llama"))).loaded.supports_padding


def test_a_head_in_a_wrapper_is_not_adapted() -> None:
    class Cast(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = super().forward(x).to(torch.float32)
            return result

    model = tiny_model("llama")
    model.lm_head = Cast(model.lm_head)
    assert not [name for name in linear_modules(model) if "head" in name]
    examples = leave_one_out(TASK)
    wrapped(model).cross_validate([examples[1:], examples[:2]], [[examples[0]], [examples[2]]], RECIPE)


class RoutedExperts(nn.Module):
    """Sends each token to one expert, a small MLP of linear layers."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.gate = nn.Linear(32, count, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 16, bias=False), nn.SiLU(), nn.Linear(16, 32, bias=False)) for _ in range(count)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        chosen, output = self.gate(flat).argmax(-1), torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            tokens = (chosen == number).nonzero()[:, 0]
            if len(tokens):
                output = output.index_add(0, tokens, expert(flat[tokens]))
        return output.view_as(x)


def with_experts(count: int) -> Any:
    model = tiny_model("llama")
    torch.manual_seed(0)
    for layer in model.model.layers:
        layer.mlp = RoutedExperts(count)
    return model.eval()


@pytest.mark.parametrize("count", [2, 32])
def test_experts_that_no_token_of_a_batch_is_sent_to_do_not_end_training(count: int) -> None:
    learner = wrapped(with_experts(count))
    adapter = learner.adapt(leave_one_out(TASK), RECIPE, seed=1)
    assert adapter.training.stop_reason == "finished"
    assert adapter.training.losses[-1] < adapter.training.losses[0]
    assert any("experts" in name for name in adapter.weights.pairs)
    learner.verify(full=True)


def test_adapters_side_by_side_on_routed_experts_are_refused_and_never_mixed_up() -> None:
    model = with_experts(2)
    wrapped(model)
    weights = LoraWeights.initial(model, Recipe(rank=4, alpha=4.0), [1, 2])
    for seed in range(6):
        ids = torch.randint(0, 256, (4, 7), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad(), weights.attached(model), pytest.raises(ModelError, match="one adapter"):
            model(input_ids=ids)
    attention = LoraWeights.initial(model, Recipe(rank=4, alpha=4.0, target_modules=("q_proj",)), [1, 2])
    with torch.no_grad(), attention.attached(model):
        model(input_ids=ids)


def test_what_generate_keeps_of_its_last_call_is_no_change_of_the_base() -> None:
    model = tiny_model("llama")
    model.model.rope_deltas = None
    learner = wrapped(model)
    model.model.rope_deltas = torch.tensor([[0]])
    learner.verify()
    learner.adapt(leave_one_out(TASK), RECIPE)
    model.model.rope_deltas = 3
    with pytest.raises(BaseChangedError, match="rope_deltas=3"):
        learner.verify()


def test_quantized_weights_without_memory_of_their_own_are_counted() -> None:
    from autottt.ttt_core.lora.gradients import _storage

    class Quantized(torch.Tensor):
        @staticmethod
        def __new__(cls: type, values: torch.Tensor) -> Any:
            return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)

        @classmethod
        def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise NotImplementedError

    values = torch.zeros(3, 4)
    assert _storage(values) == (values.untyped_storage().data_ptr(), 48)
    quantized = Quantized(values)
    assert _storage(quantized) == (id(quantized), 48)


def test_a_model_whose_outputs_lose_their_names_after_it_was_wrapped_is_refused_until_they_are_back() -> None:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer())
    task = make_task([([1, 2], [2, 1]), ([3, 4], [4, 3])], [5, 6])
    learner.loaded.model.config.return_dict = False
    with pytest.raises(ModelError, match=r"config\.return_dict is False, so its outputs have no names: set it to True"):
        learner.answer([task])
    learner.loaded.model.config.return_dict = True
    assert learner.answer([task])
    learner.verify(full=True)
