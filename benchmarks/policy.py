"""Collects outcomes, trains a policy on the generator's families alone, and judges it; `make bench-policy` runs it.

    python benchmarks/policy.py DATA --runs runs/policy --json benchmarks/results/policy.json [--quick]

DATA is a folder with `open/<set>.jsonl` and `outcomes/bbh_llama31_8b.csv`; what it lacks is left out, and said. The
outcomes are kept under --runs, so an interrupted run goes on from there. Writes the rows {"name", "value", "unit",
"against", "goal", "holds"} with the machine, versions, commit and date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from autottt.policies.bundle import save_bundle
from autottt.policies.cases import BASE, Cases, cases_of
from autottt.policies.features import NAMES, Features
from autottt.policies.heads import CANDIDATES, folds
from autottt.policies.imported import import_csv
from autottt.policies.outcomes import Outcome, OutcomeStore
from autottt.policies.parallel import Source, collect_with_workers
from autottt.policies.policy import LearnedPolicy, replayed
from autottt.policies.report import write_report
from autottt.policies.trained import TrainedPolicy
from autottt.policies.training import Settings, fit, train_policy
from autottt.strategies.base import get_strategy
from autottt.ttt_core.generator.families import draw_tasks
from autottt.ttt_core.readers import read_tasks
from autottt.ttt_core.tasks import Task

ARMS = ("in_context", "in_context_vote", "ttt_in_context", "ttt_augmented")
SETS = ("list_functions_rule", "arc_1d", "mini_arc", "letter_string", "function_vectors", "concept_arc")
"""Open sets that the policy is judged on; it is not trained on any."""
GENERATED, QUERIES, OF_A_SET = 600, 1, 60
"""Tasks of the generator, queries of each of them, and queries of each open set."""
QUICK = 10


def some(tasks: Sequence[Task], count: int) -> list[Task]:
    """Every so manieth task, so that all families have their share."""
    return list(tasks[:: max(1, len(tasks) // count)])[:count]


def collected(folder: Path, tasks: list[Task], model: str | None, workers: int) -> list[Outcome]:
    """The outcomes of all strategies on the tasks; those in the folder are not measured again."""
    store = OutcomeStore(folder)

    def tell(done: int, total: int) -> None:
        print(f"\r{folder.name}: {done} of {total}", end="" if done < total else "\n", file=sys.stderr, flush=True)

    strategies = [get_strategy(name) for name in ARMS]
    collect_with_workers(Source(model), tasks, strategies, [0], store, workers=workers, on_progress=tell)
    wanted = {(t.dataset, t.id) for t in tasks}
    return [o for o in store.read() if (o.dataset, o.task_id) in wanted and o.strategy in ARMS]


def transferred(policy: LearnedPolicy, cases: Cases) -> dict[str, float]:
    """Utility, accuracy and cost on a set that the policy was not trained on, beside the single best strategy there
    was in training."""
    choice, measured = replayed(policy, cases)
    right, costs = cases.decided(choice, measured)
    price = policy.trained.price
    single = cases.strategies.index(policy.trained.ranking[0])
    return {
        "utility": float((right - price * costs).mean()), "accuracy": float(right.mean()), "cost": float(costs.mean()),
        "single_utility": float((cases.right[:, single] - price * cases.costs[:, single]).mean()),
        "single_accuracy": float(cases.right[:, single].mean()), "single_cost": float(cases.costs[:, single].mean()),
        "in_context": float(cases.right[:, 0].mean()),
    }  # fmt: skip


def without_features(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Of a table without features, sub-tasks held out: the single best strategy of the others, and the best of each."""
    names = [BASE, *sorted({o.strategy for o in outcomes} - {BASE})]
    families = sorted({o.family for o in outcomes})
    cells = {(o.family, o.strategy): [] for o in outcomes}  # type: dict[tuple[str, str], list[Outcome]]
    for outcome in outcomes:
        cells[outcome.family, outcome.strategy].append(outcome)
    right = np.array([[statistics.fmean(o.correct for o in cells[f, s]) for s in names] for f in families])
    costs = np.array([[statistics.fmean(o.cost for o in cells[f, s]) for s in names] for f in families])
    worth = right - 0.1 / costs.mean(0).max() * costs
    held = [worth[n, np.delete(worth, n, 0).mean(0).argmax()] for n in range(len(families))]
    return {
        "single": float(np.mean(held)), "best_of_each": float(worth.max(1).mean()),
        "in_context": float(worth[:, 0].mean()), "families": len(families),
    }  # fmt: skip


def row(
    name: str, value: float, unit: str, against: str, goal: float | None, most: bool = False, **more: Any
) -> dict[str, Any]:
    """A number, and whether it reaches its goal: the least, or the most, that it should be."""
    holds = None if goal is None else (value <= goal if most else value >= goal)
    verdict = "" if goal is None else f"  goal {goal:g}: {'holds' if holds else 'does not hold'}"
    print(f"{name:<66} {value:8.3f} {unit} ({against}){verdict} {more or ''}", flush=True)
    return {
        "name": name,
        "value": round(value, 4),
        "unit": unit,
        "against": against,
        "goal": goal,
        "holds": holds,
        **more,
    }


def judged(trained: TrainedPolicy) -> list[dict[str, Any]]:
    """The scorecard's numbers beside their goals."""
    card = trained.scorecard
    gap, routing, draws = card["gap_closed"], card["routing"], card["repeats"]
    fixed = {name: card["arms"][name] for name in trained.strategies}
    best = max(fixed, key=lambda name: fixed[name]["accuracy"])
    policy = card["arms"]["policy"]
    rows = []
    if gap:
        low, high = gap["interval_90"]
        mean = f"mean of {draws['draws']} draws of the folds"
        rows.append(row(f"gap closed, families held out, {mean}", draws["gap_closed"]["mean"], "of it",
                        "single best to best of each", 0.5, range=draws["gap_closed"]["range"]))  # fmt: skip
        rows.append(row("gap closed, lower bound, all draws", low, "of it", "single best to best of each", 0.0,
                        of_it=round(gap["value"], 3), interval_90=[round(low, 3), round(high, 3)]))  # fmt: skip
    bounds = card["intervals_90"]

    def drawn(name: str) -> tuple[float, dict[str, Any]]:
        """The mean over the draws, their range, and the first one's interval."""
        found = draws[name]
        return found["mean"], {"range": found["range"], "interval_90_first_draw": bounds.get(name)}

    if routing:
        apgr, more = drawn("apgr")
        rows.append(row("APGR over the share of queries sent", apgr, "area", "0.5 at random", 0.8, **more))
        rows.append(row("APGR over the share of the cost", routing["apgr_cost"], "area", "0.5 at random", None))
        rows.append(row("share of queries for 95% of the gain, first draw", routing["cpt_95"], "of them", "all", 0.5,
                        most=True, interval_90_first_draw=bounds.get("cpt_95")))  # fmt: skip
    rows.append(row("gap closed by the rule of thumb for models without a policy",
                    _closed(card["arms"], "rule_of_thumb"), "of it", "single best to best of each", None))  # fmt: skip
    gained = policy["accuracy"] - fixed[best]["accuracy"]
    rows.append(row("accuracy beyond the best fixed strategy", gained, "share", f"always {best}", 0.0))
    rows.append(row("cost", policy["cost"] / fixed[best]["cost"], "of its cost", f"always {best}", 0.4, most=True))
    if "auroc" in draws:
        auroc, more = drawn("auroc")
        rows.append(row("AUROC of an in-context answer being right", auroc, "area", "-", 0.85, **more))
    harm, more = drawn("harm_share")
    rows.append(row("harm: right in context, wrong as decided", harm, "of the cases", "-", 0.02, most=True, **more))
    return rows


def _closed(arms: Mapping[str, Mapping[str, float]], name: str) -> float:
    """The share of what lies between the single best strategy and the best of each that an arm closes."""
    single, best = arms["single_best"]["utility"], arms["best_of_each"]["utility"]
    return (arms[name]["utility"] - single) / (best - single) if best > single else 0.0


def with_public(generated: Sequence[Outcome], public: Sequence[Outcome], price: float) -> dict[str, float]:
    """Utility on queries of the open sets of a policy that was trained on generated families alone, and of one trained
    on other families of the open sets as well."""
    settings = Settings(price, 0, 5, tuple(CANDIDATES))
    cases = cases_of([*generated, *public])
    theirs = np.isin(np.array(cases.datasets), sorted({o.dataset for o in public}))
    found: dict[str, list[float]] = {"generated": [], "both": []}
    for learn, held in folds(cases.families, 5, 0):
        unseen = cases.take(held[theirs[held]]).complete()
        for name, known in (("generated", learn[~theirs[learn]]), ("both", learn)):
            policy = LearnedPolicy(fit(cases.take(known), settings))
            right, costs = unseen.decided(*replayed(policy, unseen))
            found[name] += (right - price * costs).tolist()
    return {name: statistics.fmean(values) for name, values in found.items()} | {"queries": len(found["both"])}


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--model", default=None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    generated = draw_tasks("policy", 4 * QUICK if given.quick else GENERATED, 0, queries=1 if given.quick else QUERIES)
    outcomes = collected(given.runs / "generated", generated, given.model, given.workers)
    trained = train_policy(outcomes, workers=given.workers)
    save_bundle(trained, given.runs / "bundle")
    write_report(trained, given.runs / "bundle")
    policy = LearnedPolicy(trained)
    rows = judged(trained)
    better, public = [], []
    for name in SETS:
        file = given.data / "open" / f"{name}.jsonl"
        if not file.is_file():
            print(f"{file} is not there: left out")
            continue
        tasks = some(read_tasks([file]).tasks, QUICK if given.quick else OF_A_SET)
        public += (theirs := collected(given.runs / name, tasks, given.model, given.workers))
        found = transferred(policy, cases_of(theirs))
        better.append(found["utility"] > found["single_utility"])
        rows.append(row(
            f"{name}: utility beyond the single best", found["utility"] - found["single_utility"], "utility",
            f"always {trained.ranking[0]}", None, False, **{k: round(v, 3) for k, v in found.items()},
        ))  # fmt: skip
    if better:
        rows.append(
            row("open sets with a better utility", statistics.fmean(better), "of them", "the single best", 0.5001)
        )
        both = with_public(outcomes, public, trained.price)
        rows.append(row(
            "open sets: utility of training on other families of them too", both["both"] - both["generated"], "utility",
            "generated families alone", None, False, **{k: round(v, 3) for k, v in both.items()},
        ))  # fmt: skip
    table = given.data / "outcomes" / "bbh_llama31_8b.csv"
    if table.is_file():
        found = without_features(import_csv(table, in_context="ICL_10"))
        rows.append(row(
            "BIG-Bench Hard table, no features: gap that a choice by query could close",
            found["best_of_each"] - found["single"], "utility", "single best, sub-tasks held out", None, False, **found,
        ))  # fmt: skip
    cases = cases_of(outcomes)
    free, features = (
        Features(stage, dict(zip(NAMES[stage], cases.stage(stage)[0].tolist(), strict=True))) for stage in NAMES
    )
    times = []
    for _ in range(200):
        began = time.perf_counter()
        policy.needs_more(free)
        policy.decide(features, cases.strategies)
        times.append(1000 * (time.perf_counter() - began))
    rows.append(row("deciding on one query after features", statistics.median(times), "ms", "-", 2.0, most=True))
    git = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    facts = {
        "commit": git.stdout.strip(), "date": datetime.now(UTC).date().isoformat(), "quick": given.quick,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {n: version(n) for n in ("autottt", "torch", "scikit-learn")}, "model": trained.base_hash,
        "rows": rows,
    }  # fmt: skip
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
