#!/usr/bin/env bash
# datasets 5.2.0. In a column that holds texts and numbers, load_dataset("json") and map() parse every text that is JSON: "007" is 7, "1.10" is 1.1, "true" is
# True, "NaN" and "null" are None and "[1, 2]" is a list, without a warning. The column gets the type Json, which takes such texts for values that are encoded
# already. One number among the answers of a file is enough; without one all texts are kept. map() does so by default, though its documentation names None as
# the default of on_mixed_types.
# Expected: a text stays a text, as json.loads() reads it from the same file, or an error.
# Seen: 5 -> 5, '007' -> 7, '1.10' -> 1.1, 'true' -> True, 'null' -> None, '[1, 2]' -> [1, 2], 'seven' -> 'seven'; map() the same: True; unchanged without 5: True
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check datasets==5.2.0
cat > "$folder/check.py" <<'PYTHON'
import json

import datasets

datasets.disable_progress_bars()
ANSWERS = [5, "007", "1.10", "true", "null", "[1, 2]", "seven"]


def read(answers, name):
    """Returns the answers as they are read from a file of JSON lines."""
    with open(name, "w") as file:
        file.writelines(json.dumps({"answer": answer}) + "\n" for answer in answers)
    return list(datasets.load_dataset("json", data_files=name, split="train")["answer"])


loaded = read(ANSWERS, "mixed.jsonl")
numbered = datasets.Dataset.from_dict({"number": list(range(len(ANSWERS)))})
mapped = list(numbered.map(lambda row: {"answer": ANSWERS[row["number"]]})["answer"])
same, kept = repr(mapped) == repr(loaded), read(ANSWERS[1:], "texts.jsonl") == ANSWERS[1:]
print(", ".join(f"{before!r} -> {after!r}" for before, after in zip(ANSWERS, loaded, strict=True)), end="; ")
print(f"map() the same: {same}; unchanged without 5: {kept}")
raise SystemExit(not (repr(loaded) == "[5, 7, 1.1, True, None, [1, 2], 'seven']" and same and kept))
PYTHON
cd "$folder" && env HF_HOME="$folder" HF_HUB_OFFLINE=1 env/bin/python -W ignore check.py
