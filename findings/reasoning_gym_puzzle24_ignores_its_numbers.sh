#!/usr/bin/env bash
# reasoning-gym 0.1.25. In the data set puzzle24, score_answer() never compares the numbers of the answer with those of the question: four numbers in the
# range of the data set whose value begins with 24 are right, so one constant answer is right on every question. The value is cut to an integer first.
# Expected: an answer that does not use the given numbers, or whose value is not 24, scores less than 1.
# Seen: 6*4*1*1 is right on 50 of 50 questions, although 1 of them has these numbers; 8*3+1/2 is right on 50
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check reasoning-gym==0.1.25
cat > "$folder/check.py" <<'PYTHON'
import reasoning_gym

data = reasoning_gym.create_dataset("puzzle24", seed=3, size=50)
entries = list(data)
own = sum(sorted(entry["metadata"]["numbers"]) == [1, 1, 4, 6] for entry in entries)
right = {answer: sum(data.score_answer(answer, entry) == 1.0 for entry in entries) for answer in ("6*4*1*1", "8*3+1/2")}
print(f"6*4*1*1 is right on {right['6*4*1*1']} of 50 questions, although {own} of them has these numbers; 8*3+1/2 is right on {right['8*3+1/2']}")
raise SystemExit(not (own < 5 and set(right.values()) == {50}))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
