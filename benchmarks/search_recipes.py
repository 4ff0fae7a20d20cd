"""Searches the strategies' recipes for a model on the generator's held-out families; prints a table and writes JSON.

    python benchmarks/search_recipes.py --model ttt_core/bundled --strategy ttt_in_context --domains lists,rows \
        --tasks 20 --grid '{"max_steps": [16, 32], "learning_rate": [0.001, 0.003]}' \
        --json benchmarks/results/recipes.json

Every recipe sees the same tasks (split `policy`, which pre-training never saw), so differences are paired. The public
benchmarks are not used.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

from autottt.strategies.base import run
from autottt.strategies.registry import get_strategy
from autottt.ttt_core.errors import AutotttError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.pretraining.generator.families import draw_tasks
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.answers import is_right
from autottt.ttt_core.tasks.task import Task


def measure(learner: Learner, name: str, recipe: Recipe | None, tasks: list[Task]) -> dict[str, float]:
    """Share of queries right per domain and over all, and mean seconds a query."""
    strategy = get_strategy(name)
    if recipe is not None:
        strategy = replace(strategy, recipe=recipe)  # type: ignore[type-var]
    right: dict[str, list[bool]] = {}
    began = time.perf_counter()
    learner.clear()
    for task in tasks:
        try:
            value = run(strategy, learner, task).value
        except AutotttError:
            value = None
        right.setdefault(task.family.split("/")[0], []).append(is_right(task, value))
    averages = {domain: sum(hits) / len(hits) for domain, hits in right.items()}
    averages["all"] = sum(map(sum, right.values())) / len(tasks)
    averages["seconds"] = (time.perf_counter() - began) / len(tasks)
    return averages


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--strategy", default="ttt_in_context")
    parser.add_argument("--domains", default="lists,rows,grids,strings")
    parser.add_argument("--split", default="policy")
    parser.add_argument("--tasks", type=int, default=16, help="tasks of each domain")
    parser.add_argument("--queries-per-task", type=int, default=2, help="queries of each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", default="{}", help="recipe settings that all trials share (JSON)")
    parser.add_argument("--grid", default="{}", help="settings to try: name -> list of values (JSON)")
    parser.add_argument("--json", type=Path, help="append the rows to this file")
    options = parser.parse_args()
    learner = Learner.load(options.model)
    tasks = [
        t
        for d in options.domains.split(",")
        for t in draw_tasks(options.split, options.tasks, options.seed, d, options.queries_per_task)
    ]
    grid = json.loads(options.grid)
    base = json.loads(options.base)
    trials: list[Recipe | None] = [
        Recipe.from_settings({**base, **dict(zip(grid, values, strict=True))})
        for values in itertools.product(*grid.values())
    ]
    rows = [{"strategy": "in_context", "recipe": {}, **measure(learner, "in_context", None, tasks)}]
    print(rows[0], flush=True)
    for recipe in trials:
        row = {"strategy": options.strategy, "recipe": asdict(recipe) if recipe else {}}
        row |= measure(learner, options.strategy, recipe, tasks)
        rows.append(row)
        settings = {k: row["recipe"][k] for k in grid}  # type: ignore[index]
        print(settings, {k: round(v, 3) for k, v in row.items() if isinstance(v, float)}, flush=True)
    if options.json:
        facts = {
            "hash": learner.base_hash,
            "split": options.split,
            "tasks": options.tasks,
            "queries": options.queries_per_task,
            "seed": options.seed,
        }
        previous = json.loads(options.json.read_text()) if options.json.exists() else []
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps([*previous, {**facts, "rows": rows}], indent=1) + "\n")


if __name__ == "__main__":
    main()
