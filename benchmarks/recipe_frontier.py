"""Measures recipes on a real model: right answers against seconds of training; `make bench-recipes` runs it.

    python benchmarks/recipe_frontier.py MODEL TASKS... --rows runs/recipes.rows.jsonl \
        --json benchmarks/results/recipes_real.json --picture docs/recipes.svg

MODEL is what `--model` takes elsewhere (such as smollm2-135m), TASKS are files as `autottt tasks export` writes them.
For every task each recipe trains one adapter for `ttt_in_context`, which answers all queries of the task; Trainer and
PEFT train one with the published recipe on the same prompts. The recipes take turns task by task, so that their seconds
can be compared. Rows are appended to --rows, and an interrupted run continues. Recipes are searched on families of the
split `training` (--recipes FILE: name -> settings) and judged once on families of the split `test`. With
--starting-adapter FOLDER, which `autottt prepare` writes, recipes whose name ends with STARTED begin with that adapter,
and tasks of the families that it was made with are left out. Intervals are 90% bootstrap intervals over families.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft_baseline import train_with_trainer
from row_files import Row, percent_interval, read_rows

from autottt.strategies.adapter_training import BIG_BENCH_RECIPE
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora.adapter import Adapter
from autottt.ttt_core.lora.starting_adapter import read_card
from autottt.ttt_core.model.encoding import pad_id_of
from autottt.ttt_core.model.fingerprint import restoring
from autottt.ttt_core.model.loading import load_model
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.answers import is_right
from autottt.ttt_core.tasks.augmentation import leave_one_out_orders
from autottt.ttt_core.tasks.readers import read_tasks
from autottt.ttt_core.tasks.task import Task

IN_CONTEXT, TRAINER = "in_context", "Trainer + PEFT, published"
STARTED = "from the starting adapter"
"""Ends the names of recipes that begin with it; `IN_CONTEXT` followed by it answers with the adapter as it is."""
PUBLISHED = replace(BIG_BENCH_RECIPE, dropout=0.0)
"""The published recipe for text, without dropout."""


def prompts(task: Task, recipe: Recipe, seed: int) -> list[Task]:
    """The training prompts of a task, the same for every recipe as far as it takes them."""
    return leave_one_out_orders(task, recipe.max_steps * recipe.batch_size, random.Random(f"recipes-{seed}"))


def train_with_peft(learner: Learner, task: Task, recipe: Recipe, seed: int) -> Adapter:
    """The adapter that transformers' Trainer makes of the same prompts."""
    loaded = learner.loaded
    rows = [learner.window.encode(t, t.answer) for t in prompts(task, recipe, seed) if t.answer is not None]

    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.dropout,
        target_modules=list(recipe.target_modules), task_type="CAUSAL_LM",
        layers_to_transform=list(recipe.layers_to_transform) or None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, restoring(loaded.model):
        model = get_peft_model(loaded.model, config)
        try:
            train_with_trainer(model, rows, recipe, pad_id_of(loaded))
            model.save_pretrained(folder)
        finally:
            model.unload()
        return learner.import_peft(folder)


def measure_task(
    learner: Learner, queries: list[Task], name: str, recipe: Recipe | None, seed: int, starting: Adapter | None
) -> Row:
    """Trains with a recipe, and answers a task's queries."""
    task = learner.formats.formatted(queries[0])
    start = starting if name.endswith(STARTED) else None
    began, cpu_began, adapter = time.perf_counter(), time.process_time(), start
    if recipe is not None and name == TRAINER:
        adapter = train_with_peft(learner, task, recipe, seed)
    elif recipe is not None:
        (adapter,) = learner.trainer.adapt_many([prompts(task, recipe, seed)], [recipe], [seed], start=start)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    answers = learner.answer([replace(q, prompt_format=task.prompt_format) for q in queries], adapter)
    right = [is_right(q, a.value) for q, a in zip(queries, answers, strict=True)]
    return {
        "model": learner.base_hash, "recipe": name, "settings": asdict(recipe) if recipe else {}, "seed": seed,
        "group": task.group, "family": task.family, "right": right, "seconds": seconds, "cpu_seconds": cpu_seconds,
    }  # fmt: skip


def measure(
    learner: Learner, tasks: Sequence[list[Task]], recipes: Mapping[str, Recipe | None], file: Path, seed: int,
    starting: Adapter | None = None,
) -> None:  # fmt: skip
    """Appends the rows that the file lacks, task by task."""
    done = {(row["model"], row["recipe"], row["group"], row["seed"]) for row in read_rows(file)}
    for number, queries in enumerate(tasks, 1):
        for name, recipe in recipes.items():
            if (learner.base_hash, name, queries[0].group, seed) in done:
                continue
            row = measure_task(learner, queries, name, recipe, seed, starting)
            with file.open("a") as out:
                out.write(f"{json.dumps(row)}\n")
        print(f"{number} of {len(tasks)} tasks", file=sys.stderr, flush=True)


# --- numbers ---------------------------------------------------------------------------------------------------------


def summary(rows: Sequence[Row]) -> list[Row]:
    """Per recipe: accuracy, points beyond in context and beyond Trainer + PEFT with intervals, harm, and seconds beside
    Trainer + PEFT.

    Only tasks that every recipe has answered count, so that all comparisons are paired.
    """
    by_recipe: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        by_recipe[row["recipe"]][row["group"]] = row
    shared = sorted(set.intersection(*(set(mine) for mine in by_recipe.values())))
    base = by_recipe[IN_CONTEXT]
    reference = {
        unit: statistics.median(by_recipe[TRAINER][g].get(unit, math.nan) for g in shared)
        for unit in ("seconds", "cpu_seconds") if TRAINER in by_recipe
    }  # fmt: skip
    results = []
    for name, mine in by_recipe.items():
        pairs = {g: list(zip(base[g]["right"], mine[g]["right"], strict=True)) for g in shared}
        flat = [pair for some in pairs.values() for pair in some]
        beyond_trainer = _gains(mine, by_recipe[TRAINER], shared) if reference else {}
        seconds, cpu_seconds = (
            statistics.median(mine[g].get(unit, math.nan) for g in shared) for unit in ("seconds", "cpu_seconds")
        )
        results.append({
            "name": name, "settings": mine[shared[0]]["settings"], "tasks": len(shared), "queries": len(flat),
            "accuracy": round(100 * statistics.fmean(after for _, after in flat), 1),
            "gain": _mean_points(_gains(mine, base, shared)),
            "gain_interval_90": percent_interval(_gains(mine, base, shared)),
            "beyond_trainer": _mean_points(beyond_trainer),
            "beyond_trainer_interval_90": percent_interval(beyond_trainer) if beyond_trainer else None,
            "harm": round(100 * statistics.fmean(before and not after for before, after in flat), 1),
            "seconds": round(seconds, 2),
            "of_trainer_seconds": round(seconds / reference["seconds"], 3) if reference else None,
            "of_trainer_cpu_seconds": round(cpu_seconds / reference["cpu_seconds"], 3) if reference else None,
        })  # fmt: skip
    return sorted(results, key=lambda result: result["seconds"])


def _gains(mine: Mapping[str, Row], others: Mapping[str, Row], groups: Sequence[str]) -> dict[str, list[float]]:
    """Family -> how much more often each query is right in the one than in the others."""
    families: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        both = zip(mine[group]["right"], others[group]["right"], strict=True)
        families[mine[group]["family"]] += [one - other for one, other in both]
    return families


def _mean_points(families: Mapping[str, Sequence[float]]) -> float | None:
    return round(100 * statistics.fmean(v for some in families.values() for v in some), 1) if families else None


def draw(results: Sequence[Row], model: str, file: Path) -> None:
    """Accuracy against seconds of training; the recipes that no other one beats in both are joined."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    best = -1.0
    frontier = []
    for result in results:
        known = result["name"] in (IN_CONTEXT, TRAINER)
        axes.plot(
            result["seconds"], result["accuracy"], "s" if known else "o", color="tab:red" if known else "tab:blue"
        )
        axes.annotate(result["name"], (result["seconds"], result["accuracy"]), fontsize=7, xytext=(4, 3),
                      textcoords="offset points")  # fmt: skip
        if result["accuracy"] > best:
            best = result["accuracy"]
            frontier.append(result)
    axes.plot([r["seconds"] for r in frontier], [r["accuracy"] for r in frontier], color="tab:blue", alpha=0.4)
    axes.set(xlabel="seconds of training per task (median)", ylabel="right answers, %", title=model)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def default_recipes(recipes: Mapping[str, Recipe]) -> dict[str, Recipe | None]:
    """What is judged of a model with these recipes when no file of recipes is given."""
    recipe = recipes.get("ttt_in_context", BIG_BENCH_RECIPE)
    fewer = replace(recipe, max_steps=max(1, recipe.max_steps - 1))
    return {
        IN_CONTEXT: None, TRAINER: PUBLISHED, "published": PUBLISHED, "default": recipe,
        "default, a step fewer": fewer,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tasks", nargs="+", type=Path)
    parser.add_argument("--recipes", type=Path, help="JSON: name -> settings of a recipe, null for in context")
    parser.add_argument("--rows", type=Path, required=True, help="file for the measured rows")
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--picture", type=Path, help="SVG file for the plot")
    parser.add_argument("--starting-adapter", type=Path, help="folder of an adapter that some recipes begin with")
    parser.add_argument("--limit", type=int, help="tasks at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    learner = Learner(load_model(options.model))
    recipes = default_recipes(learner.loaded.recipes)
    if options.recipes:
        given = json.loads(options.recipes.read_text("utf-8"))
        recipes = {IN_CONTEXT: None} | {n: None if s is None else Recipe.from_settings(s) for n, s in given.items()}
    starting, seen = None, set[str]()
    if options.starting_adapter:
        starting, card = learner.import_peft(options.starting_adapter), read_card(options.starting_adapter)
        seen = {*card.get("families", ()), *card.get("held_out_families", ())}
        recipes |= {f"{IN_CONTEXT}, {STARTED}": None}
    groups: dict[str, list[Task]] = defaultdict(list)
    for task in read_tasks(options.tasks).tasks:
        if task.family not in seen:
            groups[task.group].append(task)
    for file in (options.rows, options.json):
        file.parent.mkdir(parents=True, exist_ok=True)
    measure(learner, list(groups.values())[: options.limit], recipes, options.rows, options.seed, starting)
    mine = [r for r in read_rows(options.rows) if r["model"] == learner.base_hash and r["recipe"] in recipes]
    results = summary([r for r in mine if r["group"] in groups])
    options.json.write_text(json.dumps({
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {n: version(n) for n in ("autottt", "torch", "transformers", "peft")},
        "model": Path(options.model).name,
        "rows": results,
    }, indent=1) + "\n")  # fmt: skip
    if options.picture:
        draw(results, Path(options.model).name, options.picture)
    for row in results:
        print(f"{row['name']:32s} {row['accuracy']:5.1f}%  gain {row['gain']:+5.1f} {row['gain_interval_90']}  "
              f"{row['seconds']:7.2f} s  beside Trainer + PEFT: {row['of_trainer_seconds'] or '-'} of its seconds, "
              f"{row['beyond_trainer'] or 0:+.1f} points {row['beyond_trainer_interval_90'] or ''}")  # fmt: skip


if __name__ == "__main__":
    main()
