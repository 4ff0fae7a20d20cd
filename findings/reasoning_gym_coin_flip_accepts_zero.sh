#!/usr/bin/env bash
# reasoning-gym 0.1.25. In the data set coin_flip, score_answer() gives partial credit for a common prefix of answer and right answer and divides it by the
# length of the shorter one: every prefix of the right answer scores 1.0. A probability below 1 begins with the digit 0, so the answer 0 is right wherever
# the right answer is written without an exponent.
# Expected: 0 scores less than 1 where the probability is 0.2734375.
# Seen: the answer 0 scores 1.0 on 45 of 50 questions; 48 have a probability above 0.0005
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check reasoning-gym==0.1.25
cat > "$folder/check.py" <<'PYTHON'
import reasoning_gym

data = reasoning_gym.create_dataset("coin_flip", seed=3, size=50)
entries = list(data)
wrong = [entry for entry in entries if float(entry["answer"]) > 0.0005]
right = sum(data.score_answer("0", entry) == 1.0 for entry in wrong)
print(f"the answer 0 scores 1.0 on {right} of {len(entries)} questions; {len(wrong)} have a probability above 0.0005")
raise SystemExit(not (len(wrong) > 40 and right > 40))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
