#!/usr/bin/env bash
# reasoning-gym 0.1.25. An entry of the data set arc_agi that was written to JSON and read again, as a stored benchmark is, no longer scores its own
# right answer as right: score_answer() compares the grid, now lists, with a tuple of tuples.
# Expected: 1.0 for the right answer, as before. Seen: before 1.0, after a round trip through JSON 0.05
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check reasoning-gym==0.1.25
cat > "$folder/check.py" <<'PYTHON'
import json

import reasoning_gym

data = reasoning_gym.create_dataset("arc_agi", seed=3, size=1)
entry = data[0]
stored = json.loads(json.dumps(entry))
before, after = data.score_answer(entry["answer"], entry), data.score_answer(stored["answer"], stored)
print(f"before {before}, after a round trip through JSON {after}")
raise SystemExit(not (before == 1.0 and after < 0.1))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
