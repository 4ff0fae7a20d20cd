"""Compares the gain that `ttt_crossfit` estimates on held-out demonstrations with the gain on the query.

    python benchmarks/crossfit.py --generated 40 --json benchmarks/results/crossfit.json --cases runs/crossfit.jsonl
    python benchmarks/crossfit.py DATA/open/list_functions_rule.jsonl --limit 40 --json OUT --cases runs/lists.jsonl

Prints three tables: accuracy in context, of one adapter trained on all demonstrations, of the folds' vote, and of the
vote with the acceptance rule (`rejects_adapter`: the in-context answer where cross-validation found no gain and the
model is more certain of it); the queries by the sign of the estimated gain; and the AUROC of each estimate. Intervals
are 90% bootstrap intervals over families. Cases are appended to --cases: an interrupted run continues from them.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from autottt.policies.adapter_acceptance import rejects_adapter
from autottt.strategies.base import run
from autottt.strategies.registry import get_strategy
from autottt.ttt_core.errors import AutotttError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.pretraining.generator.families import draw_tasks
from autottt.ttt_core.tasks.answers import is_right
from autottt.ttt_core.tasks.readers import read_tasks
from autottt.ttt_core.tasks.task import Task

ONE = "ttt_augmented"
"""One adapter, trained on all demonstrations with the recipe of the folds."""


@dataclass(frozen=True)
class Case:
    """One query."""

    id: str
    model: str
    """Content hash."""
    family: str
    dataset: str
    in_context: bool
    """Whether the in-context answer is right."""
    voted: bool
    """Whether the vote of the folds is right."""
    before: float
    """Share of held-out demonstrations right in context."""
    after: float
    """The same after training."""
    agreement: float
    """Share of the votes for the answer."""
    passes: float
    """Work of the strategy, relative to that of the in-context answer."""
    sure: float
    """Probability of the in-context answer."""
    one: bool
    """Whether the answer of one adapter, trained on all demonstrations, is right."""

    @property
    def rejected(self) -> bool:
        """Whether the acceptance rule returns the in-context answer."""
        return rejects_adapter(self.after - self.before, self.agreement, self.sure)

    @property
    def with_rule(self) -> bool:
        """Whether the answer under the acceptance rule is right."""
        return self.in_context if self.rejected else self.voted


def case_of(learner: Learner, task: Task, strategy: str) -> Case | None:
    """Answers one query in context and after training; None where a strategy cannot be applied."""
    try:
        learner.clear()
        base = run(get_strategy("in_context"), learner, task)
        adapted = run(get_strategy(strategy), learner, task)
    except AutotttError:
        return None
    if adapted.cross_validation is None:
        return None
    return Case(
        task.id, learner.base_hash, task.family or task.group, f"{task.dataset}, {task.kind}",
        is_right(task, base.value), is_right(task, adapted.value),
        fmean(adapted.cross_validation.before), fmean(adapted.cross_validation.after), adapted.confidence,
        adapted.cost.token_equivalents / base.cost.token_equivalents, base.confidence,
        is_right(task, run(get_strategy(ONE), learner, task).value),
    )  # fmt: skip


def first_queries(tasks: Sequence[Task]) -> list[Task]:
    """One query of each task: all queries of a task share the held-out demonstrations."""
    return list({t.group or t.id: t for t in reversed(tasks)}.values())[::-1]


def interval(cases: Sequence[Case], statistic: Callable[[Sequence[Case]], float], draws: int = 1000) -> list[float]:
    """A statistic and its 90% bootstrap interval over families; NaN without cases."""
    if not cases:
        return [math.nan] * 3
    by_family: dict[str, list[Case]] = {}
    for case in cases:
        by_family.setdefault(case.family, []).append(case)
    families, rng = list(by_family.values()), np.random.default_rng(0)
    values = []
    for _ in range(draws):
        sample = [c for i in rng.integers(len(families), size=len(families)) for c in families[i]]
        values.append(statistic(sample))
    defined = [value for value in values if not math.isnan(value)] or [math.nan]
    return [statistic(cases), *map(float, np.quantile(defined, (0.05, 0.95)))]


def auroc(truth: Callable[[Case], bool], score: Callable[[Case], float]) -> Callable[[Sequence[Case]], float]:
    """The AUROC of a score for a property of the cases, as a statistic."""

    def statistic(cases: Sequence[Case]) -> float:
        labels = [truth(c) for c in cases]
        return math.nan if len(set(labels)) < 2 else float(roc_auc_score(labels, [score(c) for c in cases]))

    return statistic


def rows_of(name: str, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Prints and returns the statistics of one set."""
    families = len({c.family for c in cases})
    print(f"\n{name}: {len(cases)} queries of {families} families")
    rows: list[dict[str, Any]] = []

    def add(words: str, some: Sequence[Case], statistic: Callable[[Sequence[Case]], float], **more: Any) -> None:
        value, low, high = interval(some, statistic)
        is_defined = not math.isnan(value)
        shown = f"{value:7.3f} [{low:.3f}, {high:.3f}]" if is_defined else "      -"
        print(f"  {words:<52} {shown} of {len(some)} {more or ''}")
        rows.append({
            "name": f"{name}: {words}", "value": round(value, 4) if is_defined else None,
            "interval_90": [round(low, 4), round(high, 4)] if is_defined else None, "queries": len(some), **more,
        })  # fmt: skip

    add("right in context", cases, lambda s: fmean(c.in_context for c in s), families=families)
    add("right by one adapter", cases, lambda s: fmean(c.one for c in s))
    add("right by the vote of the folds", cases, lambda s: fmean(c.voted for c in s))
    add("right by the vote, with the verdict", cases, lambda s: fmean(c.with_rule for c in s))
    add("work, multiples of in context", cases, lambda s: fmean(c.passes for c in s))
    for words, sign in {"above 0": 1, "0": 0, "below 0": -1}.items():
        some = [c for c in cases if np.sign(round(c.after - c.before, 9)) == sign]
        better, worse = (sum(c.voted - c.in_context == way for c in some) for way in (1, -1))
        gained = f"estimated gain {words}: true gain"
        add(gained, some, lambda s: fmean(c.voted - c.in_context for c in s), better=better, worse=worse)
    for words, sign in (("harmful", -1), ("helpful", 1)):
        some = [c for c in cases if c.voted - c.in_context == sign]
        add(f"{words} adapters that the verdict rejects", some, lambda s: fmean(c.rejected for c in s))
    add("AUROC: in context right, by held-out before", cases, auroc(lambda c: c.in_context, lambda c: c.before))
    add("AUROC: the vote right, by held-out after", cases, auroc(lambda c: c.voted, lambda c: c.after))
    add("AUROC: the vote right, by agreement", cases, auroc(lambda c: c.voted, lambda c: c.agreement))
    return rows


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--model", default=None)
    parser.add_argument("--strategy", default="ttt_crossfit")
    parser.add_argument("--generated", type=int, default=0, help="tasks of each domain of the generator")
    parser.add_argument("--domains", default="lists,rows,grids,strings")
    parser.add_argument("--split", default="policy")
    parser.add_argument("--limit", type=int, help="tasks of each file; one query of each is used")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True, help="file of the statistics")
    parser.add_argument(
        "--cases", type=Path, required=True, help="file of the cases; an interrupted run continues from it"
    )
    options = parser.parse_args()
    learner = Learner.load(options.model)
    tasks = [
        t for f in options.files for t in first_queries(read_tasks([f], limit=options.limit, seed=options.seed).tasks)
    ]
    if options.generated:
        for domain in options.domains.split(","):
            tasks += draw_tasks(options.split, options.generated, options.seed, domain, 1)
    lines = options.cases.read_text().splitlines() if options.cases.exists() else []
    previous = [Case(**json.loads(line)) for line in lines if line.endswith("}")]
    by_query = {(c.id, c.dataset): c for c in previous if c.model == learner.base_hash}
    cases: list[Case] = []
    options.cases.parent.mkdir(parents=True, exist_ok=True)
    with options.cases.open("a", encoding="utf-8") as stream:
        for number, task in enumerate(tasks):
            case = by_query.get((task.id, f"{task.dataset}, {task.kind}"))
            if case is None:
                case = case_of(learner, task, options.strategy)
                if case is not None:
                    print(json.dumps(asdict(case)), file=stream, flush=True)
            cases += [case] if case else []
            print(f"\r{number + 1} of {len(tasks)}", end="", file=sys.stderr, flush=True)
    names = list(dict.fromkeys(c.dataset for c in cases))
    rows = [row for name in names for row in rows_of(name, [c for c in cases if c.dataset == name])]
    if len(names) > 1:
        rows += rows_of("all", cases)
    print(f"\n{len(tasks) - len(cases)} queries were skipped (too long, or too few demonstrations)")
    git = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    facts = {
        "commit": git.stdout.strip(), "date": datetime.now(UTC).date().isoformat(),
        "model": learner.base_hash, "strategy": options.strategy,
        "limit": options.limit, "generated": options.generated, "seed": options.seed, "rows": rows,
    }  # fmt: skip
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
