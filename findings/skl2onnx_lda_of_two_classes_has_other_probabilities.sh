#!/usr/bin/env bash
# skl2onnx 1.20.0, onnxruntime 1.32.0, scikit-learn 1.9.1. A converted LinearDiscriminantAnalysis with two classes gives other probabilities than
# predict_proba(), by up to 0.15 here, although its labels are the same, so that a comparison of labels after the conversion notices nothing. With three
# classes the probabilities agree. There is no warning.
# Expected: the probabilities of predict_proba(), within the precision of float32. Seen: labels that differ, largest difference of probabilities: two classes
# 0 0.15, three classes 0 0.00
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check skl2onnx==1.20.0 onnxruntime==1.32.0 onnx==1.23.2 scikit-learn==1.9.1 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import numpy as np
import onnxruntime
from skl2onnx import to_onnx
from sklearn.datasets import load_wine
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

rows, wines = load_wine(return_X_y=True)
rows = rows.astype(np.float32)


def compare(targets):
    """How many labels of the converted model are other ones, and the largest difference of probabilities."""
    model = LinearDiscriminantAnalysis().fit(rows, targets)
    converted = to_onnx(model, rows[:1], options={id(model): {"zipmap": False}}).SerializeToString()
    labels, chances = onnxruntime.InferenceSession(converted).run(None, {"X": rows})
    return int((labels != model.predict(rows)).sum()), float(np.abs(chances - model.predict_proba(rows)).max())


two, three = compare((wines == 1).astype(int)), compare(wines)
print("labels that differ, largest difference of probabilities:", end=" ")
print(f"two classes {two[0]} {two[1]:.2f}, three classes {three[0]} {three[1]:.2f}")
raise SystemExit(not (two[0] == three[0] == 0 and two[1] > 0.1 and three[1] < 1e-3))
PYTHON
cd "$folder" && env OMP_NUM_THREADS=1 env/bin/python -W ignore check.py
