#!/usr/bin/env bash
# datasets 5.2.0. map() takes the columns of its result from the first row, and from_generator() likewise: a key that only later rows return, such as the
# reason of a failure, is dropped for all rows without a warning. With the same rows the other way round map() raises KeyError, and the same function over an
# IterableDataset keeps the key where it is. (from_list() does the same, and its docstring says so.)
# Expected: the column, with None in the rows that have no such key, or an error for either order.
# Seen: columns after map score, after from_generator score; map with the failure first raises KeyError; the iterable gives reason wrong sum
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check datasets==5.2.0
cat > "$folder/check.py" <<'PYTHON'
import datasets
from datasets import Dataset

datasets.disable_progress_bars()


def score(row):
    return {"score": 1} if row["answer"] == "4" else {"score": 0, "reason": "wrong sum"}


def rows():
    yield from map(score, [{"answer": "4"}, {"answer": "5"}])


data = Dataset.from_dict({"answer": ["4", "5"]})
mapped = data.map(score, remove_columns="answer").column_names
generated = Dataset.from_generator(rows).column_names
try:
    reverse = data.select([1, 0]).map(score, remove_columns="answer").column_names
except Exception as error:
    reverse = type(error).__name__
kept = list(data.to_iterable_dataset().map(score))[1].get("reason")
print("columns after map", *mapped, "after from_generator", *generated, end="; ")
print("map with the failure first raises", reverse, end="; ")
print("the iterable gives reason", kept)
raise SystemExit((mapped, generated, reverse, kept) != (["score"], ["score"], "KeyError", "wrong sum"))
PYTHON
cd "$folder" && env HF_HOME="$folder" env/bin/python -W ignore check.py
