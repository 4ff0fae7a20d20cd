#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0. generate() with a cache that already holds the whole prompt, as a forward pass over that prompt returns it,
# runs the whole prompt again behind the cached copy: the model sees it twice and gives other logits, without a warning. With one token less in the
# cache only the last token is run.
# Expected: only the last token is run again, or an error.
# Seen: 4 of 5 tokens in the cache: 5 positions afterwards, same logits; 5 of 5 tokens in the cache: 10 positions afterwards, other logits
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import os

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, initializer_range=0.3, **sizes)).eval()
prompt = torch.tensor([[5, 6, 7, 8, 9]])
options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


def first_logits(cache):
    mask = torch.ones_like(prompt)
    return model.generate(prompt, attention_mask=mask, past_key_values=cache, **options).logits[0]


plain = first_logits(DynamicCache(config=model.config))
seen = {}
for count in (4, 5):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(prompt[:, :count], past_key_values=cache, use_cache=True)
    same = torch.allclose(first_logits(cache), plain, atol=1e-3)
    seen[count] = (cache.get_seq_length(), same)
    print(f"{count} of 5 tokens in the cache: {seen[count][0]} positions afterwards, {'same' if same else 'other'} logits")
raise SystemExit(seen != {4: (5, True), 5: (10, False)})
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
