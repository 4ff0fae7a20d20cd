"""Compares a warm start from a cached adapter (`ttt_warm`) with `ttt_in_context`: steps, work and accuracy.

    python benchmarks/warm.py --tasks 60 --domain lists --json runs/warm.json

Both strategies train on each task of a sequence of the generator's `policy` families; `ttt_warm` can start from the
adapters of the tasks before. `new` is a random sequence of many families. In `returning`, few families recur: the most
frequent ones of a larger sample, each with at least --often tasks. Differences are paired, with 90% bootstrap intervals
over tasks.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from autottt.strategies.base import run
from autottt.strategies.registry import get_strategy
from autottt.ttt_core.errors import AutotttError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.pretraining.generator.families import draw_tasks
from autottt.ttt_core.tasks.answers import is_right
from autottt.ttt_core.tasks.task import Task


def recurring(tasks: list[Task], count: int, often: int, rng: random.Random) -> list[Task]:
    """About `count` tasks of the most frequent families, each with at least `often` tasks, in random order."""
    recurrent: list[Task] = []
    for family, times in Counter(t.family for t in tasks).most_common():
        if times < often or len(recurrent) >= count:
            break
        recurrent += [t for t in tasks if t.family == family]
    return rng.sample(recurrent, len(recurrent))


def measure(learner: Learner, tasks: list[Task]) -> list[dict[str, Any]]:
    """The results of both strategies on each task."""
    rows = []
    learner.clear()
    for task in tasks:
        cache = learner.adapters.cache
        try:
            warm = run(get_strategy("ttt_warm"), learner, task)
            learner.adapters.cache = type(cache)()  # so that the two strategies share no adapters
            cold = run(get_strategy("ttt_in_context"), learner, task)
        except AutotttError:
            continue
        finally:
            learner.adapters.cache = cache
        if warm.training_record is None or cold.training_record is None:
            continue
        row: dict[str, Any] = {"family": task.family}
        for name, attempt in (("warm", warm), ("cold", cold)):
            training = attempt.training_record
            assert training is not None
            row |= {
                f"{name}_right": is_right(task, attempt.value), f"{name}_steps": training.steps,
                f"{name}_work": attempt.cost.token_equivalents, f"{name}_first_loss": training.losses[0],
            }  # fmt: skip
        rows.append(row)
    return rows


def compare(rows: list[dict[str, Any]], measure_name: str) -> dict[str, Any]:
    """Means of both strategies, and the interval of the difference."""
    warm, cold = (np.array([float(r[f"{name}_{measure_name}"]) for r in rows]) for name in ("warm", "cold"))
    samples = np.random.default_rng(0).integers(0, len(rows), (2000, len(rows)))
    low, high = np.quantile((warm - cold)[samples].mean(1), (0.05, 0.95))
    return {"warm": fmean(warm), "cold": fmean(cold), "difference_90": [float(low), float(high)]}


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=60)
    parser.add_argument("--domain", default="lists")
    parser.add_argument("--often", type=int, default=4)
    parser.add_argument("--model", default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    learner = Learner.load(options.model)
    many = draw_tasks("policy", 20 * options.tasks, options.seed, options.domain)
    streams = {
        "new": many[: options.tasks],
        "returning": recurring(many, options.tasks, options.often, random.Random(0)),
    }
    facts: dict[str, Any] = {"hash": learner.base_hash, "domain": options.domain, "seed": options.seed}
    for name, tasks in streams.items():
        rows = measure(learner, tasks)
        families = len({r["family"] for r in rows})
        print(f"{name}: {len(rows)} tasks of {families} families")
        facts[name] = {"tasks": len(rows), "families": families}
        for what in ("right", "steps", "work", "first_loss"):
            one = facts[name][what] = compare(rows, what)
            low, high = one["difference_90"]
            print(f"  {what:<11} warm {one['warm']:9.2f}  cold {one['cold']:9.2f}  difference [{low:.2f}, {high:.2f}]")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
