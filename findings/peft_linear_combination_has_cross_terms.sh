#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0. add_weighted_adapter(combination_type="linear") adds the A and the B
# matrices of the adapters separately, so that the update of the result has products of one adapter's B with the other's
# A: it is not the weighted sum of the updates. "cat" gives that sum.
# Expected: the linear combination with weights 0.5 and 0.5 is the mean of the two updates.
# Seen: error relative to the mean of the updates: linear above 0.5, cat below 0.000001
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import os

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2,
)
lora = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
model = get_peft_model(LlamaForCausalLM(config), lora, adapter_name="one")
model.add_adapter("two", lora)
layer = model.base_model.model.model.layers[0].self_attn.q_proj
mean = (layer.get_delta_weight("one") + layer.get_delta_weight("two")) / 2
errors = {}
for kind in ("linear", "cat"):
    model.add_weighted_adapter(["one", "two"], [0.5, 0.5], kind, combination_type=kind)
    errors[kind] = float((layer.get_delta_weight(kind) - mean).norm() / mean.norm())
print("error relative to the mean of the updates:", errors)
raise SystemExit(not (errors["linear"] > 0.5 and errors["cat"] < 1e-6))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
