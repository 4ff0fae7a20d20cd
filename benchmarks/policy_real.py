"""Judges policies of all models whose outcomes there are, and one for unknown models; run by `make bench-policy-real`.

    python benchmarks/policy_real.py STORE... --json benchmarks/results/policy_real.json [--quick]

STORE is a folder of outcomes, or a folder of such folders. Each measurement is stored in --rows under the digest of its
outcomes: an interrupted run continues there. Models with fewer than MIN_FAMILIES families are named and left out.
A model is named by the folder that holds its outcomes alone.
Intervals are 90% bootstrap intervals over families. Nothing is collected: `autottt collect` does that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from policy_real_rows import BUNDLED, goal_rows
from row_files import percent_interval, read_rows

from autottt.policies.any_model import bundled_vocabulary, train_any_model
from autottt.policies.held_out_domains import at_cost_weights, domains_held_out
from autottt.policies.outcome_table import OutcomeTable, build_outcome_table
from autottt.policies.outcomes import BASE, Outcome, OutcomeStore
from autottt.policies.training import DEFAULT_ACCURACY_PER_MAX_COST, TrainingSettings, train_policy

MIN_FAMILIES = 20
LINEAR = ("logistic", "logistic_free", "nearest_families")
"""Candidates for domains held out, of which many policies are fitted."""
COST_SHARES = (0.3, 0.2, 0.1, 0.05, 0.02)
"""Accuracy that the most expensive strategy costs, for the curve on domains held out."""
RACE, RIVAL = "ttt_race", "ttt_augmented"


def outcomes_in(stores: Sequence[Path]) -> tuple[dict[str, list[Outcome]], dict[str, str]]:
    """The outcomes by the content hash of the model, of a key that occurs again the first; and a name for each model:
    that of the bundled one, else of the folder that holds its outcomes alone, else the beginning of the hash."""
    by_key, names = {}, dict[str, str]()
    for folder in stores:
        inner = [p for p in sorted(folder.iterdir()) if p.is_dir()] if folder.is_dir() else []
        for store in inner or [folder]:
            outcomes = list(OutcomeStore(store).read())
            models = {outcome.base_hash for outcome in outcomes}
            for model in models:
                names[model] = store.name if len(models) == 1 else names.get(model, model[:12])
            for outcome in outcomes:
                by_key.setdefault(outcome.key, outcome)
    by_model: dict[str, list[Outcome]] = {}
    for outcome in by_key.values():
        by_model.setdefault(outcome.base_hash, []).append(outcome)
    return by_model, names | dict.fromkeys(bundled_vocabulary(), BUNDLED)


class Rows:
    """Measurements in a file of JSON lines; one that is there is not repeated."""

    def __init__(self, file: Path) -> None:
        self._file, self._known = file, {row["key"]: row for row in read_rows(file)}

    def measured(self, name: str, outcomes: Sequence[Outcome], measure: Callable[[], Any], *settings: object) -> Any:
        """The stored or new value of a measurement on these outcomes."""
        facts = repr((name, settings, sorted((*o.key, o.correct, o.relative_cost) for o in outcomes)))
        key = f"{name} {hashlib.sha256(facts.encode()).hexdigest()[:16]}"
        if key not in self._known:
            self._known[key] = {"key": key, "value": measure()}
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a") as file:
                file.write(json.dumps(self._known[key]) + "\n")
        print(f"{name}: done", flush=True)
        return self._known[key]["value"]


def own_policy(outcomes: Sequence[Outcome], repeats: int, workers: int) -> dict[str, Any]:
    """The scorecard of a policy for one model, in short."""
    card = train_policy(outcomes, repeats=repeats, workers=workers).scorecard
    return short_card(card) | {"repeats": card["repeats"], "cost_weight_curve": card["cost_weight_curve"]}


def short_card(card: dict[str, Any]) -> dict[str, Any]:
    """What is compared over models: arms, gains with intervals, routing, estimates and harm."""
    fixed = {name: arm for name, arm in card["arms"].items() if name in card["shares"]}
    best = max(fixed, key=lambda name: fixed[name]["accuracy"])
    policy, difficulty = card["arms"]["policy"], card["difficulty"]
    return {
        "families": card["families"], "cases": card["cases"], "arms": card["arms"], "strategies": list(fixed),
        "best_fixed": best, "accuracy_beyond_best_fixed": policy["accuracy"] - fixed[best]["accuracy"],
        "cost_of_best_fixed": policy["cost"] / fixed[best]["cost"],
        "gap_closed_per_task": card["gap_closed_per_task"], "gain_over_sbs": card["gain_over_sbs"],
        "gain_over_rule_of_thumb": card["gain_over_rule_of_thumb"], "routing": card["routing"],
        "auroc": difficulty["auroc"], "ece": difficulty["ece"], "harm_share": card["harm_share"],
        "intervals_90": card["intervals_90"], "partly_tried": card["partly_tried"],
    }  # fmt: skip


def compared_outcomes(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes of the strategies that a policy of all of them chooses between: not of those that were tried on a
    few of the queries only."""
    strategies = set(build_outcome_table(outcomes).strategies)
    return [outcome for outcome in outcomes if outcome.strategy in strategies]


def held_out(outcomes: Sequence[Outcome], quick: bool) -> dict[str, Any]:
    """Domains held out whole, and the curve over cost weights."""
    table = build_outcome_table(outcomes)
    weight = DEFAULT_ACCURACY_PER_MAX_COST / float(np.nanmean(table.costs, axis=0).max())
    settings = TrainingSettings(weight, 0, 5, LINEAR)
    result = domains_held_out(table, settings)
    return {"held_out": result, "curve": {} if quick else at_cost_weights(table, settings, COST_SHARES)}


def race(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Racing beside one-shot training, on the queries that both were tried on; an answer of the race gives way to the
    in-context answer as in serving."""
    queries: dict[tuple[str, str, int], set[str]] = {}
    for outcome in outcomes:
        queries.setdefault((outcome.dataset, outcome.task_id, outcome.seed), set()).add(outcome.strategy)
    both = {query for query, tried in queries.items() if {BASE, RACE, RIVAL} <= tried}
    names = (BASE, RACE, RIVAL)
    some = [o for o in outcomes if (o.dataset, o.task_id, o.seed) in both and o.strategy in names]
    if not some:
        return {"cases": 0}
    table: OutcomeTable = build_outcome_table(some).complete()
    arms = {
        name: {
            "accuracy": float(table.alone[:, s].mean()), "cost": float(table.costs[:, s].mean()),
            "harm_share": float((table.alone[:, s] < table.correct[:, 0]).mean()),
        }
        for s, name in enumerate(table.strategies)
    }  # fmt: skip
    return {"cases": len(table), "families": len(set(table.families)), "arms": arms}


def strategy_numbers(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Accuracy, gain over the in-context answer, harm, cost and seconds of each strategy that was tried, on the queries
    that it and `in_context` were tried on. Cost and seconds are those of a query alone, training included."""
    by_strategy: dict[str, dict[tuple[str, str, int], Outcome]] = {}
    for outcome in outcomes:
        by_strategy.setdefault(outcome.strategy, {})[outcome.dataset, outcome.task_id, outcome.seed] = outcome
    base = by_strategy.get(BASE, {})
    numbers = {}
    for name, tried in by_strategy.items():
        pairs = [(base[query], outcome) for query, outcome in tried.items() if query in base]
        gains: dict[str, list[float]] = {}
        for before, after in pairs:
            gains.setdefault(after.family, []).append(after.correct - before.correct)
        numbers[name] = {
            "cases": len(pairs), "families": len(gains),
            "accuracy": fmean(after.correct for _, after in pairs),
            "gain_interval_90": percent_interval(gains),
            "gain": fmean(gain for some in gains.values() for gain in some),
            "harm_share": fmean(before.correct > after.correct for before, after in pairs),
            "cost": fmean(after.relative_cost for _, after in pairs),
            "seconds": median(after.seconds for _, after in pairs),
        }  # fmt: skip
    return dict(sorted(numbers.items(), key=lambda item: item[1]["cost"]))


def more_certain(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """By strategy that trains without cross-validation: what it gains where the in-context answer stands if it is more
    certain than the answer after training, as in serving."""
    table = build_outcome_table(outcomes)
    numbers = {}
    for s, name in enumerate(table.strategies):
        tried = np.flatnonzero(table.applicable[:, s] & ~np.isnan(table.alone[:, s]))
        served, alone, base = table.correct[tried, s], table.alone[tried, s], table.correct[tried, 0]
        if not (served != alone).any():
            continue
        gains: dict[str, list[float]] = {}
        for case, gain in zip(tried, served - alone, strict=True):
            gains.setdefault(table.families[case], []).append(float(gain))
        numbers[name] = {
            "cases": len(tried), "accuracy_alone": float(alone.mean()), "gain": float((served - alone).mean()),
            "gain_interval_90": percent_interval(gains), "harm_share_alone": float((alone < base).mean()),
            "harm_share": float((served < base).mean()),
        }  # fmt: skip
    return numbers


def any_model(by_model: dict[str, list[Outcome]]) -> dict[str, Any]:
    """The policy for unknown models: each model in turn held out with its families."""
    card = train_any_model([o for some in by_model.values() for o in some], bundled_vocabulary()).scorecard
    return {
        "gain_over_rule_of_thumb": card["gain_over_rule_of_thumb"], "families": card["families"],
        "models": {model: short_card(one) for model, one in card["models"].items()},
    }  # fmt: skip


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", type=Path, nargs="+")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rows", type=Path, default=Path("runs/policy_real.rows.jsonl"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    (by_model, names), rows = outcomes_in(options.stores), Rows(options.rows)
    enough = {m: some for m, some in by_model.items() if len({o.family for o in some}) >= MIN_FAMILIES}
    compared = {model: compared_outcomes(some) for model, some in enough.items()}
    left_out = {m: len({o.family for o in some}) for m, some in by_model.items() if m not in enough}
    results: dict[str, Any] = {}
    repeats = 1 if options.quick else 5
    for model, outcomes in enough.items():
        collected = compared[model]
        results[model] = {
            "strategies": strategy_numbers(outcomes),
            "more_certain": more_certain(collected),
            "domains": rows.measured(
                f"domains {model[:12]}", collected, lambda o=collected: held_out(o, options.quick), options.quick
            ),
            "race": rows.measured(f"race {model[:12]}", outcomes, lambda o=outcomes: race(o)),
            "own_policy": rows.measured(
                f"own {model[:12]}", outcomes, lambda o=outcomes: own_policy(o, repeats, options.workers), repeats
            ),
        }
    every = [o for some in compared.values() for o in some]
    unknown = rows.measured("any model", every, lambda: any_model(compared)) if len(compared) > 1 else None
    if unknown is not None:
        unknown["models"] = {names[model]: card for model, card in unknown["models"].items()}
    models = {names[model]: parts for model, parts in results.items()}
    git = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    facts = {
        "commit": git.stdout.strip(), "date": datetime.now(UTC).date().isoformat(), "quick": options.quick,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {n: version(n) for n in ("autottt", "torch", "scikit-learn")},
        "families_of_models_left_out": {names[model]: count for model, count in left_out.items()},
        "models": models, "any_model": unknown, "rows": goal_rows(models, unknown),
    }  # fmt: skip
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
