#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0. merge_and_unload(adapter_names=["two"]) merges the LoRA weights of two, but keeps the modules_to_save of
# the adapter that is active, so the returned model is a mixture of two adapters. (For more than one name with modules_to_save it raises.)
# Expected: the model that is returned equals adapter two. Seen: largest difference from the logits of two: two active 0.0, one active 25.8
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

IDS = torch.tensor([[5, 6, 7, 8]])


def adapted():
    """A random Llama with the adapters one and two, each with a head of its own."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
    lora = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    model = get_peft_model(base, lora, adapter_name="one")
    model.add_adapter("two", lora)
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        head = model.base_model.model.lm_head.modules_to_save[name].weight
        head.data += torch.randn_like(head)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


seen = {}
for active in ("two", "one"):
    model = adapted()
    model.set_adapter("two")
    wanted = logits(model)
    model.set_adapter(active)
    seen[active] = float((logits(model.merge_and_unload(adapter_names=["two"])) - wanted).abs().max())
print("difference from adapter two:", ", ".join(f"{name} active {value:.1f}" for name, value in seen.items()))
raise SystemExit(not (seen["two"] < 1e-3 and seen["one"] > 0.5))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
