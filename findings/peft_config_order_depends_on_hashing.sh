#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0. LoraConfig keeps target_modules as a set, and save_pretrained() writes it in the order of its hashes: the
# adapter_config.json of one configuration has other bytes in a process with other hash randomisation, which is the default of Python.
# Expected: one configuration gives one file, as the weights beside it do, so that adapters can be compared by a digest, cached and kept under version control.
# Seen: target_modules given ['down_proj', 'gate_proj', 'o_proj', 'q_proj', 'up_proj', 'v_proj']; different files in 4 processes: adapter_config.json 4,
# adapter_model.safetensors 1
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.4.6
cat > "$folder/save.py" <<'PYTHON'
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
lora = LoraConfig(r=4, target_modules=sys.argv[2:], init_lora_weights=False)
get_peft_model(LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)), lora).save_pretrained(sys.argv[1])
PYTHON
cat > "$folder/check.py" <<'PYTHON'
import hashlib
import os
import subprocess
import sys
from pathlib import Path

names = ["down_proj", "gate_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
digests = {"adapter_config.json": set(), "adapter_model.safetensors": set()}
for seed in ("1", "2", "3", "4"):  # as four processes with hash randomisation, but the same at each run of this check
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    subprocess.run([sys.executable, "-W", "ignore", "save.py", seed, *names], env=environment, check=True)
    for name, seen in digests.items():
        seen.add(hashlib.sha256(Path(seed, name).read_bytes()).hexdigest())
counts = ", ".join(f"{name} {len(seen)}" for name, seen in digests.items())
print(f"target_modules given {names}; different files in 4 processes: {counts}")
raise SystemExit([len(seen) for seen in digests.values()] != [4, 1])
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
