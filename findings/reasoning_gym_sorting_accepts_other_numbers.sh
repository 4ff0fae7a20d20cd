#!/usr/bin/env bash
# reasoning-gym 0.1.25. In the data set number_sorting, score_answer() accepts every sorted list whose numbers differ from the right ones by at most 1: a
# list of other numbers scores 1.0, also one that repeats a number or adds decimals to integers.
# Expected: a list with numbers that are not in the question scores 0.0; the docstring says 1.0 for a correct answer.
# Seen: all numbers raised by 0.9: 50 of 50 right; all numbers raised by 1.5: 0 of 50 right
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check reasoning-gym==0.1.25
cat > "$folder/check.py" <<'PYTHON'
import ast
import json

import reasoning_gym

data = reasoning_gym.create_dataset("number_sorting", seed=3, size=50)


def right(change):
    """Returns how many questions are right when every number of the answer is raised by `change`."""
    wrong = [json.dumps([str(round(float(n) + change, 2)) for n in ast.literal_eval(entry["answer"])]) for entry in data]
    return sum(data.score_answer(answer, entry) == 1.0 for answer, entry in zip(wrong, data, strict=True))


seen = {change: right(change) for change in (0.9, 1.5)}
print("; ".join(f"all numbers raised by {change}: {count} of 50 right" for change, count in seen.items()))
raise SystemExit(seen != {0.9: 50, 1.5: 0})
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
