#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0. load_adapter() with the name of an adapter that is there already, as when a newer checkpoint is to
# replace it, takes over the stored weights but not the stored settings: lora_alpha stays that of the old adapter, so the update has another scale.
# Expected: the stored adapter, or an error because of the name. Seen: scaling stored 16.0, under a new name 16.0, under the old name 2.0
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import os

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


def adapted(alpha):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
    return get_peft_model(base, LoraConfig(r=4, lora_alpha=alpha, target_modules=["q_proj"], init_lora_weights=False))


def layer(model):
    return model.base_model.model.model.layers[0].self_attn.q_proj


stored = adapted(alpha=64)
stored.save_pretrained("adapter")
model = adapted(alpha=8)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model.load_adapter("adapter", "default")
    model.load_adapter("adapter", "new")
about = [str(entry.message) for entry in caught if "alpha" in str(entry.message) or "default" in str(entry.message)]
weights = torch.equal(layer(model).lora_B["default"].weight, layer(stored).lora_B["default"].weight)
scales = layer(model).scaling
print(f"scaling stored {layer(stored).scaling['default']}, under a new name {scales['new']}, under the old name", end=" ")
print(f"{scales['default']}; weights taken over: {weights}; warnings: {about}")
raise SystemExit(not (weights and not about and scales == {"default": 2.0, "new": 16.0}))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
