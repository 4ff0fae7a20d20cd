#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0. add_weighted_adapter() multiplies the scale of the adapters into the new weights and gives the new adapter
# lora_alpha = r, so that its own scale should be 1. It copies use_rslora too, with which that scale is sqrt(r): a combination of rsLoRA adapters, even of
# one with the weight 1, is sqrt(r) times too large (all combination types), without a warning. Reported upstream (issue 3761).
# Expected: the combination of one adapter with the weight 1 is that adapter. Seen: size relative to it: LoRA 1.0, rsLoRA 4.0 (rank 16)
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

config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2,
)


def relative_sizes(use_rslora):
    torch.manual_seed(0)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj"], init_lora_weights=False, use_rslora=use_rslora)
    model = get_peft_model(LlamaForCausalLM(config), lora, adapter_name="one")
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    for kind in ("linear", "cat", "svd"):
        model.add_weighted_adapter(["one"], [1.0], kind, combination_type=kind)
    size = layer.get_delta_weight("one").norm()
    return [round(float(layer.get_delta_weight(kind).norm() / size), 3) for kind in ("linear", "cat", "svd")]


seen = relative_sizes(False), relative_sizes(True)
print("size relative to the adapter: LoRA", seen[0], "rsLoRA", seen[1])
raise SystemExit(seen != ([1.0] * 3, [4.0] * 3))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
