#!/usr/bin/env bash
# datasets 5.2.0. load_dataset("json") turns a column of strings that all look like ISO 8601 dates into timestamps: rows hold datetime objects, str() of
# which is another text, and a UTC offset is applied and dropped. One other string in the column keeps all of them strings. Answers are compared wrongly
# and prompts show other texts than the file holds.
# Expected: JSON strings stay strings, as in a column without dates.
# Seen: 2024-01-15 -> 2024-01-15 00:00:00 (datetime); 2024-01-15T10:00:00+02:00 -> 2024-01-15 08:00:00 (datetime);
# with "unknown" in another row: 2024-01-15 (str)
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check datasets==5.2.0
cat > "$folder/check.py" <<'PYTHON'
import json
import os

os.environ["HF_HOME"], os.environ["HF_HUB_OFFLINE"] = os.path.abspath("cache"), "1"

import datasets

datasets.disable_progress_bars()


def first(*answers):
    """Returns the first of the answers as it is read from a file of JSON lines."""
    with open("rows.jsonl", "w") as file:
        file.writelines(json.dumps({"answer": answer}) + "\n" for answer in answers)
    return datasets.load_dataset("json", data_files="rows.jsonl", split="train")[0]["answer"]


day, offset = "2024-01-15", "2024-01-15T10:00:00+02:00"
seen = [f"{value} ({type(value).__name__})" for value in (first(day, "2023-05-01"), first(offset), first(day, "unknown"))]
print(f'{day} -> {seen[0]}; {offset} -> {seen[1]}; with "unknown" in another row: {seen[2]}')
raise SystemExit(seen != ["2024-01-15 00:00:00 (datetime)", "2024-01-15 08:00:00 (datetime)", "2024-01-15 (str)"])
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
