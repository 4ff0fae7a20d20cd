#!/usr/bin/env bash
# torch 2.13.0. An optimizer with two parameter groups and the learning rate as a tensor (as capturable and compiled optimizers
# take it) gives both groups the same tensor object, and LambdaLR, with one function for each group, writes into it in place.
# Expected: rates of 0.1 and 0.01, as with a float: LoRA+ and layer-wise rates are such groups.
# Seen: float: 0.1 and 0.01; tensor: 0.01 and 0.01
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import torch


def rates(rate):
    """The learning rates of two groups after a scheduler with a function for each has begun."""
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))]} for _ in range(2)]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step: 1.0, lambda step: 0.1])
    return [round(float(group["lr"]), 6) for group in optimizer.param_groups]


of_float, of_tensor = rates(0.1), rates(torch.tensor(0.1))
print(f"float: {of_float[0]} and {of_float[1]}; tensor: {of_tensor[0]} and {of_tensor[1]}")
raise SystemExit(not (of_float == [0.1, 0.01] and of_tensor == [0.01, 0.01]))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
