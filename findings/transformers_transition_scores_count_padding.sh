#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0. compute_transition_scores() of a batch has log-probabilities of the padding that follows a
# sequence that ended early, so the sum of a row, its log-likelihood, depends on how long its neighbours are.
# Expected: zeros behind the end, and the sum that the same prompt has in a batch of its own.
# Seen: tokens before the end: 2; scores that are not 0: 6; alone -4.993, in the batch below -12
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import os

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)).eval()
prompts = torch.tensor([[3, 4, 5], [6, 7, 8]])


def scores(rows, end):
    """The log-probabilities of what follows each prompt, up to six tokens."""
    out = model.generate(
        rows, attention_mask=torch.ones_like(rows), max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=end,
        output_scores=True, return_dict_in_generate=True,
    )
    return out.sequences, model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)


end = int(scores(prompts[:1], None)[0][0, 4])
alone, batch = scores(prompts[:1], end)[1][0], scores(prompts, end)[1][0]
print(
    f"tokens before the end: {len(alone)}; scores that are not 0: {int((batch != 0).sum())}; "
    f"alone {float(alone.sum()):.3f}, in the batch below {'-12' if float(batch.sum()) < -12 else '0'}"
)
raise SystemExit(not (len(alone) == 2 and int((batch != 0).sum()) == 6 and float(batch.sum()) < -12))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
