#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0. In a bf16 model, merge_adapter() followed by unmerge_adapter() does not give the
# weights of the base back: what the sum was rounded by stays.
# Expected: unmerging restores the bits that were there before merging.
# Seen: 0 of 4 adapted weights are as before
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


base = model().to(torch.bfloat16)
before = {name: weight.clone() for name, weight in base.named_parameters()}
adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
adapted.merge_adapter()
adapted.unmerge_adapter()
after = dict(adapted.unload().named_parameters())
names = [name for name in before if "q_proj" in name or "v_proj" in name]
restored = sum(torch.equal(before[name], after[name]) for name in names)
print(f"{restored} of {len(names)} adapted weights are as before")
raise SystemExit(restored == len(names))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
