#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0. hotswap_adapter() does not apply rank_pattern and alpha_pattern of the new adapter: every layer gets the
# scale lora_alpha / r, because the patterns are matched against names of weights, such as q_proj.lora_A.default.weight, which no name of a layer matches.
# Expected: an adapter that is swapped for itself keeps its scale and its answers, as it does without patterns.
# Seen: scale before and after: no pattern 2.0 2.0, alpha_pattern 16.0 2.0, rank_pattern 0.5 2.0; logits differ: [False, True, True]; warnings: []
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
from peft.utils.hotswap import hotswap_adapter
from transformers import LlamaConfig, LlamaForCausalLM

tokens = torch.arange(8)[None]
scales, differ, about = {}, [], []
for name, pattern in {
    "no pattern": {}, "alpha_pattern": {"alpha_pattern": {"q_proj": 64}}, "rank_pattern": {"rank_pattern": {"q_proj": 16}}
}.items():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **pattern)
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)), lora).eval()
    model.save_pretrained("adapter")
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before, scale = model(tokens).logits, layer.scaling["default"]
        hotswap_adapter(model, "adapter", adapter_name="default", torch_device="cpu")
        differ.append(not torch.equal(model(tokens).logits, before))
    scales[name] = (scale, layer.scaling["default"])
    about += [str(entry.message) for entry in caught if "pattern" in str(entry.message) or "scal" in str(entry.message)]
print("scale before and after:", ", ".join(f"{name} {a} {b}" for name, (a, b) in scales.items()), end="; ")
print(f"logits differ: {differ}; warnings: {about}")
wrong = {"no pattern": (2.0, 2.0), "alpha_pattern": (16.0, 2.0), "rank_pattern": (0.5, 2.0)}
raise SystemExit(not (scales == wrong and differ == [False, True, True] and not about))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
