"""Small adapters for tests, and their comparison."""

from __future__ import annotations

from dataclasses import replace

import torch

from autottt.ttt_core.lora.adapter import Adapter
from autottt.ttt_core.lora.cross_validation import CrossValidationResult
from autottt.ttt_core.lora.training import TrainingRecord
from autottt.ttt_core.lora.weights import LoraWeights
from autottt.ttt_core.recipes import Recipe

QUICK = Recipe(rank=2, alpha=4.0, dropout=0.0, max_steps=2, batch_size=2, target_modules=("q_proj", "v_proj"))


def adapter(seed: int = 0, count: int = 1, base: str = "base") -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    pairs = {
        f"layers.{i}.q": (torch.randn(count, 2, 8, generator=draw), torch.randn(count, 8, 2, generator=draw))
        for i in range(2)
    }
    evidence = CrossValidationResult((True, False), (True, True), (-1.0, -2.5), (-0.1, -0.2), 4) if count > 1 else None
    training = TrainingRecord(2, (1.0, 0.5), 0.1, 40, "finished")
    return Adapter(LoraWeights(pairs, 0.5), QUICK, training, base, evidence)


def same(a: Adapter | None, b: Adapter) -> bool:
    assert a is not None
    equal = all(map(torch.equal, a.weights.tensors, b.weights.tensors))
    return equal and replace(a, weights=b.weights) == b and list(a.weights.pairs) == list(b.weights.pairs)
