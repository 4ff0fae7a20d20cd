#!/usr/bin/env bash
# lm-eval 0.4.13. The command `lm_eval` gives a model the device "cuda:0" where nobody has named one, also on a machine without a GPU: a model cannot tell
# whether its user wants that GPU.
# Expected: the argument `device` is None unless `--device` is given. Seen: cuda:0
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check lm-eval==0.4.13
cat > "$folder/check.py" <<'PYTHON'
from lm_eval._cli import HarnessCLI
from lm_eval.config.evaluate_config import EvaluatorConfig

cli = HarnessCLI()
arguments = cli._parser.parse_args(["run", "--model", "dummy", "--tasks", "arc_easy"])
device = EvaluatorConfig.from_cli(arguments).device
print("device without --device:", device)
assert device == "cuda:0", "the behaviour has changed"
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
