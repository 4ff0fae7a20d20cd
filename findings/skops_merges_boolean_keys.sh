#!/usr/bin/env bash
# skops 0.16.0, scikit-learn 1.9.1. A dictionary with the keys False and True loses an entry when skops saves and loads it: keys are stored as text, and
# loading calls bool("False"), which is True. A classifier with class_weight={False: 1, True: 9} is loaded with {True: 9}, and fitting it again weights
# neither class as it was told to. The keys 1 and "1" are merged in the same way. There is no warning, and integer keys alone are restored.
# Expected: the loaded dictionary equals the saved one, or an error.
# Seen: class_weight {False: 1, True: 9} -> {True: 9}; {1: 'a', '1': 'b'} -> {1: 'b'}; {0: 1, 1: 9} -> {0: 1, 1: 9}
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check skops==0.16.0 scikit-learn==1.9.1 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import skops.io
from sklearn.linear_model import LogisticRegression


def loaded(value):
    return skops.io.loads(skops.io.dumps(value))


weights = {False: 1, True: 9}
model = loaded(LogisticRegression(class_weight=weights))
seen = [model.class_weight, loaded({1: "a", "1": "b"}), loaded({0: 1, 1: 9})]
print(f"class_weight {weights} -> {seen[0]}; {{1: 'a', '1': 'b'}} -> {seen[1]}; {{0: 1, 1: 9}} -> {seen[2]}")
raise SystemExit(repr(seen) != "[{True: 9}, {1: 'b'}, {0: 1, 1: 9}]")
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
