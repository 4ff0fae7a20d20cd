#!/usr/bin/env bash
# datasets 5.2.0, pandas 3.1.1. Dataset.to_json() writes floats with ten decimals, as pandas does by default: a probability of 1e-12 is written as 0.0, and an
# infinite value as null. The data set that is read from the file has other numbers, and the logarithm of such a probability is no longer finite. to_csv(),
# to_parquet() and json.dumps() keep them.
# Expected: the data set that is loaded from the file equals the one that was stored. Seen: 0.1234567891234567 -> 0.1234567891, 1e-12 -> 0.0, inf -> None
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check datasets==5.2.0 pandas==3.1.1
cat > "$folder/check.py" <<'PYTHON'
import datasets

datasets.disable_progress_bars()
values = [0.1234567891234567, 1e-12, float("inf")]
stored = datasets.Dataset.from_dict({"value": values})
stored.to_json("data.jsonl")
loaded = list(datasets.Dataset.from_json("data.jsonl")["value"])
stored.to_parquet("data.parquet")
print(*(f"{before} -> {after}," for before, after in zip(values, loaded)))
unchanged = list(datasets.Dataset.from_parquet("data.parquet")["value"]) == values
raise SystemExit(not (unchanged and loaded == [0.1234567891, 0.0, None]))
PYTHON
cd "$folder" && env HF_HOME="$folder" env/bin/python -W ignore check.py
