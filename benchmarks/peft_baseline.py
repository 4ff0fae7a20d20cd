"""Training with transformers' Trainer and PEFT, as the baseline of benchmarks. Knows nothing about tasks."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from autottt.ttt_core.lora.gradients import loss_positions
from autottt.ttt_core.model.encoding import Encoded
from autottt.ttt_core.recipes import Loss, Recipe


def warmup_steps(recipe: Recipe) -> int:
    """Steps over which a recipe's rate rises."""
    return math.ceil(recipe.warmup_ratio * recipe.max_steps)


def labelled_batch(rows: list[Encoded], pad: int, loss: Loss) -> dict[str, torch.Tensor]:
    """Rows of one length [B, T], with labels where a recipe's loss trains, and -100 elsewhere."""
    longest = max(len(row.ids) for row in rows)
    ids, labels = torch.full((len(rows), longest), pad), torch.full((len(rows), longest), -100)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = 1
        for position in loss_positions(row, loss):
            labels[i, position] = row.ids[position]
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def train_with_trainer(
    model: Any, rows: list[Encoded], recipe: Recipe, pad: int, callbacks: Sequence[Any] = ()
) -> None:
    """Trains the adapter of a PEFT model on encoded rows."""
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=recipe.batch_size, max_steps=recipe.max_steps,
            learning_rate=recipe.learning_rate, lr_scheduler_type="cosine", warmup_steps=warmup_steps(recipe),
            weight_decay=recipe.weight_decay, max_grad_norm=recipe.max_grad_norm, save_strategy="no",
            logging_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False,
            use_cpu=model.device.type == "cpu",
        )  # fmt: skip
        collate = partial(labelled_batch, pad=pad, loss=recipe.loss)
        Trainer(
            model=model, args=settings, train_dataset=rows, data_collator=collate, callbacks=list(callbacks)
        ).train()
