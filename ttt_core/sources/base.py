"""What a source of tasks is, and the rule that divides families between policy training and test.

The rule reads contents and never a name: see `split_of`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..errors import TaskError
from ..tasks.task import Value

Split = Literal["training", "test"]
"""`training`: policies may be trained on the family. `test`: they are judged on it."""
TRAINING_SHARE = 0.6
"""Share of the families, on average, that policies may be trained on."""
SAME_TEMPLATE = 0.5
"""Families whose templates share this part of their word triples, or more, are one family for the split."""
REFERENCE_SEED = 0
"""Seed of the pairs that a family is recognised by."""
REFERENCE_PAIRS = 16
_NUMBER = re.compile(r"\d+")
_WORD = re.compile(r"\w+|[^\w\s]")

Pair = tuple[Value, Value]


@dataclass(frozen=True)
class SourceFamily:
    """A family of a source."""

    name: str
    kind: str
    split: Split
    difficulties: tuple[str, ...] = ("",)
    """Names of its difficulties, the easiest first; one empty name where there is only one."""
    about: str = ""
    """What is known of it, for people."""


@dataclass(frozen=True)
class DrawnTask:
    """A task as a source draws it."""

    demonstrations: tuple[Pair, ...]
    queries: tuple[Pair, ...]
    instruction: str | None = None


class TaskSource(Protocol):
    """Families of tasks that can be drawn by seed."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """What the tasks of a seed depend on: library or package with its version."""
        ...

    def families(self) -> Mapping[str, SourceFamily]: ...

    def draw(
        self, family: str, difficulty: str, tasks: int, demonstrations: int, queries: int, seed: int
    ) -> list[DrawnTask]:
        """`tasks` tasks of a family; the first ones do not depend on how many are drawn. Raises `TaskError` where the
        family has too few different inputs."""
        ...


def split_of(digest: str) -> Split:
    """The split of a family by the digest of its content: its first eight hexadecimal digits, as a fraction of the
    largest such number, are below `TRAINING_SHARE` for policy training.

    >>> split_of("00000000"), split_of("ffffffff")
    ('training', 'test')
    """
    return "training" if int(digest[:8], 16) / 0xFFFFFFFF < TRAINING_SHARE else "test"


def template_of(questions: Sequence[str]) -> frozenset[tuple[str, ...]]:
    """The triples of words that all questions have in common, in lower case and with every number as 0."""
    triples = [_triples(question) for question in questions]
    return frozenset.intersection(*triples) if triples else frozenset()


def _triples(text: str) -> frozenset[tuple[str, ...]]:
    words = _WORD.findall(_NUMBER.sub("0", text.lower()))
    return frozenset(zip(words, words[1:], words[2:], strict=False))


def content_digest_of(pairs: Iterable[Pair]) -> str:
    """SHA-256 of the template of a family's pairs; where questions have no words in common, of the pairs themselves.

    The order of the pairs and the name of the family do not matter.
    """
    rows = list(pairs)
    texts = [source for source, _ in rows if isinstance(source, str)]
    template = template_of(texts)
    lines = [json.dumps(row) for row in template or rows]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def splits_of(references: Mapping[str, Sequence[Pair]]) -> dict[str, tuple[str, Split]]:
    """Family -> digest and split, from some pairs of each family. Families whose templates share `SAME_TEMPLATE` of
    their triples, directly or through others, have the smallest digest among them, and so the same split."""
    templates = {
        name: template_of([source for source, _ in pairs if isinstance(source, str)])
        for name, pairs in references.items()
    }
    digests = {name: content_digest_of(pairs) for name, pairs in references.items()}
    group = dict(digests)
    changed = True
    while changed:
        changed = False
        for one in references:
            for other in references:
                if group[other] < group[one] and _alike(templates[one], templates[other]):
                    group[one], changed = group[other], True
    return {name: (digest, split_of(digest)) for name, digest in group.items()}


def _alike(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> bool:
    return bool(one | other) and len(one & other) >= SAME_TEMPLATE * len(one | other)


def derived_seed(*parts: object) -> int:
    """A seed of 31 bits from any values, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") >> 1


def take_distinct(pairs: Iterable[Pair], count: int, family: str) -> list[Pair]:
    """The first `count` pairs with different inputs. Raises `TaskError` where twenty times as many do not have them."""
    chosen: dict[Value, Value] = {}
    for tried, (source, target) in enumerate(pairs, start=1):
        chosen.setdefault(source, target)
        if len(chosen) == count:
            return list(chosen.items())
        if tried >= 20 * count + 100:
            break
    raise TaskError(f"{family}: {count} different inputs are needed for a task; it gave {len(chosen)}")
