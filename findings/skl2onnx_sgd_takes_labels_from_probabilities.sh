#!/usr/bin/env bash
# skl2onnx 1.20.0, onnxruntime 1.32.0, scikit-learn 1.9.1. A converted SGDClassifier with several classes gives other labels than the original, though the
# probabilities are the same: the ONNX model takes the first class of the largest probability, and predict() that of the largest decision value. Several classes
# share the largest probability when "modified_huber" clips it at 1 or the sigmoid of "log_loss" reaches 1, which is usual as the decision values of SGD are large.
# There is no warning. With the loss "hinge", or the option raw_scores=True, the labels are those of predict().
# Expected: the labels of predict() on the data that the model was fitted to, but for rows within the precision of float32.
# Seen: other labels on digits: modified_huber 142 of 1797, log_loss 46 of 1797, hinge 0 of 1797; on wine: modified_huber 110 of 178, log_loss 110 of 178, hinge 0 of 178;
# largest difference of probabilities below 1e-5: True
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check skl2onnx==1.20.0 onnxruntime==1.32.0 onnx==1.23.2 scikit-learn==1.9.1 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import numpy as np
import onnxruntime
from skl2onnx import to_onnx
from sklearn.datasets import load_digits, load_wine
from sklearn.linear_model import SGDClassifier

LOSSES = ("modified_huber", "log_loss", "hinge")


def compare(load, loss):
    """Returns how many labels of the converted model are other ones, the number of rows, and the largest difference of probabilities."""
    rows, targets = load(return_X_y=True)
    rows = rows.astype(np.float32)
    model = SGDClassifier(loss=loss, random_state=0).fit(rows, targets)
    converted = to_onnx(model, rows[:1], options={id(model): {"zipmap": False}}).SerializeToString()
    labels, scores = onnxruntime.InferenceSession(converted).run(None, {"X": rows})
    difference = 0 if loss == "hinge" else np.abs(scores - model.predict_proba(rows)).max()
    return int((labels != model.predict(rows)).sum()), len(rows), difference


seen = {load: {loss: compare(load, loss) for loss in LOSSES} for load in (load_digits, load_wine)}
texts = [", ".join(f"{loss} {n} of {of}" for loss, (n, of, _) in results.items()) for results in seen.values()]
close = all(result[2] < 1e-5 for results in seen.values() for result in results.values())
print(f"other labels on digits: {texts[0]}; on wine: {texts[1]}; largest difference of probabilities below 1e-5: {close}")
digits = seen[load_digits]
raise SystemExit(not (close and digits["modified_huber"][0] > 50 and digits["log_loss"][0] > 10 and digits["hinge"][0] < 3))
PYTHON
cd "$folder" && env OMP_NUM_THREADS=1 env/bin/python -W ignore check.py
