#!/usr/bin/env bash
# tokenizers 0.23.3. add_special_tokens() and add_tokens() number a new token by the size of the vocabulary. Where ids have gaps, as after tokens were
# pruned from a model, that id can belong to another token: both share it, no error is raised, and text that has nothing to do with the new token is
# encoded to it, decoded as it, or dropped as special.
# Expected: an id that is free (here 3, or 5 behind the largest), or an error.
# Seen: <pad> has id 4, which is the id of "cat"; "a cat sat" is decoded as "a sat", and with special tokens as "a <pad> sat"
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check tokenizers==0.23.3
cat > "$folder/check.py" <<'PYTHON'
from tokenizers import Tokenizer, models, pre_tokenizers

vocabulary = {"<unk>": 0, "a": 1, "sat": 2, "cat": 4}
tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
text = "a cat sat"
before = tokenizer.decode(tokenizer.encode(text).ids)
assert before == text, "the vocabulary with a gap is not read as it stands"

tokenizer.add_special_tokens(["<pad>"])
number = tokenizer.token_to_id("<pad>")
ids = tokenizer.encode(text).ids
plain, special = tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=False)
print(f'<pad> has id {number}, "cat" has id {vocabulary["cat"]}; "{text}" is decoded as "{plain}", and with special tokens as "{special}"')
raise SystemExit((number, plain, special) != (4, "a sat", "a <pad> sat"))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
