#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0. layers_to_transform finds no layer in a model without a head, such as LlamaModel: the number of a layer is
# read only behind two names, as in model.layers.0, and here the path is layers.0. The error says that the target modules are not in the model.
# Expected: layers_to_transform selects the same layers in LlamaModel as in LlamaForCausalLM, as it does where layers_pattern="layers" is given as well.
# Seen: LlamaForCausalLM ['0'], LlamaModel NoMatchingPeftModuleError, LlamaModel with layers_pattern ['0'], LlamaModel without layers_to_transform ['0', '1', '2']
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64}


def adapted(model_class, **layers):
    """The layers that are adapted, or the name of the error."""
    try:
        model = get_peft_model(model_class(LlamaConfig(**SIZES)), LoraConfig(r=2, target_modules=["q_proj"], **layers))
    except ValueError as error:
        return type(error).__name__
    paths = [path for path, _ in model.named_modules() if path.endswith("lora_A.default")]
    return sorted(path.split("layers.")[1].split(".")[0] for path in paths)


seen = {
    "LlamaForCausalLM": adapted(LlamaForCausalLM, layers_to_transform=[0]),
    "LlamaModel": adapted(LlamaModel, layers_to_transform=[0]),
    "LlamaModel with layers_pattern": adapted(LlamaModel, layers_to_transform=[0], layers_pattern="layers"),
    "LlamaModel without layers_to_transform": adapted(LlamaModel),
}
print(", ".join(f"{name} {layers}" for name, layers in seen.items()))
raise SystemExit(list(seen.values()) != [["0"], "NoMatchingPeftModuleError", ["0"], ["0", "1", "2"]])
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
