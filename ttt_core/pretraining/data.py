"""Pre-training data: batches of rows of tokens, packed with few-shot tasks of the generator, and their settings.

Knows nothing about models. A batch depends on the settings and its step alone. Axes: B rows, T tokens.
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
"""Token ids, and labels (IGNORED for tokens without loss)."""


class Batch(NamedTuple):
    """Rows of tokens; a row holds one task, and further ones if they fit."""

    ids: Tensor
    """[B, T]"""
    labels: Tensor
    """[B, T]; IGNORED for tokens without loss."""
    positions: Tensor
    """[B, T]; position of the token in its own task. A task begins at every 0; padding is 0."""


@dataclass(frozen=True)
class Phase:
    """Row lengths and domains of the batches, from step `start`."""

    start: int
    """First step."""
    rows: tuple[tuple[int, float], ...]
    """Pairs: length of a row in tokens, share of the batches."""
    mixture: tuple[tuple[str, float], ...]
    """Pairs: domain, share of the tasks in rows under 500 tokens (`LONG_MIXTURE` is that of longer rows)."""


PHASES = (
    Phase(0, ((192, 0.5), (320, 0.3), (640, 0.14), (1024, 0.06)), tuple(MIXTURE.items())),
    Phase(
        1752,
        ((192, 0.7), (320, 0.24), (640, 0.04), (1024, 0.02)),
        (("lists", 0.58), ("rows", 0.24), ("grids", 0.08), ("strings", 0.1)),
    ),
)
"""The first stage, from random weights. The second phase has mostly short rows, which a CPU processes faster."""

FURTHER = (
    Phase(
        0,
        ((192, 0.64), (320, 0.26), (640, 0.08), (1024, 0.02)),
        (("lists", 0.46), ("rows", 0.28), ("grids", 0.12), ("strings", 0.14)),
    ),
)
"""The second stage, from the weights of the first."""

BALANCED = (
    Phase(
        0,
        ((192, 0.4), (320, 0.42), (640, 0.15), (1024, 0.03)),
        (("lists", 0.34), ("rows", 0.14), ("grids", 0.3), ("strings", 0.22)),
    ),
)
"""The third stage, from the weights of the second: more small grids and strings, which were rare before."""

LONGER = (
    Phase(
        0,
        ((192, 0.4), (320, 0.4), (640, 0.15), (1024, 0.03), (2048, 0.02)),
        (("lists", 0.4), ("rows", 0.1), ("grids", 0.3), ("strings", 0.2)),
    ),
)
"""The fourth stage, from the weights of the third: twice the context, and more lists again."""

STAGES = {"first": PHASES, "further": FURTHER, "balanced": BALANCED, "longer": LONGER}
"""The phases of a run, by the value of `--stage`."""

LONG_MIXTURE = {"lists": 0.1, "rows": 0.25, "grids": 0.6, "strings": 0.05}
"""Domains in rows of 500 tokens and more."""
META_MIXTURE = {"lists": 0.6, "rows": 0.25, "strings": 0.15}
"""Domains of the tasks of `--meta`."""
INNER = Recipe(rank=16, alpha=16.0, dropout=0.0, learning_rate=5e-3, max_steps=5, batch_size=4)
"""Recipe of the inner adaptation in `--meta`: fewer steps at a higher learning rate than the shipped recipe."""
META_TASKS, META_ROWS, META_LENGTH = 6, 3, 240
"""Of `--meta`: tasks per step, rows of new queries per task, and the longest row in tokens."""
MIN_FREE_TOKENS = 48
"""Another task is packed into a row if at least this many tokens are free."""


@dataclass(frozen=True)
class PretrainConfig:
    """All settings that decide the weights, except the number of steps."""

    hidden: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 4
    intermediate: int = 640
    context: int = 1024
    """Context length of the model in tokens; rows are at most this long."""
    tokens: int = 6144
    """Tokens per batch and process."""
    shards: int = 1
    """Processes; a step uses the mean of their gradients."""
    lr: float = 2e-3
    warmup: int = 200
    """Steps of linear warm-up."""
    weight_decay: float = 0.05
    seed: int = 0
    phases: tuple[Phase, ...] = PHASES
    """In order; the first starts at step 0."""
    meta: bool = False
    """First-order MAML (see the module `meta`), on the tasks of `Stream.meta_tasks`."""
    strict: bool = False
    """Leaves out ambiguous tasks, and those that a part of their chain solves (see `generator.core`)."""
    dtype: str = "bfloat16"
    """Precision of the copy that computes the gradients; the master weights are fp32."""
    init: str | None = None
    """SHA-256 of the initial weights (all shards, in order of their names); None: random weights."""
    branch_point: tuple[int, int] | None = None
    """Of a branch (`--branch`): the step at which it started, and the seed of the run's random weights."""


def config_from_json(raw: dict[str, Any]) -> PretrainConfig:
    """The settings from their JSON form."""
    phases = tuple(
        Phase(p["start"], tuple((n, x) for n, x in p["rows"]), tuple((n, x) for n, x in p["mixture"]))
        for p in raw["phases"]
    )
    branch_point = tuple(raw["branch_point"]) if raw.get("branch_point") else None
    return PretrainConfig(**{**raw, "phases": phases, "branch_point": branch_point})


@dataclass(frozen=True)
class MetaTask:
    """One task of a meta-step."""

    inner: list[Row]
    """Rows to train its adapter: the demonstrations in random orders, with labels on all answers but the first."""
    outer: list[Row]
    """Rows to train the base: the demonstrations in random orders, then new pairs with labels on the answers."""


class Stream:
    """Batches of tasks from a split of the generator."""

    def __init__(self, config: PretrainConfig, tokenizer: PreTrainedTokenizerFast, split: Split = "pretrain") -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.split = split

    def batch(self, step: int, shard: int = 0) -> Batch:
        """The batch of process `shard` at `step`; deterministic. Rows have the same length in all processes."""
        rng = random.Random(f"{self.config.seed}-{self.split}-{step}")
        phase = next(p for p in reversed(self.config.phases) if p.start <= step)
        lengths, shares = zip(*phase.rows, strict=True)
        length = rng.choices(lengths, shares)[0]
        if shard:
            rng = random.Random(f"{self.config.seed}-{self.split}-{step}-{shard}")
        short = dict(phase.mixture)
        mixture = short if length < 500 else LONG_MIXTURE
        rows = [self._pack_row(rng, length, mixture, short) for _ in range(max(1, self.config.tokens // length))]
        return Batch(*(torch.tensor(column) for column in zip(*rows, strict=True)))

    def _pack_row(
        self, rng: random.Random, length: int, mixture: Mapping[str, float], fill: Mapping[str, float]
    ) -> tuple[list[int], list[int], list[int]]:
        """Ids, labels and positions of a row: a task by `mixture`, then tasks by `fill` while there is space."""
        ids, labels = self.row(rng, length, mixture)
        positions = list(range(len(ids)))
        while length - len(ids) >= MIN_FREE_TOKENS:
            row = self._draw_row(rng, length - len(ids), fill)
            if row is None:
                break
            ids, labels = ids + row[0], labels + row[1]
            positions += range(len(row[0]))
        padding = length - len(ids)
        return ids + [self.tokenizer.pad_token_id] * padding, labels + [IGNORED] * padding, positions + [0] * padding

    def row(self, rng: random.Random, length: int, mixture: Mapping[str, float]) -> Row:
        """One task with at least three input-output pairs, in at most `length` tokens."""
        while True:
            row = self._draw_row(rng, length, mixture)
            if row is not None:
                return row

    def _draw_row(self, rng: random.Random, length: int, mixture: Mapping[str, float]) -> Row | None:
        """As many input-output pairs of one task as fit in `length` tokens; None if fewer than three do."""
        name = rng.choices(list(mixture), list(mixture.values()))[0]
        count = {"lists": length // 16, "strings": length // 16, "rows": length // 40, "grids": length // 40}[name]
        family, pairs = draw_task_pairs(self.split, min(14, max(4, count)), rng, name, strict=self.config.strict)
        ids, labels, answers = self.encode(family.domain.kind, pairs, 1, length)
        return (ids, labels) if answers >= 3 else None

    def encode(
        self, kind: str, pairs: list[tuple[Any, Any]], unlabelled: int, length: int
    ) -> tuple[list[int], list[int], int]:
        """Ids and labels of as many pairs as fit in `length` tokens, and the number of complete answers in them.

        The answers of the first `unlabelled` pairs have no loss.
        """
        (query, target), rest = pairs[-1], pairs[:-1]
        task = Task(kind, tuple(Demonstration(a, b) for a, b in rest), query)
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
        """The tasks of a meta-step; deterministic. All are of one domain, so that their lengths are similar."""
        rng = random.Random(f"{self.config.seed}-{self.split}-meta-{step}" + (f"-{shard}" if shard else ""))
        name = rng.choices(list(META_MIXTURE), list(META_MIXTURE.values()))[0]
        tasks: list[MetaTask] = []
        while len(tasks) < META_TASKS:
            count = rng.randint(3, 4) if name == "rows" else rng.randint(4, 8)
            family, pairs = draw_task_pairs(self.split, count + 4, rng, name, strict=self.config.strict)
            kind = family.domain.kind
            if self.encode(kind, pairs, 1, META_LENGTH)[2] == len(pairs):
                tasks.append(self._meta_task(kind, pairs[:count], pairs[count:], rng))
        return tasks

    def _meta_task(
        self, kind: str, demonstrations: list[tuple[Any, Any]], new: list[tuple[Any, Any]], rng: random.Random
    ) -> MetaTask:
        def row(pairs: list[tuple[Any, Any]], unlabelled: int) -> Row:
            return self.encode(kind, pairs, unlabelled, META_LENGTH)[:2]

        def shuffled(pairs: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
            return rng.sample(pairs, len(pairs))

        inner = [row(shuffled(demonstrations), 1) for _ in range(INNER.max_steps * INNER.batch_size)]
        outer = [row(shuffled(demonstrations) + shuffled(new), len(demonstrations)) for _ in range(META_ROWS)]
        return MetaTask(inner, outer)


def pad_rows(rows: list[Row], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and labels [B, T] of rows, padded to the longest."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([i + [pad_id] * (longest - len(i)) for i, _ in rows])
    labels = torch.tensor([y + [IGNORED] * (longest - len(y)) for _, y in rows])
    return ids, labels


def packed_mask(positions: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask [B, 1, T, T]: causal, within each packed task."""
    tasks = (positions == 0).cumsum(1)
    length = positions.shape[1]
    visible = tasks[:, :, None] == tasks[:, None, :]
    visible &= torch.ones(length, length, dtype=torch.bool, device=positions.device).tril()
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None]
