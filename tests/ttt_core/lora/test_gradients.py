"""Gradients of many adapters: the same however the passes of a step are divided."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedModel

from autottt.ttt_core.errors import AdaptationError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora import gradients
from autottt.ttt_core.lora.gradients import GradientEngine, MicroBatch, shard_count
from autottt.ttt_core.lora.optimizer import BatchedAdamW
from autottt.ttt_core.lora.training import train
from autottt.ttt_core.lora.weights import LoraWeights
from autottt.ttt_core.model import memory
from autottt.ttt_core.model.encoding import Encoded, encode
from autottt.ttt_core.model.loading import LoadedModel, wrap_model
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.augmentation import leave_one_out, leave_one_out_orders
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import ARCHITECTURES, CONTEXT, VOCABULARY, WINDOW, tiny_model, tiny_tokenizer

PUBLISHED_MODULES = ("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj", "o_proj")

RECIPE = Recipe(rank=4, alpha=8.0, dropout=0.0, learning_rate=1e-2, max_steps=3, batch_size=4)


@pytest.fixture
def threads() -> Iterator[None]:
    """What PyTorch uses is the same afterwards."""
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


def setting(architecture: str, dtype: torch.dtype, task: Task) -> tuple[LoadedModel, list[list[Encoded]]]:
    """A model, and rows of three adapters of unequal lengths."""
    loaded = wrap_model(tiny_model(architecture, 0, dtype).requires_grad_(False), tiny_tokenizer())
    long = task.with_demonstrations((*task.demonstrations, *task.demonstrations[:1]))
    tasks = [task, long, task.with_demonstrations(task.demonstrations[:2])]
    return loaded, [[encode(loaded, x, x.answer) for x in leave_one_out_orders(t, 4, random.Random(0))] for t in tasks]


def seeing_model() -> PreTrainedModel:
    """A tiny Gemma 3 as it comes from four billion parameters upwards: a text decoder beside a vision tower."""
    text = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
        "sliding_window": WINDOW, "initializer_range": 0.25,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision)).eval()


def losses_and_gradient(
    loaded: LoadedModel, rows: list[list[Encoded]], workers: int = 1, stacked: bool = False, first: int = 0
) -> Any:
    """Losses and gradients [A, P] of one step; the seeds are `first` and those after it."""
    seeds = list(range(first, first + len(rows)))
    with GradientEngine(loaded, [RECIPE] * len(rows), workers) as engine:
        engine._on_cpu = not stacked  # as an accelerator would divide it
        optimizer = BatchedAdamW(
            LoraWeights.initial(loaded.model, RECIPE, seeds), [RECIPE] * len(rows), engine.shards(len(rows))
        )
        for _, up in optimizer.weights().pairs.values():
            for mine, seed in zip(up, seeds, strict=True):
                mine.copy_(0.05 * torch.randn(mine.shape, generator=torch.Generator().manual_seed(seed)))
        losses = engine.losses(optimizer, rows)
        return losses, optimizer.gradients.sum(0)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_batched_and_sequential_passes_equal_those_of_single_adapters(
    architecture: str, dtype: torch.dtype, task: Task
) -> None:
    loaded, rows = setting(architecture, dtype, task)
    exact = dtype == torch.float32
    alone = [losses_and_gradient(loaded, [mine], first=seed) for seed, mine in enumerate(rows)]
    for workers, stacked in ((1, False), (2, False), (3, False), (1, True)) if exact else ((2, False), (1, True)):
        losses, gradient = losses_and_gradient(loaded, rows, workers, stacked)
        assert losses == pytest.approx([one[0][0] for one in alone], rel=1e-5 if exact else 3e-2)
        for mine, (_, expected) in zip(gradient, alone, strict=True):
            assert float((mine - expected[0]).norm() / expected[0].norm()) < (1e-4 if exact else 3e-2)


@pytest.mark.usefixtures("threads")
def test_training_gives_the_same_adapters_for_every_number_of_threads(task: Task) -> None:
    loaded, rows = setting("llama", torch.float32, task)
    one, two = (train(loaded, rows, RECIPE, [0, 1, 2], workers=w) for w in (1, 2))
    for a, b in zip(one[0].tensors, two[0].tensors, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)
    again = train(loaded, rows, RECIPE, [0, 1, 2], workers=2)
    assert all(map(torch.equal, two[0].tensors, again[0].tensors)), "threads do not decide the order of sums"


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a fault")], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("where", ["in a thread", "while waiting"])
def test_an_error_is_raised_and_leaves_nothing_running(
    where: str, error: BaseException, task: Task, monkeypatch: pytest.MonkeyPatch, unchanged: Any
) -> None:
    loaded, rows = setting("llama", torch.float32, task)
    real, calls, running = gradients.forward, [], [0]

    def fail(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3 and where == "in a thread":
            raise error
        running[0] += 1
        try:
            return real(*args)
        finally:
            running[0] -= 1

    def waiting(self: Any, work: Any, jobs: Any) -> Any:
        for job in jobs:
            self.submit(work, job)
        raise error

    monkeypatch.setattr(gradients, "forward", fail)
    if where == "while waiting":
        monkeypatch.setattr(ThreadPoolExecutor, "map", waiting)
    threads = threading.active_count()
    with unchanged(loaded.model), pytest.raises(type(error)):
        train(loaded, rows, RECIPE, [0, 1, 2], workers=2)
    assert running == [0]
    assert threading.active_count() == threads
    assert len(calls) < 3 * 3 * 2


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("fits", [1, 2, 3])
def test_passes_that_do_not_fit_in_memory_are_halved_until_they_fit(
    stacked: bool, fits: int, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, rows = setting("llama", torch.float32, task)
    losses, gradient = losses_and_gradient(loaded, rows, stacked=stacked)
    real: Callable[..., Any] = gradients._loss_batch
    sizes: list[int] = []

    def narrow(model: LoadedModel, mine: list[Encoded], loss: Any) -> Any:
        if len(mine) > fits:
            raise torch.OutOfMemoryError("too much")
        sizes.append(len(mine))
        return real(model, mine, loss)

    monkeypatch.setattr(gradients, "_loss_batch", narrow)
    halved = losses_and_gradient(loaded, rows, stacked=stacked)
    assert halved[0] == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(halved[1], gradient, atol=1e-6, rtol=1e-4)
    assert max(sizes) <= fits
    assert sum(sizes) == 12, "the first call has measured what a row keeps"


def test_gradients_are_added_once_when_memory_runs_out_in_the_backward_pass(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, rows = setting("llama", torch.float32, task)
    losses, gradient = losses_and_gradient(loaded, rows)
    real, calls = torch.autograd.grad, []

    def grad(*args: Any, **options: Any) -> Any:
        done = real(*args, **options)
        calls.append(1)
        if len(calls) in (2, 4):  # a whole pass, and the second half of it
            raise torch.OutOfMemoryError("too late")
        return done

    monkeypatch.setattr(torch.autograd, "grad", grad)
    again = losses_and_gradient(loaded, rows)
    assert again[0] == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(again[1], gradient, atol=1e-6, rtol=1e-4)


def test_passes_are_made_to_fit_a_bound_on_memory(task: Task) -> None:
    loaded, rows = setting("llama", torch.float32, task)
    longest = [max(len(r.ids) for r in mine) for mine in rows]

    def divided(tokens: float, on_cpu: bool = False) -> list[tuple[int, int, int, int]]:
        engine = GradientEngine(loaded, [RECIPE] * 3, 1, memory=round(100 * tokens))
        engine._on_cpu, engine.token_bytes = on_cpu, 100.0
        return [
            (p.first_adapter, p.end_adapter, p.first_row, p.end_row)
            for job in engine._micro_batches(engine._step_batch(rows))
            for p in job
        ]

    assert divided(10**6) == [(0, 3, 0, 4)]
    assert divided(4 * 2 * max(longest[:2])) == [(0, 2, 0, 4), (2, 3, 0, 4)]
    assert divided(1) == divided(1, on_cpu=True) == [(a, a + 1, r, r + 1) for a in range(3) for r in range(4)]
    halves = divided(2 * max(longest[:2]), on_cpu=True)
    assert halves[:4] == [(a, a + 1, r, r + 2) for a in (0, 1) for r in (0, 2)]
    assert divided(10**6, on_cpu=True) == [(a, a + 1, 0, 4) for a in range(3)]


def test_no_two_threads_add_to_the_same_gradients(task: Task) -> None:
    loaded, rows = setting("llama", torch.float32, task)
    engine = GradientEngine(loaded, [RECIPE] * 3, 2, memory=100)
    engine.token_bytes = 100.0
    jobs = engine._micro_batches(engine._step_batch(rows))
    assert any(len(job) > 1 for job in jobs)
    places = [{(p.first_adapter, p.end_adapter, p.shard) for p in job} for job in jobs]
    assert all(len(place) == 1 for place in places)
    assert len(set.union(*places)) == len(jobs)


@pytest.mark.parametrize("workers", [1, 2])
def test_small_memory_changes_nothing_but_the_passes(workers: int, task: Task) -> None:
    loaded, rows = setting("llama", torch.float32, task)
    free = train(loaded, rows, RECIPE, [0, 1, 2], workers=workers)[0].tensors
    tight = train(loaded, rows, RECIPE, [0, 1, 2], workers=workers, memory=1)[0].tensors
    for a, b in zip(free, tight, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_memory_of_activations_is_measured_before_the_first_pass(architecture: str, task: Task) -> None:
    """Predicted from one row, and counted in the pass itself."""
    loaded, rows = setting(architecture, torch.float32, task)
    kept: dict[int, int] = {}
    own = {t.untyped_storage().data_ptr() for t in [*loaded.model.parameters(), *loaded.model.buffers()]}
    with GradientEngine(loaded, [RECIPE], 1) as engine:
        optimizer = BatchedAdamW(LoraWeights.initial(loaded.model, RECIPE, [0]), [RECIPE], 1)
        engine.measure_memory(optimizer, max(rows[0], key=lambda r: len(r.ids)))
        assert engine.token_bytes
        own.add(optimizer.values.untyped_storage().data_ptr())

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            engine.losses(optimizer, rows[:1])
        tokens = 4 * max(len(r.ids) for r in rows[0])
        assert 0.7 < engine.token_bytes * tokens / sum(kept.values()) < 1.5


def test_a_model_is_measured_once_for_rows_of_about_the_same_length(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, rows = setting("llama", torch.float32, task)
    measured: list[int] = []
    real = GradientEngine._activation_bytes

    def counted(engine: GradientEngine, loaded: LoadedModel, optimizer: BatchedAdamW, row: Encoded) -> Any:
        measured.append(len(row.ids))
        return real(engine, loaded, optimizer, row)

    monkeypatch.setattr(GradientEngine, "_activation_bytes", counted)
    row = rows[0][0]
    shorter, longer = replace(row, ids=row.ids[1:]), replace(row, ids=(*row.ids[:1], *row.ids))
    twice = replace(row, ids=(*row.ids, *row.ids))
    other = replace(RECIPE, rank=RECIPE.rank + 1)
    token_bytes = []
    for recipe, one in [
        (RECIPE, row),
        (RECIPE, row),
        (RECIPE, shorter),
        (RECIPE, longer),
        (RECIPE, twice),
        (other, row),
    ]:
        with GradientEngine(loaded, [recipe], 1) as engine:
            optimizer = BatchedAdamW(LoraWeights.initial(loaded.model, recipe, [0]), [recipe], 1)
            engine.measure_memory(optimizer, one)
            token_bytes.append(engine.token_bytes)
    assert measured == [len(row.ids), len(twice.ids), len(row.ids)]
    assert token_bytes[0] == token_bytes[1] == token_bytes[2]
    assert token_bytes[3] == pytest.approx(token_bytes[0] * len(longer.ids) / len(row.ids))


@given(st.integers(1, 64), st.integers(1, 16), st.integers(1, 16))
def test_shards_leave_no_worker_idle_where_rows_suffice(adapters: int, batch: int, workers: int) -> None:
    parts = shard_count(adapters, batch, workers)
    assert 1 <= parts <= batch
    if adapters >= 4 * workers:
        assert parts == 1
    elif batch >= workers:
        assert adapters * parts % workers == 0


def test_a_pass_of_one_row_has_no_halves() -> None:
    assert MicroBatch(2, 3, 1, 2).halves() is None
    assert MicroBatch(0, 3, 0, 2).halves() == (MicroBatch(0, 1, 0, 2), MicroBatch(1, 3, 0, 2))
    assert MicroBatch(0, 1, 0, 5, 1).halves() == (MicroBatch(0, 1, 0, 2, 1), MicroBatch(0, 1, 2, 5, 1))


def test_remaining_adapters_are_trained_as_without_those_that_stopped(task: Task) -> None:
    loaded, rows = setting("llama", torch.float32, task)
    recipe = replace(RECIPE, max_steps=4)
    whole, _ = train(loaded, [rows[0], rows[2]], recipe, [0, 2])
    with GradientEngine(loaded, [recipe] * 3, 1) as engine:
        optimizer = BatchedAdamW(LoraWeights.initial(loaded.model, recipe, [0, 1, 2]), [recipe] * 3, 1)
        for step in range(4):
            mine = rows if step < 2 else [rows[0], rows[2]]
            if step == 2:
                optimizer.keep_adapters([0, 2], 1)
            engine.losses(optimizer, mine)
            optimizer.step([1e-2] * len(optimizer.values))
        kept = optimizer.weights().copied()
    assert kept.adapter_count == whole.adapter_count == 2
    # Neither order nor rate are those of `train`: what is compared is a run in which nothing was put aside.
    with GradientEngine(loaded, [recipe] * 3, 1) as engine:
        optimizer = BatchedAdamW(LoraWeights.initial(loaded.model, recipe, [0, 2]), [recipe] * 2, 1)
        for _ in range(4):
            engine.losses(optimizer, [rows[0], rows[2]])
            optimizer.step([1e-2] * len(optimizer.values))
    for a, b in zip(kept.tensors, optimizer.weights().tensors, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_training_leaves_no_tensor_once_its_adapter_is_dropped(task: Task) -> None:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer())
    recipe = Recipe(rank=2, alpha=2.0, dropout=0.0, max_steps=1, batch_size=2)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    learner.adapt(leave_one_out(task), recipe)
    before = tensors()
    learner.adapt(leave_one_out(task), recipe)
    assert tensors() <= before


def test_a_bound_is_halved_once_however_many_passes_of_a_size_fail(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, (mine, *_) = setting("llama", torch.float32, task)
    rows = [mine] * 3
    real: Callable[..., Any] = gradients._loss_batch

    def narrow(model: LoadedModel, mine: list[Encoded], loss: Any) -> Any:
        if len(mine) > 2:
            raise torch.OutOfMemoryError("too much")
        return real(model, mine, loss)

    monkeypatch.setattr(gradients, "_loss_batch", narrow)
    with GradientEngine(loaded, [RECIPE] * 3, 1) as engine:
        optimizer = BatchedAdamW(LoraWeights.initial(loaded.model, RECIPE, [0, 1, 2]), [RECIPE] * 3, engine.shards(3))
        engine.losses(optimizer, rows)
        assert {p.end_row - p.first_row for job in engine._micro_batches(engine._step_batch(rows)) for p in job} == {
            2
        }, "not single rows"


def test_every_thread_calls_the_hooks_of_the_host(task: Task) -> None:
    class Watcher:
        """What a host program might hang on its model; it cannot be copied."""

        def __init__(self) -> None:
            self.lock, self.calls = threading.Lock(), 0

        def seen(self, *_: Any) -> None:
            with self.lock:
                self.calls += 1

    loaded, rows = setting("llama", torch.float32, task)
    expected = train(loaded, rows, RECIPE, [0, 1, 2], workers=2)[0].tensors
    watcher = Watcher()
    handle = loaded.model.register_forward_hook(watcher.seen)
    tensors = train(loaded, rows, RECIPE, [0, 1, 2], workers=2)[0].tensors
    handle.remove()
    assert watcher.calls >= 3 * 3
    assert all(map(torch.equal, expected, tensors))
    loaded.model.lock = threading.Lock()  # type: ignore[assignment]
    alone = train(loaded, rows, RECIPE, [0, 1, 2], workers=2)[0].tensors
    for a, b in zip(alone, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


@pytest.mark.usefixtures("threads")
def test_a_layer_whose_copy_calls_the_original_is_trained_by_one_thread(task: Task) -> None:
    loaded, rows = setting("llama", torch.float32, task)
    expected = train(loaded, rows, RECIPE, [0, 1, 2], workers=1)[0]
    for layer in loaded.model.model.layers:
        layer.mlp.forward = lambda x, original=layer.mlp.forward: original(x)
    with GradientEngine(loaded, [RECIPE] * 3, 2) as engine:
        optimizer = BatchedAdamW(LoraWeights.initial(loaded.model, RECIPE, [0, 1, 2]), [RECIPE] * 3, engine.shards(3))
        assert engine.shards(3) > 1
        engine.measure_memory(optimizer, rows[0][0])
        assert engine.shards(3) == 1
    weights = train(loaded, rows, RECIPE, [0, 1, 2], workers=2)[0]
    assert weights.pairs.keys() == expected.pairs.keys()
    assert all(map(torch.equal, weights.tensors, expected.tensors))


class _Unused(torch.nn.Module):
    """A layer with linear parts that a text pass does not use as such."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.idle = inner, torch.nn.Linear(32, 8)
        self.choice = _Router(32, 8)

    def forward(self, x: torch.Tensor) -> Any:
        self.choice(x)
        return self.inner(x)


class _Router(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), None


@pytest.mark.parametrize("workers", [1, 2])
def test_layers_without_gradients_are_dropped_and_change_nothing(
    workers: int, task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "autottt")
    loaded, rows = setting("llama", torch.float32, task)
    start = LoraWeights.initial(loaded.model, RECIPE, [0])
    expected, _ = train(loaded, rows[:1], RECIPE, [0], workers=workers, start=start)
    last = loaded.model.model.layers[-1]
    last.mlp = _Unused(last.mlp).requires_grad_(False)
    more = LoraWeights.initial(loaded.model, RECIPE, [0])
    same = {name: start.pairs.get(name.replace("mlp.inner", "mlp"), pair) for name, pair in more.pairs.items()}
    weights, _ = train(loaded, rows[:1], RECIPE, [0], workers=workers, start=replace(more, pairs=same))
    assert more.pairs.keys() - weights.pairs.keys() == {f"model.layers.1.mlp.{n}" for n in ("idle", "choice")}
    assert all(map(torch.equal, weights.tensors, expected.tensors))
    assert "adapters leave out 2 layers without gradients, model.layers.1.mlp.idle" in caplog.text
    assert "one thread" not in caplog.text


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_without_any_gradient_is_refused(workers: int, task: Task) -> None:
    loaded, rows = setting("llama", torch.float32, task)
    loaded.model.model.layers[0].mlp = _Unused(loaded.model.model.layers[0].mlp).requires_grad_(False)
    with pytest.raises(AdaptationError, match=r"no layer that \('idle',\) names has a part in how"):
        train(loaded, rows, replace(RECIPE, target_modules=("idle",)), [0, 1, 2], workers=workers)


def test_an_error_of_autograd_is_an_adaptation_error(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, rows = setting("llama", torch.float32, task)

    def grad(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a view was modified in place")

    monkeypatch.setattr(torch.autograd, "grad", grad)
    with pytest.raises(AdaptationError, match="no gradients to train with: a view was modified in place"):
        train(loaded, rows, RECIPE, [0, 1, 2])


@pytest.mark.parametrize("targets", [("all-linear",), PUBLISHED_MODULES], ids=["all", "published"])
def test_the_text_decoder_of_a_vision_model_is_trained(targets: tuple[str, ...], task: Task) -> None:
    model = seeing_model()
    loaded = wrap_model(model.requires_grad_(False), tiny_tokenizer())
    rows = [[encode(loaded, t, t.answer) for t in leave_one_out(task)]]
    recipe = replace(RECIPE, target_modules=targets)
    assert any("vision" in name for name, _ in model.named_modules())
    weights, (training,) = train(loaded, rows, recipe, [0])
    assert training.losses[-1] < training.losses[0]
    assert all(name.startswith("model.language_model.layers.") for name in weights.pairs)
    assert weights.adapter_count == 1
    assert loaded.context_length == CONTEXT


def test_file_cache_counts_as_free_memory_of_a_control_group(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("990\n")
    (tmp_path / "memory.stat").write_text("anon 90\ninactive_file 600\n")
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    assert memory.free_memory(torch.device("cpu")) == 610
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory(torch.device("cpu")) > 610


@pytest.mark.parametrize(
    ("membership", "free"),
    [
        ("4:memory:/v1\n0::/slice/service\n", 300), ("0::/slice\n", 500), ("0::/\n", 900), ("4:memory:/slice\n", 900),
        ("0::/../slice/service\n", 300), ("0::/elsewhere\n", 900), (None, 900),
    ],
)  # fmt: skip
def test_free_memory_is_bounded_by_the_control_groups_of_this_process(
    membership: str | None, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, limit in (("", "1000"), ("slice", "600"), ("slice/service", "400"), ("other", "200")):
        group = tmp_path / name
        group.mkdir(exist_ok=True)
        for file, text in (("max", limit), ("current", "100"), ("stat", "anon 90")):
            (group / f"memory.{file}").write_text(f"{text}\n")
    if membership is not None:
        (tmp_path / "membership").write_text(membership)
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "membership")
    assert memory.free_memory(torch.device("cpu")) == free
    (tmp_path / "slice" / "service" / "memory.max").write_text("max\n")
    assert memory.free_memory(torch.device("cpu")) == max(free, 500)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_gradient_flows_below_the_lowest_adapted_layer(architecture: str, task: Task) -> None:
    loaded, rows = setting(architecture, torch.float32, task)
    (layers,) = [m for m in loaded.model.modules() if isinstance(m, torch.nn.ModuleList)]
    recorded: dict[int, list[bool]] = {0: [], 1: []}

    def note(number: int, output: torch.Tensor) -> None:
        if torch.is_grad_enabled():
            recorded[number].append(output.requires_grad)

    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda m, args, out, n=number: note(n, out))
    recipe = replace(RECIPE, layers_to_transform=(1,), max_steps=2)
    weights, (done,) = train(loaded, rows[:1], recipe, [0])
    assert recorded[0]
    assert not any(recorded[0])
    assert all(recorded[1])
    assert all(".1." in name for name in weights.pairs)
    assert done.losses[1] != done.losses[0]
