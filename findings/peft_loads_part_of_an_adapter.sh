#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0. Where adapter_config.json names fewer target_modules than the file of weights holds,
# PeftModel.from_pretrained() leaves the other weights out without a warning (missing weights do give one).
# Expected: an error or a warning that names the weights that are not used.
# Seen: stored ['q_proj', 'v_proj'], loaded ['q_proj'], warnings about them: 0
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import os

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import json
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


def model():
    """A random Llama of two layers."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))


def modules(adapted):
    return sorted({name.split(".")[-4] for name, _ in adapted.named_parameters() if "lora_A" in name})


adapted = get_peft_model(model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
adapted.save_pretrained("adapter")
file = Path("adapter/adapter_config.json")
file.write_text(json.dumps({**json.loads(file.read_text()), "target_modules": ["q_proj"]}))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    loaded = PeftModel.from_pretrained(model(), "adapter")
about = [str(one.message) for one in caught if "v_proj" in str(one.message) or "key" in str(one.message)]
print(f"stored {modules(adapted)}, loaded {modules(loaded)}, warnings about them: {len(about)}")
raise SystemExit(not (modules(loaded) == ["q_proj"] and not about))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
