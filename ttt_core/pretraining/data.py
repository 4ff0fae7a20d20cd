"""What pre-training reads: packed rows of few-shot tasks from the generator, and the settings that decide them.

Knows nothing about models. A batch depends on the settings and its number only. Axes: B rows, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ..recipes import Recipe
from ..tasks.prompts import COMPACT_FORMAT
from ..tasks.task import Demonstration, Task
from .generator.families import MIXTURE, Split, draw_task_pairs

IGNORED = -100
Row = tuple[list[int], list[int]]
"""Token ids, and labels (IGNORED where nothing is learned)."""


class Batch(NamedTuple):
    """Rows of tokens; a row holds one task, and others where there is room."""

    ids: Tensor
    """[B, T]"""
    labels: Tensor
    """[B, T]; IGNORED where nothing is learned."""
    positions: Tensor
    """[B, T]; a token's place in its own task, which begins at every 0. Padding is 0."""


@dataclass(frozen=True)
class Phase:
    """What the stream is made of from a step on."""

    start: int
    """First step."""
    rows: tuple[tuple[int, float], ...]
    """Length of a row in tokens, and its share of the batches."""
    mixture: tuple[tuple[str, float], ...]
    """Domain, and its share of the tasks in rows under 500 tokens; longer rows are mostly grids."""


PHASES = (
    Phase(0, ((192, 0.5), (320, 0.3), (640, 0.14), (1024, 0.06)), tuple(MIXTURE.items())),
    Phase(
        1752,
        ((192, 0.7), (320, 0.24), (640, 0.04), (1024, 0.02)),
        (("lists", 0.58), ("rows", 0.24), ("grids", 0.08), ("strings", 0.1)),
    ),
)
"""From random weights. The second phase is mostly short rows, which a CPU gets through faster."""

FURTHER = (
    Phase(
        0,
        ((192, 0.64), (320, 0.26), (640, 0.08), (1024, 0.02)),
        (("lists", 0.46), ("rows", 0.28), ("grids", 0.12), ("strings", 0.14)),
    ),
)
"""From the weights of the first version."""

BALANCED = (
    Phase(
        0,
        ((192, 0.4), (320, 0.42), (640, 0.15), (1024, 0.03)),
        (("lists", 0.34), ("rows", 0.14), ("grids", 0.3), ("strings", 0.22)),
    ),
)
"""From the weights of the second version: more small grids and strings, which it had seen least of."""

LONGER = (
    Phase(
        0,
        ((192, 0.4), (320, 0.4), (640, 0.15), (1024, 0.03), (2048, 0.02)),
        (("lists", 0.4), ("rows", 0.1), ("grids", 0.3), ("strings", 0.2)),
    ),
)
"""From the weights of the third version: twice the context, and lists again."""

STAGES = {"first": PHASES, "further": FURTHER, "balanced": BALANCED, "longer": LONGER}
"""The phases of a run, by the name that the command line gives them."""

LONG_MIXTURE = {"lists": 0.1, "rows": 0.25, "grids": 0.6, "strings": 0.05}
"""Domains in rows of 500 tokens and more."""
META_MIXTURE = {"lists": 0.6, "rows": 0.25, "strings": 0.15}
"""Domains of the tasks that are trained on for trainability."""
INNER = Recipe(rank=16, alpha=16.0, dropout=0.0, learning_rate=5e-3, max_steps=5, batch_size=4)
"""The inner adaptation of such a task: a shorter and faster one than the shipped recipe's."""
META_TASKS, META_ROWS, META_LENGTH = 6, 3, 240
"""Such tasks in a step, rows of new queries of each, and their longest row in tokens."""
LEAST_ROOM = 48
"""Tokens left in a row for which another task is drawn."""


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the weights, but the number of steps."""

    hidden: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 4
    intermediate: int = 640
    context: int = 1024
    """Longest sequence the model will be asked to read, in tokens; rows are at most this long."""
    tokens: int = 6144
    """Tokens in a batch of one process."""
    shards: int = 1
    """Processes; a step takes the mean of their gradients."""
    lr: float = 2e-3
    warmup: int = 200
    """Steps."""
    weight_decay: float = 0.05
    seed: int = 0
    phases: tuple[Phase, ...] = PHASES
    """In order; the first starts at step 0."""
    meta: bool = False
    """Every step is one for trainability (see `meta`), on the tasks of `Stream.meta_tasks`."""
    strict: bool = False
    """Ambiguous tasks are left out, and those that do no more than a part of their chain (see `generator.core`)."""
    dtype: str = "bfloat16"
    """Precision of the working copy that gradients are computed with; the master weights are fp32."""
    init: str | None = None
    """SHA-256 of the weights that training began with (all shards, in order of their names); None: random weights."""
    parted: tuple[int, int] | None = None
    """The step at which this run left another (`--branch`), and the seed that its first weights were drawn with."""


def config_from(raw: dict[str, Any]) -> PretrainConfig:
    """The settings again, from what JSON made of them."""
    phases = tuple(
        Phase(p["start"], tuple((n, x) for n, x in p["rows"]), tuple((n, x) for n, x in p["mixture"]))
        for p in raw["phases"]
    )
    parted = tuple(raw["parted"]) if raw.get("parted") else None
    return PretrainConfig(**{**raw, "phases": phases, "parted": parted})


@dataclass(frozen=True)
class MetaTask:
    """One task to be trained for trainability on."""

    inner: list[Row]
    """What its adapter learns from: the demonstrations in random orders, every answer but the first labelled."""
    outer: list[Row]
    """What the base learns then: the demonstrations in random orders, then new pairs, whose answers are labelled."""


class Stream:
    """Batches of tasks from a split of the generator."""

    def __init__(self, config: PretrainConfig, tokenizer: PreTrainedTokenizerFast, split: Split = "pretrain") -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.split = split

    def batch(self, step: int, shard: int = 0) -> Batch:
        """The batch of process `shard` at `step`; the same every time. Rows are as long in all processes."""
        rng = random.Random(f"{self.config.seed}-{self.split}-{step}")
        phase = next(p for p in reversed(self.config.phases) if p.start <= step)
        lengths, shares = zip(*phase.rows, strict=True)
        length = rng.choices(lengths, shares)[0]
        if shard:
            rng = random.Random(f"{self.config.seed}-{self.split}-{step}-{shard}")
        short = dict(phase.mixture)
        mixture = short if length < 500 else LONG_MIXTURE
        rows = [self._packed(rng, length, mixture, short) for _ in range(max(1, self.config.tokens // length))]
        return Batch(*(torch.tensor(column) for column in zip(*rows, strict=True)))

    def _packed(
        self, rng: random.Random, length: int, mixture: Mapping[str, float], fill: Mapping[str, float]
    ) -> tuple[list[int], list[int], list[int]]:
        """Ids, labels and positions of a task drawn by `mixture` and, in the room that it leaves, others by `fill`."""
        ids, labels = self.row(rng, length, mixture)
        positions = list(range(len(ids)))
        while length - len(ids) >= LEAST_ROOM:
            more = self._drawn(rng, length - len(ids), fill)
            if more is None:
                break
            ids, labels = ids + more[0], labels + more[1]
            positions += range(len(more[0]))
        rest = length - len(ids)
        return ids + [self.tokenizer.pad_token_id] * rest, labels + [IGNORED] * rest, positions + [0] * rest

    def row(self, rng: random.Random, length: int, mixture: Mapping[str, float]) -> Row:
        """One task, in at most `length` tokens; at least three worked examples."""
        while True:
            found = self._drawn(rng, length, mixture)
            if found is not None:
                return found

    def _drawn(self, rng: random.Random, length: int, mixture: Mapping[str, float]) -> Row | None:
        """As many worked examples of a task as fit; None where fewer than three do."""
        name = rng.choices(list(mixture), list(mixture.values()))[0]
        want = {"lists": length // 16, "strings": length // 16, "rows": length // 40, "grids": length // 40}[name]
        family, pairs = draw_task_pairs(self.split, min(14, max(4, want)), rng, name, strict=self.config.strict)
        ids, labels, answers = self.encode(family.domain.kind, pairs, 1, length)
        return (ids, labels) if answers >= 3 else None

    def encode(
        self, kind: str, pairs: list[tuple[Any, Any]], unlabelled: int, length: int
    ) -> tuple[list[int], list[int], int]:
        """Ids and labels of as many pairs as fit in `length` tokens, and how many answers those hold; the answers of
        the first `unlabelled` pairs are not learned."""
        (source, target), rest = pairs[-1], pairs[:-1]
        task = Task(kind, tuple(Demonstration(a, b) for a, b in rest), source)
        ids, labels = [self.tokenizer.bos_token_id], [IGNORED]
        answers = 0
        for piece in COMPACT_FORMAT.pieces(task, target):
            new = self.tokenizer.encode(piece.text, add_special_tokens=False)
            if len(ids) + len(new) > length:
                break
            ids += new
            labels += new if piece.role != "context" and answers >= unlabelled else [IGNORED] * len(new)
            answers += piece.role == "end"
        return ids, labels, answers

    def meta_tasks(self, step: int, shard: int = 0) -> list[MetaTask]:
        """The tasks of a meta-step; the same every time. All of one domain, so that lengths are alike."""
        rng = random.Random(f"{self.config.seed}-{self.split}-meta-{step}" + (f"-{shard}" if shard else ""))
        name = rng.choices(list(META_MIXTURE), list(META_MIXTURE.values()))[0]
        tasks: list[MetaTask] = []
        while len(tasks) < META_TASKS:
            shown = rng.randint(3, 4) if name == "rows" else rng.randint(4, 8)
            family, pairs = draw_task_pairs(self.split, shown + 4, rng, name, strict=self.config.strict)
            kind = family.domain.kind
            if self.encode(kind, pairs, 1, META_LENGTH)[2] == len(pairs):
                tasks.append(self._meta_task(kind, pairs[:shown], pairs[shown:], rng))
        return tasks

    def _meta_task(
        self, kind: str, shown: list[tuple[Any, Any]], new: list[tuple[Any, Any]], rng: random.Random
    ) -> MetaTask:
        def row(pairs: list[tuple[Any, Any]], unlabelled: int) -> Row:
            return self.encode(kind, pairs, unlabelled, META_LENGTH)[:2]

        count = len(shown)
        inner = [row(rng.sample(shown, count), 1) for _ in range(INNER.max_steps * INNER.batch_size)]
        outer = [row(rng.sample(shown, count) + rng.sample(new, len(new)), count) for _ in range(META_ROWS)]
        return MetaTask(inner, outer)


def padded(rows: list[Row], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and labels [B, T] of rows, padded to the longest."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([i + [pad_id] * (longest - len(i)) for i, _ in rows])
    labels = torch.tensor([y + [IGNORED] * (longest - len(y)) for _, y in rows])
    return ids, labels


def packed_mask(positions: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, T, T], to be added to attention scores: a token sees those before it in its own task."""
    tasks = (positions == 0).cumsum(1)
    length = positions.shape[1]
    seen = tasks[:, :, None] == tasks[:, None, :]
    seen &= torch.ones(length, length, dtype=torch.bool, device=positions.device).tril()
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
