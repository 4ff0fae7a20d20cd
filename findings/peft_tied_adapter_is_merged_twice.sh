#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0. With ensure_weight_tying=True a LoRA adapter of embed_tokens, in a model whose head has the same weight, serves
# the embedding and the head. merge_and_unload() adds its update for each of them, and both times to the one weight they share: the merged weight has twice the
# update, and the merged model gives other logits. A warning says that merging can lead to complications, and advises to untie the weights.
# merge_adapter() does the same. modules_to_save with ensure_weight_tying=True is merged rightly.
# Expected: the merged weight has the update once, since tied adapters are what can be merged into tied weights.
# Seen: updates in the merged weight 2.00; logits differ by more than 1: True; with modules_to_save: False
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

ids = torch.arange(3, 12)[None]


def difference(**settings):
    """The largest change of the logits by merging, and how many times the merged embedding has the update of its adapter."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=64, tie_word_embeddings=True, **sizes))
    before = base.get_input_embeddings().weight.detach().clone()
    model = get_peft_model(base, LoraConfig(r=4, ensure_weight_tying=True, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        times = None
        if hasattr(embedding, "lora_embedding_A"):
            update = embedding.get_delta_weight("default")
            assert torch.allclose(update, head.get_delta_weight("default"))
        logits = model(input_ids=ids).logits
        merged = model.merge_and_unload()
        assert merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
        if hasattr(embedding, "lora_embedding_A"):
            times = float(((merged.get_input_embeddings().weight - before) * update).sum() / (update * update).sum())
        return float((merged(input_ids=ids).logits - logits).abs().max()), times


lora, times = difference(target_modules=["q_proj", "embed_tokens"])
saved, _ = difference(target_modules=["q_proj"], modules_to_save=["embed_tokens"])
print(f"updates in the merged weight {times:.2f}; logits differ by more than 1: {lora > 1}; with modules_to_save: {saved > 1e-4}")
raise SystemExit(not (abs(times - 2) < 1e-3 and lora > 1 and saved < 1e-4))
PYTHON
cd "$folder" && env OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error env/bin/python -W ignore check.py
