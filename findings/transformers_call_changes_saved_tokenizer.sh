#!/usr/bin/env bash
# transformers 5.24.0, tokenizers 0.23.3. A call with truncation or padding sets them in the tokenizer of the library tokenizers and leaves them there (the
# documentation says that they are restored). save_pretrained() then writes them to tokenizer.json, and whoever reads that file without transformers, as
# servers do, gets every text cut and padded to the length of that call. Reported upstream (issue 24441).
# Expected: tokenizing a batch does not change what save_pretrained() writes.
# Seen: tokens of texts with 1 and 5 words: saved before the call [1, 5], after it [2, 2]
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3
cat > "$folder/check.py" <<'PYTHON'
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

text = "one two three four five"
words = [*text.split(), "[PAD]"]
backend = Tokenizer(WordLevel(dict(zip(words, range(6))), unk_token="[PAD]"))
backend.pre_tokenizer = WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")


def lengths_after_saving(folder):
    tokenizer.save_pretrained(folder)
    loaded = Tokenizer.from_file(f"{folder}/tokenizer.json")
    return [len(loaded.encode(text).ids) for text in ("one", text)]


before = lengths_after_saving("before")
tokenizer(text, truncation=True, padding="max_length", max_length=2)
after = lengths_after_saving("after")
print("tokens of texts with 1 and 5 words: saved before the call", before, "after it", after)
raise SystemExit(not (before == [1, 5] and after == [2, 2]))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
