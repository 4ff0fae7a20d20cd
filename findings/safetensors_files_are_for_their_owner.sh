#!/usr/bin/env bash
# safetensors 0.8.0, peft 0.21.2, torch 2.13.0. A file that safetensors writes can be read by its owner alone, whatever the umask; the files beside it
# in an adapter's folder can be read by all, so that a server of another user finds the configuration and not the weights. safetensors 0.7.0 followed
# the umask. Reported upstream (issue 782).
# Expected: the permissions of a new file, as torch.save and the adapter's configuration have them.
# Seen: umask 022: torch.save 644, safetensors 600; adapter_config.json 644, adapter_model.safetensors 600
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 safetensors==0.8.0 peft==0.21.2 transformers==5.24.0
cat > "$folder/check.py" <<'PYTHON'
import os
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

os.umask(0o022)
tensors = {"weight": torch.zeros(2)}
torch.save(tensors, "weights.pt")
save_file(tensors, "weights.safetensors")
config = LlamaConfig(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
)
get_peft_model(LlamaForCausalLM(config), LoraConfig(target_modules=["q_proj"])).save_pretrained("adapter")
places = "weights.pt", "weights.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"
modes = [f"{Path(place).stat().st_mode & 0o777:o}" for place in places]
print("umask 022: torch.save {}, safetensors {}; adapter_config.json {}, adapter_model.safetensors {}".format(*modes))
raise SystemExit(modes != ["644", "600", "644", "600"])
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
