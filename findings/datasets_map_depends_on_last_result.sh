#!/usr/bin/env bash
# datasets 5.2.0. Whether Dataset.map() keeps anything depends on the function's result for the last row: where that is None, the results of all other rows are
# thrown away and the data set comes back unchanged; where a row in the middle gives None, that row is missing from the new data set. There is no warning.
# (Issue 7990 is about None for the first row, which raises AttributeError; open pull request 8182 names the lost rows.) A streamed data set raises TypeError.
# Expected: four rows with the results, and None or the old row where there is none, as map() without batched=True keeps the number of rows; or an error.
# Seen: None for the last row: [1, 2, 3, 4]; None for the second row: [10, 30, 40]; streamed: TypeError
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check datasets==5.2.0
cat > "$folder/check.py" <<'PYTHON'
import datasets

datasets.disable_progress_bars()
numbers = datasets.Dataset.from_dict({"number": [1, 2, 3, 4]})


def results(data, missing):
    """Returns the column after each number but one was multiplied by ten."""
    mapped = data.map(lambda row: None if row["number"] == missing else {"number": 10 * row["number"]})
    return [row["number"] for row in mapped]


last, second = results(numbers, 4), results(numbers, 2)
try:
    streamed = results(numbers.to_iterable_dataset(), 4)
except TypeError as error:
    streamed = type(error).__name__
print(f"None for the last row: {last}; None for the second row: {second}; streamed: {streamed}")
raise SystemExit((last, second, streamed) != ([1, 2, 3, 4], [10, 30, 40], "TypeError"))
PYTHON
cd "$folder" && env HF_HOME="$folder" env/bin/python -W ignore check.py
