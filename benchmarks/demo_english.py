"""Measures real models on the English families in context, and writes the rates that `autottt demo` uses for them.

    python benchmarks/demo_english.py smollm2-135m gemma3-270m --json controller/cli/demo_english.json

The pairs of each family are divided in two halves by --seed. Tasks of the first half are answered in context, in the
prompt format that is chosen for each, which gives the family's rate; the demo draws its tasks from the second half. No
strategy that trains is run. Models that are not named keep the rates in the file; families that are in it already are
not measured again, so that an interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path
from typing import Any

from demo_families import band_of

from autottt import Learner
from autottt.controller.cli.demo import english_tasks
from autottt.ttt_core.model.loading import use_threads
from autottt.ttt_core.sources.english import RULES, VERSION, halves

QUERIES = 4
"""Of a measured task; they share its demonstrations."""
ABOUT = (
    "In-context rates on the English families, by benchmarks/demo_english.py, on one half of the pairs of each; the "
    "demo draws its tasks from the other half. No strategy that trains was run."
)


def rate(learner: Learner, family: str, queries: int, seed: int) -> dict[str, Any]:
    """The row of a family: right answers to the queries of its first half."""
    right = 0
    every = english_tasks(family, halves(family, seed)[0], queries // QUERIES, seed, QUERIES)
    for _, group in groupby(every, key=lambda task: task.demonstrations):
        tasks = [learner.formats.formatted(task) for task in group]
        answers = learner.answer(tasks)
        right += sum(answer.value == task.answer for answer, task in zip(answers, tasks, strict=True))
    return {"name": family, "band": band_of(right / len(every)), "right": right, "queries": len(every)}


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
        facts = {"model": learner.base_hash, "english": VERSION, "seed": options.seed}
        earlier = content["models"].get(name, {})
        rows = earlier.get("families", []) if facts.items() <= earlier.items() else []
        content["models"][name] = {**facts, "families": rows}
        for family in [family for family in RULES if family not in {row["name"] for row in rows}]:
            rows.append(rate(learner, family, options.queries, options.seed))
            print(name, *rows[-1].values(), flush=True)
            options.json.write_text(json.dumps({"about": ABOUT, "models": content["models"]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
