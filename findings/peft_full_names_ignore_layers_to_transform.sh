#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0. Where target_modules lists full names of modules, as in the adapter_config.json of some adapters,
# layers_to_transform has no effect: a module that is named in full is adapted in whatever layer it is, without an error or a warning.
# Expected: only the modules of the layers in layers_to_transform are adapted, as where target_modules lists suffixes, or an error.
# Seen: layers adapted with layers_to_transform=[0]: suffix ['0'], full names ['0', '1', '2']; warnings: []
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import warnings

from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64}


def adapted(target_modules):
    """The layers that are adapted."""
    lora = LoraConfig(r=2, target_modules=target_modules, layers_to_transform=[0])
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**SIZES)), lora)
    paths = [path for path, _ in model.named_modules() if path.endswith("lora_A.default")]
    return sorted(path.split(".layers.")[1].split(".")[0] for path in paths)


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    suffix = adapted(["q_proj"])
    full = adapted([f"model.layers.{layer}.self_attn.q_proj" for layer in range(3)])
about = [str(entry.message) for entry in caught if "layer" in str(entry.message)]
print(f"layers adapted with layers_to_transform=[0]: suffix {suffix}, full names {full}; warnings: {about}")
raise SystemExit(not (suffix == ["0"] and full == ["0", "1", "2"] and not about))
PYTHON
cd "$folder" && env/bin/python check.py
