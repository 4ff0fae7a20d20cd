"""The modules that get an adapter are those of PEFT, on architectures with other names and fused projections."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from autottt.controller.state import record_from_plain
from autottt.ttt_core.errors import ModelError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora.adapter import Adapter
from autottt.ttt_core.lora.modules import coverage, target_modules, target_parameters
from autottt.ttt_core.lora.weights import LoraWeights
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.augmentation import leave_one_out
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import VOCABULARY, tiny_model, tiny_tokenizer

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`:UserWarning"),
    # PEFT changes the configuration of its adapters for experts.
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"),
]
PUBLISHED = ("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj", "o_proj")
QUICK = Recipe(rank=2, alpha=4.0, dropout=0.0, max_steps=2, batch_size=2, learning_rate=1e-2)

_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_LLAMA = set(PUBLISHED)
_QWEN3_MOE = {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
_HYBRID = {"shared_expert_intermediate_size": 16, "layer_types": ["linear_attention", "full_attention"]}
_ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
_DEEPSEEK = {
    **_ROUTED, "head_dim": 4, "moe_intermediate_size": 16, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "v_head_dim": 8, "num_key_value_heads": 4,
}  # fmt: skip
MAPPED: dict[str, tuple[dict[str, Any], set[str]]] = {
    "llama": ({}, _LLAMA), "mistral": ({}, _LLAMA), "qwen2": ({}, _LLAMA), "qwen3": ({}, _LLAMA),
    "gemma": ({}, _LLAMA), "gemma2": ({}, _LLAMA), "gemma3_text": ({}, _LLAMA), "stablelm": ({}, _LLAMA),
    "granite": ({}, _LLAMA), "olmo2": ({}, _LLAMA), "cohere": ({}, _LLAMA), "smollm3": ({}, _LLAMA),
    "phi": ({}, {"q_proj", "v_proj", "dense", "fc1", "fc2"}),
    "phi3": ({}, {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
    "glm": ({}, {"q_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"}),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 4}, {"c_attn", "c_proj", "c_fc"}),
    "gpt_bigcode": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48}, {"c_attn", "c_proj", "c_fc"}),
    "starcoder2": ({}, {"q_proj", "v_proj", "o_proj", "c_fc", "c_proj"}),
    "gpt_neox": ({}, {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
    "gptj": (
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, {"q_proj", "v_proj", "out_proj", "fc_in", "fc_out"},
    ),
    "codegen": (
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, {"qkv_proj", "out_proj", "fc_in", "fc_out"},
    ),
    "falcon": ({}, {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
    "bloom": ({"n_layer": 2, "n_head": 4}, {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
    "mpt": ({"d_model": 32, "n_layers": 2, "n_heads": 4}, {"Wqkv", "out_proj", "up_proj", "down_proj"}),
    "opt": ({"ffn_dim": 48, "word_embed_proj_dim": 32}, {"q_proj", "v_proj", "out_proj", "fc1", "fc2"}),
    "mixtral": ({"num_local_experts": 4}, {"q_proj", "v_proj", "o_proj", "w1", "w2", "w3"}),
    "qwen3_moe": (_QWEN3_MOE, _LLAMA),
    "olmoe": ({"num_experts": 4, "num_experts_per_tok": 2}, _LLAMA),
    "glm4_moe": ({"moe_intermediate_size": 16, **_ROUTED}, _LLAMA),
    "deepseek_v3": (_DEEPSEEK, {"q_a_proj", "q_b_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    "qwen3_next": ({**_QWEN3_MOE, **_HYBRID}, _LLAMA),
    "gpt_oss": ({"num_local_experts": 4}, {"q_proj", "v_proj", "o_proj"}),
    "granitemoe": ({"num_local_experts": 4}, {"q_proj", "v_proj", "o_proj"}),
}  # fmt: skip
"""Architecture -> its settings, and the names of the modules that the published names mean there."""
ADAPTED_EXPERTS = ("mixtral", "qwen3_moe", "olmoe", "glm4_moe", "deepseek_v3", "qwen3_next")
"""Architectures whose experts PEFT adapts, with routers of several kinds, dense layers and shared experts."""
UNADAPTED_EXPERTS = ("gpt_oss", "granitemoe")
"""Architectures whose experts are parameters that PEFT does not adapt."""
every_architecture = pytest.mark.parametrize("architecture", MAPPED)


def build(architecture: str) -> PreTrainedModel:
    settings = {k: v for k, v in _COMMON.items() if architecture not in ("falcon", "phi3") or k != "head_dim"}
    config = AutoConfig.for_model(architecture, **{**settings, **MAPPED[architecture][0]})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def adapted_by_peft(model: PreTrainedModel, targets: Any) -> set[str]:
    """Paths of the linear layers and parameters that PEFT adapts."""
    wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
    layers = {n.removeprefix("base_model.model."): m for n, m in wrapped.named_modules() if hasattr(m, "lora_A")}
    parameters = {
        f"{name.replace('.base_layer', '')}.{layer.parameter_name}"
        for name, layer in layers.items()
        if isinstance(layer, ParamWrapper)
    }
    return parameters | {name for name, layer in layers.items() if not isinstance(layer, ParamWrapper)}


def adapted(model: PreTrainedModel, targets: Sequence[str]) -> set[str]:
    """Paths of the linear layers and parameters that we adapt."""
    return {*target_modules(model, targets), *target_parameters(model, targets)}


@every_architecture
def test_the_modules_are_those_of_peft(architecture: str) -> None:
    model = build(architecture)
    names = sorted(MAPPED[architecture][1])
    published = PUBLISHED if architecture != "deepseek_v3" else names
    assert adapted(model, published) == adapted_by_peft(model, names)
    assert adapted(model, names) == adapted_by_peft(model, names)
    assert adapted(model, ("all-linear",)) == adapted_by_peft(model, "all-linear")


@every_architecture
def test_peft_gives_the_outputs_of_an_exported_adapter(architecture: str, tmp_path: Path) -> None:
    model = build(architecture)
    recipe = Recipe(rank=2, alpha=4.0, target_modules=PUBLISHED)
    weights = LoraWeights.initial(model, recipe, [0])
    for _, up in weights.pairs.values():
        up.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(len(up)))
    weights.save(tmp_path, recipe)
    theirs = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path)).eval()
    ids = torch.arange(3, 33).view(2, 15)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        expected = theirs(input_ids=ids).logits
        with weights.attached(model):
            received = model(input_ids=ids).logits
    assert torch.allclose(received, expected, atol=1e-4)
    assert not torch.allclose(received, plain, atol=1e-3)
    imported = Adapter.from_peft(tmp_path, model, "base")
    assert adapted(model, imported.recipe.target_modules) == imported.weights.pairs.keys()
    for name, pair in weights.pairs.items():
        assert all(map(torch.equal, pair, imported.weights.pairs[name]))


@pytest.mark.parametrize(
    ("architecture", "target", "names"),
    [
        ("phi3", "q_proj", ["qkv_proj"]), ("phi3", "gate_proj", ["gate_up_proj"]),
        ("phi3", "up_proj", ["gate_up_proj"]),
        ("gpt2", "v_proj", ["attn.c_attn"]), ("gpt2", "o_proj", ["attn.c_proj"]), ("gpt2", "gate_proj", ["c_fc"]),
        ("gpt2", "down_proj", ["mlp.c_proj"]), ("opt", "up_proj", ["fc1"]), ("falcon", "k_proj", ["query_key_value"]),
        ("gpt_neox", "o_proj", ["attention.dense"]), ("bloom", "down_proj", ["mlp.dense_4h_to_h"]),
        ("gpt2", "mlp.c_proj", ["mlp.c_proj"]),
    ],
)  # fmt: skip
def test_one_name_means_the_projection_with_its_role(architecture: str, target: str, names: list[str]) -> None:
    model = build(architecture)
    assert adapted(model, (target,)) == adapted_by_peft(model, names)


@pytest.mark.parametrize("architecture", UNADAPTED_EXPERTS)
def test_mlp_names_on_a_model_whose_mlp_is_experts_are_refused(architecture: str) -> None:
    with pytest.raises(
        ModelError, match=r"name no linear layer .* which has k_proj, .*experts are parameters .* PEFT does not adapt"
    ):
        target_modules(build(architecture), ("gate_proj", "up_proj", "down_proj"))


@pytest.mark.parametrize("architecture", UNADAPTED_EXPERTS)
@pytest.mark.parametrize("targets", [PUBLISHED, ("all-linear",)], ids=["published", "all"])
def test_experts_that_are_left_out_give_one_warning(
    architecture: str, targets: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    model = build(architecture)
    modules = [target_modules(model, targets) for _ in range(2)]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "leave out the whole of: experts" in record.getMessage()
    assert coverage(model, modules[0]).left_out == ("experts",)


def test_a_part_that_is_not_a_target_gives_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = build("mixtral")
    modules = target_modules(model, ("q_proj", "v_proj"))
    assert not caplog.records
    covered = coverage(model, modules)
    assert covered.modules == (("model.layers.*.self_attn.q_proj", 2), ("model.layers.*.self_attn.v_proj", 2))
    held = sum(m.weight.numel() for m in modules.values())
    assert covered.weight_share == held / sum(p.numel() for p in model.parameters())
    assert coverage(build("llama"), ["model.layers.0.self_attn.q_proj"]).left_out == ("MLP",)


def test_the_record_says_what_is_adapted_and_survives_json(task: Task, tmp_path: Path) -> None:
    learner = Learner.wrap(tiny_model("gpt2"), tiny_tokenizer())
    adapter = learner.adapt(leave_one_out(task), QUICK)
    record = adapter.training
    assert dict(record.modules)["transformer.h.*.attn.c_attn"] == 2
    assert len(record.modules) == 4
    assert 0 < record.weight_share < 1
    assert (record.left_out, record.started_from) == ((), "")
    assert record_from_plain(json.loads(json.dumps(asdict(record)))) == record
    adapter.save(tmp_path / "adapter.safetensors")
    assert Adapter.load(tmp_path / "adapter.safetensors").training == record
    second = learner.adapt(leave_one_out(task), QUICK, start=adapter)
    assert second.training.started_from == adapter.weights.digest() != second.weights.digest()
    learner.export(adapter, tmp_path / "peft")
    assert learner.import_peft(tmp_path / "peft").training.modules == record.modules


def test_gradient_checkpointing_changes_nothing_and_the_log_says_so_once(
    task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    plain, model = tiny_model("llama"), tiny_model("llama")
    model.activation_checkpointing_enable()
    expected = Learner.wrap(plain, tiny_tokenizer()).adapt(leave_one_out(task), QUICK)
    assert "checkpointing" not in caplog.text
    learner = Learner.wrap(model, tiny_tokenizer())
    adapters = [learner.adapt(leave_one_out(task), QUICK) for _ in range(2)]
    assert adapters[0].weights.digest() == adapters[1].weights.digest() == expected.weights.digest()
    (message,) = [r.getMessage() for r in caplog.records if "checkpointing" in r.getMessage()]
    assert "has no effect here" in message


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2", "gpt_neox"])
def test_the_layers_of_a_recipe_are_those_that_peft_adapts(architecture: str) -> None:
    model = tiny_model(architecture)
    names = sorted({path.rpartition(".")[2] for path in target_modules(model, ("all-linear",))})
    config = LoraConfig(r=2, target_modules=names, layers_to_transform=[1], task_type="CAUSAL_LM")
    wrapped = get_peft_model(copy.deepcopy(model), config)
    theirs = {n.removeprefix("base_model.model.") for n, m in wrapped.named_modules() if hasattr(m, "lora_A")}
    assert target_modules(model, ("all-linear",), (1,)).keys() == theirs
    with pytest.raises(
        ModelError, match=r"layers_to_transform \[7\] hold no target of .* are in layers 0 to 1: name some of"
    ):
        target_modules(model, ("all-linear",), (1, 7))


def test_layers_without_a_target_are_refused_with_those_that_have_one() -> None:
    config = AutoConfig.for_model(
        "llama", vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2
    )
    model = AutoModelForCausalLM.from_config(config)
    model.model.layers[1].self_attn.q_proj = torch.nn.Identity()
    with pytest.raises(
        ModelError, match=r"layers_to_transform \[1\] hold no target .* are in layers \[0, 2\]: name some"
    ):
        target_modules(model, ("q_proj",), (1,))
