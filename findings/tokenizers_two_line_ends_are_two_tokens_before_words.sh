#!/usr/bin/env bash
# tokenizers 0.23.3. The pre-tokenizer ByteLevel, with the split rule of GPT-2 that many models have (SmolLM2 among them), leaves the last white space
# of a run to the word behind it. So two line ends before a word become two tokens, although the vocabulary has one for both, which the same text gets
# alone or at the end. The end of a few-shot example, encoded as the stop text, thus has other ids than a model writes there: its likelihood looks bad,
# and a comparison of ids says that the answer did not end.
# Expected: the blank line between two examples is the same token wherever it stands, as with the split rules of Llama 3 or Gemma.
# Seen: alone ['ĊĊ'], at the end ['d', 'ĊĊ'], before a word ['d', 'Ċ', 'Ċ', 'I']
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check tokenizers==0.23.3
cat > "$folder/check.py" <<'PYTHON'
from tokenizers import Tokenizer, models, pre_tokenizers

alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
vocabulary = {token: number for number, token in enumerate([*alphabet, "ĊĊ"])}
tokenizer = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ")]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
alone, last, between = (tokenizer.encode(text).tokens for text in ("\n\n", "d\n\n", "d\n\nI"))
print(f"alone {alone}, at the end {last}, before a word {between}")
raise SystemExit((alone, last, between) != (["ĊĊ"], ["d", "ĊĊ"], ["d", "Ċ", "Ċ", "I"]))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
