#!/usr/bin/env bash
# datasets 5.2.0. class_encode_column() on a column of integers sorts them as texts: from the label 10 on the names are 0, 1, 10, 2, and so on, and the label
# 2 becomes 3. Labels that are already 0 to 10 are renumbered without a warning, so a classifier or a table of names for the old numbers is wrong, while up
# to ten classes all is well.
# Expected: integers that are already class numbers stay what they are. Seen: 0 to 9 unchanged; 0 to 10 become 0 1 3 4 5 6 7 8 9 10 2
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check datasets==5.2.0
cat > "$folder/check.py" <<'PYTHON'
import datasets

datasets.disable_progress_bars()


def encoded(classes):
    return list(datasets.Dataset.from_dict({"label": list(range(classes))}).class_encode_column("label")["label"])


print("0 to 9:", *encoded(10), "and 0 to 10:", *encoded(11))
raise SystemExit(not (encoded(10) == list(range(10)) and encoded(11) == [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 2]))
PYTHON
cd "$folder" && env HF_HOME="$folder" env/bin/python -W ignore check.py
