"""Adapters of experts and routers, which no linear layer holds, are PEFT's: outputs, gradients and files."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from autottt.ttt_core.errors import ModelError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora.adapter import Adapter
from autottt.ttt_core.lora.modules import coverage, target_modules, target_parameters
from autottt.ttt_core.lora.weights import LoraWeights
from autottt.ttt_core.model.fingerprint import Fingerprint
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.augmentation import leave_one_out
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import VOCABULARY, tiny_tokenizer

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"),
]
RECIPE = Recipe(rank=2, alpha=5.0, dropout=0.0, max_steps=3, batch_size=2, learning_rate=1e-2)
ARCHITECTURES = ("mixtral", "qwen3_moe", "minimax", "ernie4_5_moe", "afmoe")
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
IDS = torch.arange(3, 63).remainder(VOCABULARY).view(4, 15)
_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16,
    "num_hidden_layers": 2, "head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "num_experts": 4, "num_local_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "moe_k": 2,
    "moe_layer_start_index": 0, "num_dense_layers": 0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def build(architecture: str) -> PreTrainedModel:
    known = AutoConfig.for_model(architecture).to_dict()
    config = AutoConfig.for_model(architecture, **{k: v for k, v in _SIZES.items() if k in known})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if "gate.weight" in name:
                nn.init.normal_(parameter)  # zero in a new model: every token would go to the same experts
    return model.eval()


def _has_experts(model_type: str) -> bool:
    return any("expert" in field for field in CONFIG_MAPPING[model_type].__dataclass_fields__)


MIXTURES = sorted(filter(_has_experts, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
"""Types of causal language models with a setting for experts."""


def without_values(model_type: str) -> PreTrainedModel | None:
    """A small model on no device, or None where the sizes of this file do not fit the type."""
    config_class = CONFIG_MAPPING[model_type]
    try:
        config = config_class(**{k: v for k, v in _SIZES.items() if k in config_class.__dataclass_fields__})
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except Exception:
        return None
    return model


@pytest.mark.filterwarnings("ignore:target_parameters=.* no parameter was matched:RuntimeWarning")
def test_every_mixture_of_experts_is_adapted_as_by_peft_or_a_warning_names_what_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    compared, without_experts = [], []
    for model_type in MIXTURES:
        model = without_values(model_type)
        if model is None or model_type == "nemotron_h":  # PEFT refuses its state-space layers
            continue
        caplog.clear()
        ours = {*target_modules(model, ("all-linear",)), *target_parameters(model, ("all-linear",))}
        covered = coverage(model, ours)
        for part in covered.left_out:
            assert f"leave out the whole of: {', '.join(covered.left_out)}" in caplog.text, (model_type, part)
        stacks = {n for n, p in model.named_parameters() if p.dim() == 3 and "experts" in n}
        if stacks - ours:
            assert "experts" in covered.left_out, model_type
            without_experts.append(model_type)
        assert ours == adapted_by_peft(model, "all-linear"), model_type
        compared.append(model_type)
    assert len(compared) >= 30
    assert len(without_experts) >= 10
    assert len(compared) - len(without_experts) >= 15


def adapted_by_peft(model: PreTrainedModel, targets: Any) -> set[str]:
    """Paths of the linear layers and parameters that PEFT adapts. Changes the model."""
    with model.device:
        wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
    layers = {n.removeprefix("base_model.model."): m for n, m in wrapped.named_modules() if hasattr(m, "lora_A")}
    parameters = {
        f"{name.replace('.base_layer', '')}.{layer.parameter_name}"
        for name, layer in layers.items()
        if isinstance(layer, ParamWrapper)
    }
    return parameters | {name for name, layer in layers.items() if not isinstance(layer, ParamWrapper)}


def random_weights(model: PreTrainedModel, seeds: Sequence[int] = (0,), recipe: Recipe = RECIPE) -> LoraWeights:
    weights = LoraWeights.initial(model, recipe, seeds)
    for index, (_, up) in enumerate(weights.pairs.values()):
        for row, seed in zip(up, seeds, strict=True):
            row.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(100 * seed + index))
    return weights


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        computed: Tensor = model(input_ids=ids).logits
    return computed


@contextmanager
def unchanged(model: PreTrainedModel) -> Iterator[None]:
    fingerprint, before = Fingerprint(model), logits(model)
    yield
    fingerprint.verify(model, full=True)
    assert torch.equal(logits(model), before)


@every_architecture
def test_all_linear_includes_experts_and_peft_gives_the_same_outputs(architecture: str, tmp_path: Path) -> None:
    model = build(architecture)
    weights = random_weights(model)
    experts = {name: pair for name, pair in weights.pairs.items() if "experts" in name}
    assert {name.rpartition(".")[2] for name in experts} == {"gate_up_proj", "down_proj"}
    assert all(down.shape[1] == up.shape[1] == 4 for down, up in experts.values())
    weights.save(tmp_path, RECIPE)
    theirs = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path)).eval()
    with unchanged(model), weights.attached(model):
        ours = logits(model)
    assert torch.allclose(ours, logits(theirs), atol=1e-4)
    assert not torch.allclose(ours, logits(model), atol=0.1)


@every_architecture
def test_experts_of_an_adapter_that_peft_wrote_are_read(architecture: str, tmp_path: Path) -> None:
    model = build(architecture)
    torch.manual_seed(3)
    config = LoraConfig(r=2, lora_alpha=6, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    theirs = get_peft_model(copy.deepcopy(model), config).eval()
    theirs.save_pretrained(str(tmp_path))
    adapter = Adapter.from_peft(tmp_path, model, "base")
    assert adapter.recipe.target_modules == ("all-linear",)
    assert "experts" not in adapter.training.left_out
    with adapter.weights.attached(model):
        assert torch.allclose(logits(model), logits(theirs), atol=1e-4)
    with pytest.raises(ModelError, match=r"adapts parameters of a model .* give the model"):
        LoraWeights.load(tmp_path)


@every_architecture
def test_gradients_are_those_of_peft(architecture: str, tmp_path: Path) -> None:
    model = build(architecture)
    weights = random_weights(model)
    weights.save(tmp_path / "before", RECIPE)
    theirs = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "before"), is_trainable=True).eval()
    theirs(input_ids=IDS, labels=IDS).loss.backward()
    expected = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    for tensor in weights.tensors:
        tensor.requires_grad_(True)
    model.requires_grad_(False)
    with weights.attached(model):
        gradients = torch.autograd.grad(model(input_ids=IDS, labels=IDS).loss, weights.tensors)
    pairs = zip(*[iter(gradients)] * 2, strict=True)
    LoraWeights(dict(zip(weights.pairs, pairs, strict=True)), 1.0).save(tmp_path / "gradients", RECIPE)
    received = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "gradients"))
    ours = {n: p for n, p in received.named_parameters() if n in expected}
    assert ours.keys() == expected.keys()
    assert sum("experts" in name for name in ours) == 2 * 2 * 2  # layers, parameters, projections
    for name, gradient in expected.items():
        assert torch.allclose(ours[name], gradient, rtol=0, atol=1e-3 * float(gradient.abs().max())), name
        assert gradient.any(), name


@every_architecture
def test_adapters_that_share_a_pass_answer_as_alone(architecture: str) -> None:
    model = build(architecture)
    weights = random_weights(model, seeds=[1, 2])
    with unchanged(model), weights.attached(model):
        together = logits(model)
    for index, rows in enumerate(IDS.chunk(2)):
        with weights.select(index).attached(model):
            assert torch.allclose(together[2 * index : 2 * index + 2], logits(model, rows), atol=1e-5)
    with weights.attached(model), pytest.raises(ModelError, match="2 adapters need as many equal groups of rows"):
        logits(model, IDS[:3])


@pytest.mark.parametrize("adapters", [1, 2])
def test_nothing_stays_after_an_exception_in_the_experts(adapters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("qwen3_moe")
    weights = random_weights(model, seeds=range(adapters))
    experts: Any = model.model.layers[1].mlp.experts

    def fail(x: Tensor) -> Tensor:
        if "down_proj" in vars(experts):
            raise KeyboardInterrupt
        return nn.functional.silu(x)

    with unchanged(model):
        with monkeypatch.context() as patch:
            patch.setattr(experts.act_fn, "forward", fail)
            with pytest.raises(KeyboardInterrupt), weights.attached(model):
                logits(model, IDS)
        assert not {"down_proj", "gate_up_proj"} & vars(experts).keys()


def test_nested_adapters_add_up() -> None:
    model = build("qwen3_moe")
    weights = random_weights(model)
    doubled = LoraWeights(weights.pairs, 2 * weights.scaling)
    with unchanged(model):
        with weights.attached(model), weights.attached(model):
            nested = logits(model)
        with doubled.attached(model):
            assert torch.allclose(nested, logits(model), atol=1e-4)


def test_a_new_adapter_of_experts_starts_as_in_peft() -> None:
    weights = LoraWeights.initial(build("mixtral"), Recipe(rank=8, alpha=8.0, dropout=0.0), [0])
    assert weights.zero_updates() == [True]
    down, up = weights.pairs["model.layers.0.mlp.experts.gate_up_proj"]
    assert (down.shape, up.shape) == ((1, 4, 16, 32), (1, 4, 96, 16))  # twice the rank: two fused projections
    assert 0.97 / math.sqrt(32) < down.abs().max() <= 1 / math.sqrt(32)
    up[0, 3, 5, 2] = 1.0
    assert weights.zero_updates() == [False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("accelerated", [False, True])
def test_training_adapts_experts_and_leaves_the_base_as_it_was(
    dtype: torch.dtype, accelerated: bool, task: Task, as_on_an_accelerator: Callable[[], None], tmp_path: Path
) -> None:
    if accelerated:
        as_on_an_accelerator()
    model = build("qwen3_moe").to(dtype)
    learner = Learner.wrap(model, tiny_tokenizer())
    with unchanged(model):
        adapter = learner.adapt(leave_one_out(task), RECIPE)
        answers = [learner.answer([task], with_adapter) for with_adapter in (None, adapter)]
        folds = learner.adapt(leave_one_out(task), RECIPE, seed=1)
    assert len(answers) == 2
    record = adapter.training
    assert dict(record.modules)["model.layers.*.mlp.experts.gate_up_proj"] == 2
    assert dict(record.modules)["model.layers.*.mlp.gate.weight"] == 2
    assert record.left_out == ()
    total = sum(p.numel() for p in model.parameters())
    others = sum(p.numel() for n, p in model.named_parameters() if "norm" in n or "embed" in n or "lm_head" in n)
    assert record.weight_share == pytest.approx(1 - others / total)
    assert all(up.any() for _, up in adapter.weights.pairs.values())
    assert folds.weights.digest() != adapter.weights.digest()
    adapter.save(tmp_path / "adapter.safetensors")
    loaded = Adapter.load(tmp_path / "adapter.safetensors")
    assert loaded.weights.digest() == adapter.weights.digest()
    loaded.to_peft(tmp_path / "peft")
    assert learner.import_peft(tmp_path / "peft").weights.digest() == adapter.weights.digest()


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "llama4_text"])
def test_a_configuration_that_asks_for_logits_of_routers_changes_no_answer(
    architecture: str, task: Task, unchanged: Callable[..., Any]
) -> None:
    """Hosts ask for them to train the experts evenly. Their loss fails after a cached prefix, in `generate` too."""
    model = build(architecture)
    expected = Learner.wrap(model, tiny_tokenizer(), prompt_format="standard").answer([task])
    model.config.output_router_logits = True
    with unchanged(model):
        learner = Learner.wrap(model, tiny_tokenizer(), prompt_format="standard")
        adapter = learner.adapt(leave_one_out(task), RECIPE)
        learner.answer([task], adapter)
        assert learner.answer([task]) == expected
    assert model.config.output_router_logits
    assert len(model(IDS).router_logits) == 2


def test_dropout_is_not_exported_with_experts_since_peft_refuses_it(tmp_path: Path) -> None:
    model, recipe = build("mixtral"), Recipe(rank=2, alpha=4.0, dropout=0.1)
    random_weights(model, recipe=recipe).save(tmp_path, recipe)
    assert PeftModel.from_pretrained(model, str(tmp_path)).peft_config["default"].lora_dropout == 0.0


def test_a_damaged_adapter_of_experts_is_refused(tmp_path: Path) -> None:
    model = build("mixtral")
    random_weights(model).save(tmp_path, RECIPE)
    other = build("qwen3_moe")
    with pytest.raises(ModelError, match="weights A and B"):
        Adapter.from_peft(tmp_path, other, "base")
