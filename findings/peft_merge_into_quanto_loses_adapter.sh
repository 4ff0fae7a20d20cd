#!/usr/bin/env bash
# peft 0.21.2, optimum-quanto 0.2.7, transformers 5.24.0, torch 2.13.0. A model whose weights optimum-quanto has quantized and frozen takes a LoRA adapter, and
# its answers change as they should. merge_and_unload() then returns the base, and
# nothing is raised or warned about. safe_merge=True changes nothing.
# Expected: the merged model answers as the adapted one, up to what quantizing rounds, or an error.
# Seen: change of the logits, relative to the base: plain adapted 1.4 merged 1.4; quantized adapted 1.4 merged 0.0 safely merged 0.0; warnings 0
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 peft==0.21.2 optimum-quanto==0.2.7 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import warnings

import torch
from optimum.quanto import freeze, qint8, quantize
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
text = torch.arange(8)[None]


@torch.no_grad()
def changes(quantized, safe):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).eval()
    if quantized:
        quantize(model, weights=qint8)
        freeze(model)
    base = model(text).logits
    config = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, config).eval()
    answers = adapted(text).logits
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        merged = adapted.merge_and_unload(safe_merge=safe)(text).logits
    size = base.norm()
    return float((answers - base).norm() / size), float((merged - base).norm() / size), len(caught)


plain, quantized, safely = changes(False, False), changes(True, False), changes(True, True)
print(f"plain adapted {plain[0]:.1f} merged {plain[1]:.1f};", end=" ")
print(f"quantized adapted {quantized[0]:.1f} merged {quantized[1]:.1f} safely merged {safely[1]:.1f}; warnings {quantized[2]}")
right = abs(plain[0] - plain[1]) < 0.01 and quantized[0] > 0.1 and quantized[1] == safely[1] == 0
raise SystemExit(not (right and quantized[2] == 0))
PYTHON
cd "$folder" && env OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error env/bin/python check.py
