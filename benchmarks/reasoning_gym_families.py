"""Measures which families of reasoning-gym have short answers that an exact comparison verifies, and their splits.

    python benchmarks/reasoning_gym_families.py --json ttt_core/sources/reasoning_gym.json

Every family is measured in two processes of its own with different hash seeds and a time limit. A level of a family is
used if 40 entries are drawn in time, half of the answers or more are short (`short_answer`), and questions and answers
differ; where no level is, the library's own settings are tried. A family is used if its entries are the same in both
processes and an exact comparison does what its scorer does:

- each entry's answer is right, and no number with three digits in its place;
- the scorer compares with the stored answer: it accepts another one that is stored in its place, in the
  metadata too, and that alone; or
- answers are single words, or numbers, and neither an answer of another entry is right nor a changed one: words or
  neighbouring characters in another order, an expression in brackets, another number. Other scorers check a solution,
  of which there may be many.

Needs the library (`pip install 'autottt[tasks]'`); takes some minutes. An interrupted run continues from --rows.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from autottt.ttt_core.sources.base import REFERENCE_PAIRS, REFERENCE_SEED, splits_of
from autottt.ttt_core.sources.reasoning_gym import (
    MAX_ANSWER_LENGTH,
    ReasoningGym,
    dataset,
    entry_of,
    library,
    short_answer,
)
from autottt.ttt_core.tasks.task import content_digest

ENTRIES = 40
LEVELS = ("0", "1", "2")
SHORT_SHARE = 0.5
"""Of the answers of a level; entries with longer ones are skipped."""
MAX_QUESTION_LENGTH = 8000
"""Characters of the longest question of a level that is used."""
MAX_SECONDS = 0.25
"""Of the processor, for an entry."""
TIMEOUT = 150
"""Seconds for all of a family."""
DISTINCT = 12
"""Different questions with short answers among the entries of a level, at least."""
SCORED = 12
"""Entries whose scorer is examined."""
RIGHT = 0.99
_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def is_numbers(answer: str) -> bool:
    """Whether an answer is a number, or several: a complex one, coordinates, a time."""
    return bool(_NUMBER.search(answer)) and _NUMBER.sub("", answer).strip("()+-,.:i° ") == ""


def changed(answer: str, rng: random.Random) -> Iterator[str]:
    """Answers with another content than `answer`."""
    if is_numbers(answer):
        places = [match.span() for match in _NUMBER.finditer(answer)]
        for begin, end in places:
            yield f"{answer[:begin]}{float(answer[begin:end]) + 1:g}{answer[end:]}"
        for (begin, end), (start, stop) in pairwise(places):
            yield answer[:begin] + answer[start:stop] + answer[end:start] + answer[begin:end] + answer[stop:]
        return
    words = answer.split()
    for _ in range(10):
        yield " ".join(rng.sample(words, len(words)))
        yield "".join(rng.sample(answer, len(answer)))
    for i in range(len(answer) - 1):
        yield answer[:i] + answer[i + 1] + answer[i] + answer[i + 2 :]
    if any(operator in answer[1:] for operator in "+*/-") and any(c.isdigit() for c in answer):
        yield f"({answer})"


def same_content(one: str, other: str) -> bool:
    """Whether two answers differ in spaces and case, or only in the last digits of numbers."""
    if is_numbers(one) and is_numbers(other):
        numbers = [[float(number) for number in _NUMBER.findall(text)] for text in (one, other)]
        return len(numbers[0]) == len(numbers[1]) and all(map(partial(math.isclose, rel_tol=1e-3), *numbers))
    return "".join(one.split()).casefold() == "".join(other.split()).casefold()


def score(source: Any, answer: str, entry: Any) -> float:
    """The score of an answer; 0 where the scorer raises an error."""
    try:
        return float(source.score_answer(answer, entry))
    except Exception:
        return 0.0


def fault_of_scorer(source: Any, entries: list[Any], rng: random.Random) -> str:
    """Why an exact comparison would not do what the scorer does; empty if it would."""
    answers = [str(short_answer(entry["answer"])) for entry in entries]
    follows = compared = single = 0
    for entry, answer in zip(entries, answers, strict=True):
        single += is_numbers(answer) or (len(answer.split()) == 1 and not any(sign in answer for sign in ",;→"))
        if score(source, answer, entry) < RIGHT:
            return "its scorer refuses the stored answer"
        if (rounded := rounded_number(answer)) and score(source, rounded, entry) >= RIGHT:
            return f"its answers have more digits than are needed: {answer!r}"
        for source_of_other, other in zip(entries, answers, strict=True):
            if not same_content(other, answer):
                replaced = with_answer_of(entry, source_of_other)
                compared += 1
                follows += score(source, other, replaced) >= RIGHT > score(source, answer, replaced)
    if follows >= 0.9 * compared:
        return ""
    if single < 0.9 * len(entries):
        return "its scorer checks a solution, of which there may be several"
    for entry, answer in zip(entries, answers, strict=True):
        for candidate in [*answers, *changed(answer, rng)]:
            if not same_content(candidate, answer) and score(source, candidate, entry) >= RIGHT:
                return f"several answers are right: {answer!r} and {candidate!r}"
    return ""


def with_answer_of(entry: Any, other: Any) -> Any:
    """An entry with the answer of another one, also where its metadata hold a copy of the answer."""
    replaced = {**copy.deepcopy(entry), "answer": other["answer"]}
    for name, value in entry["metadata"].items():
        if _WORD.findall(str(value)) == _WORD.findall(entry["answer"]) and name in other["metadata"]:
            replaced["metadata"][name] = copy.deepcopy(other["metadata"][name])
    return replaced


def rounded_number(answer: str) -> str:
    """A number with three digits; empty where that is the same number, or the answer is none."""
    try:
        rounded = f"{float(answer):.3g}"
        return "" if float(rounded) == float(answer) else rounded
    except ValueError:
        return ""


def measure_level(name: str, level: str, rng: random.Random) -> dict[str, Any]:
    began = time.process_time()
    source = dataset(library(), name, level, REFERENCE_SEED)
    entries = [entry_of(source, i) for i in range(ENTRIES)]
    seconds = (time.process_time() - began) / ENTRIES
    short = [entry for entry in entries if short_answer(entry["answer"]) is not None]
    lengths = sorted(len(str(short_answer(entry["answer"]))) for entry in short)
    questions = sorted(len(entry["question"]) for entry in entries)
    row: dict[str, Any] = {"question": questions[-1], "answer": max(lengths, default=0), "short": len(short) / ENTRIES}
    row["digest"] = content_digest([(entry["question"], str(entry["answer"])) for entry in entries])
    if len(short) < SHORT_SHARE * ENTRIES:
        row["fault"] = f"{len(short)} of {ENTRIES} answers are of one line and at most {MAX_ANSWER_LENGTH} characters"
    elif questions[-1] > MAX_QUESTION_LENGTH:
        row["fault"] = f"questions of {questions[-1]} characters"
    elif seconds > MAX_SECONDS:
        row["fault"] = f"more than {MAX_SECONDS} seconds for an entry"
    elif len({entry["question"] for entry in short}) < DISTINCT or len({e["answer"] for e in short}) < 2:
        row["fault"] = "few different entries"
    else:
        row["fault"] = fault_of_scorer(source, short[:SCORED], rng)
    return row


def measure(name: str) -> None:
    """Prints a JSON line for each level, and the reference pairs: in a process of its own."""
    factory = library()
    rng = random.Random(name)
    random.seed(os.environ["PYTHONHASHSEED"])
    source = dataset(factory, name, "", REFERENCE_SEED)
    entries = [entry_of(source, i) for i in range(REFERENCE_PAIRS)]
    pairs = [(entry["question"], str(entry["answer"])) for entry in entries]
    print(json.dumps({"pairs": pairs}), flush=True)
    for level in (*(LEVELS if factory.has_curriculum(name) else ()), ""):
        try:
            print(json.dumps({"level": level, **measure_level(name, level, rng)}), flush=True)
        except Exception as error:
            print(json.dumps({"level": level, "fault": f"{type(error).__name__}: {error}"[:100]}), flush=True)


def lines_of(name: str, hash_seed: int) -> list[dict[str, Any]]:
    """What the measurement of a family printed, until its time was over."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", name]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        printed, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def family_row(name: str) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The row of the table, without its split, and the reference pairs."""
    one, other = (lines_of(name, hash_seed) for hash_seed in (1, 2))
    if not one or not other:
        return {"left_out": f"no entry in {TIMEOUT} seconds", "difficulties": {}}, []
    pairs = [(question, answer) for question, answer in one[0]["pairs"]]
    levels = {row["level"]: row for row in one[1:]}
    again = {row["level"]: row.get("digest") for row in other[1:]}
    difficulties, faults, digests = {}, [], set()
    for level, row in levels.items():
        if not level and difficulties:
            continue
        if not row["fault"] and level not in again:
            row["fault"] = f"no entry in {TIMEOUT} seconds"
        elif not row["fault"] and (other[0] != one[0] or again[level] != row["digest"]):
            row["fault"] = "other entries in another process"
        if row["fault"]:
            faults.append(row["fault"])
        elif row["digest"] not in digests:
            digests.add(row["digest"])
            difficulties[level] = {key: row[key] for key in ("question", "answer", "short")}
    left_out = "" if difficulties else next(iter(faults), f"no entry in {TIMEOUT} seconds")
    return {"left_out": left_out, "difficulties": difficulties}, pairs


def measured(name: str, file: Path, earlier: dict[str, Any]) -> dict[str, Any]:
    """The row and the reference pairs of a family: of an earlier run, or measured now and appended to the file."""
    if name in earlier:
        return dict(earlier[name])
    row, pairs = family_row(name)
    entry = {"name": name, "row": row, "pairs": pairs}
    with file.open("a") as stream:
        stream.write(json.dumps(entry) + "\n")
    return entry


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file of the table")
    parser.add_argument("--rows", type=Path, default=Path("runs/reasoning_gym_families.jsonl"), help="continued from")
    parser.add_argument("--one", help="measure this family only, and print its lines")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if options.one:
        measure(options.one)
        return
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    lines = options.rows.read_text().splitlines() if options.rows.exists() else []
    earlier = {entry["name"]: entry for entry in map(json.loads, lines)}
    names = sorted(name for name in library().DATASETS if name != "composite")  # that one mixes the others
    with ThreadPoolExecutor(options.processes) as pool:
        entries = list(pool.map(lambda name: measured(name, options.rows, earlier), names))
    pairs = {entry["name"]: [(question, answer) for question, answer in entry["pairs"]] for entry in entries}
    splits = splits_of({name: some for name, some in pairs.items() if some})
    families = {}
    for entry in entries:
        name, row = entry["name"], entry["row"]
        digest, split = splits.get(name, ("", ""))
        families[name] = {**row, "digest": digest[:16], "split": split}
        print(f"{name:<26}{split:<10}{' '.join(row['difficulties'])}{row['left_out']}")
    used = [row for row in families.values() if not row["left_out"]]
    print(f"{len(used)} of {len(names)} families, {sum(r['split'] == 'training' for r in used)} of them for training")
    about = "By benchmarks/reasoning_gym_families.py; lengths are the largest of 40 entries, in characters."
    table = {"about": about, "version": ReasoningGym().version, "families": families}
    options.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
