"""Where the cross-fit stands: what held-out demonstrations say of training, and what it then did to the query.

    python benchmarks/crossfit.py --generated 40 --json runs/crossfit.json
    python benchmarks/crossfit.py DATA/open/list_functions_rule.jsonl --limit 40 --json runs/crossfit.json

Prints three tables: accuracy in context, of the folds' vote, and with the verdict (the in-context answer where training
did worse on what it had not seen); the tasks by the sign of the estimated gain; and how well each estimate tells right
from wrong. Intervals are 90%, by bootstrap over families.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from sklearn.metrics import roc_auc_score

from autottt.strategies.base import get_strategy, run
from autottt.ttt_core.errors import AutotttError
from autottt.ttt_core.generator.families import draw_tasks
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.readers import read_tasks
from autottt.ttt_core.tasks import Task


@dataclass(frozen=True)
class Case:
    """One query."""

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

    @property
    def judged(self) -> bool:
        """Right, where harm on held-out demonstrations keeps the in-context answer."""
        return self.in_context if self.after < self.before else self.voted


def case_of(learner: Learner, task: Task, strategy: str) -> Case | None:
    """Answers one query both ways; None where it cannot be tried."""
    try:
        learner.forget()
        plain = run(get_strategy("in_context"), learner, task)
        fitted = run(get_strategy(strategy), learner, task)
    except AutotttError:
        return None
    if fitted.evidence is None:
        return None
    return Case(
        task.family or task.group, f"{task.dataset}, {task.kind}",
        plain.value == task.answer, fitted.value == task.answer,
        fmean(fitted.evidence.before), fmean(fitted.evidence.after), fitted.confidence,
        fitted.cost.passes / plain.cost.passes,
    )  # fmt: skip


def interval(cases: Sequence[Case], statistic: Callable[[Sequence[Case]], float], draws: int = 1000) -> str:
    """A statistic with its 90% interval, families drawn with replacement."""
    by: dict[str, list[Case]] = {}
    for case in cases:
        by.setdefault(case.family, []).append(case)
    families, rng = list(by.values()), np.random.default_rng(0)
    values = []
    for _ in range(draws):
        drawn = [c for i in rng.integers(len(families), size=len(families)) for c in families[i]]
        values.append(statistic(drawn))
    low, high = np.nanquantile(values, (0.05, 0.95))
    return f"{statistic(cases):.3f} [{low:.3f}, {high:.3f}]"


def auroc(truth: Callable[[Case], bool], score: Callable[[Case], float]) -> Callable[[Sequence[Case]], float]:
    """The statistic: how well a score tells the cases for which something holds."""

    def statistic(cases: Sequence[Case]) -> float:
        labels = [truth(c) for c in cases]
        return math.nan if len(set(labels)) < 2 else float(roc_auc_score(labels, [score(c) for c in cases]))

    return statistic


def show(name: str, cases: Sequence[Case]) -> None:
    """Prints the tables of one set."""
    print(f"\n{name}: {len(cases)} queries of {len({c.family for c in cases})} families")
    print(f"  in context                    {interval(cases, lambda s: fmean(c.in_context for c in s))}")
    print(f"  vote of the folds             {interval(cases, lambda s: fmean(c.voted for c in s))}")
    print(f"  vote, with the verdict        {interval(cases, lambda s: fmean(c.judged for c in s))}")
    print(f"  work, multiples of in context {fmean(c.passes for c in cases):.0f}")
    signs = {"above 0": 1, "0": 0, "below 0": -1}
    for words, sign in signs.items():
        some = [c for c in cases if np.sign(round(c.after - c.before, 9)) == sign]
        gain = interval(some, lambda s: fmean(c.voted - c.in_context for c in s)) if some else "-"
        better = sum(c.voted > c.in_context for c in some)
        worse = sum(c.voted < c.in_context for c in some)
        print(f"  estimated gain {words:<8} {len(some):>4} queries: gain {gain}, {better} better, {worse} worse")
    for words, sign in (("harmful", -1), ("helpful", 1)):
        some = [c for c in cases if c.voted - c.in_context == sign]
        rejected = interval(some, lambda s: fmean(c.after < c.before for c in s)) if some else "-"
        print(f"  {words} adapters rejected       {rejected} of {len(some)}")
    told = [
        ("in context is right, by held-out before", auroc(lambda c: c.in_context, lambda c: c.before)),
        ("the vote is right, by held-out after", auroc(lambda c: c.voted, lambda c: c.after)),
        ("the vote is right, by agreement", auroc(lambda c: c.voted, lambda c: c.agreement)),
    ]
    for words, statistic in told:
        print(f"  AUROC {words:<40} {interval(cases, statistic)}")


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--model", default=None)
    parser.add_argument("--strategy", default="ttt_crossfit")
    parser.add_argument("--generated", type=int, default=0, help="this many tasks of each domain of the generator")
    parser.add_argument("--domains", default="lists,rows,grids,strings")
    parser.add_argument("--split", default="policy")
    parser.add_argument("--limit", type=int, help="tasks of each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True, help="cases, written as they come")
    given = parser.parse_args()
    learner = Learner.load(given.model)
    tasks = [t for f in given.files for t in read_tasks([f], limit=given.limit, seed=given.seed).tasks]
    if given.generated:
        for domain in given.domains.split(","):
            tasks += draw_tasks(given.split, given.generated, given.seed, domain, 1)
    cases: list[Case] = []
    given.json.parent.mkdir(parents=True, exist_ok=True)
    for number, task in enumerate(tasks):
        case = case_of(learner, task, given.strategy)
        cases += [case] if case else []
        print(f"\r{number + 1} of {len(tasks)}", end="", flush=True)
        given.json.write_text(json.dumps([asdict(c) for c in cases], indent=1) + "\n")
    for name in dict.fromkeys(c.dataset for c in cases):
        show(name, [c for c in cases if c.dataset == name])
    if len({c.dataset for c in cases}) > 1:
        show("all", cases)
    print(f"\n{len(tasks) - len(cases)} queries could not be tried (too long, or too few demonstrations)")


if __name__ == "__main__":
    main()
