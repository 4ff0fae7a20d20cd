#!/usr/bin/env bash
# skl2onnx 1.20.0, onnxruntime 1.32.0, scikit-learn 1.9.1. A converted OneVsOneClassifier predicts the position of a class instead of its label, so that integer
# labels other than 0, 1, 2 and so on come out wrong: with 1, 2 and 3 every prediction is too small by one, and may pass for another class. onnxruntime
# warns of the shape of output_label alone. A converted OneVsRestClassifier gives the labels themselves.
# Expected: the labels of predict(). Seen: labels of OneVsOneClassifier: 1 2 3 by predict, 0 1 2 by onnx, wrong for 178 of 178;
# labels of OneVsRestClassifier: 1 2 3 by predict, 1 2 3 by onnx, wrong for 0 of 178
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check skl2onnx==1.20.0 onnxruntime==1.32.0 onnx==1.23.2 scikit-learn==1.9.1 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import numpy as np
import onnxruntime
from skl2onnx import to_onnx
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

rows, wines = load_wine(return_X_y=True)
rows = StandardScaler().fit_transform(rows).astype(np.float32)


def labels(kind):
    model = kind(LogisticRegression()).fit(rows, wines + 1)
    session = onnxruntime.InferenceSession(to_onnx(model, rows[:1]).SerializeToString())
    return model.predict(rows), session.run(None, {"X": rows})[0].ravel()


seen = {}
for kind in (OneVsOneClassifier, OneVsRestClassifier):
    right, converted = labels(kind)
    seen[kind] = (sorted(set(right.tolist())), sorted(set(converted.tolist())), int((right != converted).sum()))
    print(f"labels of {kind.__name__}:", *seen[kind][0], "by predict,", *seen[kind][1], end=" ")
    print(f"by onnx, wrong for {seen[kind][2]} of {len(rows)}")
raise SystemExit(list(seen.values()) != [([1, 2, 3], [0, 1, 2], 178), ([1, 2, 3], [1, 2, 3], 0)])
PYTHON
cd "$folder" && env OMP_NUM_THREADS=1 env/bin/python -W ignore check.py
