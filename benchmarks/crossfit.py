"""Where the cross-fit stands: what held-out demonstrations say of training, and what it then did to the query.

    python benchmarks/crossfit.py --generated 40 --json benchmarks/results/crossfit.json --cases runs/crossfit.jsonl
    python benchmarks/crossfit.py DATA/open/list_functions_rule.jsonl --limit 40 --json OUT --cases runs/lists.jsonl

Prints three tables: accuracy in context, of one adapter of all demonstrations, of the folds' vote, and with the verdict
(the in-context answer where training did no better on what it had not seen, and the model was surer of it); the tasks
by the sign of the estimated gain; and how well each estimate tells right from wrong. Intervals are 90%, by bootstrap
over families. Cases are kept in --cases as they come: an interrupted run goes on from there.
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
from autottt.ttt_core.tasks.readers import read_tasks
from autottt.ttt_core.tasks.task import Task

ONE = "ttt_augmented"
"""One adapter, trained on all demonstrations by the recipe that the folds have."""


@dataclass(frozen=True)
class Case:
    """One query."""

    id: str
    model: str
    """Content hash."""
    family: str
    dataset: str
    in_context: bool
    """Right."""
    voted: bool
    before: float
    """Share of held-out demonstrations right in context."""
    after: float
    agreement: float
    """Share of the votes for the answer."""
    passes: float
    """Work of the cross-fit, in multiples of answering in context."""
    sure: float
    """Probability of the in-context answer."""
    one: bool
    """Whether one adapter, of all demonstrations, is right."""

    @property
    def rejected(self) -> bool:
        """Whether the verdict keeps the in-context answer."""
        return rejects_adapter(self.after - self.before, self.agreement, self.sure)

    @property
    def judged(self) -> bool:
        """Right, with the verdict."""
        return self.in_context if self.rejected else self.voted


def case_of(learner: Learner, task: Task, strategy: str) -> Case | None:
    """Answers one query both ways; None where it cannot be tried."""
    try:
        learner.clear()
        plain = run(get_strategy("in_context"), learner, task)
        fitted = run(get_strategy(strategy), learner, task)
    except AutotttError:
        return None
    if fitted.cross_validation is None:
        return None
    return Case(
        task.id, learner.base_hash, task.family or task.group, f"{task.dataset}, {task.kind}",
        plain.value == task.answer, fitted.value == task.answer,
        fmean(fitted.cross_validation.before), fmean(fitted.cross_validation.after), fitted.confidence,
        fitted.cost.token_equivalents / plain.cost.token_equivalents, plain.confidence,
        run(get_strategy(ONE), learner, task).value == task.answer,
    )  # fmt: skip


def first_queries(tasks: Sequence[Task]) -> list[Task]:
    """One query of each task: what is held out is the same for all of them."""
    return list({t.group or t.id: t for t in reversed(tasks)}.values())[::-1]


def interval(cases: Sequence[Case], statistic: Callable[[Sequence[Case]], float], draws: int = 1000) -> list[float]:
    """A statistic with its 90% interval, families drawn with replacement; not numbers where there are no cases."""
    if not cases:
        return [math.nan] * 3
    by: dict[str, list[Case]] = {}
    for case in cases:
        by.setdefault(case.family, []).append(case)
    families, rng = list(by.values()), np.random.default_rng(0)
    values = []
    for _ in range(draws):
        drawn = [c for i in rng.integers(len(families), size=len(families)) for c in families[i]]
        values.append(statistic(drawn))
    known = [value for value in values if not math.isnan(value)] or [math.nan]
    return [statistic(cases), *map(float, np.quantile(known, (0.05, 0.95)))]


def auroc(truth: Callable[[Case], bool], score: Callable[[Case], float]) -> Callable[[Sequence[Case]], float]:
    """The statistic: how well a score tells the cases for which something holds."""

    def statistic(cases: Sequence[Case]) -> float:
        labels = [truth(c) for c in cases]
        return math.nan if len(set(labels)) < 2 else float(roc_auc_score(labels, [score(c) for c in cases]))

    return statistic


def rows_of(name: str, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """The statistics of one set, which are printed as well."""
    families = len({c.family for c in cases})
    print(f"\n{name}: {len(cases)} queries of {families} families")
    rows: list[dict[str, Any]] = []

    def add(words: str, some: Sequence[Case], statistic: Callable[[Sequence[Case]], float], **more: Any) -> None:
        value, low, high = interval(some, statistic)
        known = not math.isnan(value)
        shown = f"{value:7.3f} [{low:.3f}, {high:.3f}]" if known else "      -"
        print(f"  {words:<52} {shown} of {len(some)} {more or ''}")
        rows.append({
            "name": f"{name}: {words}", "value": round(value, 4) if known else None,
            "interval_90": [round(low, 4), round(high, 4)] if known else None, "queries": len(some), **more,
        })  # fmt: skip

    add("right in context", cases, lambda s: fmean(c.in_context for c in s), families=families)
    add("right by one adapter", cases, lambda s: fmean(c.one for c in s))
    add("right by the vote of the folds", cases, lambda s: fmean(c.voted for c in s))
    add("right by the vote, with the verdict", cases, lambda s: fmean(c.judged for c in s))
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
    parser.add_argument("--generated", type=int, default=0, help="this many tasks of each domain of the generator")
    parser.add_argument("--domains", default="lists,rows,grids,strings")
    parser.add_argument("--split", default="policy")
    parser.add_argument("--limit", type=int, help="tasks of each file; one query of each is asked")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True, help="what the tables say")
    parser.add_argument("--cases", type=Path, required=True, help="cases as they come; an interrupted run goes on")
    given = parser.parse_args()
    learner = Learner.load(given.model)
    tasks = [t for f in given.files for t in first_queries(read_tasks([f], limit=given.limit, seed=given.seed).tasks)]
    if given.generated:
        for domain in given.domains.split(","):
            tasks += draw_tasks(given.split, given.generated, given.seed, domain, 1)
    lines = given.cases.read_text().splitlines() if given.cases.exists() else []
    kept = [Case(**json.loads(line)) for line in lines if line.endswith("}")]
    known = {(c.id, c.dataset): c for c in kept if c.model == learner.base_hash}
    cases: list[Case] = []
    given.cases.parent.mkdir(parents=True, exist_ok=True)
    with given.cases.open("a", encoding="utf-8") as stream:
        for number, task in enumerate(tasks):
            case = known.get((task.id, f"{task.dataset}, {task.kind}"))
            if case is None:
                case = case_of(learner, task, given.strategy)
                if case is not None:
                    print(json.dumps(asdict(case)), file=stream, flush=True)
            cases += [case] if case else []
            print(f"\r{number + 1} of {len(tasks)}", end="", file=sys.stderr, flush=True)
    names = list(dict.fromkeys(c.dataset for c in cases))
    rows = [row for name in names for row in rows_of(name, [c for c in cases if c.dataset == name])]
    if len(names) > 1:
        rows += rows_of("all", cases)
    print(f"\n{len(tasks) - len(cases)} queries could not be tried (too long, or too few demonstrations)")
    git = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    facts = {
        "commit": git.stdout.strip(), "date": datetime.now(UTC).date().isoformat(),
        "model": learner.base_hash, "strategy": given.strategy,
        "limit": given.limit, "generated": given.generated, "seed": given.seed, "rows": rows,
    }  # fmt: skip
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
