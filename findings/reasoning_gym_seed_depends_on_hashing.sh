#!/usr/bin/env bash
# reasoning-gym 0.1.25, Python 3.11. Two of its data sets, isomorphic_strings and ransom_note, give other questions for the same seed when
# Python's hash randomisation has another seed, which it has in every new process by default; others, such as caesar_cipher, do not.
# Expected: the same seed and version give the same data set in every process.
# Seen: isomorphic_strings differs
#       ransom_note differs
#       caesar_cipher equal
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check reasoning-gym==0.1.25
cat > "$folder/questions.py" <<'PYTHON'
import sys

import reasoning_gym

data = reasoning_gym.create_dataset(sys.argv[1], seed=7, size=5)
print([(item["question"], item["answer"]) for item in data])
PYTHON
cd "$folder"
seen=""
for name in isomorphic_strings ransom_note caesar_cipher; do
    first=$(PYTHONHASHSEED=1 env/bin/python questions.py "$name")
    second=$(PYTHONHASHSEED=2 env/bin/python questions.py "$name")
    [ "$first" = "$second" ] && word=equal || word=differs
    echo "$name $word"
    seen="$seen$word "
done
[ "$seen" = "differs differs equal " ]
