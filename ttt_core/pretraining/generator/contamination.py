"""Detects pairs of public benchmarks among generated tasks, so that no model is pre-trained on them.

Knows nothing about the generator. `known_pairs.bin` holds only hashes, which benchmarks/contamination.py computes from
the files of the benchmarks. Grids and rows match up to a permutation of the colours and the symmetries of the square;
lists and texts match when they are equal.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

Pair = tuple[Any, Any]
"""Canonical values of an input and its output."""
FILE = Path(__file__).with_name("known_pairs.bin")
_ENTRY = struct.Struct("<QI")
_GRIDS = ("grid", "grid1d")


def hash_of(kind: str, pair: Pair) -> int:
    """64-bit hash of a pair; the same for grids that differ by a permutation of the colours."""
    if kind not in _GRIDS:
        return int.from_bytes(blake2b(repr((kind, pair)).encode(), digest_size=8).digest(), "little")
    source, target = pair
    flat = bytes(c for grid in pair for row in grid for c in row)
    colours = dict.fromkeys(flat)
    table = bytes.maketrans(bytes(colours), bytes(range(len(colours))))
    shape = repr((len(source), len(source[0]), len(target), len(target[0]))).encode()
    return int.from_bytes(blake2b(shape + flat.translate(table), digest_size=8).digest(), "little")


def symmetric_pairs(pair: Pair) -> Iterator[Pair]:
    """A pair of grids under each of the eight symmetries of the square, applied to both grids."""
    for flip in (False, True):
        source, target = (tuple(zip(*g, strict=True)) if flip else g for g in pair)
        for _ in range(4):
            source, target = (tuple(zip(*g[::-1], strict=True)) for g in (source, target))
            yield source, target


class KnownPairs:
    """Hashes of the pairs of benchmark tasks."""

    def __init__(self, tasks: Mapping[int, tuple[int, ...]]) -> None:
        """`tasks` maps the hash of a pair to the numbers of the tasks that contain it."""
        self._tasks = tasks

    def __len__(self) -> int:
        return len(self._tasks)

    @classmethod
    def of(cls, tasks: Iterable[tuple[str, Sequence[Pair]]]) -> KnownPairs:
        """From the kind and the pairs of each benchmark task."""
        return cls._from_entries(
            (hash_of(kind, same), number)
            for number, (kind, pairs) in enumerate(tasks)
            for pair in pairs
            for same in (symmetric_pairs(pair) if kind in _GRIDS else (pair,))
        )

    @classmethod
    def _from_entries(cls, entries: Iterable[tuple[int, int]]) -> KnownPairs:
        tasks: dict[int, set[int]] = {}
        for key, number in entries:
            tasks.setdefault(key, set()).add(number)
        return cls({key: tuple(sorted(numbers)) for key, numbers in tasks.items()})

    @classmethod
    def load(cls, file: Path = FILE) -> KnownPairs:
        """Reads the file that `save` writes."""
        return cls._from_entries(_ENTRY.iter_unpack(file.read_bytes()))

    def save(self, file: Path = FILE) -> None:
        """Writes the hashes to a file."""
        entries = [(key, number) for key, numbers in sorted(self._tasks.items()) for number in numbers]
        file.write_bytes(b"".join(_ENTRY.pack(*entry) for entry in entries))

    def hits(self, kind: str, pairs: Iterable[Pair]) -> list[tuple[int, ...]]:
        """For each known pair, the numbers of the tasks that contain it."""
        matches = (self._tasks.get(hash_of(kind, pair)) for pair in pairs)
        return [numbers for numbers in matches if numbers is not None]

    def contaminates(self, kind: str, pairs: Iterable[Pair]) -> bool:
        """Whether a generated task repeats a benchmark task: one pair of grids, or two pairs of one task otherwise.

        A single pair of short lists often matches by chance; two pairs of the same task hardly ever do.
        """
        hits = self.hits(kind, pairs)
        return bool(hits) and (kind in _GRIDS or max(Counter(n for h in hits for n in h).values()) > 1)


@cache
def known_pairs() -> KnownPairs:
    """The pairs of public benchmarks that the generator rejects."""
    return KnownPairs.load()
