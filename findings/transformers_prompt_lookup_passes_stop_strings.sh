#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0. With prompt_lookup_num_tokens, generate() looks only at the end of each accepted block of tokens for stop_strings and
# own stopping criteria: a stop string inside the block does not stop it, and the answer runs on until one happens to be at the end of a block. Few-shot
# prompts are the usual case, because the lookup copies the next example from them. Only max_length and the end token are cut (source comment; issue 48039).
# Expected: prompt lookup is a faster way to the same greedy tokens. Seen: plain ' two\n' prompt lookup ' two\nQ: 2?\nA: two\n'; own criterion the same
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

tokens = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["</s>"]
inner = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>")

torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
model = LlamaForCausalLM(
    LlamaConfig(vocab_size=257, eos_token_id=256, pad_token_id=256, bos_token_id=None, **sizes)
)
text = tokenizer("Q: 2?\nA: two\n" * 4, return_tensors="pt").input_ids
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for _ in range(80):  # learns the text by heart
    model(input_ids=text, labels=text).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.eval()
prompt = tokenizer("Q: 2?\nA: two\nQ: 2?\nA:", return_tensors="pt")


def ends_line(ids, scores, **_):
    return ids[:, -1] == tokenizer("\n").input_ids[0]


def answer(**options):
    out = model.generate(**prompt, max_new_tokens=30, do_sample=False, **options)
    return tokenizer.decode(out[0, prompt.input_ids.shape[1] :])


stops = {"stop_strings": ["\n"], "tokenizer": tokenizer}
plain, lookup = answer(**stops), answer(prompt_lookup_num_tokens=8, **stops)
own = answer(stopping_criteria=[ends_line]), answer(prompt_lookup_num_tokens=8, stopping_criteria=[ends_line])
same = "the same" if own == (plain, lookup) else repr(own)
print("plain", repr(plain), "prompt lookup", repr(lookup) + "; own criterion", same)
raise SystemExit(not (own == (plain, lookup) == (" two\n", " two\nQ: 2?\nA: two\n")))
PYTHON
cd "$folder" && env OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error env/bin/python -W ignore check.py
