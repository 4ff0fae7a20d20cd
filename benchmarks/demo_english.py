"""Measures real models on the English families, and writes the rates that `autottt demo` uses for them.

    python benchmarks/demo_english.py smollm2-135m gemma3-270m --json controller/cli/demo_english.json

The pairs of each family are divided in two halves by --seed, and only the first half is measured here: the demo draws
its tasks from the second. Each task has up to four queries over its demonstrations, answered in context in the prompt
format that is chosen for it. Tasks of families under the demo's threshold are also answered after `ttt_in_context`,
since a family that no training helps shows nothing. Families with too few pairs for a task in each half are left out.

Models that are not named keep the rates in the file. Families that are in it already are not measured again, so that an
interrupted run continues; those with another recipe are trained again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from demo_families import band_of

from autottt import Learner
from autottt.controller.cli.demo import ALWAYS_ENGLISH, DEMONSTRATIONS, ENGLISH_HARD, LEARNED, english_tasks
from autottt.strategies.base import recipe_digest_for
from autottt.strategies.registry import get_strategy
from autottt.ttt_core.model.loading import use_threads
from autottt.ttt_core.sources.english import RULES, VERSION, halves
from autottt.ttt_core.tasks.answers import is_right
from autottt.ttt_core.tasks.task import Task

QUERIES = 4
"""Of a measured task, at most; they share its demonstrations."""
LEARNED_QUERIES = 12
"""Queries of a family under the threshold that are also answered after training, at most."""
ABOUT = (
    "Rates on the English families, by benchmarks/demo_english.py, on one half of the pairs of each; the demo draws "
    "its tasks from the other half. `right`: in context; `learned`: after ttt_in_context, for families that are rarely "
    "right in context."
)


def tasks_of(family: str, queries: int, seed: int) -> list[list[Task]]:
    """Tasks of the first half of a family's pairs with this many queries in all; none where it has too few pairs."""
    pairs = halves(family, seed)[0]
    each = min(QUERIES, len(pairs) - DEMONSTRATIONS)
    if each < 1 or len(halves(family, seed)[1]) <= DEMONSTRATIONS:
        return []
    every = english_tasks(family, pairs, queries // each, seed, each)
    return [list(group) for _, group in groupby(every, key=lambda task: task.id.partition("#")[0])]


def count_right(learner: Learner, queries: Sequence[Task], train: bool) -> int:
    """Right answers to the queries of a task, in context or after training."""
    formatted = [learner.formats.formatted(task) for task in queries]
    adapter = None
    if train:
        adapter, _ = learner.adapters.get_or_train(get_strategy(ALWAYS_ENGLISH).plan(learner, formatted[0], 0))
    answers = learner.answer(formatted, adapter)
    learner.clear()
    return sum(is_right(task, answer.value) for task, answer in zip(formatted, answers, strict=True))


def learned_row(learner: Learner, row: Mapping[str, Any], tasks: Sequence[Sequence[Task]]) -> dict[str, Any]:
    """Right answers after training, added to those of the row; ends once the threshold is out of reach."""
    recipe = recipe_digest_for(get_strategy(ALWAYS_ENGLISH), learner.loaded.recipes, "text")
    same = row.get("recipe") == recipe
    right, answered = (row["learned"], row["learned_queries"]) if same else (0, 0)
    for queries in tasks[answered // len(tasks[0]) :]:
        if answered + len(queries) > LEARNED_QUERIES or right + LEARNED_QUERIES - answered < LEARNED * LEARNED_QUERIES:
            break
        right += count_right(learner, queries, train=True)
        answered += len(queries)
    return {"learned": right, "learned_queries": answered, "recipe": recipe}


def measured(learner: Learner, family: str, row: dict[str, Any], tasks: Sequence[Sequence[Task]]) -> dict[str, Any]:
    """The row of a family, with what its earlier `row` lacks."""
    if not row:
        right = sum(count_right(learner, queries, train=False) for queries in tasks)
        row = {"name": family, "right": right, "queries": sum(map(len, tasks))}
    band = band_of(row["right"] / row["queries"], ENGLISH_HARD)
    if band == "hard":
        row = {**row, **learned_row(learner, row, tasks)}
    helped = band != "hard" or row["learned"] >= LEARNED * row["learned_queries"]
    return {**row, "band": band if helped else None}


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="names, as in `autottt models list`")
    parser.add_argument("--json", type=Path, required=True, help="file of the rates")
    parser.add_argument("--queries", type=int, default=20, help="measured queries of each family, a multiple of 4")
    parser.add_argument("--seed", type=int, default=0, help="divides the pairs of each family")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    use_threads(options.threads)
    content = json.loads(options.json.read_text()) if options.json.exists() else {"models": {}}
    for name in options.models:
        learner = Learner.load(name)
        facts = {
            "model": learner.base_hash, "english": VERSION, "seed": options.seed, "demonstrations": DEMONSTRATIONS,
        }  # fmt: skip
        earlier = content["models"].get(name, {})
        rows = {row["name"]: row for row in earlier.get("families", [])} if facts.items() <= earlier.items() else {}
        for family in RULES:
            if tasks := tasks_of(family, options.queries, options.seed):
                rows[family] = measured(learner, family, rows.get(family, {}), tasks)
                print(name, *rows[family].values(), flush=True)
                content["models"][name] = {**facts, "families": list(rows.values())}
                options.json.write_text(json.dumps({"about": ABOUT, "models": content["models"]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
