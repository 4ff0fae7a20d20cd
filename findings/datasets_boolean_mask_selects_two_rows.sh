#!/usr/bin/env bash
# datasets 5.2.0, numpy 2.4.6. A Dataset that is indexed with a boolean array, as arrays and data frames are, does not filter: True and False are the rows 1
# and 0, so the result has the length of the mask and repeats the first two rows. select() does the same. No error is raised and nothing is warned about;
# select() with a list of booleans does raise.
# Expected: the rows where the mask is true (a, c and e), or an error. Seen: data[mask] babab, data.select(mask) babab
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check datasets==5.2.0 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import numpy as np
from datasets import Dataset

data = Dataset.from_dict({"row": list("abcde"), "score": [0.9, 0.1, 0.8, 0.2, 0.7]})
mask = np.array(data["score"]) > 0.5
indexed = "".join(data[mask]["row"])
selected = "".join(data.select(mask)["row"])
print("data[mask]", indexed, "data.select(mask)", selected)
raise SystemExit(not indexed == selected == "babab")
PYTHON
cd "$folder" && env HF_HOME="$folder" env/bin/python -W ignore check.py
