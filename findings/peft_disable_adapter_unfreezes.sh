#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0. An adapter loaded for inference has requires_grad=False; entering and
# leaving the context manager disable_adapter() sets requires_grad=True on its weights, and it stays so.
# Expected: leaving the context restores what was there before.
# Seen: trainable weights when loaded: 0; after disable_adapter(): 4
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import os

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)
lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
get_peft_model(LlamaForCausalLM(config), lora).save_pretrained("adapter")
loaded = PeftModel.from_pretrained(LlamaForCausalLM(config), "adapter")


def trainable():
    return sum(parameter.requires_grad for parameter in loaded.parameters())


before = trainable()
with loaded.disable_adapter():
    pass
print(f"trainable weights when loaded: {before}; after disable_adapter(): {trainable()}")
raise SystemExit((before, trainable()) != (0, 4))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
