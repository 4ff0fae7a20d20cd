"""Pre-training for trainability: gradients of the loss after a short inner adaptation, as test-time training does it.

For a batch of tasks, one adapter each is trained on the task's own demonstrations in many orders; then the frozen
adapters are attached and the base learns to answer new queries of the same tasks. First-order MAML: Finn et al. 2017,
"Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", with LoRA (A adapters side by side) as what adapts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from ..lora.weights import LoraWeights
from ..recipes import Recipe
from .data import IGNORED, MetaTask, padded


def _loss(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    chosen = labels[:, 1:] != IGNORED
    return nn.functional.cross_entropy(logits[chosen].float(), labels[:, 1:][chosen])


def adapt_inner(
    model: LlamaForCausalLM, tasks: list[MetaTask], recipe: Recipe, pad_id: int, seed: int
) -> tuple[LoraWeights, list[float]]:
    """One adapter per task, trained side by side; and the loss at each step, in nats. The base must be frozen."""
    weights = LoraWeights.initial(model, recipe, [seed * len(tasks) + i for i in range(len(tasks))])
    for tensor in weights.tensors:
        tensor.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights.tensors, lr=recipe.learning_rate, weight_decay=0.0, fused=True)
    losses = []
    with weights.attached(model):
        for step in range(recipe.max_steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * (1 - step / recipe.max_steps)
            at = slice(step * recipe.batch_size, (step + 1) * recipe.batch_size)
            ids, labels = padded([row for task in tasks for row in task.inner[at]], pad_id)
            loss = _loss(model, ids.to(model.device), labels.to(model.device)) * len(tasks)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()) / len(tasks))
    return weights.detached(), losses


def adapted_backward(
    model: LlamaForCausalLM, tasks: list[MetaTask], recipe: Recipe, pad_id: int, seed: int
) -> tuple[float, list[float]]:
    """Leaves in the base's `.grad` the gradient of the loss on new queries, with each task's own adapter plus without.

    The second keeps in-context learning what it is. Returns the loss with adapters and the inner losses, in nats. What
    the gradient says of the adapters' own training is left out: that is the first-order approximation.
    """
    model.requires_grad_(False)
    try:
        weights, losses = adapt_inner(model, tasks, recipe, pad_id, seed)
    finally:
        model.requires_grad_(True)
    ids, labels = (t.to(model.device) for t in padded([row for task in tasks for row in task.outer], pad_id))
    with weights.attached(model):
        adapted = _loss(model, ids, labels)
        adapted.backward()  # type: ignore[no-untyped-call]
    _loss(model, ids, labels).backward()  # type: ignore[no-untyped-call]
    return float(adapted.detach()), losses
