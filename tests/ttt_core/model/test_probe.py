"""The probe: models that would answer wrongly are told apart, or refused, before anything is asked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers as hf
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import PreTrainedModel

from autottt.ttt_core.errors import ModelError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.model.loading import wrap_model
from autottt.ttt_core.model.probe import can_pad
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.testing import VOCABULARY, tiny_model, tiny_tokenizer

NAMES = {"vocab_size": VOCABULARY}
SMALL = {**NAMES, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
COUNTS_PLACES: dict[str, Callable[[], PreTrainedModel]] = {
    "mpt": lambda: hf.MptForCausalLM(
        hf.MptConfig(**NAMES, d_model=32, n_heads=4, n_layers=2, max_seq_len=512, initializer_range=0.25)
    ),
    "bart": lambda: hf.BartForCausalLM(
        hf.BartConfig(
            **NAMES, d_model=32, decoder_layers=2, encoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48,
            is_decoder=True, is_encoder_decoder=False, init_std=0.25,
        )
    ),
    "gpt-neo": lambda: hf.GPTNeoForCausalLM(
        hf.GPTNeoConfig(
            **NAMES, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
            window_size=24, initializer_range=0.25, bos_token_id=None, eos_token_id=None,
        )
    ),
}  # fmt: skip
"""Models in which padding between what was kept and what follows changes the answer."""
REFUSED: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "mamba": (lambda: hf.MambaForCausalLM(hf.MambaConfig(**NAMES, hidden_size=16, num_hidden_layers=1)), "recurrent"),
    "rwkv": (lambda: hf.RwkvForCausalLM(hf.RwkvConfig(**NAMES, hidden_size=32, num_hidden_layers=2)), "recurrent"),
    "roberta": (
        lambda: hf.RobertaForCausalLM(hf.RobertaConfig(**SMALL, is_decoder=True, initializer_range=0.25)),
        "positions from 0",
    ),
    "openai-gpt": (
        lambda: hf.OpenAIGPTLMHeadModel(hf.OpenAIGPTConfig(**NAMES, n_embd=16, n_layer=1, n_head=2)),
        "no cache or past_key_values",
    ),
    "bert": (lambda: hf.BertLMHeadModel(hf.BertConfig(**SMALL, initializer_range=0.25)), "is not causal"),
    "t5": (
        lambda: hf.T5ForConditionalGeneration(hf.T5Config(**NAMES, d_model=32, num_layers=1, num_heads=2, d_ff=48)),
        "has an encoder",
    ),
}
TASKS = [make_task([([1, 2], [2, 1]), ([3, 4], [4, 3])], list(range(n)), id=str(n)) for n in (1, 3, 6, 12)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "mistral"])
def test_padding_does_no_harm_to_models_that_go_by_positions(name: str, dtype: torch.dtype) -> None:
    assert can_pad(tiny_model(name).to(dtype))


def test_rounding_in_many_layers_is_not_taken_for_an_effect_of_padding() -> None:
    torch.manual_seed(0)
    config = hf.LlamaConfig(**{**SMALL, "vocab_size": 2000, "num_hidden_layers": 16}, initializer_range=0.25)
    assert can_pad(hf.LlamaForCausalLM(config).eval().to(torch.bfloat16))


@pytest.mark.parametrize("name", COUNTS_PLACES)
def test_models_that_count_places_are_told_apart_in_16_bits_too(name: str) -> None:
    torch.manual_seed(0)
    assert not can_pad(COUNTS_PLACES[name]().eval().to(torch.bfloat16))


@pytest.mark.parametrize("name", COUNTS_PLACES)
def test_models_that_count_places_answer_in_batches_as_they_do_alone(name: str) -> None:
    torch.manual_seed(0)
    learner = Learner.wrap(COUNTS_PLACES[name]().eval(), tiny_tokenizer(), prompt_format="compact")
    assert not learner.loaded.supports_padding
    together = [a.text for a in learner.answer(TASKS)]
    learner.clear()
    alone = []
    for task in TASKS:
        alone += [a.text for a in learner.answer([task])]
        learner.clear()
    assert together == alone


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_be_used_are_refused_with_the_reason(name: str) -> None:
    make, said = REFUSED[name]
    with pytest.raises(ModelError, match=said):
        wrap_model(make().eval(), tiny_tokenizer())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
def test_a_model_with_adapters_of_its_host_is_refused_with_the_remedy() -> None:
    model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ModelError, match=r"carries adapters of PEFT in 2 layers.*merge_and_unload"):
        wrap_model(model, tiny_tokenizer())
    assert wrap_model(model.merge_and_unload(), tiny_tokenizer()).supports_padding


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
def test_a_model_with_a_learned_prompt_is_refused_with_a_remedy_that_it_has() -> None:
    model = get_peft_model(tiny_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ModelError, match=r"give the base model without them \(`peft_model\.get_base_model\(\)`\)$"):
        wrap_model(model, tiny_tokenizer())
    assert wrap_model(model.get_base_model(), tiny_tokenizer()).supports_padding


def test_a_model_that_computes_inside_autocast_only_is_refused_with_the_remedy() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    for module in model.modules():
        if isinstance(module, type(model.model.norm)):
            module.float()
    with pytest.raises(ModelError, match=r"weights are in bfloat16 and float32.*model\.to\(torch\.bfloat16\)"):
        wrap_model(model, tiny_tokenizer())
    assert wrap_model(model.to(torch.bfloat16), tiny_tokenizer()).supports_padding


def test_weights_of_two_precisions_that_compute_together_are_used_as_they_are() -> None:
    model = tiny_model("gemma3_text", dtype=torch.bfloat16)
    model.model.norm.float()
    assert wrap_model(model, tiny_tokenizer()).supports_padding


def test_the_probe_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert can_pad(model)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
