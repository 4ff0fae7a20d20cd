"""Exports tasks of a source as JSON lines that `read_tasks` reads: each names its source, version, seed and split."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import TaskError, shortened
from .arc import Arc
from .base import DrawnTask, Pair, SourceFamily, Split, TaskSource
from .english import English
from .generated import Generated
from .reasoning_gym import ReasoningGym

SOURCES: Mapping[str, TaskSource] = {
    source.name: source for source in (ReasoningGym(), Arc(), English(), Generated())
}  # fmt: skip
"""Source -> how its tasks are drawn."""
ALL = "all"
"""Stands for every family of a source."""


@dataclass(frozen=True)
class Selection:
    """Families of one source."""

    source: TaskSource
    families: tuple[SourceFamily, ...]

    @classmethod
    def parse(cls, text: str, split: Split | None = None) -> Selection:
        """`SOURCE:FAMILY[,FAMILY...]`, or `SOURCE:all`; with `split`, only families of that split. Raises `TaskError`
        for a source or family that does not exist."""
        name, colon, rest = text.partition(":")
        source = source_of(name)
        every = source.families()
        names = [part.strip() for part in rest.split(",") if part.strip()]
        if not colon or not names:
            raise TaskError(f"expected SOURCE:FAMILY[,FAMILY...] or {name}:{ALL}; received {shortened(text)}")
        if names == [ALL]:
            names = list(every)
        for family in names:
            if family not in every:
                raise _unknown(f"{name}: expected a family", family, every)
        chosen = [every[family] for family in dict.fromkeys(names) if split in (None, every[family].split)]
        if not chosen:
            raise TaskError(f"{text}: none of these families is of the split {split!r}")
        return cls(source, tuple(chosen))

    def of_difficulties(self, wanted: Sequence[str]) -> tuple[Selection, tuple[str, ...]]:
        """The selection of these difficulties, and the families that are left out because they have several and none of
        these; families without difficulties stay. Raises `TaskError` for a difficulty that no family has."""
        known = sorted({difficulty for family in self.families for difficulty in family.difficulties if difficulty})
        if unknown := [difficulty for difficulty in wanted if difficulty not in known]:
            expected = ", ".join(known) or "none, as no family has any"
            raise TaskError(f"{self.source.name}: expected difficulties of {expected}; received {', '.join(unknown)}")
        restricted = [
            family if family.difficulties == ("",) else
            replace(family, difficulties=tuple(one for one in family.difficulties if one in wanted))
            for family in self.families
        ]  # fmt: skip
        left_out = tuple(family.name for family in restricted if not family.difficulties)
        return replace(self, families=tuple(family for family in restricted if family.difficulties)), left_out


def source_of(name: str) -> TaskSource:
    """The source of a name. Raises `TaskError` for one that does not exist."""
    if name not in SOURCES:
        raise _unknown("expected a source", name, SOURCES)
    return SOURCES[name]


def _unknown(what: str, name: str, names: Mapping[str, Any]) -> TaskError:
    near = difflib.get_close_matches(name[:64], names, n=3)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    shown = ", ".join(list(names)[:12]) + (", ..." if len(names) > 12 else "")
    return TaskError(f"{what}: {shown}; received {shortened(name)}{hint}")


def export(selection: Selection, tasks: int, demonstrations: int, queries: int, seed: int) -> Iterator[str]:
    """Lines of JSON, a task each: `tasks` of every family and difficulty.

    The same selection, numbers, seed and version give the same lines. Raises `TaskError` for too few different inputs.
    """
    for family in selection.families:
        for difficulty in family.difficulties:
            drawn = selection.source.draw(family.name, difficulty, tasks, demonstrations, queries, seed)
            for number, task in enumerate(drawn):
                yield json.dumps(_line(selection.source, family, difficulty, number, task, seed), ensure_ascii=False)


def _line(
    source: TaskSource, family: SourceFamily, difficulty: str, number: int, task: DrawnTask, seed: int
) -> dict[str, Any]:
    """A task as `read_tasks` reads it, with what its origin is."""
    place = "-".join(part for part in (source.name, family.name, difficulty, str(seed), f"{number:04}") if part)
    return {
        "id": place, "dataset": source.name, "family": f"{source.name}/{family.name}", "kind": family.kind,
        **({"instruction": task.instruction} if task.instruction else {}),
        "demonstrations": [_pair(pair) for pair in task.demonstrations],
        "queries": [_pair(pair) for pair in task.queries],
        **({"difficulty": difficulty} if difficulty else {}),
        "split": family.split, "source": source.version, "seed": seed,
    }  # fmt: skip


def _pair(pair: Pair) -> dict[str, Any]:
    return {"input": pair[0], "output": pair[1]}
