#!/usr/bin/env bash
# datasets 5.2.0. Dataset.map() that replaces a column of booleans by numbers casts the numbers back to booleans: the labels -1 and 1, or the probabilities
# 0.2 and 0.9, are all True. try_original_type=False, which is documented to infer the new type always, changes this with batched=True only; row by row it is
# ignored, also for other types (the texts "000" and "007" in place of integers stay 0 and 7). A streamed data set, or a column with a new name, has the numbers.
# Expected: [1, -1], if not by default then with try_original_type=False; or an error, as the cast loses values.
# Seen: by default [True, True], with try_original_type=False [True, True], the same batched [1, -1], streamed [1, -1]
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check datasets==5.2.0
cat > "$folder/check.py" <<'PYTHON'
import datasets

datasets.disable_progress_bars()
data = datasets.Dataset.from_dict({"label": [True, False]})


def signs(row):
    return {"label": 1 if row["label"] else -1}


def batch_signs(batch):
    return {"label": [1 if label else -1 for label in batch["label"]]}


seen = {
    "by default": data.map(signs),
    "with try_original_type=False": data.map(signs, try_original_type=False),
    "the same batched": data.map(batch_signs, batched=True, try_original_type=False),
    "streamed": data.to_iterable_dataset().map(signs),
}
seen = {name: repr([row["label"] for row in mapped]) for name, mapped in seen.items()}
print(", ".join(f"{name} {labels}" for name, labels in seen.items()))
raise SystemExit(list(seen.values()) != ["[True, True]", "[True, True]", "[1, -1]", "[1, -1]"])
PYTHON
cd "$folder" && env HF_HOME="$folder" env/bin/python -W ignore check.py
