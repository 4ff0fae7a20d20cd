"""Families of the library reasoning-gym with short answers that an exact comparison verifies.

Which families those are is measured by `benchmarks/reasoning_gym_families.py`, which writes the table beside this file.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from ..errors import TaskError
from .base import DrawnTask, Pair, SourceFamily, derived_seed, take_distinct

TABLE = Path(__file__).parent / "reasoning_gym.json"
MAX_ANSWER_LENGTH = 64
"""Characters of the longest answer; entries with longer ones are skipped."""
BLOCK = 1000
"""Entries of one dataset of the library; further ones are of a dataset with another seed."""
SHORTEST_INSTRUCTION = 40
"""Characters of the shortest beginning that a task's questions share and that becomes its instruction."""


class ReasoningGym:
    """Families of reasoning-gym with short answers; a task is of one level of difficulty."""

    name = "reasoning-gym"

    @property
    def version(self) -> str:
        return f"reasoning-gym {version('reasoning-gym')}"

    def families(self) -> Mapping[str, SourceFamily]:
        """The families of the table that are not left out."""
        return {
            name: SourceFamily(
                name, "text", row["split"], tuple(row["difficulties"]),
                f"answers of up to {max(d['answer'] for d in row['difficulties'].values())} characters",
            )
            for name, row in table()["families"].items()
            if not row["left_out"]
        }  # fmt: skip

    def draw(
        self, family: str, difficulty: str, tasks: int, demonstrations: int, queries: int, seed: int
    ) -> list[DrawnTask]:
        size = demonstrations + queries
        every = entries(family, difficulty, seed)
        return [
            _task(take_distinct(every, size, f"reasoning-gym:{family}"), demonstrations) for _ in range(tasks)
        ]  # fmt: skip


@cache
def table() -> dict[str, Any]:
    """The measured table of families."""
    content: dict[str, Any] = json.loads(TABLE.read_text("utf-8"))
    return content


def library() -> Any:
    """The library's module `factory`. Raises `TaskError` where it is not installed."""
    remedy = "pip install 'autottt[tasks]'"
    if find_spec("reasoning_gym") is None:
        raise TaskError(f"reasoning-gym: this source needs the library of that name: {remedy}")
    try:
        from reasoning_gym import factory
    except ImportError as error:
        raise TaskError(f"reasoning-gym: the library cannot be imported ({error}): {remedy}") from error
    return factory


def dataset(factory: Any, family: str, difficulty: str, seed: int) -> Any:
    """A dataset of the library. `difficulty` is a level of the family's curriculum; empty for its own settings."""
    settings = {"seed": seed, "size": BLOCK}
    if not difficulty:
        return factory.create_dataset(family, **settings)
    curriculum = factory.create_curriculum(family)
    curriculum.set_global_level(int(difficulty))
    dataset_class, _ = factory.DATASETS[family]
    return dataset_class(config=curriculum.generate_configuration(settings))


def entries(family: str, difficulty: str, seed: int) -> Iterator[Pair]:
    """Questions and answers, without those whose answer is not short; deterministic for a seed and a version. Raises
    `TaskError` where the library cannot generate them."""
    factory = library()
    for block in count():
        try:
            source = dataset(factory, family, difficulty, derived_seed(seed, difficulty, block))
            for index in range(BLOCK):
                entry = entry_of(source, index)
                if (answer := short_answer(entry["answer"])) is not None:
                    yield entry["question"].strip(), answer
        except Exception as error:  # whatever the library raises
            where = f"reasoning-gym:{family}" + (f", difficulty {difficulty}" if difficulty else "")
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise TaskError(f"{where}: the library cannot generate it ({reason}); leave this family out") from error


def entry_of(source: Any, index: int) -> Mapping[str, Any]:
    """An entry of a dataset. Some families draw from Python's global random state, which is set for it and restored."""
    state = random.getstate()
    random.seed(derived_seed(source.seed, index))
    try:
        entry: Mapping[str, Any] = source[index]
    finally:
        random.setstate(state)
    return entry


def short_answer(answer: object) -> str | None:
    """The answer without white space around it; None where it is no text, empty, longer than `MAX_ANSWER_LENGTH`, or
    over several lines."""
    if not isinstance(answer, str):
        return None
    text = answer.strip()
    return text if 0 < len(text) <= MAX_ANSWER_LENGTH and len(text.splitlines()) == 1 else None


def _task(pairs: list[Pair], demonstrations: int) -> DrawnTask:
    """A task whose instruction is what its questions begin with in common, if that is a sentence or more."""
    questions = [str(question) for question, _ in pairs]
    length = common_beginning(questions)
    instruction = questions[0][:length].strip() or None
    shortened = [(question[length:].strip(), answer) for question, (_, answer) in zip(questions, pairs, strict=True)]
    return DrawnTask(tuple(shortened[:demonstrations]), tuple(shortened[demonstrations:]), instruction)


def common_beginning(questions: list[str]) -> int:
    """Characters that all questions begin with, up to the end of a line or sentence; 0 for fewer than
    `SHORTEST_INSTRUCTION`, and where a question would be empty without them."""
    shared = 0
    while all(shared < len(q) - 1 and q[shared] == questions[0][shared] for q in questions):
        shared += 1
    ends = [
        questions[0].rfind(end, 0, shared) + len(end)
        for end in ("\n", ". ", ": ", "? ")
        if end in questions[0][:shared]
    ]
    length = max(ends, default=0)
    return length if length >= SHORTEST_INSTRUCTION else 0
