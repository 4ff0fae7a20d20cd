"""Our LoRA is PEFT's: the same weights give the same logits, and each reads the other's files."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, PreTrainedModel

from autottt.ttt_core.errors import ModelError
from autottt.ttt_core.lora.dropout import Dropout
from autottt.ttt_core.lora.modules import target_modules
from autottt.ttt_core.lora.weights import LoraWeights
from autottt.ttt_core.model.loading import check_no_adapters
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.testing import ARCHITECTURES, VOCABULARY, tiny_model

RECIPE = Recipe(rank=4, alpha=10.0, dropout=0.1)
IDS = torch.arange(60).remainder(VOCABULARY).view(4, 15)
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # What PEFT 0.21 says beside transformers 5.23, whichever model it wraps.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`:UserWarning"),
]


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids).logits
    return logits


def random_weights(model: PreTrainedModel, seeds: Sequence[int] = (0,)) -> LoraWeights:
    """Adapters whose up-projections are not zero."""
    weights = LoraWeights.initial(model, RECIPE, seeds)
    for name, (_, up) in weights.pairs.items():
        for row, seed in zip(up, seeds, strict=True):
            row.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(hash((seed, len(name)))))
    return weights


@every_architecture
def test_peft_reads_what_we_write_and_gives_the_same_logits(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    weights = random_weights(model)
    weights.save(tmp_path, RECIPE, base="here")
    theirs = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path)).eval()
    with weights.attached(model):
        ours = logits(model)
    assert torch.allclose(ours, logits(theirs), atol=1e-4)
    assert not torch.allclose(ours, logits(model), atol=0.1)
    assert theirs.peft_config["default"].base_model_name_or_path == "here"


@every_architecture
def test_in_bf16_we_are_as_near_to_peft_as_it_is_to_itself_in_fp32(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    weights = random_weights(model)
    weights.save(tmp_path, RECIPE)
    exact = logits(PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path)).eval())
    narrow = copy.deepcopy(model).to(torch.bfloat16)
    theirs = logits(PeftModel.from_pretrained(copy.deepcopy(narrow), str(tmp_path)).eval())
    with weights.attached(narrow):
        ours = logits(narrow)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    rounding = (theirs - exact).abs().mean()
    assert (ours - theirs).abs().mean() < 2 * rounding
    assert (logits(narrow) - theirs).abs().mean() > 5 * rounding


@every_architecture
def test_we_read_what_peft_writes_and_give_the_same_logits(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    theirs = get_peft_model(copy.deepcopy(model), config).eval()
    theirs.save_pretrained(str(tmp_path))
    weights = LoraWeights.load(tmp_path)
    assert weights.pairs.keys() == target_modules(model, ("all-linear",)).keys()
    with weights.attached(model):
        ours = logits(model)
    assert torch.allclose(ours, logits(theirs), atol=1e-4)
    assert not torch.allclose(ours, logits(model), atol=0.1)


@every_architecture
def test_adapters_come_back_from_disk_as_they_were(architecture: str, tmp_path: Path) -> None:
    weights = random_weights(tiny_model(architecture))
    weights.save(tmp_path, RECIPE)
    loaded = LoraWeights.load(tmp_path)
    assert loaded.scaling == weights.scaling == 2.5
    for name, pair in weights.pairs.items():
        assert all(map(torch.equal, pair, loaded.pairs[name]))


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True}, {"use_rslora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 2}}, {"alpha_pattern": {"q_proj": 2}}, {"target_modules": ["embed_tokens"]},
        {"init_lora_weights": "olora"},
    ],
    ids=lambda s: next(iter(s)),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
def test_more_than_plain_lora_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **settings})
    get_peft_model(tiny_model("llama"), config).save_pretrained(str(tmp_path))
    with pytest.raises(ModelError, match=re.escape(f"{tmp_path}: only plain LoRA")):
        LoraWeights.load(tmp_path)


def test_a_folder_without_an_adapter_or_with_pickled_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"adapter_config.json and adapter_model.safetensors"):
        LoraWeights.load(tmp_path / "nothing")
    random_weights(tiny_model("llama")).save(tmp_path, RECIPE)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_config.json and adapter_model.safetensors"):
        LoraWeights.load(tmp_path)


@every_architecture
def test_every_linear_layer_but_the_head_is_a_target(architecture: str) -> None:
    model = tiny_model(architecture)
    modules = target_modules(model, ("all-linear",))
    per_layer = {"gpt2": 4, "gpt_neox": 4, "phi": 6}.get(architecture, 7)
    assert len(modules) == 2 * per_layer
    assert model.get_output_embeddings() not in modules.values()


def test_targets_are_named_by_the_last_part_of_their_path() -> None:
    model = tiny_model("llama")
    modules = target_modules(model, ("q_proj", "down_proj"))
    assert sorted(modules) == sorted(
        f"model.layers.{i}.{n}" for i in (0, 1) for n in ("self_attn.q_proj", "mlp.down_proj")
    )
    with pytest.raises(ModelError, match="no linear layers"):
        target_modules(_Headless(), ("all-linear",))  # type: ignore[arg-type]


def test_names_of_which_a_model_has_none_mean_every_layer_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_model("gpt2")
    assert not (target_modules(model, ("all-linear",)).keys() ^ target_modules(model, ("no_such",)).keys())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "no_such" in record.getMessage()


def test_a_name_that_matches_no_module_is_refused_also_with_one_that_does() -> None:
    expected = "targets ['v_porj'] name no linear layer of LlamaForCausalLM, which has down_proj, gate_proj, k_proj, "
    with pytest.raises(ModelError, match=re.escape(expected)):
        target_modules(tiny_model("llama"), ("q_proj", "v_porj"))


def test_a_model_with_adapters_of_peft_is_refused() -> None:
    model = tiny_model("llama")
    check_no_adapters(model)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for carrier in (wrapped, model):
        with pytest.raises(ModelError, match=r"in 2 layers, '.*layers.0.self_attn.q_proj' .*merge_and_unload\(\)"):
            check_no_adapters(carrier)
    check_no_adapters(wrapped.merge_and_unload())


class _Headless(torch.nn.Module):
    config = LlamaConfig()

    def get_output_embeddings(self) -> None:
        return None


def test_initial_weights_depend_only_on_the_seed_of_the_adapter() -> None:
    model = tiny_model("llama")
    both, alone, again = (LoraWeights.initial(model, RECIPE, s) for s in ((1, 2), (2,), (2,)))
    for name, (down, up) in alone.pairs.items():
        assert torch.equal(down, again.pairs[name][0])
        assert torch.equal(down[0], both.pairs[name][0][1])
        assert not torch.equal(down[0], both.pairs[name][0][0])
        assert not up.any()
        assert down.abs().max() <= down.shape[-1] ** -0.5, "Kaiming-uniform with a = sqrt(5)"
    assert both.adapter_count == 2
    assert both.nbytes == 2 * alone.nbytes == 2 * sum(t.numel() * 4 for t in alone.tensors)


@every_architecture
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_groups_of_rows_get_their_own_adapters(architecture: str, dtype: torch.dtype) -> None:
    model = tiny_model(architecture, dtype=dtype)
    weights = random_weights(model, (1, 2))
    with weights.attached(model):
        together = logits(model)
    for index, rows in enumerate(IDS.split(2)):
        one = weights.select(index)
        assert one.adapter_count == 1
        with one.attached(model):
            alone = logits(model, rows)
        assert torch.allclose(together[2 * index : 2 * index + 2], alone, atol=1e-4 if dtype == torch.float32 else 0.5)
    assert not torch.allclose(together, logits(model), atol=0.6)


def test_one_adapter_is_saved_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="received 2"):
        random_weights(tiny_model("llama"), (1, 2)).save(tmp_path, RECIPE)


def test_an_update_is_zero_exactly_where_it_changes_no_weight() -> None:
    zero, one = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    first_rank, second_rank = one.clone(), one.clone()
    first_rank[:, 1], second_rank[:, 0] = 0, 0
    projections = [zero, one, first_rank, second_rank]
    for down in projections:
        for up in [p.mT for p in projections]:
            for scaling in (0.0, 2.0):
                pairs = {"other": (one, zero.mT), "layer": (down, up)}
                expected = not bool((scaling * up @ down).any())
                assert LoraWeights(pairs, scaling).zero_updates() == [expected]


def test_zero_updates_are_those_of_each_adapter() -> None:
    model = tiny_model("llama")
    weights = LoraWeights.stacked([random_weights(model), LoraWeights.initial(model, RECIPE, [0])])
    assert weights.zero_updates() == [False, True]


def test_hooks_are_gone_after_an_adapter_that_does_not_fit() -> None:
    model = tiny_model("llama")
    weights = random_weights(model)
    odd = replace(weights, pairs={**weights.pairs, "no.such.layer": next(iter(weights.pairs.values()))})
    with pytest.raises(ModelError, match=r"no layer 'no.such.layer'"), odd.attached(model):
        pass
    assert not any(m._forward_hooks for m in model.modules())


def test_dropout_acts_in_training_only() -> None:
    model = tiny_model("llama").requires_grad_(False)
    weights = random_weights(model)
    plain = logits(model)
    with weights.attached(model):
        whole = logits(model)
    seen = []
    for number in (1, 1, 2):
        with weights.attached(model, Dropout(0.5, torch.tensor([number] * len(IDS)))):
            assert torch.equal(logits(model), whole)
            with torch.enable_grad():
                seen.append(model(input_ids=IDS).logits)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert not torch.equal(whole, plain)
