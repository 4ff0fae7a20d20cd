#!/usr/bin/env bash
# transformers 5.24.0, jinja2 3.1.6, torch 2.13.0. apply_chat_template(return_assistant_tokens_mask=True) finds the assistant's tokens by the length of
# what was rendered before {% generation %}. Where that tag stands in a macro or a {% set %} block with other text before it, as templates that render
# each message by a macro have it, that text is not counted: the mask lies on the tokens before the answer, without a warning.
# Expected: templates that render the same text have the same mask.
# Seen: plain ['yes', 'no'], macro ['ass', 'as'], set ['ass', 'as'] (masked text)
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 jinja2==3.1.6 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import os

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TURN = (
    "{{ m.role + ':' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "{{ ';' }}"
)
TEMPLATES = {
    "plain": "{% for m in messages %}" + TURN + "{% endfor %}",
    "macro": "{% macro turn(m) %}" + TURN + "{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "set": "{% for m in messages %}{% set text %}" + TURN + "{% endset %}{{ text }}{% endfor %}",
}
roles = ["user", "assistant", "user", "assistant"]
chat = [{"role": role, "content": text} for role, text in zip(roles, ["a?", "yes", "b?", "no"], strict=True)]
alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
core = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)


def masked(template):
    """Returns the rendered text and the runs of it that the mask covers."""
    result = tokenizer.apply_chat_template(
        chat, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = result["input_ids"], result["assistant_masks"]
    marked = "".join(tokenizer.decode([i]) if keep else " " for i, keep in zip(ids, mask, strict=True))
    return tokenizer.decode(ids), marked.split()


results = {name: masked(template) for name, template in TEMPLATES.items()}
assert len({text for text, _ in results.values()}) == 1, "the templates render different texts"
seen = {name: runs for name, (_, runs) in results.items()}
print(", ".join(f"{name} {runs}" for name, runs in seen.items()))
raise SystemExit(seen != {"plain": ["yes", "no"], "macro": ["ass", "as"], "set": ["ass", "as"]})
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
