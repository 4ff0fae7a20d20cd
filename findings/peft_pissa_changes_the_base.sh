#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0. With init_lora_weights="pissa" the base itself is changed when the adapter is added, and
# unload() returns it changed: its answers are no longer those of the model that was given.
# Expected: unload() returns the base that was given, as it does with other starts.
# Seen: start True: base unchanged after unload; start pissa: base changed after unload
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


def changed(start):
    base = model()
    before = base.model.layers[0].self_attn.q_proj.weight.clone()
    returned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=start)).unload()
    return not torch.equal(before, returned.model.layers[0].self_attn.q_proj.weight)


results = {start: changed(start) for start in (True, "pissa")}
print("; ".join(f"start {k}: base {'changed' if v else 'unchanged'} after unload" for k, v in results.items()))
raise SystemExit(results != {True: False, "pissa": True})
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
