#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0. Mamba, FalconMamba, Jamba and Zamba drop the recurrent state of a cache when they are given more than one token at a
# time: the scan over several tokens starts from zero. A prompt continued after a stored prefix, or run in chunks, has other logits than the same prompt
# in one pass, without a warning. One token at a time is right, so generate() does not show it. Falcon-H1 and Qwen3-Next carry the state on.
# Expected: the logits of one pass. Seen: Mamba: 8 tokens at once other logits, 1 at a time same; Jamba: 8 tokens at once other logits, 1 at a time same
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import os

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from transformers import JambaConfig, JambaForCausalLM, MambaConfig, MambaForCausalLM

sizes = {"vocab_size": 64, "hidden_size": 32, "initializer_range": 0.3}
jamba = JambaConfig(
    **sizes, intermediate_size=64, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=4,
    attn_layer_offset=1, attn_layer_period=2, num_experts=2,
)  # fmt: skip
models = {"Mamba": (MambaForCausalLM, MambaConfig(**sizes, num_hidden_layers=2)), "Jamba": (JambaForCausalLM, jamba)}
prompt = torch.arange(5, 17)[None]


@torch.no_grad()
def same(model, step):
    """Runs 4 tokens, then the rest `step` tokens at a time, and compares the logits with those of one pass."""
    cache, logits = None, []
    for part in (prompt[:, :4], *prompt[:, 4:].split(step, dim=1)):
        result = model(part, cache=cache, use_cache=True)
        cache, logits = result["cache"], [*logits, result.logits]
    return torch.allclose(torch.cat(logits, dim=1), model(prompt, use_cache=False).logits, atol=1e-3)


seen = {}
for name, (kind, config) in models.items():
    torch.manual_seed(0)
    model = kind(config).eval()
    seen[name] = (same(model, 8), same(model, 1))
words = {name: ["same" if equal else "other logits" for equal in pair] for name, pair in seen.items()}
print("; ".join(f"{name}: 8 tokens at once {many}, 1 at a time {one}" for name, (many, one) in words.items()))
raise SystemExit(seen != {"Mamba": (False, True), "Jamba": (False, True)})
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
