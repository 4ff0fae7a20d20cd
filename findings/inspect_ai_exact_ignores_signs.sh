#!/usr/bin/env bash
# inspect-ai 0.3.285. The scorers exact() and f1() split answer and target at hyphens before they compare them, so a leading minus is lost: the answer
# -5 is scored as correct where the target is 5, and the other way round. match() keeps the sign.
# Expected: a number of the other sign is incorrect; the docstring names a normalization, but none that drops signs.
# Seen: exact C, f1 1.0, match I
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check inspect-ai==0.3.285
cat > "$folder/check.py" <<'PYTHON'
import asyncio

from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Target, exact, f1, match
from inspect_ai.solver import TaskState


async def scored(scorer, answer, target):
    output = ModelOutput.from_content("mock/model", answer)
    state = TaskState(model="mock/model", sample_id=1, epoch=1, input="2 - 7 = ?", messages=[], output=output)
    return (await scorer(state, Target(target))).value


async def main():
    scorers = {"exact": exact(), "f1": f1(), "match": match(numeric=True)}
    return [{name: await scored(scorer, *pair) for name, scorer in scorers.items()} for pair in (("-5", "5"), ("5", "-5"))]


seen = asyncio.run(main())
print(", ".join(f"{name} {value}" for name, value in seen[0].items()))
raise SystemExit(seen != [{"exact": "C", "f1": 1.0, "match": "I"}] * 2)
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
