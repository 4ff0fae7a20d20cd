"""Writes the tables of benchmarks/results: docs/measured.md, and those in README.md and docs/policy.md.

`make docs` runs it. Knows nothing about how the results were measured.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

COMMANDS = {
    "model": "The bundled model", "engine": "The engine", "policy": "The policy", "real": "Real language models",
    "policy_real": "Policies for real and for unknown models", "trace": "Tracing", "serve": "Serving",
}  # fmt: skip
"""`make bench-NAME`, with hyphens -> what it measures."""
NOTES = {
    "model": "The rows `controller` are of the policy before the one that ships now: it was trained on 600 tasks with "
    "one query each, and closed 0.18 of the gap to the VBS per query on its own scorecard; the shipped one closes "
    "0.25.",
    "real": "`automatic` is the prompt format that is chosen for each task. Half of the way to the best format of each "
    "task is out of reach: with eight queries that maximum owes much to luck, since a format chosen by the right "
    "answers of a task's other queries is hardly better than `standard`. Memory counts the pages of the weights, which "
    "are mapped from their file, and the code of transformers; the row of `AutoModelForCausalLM` is measured alike. "
    "Gemma's easy query took 1.78 times as long as `generate` on another machine. Few tasks of "
    "letter_string, list_functions_rule and bbh have been measured with training.",
    "trace": "Added to a query: the median of paired runs on the bundled model, of which the milliseconds of the "
    "thread's processor are in the file of results. A page is that of a real run whose training steps and prompts were "
    "multiplied.",
    "serve": "Each latency and ratio is measured side by side in one process; the load of the machine stands with each "
    "row in the file of results.",
    "policy": "SBS: single best strategy on the training families. VBS: virtual best strategy, chosen in hindsight, "
    "per query or per task (over all its queries). Gap closed: (U - U_SBS) / (U_VBS - U_SBS) with U the utility, "
    "accuracy minus cost weight times cost.",
}
SET_NOTES = {"function_vectors": " (rules)", "arc_agi_1": " (evaluation, two attempts)"}
CROSSFIT_COLUMNS = {
    "right in context": "in context",
    "right by one adapter": "one adapter",
    "right by the vote of the folds": "vote of the folds",
    "right by the vote, with the verdict": "vote with acceptance rule",
    "harmful adapters that the verdict rejects": "harmful adapters rejected",
    "helpful adapters that the verdict rejects": "helpful adapters rejected",
    "AUROC: the vote right, by held-out after": "AUROC of held-out accuracy",
    "work, multiples of in context": "relative cost",
}


def read(folder: Path, name: str) -> dict[str, Any]:
    """The results of a benchmark."""
    return dict(json.loads((folder / f"{name}.json").read_text("utf-8")))


def measured_table(folder: Path, strategies: Collection[str]) -> str:
    """A line for each set of model.json: accuracy and work of each strategy.

    The controller's rows are left out: they are of an earlier policy (`NOTES`).
    """
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for row in read(folder, "model")["rows"]:
        label, _, strategy = row["name"].partition(": ")
        if strategy in strategies:
            cells.setdefault(label, {})[strategy] = row
    shown = {label: row for label, row in cells.items() if label.count(",") < 2}
    names = list(next(iter(shown.values())))
    lines = [_line("set", "queries", *(f"`{name}`" for name in names)), _rule(2 + len(names))]
    for label, row in shown.items():
        best = max(r["value"] for r in row.values())
        texts = []
        for name, r in row.items():
            text = f"**{r['value']:.1f}**" if r["value"] == best else f"{r['value']:.1f}"
            text += f" ({r['work']:.0f}x)" if name != "in_context" else ""
            texts.append(text)
        lines.append(_line(label + SET_NOTES.get(label, ""), row[names[0]]["queries"], *texts))
    return "\n".join(lines)


def policy_table(folder: Path) -> str:
    """Accuracy, cost and utility of the policy and its baselines in policy.json, and whether goals are reached."""
    rows = read(folder, "policy")["rows"]
    lines = [_line("families held out", "accuracy", "cost", "utility"), _rule(4)]
    for row in rows:
        name, _, what = row["name"].partition(": ")
        if what == "utility" and "accuracy" in row:
            lines.append(_line(name, f"{row['accuracy']:.1%}", f"{row['cost']:.0f}x", f"{row['value']:.3f}"))
    lines += ["", _line("measure", "value", "goal", ""), _rule(4)]
    for row in rows:
        if row["goal"] is not None:
            verdict = "reached" if row["holds"] else "not reached"
            lines.append(_line(row["name"], _value(row, ".3g"), _goal(row), verdict))
    return "\n".join(lines)


def real_strategies_table(folder: Path) -> str:
    """A line for each model, set and strategy of real.json: accuracy, gain over in context, harm and cost."""
    columns = "model, set", "strategy", "queries", "right, %", "gain over in context", "harmed, %", "cost", "seconds"
    lines = [_line(*columns), _rule(len(columns))]
    for row in read(folder, "real")["rows"]:
        if "gain" not in row:
            continue
        label, _, strategy = row["name"].partition(": ")
        reads = strategy == "in_context"
        gain = "" if reads else "{:+g} [{:+g}, {:+g}]".format(row["gain"], *row["gain_interval_90"])
        cells = f"{row['value']:g}", gain, "" if reads else f"{row['harmed']:g}", f"{row['relative_cost']:g}x"
        lines.append(_line(label, f"`{strategy}`", row["queries"], *cells, f"{row['seconds_of_a_query']:g}"))
    return "\n".join(lines)


def real_formats_table(folder: Path) -> str:
    """A line for each model and set of real.json: accuracy in context under each prompt format and the chosen ones."""
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for row in read(folder, "real")["rows"]:
        label, found, column = row["name"].partition(": in_context, ")
        if found:
            cells.setdefault(label, {})[column] = row
    formats, best = ("chat", "standard", "compact"), "best format of each task, known afterwards"
    columns = "model, set", "queries", *(f"`{f}`" for f in formats), "automatic", best, "seconds of a query"
    lines = [_line(*columns), _rule(len(columns))]
    for label, row in cells.items():
        automatic = row["automatic"]
        texts = [f"{row[f]['value']:g}" if f in row else "" for f in formats]
        texts.append("{:g} [{:g}, {:g}]".format(automatic["value"], *automatic["interval_90"]))
        texts += [f"{row[best]['value']:g}", f"{automatic['seconds_of_a_query']:g}"]
        lines.append(_line(label, automatic["queries"], *texts))
    return "\n".join(lines)


def measured(folder: Path) -> str:
    """All of docs/measured.md."""
    lines = [
        "# Measured",
        "",
        "Written by `make docs` from benchmarks/results, where the commands below write their results; a test compares "
        "it with those files. Brackets are 90% intervals. Goals were set beforehand; not all of them are reached.",
    ]
    for name, about in COMMANDS.items():
        if (folder / f"{name}.json").exists():
            lines += _benchmark_section(name, about, read(folder, name))
    if (folder / "crossfit.json").exists():
        lines += _crossfit_section(read(folder, "crossfit"))
    return "\n".join([*lines, ""])


def _benchmark_section(name: str, about: str, facts: Mapping[str, Any]) -> list[str]:
    """The rows of a benchmark, and whether they reach their goals."""
    where = [f"{k} {v}" for of in ("machine", "versions") for k, v in facts[of].items()]
    lines = ["", f"## {about}", ""]
    command = f"make bench-{name.replace('_', '-')}"
    measured_at = f"{facts['date']}, commit {facts['commit']}"
    if kept := facts.get("time_and_memory"):
        measured_at += f" (time and memory: {kept['date']}, commit {kept['commit']})"
    lines += [f"`{command}`, {measured_at}; {', '.join(where)}.", ""]
    lines += [NOTES[name], ""] if name in NOTES else []
    lines += [_line("measure", "value", "compared with", "goal"), _rule(4)]
    for row in facts["rows"]:
        value = _value(row, "g")
        if row.get("interval_90"):
            value += " [{:g}, {:g}]".format(*row["interval_90"])
        verdict = "" if row["goal"] is None else f"{_goal(row)}: {'reached' if row['holds'] else '**not reached**'}"
        lines.append(_line(row["name"], value, row["against"], verdict))
    return lines + (_growth_section(facts) if "growth" in facts else [])


def _growth_section(facts: Mapping[str, Any]) -> list[str]:
    """How the time of a training step grows, and how it is spent."""
    lines = [
        "",
        "Time of a training step along each axis ([engine.svg](engine.svg)), and the share of it that its matrix "
        "products alone would take at the measured rate:",
        "",
        _line("by", "", "tokens", "seconds", "products alone", "MB kept"),
        _rule(6),
    ]
    for axis, rows in facts["growth"].items():
        for r in rows:
            cells = f"{r['tokens']:,}", f"{r['seconds']:.3f}", f"{r['share_of_rate']:.0%}", f"{r['megabytes']:g}"
            lines.append(_line(axis, f"{r[axis]:,}", *cells))
    shares = ", ".join(f"{name} {share:.0%}" for name, share in facts["profile"].items())
    return [*lines, "", f"Where the processor's time goes in a step on one thread: {shares}."]


def _crossfit_section(facts: Mapping[str, Any]) -> list[str]:
    """Cross-validated gains of training, and the gains on the queries, a line for each set."""
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for row in facts["rows"]:
        name, _, words = row["name"].partition(": ")
        cells.setdefault(name, {})[words] = row
    lines = [
        "",
        "## Cross-validated training",
        "",
        f"`make bench-engine`, {facts['date']}, commit {facts['commit']}; `{facts['strategy']}`, up to "
        f"{facts['limit']} queries of each public set and {facts['generated']} tasks a domain of the generator's "
        "held-out families. Brackets are 90% intervals over families.",
        "",
        _line("set", "queries", *CROSSFIT_COLUMNS.values()),
        _rule(2 + len(CROSSFIT_COLUMNS)),
    ]
    for name, measures in cells.items():
        lines.append(
            _line(name, measures["right in context"]["queries"], *(_cell(w, measures[w]) for w in CROSSFIT_COLUMNS))
        )
    name, measures = list(cells.items())[-1]
    lines += [
        "",
        f"Of {name}, by the gain that cross-validation estimates: the gain in accuracy of the vote on the queries.",
        "",
        _line("estimated gain", "queries", "gain in accuracy", "became right", "became wrong"),
        _rule(5),
    ]
    for sign in ("above 0", "0", "below 0"):
        row = measures[f"estimated gain {sign}: true gain"]
        lines.append(_line(sign, row["queries"], _cell("", row), row["better"], row["worse"]))
    return lines


def _cell(words: str, row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "-"
    if "rejects" in words:
        return f"{row['value'] * row['queries']:.0f} of {row['queries']}"
    return f"{row['value']:.2f} [{{:.2f}}, {{:.2f}}]".format(*row["interval_90"])


def _value(row: Mapping[str, Any], form: str) -> str:
    """A value with its unit, if it has one; yes or no for a truth value."""
    if row["value"] is None:
        return "-"
    if row["unit"] == "yes/no":
        return "yes" if row["value"] else "no"
    separator = "" if row["unit"] in ("", "x") else " "
    unit = row["unit"].replace("of queries", f"of {row['queries']} queries") if "queries" in row else row["unit"]
    return f"{row['value']:{form}}{separator}{unit}"


def _goal(row: Mapping[str, Any]) -> str:
    """The goal as text; the smallest number above 0 is `above 0`."""
    if row["unit"] == "yes/no":
        return "yes"
    return "above 0" if 0 < row["goal"] < 1e-6 else f"{row['goal']:g}"


def _line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _rule(columns: int) -> str:
    return "|---" * columns + "|"
