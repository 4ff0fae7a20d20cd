#!/usr/bin/env bash
# accelerate 1.15.0, torch 2.13.0. gather_for_metrics() cuts the last batch of a loader to len(dataset) % batch_size rows, whatever it holds, and does so in a
# single process too, where nothing was padded. A loader whose sampler draws a part of the data set loses rows of its last batch, as does a function that
# returns more than one row for each input (num_return_sequences, pairs) or one value for each token. The metric is computed over the rest without a
# warning; gather() keeps all.
# Expected: the docstring says that duplicates are dropped on a distributed system, so all rows arrive in a single process.
# Seen: rows kept by gather_for_metrics and gather: whole data set 10 and 10; sampler of 7 rows 6 and 7; two answers for each row 18 and 20
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 accelerate==1.15.0 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
from accelerate import Accelerator
from torch.utils.data import DataLoader, SubsetRandomSampler

accelerator = Accelerator(cpu=True)


def kept(copies=1, **arguments):
    """How many rows gather_for_metrics() and gather() return over one pass."""
    counts = [0, 0]
    for batch in accelerator.prepare(DataLoader(list(range(10)), batch_size=4, **arguments)):
        answers = batch.repeat_interleave(copies)
        counts[0] += len(accelerator.gather_for_metrics(answers))
        counts[1] += len(accelerator.gather(answers))
    return counts


seen = {
    "whole data set": kept(),
    "sampler of 7 rows": kept(sampler=SubsetRandomSampler(range(7))),
    "two answers for each row": kept(copies=2),
}
print("rows kept by gather_for_metrics and gather:", "; ".join(f"{name} {a} and {b}" for name, (a, b) in seen.items()))
raise SystemExit(list(seen.values()) != [[10, 10], [6, 7], [18, 20]] or accelerator.num_processes != 1)
PYTHON
cd "$folder" && env OMP_NUM_THREADS=1 HF_HOME="$folder" env/bin/python -W ignore check.py
