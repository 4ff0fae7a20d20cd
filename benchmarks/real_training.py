"""Measures a training step on real language models: its rate and its memory. Used by real_models.py.

Rates: this package and Trainer with PEFT train the same rows with the published recipe, in turns; the matrix products
of a step are run alone, at the same shapes, in the same process. Memory: what a training adds to the process at most,
each in a new one.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from peft import LoraConfig, get_peft_model
from peft_baseline import train_with_trainer
from row_files import Row
from transformers import TrainerCallback

from autottt import make_task
from autottt.strategies.adapter_training import BIG_BENCH_RECIPE
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora.gradients import loss_positions
from autottt.ttt_core.lora.lower_layers import LowerLayers
from autottt.ttt_core.lora.training import train
from autottt.ttt_core.model.encoding import Encoded, pad_id_of
from autottt.ttt_core.model.fingerprint import restoring
from autottt.ttt_core.model.loading import load_model
from autottt.ttt_core.recipes import Recipe

RECIPE = replace(BIG_BENCH_RECIPE, dropout=0.0, max_steps=4)
RATE_TOKENS, MEMORY_TOKENS = 300, 288
"""Tokens of a prompt."""
GOALS = {"smollm2-135m": 1.5, "gemma3-270m": 1.9}
"""How many times as fast as Trainer with PEFT a step is to be."""
MATRIX_SHARE = 0.85
"""Of the rate of matrix products."""


def training_rows(name: str, source: str, learner: Learner, rounds: int) -> list[Row]:
    """The rate of a training step and the memory of a training."""
    rows = _prompts(learner, RATE_TOKENS, RECIPE.batch_size)
    ours, theirs, products = [], [], []
    for _ in range(rounds):
        ours.append(statistics.median(_our_steps(learner, rows)))
        theirs.append(statistics.median(_trainer_steps(learner, rows)))
        products.append(_matrix_seconds(learner, rows))
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    share = statistics.median(b / a for a, b in zip(ours, products, strict=True))
    memory = [_memory_of(kind, source) for kind in ("ours", "trainer")]
    label = f"{name}: a training step at {RATE_TOKENS}-token prompts"
    goal = GOALS.get(name)
    return [
        {"name": label, "value": round(ratio, 2), "unit": "times as fast", "against": "Trainer + PEFT", "goal": goal,
         "holds": None if goal is None else ratio >= goal, "seconds": round(statistics.median(ours), 3)},
        {"name": label, "value": round(share, 2), "unit": "of the rate", "against": "its matrix products alone",
         "goal": MATRIX_SHARE, "holds": share >= MATRIX_SHARE, "seconds": round(statistics.median(products), 3)},
        {"name": f"{name}: memory that training adds, batch 2 of {MEMORY_TOKENS} tokens",
         "value": round(memory[0] / memory[1], 2), "unit": "times", "against": "Trainer + PEFT", "goal": 0.5,
         "holds": memory[0] <= 0.5 * memory[1], "seconds": None, "megabytes": [round(m / 1e6) for m in memory]},
        upper_half_row(name, learner, rows, rounds),
    ]  # fmt: skip


def upper_half_row(name: str, learner: Learner, rows: Sequence[Encoded], rounds: int) -> Row:
    """Adapters on the upper half of the layers: what the lower ones gave is kept, or computed at each step."""
    layers = learner.loaded.model.config.get_text_config().num_hidden_layers
    recipe = replace(RECIPE, layers_to_transform=tuple(range(layers // 2, layers)))

    def seconds(adapted: Recipe) -> float:
        began = time.perf_counter()
        with learner.guarded.compute(None):
            train(learner.loaded, [rows], adapted, [0])
        return time.perf_counter() - began

    seconds(recipe)  # the model is tried once
    kept, computed, whole = [], [], []
    for _ in range(rounds):
        kept.append(seconds(recipe))
        with patch.object(LowerLayers, "below", return_value=None):
            computed.append(seconds(recipe))
        whole.append(seconds(RECIPE))
    ratio, of_whole = (
        statistics.median(b / a for a, b in zip(kept, other, strict=True)) for other in (computed, whole)
    )
    return {
        "name": f"{name}: {RECIPE.max_steps} steps on the upper half of the layers, lower ones read once",
        "value": round(ratio, 2), "unit": "times as fast", "against": "lower layers read at each step", "goal": None,
        "holds": None, "seconds": round(statistics.median(kept), 2), "times_as_fast_as_all_layers": round(of_whole, 2),
    }  # fmt: skip


def _prompts(learner: Learner, tokens: int, count: int) -> list[Encoded]:
    """Different prompts of exactly this many tokens: pairs of numbers, cut at the beginning."""
    rows = []
    for number in range(count):
        pairs = [(f"{i + number} {i * 7 % 90}", f"{i * 7 % 90} {i + number}") for i in range(tokens // 4)]
        task = make_task(pairs, "5 6", kind="text", answer="6 5")
        row = learner.window.encode(task, task.answer)
        cut = len(row.ids) - tokens
        spans = [(begin - cut, end - cut) for begin, end in row.answers if begin >= cut]
        rows.append(replace(row, ids=row.ids[cut:], answers=spans))
    return rows


def _our_steps(learner: Learner, rows: Sequence[Encoded]) -> list[float]:
    """Seconds of each step but the first."""
    times: list[float] = []
    with learner.guarded.compute(None):
        train(learner.loaded, [rows], RECIPE, [0], on_step=lambda *_: times.append(time.perf_counter()))
    return [after - before for before, after in pairwise(times)]


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Notes the time after each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())


def _trainer_steps(learner: Learner, rows: Sequence[Encoded]) -> list[float]:
    """As `_our_steps`, with Trainer and PEFT."""
    clock = _Clock()
    _with_peft(learner, lambda model: train_with_trainer(
        model, list(rows), RECIPE, pad_id_of(learner.loaded), callbacks=[clock]
    ))  # fmt: skip
    return [after - before for before, after in pairwise(clock.times)]


def _with_peft(learner: Learner, work: Callable[[Any], None]) -> None:
    """Runs work on the model with a new PEFT adapter, and removes the adapter."""
    config = LoraConfig(
        r=RECIPE.rank, lora_alpha=RECIPE.alpha, lora_dropout=0.0, target_modules=list(RECIPE.target_modules),
        task_type="CAUSAL_LM",
    )  # fmt: skip
    with restoring(learner.loaded.model):
        model = get_peft_model(learner.loaded.model, config)
        try:
            work(model)
        finally:
            model.unload()


def _matrix_seconds(learner: Learner, rows: Sequence[Encoded]) -> float:
    """Seconds of the matrix products of a step: each linear layer forward, and backward to its inputs; the head at the
    learned positions."""
    model = learner.loaded.model
    tokens = sum(len(row.ids) for row in rows)
    learned = sum(len(loss_positions(row, RECIPE.loss)) for row in rows)
    head = model.get_output_embeddings()
    shapes: dict[tuple[int, int, int], int] = {}
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            shape = (learned if module is head else tokens, module.in_features, module.out_features)
            shapes[shape] = shapes.get(shape, 0) + 1
    total = 0.0
    for (count, inputs, outputs), times in shapes.items():
        x, weight = torch.randn(count, inputs, dtype=model.dtype), torch.randn(outputs, inputs, dtype=model.dtype)
        gradient = torch.randn(count, outputs, dtype=model.dtype)
        x @ weight.T
        began = time.perf_counter()
        for _ in range(3):
            x @ weight.T
            gradient @ weight
        total += times * (time.perf_counter() - began) / 3
    return total


# --- memory ----------------------------------------------------------------------------------------------------------


def _memory_of(kind: str, source: str) -> float:
    """Bytes that a training adds to a new process at most."""
    done = subprocess.run(
        [sys.executable, __file__, kind, source], capture_output=True, text=True, check=True, timeout=3600
    )
    return float(done.stdout.split()[-1])


def _status(field: str) -> int:
    """Bytes of a field of the process's status."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return 1024 * int(line.split()[1])


def _print_memory(kind: str, source: str) -> None:
    """Trains two steps on two rows and prints by how many bytes the process grew at most."""
    learner = Learner(load_model(source))
    recipe = replace(RECIPE, batch_size=2, max_steps=2)
    rows = _prompts(learner, MEMORY_TOKENS, 2)
    learner.answer([make_task([("a", "b"), ("c", "d")], "e", kind="text")])  # weights are mapped when they are read
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is counted from now on
    before = _status("VmRSS")
    if kind == "ours":
        with learner.guarded.compute(None):
            train(learner.loaded, [rows], recipe, [0])
    else:
        _with_peft(learner, lambda model: train_with_trainer(model, rows, recipe, pad_id_of(learner.loaded)))
    print(_status("VmHWM") - before)


if __name__ == "__main__":
    _print_memory(*sys.argv[1:])
