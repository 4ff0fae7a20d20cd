"""Measures how time and memory of a training step grow, its profile, and its distance from the hardware's limits.

`benchmarks/engine.py` runs it and writes the results; `picture` plots them. The lower bound of a step's time is its
number of multiplications and additions (frozen layers forward and backward, adapters forward and twice backward,
attention, output head at the trained tokens) divided by the rate of plain matrix products in the same run, or the bytes
that it has to move divided by the memory bandwidth.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora.gradients import GradientEngine, loss_positions
from autottt.ttt_core.lora.modules import target_modules
from autottt.ttt_core.lora.optimizer import BatchedAdamW
from autottt.ttt_core.lora.weights import LoraWeights
from autottt.ttt_core.model.encoding import Encoded, encode
from autottt.ttt_core.model.loading import LoadedModel, wrap_model
from autottt.ttt_core.pretraining.generator.families import draw_task_pairs
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.augmentation import leave_one_out_orders
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.task import Task

SIZES = ((128, 4), (256, 6), (384, 8), (512, 10))
"""Hidden size and layers of models with random weights."""
OPERATION_GROUPS = {
    "mm": "matrix products",
    "bmm": "attention's products",
    "addmm": "matrix products",
    "baddbmm": "attention's products",
}


def lists_task(demonstrations: int, seed: int = 0) -> Task:
    """A list task with a number of demonstrations."""
    rng = random.Random(f"growth-{seed}")
    _, pairs = draw_task_pairs("policy", demonstrations + 1, rng, "lists")
    return make_task(pairs[:-1], pairs[-1][0], answer=pairs[-1][1])


def prompts_of(loaded: LoadedModel, task: Task, recipe: Recipe) -> list[Encoded]:
    """The prompts of one step."""
    return [encode(loaded, t, t.answer) for t in leave_one_out_orders(task, recipe.batch_size, random.Random(0))]


def operations(loaded: LoadedModel, recipe: Recipe, rows: Sequence[Encoded]) -> float:
    """Multiplications and additions of a step on these rows, by one adapter."""
    modules = target_modules(loaded.model, ("all-linear",)).values()
    frozen = sum(m.weight.numel() for m in modules)
    adapted = sum(
        sum(m.weight.shape) * recipe.rank for m in target_modules(loaded.model, recipe.target_modules).values()
    )
    tokens = sum(len(r.ids) for r in rows)
    config = loaded.model.config
    attention = sum(len(r.ids) ** 2 for r in rows) * config.hidden_size * config.num_hidden_layers * 4
    head = sum(len(loss_positions(r, recipe.loss)) for r in rows) * loaded.model.get_output_embeddings().weight.numel()
    return 4.0 * frozen * tokens + 6.0 * adapted * tokens + 3.0 * attention + 4.0 * head


def peak_memory(device: torch.device, begin: bool = False) -> int | None:
    """The peak of the bytes in use since the last call with `begin`; None on a CPU, which does not report it."""
    if device.type != "cuda":
        return None
    if begin:
        torch.cuda.reset_peak_memory_stats(device)
    return int(torch.cuda.max_memory_allocated(device))


class Step:
    """Training steps of A adapters, for timing."""

    def __init__(self, loaded: LoadedModel, recipe: Recipe, rows: Sequence[Sequence[Encoded]]) -> None:
        self.loaded, self.recipe, self.rows = loaded, recipe, rows

    def run(self, steps: int) -> tuple[list[float], int, int | None]:
        """Seconds of each step; predicted bytes of weights, gradients, moments and activations of all rows; and, on a
        GPU, the measured peak of the bytes in use."""
        times = []
        device = self.loaded.model.device
        before = peak_memory(device, begin=True)
        recipes = [self.recipe] * len(self.rows)
        with GradientEngine(self.loaded, recipes) as engine:
            weights = LoraWeights.initial(self.loaded.model, self.recipe, list(range(len(self.rows))))
            optimizer = BatchedAdamW(weights, recipes, engine.shards(len(self.rows)))
            for _ in range(steps):
                began = time.perf_counter()
                engine.losses(optimizer, self.rows)
                optimizer.step([1e-4] * len(self.rows))
                if device.type == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - began)
            activations = int(engine.token_bytes * sum(len(r.ids) for mine in self.rows for r in mine))
            peak = peak_memory(device)
            return times, optimizer.nbytes + activations, None if peak is None or before is None else peak - before


def measure_step(
    loaded: LoadedModel, recipe: Recipe, tasks: Sequence[Task], rate: float, bandwidth: float, repeats: int
) -> dict[str, Any]:
    """Seconds and bytes of a step that trains one adapter on each task, and its lower bounds by matrix products and by
    memory traffic (frozen weights in both passes; activations, written and read).

    `rate` is in operations and `bandwidth` in bytes, per second of all cores together.
    """
    rows = [prompts_of(loaded, task, recipe) for task in tasks]
    fitted_recipe = replace(recipe, batch_size=min(map(len, rows)))
    rows = [mine[: fitted_recipe.batch_size] for mine in rows]
    times, nbytes, peak = Step(loaded, fitted_recipe, rows).run(repeats + 2)
    seconds = statistics.median(times[2:])
    least = sum(operations(loaded, fitted_recipe, mine) for mine in rows) / rate
    least_by_memory = 2 * (sum(p.nbytes for p in loaded.model.parameters()) + nbytes) / bandwidth
    return {
        "adapters": len(tasks), "demonstrations": len(tasks[0].demonstrations),
        "tokens": sum(len(r.ids) for mine in rows for r in mine),
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "seconds": round(seconds, 4), "megabytes": round(nbytes / 1e6, 1),
        "measured_megabytes": None if peak is None else round(peak / 1e6, 1),
        "least_seconds": round(least, 4), "share_of_rate": round(least / seconds, 3),
        "least_seconds_memory": round(least_by_memory, 4), "share_of_bandwidth": round(least_by_memory / seconds, 3),
    }  # fmt: skip


def random_model(like: LoadedModel, hidden: int, layers: int) -> LoadedModel:
    """A Llama model with random weights and the tokenizer of another, in the same precision."""
    heads = max(1, hidden // 64)
    config = LlamaConfig(
        vocab_size=len(like.tokenizer), hidden_size=hidden, intermediate_size=5 * hidden // 2,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads, tie_word_embeddings=True,
        max_position_embeddings=like.context_length, pad_token_id=like.tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(like.model.device, like.model.dtype)
    return wrap_model(model, like.tokenizer, prompt_format=like.format.name)


def growth(
    learner: Learner, recipe: Recipe, rate: float, bandwidth: float, quick: bool
) -> dict[str, list[dict[str, Any]]]:
    """Rows of `measure_step` along each axis, with the defaults on the others."""
    loaded, repeats = learner.loaded, 3 if quick else 7
    default = lists_task(6)
    adapters = (1, 4) if quick else (1, 2, 4, 8, 16)
    shown = (3, 6) if quick else (2, 3, 4, 6, 8, 10)
    batches = (2, 8) if quick else (1, 2, 4, 8, 16)
    sizes = SIZES[:2] if quick else SIZES
    torch.manual_seed(0)
    return {
        "adapters": [measure_step(loaded, recipe, [default] * n, rate, bandwidth, repeats) for n in adapters],
        "demonstrations": [measure_step(loaded, recipe, [lists_task(n)], rate, bandwidth, repeats) for n in shown],
        "tokens": [
            measure_step(loaded, replace(recipe, batch_size=n), [default], rate, bandwidth, repeats) for n in batches
        ],
        "parameters": [
            measure_step(random_model(loaded, hidden, layers), recipe, [default], rate, bandwidth, repeats)
            for hidden, layers in sizes
        ],
    }


def step_profile(learner: Learner, recipe: Recipe, steps: int = 5) -> dict[str, float]:
    """Shares of CPU time in a step of one adapter on one thread, by operation; the largest first."""
    step = Step(learner.loaded, recipe, [prompts_of(learner.loaded, lists_task(6), recipe)])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step.run(2)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            step.run(steps)
    finally:
        torch.set_num_threads(threads)
    times: Counter[str] = Counter()
    for event in profiler.key_averages():
        name = event.key.removeprefix("aten::")
        times[OPERATION_GROUPS.get(name, name)] += event.self_cpu_time_total
    total = times.total()
    largest = {name: round(value / total, 3) for name, value in times.most_common(10)}
    return largest | {"the rest": round(1 - sum(largest.values()), 3)}


def picture(growth_rows: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Plots seconds, their lower bound and megabytes along each axis (needs matplotlib)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(1, len(growth_rows)), growth_rows.items(), strict=True):
        positions = [row[name] for row in rows]
        axes.plot(positions, [row["seconds"] for row in rows], "o-", label="seconds a step")
        axes.plot(positions, [row["least_seconds"] for row in rows], "--", label="matrix products alone")
        axes.set(xlabel=name, ylim=(0, None), xscale="log" if name == "parameters" else "linear")
        memory = axes.twinx()
        memory.plot(positions, [row["megabytes"] for row in rows], "s:", color="tab:green", label="megabytes")
        memory.set(ylim=(0, None))
        if name == "adapters":
            axes.legend(loc="upper left")
            memory.legend(loc="lower right")
    figure.savefig(file)
