"""First-order MAML: gradients of the base after a short LoRA adaptation, so that test-time training works better.

For each task of a batch, one adapter is trained on the task's demonstrations in many orders; with the adapters attached
and frozen, the base is trained to answer new queries of the same tasks. Source: Finn et al. 2017, "Model-Agnostic
Meta-Learning for Fast Adaptation of Deep Networks". Knows nothing about optimizers of the base. Axis: A adapters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from ..lora.weights import LoraWeights
from ..recipes import Recipe
from .data import IGNORED, MetaTask, pad_rows


def _loss(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    labelled = labels[:, 1:] != IGNORED
    return nn.functional.cross_entropy(logits[labelled].float(), labels[:, 1:][labelled])


def adapt_inner(
    model: LlamaForCausalLM, tasks: list[MetaTask], recipe: Recipe, pad_id: int, seed: int
) -> tuple[LoraWeights, list[float]]:
    """Trains one adapter per task in one batch; also returns the mean loss of each step, in nats.

    The base must be frozen.
    """
    weights = LoraWeights.initial(model, recipe, [seed * len(tasks) + i for i in range(len(tasks))])
    for tensor in weights.tensors:
        tensor.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights.tensors, lr=recipe.learning_rate, weight_decay=0.0, fused=True)
    losses = []
    with weights.attached(model):
        for step in range(recipe.max_steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * (1 - step / recipe.max_steps)
            rows = slice(step * recipe.batch_size, (step + 1) * recipe.batch_size)
            ids, labels = pad_rows([row for task in tasks for row in task.inner[rows]], pad_id)
            loss = _loss(model, ids.to(model.device), labels.to(model.device)) * len(tasks)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()) / len(tasks))
    return weights.detached(), losses


def backward_after_adaptation(
    model: LlamaForCausalLM, tasks: list[MetaTask], recipe: Recipe, pad_id: int, seed: int
) -> tuple[float, list[float]]:
    """Accumulates in the base's `.grad` the gradient of the loss on new queries, with the adapters plus without.

    The loss without adapters preserves in-context learning. Returns the loss with adapters and the inner losses, in
    nats. First-order approximation: no gradient flows through the training of the adapters.
    """
    model.requires_grad_(False)
    try:
        weights, losses = adapt_inner(model, tasks, recipe, pad_id, seed)
    finally:
        model.requires_grad_(True)
    ids, labels = (t.to(model.device) for t in pad_rows([row for task in tasks for row in task.outer], pad_id))
    with weights.attached(model):
        adapted = _loss(model, ids, labels)
        adapted.backward()  # type: ignore[no-untyped-call]
    _loss(model, ids, labels).backward()  # type: ignore[no-untyped-call]
    return float(adapted.detach()), losses
