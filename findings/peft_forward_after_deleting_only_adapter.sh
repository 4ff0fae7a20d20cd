#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0. After delete_adapter() of the only adapter a forward pass raises KeyError with the
# name of the deleted adapter; unload() works.
# Expected: without adapters the model answers as the base, or delete_adapter() refuses.
# Seen: delete_adapter: accepted; forward: KeyError 'default'
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


adapted = get_peft_model(model(), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
adapted.delete_adapter("default")
try:
    adapted(torch.tensor([[1, 2, 3]]))
    raised = "nothing"
except KeyError as error:
    raised = f"KeyError {error}"
print(f"delete_adapter: accepted; forward: {raised}")
raise SystemExit(raised != "KeyError 'default'")
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
