#!/usr/bin/env bash
# langchain-core 1.8.3. In batch() of a runnable with with_retry(), an input that fails in every attempt gets the answer of another input, one that succeeded
# in the last attempt, and nothing is raised: the results of that attempt are handed out in order, whichever input they belong to. abatch() does the same.
# Expected: batch() raises the ValueError, and with return_exceptions=True it stands in the third place.
# Seen: batch ['answer 0', 'answer 1', 'answer 0', 'answer 3'], with return_exceptions ['answer 0', 'answer 1', 'answer 0', 'answer 3']
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check langchain-core==1.8.3
cat > "$folder/check.py" <<'PYTHON'
from collections import Counter

from langchain_core.runnables import RunnableLambda

attempts = Counter()


def answer(number):
    attempts[number] += 1
    if number == 2 or (number == 0 and attempts[number] == 1):
        raise ValueError(f"no answer to {number}")
    return f"answer {number}"


patient = RunnableLambda(answer).with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
seen = {}
for name, options in {"batch": {}, "with return_exceptions": {"return_exceptions": True}}.items():
    attempts.clear()
    try:
        seen[name] = patient.batch([0, 1, 2, 3], **options)
    except ValueError as error:
        seen[name] = repr(error)
print(", ".join(f"{name} {answers}" for name, answers in seen.items()))
wrong = ["answer 0", "answer 1", "answer 0", "answer 3"]
raise SystemExit(not all(answers == wrong for answers in seen.values()))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
