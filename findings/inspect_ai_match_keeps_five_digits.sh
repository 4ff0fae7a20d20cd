#!/usr/bin/env bash
# inspect-ai 0.3.285. match(numeric=True) rounds answer and target to five significant digits before it compares them: every integer of six or more digits
# is correct when its first five digits are, so wrong sums and products, dates such as 20240115 and identifiers pass.
# Expected: 123457 is incorrect where the target is 123456; the docstring says that numbers are normalized, not that they are rounded.
# Seen: 12346 for 12345 I, 123457 for 123456 C, 20240131 for 20240115 C, 1234.61 for 1234.58 C
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check inspect-ai==0.3.285
cat > "$folder/check.py" <<'PYTHON'
import asyncio

from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Target, match
from inspect_ai.solver import TaskState

PAIRS = [("12346", "12345"), ("123457", "123456"), ("20240131", "20240115"), ("1234.61", "1234.58")]


async def score(answer, target):
    output = ModelOutput.from_content("mock/model", f"The answer is {answer}")
    state = TaskState(model="mock/model", sample_id=1, epoch=1, input="?", messages=[], output=output)
    return (await match(numeric=True)(state, Target(target))).value


seen = [asyncio.run(score(*pair)) for pair in PAIRS]
print(", ".join(f"{answer} for {target} {value}" for (answer, target), value in zip(PAIRS, seen, strict=True)))
raise SystemExit(seen != ["I", "C", "C", "C"])
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
