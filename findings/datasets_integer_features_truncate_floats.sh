#!/usr/bin/env bash
# datasets 5.2.0. Dataset.from_dict() and from_list() with a Features that declares a column as an integer cut the fractions off floats: 0.9 becomes 0 and
# -1.7 becomes -1. No error is raised and nothing is warned about, while cast_column() and map() with the same features raise ArrowInvalid for the same
# values.
# Expected: an error, as from the other two. Seen: from_dict [0, -1, 2], from_list [0, -1, 2], cast_column ArrowInvalid, map ArrowInvalid
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check datasets==5.2.0
cat > "$folder/check.py" <<'PYTHON'
import datasets
from datasets import Dataset, Features, Value

datasets.disable_progress_bars()
VALUES = [0.9, -1.7, 2.0]
features = Features({"reward": Value("int64")})
rows = [{"reward": value} for value in VALUES]
plain = Dataset.from_list(rows)
WAYS = {
    "from_dict": lambda: Dataset.from_dict({"reward": VALUES}, features=features),
    "from_list": lambda: Dataset.from_list(rows, features=features),
    "cast_column": lambda: plain.cast_column("reward", Value("int64")),
    "map": lambda: plain.map(lambda row: {"reward": row["reward"]}, features=features),
}


def outcome(make):
    try:
        return str(list(make()["reward"]))
    except Exception as error:
        return type(error).__name__


seen = {name: outcome(make) for name, make in WAYS.items()}
print(", ".join(f"{name} {what}" for name, what in seen.items()))
raise SystemExit(list(seen.values()) != ["[0, -1, 2]"] * 2 + ["ArrowInvalid"] * 2)
PYTHON
cd "$folder" && env HF_HOME="$folder" env/bin/python -W ignore check.py
