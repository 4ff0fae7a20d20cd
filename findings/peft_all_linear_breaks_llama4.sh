#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0. On a Llama 4 with experts, target_modules="all-linear" also wraps the
# router, a subclass of nn.Linear that returns a tuple; get_peft_model() accepts it, and the first forward pass raises.
# Expected: "all-linear" leaves such a module out, or get_peft_model() refuses it.
# Seen: adapted routers: 2; forward: AttributeError 'tuple' object has no attribute 'dtype'
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import os

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from peft import LoraConfig, get_peft_model
from transformers import Llama4ForCausalLM, Llama4TextConfig

config = Llama4TextConfig(
    vocab_size=64, hidden_size=32, intermediate_size=32, intermediate_size_mlp=32, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1,
    interleave_moe_layer_step=1, pad_token_id=0,
)
model = Llama4ForCausalLM(config)
ids = torch.tensor([[1, 2, 3, 4]])
model(ids)
adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
routers = sum("router" in name and "lora_A" in name for name, _ in adapted.named_parameters())
try:
    adapted(ids)
    raised = "nothing"
except AttributeError as error:
    raised = f"{type(error).__name__} {error}"
print(f"adapted routers: {routers}; forward: {raised}")
raise SystemExit(not (routers == 2 and raised.startswith("AttributeError 'tuple'")))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
