#!/usr/bin/env bash
# transformers 5.24.0, peft 0.21.2 (the newest release of both when this was written), torch 2.13.0. The adapter methods
# of a model, such as add_adapter(), require peft 0.22.0 or newer, so they raise; get_peft_model() of peft works.
# Expected: the newest transformers works with the newest peft, as its `peft` integration did before.
# Seen: peft: 2 adapted layers; transformers: ValueError, please use a version >= 0.22.0
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import os

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)
lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
adapted = get_peft_model(LlamaForCausalLM(config), lora)
layers = sum("lora_A" in name for name, _ in adapted.named_parameters())
try:
    LlamaForCausalLM(config).add_adapter(lora)
    raised = "nothing"
except ValueError as error:
    raised = f"ValueError, {str(error).rpartition(', ')[2]}"
print(f"peft: {layers} adapted layers; transformers: {raised}")
raise SystemExit(not (layers == 2 and raised == "ValueError, please use a version >= 0.22.0"))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
