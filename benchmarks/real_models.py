"""Measures real language models, in context and with every strategy; `make bench-real` runs it.

    python benchmarks/real_models.py DATA MODEL... --json benchmarks/results/real.json --rows runs/real.rows.jsonl

DATA is a folder with `open/<set>.jsonl`, MODEL what `--model` takes elsewhere (such as smollm2-135m). For every task
each prompt format answers all queries, and the format is chosen as the controller chooses it: `automatic` is the
accuracy of the chosen formats. Each strategy of --strategies then answers all queries in the chosen format, and, with
--policy, the controller decides by that policy, which must not have been trained on families of these sets, once with
the policy's cost weight and once with each of --cost-weights. The tasks of the goals' sets come first, then those of
the others, each in a random order, of which --limit takes the first ones; --quick takes three tasks of each set.
--accuracy-only leaves time and memory as they stand in --json.
Rows are appended to --rows task by task, so that an interrupted run continues. Writes the rows {"name", "value",
"unit", "against", "goal", "holds"} with the machine, versions, commit and date. Intervals are 90% bootstrap intervals
over families.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from model_folders import folder_of
from real_strategies import ORDER, TOGETHER, controller_row, strategy_row, strategy_rows, with_cost_weight
from real_training import training_rows
from row_files import Row, percent_interval, read_rows

from autottt import Controller
from autottt.controller.controller import policy_for, weighted
from autottt.controller.evaluation import CONTROLLER
from autottt.policies.policy import FixedPolicy
from autottt.strategies.registry import get_strategy
from autottt.ttt_core.errors import TooLongError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.model.catalogue import resolve
from autottt.ttt_core.model.loading import load_model, wrap_model
from autottt.ttt_core.tasks.answers import is_right
from autottt.ttt_core.tasks.readers import read_tasks
from autottt.ttt_core.tasks.task import Task

SETS: Mapping[str, int | None] = {
    "function_vectors": None, "instruction_induction": None, "letter_string": None, "list_functions_rule": None,
    "bbh": 5,
}  # fmt: skip
"""Set -> tasks of each family that are measured; None: all."""
HEADLINE = ("function_vectors", "instruction_induction")
"""Sets of the goals."""
MAX_TOKENS = 2048
"""Longest prompt of bbh, in tokens."""
PAIRS = 30
"""Paired runs of an easy query."""


def tasks_of(name: str, data: Path, quick: bool) -> list[list[Task]]:
    """The queries of each task of a set that is measured."""
    groups: dict[str, list[Task]] = {}
    for task in read_tasks([data / "open" / f"{name}.jsonl"]).tasks:
        groups.setdefault(task.group, []).append(task)
    families: dict[str, list[list[Task]]] = defaultdict(list)
    for queries in groups.values():
        families[queries[0].family].append(queries)
    limit = 1 if quick else SETS[name]
    chosen = [queries for tasks in families.values() for queries in tasks[:limit]]
    return chosen[:3] if quick else chosen


def rows_of(
    learner: Learner, fixed: Mapping[str, Learner], name: str, queries: list[Task], done: Collection[str]
) -> Iterator[Row]:
    """The answers to the queries of a task in each format that is not done yet, then the choice of the format."""
    first = queries[0]
    common = {"model": learner.base_hash, "set": name, "group": first.group, "family": first.family}
    for label, one in fixed.items():
        if label in done:
            continue
        began = time.monotonic()
        try:
            if name == "bbh" and one.window.length(first) > MAX_TOKENS:
                raise TooLongError(f"{first.id}: more than {MAX_TOKENS} tokens")
            right = [is_right(task, answer.value) for task, answer in zip(queries, one.answer(queries), strict=True)]
        except TooLongError:
            right = []
        yield {**common, "format": label, "right": right, "seconds": time.monotonic() - began}
    began = time.monotonic()
    choice = learner.formats.choose(first)
    yield {
        **common, "format": "choice", "chosen": choice.name, "scores": choice.scores, "margin": choice.margin,
        "seconds": time.monotonic() - began, "tokens": choice.cost.forward_tokens,
    }  # fmt: skip
    learner.clear()


def shuffled_tasks(sets: Sequence[str], data: Path, quick: bool, limit: int | None) -> list[tuple[str, list[Task]]]:
    """Each task with its set: those of the goals' sets in one random order, then those of the others in another one,
    so that the first tasks are a sample."""
    tasks = [(name, queries) for name in sets for queries in tasks_of(name, data, quick)]
    random.Random(0).shuffle(tasks)
    return sorted(tasks, key=lambda task: task[0] not in HEADLINE)[:limit]


def measure(
    learner: Learner, tasks: Sequence[tuple[str, list[Task]]], strategies: Sequence[str], rows: Path,
    controllers: Mapping[str, Controller] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Appends the rows that the file lacks, task by task: those of the formats, those of the strategies, and those of
    the controllers, by name."""
    loaded = learner.loaded
    fixed = {
        name: Learner(wrap_model(loaded.model, loaded.tokenizer, name=loaded.name, prompt_format=name))
        for name in loaded.formats
    }
    done: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in read_rows(rows):
        if row["model"] == learner.base_hash:
            done[row["set"], row["group"]].add(row.get("strategy") or row["format"])
    for number, (name, queries) in enumerate(tasks, 1):
        known = done[name, queries[0].group]
        lines = [] if "choice" in known else list(rows_of(learner, fixed, name, queries, known))
        longest = MAX_TOKENS if name == "bbh" else None
        for strategy in (s for s in strategies if s not in known):
            lines.append(strategy_row(learner, get_strategy(strategy), name, queries, longest))
        for label in controllers.keys() - known:
            lines.append(controller_row(controllers[label], label, name, queries, longest))
        if lines:
            with rows.open("a") as file:
                file.write("".join(f"{json.dumps(line)}\n" for line in lines))
            print(f"{loaded.name}: {number} of {len(tasks)} tasks, {name}", file=sys.stderr, flush=True)


# --- numbers ---------------------------------------------------------------------------------------------------------


def by_task(rows: Sequence[Row], model: str, sets: Sequence[str]) -> dict[tuple[str, str], dict[str, Row]]:
    """Set and group -> format -> its row, for tasks that were measured completely and fit in every format."""
    tasks: dict[tuple[str, str], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row["model"] == model and row["set"] in sets and "strategy" not in row:
            tasks[row["set"], row["group"]][row["format"]] = row
    return {
        key: task for key, task in tasks.items()
        if "choice" in task and all(row["right"] for name, row in task.items() if name != "choice")
    }  # fmt: skip


def accuracy_rows(rows: Sequence[Row], name: str, model: str, sets: Sequence[str], label: str) -> list[Row]:
    """Accuracy under each format, under the chosen ones, and under the best of each task, known afterwards."""
    tasks = by_task(rows, model, sets)
    if not tasks:
        return []
    formats = [f for f in next(iter(tasks.values())) if f != "choice"]

    def flags(pick: Any) -> dict[str, list[float]]:
        families: dict[str, list[float]] = defaultdict(list)
        for task in tasks.values():
            families[task["choice"]["family"]] += map(float, task[pick(task)]["right"])
        return families

    columns = {f: flags(lambda _, f=f: f) for f in formats}
    columns["automatic"] = flags(lambda task: task["choice"]["chosen"])
    best = flags(lambda task: max(formats, key=lambda f: sum(task[f]["right"])))
    columns["best format of each task, known afterwards"] = best
    values = {n: 100 * statistics.fmean(v for family in c.values() for v in family) for n, c in columns.items()}
    values["format chosen by the other queries' right answers"] = 100 * others_choice(list(tasks.values()), formats)
    count = sum(map(len, best.values()))
    seconds = {f: seconds_of_a_query(list(tasks.values()), f) for f in (*formats, "automatic")}
    return [
        {
            "name": f"{name}, {label}: in_context, {column}", "value": round(value, 1), "unit": "% of queries",
            "interval_90": percent_interval(columns[column]) if column in columns else None, "queries": count,
            **({"seconds_of_a_query": seconds[column]} if column in seconds else {}),
            "against": "", "goal": None, "holds": None,
        }
        for column, value in values.items()
    ]  # fmt: skip


def seconds_of_a_query(tasks: Sequence[Mapping[str, Row]], column: str) -> float:
    """Median over tasks of the seconds of a query in a format, or in the chosen one with the choice of it."""
    shares = []
    for task in tasks:
        choice = task["choice"]
        answered = task[choice["chosen"] if column == "automatic" else column]
        seconds = answered["seconds"] + (choice["seconds"] if column == "automatic" else 0.0)
        shares.append(seconds / max(1, len(answered["right"])))
    return round(statistics.median(shares), 2)


def others_choice(tasks: Sequence[Mapping[str, Row]], formats: Sequence[str]) -> float:
    """Accuracy on a query where the format is the one with most right answers on the task's other queries: what a
    choice per task can reach at most with labels, free of the luck in `best format of each task`."""
    right = []
    for task in tasks:
        for query in range(len(task[formats[0]]["right"])):
            counts = {f: sum(task[f]["right"]) - task[f]["right"][query] for f in formats}
            right.append(task[max(formats, key=counts.__getitem__)]["right"][query])
    return statistics.fmean(right)


def goal_rows(numbers: Sequence[Row], name: str) -> list[Row]:
    """Automatic against the best fixed format, the best of each task, and the chat template."""
    value = {r["name"].rpartition("in_context, ")[2]: r["value"] for r in numbers if TOGETHER in r["name"]}
    if not value:
        return []
    fixed = {f: value[f] for f in ("chat", "standard", "compact") if f in value}
    best, automatic = max(fixed, key=fixed.__getitem__), value["automatic"]

    def row(what: str, number: float, against: str, goal: float) -> Row:
        return {
            "name": f"{name}: {what}", "value": round(number, 2), "unit": "points", "against": against, "goal": goal,
            "holds": number >= goal,
        }  # fmt: skip

    rows = [row("automatic minus the best fixed format", automatic - fixed[best], best, 0.0)]
    if "chat" in fixed:
        gap = value["best format of each task, known afterwards"] - fixed[best]
        rows.append(
            row(
                "automatic minus the best fixed format, half of the way",
                automatic - fixed[best],
                "oracle",
                round(gap / 2, 2),
            )
        )
        rows.append(row("automatic minus chat", automatic - fixed["chat"], "chat", 4.0))
    return rows


# --- time and memory -------------------------------------------------------------------------------------------------

_LOAD = """
import os, sys, time, torch, transformers
kind, source, folder = sys.argv[1:]
if kind == "ours":
    from autottt.ttt_core.model.loading import load_model
if folder:
    transformers.AutoModelForCausalLM._model_mapping[type(transformers.AutoConfig.from_pretrained(folder))]
began = time.perf_counter()
if kind == "transformers":
    transformers.AutoModelForCausalLM.from_pretrained(os.path.dirname(source), gguf_file=os.path.basename(source))
else:
    load_model(source)
print(time.perf_counter() - began)
"""
"""Seconds of a load; where a folder with the converted model is given, without the import of the model's code."""
_MEMORY = """
import re, sys, torch, transformers
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
kind, source = sys.argv[1:]
before = peak()
if kind == "transformers":
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    prompt = tokenizer("big\\nsmall\\n\\nhot\\ncold\\n\\nup\\ndown\\n\\nleft\\n", return_tensors="pt")
    model.generate(**prompt, max_new_tokens=3, do_sample=False, pad_token_id=0)
else:
    from autottt import Controller, make_task
    controller = Controller.from_pretrained(source, strategy="in_context", dtype="bf16")
    controller.solve(make_task([("big", "small"), ("hot", "cold"), ("up", "down")], "left"))
    model = controller.learner.loaded.model
after = peak()
print((after - before) * 1024 / sum(p.numel() * p.element_size() for p in model.parameters()))
"""


def of_process(code: str, *words: str) -> float:
    """The number that a new process prints last."""
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def cost_rows(learner: Learner, name: str, source: str, tasks: Sequence[Task], rounds: int) -> list[Row]:
    """Loading, memory and the time of an easy query, each against the usual way."""
    source = str(resolve(source) or source)
    rows = []
    if source.endswith(".gguf"):
        for folder, label, goal in (("", "", 0.1), (str(folder_of(source)), ", model code imported before", None)):
            times = [
                [of_process(_LOAD, kind, source, folder) for kind in ("ours", "transformers")] for _ in range(rounds)
            ]
            ours, theirs = map(statistics.median, zip(*times, strict=True))
            label = f"{name}: second load of a GGUF file{label}"
            rows.append(ratio(label, ours, theirs, "transformers' GGUF load", goal))
    memory = of_process(_MEMORY, "ours", source)
    label = f"{name}: memory of loading and an answer"
    rows.append({**ratio(label, memory, 1.0, "size of the weights", 1.6), "seconds": None})
    if (converted := folder_of(source)) is not None:
        theirs = of_process(_MEMORY, "transformers", str(converted))
        row = ratio(f"{label}, AutoModelForCausalLM and generate", theirs, 1.0, "size of the weights", None)
        rows.append({**row, "seconds": None})
    ours, theirs = easy_query(learner, tasks)
    rows.append(ratio(f"{name}: an easy query, format cached", ours, theirs, "generate on the same prompt", 1.2))
    return rows


def ratio(name: str, ours: float, theirs: float, against: str, goal: float | None) -> Row:
    value = ours / theirs
    return {
        "name": name, "value": round(value, 3), "unit": "times", "against": against, "goal": goal,
        "holds": None if goal is None else value <= goal, "seconds": round(ours, 3),
    }  # fmt: skip


def easy_query(learner: Learner, tasks: Sequence[Task]) -> tuple[float, float]:
    """Median seconds of the controller and of `generate`, alternating, on the same prompts and numbers of tokens."""
    controller = Controller(learner, FixedPolicy("in_context"))
    model, device = learner.loaded.model, learner.loaded.model.device
    pairs = []
    for task in tasks[:PAIRS]:
        learner.formats.choose(task)
        learner.answerer.clear_prefix()
        result = controller.solve(task)
        assert result.in_context is not None
        prompt = torch.tensor([learner.window.encode(learner.formats.formatted(task)).ids], device=device)
        (answer,) = learner.answer([learner.formats.formatted(task)])
        count = len(answer.scores.log_probs)
        learner.answerer.clear_prefix()
        began = time.perf_counter()
        controller.solve(task)
        ours = time.perf_counter() - began
        began = time.perf_counter()
        with torch.no_grad():
            model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, min_new_tokens=count,
                do_sample=False, pad_token_id=0,
            )  # fmt: skip
        pairs.append((ours, time.perf_counter() - began))
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return ours, theirs


def controllers_of(learner: Learner, policy: Path | None, cost_weights: Sequence[float]) -> dict[str, Controller]:
    """The controller that decides by a policy, and those that do so with other cost weights, by name."""
    if policy is None:
        return {}
    return {CONTROLLER: Controller(learner, policy)} | {
        with_cost_weight(weight): Controller(learner, weighted(policy_for(learner, policy), weight))
        for weight in cost_weights
    }


def commit() -> str:
    """The short hash of the checkout."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def rows_kept(file: Path, results: Sequence[Row]) -> Row:
    """The rows of time and memory in a file of results, with the date and the commit of their measurement; those of
    accuracy, which have a number of queries, and those that were measured again are left out."""
    if not file.exists():
        return {"rows": []}
    before, names = json.loads(file.read_text("utf-8")), {row["name"] for row in results}
    rows = [row for row in before["rows"] if "queries" not in row and row["name"] not in names]
    return {**before, **before.get("time_and_memory", {}), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--rows", type=Path, required=True, help="file for the measured rows")
    parser.add_argument("--sets", default=",".join(SETS), help="sets, separated by commas")
    parser.add_argument("--strategies", default=",".join(ORDER), help="strategies, separated by commas")
    parser.add_argument(
        "--policy", type=Path, help="bundle of the policy by which the controller answers; without it, it is left out"
    )
    parser.add_argument("--cost-weights", type=float, nargs="*", default=(), help="of the policy, beside its own")
    parser.add_argument("--limit", type=int, help="measure only the first tasks of the random order")
    parser.add_argument("--accuracy-only", action="store_true", help="keep the file's rows of time and memory")
    parser.add_argument("--quick", action="store_true", help="three tasks of each set, one round")
    options = parser.parse_args()
    sets = options.sets.split(",")
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    results: list[Row] = []
    for name in options.models:
        learner, label = Learner(load_model(name)), Path(name).name
        tasks = shuffled_tasks(sets, options.data, options.quick, options.limit)
        controllers = controllers_of(learner, options.policy, options.cost_weights)
        measure(learner, tasks, options.strategies.split(","), options.rows, controllers)
        rows = read_rows(options.rows)
        answers = [r for r in rows if "strategy" in r]
        numbers = [n for s in sets for n in accuracy_rows(rows, label, learner.base_hash, [s], s)]
        numbers += accuracy_rows(rows, label, learner.base_hash, HEADLINE, TOGETHER)
        strategies = [n for s in sets for n in strategy_rows(answers, label, learner.base_hash, [s], s)]
        strategies += strategy_rows(answers, label, learner.base_hash, HEADLINE, TOGETHER)
        results += [*numbers, *goal_rows(numbers, label), *strategies]
        if not options.accuracy_only:
            easy = [queries[0] for queries in tasks_of(sets[0], options.data, options.quick)]
            rounds = 1 if options.quick else 3
            results += training_rows(label, name, learner, rounds)
            results += cost_rows(learner, label, name, easy, rounds)
    kept = rows_kept(options.json, results) if options.accuracy_only else {"rows": []}
    results += kept["rows"]
    options.json.write_text(json.dumps({
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        **({"time_and_memory": {k: kept[k] for k in ("date", "commit")}} if kept["rows"] else {}),
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {n: version(n) for n in ("autottt", "torch", "transformers", "gguf")},
        "rows": results,
    }, indent=1) + "\n")  # fmt: skip
    for row in results:
        print(f"{row['name']:80s} {row['value']} {row['unit']} {row['interval_90'] if row.get('interval_90') else ''}")


if __name__ == "__main__":
    main()
