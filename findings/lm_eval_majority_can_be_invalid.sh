#!/usr/bin/env bash
# lm-eval 0.4.13. The filters regex and majority_vote, one behind the other, count answers without a match, which the first one names
# "[invalid]", as one answer: where most samples have no match, or more of them than agree on any answer, the vote elects "[invalid]", although all samples that
# do have an answer agree.
# Expected: the most frequent answer among those that have one, as self-consistency is defined. Seen: five samples, two of them 18: [invalid]
# seven samples, four of them 18: 18
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check lm-eval==0.4.13 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
from lm_eval.filters import build_filter_ensemble
from lm_eval.api.instance import Instance

steps = [("regex", {"regex_pattern": r"The answer is (\-?[0-9\.\,]*[0-9]+)"}), ("majority_vote", None), ("take_first", None)]


def elected(samples):
    instance = Instance("generate_until", {}, ("question", {}), 0)
    instance.resps = samples
    build_filter_ensemble("vote", steps).apply([instance])
    return instance.filtered_resps["vote"]


cut = "First we add the"
five = elected(["The answer is 18", cut, "The answer is 18", cut, cut])
seven = elected(["The answer is 18", cut, "The answer is 18", cut, "The answer is 18", "The answer is 7", "The answer is 18"])
print("five samples, two of them 18:", five, "seven samples, four of them 18:", seven)
raise SystemExit((five, seven) != ("[invalid]", "18"))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
