"""Outcomes: what each strategy achieved and cost on each query, in an append-only file that survives a kill.

Knows nothing about how outcomes come about or what is learned from them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..ttt_core.errors import PolicyError


class Key(NamedTuple):
    """What an outcome is of; a store holds one of each."""

    base_hash: str
    dataset: str
    task_id: str
    strategy: str
    seed: int


@dataclass(frozen=True)
class Outcome:
    """One strategy on one query with one seed."""

    task_id: str
    group: str
    """Queries of one group share their demonstrations."""
    family: str
    """Families never straddle a split."""
    dataset: str
    kind: str
    strategy: str
    seed: int
    status: str
    """`answered`, `unreadable`, `failed`, `too_long` (does not fit in the context) or `too_few` (demonstrations)."""
    correct: float
    """1 for the right answer, else 0; every failure is 0."""
    seconds: float
    work: int
    """Tokens forward, and twice those backward."""
    cost: float
    """`work` as a multiple of what answering this query in context takes."""
    base_hash: str
    """Content hash of the model that answered."""
    features: Mapping[str, float] = field(default_factory=dict)
    """All stages; on the rows of `in_context` only."""
    features_version: int = 0
    probe_cost: float = 0.0
    """What measuring stage 1 took, in the unit of `cost`; on the rows of `in_context` only."""

    @property
    def key(self) -> Key:
        return Key(self.base_hash, self.dataset, self.task_id, self.strategy, self.seed)


class OutcomeStore:
    """A folder with one line of JSON per outcome. One writer at a time."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder) / "outcomes.jsonl"

    def append(self, outcome: Outcome) -> None:
        """Adds one whole line, and takes away what a killed writer left of its last."""
        line = json.dumps(asdict(outcome), allow_nan=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            _drop_torn_line(file)
            file.write(line.encode())

    def read(self) -> list[Outcome]:
        """Every outcome, in the order of writing. Raises `PolicyError` naming a line that is none."""
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        lines = data[: _whole(data)].splitlines()
        return [self._outcome(line, number) for number, line in enumerate(lines, start=1)]

    def done(self) -> set[Key]:
        """What need not be run again."""
        return {outcome.key for outcome in self.read()}

    def _outcome(self, line: bytes, number: int) -> Outcome:
        try:
            return Outcome(**json.loads(line))
        except (ValueError, TypeError) as error:
            known = ", ".join(f.name for f in fields(Outcome))
            raise PolicyError(
                f"{self.path}:{number}: not an outcome ({error}); expected a JSON object with {known}. "
                "Remove the line to measure it again"
            ) from None


def _drop_torn_line(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if size and file.read(1) != b"\n":
        file.seek(0)
        file.truncate(_whole(file.read()))


def _whole(data: bytes) -> int:
    """Length of `data` through its last line break: what comes after was torn."""
    return data.rfind(b"\n") + 1
