#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0. get_peft_model() on a model in evaluation mode adds LoRA dropout in training mode, although
# the modules of the base stay in evaluation mode: the same input gives two outputs.
# Expected: what is added to a model in evaluation mode is in evaluation mode; two passes agree.
# Seen: base in training mode: False; two passes equal: False
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


def model():
    """A random Llama of two layers."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))


base = model().eval()
config = LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.5, init_lora_weights=False)
adapted = get_peft_model(base, config)
ids = torch.tensor([[1, 2, 3]])
with torch.no_grad():
    equal = torch.equal(adapted(ids).logits, adapted(ids).logits)
print(f"base in training mode: {base.training}; two passes equal: {equal}")
raise SystemExit(base.training or equal)
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
