#!/usr/bin/env bash
# skops 0.16.0, scikit-learn 1.9.1. A collections.deque comes back from skops empty and without its maxlen: an estimator that keeps its last scores or examples in
# one has lost them after loading, and lets it grow without a limit from then on. Nothing is raised or warned about when it is saved, nor when it is loaded
# with the type named as trusted. Subclasses of list and dict are restored, and pickle restores the deque.
# Expected: the deque that was saved, or an error.
# Seen: deque([0.7, 0.8], maxlen=2) -> deque([]), after three more scores deque([0.1, 0.2, 0.3]); pickle deque([0.7, 0.8], maxlen=2)
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check skops==0.16.0 scikit-learn==1.9.1 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import pickle
import warnings
from collections import deque

import skops.io
from sklearn.base import BaseEstimator


class Window(BaseEstimator):
    """Keeps the last scores that it was fitted with."""

    def __init__(self, size=2):
        self.size = size

    def fit(self, X, y=None):
        self.last_ = deque(maxlen=self.size)
        return self.partial_fit(X)

    def partial_fit(self, X, y=None):
        self.last_.extend(X)
        return self


warnings.simplefilter("error")
model = Window().fit([0.5, 0.6, 0.7, 0.8])
data = skops.io.dumps(model)
untrusted = skops.io.get_untrusted_types(data=data)
loaded = skops.io.loads(data, trusted=untrusted)
pickled = pickle.loads(pickle.dumps(model))
seen = [repr(loaded.last_), repr(loaded.partial_fit([0.1, 0.2, 0.3]).last_), repr(pickled.last_)]
print(f"{model.last_} -> {seen[0]}, after three more scores {seen[1]}; pickle {seen[2]}; untrusted {untrusted}")
raise SystemExit(seen != ["deque([])", "deque([0.1, 0.2, 0.3])", "deque([0.7, 0.8], maxlen=2)"])
PYTHON
cd "$folder" && env/bin/python check.py
