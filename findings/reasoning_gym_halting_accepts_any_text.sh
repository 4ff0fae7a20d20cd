#!/usr/bin/env bash
# reasoning-gym 0.1.25. In the data set game_of_life_halting, score_answer() compares the truth values of two strings, which are both true: every text
# that is not empty scores 1.0, also the opposite answer, so a model that knows nothing is right on every question.
# Expected: "True" scores 0 where the answer is "False", and so does a text that is neither. Seen: answer False: True 1.0, False 1.0, no idea 1.0;
# answer True: True 1.0, False 1.0, no idea 1.0
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check reasoning-gym==0.1.25
cat > "$folder/check.py" <<'PYTHON'
import reasoning_gym

data = reasoning_gym.create_dataset("game_of_life_halting", seed=3, size=20)
entries = {entry["answer"]: entry for entry in data}
TEXTS = ("True", "False", "no idea")
seen = {answer: [data.score_answer(text, entries[answer]) for text in TEXTS] for answer in sorted(entries)}
for answer, scores in seen.items():
    print(f"answer {answer}:", ", ".join(f"{text} {score}" for text, score in zip(TEXTS, scores, strict=True)))
raise SystemExit(seen != {"False": [1.0, 1.0, 1.0], "True": [1.0, 1.0, 1.0]})
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
