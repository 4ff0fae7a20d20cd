#!/usr/bin/env bash
# safetensors 0.8.0, scikit-learn 1.9.1. safetensors.numpy writes an array's memory as it lies and its shape beside it: an array that is not in C order,
# as a transposed weight or the components that PCA learns, is loaded with its values in other places. safetensors 0.7.0 wrote such arrays right, and
# safetensors.torch refuses them. Reported upstream (issue 825).
# Expected: the loaded array equals the saved one, or an error.
# Seen: transposed [[0, 3], [1, 4], [2, 5]] is loaded as [[0, 1], [2, 3], [4, 5]]; components of PCA equal: False; C order equal: True
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check safetensors==0.8.0 scikit-learn==1.9.1 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import numpy as np
from safetensors.numpy import load, save
from sklearn.decomposition import PCA


def loaded(array):
    return load(save({"array": array}))["array"]


weight = np.arange(6).reshape(2, 3).T
components = PCA(n_components=3, svd_solver="full").fit(np.random.default_rng(0).normal(size=(20, 5))).components_
equal = [bool(np.array_equal(loaded(a), a)) for a in (weight, components, np.ascontiguousarray(components))]
print(f"transposed {weight.tolist()} is loaded as {loaded(weight).tolist()}; components of PCA equal: {equal[1]}; C order equal: {equal[2]}")
raise SystemExit(equal != [False, False, True])
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
