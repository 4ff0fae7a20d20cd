#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0. unload() removes the adapter and returns the base, whose parameters keep the
# requires_grad=False that get_peft_model() set.
# Expected: the returned base can be trained as before the adapter was added.
# Seen: trainable parameters: 21 before, 0 after
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


base = model()
before = sum(parameter.requires_grad for parameter in base.parameters())
returned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"])).unload()
after = sum(parameter.requires_grad for parameter in returned.parameters())
print(f"trainable parameters: {before} before, {after} after")
raise SystemExit(not (before > 0 and after == 0))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
