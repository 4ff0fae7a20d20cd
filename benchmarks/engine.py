"""Measures the engine against Trainer + PEFT, a plain loop over PEFT, and generate; `make bench-engine` runs it.

    python benchmarks/engine.py --json benchmarks/results/engine.json [--quick] [--device cuda]

All train on the same tasks (the generator's `policy` lists) with the same recipe and prompts: transformers' Trainer
over a PEFT model that stays in memory, a plain loop over PEFT, and this package. Values are medians of ratios of two
times that are measured in turn. Writes rows {"name", "value", "unit", "against", "goal", "holds"} to --json, with the
growth and the profile of a training step (see engine_growth.py), which --picture plots.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import os
import platform
import random
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from engine_growth import growth, lists_task, operations, picture, random_model, step_profile
from peft import LoraConfig, get_peft_model
from peft_baseline import labelled_batch, train_with_trainer, warmup_steps
from transformers import LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup

from autottt import Controller
from autottt.controller.budget import Budget
from autottt.controller.controller import policy_for
from autottt.policies.policy import FixedPolicy
from autottt.strategies.base import run
from autottt.strategies.registry import get_strategy
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora.training import train
from autottt.ttt_core.lora.weights import LoraWeights
from autottt.ttt_core.model.encoding import Encoded, encode
from autottt.ttt_core.model.fingerprint import restoring
from autottt.ttt_core.model.loading import wrap_model
from autottt.ttt_core.pretraining.generator.families import draw_tasks
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.augmentation import leave_one_out_orders
from autottt.ttt_core.tasks.task import Task


class Peft:
    """The baseline: a PEFT model over a base that stays in memory, with a new adapter for each task."""

    def __init__(self, learner: Learner, recipe: Recipe) -> None:
        self.learner, self.recipe = learner, recipe
        self.base = copy.deepcopy(learner.loaded.model)
        self.base.set_attn_implementation("sdpa")  # the default of transformers, not this package's attention
        self.pad = learner.loaded.tokenizer.pad_token_id

    def _model(self) -> Any:
        recipe = self.recipe
        config = LoraConfig(
            r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.dropout, target_modules="all-linear",
            task_type="CAUSAL_LM",
        )  # fmt: skip
        return get_peft_model(self.base, config)

    def trainer(self, rows: list[Encoded], query: Encoded) -> bool:
        """Trains with transformers' Trainer; returns whether greedy decoding then answers the query right."""
        model = self._model()
        train_with_trainer(model, rows, self.recipe, self.pad)
        return self._finish(model, query)

    def loop(self, rows: list[Encoded], query: Encoded) -> bool:
        """The same with a plain training loop."""
        model, recipe = self._model(), self.recipe
        model.train()
        tensors = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(tensors, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        schedule = get_cosine_schedule_with_warmup(optimizer, warmup_steps(recipe), recipe.max_steps)
        for step in range(recipe.max_steps):
            some = rows[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            batch = labelled_batch(some, self.pad, recipe.loss)
            loss = model(**{k: v.to(self.base.device) for k, v in batch.items()}).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(tensors, recipe.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        return self._finish(model, query)

    @torch.no_grad()
    def _finish(self, model: Any, query: Encoded) -> bool:
        model.eval()
        ids = torch.tensor([query.ids], device=self.base.device)
        begin, end = query.answers[-1]
        hits = model(input_ids=ids).logits[0, begin - 1 : end - 1].argmax(-1) == ids[0, begin:end]
        model.unload()
        return bool(hits.all())


class Ours:
    """This package's engine."""

    def __init__(self, learner: Learner, recipe: Recipe) -> None:
        self.learner, self.recipe = learner, recipe

    def train(self, rows: list[list[Encoded]], queries: list[Encoded]) -> list[bool]:
        """Trains adapters in one batch; returns whether greedy decoding then answers each query right."""
        learner = self.learner
        with learner.guarded.compute(None):
            weights, _ = train(learner.loaded, rows, self.recipe, list(range(len(rows))))
        return [self._right(weights.select(i), one) for i, one in enumerate(queries)]

    @torch.no_grad()
    def _right(self, weights: LoraWeights, query: Encoded) -> bool:
        model = self.learner.loaded.model
        ids = torch.tensor([query.ids], device=model.device)
        begin, end = query.answers[-1]
        with weights.attached(model):
            hits = model(input_ids=ids).logits[0, begin - 1 : end - 1].argmax(-1) == ids[0, begin:end]
        return bool(hits.all())


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a piece of work, including what it queues on the device."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def side_by_side(
    ours: Callable[[], Any], theirs: Callable[[], Any], runs: int, device: torch.device, warm: bool = True
) -> tuple[float, float, float]:
    """The median ratio of their time to ours, measured in turn, after one run of each if `warm`; and both medians."""
    if warm:
        ours(), theirs()
    pairs = []
    for index in range(runs):
        order = (ours, theirs) if index % 2 else (theirs, ours)
        times = {f: seconds(f, device) for f in order}
        pairs.append((times[ours], times[theirs]))
    ratio = statistics.median(b / a for a, b in pairs)
    return ratio, statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def training_rows(learner: Learner, tasks: list[Task], recipe: Recipe, runs: int) -> list[dict[str, Any]]:
    """Training speed against the Trainer and a plain loop; and of eight folds against one adapter."""
    device = learner.loaded.model.device
    prompts = [
        [
            encode(learner.loaded, t, t.answer)
            for t in leave_one_out_orders(task, recipe.max_steps * recipe.batch_size, random.Random(0))
        ]
        for task in tasks
    ]
    queries = [encode(learner.loaded, t, t.answer) for t in tasks]
    ours, peft = Ours(learner, recipe), Peft(learner, recipe)
    right: dict[str, list[bool]] = {}

    def all_ours() -> None:
        right["ours"] = ours.train(prompts, queries)

    def all_trainer() -> None:
        right["Trainer"] = [peft.trainer(rows, one) for rows, one in zip(prompts, queries, strict=True)]

    results = []
    median = sorted(range(len(tasks)), key=lambda i: len(queries[i].ids))[len(tasks) // 2]
    rows, one = prompts[median], queries[median]
    for name, against, goal in (("trainer", "Trainer + PEFT", 3.0), ("loop", "a plain loop over PEFT", 1.5)):
        work = getattr(peft, name)
        ratio, mine, other = side_by_side(lambda: ours.train([rows], [one]), lambda w=work: w(rows, one), runs, device)
        results.append(row("one task", ratio, "times", against, goal, seconds=[mine, other]))
    ratio, mine, other = side_by_side(
        lambda: ours.train([rows], [one]), lambda: ours.train([rows] * 8, [one] * 8), runs, device
    )
    goal = 2.0 if device.type == "cuda" else 5.0
    results.append(row("8 folds", ratio, "times the time", "one", goal, most=True, seconds=[other, mine]))
    goal = 15.0 if device.type == "cuda" else 5.0
    ratio, mine, other = side_by_side(all_ours, all_trainer, runs, device, warm=False)
    results.append(row(
        f"{len(tasks)} tasks queued: tasks per second", ratio, "times", "Trainer + PEFT, one after the other", goal,
        seconds=[mine, other],
    ))  # fmt: skip
    points = {name: 100 * statistics.fmean(hits) for name, hits in right.items()}
    results.append(row(
        f"{len(tasks)} tasks queued: points of accuracy beyond", points["ours"] - points["Trainer"], "points",
        "Trainer + PEFT", -1.0, accuracy={name: round(value, 1) for name, value in points.items()},
    ))  # fmt: skip
    return results


PUBLISHED_SECONDS = 6.1
"""Training one task of BIG-Bench Hard, Llama 8B on an A100 (Akyürek et al. 2025)."""


def large_rows(
    learner: Learner, runs: int, hidden: int = 2048, layers: int = 16, shown: int = 10
) -> list[dict[str, Any]]:
    """Training speed of a Llama model with about 1B parameters and random weights, with the recipe that was published
    for BIG-Bench Hard: 40 orders of ten demonstrations, rank 64, 8 steps."""
    device = learner.loaded.model.device
    recipe = Recipe(rank=64, alpha=64, dropout=0.0, learning_rate=1e-4, max_steps=8, batch_size=5, early_stop_loss=0.0)
    config = LlamaConfig(
        vocab_size=128256 if hidden == 2048 else len(learner.loaded.tokenizer), hidden_size=hidden,
        intermediate_size=4 * hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256), tie_word_embeddings=True, max_position_embeddings=8192,
        pad_token_id=learner.loaded.tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    loaded = wrap_model(model, learner.loaded.tokenizer, prompt_format="standard")
    large = Learner(loaded)
    task = lists_task(shown)
    rows = [encode(loaded, t, t.answer) for t in leave_one_out_orders(task, 40, random.Random(0))]
    one = encode(loaded, task, task.answer)
    ours, peft = Ours(large, recipe), Peft(large, recipe)
    ratio, mine, other = side_by_side(lambda: ours.train([rows], [one]), lambda: peft.trainer(rows, one), runs, device)
    billions = sum(p.numel() for p in model.parameters()) / 1e9
    name = f"{billions:.2g}B parameters, {recipe.max_steps} steps of {recipe.batch_size} prompts of "
    name += f"{len(rows[0].ids)} tokens"
    tokens = sum(len(r.ids) for r in rows[: recipe.batch_size])
    rate = 1e9 * matrix_rate(device, torch.bfloat16, tokens, hidden, 4 * hidden)
    reached = recipe.max_steps * operations(loaded, recipe, rows[: recipe.batch_size]) / mine / rate
    return [
        row(name, ratio, "times", "Trainer + PEFT", 3.0, seconds=[mine, other]),
        row(name, mine, "s", "8B on an A100, published", PUBLISHED_SECONDS, most=True),
        row(name, reached, "of the matrix-product rate", "measured on the same device", 0.45),
    ]  # fmt: skip


def generation(learner: Learner, task: Task) -> Callable[[], None]:
    """Calls `generate` of transformers on the prompt of a task."""
    model, tokenizer = learner.loaded.model, learner.loaded.tokenizer
    ids = torch.tensor([learner.window.encode(task).ids], device=model.device)
    (end,) = tokenizer.encode("\n", add_special_tokens=False)

    def generate() -> None:
        with torch.no_grad():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=learner.window.max_new_tokens(task),
                do_sample=False, eos_token_id=end, pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip

    return generate


def answering_rows(learner: Learner, tasks: list[Task], runs: int) -> list[dict[str, Any]]:
    """Overhead of the controller, of a cache hit and of the proof."""
    device = learner.loaded.model.device
    policy = policy_for(learner)
    controller = Controller(learner, policy)
    easy = (t for t in tasks if controller.solve(t).strategy == "in_context")
    task = next(easy, None) or tasks[0]  # preferably one that the policy finds easy

    def solve() -> None:
        learner.clear()
        controller.solve(task)

    numbers = itertools.count()

    def new_query() -> Task:
        """A new query over the same demonstrations, with nothing cached of it."""
        learner.answerer.clear_prefix()
        return replace(task, query=(next(numbers) % 100, *task.query[1:]), answer=None)

    def in_context() -> None:
        run(get_strategy("in_context"), learner, new_query())

    def cached() -> None:
        run(get_strategy("ttt_in_context"), learner, new_query())

    def through_controller() -> None:
        learner.answerer.clear_prefix()
        controller.solve(new_query(), strategy="ttt_in_context")

    rows = []
    ratio, mine, other = side_by_side(generation(learner, task), solve, 4 * runs, device)
    rows.append(row(
        f"an easy query through the controller ({policy.name} policy)", ratio, "times the time",
        "generate on the same prompt", 1.3, most=True, seconds=[other, mine],
    ))  # fmt: skip
    cached()
    ratio, mine, other = side_by_side(in_context, cached, 4 * runs, device)
    rows.append(row("a cache hit", ratio, "times the time", "in_context", 1.2, most=True, seconds=[other, mine]))
    ratio, mine, other = side_by_side(in_context, through_controller, 4 * runs, device)
    rows.append(row(
        "a cache hit through the controller, which answers in context first", ratio, "times the time", "in_context",
        None, seconds=[other, mine],
    ))  # fmt: skip
    return [*rows, *proof_rows(learner, runs)]


def proof_rows(learner: Learner, runs: int) -> list[dict[str, Any]]:
    """Time of the revert and the proof, which every answer includes."""
    device, rows = learner.loaded.model.device, []
    many = Learner(random_model(learner.loaded, 64, 112))
    for one, name, goal in ((learner, "bundled model", 1.0), (many, f"{many.verify().tensors} tensors", 15.0)):
        proof, guard = (
            1000 * statistics.median(seconds(work, device) for _ in range(20 * runs))
            for work in (one.verify, lambda one=one: guarded(one))
        )
        rows.append(row(
            f"revert and proof, {name}", proof + guard, "ms", "-", goal, most=True, proof_ms=round(proof, 2),
            guard_ms=round(guard, 2),
        ))  # fmt: skip
    return rows


def guarded(learner: Learner) -> None:
    """Enters and leaves the context in which the engine uses a model."""
    with restoring(learner.loaded.model):
        pass


def deadline_rows(learner: Learner, tasks: list[Task], quick: bool) -> list[dict[str, Any]]:
    """The delay of answers whose strategy would need more time than the budget."""
    controller = Controller(learner, FixedPolicy("ttt_augmented"))
    delays = []
    for budget in (1.0, 2.0) if quick else (0.5, 1.0, 2.0, 4.0):
        for task in tasks:
            learner.clear()
            began = time.perf_counter()
            controller.solve(task, budget=Budget(seconds=budget))
            delays.append((time.perf_counter() - began - budget) / max(0.1 * budget, 0.2))
    return [row(
        "a budget of 0.5 to 4 s: worst delay", max(delays), "times what is allowed", "10% or 0.2 s", 1.0, most=True,
        answers=len(delays),
    )]  # fmt: skip


def row(
    name: str, value: float, unit: str, against: str, goal: float | None, *, most: bool = False, **more: Any
) -> dict[str, Any]:
    """A row with a value, and whether it reaches its goal, which is a minimum, or a maximum with `most`."""
    holds = None if goal is None else value <= goal if most else value >= goal
    measured = {"name": name, "value": round(value, 3), "unit": unit, "against": against, "goal": goal, "holds": holds}
    if "seconds" in more:
        more["seconds"] = [round(s, 4) for s in more["seconds"]]
    verdict = "" if goal is None else f"; goal {goal:g}: {'holds' if holds else 'does not hold'}"
    print(f"{name:<52} {value:8.2f} {unit} ({against}{verdict}) {more or ''}", flush=True)
    return measured | more


def matrix_rate(
    device: torch.device, dtype: torch.dtype, tokens: int = 1024, inside: int = 256, outside: int = 640
) -> float:
    """GFLOP/s of a matrix product on a GPU, or on one core of a CPU; default sizes are those of the bundled model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a = torch.randn(tokens, inside, device=device, dtype=dtype)
    b = torch.randn(inside, outside, device=device, dtype=dtype)
    times = [seconds(lambda: [a @ b for _ in range(50)], device) for _ in range(7)]
    torch.set_num_threads(threads)
    return 2 * tokens * inside * outside * 50 / statistics.median(times[1:]) / 1e9


def memory_rate(device: torch.device) -> float:
    """Bytes per second that a copy of 256 MB reads and writes with all threads."""
    source = torch.zeros(1 << 26, device=device)
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), device) for _ in range(7)]
    return 2 * source.nbytes / statistics.median(times[1:])


def print_growth(growth_rows: dict[str, list[dict[str, Any]]]) -> None:
    """Prints a table for each axis."""
    for name, rows in growth_rows.items():
        print(f"a step by {name}:")
        for one in rows:
            cells = f"{one['seconds']:>8.3f} s {one['megabytes']:>7.1f} MB"
            if one["measured_megabytes"] is not None:
                cells += f" ({one['measured_megabytes']:.1f} measured)"
            share = (
                f"{one['share_of_rate']:.0%} of the matrix-product rate, {one['share_of_bandwidth']:.0%} of memory's"
            )
            print(f"  {one[name]:>10,.0f} {one['tokens']:>7,.0f} tokens {cells}  {share}")


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="few tasks and runs")
    parser.add_argument("--device", default=None)
    parser.add_argument("--picture", type=Path, help="plot the growth of time and memory (needs matplotlib)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    learner = Learner.load(device=options.device)
    model = learner.loaded.model
    recipe = replace(learner.loaded.recipes["ttt_in_context"], early_stop_loss=0.0)
    tasks = draw_tasks("policy", 4 if options.quick else 32, options.seed, "lists", 1)
    runs = 2 if options.quick else 5
    rate = matrix_rate(model.device, model.dtype)
    print(f"{model.device}, {model.dtype}, {torch.get_num_threads()} threads, matrix products at {rate:.0f} GFLOP/s")
    rows = training_rows(learner, tasks, recipe, runs) + answering_rows(learner, tasks, runs)
    other_domains = [t for domain in ("rows", "grids") for t in draw_tasks("policy", 2, options.seed, domain, 1)]
    rows += deadline_rows(learner, [*tasks[:2], *other_domains], options.quick)
    cores = torch.get_num_threads() if model.device.type == "cpu" else 1
    if model.device.type == "cuda":
        rows += large_rows(learner, runs)
    bandwidth = memory_rate(model.device)
    print(f"memory at {bandwidth / 1e9:.0f} GB/s")
    growth_rows = growth(learner, recipe, rate * 1e9 * cores, bandwidth, options.quick)
    print_growth(growth_rows)
    shares = step_profile(learner, recipe)
    print("profile of a step:", ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    if options.picture:
        picture(growth_rows, options.picture)
    git = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    facts = {
        "commit": git.stdout.strip(), "date": datetime.now(UTC).date().isoformat(), "quick": options.quick,
        "machine": {
            "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
            "device": str(model.device), "precision": str(model.dtype), "gflops": round(rate),
            "gigabytes_a_second": round(bandwidth / 1e9, 1),
        },
        "versions": {n: version(n) for n in ("autottt", "torch", "transformers", "peft", "accelerate")},
        "rows": rows, "growth": growth_rows, "profile": shares,
    }  # fmt: skip
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
