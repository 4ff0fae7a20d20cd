"""Trains small variants of the bundled model from random weights on the same number of tokens; prints a table.

    python benchmarks/pretrain_trials.py --steps 150 --only base,deep --json benchmarks/results/pretrain_trials.json
    python benchmarks/pretrain_trials.py --list

Compares the share of last answers that are right and their loss in nats per answer, on the same tasks of the split
`test` for every variant. Each variant has one short run: the difference between `base` and `base again` is noise.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from autottt.ttt_core.pretraining.data import IGNORED, Batch, Phase, PretrainConfig, Row, Stream, pad_rows
from autottt.ttt_core.pretraining.generator.families import domains, draw_task_pairs
from autottt.ttt_core.pretraining.pretrain import Trainer
from autottt.ttt_core.tasks.prompts import COMPACT_FORMAT
from autottt.ttt_core.tasks.task import Demonstration, Task

Pairs = list[tuple[Any, Any]]
ROW = 256
"""Tokens in a row, unless a variant says otherwise."""
MIXTURE = (("lists", 0.4), ("rows", 0.15), ("grids", 0.25), ("strings", 0.2))
EVALUATION_TASKS, PAIRS = 64, 4
"""Evaluation tasks per domain, and the pairs of each; the answer of the last pair is evaluated."""
LONG_TASKS, LONG_PAIRS = 24, 14
"""The same for tasks of grids that fill a long row."""
LONG = "long grids"
MAX_ROW_WITHOUT_CHECKPOINTING = 4096
"""Tokens of a row up to which attention weights are stored for the backward pass. Rows of 8,192 would need over 20 GB,
so longer rows use gradient checkpointing."""


def single_characters(text: str) -> list[str]:
    """Every character is a piece of its own, so that no token stands for a number."""
    return list(text)


def numbered_rows(text: str) -> list[str]:
    """The end of a grid's n-th row is the number 10 + n, which identifies the row."""
    count = iter(range(11, 100))
    return [re.sub(" /", lambda _: f" {next(count)}", text)]


def unchanged(text: str) -> list[str]:
    """As for the bundled model."""
    return [text]


@dataclass(frozen=True)
class Variant:
    """Differences from the base."""

    about: str
    settings: dict[str, Any] = field(default_factory=dict)
    """Of `PretrainConfig`."""
    rows: tuple[tuple[int, float], ...] = ((ROW, 1.0),)
    split: Callable[[str], list[str]] = unchanged
    """Splits a piece into texts that are tokenized separately."""
    last_only: bool = False
    """Whether only the last answer of a row has a loss."""
    orders: int = 1
    """Rows per task, each with the pairs in another order."""
    mirrored: bool = False
    """Whether a random symmetry is applied to the grids and rows of each row's task."""


VARIANTS = {
    "base": Variant("256 x 6"),
    "base again": Variant("256 x 6, another seed", {"seed": 1}),
    "deep": Variant("192 x 10", {"hidden": 192, "layers": 10, "heads": 3, "kv_heads": 3, "intermediate": 512}),
    "wide": Variant("320 x 4", {"hidden": 320, "layers": 4, "heads": 5, "kv_heads": 5, "intermediate": 768}),
    "small": Variant("128 x 4", {"hidden": 128, "layers": 4, "heads": 2, "kv_heads": 2, "intermediate": 320}),
    "middle": Variant("192 x 6", {"hidden": 192, "layers": 6, "heads": 3, "kv_heads": 3, "intermediate": 480}),
    "large": Variant("384 x 8", {"hidden": 384, "layers": 8, "heads": 6, "kv_heads": 6, "intermediate": 960}),
    "characters": Variant("numbers spelled by characters", split=single_characters),
    "numbered rows": Variant("ends of a grid's rows numbered", split=numbered_rows),
    "last answer": Variant("loss on the last answer of a row alone", last_only=True),
    "two orders": Variant("every task twice, in another order", orders=2),
    "mirrored": Variant("every task twice, in another order and symmetry", orders=2, mirrored=True),
    "long rows": Variant("rows of 1,024 tokens", {}, ((1024, 1.0),)),
    "2k rows": Variant("rows of 2,048 tokens", {}, ((2048, 1.0),)),
    "4k rows": Variant("rows of 4,096 tokens", {}, ((4096, 1.0),)),
    "8k rows": Variant("rows of 8,192 tokens (--tokens 8192 or more)", {}, ((8192, 1.0),)),
    "short first": Variant("rows of 128 tokens in the first half, then 384", {}, ((128, 1.0),)),
}


def transformed(kind: str, pairs: Pairs, rng: random.Random) -> Pairs:
    """The pairs under one random symmetry of the square; for single rows, a reflection or none."""
    if kind not in ("grid", "grid1d"):
        return pairs
    flip, turns = rng.random() < 0.5, rng.randrange(4) if kind == "grid" else 0

    def one(grid: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
        cells = [tuple(reversed(row)) if flip else tuple(row) for row in grid]
        for _ in range(turns):
            cells = [tuple(row) for row in zip(*cells[::-1], strict=True)]
        return tuple(cells)

    return [(one(a), one(b)) for a, b in pairs]


class TrialStream(Stream):
    """The stream, with a variant's changes."""

    def __init__(self, variant: Variant, config: PretrainConfig, tokenizer: Any) -> None:
        super().__init__(config, tokenizer)
        self.variant = variant
        self._repeats: list[tuple[str, Pairs]] = []

    def encode(self, kind: str, pairs: Pairs, unlabelled: int, length: int) -> tuple[list[int], list[int], int]:
        (source, target), demonstrations = pairs[-1], pairs[:-1]
        task = Task(kind, tuple(Demonstration(a, b) for a, b in demonstrations), source)
        ids, labels, answers = [self.tokenizer.bos_token_id], [IGNORED], 0
        last = 0
        for piece in COMPACT_FORMAT.pieces(task, target):
            new = [
                i for s in self.variant.split(piece.text) for i in self.tokenizer.encode(s, add_special_tokens=False)
            ]
            if len(ids) + len(new) > length:
                break
            if piece.role == "answer":
                last = len(ids)
            ids += new
            labels += new if piece.role != "context" and answers >= unlabelled else [IGNORED] * len(new)
            answers += piece.role == "end"
        if self.variant.last_only:
            end = last if labels[-1] != IGNORED or answers > unlabelled else len(ids)
            labels = [IGNORED] * end + labels[end:]
        return ids, labels, answers

    def batch(self, step: int, shard: int = 0) -> Batch:
        self._repeats = []
        return super().batch(step, shard)

    def _draw_row(self, rng: random.Random, length: int, mixture: Mapping[str, float]) -> Row | None:
        if self._repeats:
            kind, pairs = self._repeats.pop()
        else:
            name = rng.choices(list(mixture), list(mixture.values()))[0]
            count = min(14, max(4, length // (16 if name in ("lists", "strings") else 40)))
            family, pairs = draw_task_pairs(self.split, count, rng, name)
            kind = family.domain.kind
            self._repeats = [(kind, rng.sample(pairs, count)) for _ in range(self.variant.orders - 1)]
        pairs = transformed(kind, pairs, rng) if self.variant.mirrored else pairs
        ids, labels, answers = self.encode(kind, pairs, 1, length)
        return (ids, labels) if answers >= 3 else None


def evaluation_tasks() -> dict[str, list[tuple[str, Pairs]]]:
    """Kind and pairs of the evaluation tasks, per domain, each within 400 tokens; and of long ones, with about 1,500 to
    4,000 tokens each."""

    def draw(label: str, domain: str, tasks: int, pairs_each: int, characters: range) -> list[tuple[str, Pairs]]:
        rng = random.Random(f"judged-{label}")
        sample: list[tuple[str, Pairs]] = []
        while len(sample) < tasks:
            family, pairs = draw_task_pairs("test", pairs_each, rng, domain)
            if sum(len(str(side)) for pair in pairs for side in pair) in characters:
                sample.append((family.domain.kind, pairs))
        return sample

    tasks = {name: draw(name, name, EVALUATION_TASKS, PAIRS, range(1000)) for name in domains()}
    return tasks | {LONG: draw(LONG, "grids", LONG_TASKS, LONG_PAIRS, range(4500, 12000))}


@torch.no_grad()
def evaluate(trainer: Trainer, stream: TrialStream, tasks: dict[str, list[tuple[str, Pairs]]]) -> dict[str, float]:
    """Share of last answers right, and their mean loss in nats, per domain and over all but the long ones."""
    averages: dict[str, float] = {}
    hits_of_all, nats_of_all = [], []
    for name, cases in tasks.items():
        rows: list[Row] = [stream.encode(kind, pairs, len(pairs) - 1, 8192)[:2] for kind, pairs in cases]
        hits, nats = [], []
        for start in range(0, len(rows), 8):
            ids, labels = pad_rows(rows[start : start + 8], trainer.tokenizer.pad_token_id)
            logits, targets = trainer.model(ids).logits[:, :-1].float(), labels[:, 1:]
            labelled = targets != IGNORED
            loss = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
            )
            hits += ((logits.argmax(-1) == targets) | ~labelled).all(1).tolist()
            nats += loss.sum(1).tolist()
        averages[name] = sum(hits) / len(hits)
        averages[f"{name}_nats"] = sum(nats) / len(nats)
        if name != LONG:
            hits_of_all += hits
            nats_of_all += nats
    return averages | {"all": sum(hits_of_all) / len(hits_of_all), "all_nats": sum(nats_of_all) / len(nats_of_all)}


def phases_of(name: str, variant: Variant, steps: int) -> tuple[Phase, ...]:
    """The phases of a variant's run."""
    first = Phase(0, variant.rows, MIXTURE)
    return (first, Phase(steps // 2, ((384, 1.0),), MIXTURE)) if name == "short first" else (first,)


def trial(name: str, steps: int, tokens: int, tasks: dict[str, list[tuple[str, Pairs]]]) -> dict[str, Any]:
    """Trains a variant, with a linear decay of the learning rate over the second half, and evaluates it."""
    variant = VARIANTS[name]
    phases = phases_of(name, variant, steps)
    config = PretrainConfig(**{"tokens": tokens, "warmup": 30, "phases": phases, **variant.settings})
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder), "cpu", torch.bfloat16, compiled=False)
        if max(length for length, _ in variant.rows) > MAX_ROW_WITHOUT_CHECKPOINTING:
            trainer.model.gradient_checkpointing_enable()
        stream = TrialStream(variant, config, trainer.tokenizer)
        rate = partial(trainer.rate, decay_from=steps // 2, end=steps)
        began = time.process_time()
        for step in range(steps):
            trainer.train_step(stream.batch(step), rate(step))
        seconds = time.process_time() - began
        parameters = sum(p.numel() for p in trainer.masters.values())
        row = {"variant": name, "about": variant.about, "parameters": parameters, "tokens": trainer.tokens}
        return {**row, "cpu_seconds": round(seconds), **evaluate(trainer, stream, tasks)}


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a step")
    parser.add_argument("--only", default=",".join(VARIANTS), help="variants, separated by commas")
    parser.add_argument("--list", action="store_true", help="list the variants and stop")
    parser.add_argument("--json", type=Path, help="add the rows to this file; variants in it are not run again")
    options = parser.parse_args()
    names = options.only.split(",")
    if options.list or (unknown := [n for n in names if n not in VARIANTS]):
        for name, variant in VARIANTS.items():
            print(f"{name:<16}{variant.about}")
        if not options.list:
            parser.error(f"no such variant: {', '.join(unknown)}")
        return
    rows = json.loads(options.json.read_text())["rows"] if options.json and options.json.exists() else []
    tasks = evaluation_tasks()
    for name in names:
        if any((r["variant"], r["steps"]) == (name, options.steps) for r in rows):
            continue
        rows.append({"steps": options.steps, **trial(name, options.steps, options.tokens, tasks)})
        row = rows[-1]
        cells = "  ".join(f"{d} {row[d]:.0%} {row[f'{d}_nats']:.2f}" for d in (*tasks, "all"))
        print(f"{name:<16}{row['parameters'] / 1e6:>5.1f}M {row['cpu_seconds']:>5} s  {cells}", flush=True)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
