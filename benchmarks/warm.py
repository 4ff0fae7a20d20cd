"""Whether beginning with a known adapter (`ttt_warm`) saves steps or raises accuracy, beside `ttt_in_context`.

    python benchmarks/warm.py --tasks 60 --domain lists --json runs/warm.json

Tasks of the generator's `policy` families come one after the other, and both strategies train on each; the adapters
that `ttt_warm` may begin with are those of the tasks before. `new` tasks are drawn as they come, of many families; in
`returning`, few families come again and again: the most frequent ones of many tasks, each at least --often times.
Differences are paired, with 90% intervals by bootstrap over tasks.
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
from autottt.ttt_core.tasks.task import Task


def returning(tasks: list[Task], count: int, often: int, rng: random.Random) -> list[Task]:
    """The tasks of families that have at least `often`, family by family up to about `count`, in a random order."""
    kept: list[Task] = []
    for family, times in Counter(t.family for t in tasks).most_common():
        if times < often or len(kept) >= count:
            break
        kept += [t for t in tasks if t.family == family]
    return rng.sample(kept, len(kept))


def measure(learner: Learner, tasks: list[Task]) -> list[dict[str, Any]]:
    """What both strategies did on each task."""
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
                f"{name}_right": attempt.value == task.answer, f"{name}_steps": training.steps,
                f"{name}_work": attempt.cost.token_equivalents, f"{name}_first_loss": training.losses[0],
            }  # fmt: skip
        rows.append(row)
    return rows


def compared(rows: list[dict[str, Any]], what: str) -> dict[str, Any]:
    """Means of both, and the interval of the difference."""
    warm, cold = (np.array([float(r[f"{name}_{what}"]) for r in rows]) for name in ("warm", "cold"))
    drawn = np.random.default_rng(0).integers(0, len(rows), (2000, len(rows)))
    low, high = np.quantile((warm - cold)[drawn].mean(1), (0.05, 0.95))
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
    given = parser.parse_args()
    learner = Learner.load(given.model)
    many = draw_tasks("policy", 20 * given.tasks, given.seed, given.domain)
    streams = {"new": many[: given.tasks], "returning": returning(many, given.tasks, given.often, random.Random(0))}
    facts: dict[str, Any] = {"hash": learner.base_hash, "domain": given.domain, "seed": given.seed}
    for name, tasks in streams.items():
        rows = measure(learner, tasks)
        families = len({r["family"] for r in rows})
        print(f"{name}: {len(rows)} tasks of {families} families")
        facts[name] = {"tasks": len(rows), "families": families}
        for what in ("right", "steps", "work", "first_loss"):
            one = facts[name][what] = compared(rows, what)
            low, high = one["difference_90"]
            print(f"  {what:<11} warm {one['warm']:9.2f}  cold {one['cold']:9.2f}  difference [{low:.2f}, {high:.2f}]")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
