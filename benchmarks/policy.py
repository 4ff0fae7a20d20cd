"""Collects outcomes, trains a policy on the generator's families alone, and evaluates it; run by `make bench-policy`.

    python benchmarks/policy.py DATA --outcomes benchmarks/outcomes --json benchmarks/results/policy.json [--quick]

DATA is a folder with `open/<set>.jsonl` and `outcomes/bbh_llama31_8b.csv`; missing files are reported and skipped. The
outcomes are in --outcomes, a store per set: an interrupted run continues there, and stored outcomes are not measured
again. The bundle is written to --bundle. Writes rows {"name", "value", "unit", "against", "goal", "holds"} with the
skipped sets, machine, versions, commit and date. Intervals are bootstrap intervals over families.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autottt.policies.bundle import load_bundle, save_bundle
from autottt.policies.classifiers import CANDIDATES, group_folds
from autottt.policies.csv_import import import_csv
from autottt.policies.features import Features
from autottt.policies.outcome_table import OutcomeTable, build_outcome_table
from autottt.policies.outcomes import BASE, Outcome, OutcomeStore
from autottt.policies.parallel import Source, collect_with_workers
from autottt.policies.policy import BUNDLED, LearnedPolicy
from autottt.policies.report import arm_name, write_report
from autottt.policies.scorecard import Bootstrap
from autottt.policies.simulation import simulate
from autottt.policies.trained_policy import TrainedPolicy
from autottt.policies.training import DEFAULT_ACCURACY_PER_MAX_COST, TrainingSettings, fit, train_policy
from autottt.strategies.registry import get_strategy
from autottt.ttt_core.pretraining.generator.families import draw_tasks
from autottt.ttt_core.tasks.readers import read_tasks
from autottt.ttt_core.tasks.task import Task

ARMS = ("in_context", "in_context_vote", "ttt_in_context", "ttt_augmented")
SETS = {
    "list_functions_rule": 60, "arc_1d": 60, "mini_arc": 45, "letter_string": 60, "function_vectors": 60,
    "concept_arc": 36,
}  # fmt: skip
"""Public sets that the policy is evaluated on, and the number of queries of each; it is trained on none of them."""
OMITTED = {
    "arc_agi_1": "large grids: a fifth is over-long, and the rest takes hours; benchmarks/model.py has it",
    "arc_agi_2": "as arc_agi_1, and larger",
    "bbh": "two thirds and more are over-long; English and knowledge more than rules",
    "instruction_induction": "English and knowledge more than rules, as function_vectors, with fewer tasks",
}
"""Public sets that it is not evaluated on, and why."""
GENERATED, QUERIES = 600, 3
"""Tasks of the generator, and queries per task."""
QUICK = 10
ABOVE_0 = 1e-9
"""The goal `above 0`."""


def sample_of(tasks: Sequence[Task], count: int) -> list[Task]:
    """A random sample of tasks; a smaller sample is part of a larger one."""
    return random.Random(0).sample(tasks, len(tasks))[:count]


def collect_outcomes(
    folder: Path, tasks: list[Task], model: str | None, workers: int, seeds: Sequence[int] = (0,)
) -> list[Outcome]:
    """The outcomes of all strategies on the tasks; stored ones are not measured again."""
    store = OutcomeStore(folder)

    def show_progress(done: int, total: int) -> None:
        print(f"\r{folder.name}: {done} of {total}", end="" if done < total else "\n", file=sys.stderr, flush=True)

    strategies = [get_strategy(name) for name in ARMS]
    collect_with_workers(Source(model), tasks, strategies, seeds, store, workers=workers, on_progress=show_progress)
    wanted = {(t.dataset, t.id) for t in tasks}
    return [o for o in store.read() if (o.dataset, o.task_id) in wanted and o.strategy in ARMS and o.seed in seeds]


def evaluate_transfer(policy: LearnedPolicy, cases: OutcomeTable) -> dict[str, Any]:
    """Utility, accuracy and cost on a set that the policy was not trained on, of the policy and of the SBS of its
    training, and the gain over the SBS with its interval."""
    right, costs = cases.score_routing(simulate(policy, cases))
    weight = policy.trained.cost_weight
    single = cases.strategies.index(policy.trained.ranking[0])
    utilities = {
        "policy": right - weight * costs,
        "single": cases.alone[:, single] - weight * cases.costs[:, single],
    }
    gain = Bootstrap(cases.families, utilities, 0).gain("single")
    assert gain is not None
    numbers = {
        "utility": utilities["policy"].mean(), "accuracy": right.mean(), "cost": costs.mean(),
        "sbs_utility": utilities["single"].mean(), "sbs_accuracy": cases.alone[:, single].mean(),
        "sbs_cost": cases.costs[:, single].mean(), "in_context": cases.correct[:, 0].mean(), "gain": gain["value"],
    }  # fmt: skip
    result: dict[str, Any] = {name: round(float(number), 4) for name, number in numbers.items()}
    return result | {"interval_90": rounded(gain["interval_90"]), "queries": len(cases), "over_long": cases.over_long}


def rounded(numbers: Iterable[float]) -> list[float]:
    return [round(float(number), 3) for number in numbers]


def utilities_by_sub_task(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """For a table without features: utility of the SBS of the other sub-tasks, and of the VBS per sub-task, evaluated
    on the runs that selected it, and on a run that did not. The runs of a strategy are numbered in the order of their
    seeds, which differ between strategies."""
    names = [BASE, *sorted({o.strategy for o in outcomes} - {BASE})]
    families = sorted({o.family for o in outcomes})
    cells = {(f, s): list[Outcome]() for f in families for s in names}
    for outcome in sorted(outcomes, key=lambda o: o.seed):
        cells[outcome.family, outcome.strategy].append(outcome)
    runs = min(map(len, cells.values()))
    table = [[cells[f, s][:runs] for s in names] for f in families]
    right, costs = (
        np.array([[[getattr(o, a) for o in c] for c in r] for r in table]) for a in ("correct", "relative_cost")
    )
    worth = (
        right - DEFAULT_ACCURACY_PER_MAX_COST / costs.mean(axis=(0, 2)).max() * costs
    )  # [families, strategies, runs]
    means, index = worth.mean(axis=2), np.arange(len(families))
    of_others = [means[n, np.delete(means, n, 0).mean(axis=0).argmax()] for n in index]
    return {
        "sbs": float(np.mean(of_others)), "vbs_same_runs": float(means.max(axis=1).mean()),
        "vbs_other_runs": float(by_other_runs(worth).mean()), "in_context": float(means[:, 0].mean()),
        "families": len(families), "runs": runs,
    }  # fmt: skip


def by_other_runs(worth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Utility, in each run, of the strategy that is best in all other runs; the mean over the runs. From utilities
    [N, strategies, runs] -> [N]."""
    index, runs = np.arange(len(worth)), worth.shape[2]
    across = [worth[index, np.delete(worth, n, 2).mean(axis=2).argmax(axis=1), n] for n in range(runs)]
    utilities: NDArray[np.float64] = np.mean(across, axis=0)
    return utilities


def gap_closed_by_other_queries(outcomes: Sequence[Outcome], cost_weight: float, single: str) -> dict[str, Any]:
    """Gap closed, between the single strategy and the VBS per task, by the strategy that is best on the task's other
    queries: the VBS is chosen in hindsight, and part of it is chance. The other attempts are not charged; tasks without
    all queries, or with one query, are excluded. No value without a gap."""
    by_task: dict[tuple[str, str, int], dict[str, dict[str, Outcome]]] = {}
    for outcome in outcomes:
        queries = by_task.setdefault((outcome.dataset, outcome.group, outcome.seed), {})
        queries.setdefault(outcome.task_id, {})[outcome.strategy] = outcome
    most = max(map(len, by_task.values()))
    complete = [
        list(queries.values()) for queries in by_task.values()
        if len(queries) == most > 1 and all(by.keys() >= set(ARMS) for by in queries.values())
    ]  # fmt: skip
    if not complete:
        return {"value": None, "interval_90": None, "tasks": 0}
    worth = np.array(
        [[[by[s].correct - cost_weight * by[s].relative_cost for by in queries] for s in ARMS] for queries in complete]
    )
    ours = worth[:, ARMS.index(single)].mean(axis=1)
    best, predicted = worth.mean(axis=2).max(axis=1), by_other_runs(worth)
    families = [queries[0][BASE].family for queries in complete]
    gap = Bootstrap(families, {"policy": predicted, "single": ours, "best": best}, 0).gain("single", "best")
    return {
        "value": gap and gap["value"], "interval_90": gap and rounded(gap["interval_90"]),
        "tasks": len(complete), "queries_each": most, "sbs": round(float(ours.mean()), 4),
        "by_other_queries": round(float(predicted.mean()), 4), "vbs_per_task": round(float(best.mean()), 4),
    }  # fmt: skip


def row(
    name: str, value: float | None, unit: str, against: str, goal: float | None, most: bool = False, **more: Any
) -> dict[str, Any]:
    """A row with a value, and whether it reaches its goal, which is a minimum, or a maximum with `most`. A missing
    value reaches no goal."""
    holds = None if goal is None else value is not None and (value <= goal if most else value >= goal)
    verdict = "" if goal is None else f"  goal {goal:g}: {'reached' if holds else 'not reached'}"
    shown = "none" if value is None else f"{value:.3f}"
    print(f"{name:<66} {shown:>8} {unit} ({against}){verdict} {more or ''}", flush=True)
    return {
        "name": name,
        "value": None if value is None else round(value, 4),
        "unit": unit,
        "against": against,
        "goal": goal,
        "holds": holds,
        **more,
    }


def scorecard_rows(trained: TrainedPolicy) -> list[dict[str, Any]]:
    """The scorecard's metrics with their goals; an undefined metric has no value, and reaches no goal."""
    card = trained.scorecard
    gap, routing, draws = card["gap_closed_per_task"] or {}, card["routing"] or {}, card["repeats"]
    bounds = card["intervals_90"]
    fixed = {name: card["arms"][name] for name in trained.strategies}
    best = max(fixed, key=lambda name: fixed[name]["accuracy"])
    policy = card["arms"]["policy"]

    def over_draws(name: str) -> tuple[float | None, dict[str, Any]]:
        """A metric's mean over the draws, their range, and the interval of the first."""
        metric = draws.get(name, {})
        return metric.get("mean"), {"range": metric.get("range"), "interval_90_first_draw": bounds.get(name)}

    closed, apgr, sent, auroc, harm = (
        over_draws(n) for n in ("gap_closed_per_task", "apgr", "cpt_95", "auroc", "harm_share")
    )
    of_queries = card["gap_closed_per_query"] or {}
    low = gap["interval_90"][0] if gap else None
    gained, against = policy["accuracy"] - fixed[best]["accuracy"], "SBS to VBS per task"
    arms = [
        row(f"{arm_name(name, trained.strategies)}: utility", arm["utility"], "", "-", None,
            accuracy=round(arm["accuracy"], 4), cost=round(arm["cost"], 1),
            interval_90=rounded(arm["interval_90"]))
        for name, arm in sorted(card["arms"].items(), key=lambda item: -item[1]["utility"])
    ]  # fmt: skip
    cheap = [accuracy for _, accuracy, cost in card["cost_weight_curve"] if cost <= 0.4 * fixed[best]["cost"]]
    return [
        *arms,
        row(f"gap closed, families held out, mean of {draws['draws']} draws of the folds", closed[0], "", against,
            0.5, range=closed[1]["range"]),
        row("gap closed, lower bound, all draws", low, "", against, ABOVE_0, gap_closed=gap.get("value"),
            interval_90=rounded(gap.get("interval_90", []))),
        row("gap closed to the VBS per query", of_queries.get("value"), "",
            "SBS to VBS per query", None, interval_90=rounded(of_queries.get("interval_90", []))),
        row("APGR over the share of queries routed", apgr[0], "", "0.5 at random", 0.8, **apgr[1]),
        row("APGR over the share of the cost", routing.get("apgr_cost"), "", "0.5 at random", None),
        row("share of queries for 95% of the gain", sent[0], "", "all", 0.5, most=True, **sent[1]),
        row("gap closed by the heuristic policy", _closed(card["arms"], "rule_of_thumb"),
            "", against, None, without=[] if "ttt_crossfit" in trained.strategies else ["ttt_crossfit"]),
        row("accuracy beyond the best fixed strategy", gained, "", f"always {best}", 0.0),
        row("cost relative to the best fixed strategy", policy["cost"] / fixed[best]["cost"], "x",
            f"always {best}", 0.4, most=True),
        row("accuracy beyond the best fixed strategy, at the cost weight that spends 40% of its cost",
            max(cheap, default=0.0) - fixed[best]["accuracy"], "", f"always {best}", None),
        row("AUROC of an in-context answer being right", auroc[0], "", "-", 0.85, **auroc[1]),
        row("harm: share of queries right in context and wrong as decided", harm[0], "", "-", 0.02, most=True,
            **harm[1]),
    ]  # fmt: skip


def same_as_shipped(trained: TrainedPolicy, shipped: TrainedPolicy, goal: float | None) -> list[dict[str, Any]]:
    """Whether the shipped bundle was trained on the same outcomes, and the difference in utility. For a bundle without
    a digest of its outcomes, accuracy and cost of the fixed strategies are compared instead."""
    here, there = trained.scorecard, shipped.scorecard
    model = trained.base_hash == shipped.base_hash and trained.strategies == shipped.strategies
    if model and here.get("digest") and there.get("digest"):
        same = here["digest"] == there["digest"]
    else:
        same = model and all(
            np.isclose(here["arms"][name][key], there["arms"][name][key], rtol=1e-6)
            for name in trained.strategies
            for key in ("accuracy", "cost")
        )
    cases = {"cases": here["cases"], "shipped_cases": there["cases"], "same_model": model}
    difference = there["arms"]["policy"]["utility"] - here["arms"]["policy"]["utility"]
    return [
        row("the shipped bundle is the one trained on these outcomes", float(same), "yes/no", "the trained one",
            goal, **cases),
        row("utility of the shipped bundle minus that of the trained one", difference, "", "the trained one",
            None),
    ]  # fmt: skip


def _closed(arms: Mapping[str, Mapping[str, float]], name: str) -> float | None:
    """The gap between SBS and VBS per task that an arm closes; None without a gap."""
    single, best = arms["sbs"]["utility"], arms["vbs_per_task"]["utility"]
    return (arms[name]["utility"] - single) / (best - single) if best > single else None


def with_public(generated: Sequence[Outcome], public: Sequence[Outcome], cost_weight: float) -> dict[str, float]:
    """Utility on queries of the open sets of a policy that was trained on generated families alone, and of one trained
    on other families of the open sets as well."""
    cases = build_outcome_table([*generated, *public])
    settings = TrainingSettings(cost_weight, 0, 5, tuple(CANDIDATES)).for_families(
        len({o.family for o in generated}) * 4 // 5
    )
    is_public = np.isin(np.array(cases.datasets), sorted({o.dataset for o in public}))
    utilities: dict[str, list[float]] = {"generated": [], "both": []}
    for learn, held in group_folds(cases.families, 5, 0):
        unseen = cases.take(held[is_public[held]]).complete()
        for name, training in (("generated", learn[~is_public[learn]]), ("both", learn)):
            policy = LearnedPolicy(fit(cases.take(training), settings))
            right, costs = unseen.score_routing(simulate(policy, unseen))
            utilities[name] += (right - cost_weight * costs).tolist()
    return {name: statistics.fmean(values) for name, values in utilities.items()} | {"queries": len(utilities["both"])}


def on_open_sets(
    options: argparse.Namespace, policies: Mapping[str, LearnedPolicy], generated: Sequence[Outcome]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Gains of policies, of which the first is the one under evaluation, on sets that they were not trained on; and the
    omitted sets, with the reasons."""
    rows, public = [], []
    values, sure = [], 0
    policy = next(iter(policies.values()))
    omitted = {name: why for name, why in OMITTED.items() if (options.data / "open" / f"{name}.jsonl").is_file()}
    for file in sorted((options.data / "open").glob("*.jsonl")):
        if file.stem not in (*SETS, *OMITTED):
            omitted[file.stem] = "not known to this script"
    for name, count in SETS.items():
        file = options.data / "open" / f"{name}.jsonl"
        if not file.is_file():
            omitted[name] = "file not found"
            continue
        tasks = sample_of(read_tasks([file]).tasks, min(QUICK, count) if options.quick else count)
        public += (of_set := collect_outcomes(options.outcomes / name, tasks, options.model, options.workers))
        cases = build_outcome_table(of_set)
        transfer, *others = (evaluate_transfer(one, cases) for one in policies.values())
        values.append(transfer["gain"])
        sure += transfer["interval_90"][0] > 0
        more = {
            f"{key}_{what}": other[what]
            for key, other in zip(list(policies)[1:], others, strict=True)
            for what in ("gain", "interval_90")
        }
        rows.append(row(
            f"{name}: utility beyond the SBS", transfer["gain"], "", f"always {policy.trained.ranking[0]}",
            None, **transfer, **more,
        ))  # fmt: skip
    for name, why in omitted.items():
        print(f"{name}: omitted: {why}", flush=True)
    if public:
        rows.append(row(
            "share of open sets with a higher utility than the SBS", statistics.fmean(gain > 0 for gain in values), "",
            "the SBS", 0.5001, sets=len(values), better=sum(gain > 0 for gain in values), better_for_sure=sure,
        ))  # fmt: skip
        both = with_public(generated, public, policy.trained.cost_weight)
        rows.append(row(
            "open sets: utility gained by also training on other families of them",
            both["both"] - both["generated"], "",
            "generated families alone", None, **{k: round(v, 3) for k, v in both.items()},
        ))  # fmt: skip
    return rows, omitted


def on_table(table: Path) -> list[dict[str, Any]]:
    """The gap that a policy could close on outcomes that were measured elsewhere and have no features."""
    if not table.is_file():
        print(f"{table}: omitted: file not found")
        return []
    utilities = utilities_by_sub_task(import_csv(table, in_context="ICL_10"))
    return [row(
        "BIG-Bench Hard table: gap that knowing the sub-task could close",
        utilities["vbs_other_runs"] - utilities["sbs"],
        "", "SBS, sub-tasks held out", None,
        gap_same_runs=round(utilities["vbs_same_runs"] - utilities["sbs"], 4),
        without_features="nothing: all sub-tasks look the same, and a policy is the single best of the others",
        **{k: round(v, 4) for k, v in utilities.items()},
    )]  # fmt: skip


def decision_time(policy: LearnedPolicy, cases: OutcomeTable) -> dict[str, Any]:
    """Time of one decision, once the features of the query have been measured."""
    free, features = (
        Features(stage, dict(zip(names, cases.stage(stage)[0].tolist(), strict=True)))
        for stage, names in sorted(cases.feature_names.items())
    )
    times = []
    for _ in range(200):
        began = time.perf_counter()
        policy.needs_more(free)
        policy.decide(features, cases.strategies)
        times.append(1000 * (time.perf_counter() - began))
    return row("time of one decision, features measured", statistics.median(times), "ms", "-", 2.0, most=True)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--outcomes", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, default=Path("runs/policy"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--model", default=None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    generated = draw_tasks(
        "policy", 4 * QUICK if options.quick else GENERATED, 0, queries=1 if options.quick else QUERIES
    )
    outcomes = collect_outcomes(options.outcomes / "generated", generated, options.model, options.workers)
    trained, shipped = train_policy(outcomes, workers=options.workers), load_bundle(BUNDLED)
    save_bundle(trained, options.bundle, over_released=True)
    write_report(trained, options.bundle)
    policies = {"trained": LearnedPolicy(trained)}
    if (trained.base_hash, trained.strategies) == (shipped.base_hash, shipped.strategies):
        policies["shipped"] = LearnedPolicy(shipped)
    rows = [*scorecard_rows(trained), *same_as_shipped(trained, shipped, None if options.quick else 1.0)]
    hindsight = gap_closed_by_other_queries(outcomes, trained.cost_weight, trained.ranking[0])
    rows.append(row(
        "gap closed by knowing the results of every strategy on the task's other queries", hindsight.pop("value"), "",
        f"always {trained.ranking[0]} to VBS per task", None, **hindsight,
    ))  # fmt: skip
    transfer, omitted = on_open_sets(options, policies, outcomes)
    rows += [*transfer, *on_table(options.data / "outcomes" / "bbh_llama31_8b.csv")]
    rows.append(decision_time(policies["trained"], build_outcome_table(outcomes)))
    git = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    facts = {
        "commit": git.stdout.strip(), "date": datetime.now(UTC).date().isoformat(), "quick": options.quick,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {n: version(n) for n in ("autottt", "torch", "scikit-learn")}, "model": trained.base_hash,
        "omitted": omitted, "rows": rows,
    }  # fmt: skip
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
