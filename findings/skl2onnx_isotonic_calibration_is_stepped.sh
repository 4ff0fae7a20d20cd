#!/usr/bin/env bash
# skl2onnx 1.20.0, onnxruntime 1.32.0, scikit-learn 1.9.1. A converted CalibratedClassifierCV(method="isotonic") gives other probabilities: the ONNX model takes
# the value of the nearest knot of the isotonic curve, where scikit-learn interpolates between two knots. A probability is off by up to a quarter here, and steps
# take the place of slopes, so thresholds are passed by other rows. There is no warning. method="sigmoid" is converted rightly. (Open issue 200, of 2019.)
# Expected: the probabilities of predict_proba(), within the precision of float32.
# Seen: isotonic: largest difference 0.248, at x = -1.14: 0.000 for 0.248; sigmoid: largest difference 0.000
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check skl2onnx==1.20.0 onnxruntime==1.32.0 onnx==1.23.2 scikit-learn==1.9.1 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import numpy as np
import onnxruntime
from skl2onnx import to_onnx
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression

random = np.random.default_rng(0)
rows = random.normal(size=(40, 1)).astype(np.float32)
targets = (rows[:, 0] + random.normal(size=40) > 0).astype(int)
queries = np.linspace(-2, 2, 401, dtype=np.float32)[:, None]
seen = {}
for method in ("isotonic", "sigmoid"):
    model = CalibratedClassifierCV(LogisticRegression(), method=method, cv=3, ensemble=False).fit(rows, targets)
    converted = to_onnx(model, rows[:1], options={id(model): {"zipmap": False}}).SerializeToString()
    got = onnxruntime.InferenceSession(converted).run(None, {"X": queries})[1][:, 1]
    wanted = model.predict_proba(queries)[:, 1]
    seen[method] = np.abs(got - wanted)
    place = seen[method].argmax()
    text = f"{method}: largest difference {seen[method][place]:.3f}"
    if method == "isotonic":
        text += f", at x = {queries[place, 0]:.2f}: {got[place]:.3f} for {wanted[place]:.3f};"
    print(text, end=" ")
print()
raise SystemExit(not (seen["isotonic"].max() > 0.1 and seen["sigmoid"].max() < 1e-5))
PYTHON
cd "$folder" && env OMP_NUM_THREADS=1 env/bin/python -W ignore check.py
