"""What the package promises, on real models: `make test-real`, with models that `autottt models fetch` downloaded.

`AUTOTTT_REAL_MODELS` names them, or folders or GGUF files. Weights are fp32, so that numbers can be compared closely.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open

from autottt.controller.controller import Controller
from autottt.controller.replay import replay
from autottt.controller.tracing.recorder import TraceRecorder
from autottt.controller.tracing.store import TraceStore
from autottt.policies.policy import FixedPolicy
from autottt.strategies.registry import get_strategy
from autottt.ttt_core.errors import AdaptationError, Cancelled
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.model.catalogue import CATALOGUE, resolve
from autottt.ttt_core.model.gguf_files import GgufFile, converted_folder
from autottt.ttt_core.model.loading import load_model
from autottt.ttt_core.recipes import Recipe, recipes_for_model
from autottt.ttt_core.sources.english import draw_from, pairs_of
from autottt.ttt_core.tasks.augmentation import leave_one_out
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.task import Task

NAMES = os.environ["AUTOTTT_REAL_MODELS"].split()
PUBLISHED = get_strategy("ttt_in_context").default_recipe or Recipe()
TOLERANCE = 1e-3
"""Of log-probabilities, in nats: batches and single rows differ by rounding."""
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def learner(name: str) -> Learner:
    return Learner.load(name, dtype="fp32")


@pytest.fixture(autouse=True)
def clean(learner: Learner) -> None:
    """Answers of one test are not cached for the next."""
    learner.clear()


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    """One task of each of some English families: answers of one and of several tokens."""
    drawn = []
    for family in ("antonym", "capital_city", "number_to_word", "spelled", "swapped_words"):
        (task,) = draw_from(pairs_of(family) or [], 1, 4, 1, 11, family)
        (query, answer), *_ = task.queries
        drawn.append(make_task(task.demonstrations, query, answer=answer, id=family))
    return drawn


def gguf_of(name: str) -> GgufFile:
    path = resolve(name) or Path(name)
    file = GgufFile.of(path)
    if file is None:
        pytest.skip("not a GGUF file")
    return file


def logits(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0].float()
    return output


# --- loading ----------------------------------------------------------------------------------------------------------


def test_the_conversion_holds_the_values_of_the_file(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    file = gguf_of(name)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file.path).tensors}
    with safe_open(converted_folder(file) / "model.safetensors", "pt") as weights:
        for theirs, ours in (
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight"),
            ("blk.7.attn_v.weight", "model.layers.7.self_attn.v_proj.weight"),
        ):
            quantized = tensors[theirs]
            plain = torch.from_numpy(gguf.quants.dequantize(quantized.data, quantized.tensor_type).copy())
            assert torch.equal(weights.get_tensor(ours), plain.to(torch.bfloat16))


def test_a_second_load_reads_the_conversion_and_is_fast(name: str) -> None:
    gguf_of(name)
    load_model(name, dtype="bf16")
    began = time.process_time()
    loaded = load_model(name, dtype="bf16")
    assert time.process_time() - began < 15
    assert loaded.model.dtype == torch.bfloat16
    assert not getattr(loaded.model, "is_quantized", False)


def test_a_saved_model_is_the_same_model(name: str, learner: Learner, tmp_path: Path) -> None:
    learner.loaded.model.save_pretrained(tmp_path)
    learner.loaded.tokenizer.save_pretrained(tmp_path)
    again = Learner.load(tmp_path, dtype="fp32", prompt_format=learner.loaded.format.name)
    assert again.base_hash == learner.base_hash


def test_the_sizes_of_the_catalogue_are_those_of_the_model(name: str, learner: Learner) -> None:
    if name not in CATALOGUE:
        pytest.skip("not in the catalogue")
    assert sum(p.numel() for p in learner.loaded.model.parameters()) == CATALOGUE[name].parameters
    assert (
        learner.loaded.recipes
        == recipes_for_model(CATALOGUE[name].parameters, learner.loaded.model.config.model_type)
        != {}
    )


# --- prompts and answers ----------------------------------------------------------------------------------------------


def test_chat_prompts_have_the_ids_of_the_template(learner: Learner, tasks: list[Task]) -> None:
    tokenizer = learner.loaded.tokenizer
    if not tokenizer.chat_template:
        pytest.skip("the tokenizer has no chat template")
    chat = Learner.wrap(learner.loaded.model, tokenizer, prompt_format="chat")
    for count in range(5):
        task = tasks[1].with_demonstrations(tasks[1].demonstrations[:count])
        messages = [
            {"role": role, "content": str(text)}
            for d in task.demonstrations
            for role, text in (("user", d.input), ("assistant", d.output))
        ]
        messages.append({"role": "user", "content": str(task.query)})
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert chat.window.encode(task).ids == tuple(ids)


def test_a_sequence_begins_as_the_tokenizer_begins_it(learner: Learner, tasks: list[Task]) -> None:
    tokenizer = learner.loaded.tokenizer
    begins = tokenizer("text").input_ids[0] == tokenizer.bos_token_id is not None
    if begins:
        assert learner.window.encode(tasks[0]).ids.count(tokenizer.bos_token_id) == 1


def test_greedy_answers_are_those_of_generate(learner: Learner, tasks: list[Task]) -> None:
    for task in tasks:
        prompt = learner.window.encode(task).ids
        answer = learner.answer([task])[0]
        output = learner.loaded.model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=len(answer.scores.log_probs) + 1, pad_token_id=0,
        )  # fmt: skip
        text = learner.loaded.tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=False)
        assert answer.text.strip()
        assert text.strip().startswith(answer.text.strip())


def test_batched_answers_are_those_given_one_by_one(learner: Learner, tasks: list[Task]) -> None:
    assert learner.loaded.supports_padding
    together = learner.answer(tasks)
    for task, answer in zip(tasks, together, strict=True):
        learner.clear()
        alone = learner.answer([task])[0]
        assert (answer.text, answer.value) == (alone.text, alone.value)
        assert answer.scores.log_probs == pytest.approx(alone.scores.log_probs, abs=TOLERANCE)


def test_scores_are_those_of_a_plain_pass(learner: Learner, tasks: list[Task]) -> None:
    for task, scores in zip(tasks, learner.score(tasks), strict=True):
        prompt = learner.window.encode(task, task.answer)
        expected = logits(learner.loaded.model, prompt.ids).log_softmax(-1)
        for (begin, end), of_answer in zip(prompt.answers, scores, strict=True):
            ids = torch.tensor(prompt.ids[begin:end])
            plain = expected[begin - 1 : end - 1].gather(1, ids[:, None])[:, 0]
            assert of_answer.log_probs == pytest.approx(plain.tolist(), abs=TOLERANCE)


# --- training, PEFT, revert -------------------------------------------------------------------------------------------


def test_training_helps_and_leaves_the_model_unchanged(
    learner: Learner, tasks: list[Task], unchanged: Callable[..., Any]
) -> None:
    recipe = learner.loaded.recipes["ttt_in_context"]
    with unchanged(learner.loaded.model):
        adapters = [learner.adapt(leave_one_out(task), recipe) for task in tasks]
        under = [learner.score([task], adapter)[0][-1].total for task, adapter in zip(tasks, adapters, strict=True)]
        without = [learner.score([task])[0][-1].total for task in tasks]
    assert sum(under) > sum(without) + 1, (under, without)
    losses = [adapter.training.losses for adapter in adapters]
    assert sum(one[-1] for one in losses) < 0.8 * sum(one[0] for one in losses), losses
    proof = learner.verify(full=True)
    assert proof.hash == learner.base_hash


def test_peft_reproduces_an_exported_adapter(learner: Learner, tasks: list[Task], tmp_path: Path) -> None:
    recipe = replace(PUBLISHED, dropout=0.0, max_steps=2, batch_size=2, learning_rate=1e-3)
    trained = learner.adapt(leave_one_out(tasks[0]), recipe)
    learner.export(trained, tmp_path)
    ids = learner.window.encode(tasks[0], tasks[0].answer).ids
    with trained.weights.attached(learner.loaded.model):
        ours = logits(learner.loaded.model, ids)
    base = logits(learner.loaded.model, ids)
    model = load_model(learner.loaded.name, dtype="fp32").model
    theirs = logits(PeftModel.from_pretrained(model, str(tmp_path)).eval(), ids)
    assert torch.allclose(ours, theirs, atol=2e-3, rtol=1e-3)
    assert (ours - base).abs().max() > 10 * (ours - theirs).abs().max()
    imported = learner.import_peft(tmp_path)
    assert all(map(torch.equal, imported.weights.tensors, trained.weights.tensors))


def test_the_first_step_has_the_loss_of_peft(learner: Learner, tasks: list[Task]) -> None:
    """A new adapter changes nothing, so both losses are those of the base model on the answers."""
    (example, *_) = leave_one_out(tasks[1])
    recipe = replace(PUBLISHED, dropout=0.0, max_steps=1, batch_size=1, loss="last")
    training = learner.adapt([example], recipe).training
    prompt = learner.window.encode(example, example.answer)
    begin, end = prompt.answers[-1]
    labels = torch.full((1, len(prompt.ids)), -100)
    labels[0, begin:end] = torch.tensor(prompt.ids[begin:end])
    model = load_model(learner.loaded.name, dtype="fp32").model
    config = LoraConfig(r=64, lora_alpha=64, target_modules=list(recipe.target_modules), task_type="CAUSAL_LM")
    theirs = get_peft_model(model, config).eval()
    with torch.no_grad():
        loss = float(theirs(input_ids=torch.tensor([prompt.ids]), labels=labels).loss)
    assert training is not None
    assert training.losses[0] == pytest.approx(loss, abs=TOLERANCE)


# --- faults -----------------------------------------------------------------------------------------------------------


@contextmanager
def fault_in_pass(model: Any, error: BaseException, passes: int, backward: bool) -> Iterator[None]:
    """Raises an error in the middle of the model in its pass of that number, forward or backward."""
    layers = model.get_submodule("model.layers")
    layer, seen = layers[len(layers) // 2], 0
    forward = type(layer).forward

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == passes:
            raise error

    def faulty(self: Any, *arguments: Any, **settings: Any) -> Any:
        output = forward(self, *arguments, **settings)
        if self is layer and not backward:
            count()
        first = output[0] if isinstance(output, tuple) else output
        if self is layer and backward and first.requires_grad:
            first.register_hook(lambda gradient: count())
        return output

    type(layer).forward = faulty
    try:
        yield
    finally:
        type(layer).forward = forward


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("a fault"), RuntimeError), (KeyboardInterrupt(), KeyboardInterrupt),
        (torch.OutOfMemoryError("out of memory"), AdaptationError), (Cancelled("stop"), Cancelled),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)  # fmt: skip
def test_a_fault_while_training_leaves_the_model_unchanged(
    learner: Learner, tasks: list[Task], error: BaseException, raised: type[BaseException], backward: bool
) -> None:
    before = learner.answer([tasks[0]])[0]
    recipe = learner.loaded.recipes["ttt_in_context"]
    modes = [(module.training, len(module._forward_hooks)) for module in learner.loaded.model.modules()]
    every_pass = isinstance(error, torch.OutOfMemoryError)
    with (
        fault_in_pass(learner.loaded.model, error, 1 if every_pass else 2, backward),
        pytest.raises((raised, type(error))),
    ):
        learner.adapt(leave_one_out(tasks[1]), replace(recipe, batch_size=1))
    assert [(module.training, len(module._forward_hooks)) for module in learner.loaded.model.modules()] == modes
    assert all(p.grad is None and not p.requires_grad for p in learner.loaded.model.parameters())
    assert learner.verify(full=True).hash == learner.base_hash
    learner.clear()
    after = learner.answer([tasks[0]])[0]
    assert (after.text, after.scores.log_probs) == (before.text, before.scores.log_probs)


def test_a_fault_while_answering_leaves_the_model_unchanged(learner: Learner, tasks: list[Task]) -> None:
    before = learner.answer([tasks[0]])[0]
    learner.clear()
    with fault_in_pass(learner.loaded.model, RuntimeError("a fault"), 1, False), pytest.raises(RuntimeError):
        learner.answer([tasks[0]])
    assert learner.verify(full=True).hash == learner.base_hash
    assert learner.answer([tasks[0]])[0].text == before.text


# --- the controller ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["in_context", "ttt_in_context", "ttt_direct", "ttt_augmented", "ttt_crossfit"])
def test_every_strategy_answers_within_two_minutes(learner: Learner, tasks: list[Task], strategy: str) -> None:
    assert get_strategy(strategy).name == strategy
    result = Controller(learner, FixedPolicy(strategy)).solve(tasks[1])
    assert result.status == "answered"
    assert result.proof is not None
    assert result.cost.seconds < 120
    assert json.dumps(result.to_plain())


@pytest.mark.parametrize("strategy", ["in_context", "zero_shot", "in_context_vote", "ttt_in_context", "ttt_crossfit"])
def test_a_stored_run_is_replayed_identically(
    learner: Learner, tasks: list[Task], tmp_path: Path, strategy: str
) -> None:
    store = TraceStore(tmp_path / "traces.sqlite")
    Controller(learner, FixedPolicy(strategy), trace=TraceRecorder([store])).solve(tasks[0], seed=5)
    learner.clear()
    repeated = replay(Controller(learner), store.get("last"))
    assert [str(difference) for difference in repeated.differences] == []


def test_a_stored_run_that_a_deadline_stopped_is_replayed_identically(
    learner: Learner, tasks: list[Task], tmp_path: Path
) -> None:
    store = TraceStore(tmp_path / "traces.sqlite")
    endless, before = replace(PUBLISHED, max_steps=100_000, early_stop_loss=0.0), learner.loaded
    learner.loaded = replace(learner.loaded, recipes={"ttt_in_context": endless})
    controller = Controller(learner, FixedPolicy("ttt_in_context"), trace=TraceRecorder([store]))
    in_context = controller.solve(tasks[0], strategy="in_context").cost.seconds
    learner.clear()
    try:
        result = controller.solve(tasks[0], budget=30 * in_context + 20)
        learner.clear()
        assert result.attempts[0].training_record is not None
        assert result.attempts[0].training_record.stop_reason == "deadline"
        assert [str(d) for d in replay(Controller(learner), store.get("last")).differences] == []
    finally:
        learner.loaded = before
