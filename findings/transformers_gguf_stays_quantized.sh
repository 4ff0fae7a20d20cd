#!/usr/bin/env bash
# transformers 5.24.0, gguf 0.19.0, torch 2.13.0. A model loaded from a GGUF file has plain fp32 parameters, here even from a
# file of fp32 tensors, but stays marked as quantized: model.float() raises ValueError.
# Expected: a model of plain parameters can be cast.
# Seen: {torch.float32} True ValueError
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 gguf==0.19.0 accelerate numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import os

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import gguf
import numpy as np
import torch
import transformers
from tokenizers import pre_tokenizers

TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<eos>", "12"]
SIZE, HIDDEN, INNER = len(TOKENS), 32, 64


def write(path, pre):
    """A random Llama of one layer, with byte-level BPE whose only merge joins the digits 1 and 2."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(SIZE)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token == "<eos>" else 1 for token in TOKENS])
    writer.add_token_merges(["1 2"])
    writer.add_eos_token_id(TOKENS.index("<eos>"))
    shapes = {
        "token_embd": (SIZE, HIDDEN), "output": (SIZE, HIDDEN), "output_norm": (HIDDEN,), "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,), "blk.0.ffn_gate": (INNER, HIDDEN), "blk.0.ffn_up": (INNER, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, INNER),
        **{f"blk.0.attn_{name}": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")},
    }
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


write("tiny.gguf", "gpt-2")
model = transformers.AutoModelForCausalLM.from_pretrained(".", gguf_file="tiny.gguf", dtype=torch.float32)
types = {parameter.dtype for parameter in model.parameters()}
try:
    model.float()
    raised = None
except ValueError as error:
    raised = type(error).__name__
print(types, model.is_quantized, raised)
raise SystemExit(not (types == {torch.float32} and model.is_quantized and raised == "ValueError"))
PYTHON
cd "$folder" && env/bin/python check.py
