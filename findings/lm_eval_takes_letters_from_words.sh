#!/usr/bin/env bash
# lm-eval 0.4.13. The filter multi_choice_regex, where its pattern has no match, takes the first capital letter behind a colon for the choice, also when that
# letter begins a word: "Answer: Both are wrong" is (B), and "I do not know: Any may be right" is (A). The letter is not followed by a word boundary. A refusal
# or a cut answer is thus scored as a choice, and right by chance, where it would be "[invalid]".
# Expected: "[invalid]", or the letter that stands for itself, as in "Answer: Definitely (C)".
# Seen: Answer: D (D), Answer: Both are wrong (B), I do not know: Any may be right (A), Answer: Definitely (C) (D), No idea [invalid]
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check lm-eval==0.4.13 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
from lm_eval.filters.extraction import MultiChoiceRegexFilter

texts = ["Answer: D", "Answer: Both are wrong", "I do not know: Any may be right", "Answer: Definitely (C)", "No idea"]
question = {"choices": ["red", "green", "blue", "grey"]}
(seen,) = MultiChoiceRegexFilter(r"[Tt]he answer is (\([A-D]\))").apply([texts], [question])
print(", ".join(f"{text} {choice}" for text, choice in zip(texts, seen)))
raise SystemExit(seen != ["(D)", "(B)", "(A)", "(D)", "[invalid]"])
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
