"""Adapters as values: their files, PEFT's format, and training that starts from one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from autottt.ttt_core.errors import AdaptationError, ModelError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora.adapter import Adapter
from autottt.ttt_core.lora.weights import LoraWeights
from autottt.ttt_core.model.loading import wrap_model
from autottt.ttt_core.tasks.augmentation import leave_one_out
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import VOCABULARY, tiny_model, tiny_tokenizer
from tests.ttt_core.lora.adapters import QUICK, adapter, same


@pytest.mark.parametrize("count", [1, 3])
def test_save_and_load_preserve_an_adapter(count: int, tmp_path: Path) -> None:
    one = adapter(count=count)
    one.save(tmp_path / "one.safetensors")
    loaded = Adapter.load(tmp_path / "one.safetensors")
    assert same(loaded, one)
    assert loaded.weights.scaling == 0.5
    assert [f.name for f in tmp_path.iterdir()] == ["one.safetensors"]


def test_an_adapter_of_another_base_model_is_refused_after_loading(task: Task, tmp_path: Path) -> None:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer())
    adapter(base="another").save(tmp_path / "a.safetensors")
    with pytest.raises(AdaptationError, match="another base model"):
        learner.answer([task], Adapter.load(tmp_path / "a.safetensors"))


EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def loss_under(learner: Learner, examples: list[Task], adapter: Adapter) -> float:
    scores = [s for of_prompt in learner.score(examples, adapter) for s in of_prompt[1:]]
    return -sum(s.total for s in scores) / sum(len(s.log_probs) for s in scores)


def test_training_can_start_from_another_adapter_without_changing_it(task: Task) -> None:
    learner = Learner(wrap_model(tiny_model("llama"), tiny_tokenizer()))
    examples = [task.leave_out(i) for i in range(len(task.demonstrations))]
    first = learner.adapt(examples, QUICK)
    kept = first.weights.copied()
    assert first.kind == task.kind
    second = learner.adapt(examples, QUICK, start=first)
    assert second.training.losses[0] == pytest.approx(loss_under(learner, examples, first), abs=0.5)
    assert all(map(torch.equal, kept.tensors, first.weights.tensors))
    assert not all(map(torch.equal, second.weights.tensors, first.weights.tensors))
    with pytest.raises(AdaptationError, match="cannot start from 1 of rank 2"):
        learner.adapt(examples, replace(QUICK, rank=3), start=first)
    with pytest.raises(AdaptationError, match="cannot start from"):
        learner.adapt(examples, replace(QUICK, alpha=1.0), start=first)
    with pytest.raises(AdaptationError, match="another base model"):
        learner.adapt(examples, QUICK, start=replace(first, base_hash="other"))


def test_training_moves_the_adapter_that_it_starts_from_to_the_device_of_the_model(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner(wrap_model(tiny_model("llama"), tiny_tokenizer()))
    examples = leave_one_out(task)
    first = learner.adapt(examples, QUICK)
    devices: list[object] = []

    def to(self: LoraWeights, device: torch.device | str) -> LoraWeights:
        devices.append(device)
        return self

    monkeypatch.setattr(LoraWeights, "to", to)
    learner.adapt(examples, QUICK, start=first)
    learner.trainer.cross_validate([examples[:1]], [examples[1:]], QUICK, start=first)
    assert devices == [learner.loaded.model.device] * 2


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        pytest.param({"target_modules": ("v_proj", "q_proj")}, ("q_proj", "v_proj"), id="another order"),
        pytest.param({"target_modules": ("v_proj", "q_proj", "v_proj")}, ("q_proj", "v_proj"), id="a name twice"),
        pytest.param({"target_modules": EVERY}, ("all-linear",), id="every linear layer by its name"),
        pytest.param({"target_modules": ("v_proj",), "layers_to_transform": (1,)}, None, id="a layer"),
    ],
)
def test_training_can_start_from_a_folder_however_it_and_the_recipe_name_the_modules(
    settings: dict[str, Any], names: tuple[str, ...] | None, task: Task, tmp_path: Path
) -> None:
    learner = Learner(wrap_model(tiny_model("llama"), tiny_tokenizer()))
    examples, recipe = leave_one_out(task), replace(QUICK, **settings)
    first = learner.adapt(examples, recipe)
    first.to_peft(tmp_path, "tiny")
    imported = learner.import_peft(tmp_path)
    assert imported.recipe.target_modules == names or names is None
    second = learner.adapt(examples, recipe, start=imported)
    assert second.weights.pairs.keys() == first.weights.pairs.keys()
    with pytest.raises(AdaptationError, match="on v_proj of the layers 0 cannot start from"):
        learner.adapt(examples, replace(recipe, target_modules=("v_proj",), layers_to_transform=(0,)), start=imported)


def test_recipes_that_name_the_same_modules_in_another_order_are_trained_in_one_batch(task: Task) -> None:
    learner = Learner(wrap_model(tiny_model("llama"), tiny_tokenizer()))
    recipes = [replace(QUICK, target_modules=names) for names in (("q_proj", "v_proj"), ("v_proj", "q_proj"))]
    one, other = learner.trainer.adapt_many([leave_one_out(task)] * 2, recipes, [0, 0])
    assert one.weights.pairs.keys() == other.weights.pairs.keys()
    assert one.training.losses == pytest.approx(other.training.losses, abs=1e-5)


PEFT = [
    pytest.mark.usefixtures("one_thread"),
    # PEFT 0.21 with transformers 5.23 warns so for every model.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`:UserWarning"),
]


def with_peft(test: Any) -> Any:
    for mark in PEFT:
        test = mark(test)
    return test


def tiny_learner(architecture: str = "llama") -> Learner:
    return Learner.wrap(tiny_model(architecture), tiny_tokenizer())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(input_ids=torch.arange(60).view(4, 15)).logits
    return output


def from_peft(folder: Path, architecture: str = "llama", **settings: Any) -> Any:
    """A model with an adapter of random weights that PEFT created and saved."""
    torch.manual_seed(3)
    config = {"r": 3, "lora_alpha": 7, "init_lora_weights": False, "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(tiny_model(architecture), LoraConfig(**config)).eval()
    model.save_pretrained(str(folder))
    return model


@with_peft
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_peft_reproduces_an_exported_adapter(architecture: str, task: Task, tmp_path: Path) -> None:
    learner = tiny_learner(architecture)
    trained = learner.adapt(leave_one_out(task), replace(QUICK, target_modules=("all-linear",), learning_rate=1e-2))
    learner.export(trained, tmp_path / "new" / "folder")
    theirs = PeftModel.from_pretrained(tiny_model(architecture), str(tmp_path / "new" / "folder")).eval()
    with trained.weights.attached(learner.loaded.model):
        ours = logits(learner.loaded.model)
    assert torch.allclose(ours, logits(theirs), atol=1e-4)
    assert not torch.allclose(ours, logits(learner.loaded.model), atol=1e-2)
    imported = learner.import_peft(tmp_path / "new" / "folder")
    assert all(map(torch.equal, imported.weights.tensors, trained.weights.tensors))
    assert learner.answer([task], imported) == learner.answer([task], trained)
    again = learner.adapt(leave_one_out(task), trained.recipe, start=imported)
    assert again.training.steps == QUICK.max_steps, "training with the same recipe can start from it"


@with_peft
def test_an_exported_adapter_names_its_modules_in_order(task: Task, tmp_path: Path) -> None:
    learner = tiny_learner("llama")
    recipe = replace(QUICK, target_modules=("up_proj", "q_proj", "down_proj", "v_proj", "o_proj", "gate_proj"))
    learner.export(learner.adapt(leave_one_out(task), recipe), tmp_path)
    named = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert len(named) > 6
    assert named == sorted(named), "PEFT alone writes them in the order of their hashes, another in each process"


@with_peft
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]], ids=str)
def test_the_learner_reproduces_an_adapter_that_peft_saved(targets: Any, task: Task, tmp_path: Path) -> None:
    theirs = from_peft(tmp_path / "theirs", target_modules=targets, lora_dropout=0.1)
    learner = tiny_learner()
    imported = learner.import_peft(tmp_path / "theirs")
    recipe = imported.recipe
    assert (recipe.rank, recipe.alpha, recipe.dropout) == (3, 7.0, 0.1)
    assert recipe.target_modules == (("all-linear",) if targets == "all-linear" else ("down_proj", "q_proj"))
    merged = Learner.wrap(theirs.merge_and_unload(), tiny_tokenizer())
    assert [a.text for a in learner.answer([task], imported)] == [a.text for a in merged.answer([task])]
    assert learner.score([task], imported)[0][-1].total == pytest.approx(merged.score([task])[0][-1].total, abs=1e-3)
    assert learner.score([task])[0][-1].total != pytest.approx(merged.score([task])[0][-1].total, abs=1e-2)
    learner.export(imported, tmp_path / "ours")
    assert same(learner.import_peft(tmp_path / "ours"), imported)


@with_peft
def test_a_peft_adapter_for_another_architecture_is_refused(tmp_path: Path) -> None:
    from_peft(tmp_path / "gpt2", "gpt2", target_modules="all-linear")
    with pytest.raises(
        ModelError, match=r"gpt2: adapts 'transformer.h.0.attn.c_attn', .* not a linear layer of this Llama"
    ):
        tiny_learner().import_peft(tmp_path / "gpt2")
    head = {"lm_head": (torch.ones(1, 2, 32), torch.ones(1, VOCABULARY, 2))}
    LoraWeights(head, 2.0).save(tmp_path / "head", QUICK)
    with pytest.raises(
        ModelError, match=r"adapts 'lm_head', .* below its output head; .* 'model.layers.0.self_attn.q_proj'"
    ):
        tiny_learner().import_peft(tmp_path / "head")
    from_peft(tmp_path / "other", "qwen3", target_modules=["k_proj", "v_proj", "q_proj"])
    file = tmp_path / "other" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "r": 4}))
    with pytest.raises(
        ModelError, match=r"at rank 4, expected weights A and B of \(\(4, 32\), .*; received \(\(3, 32\)"
    ):
        tiny_learner().import_peft(tmp_path / "other")


@with_peft
@pytest.mark.parametrize("targets", [["q_proj"], r".*\.0\..*_proj"])
def test_weights_that_the_configuration_does_not_name_are_refused(targets: str | list[str], tmp_path: Path) -> None:
    from_peft(tmp_path, target_modules=["q_proj", "v_proj"])
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "target_modules": targets}))
    with pytest.raises(ModelError, match=r"has weights of 'model\.layers\..*PEFT would ignore them"):
        tiny_learner().import_peft(tmp_path)


@with_peft
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter_config.json", "{"), ("adapter_config.json", "[]"), ("adapter_config.json", '{"peft_type": "NONE"}'),
        ("adapter_config.json", '{"peft_type": "LORA", "r": 0}'), ("adapter_model.safetensors", "not tensors"),
    ],
)  # fmt: skip
def test_a_peft_folder_that_cannot_be_read_is_refused(name: str, content: str, tmp_path: Path) -> None:
    from_peft(tmp_path, target_modules=["q_proj"])
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match="cannot be read as a PEFT adapter"):
        tiny_learner().import_peft(tmp_path)
    with pytest.raises(ModelError, match=r"nothing: expected a folder with adapter_config\.json"):
        tiny_learner().import_peft(tmp_path / "nothing")


def test_adapters_that_peft_cannot_represent_are_not_exported(tmp_path: Path) -> None:
    learner = tiny_learner()
    several = adapter(count=3, base=learner.base_hash)
    with pytest.raises(ModelError, match=r"holds one adapter; this one is 3 adapters of a cross-validation"):
        learner.export(several, tmp_path)
    with pytest.raises(AdaptationError, match="another base model"):
        learner.export(adapter(), tmp_path)
    assert not list(tmp_path.iterdir())
    learner.export(replace(several, weights=several.weights.select(0)), tmp_path)
