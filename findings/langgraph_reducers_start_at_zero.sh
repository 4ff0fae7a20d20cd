#!/usr/bin/env bash
# langgraph 1.2.24. A state key with a reducer starts at what its type gives without arguments, 0.0 for a float, and the first value is reduced with that:
# the largest of negative scores, such as log-likelihoods, is 0.0, the smallest of positive losses is 0.0, and so is every product. A default of a dataclass
# that is the state does not change it: the node sees 0.0 instead of the default. There is no warning.
# Expected: the largest, smallest and product of the values that the run was given, and the default where there is none yet.
# Seen: largest of -7 and -3: 0.0, smallest of 9 and 5: 0.0, product of 2 and 4: 0.0; the node sees 0.0 where the default is -inf
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check langgraph==1.2.24
cat > "$folder/check.py" <<'PYTHON'
from dataclasses import dataclass
from operator import mul
from typing import Annotated, TypedDict

from langgraph.graph import START, StateGraph


def larger(one, two):
    return max(one, two)


def smaller(one, two):
    return min(one, two)


class State(TypedDict):
    score: Annotated[float, larger]
    loss: Annotated[float, smaller]
    chance: Annotated[float, mul]


@dataclass
class Best:
    score: Annotated[float, larger] = float("-inf")


def result(schema, node, value):
    return StateGraph(schema).add_node("node", node).add_edge(START, "node").compile().invoke(value)


seen = result(State, lambda state: {"score": -3.0, "loss": 5.0, "chance": 4.0}, {"score": -7.0, "loss": 9.0, "chance": 2.0})
starts = []
result(Best, lambda state: starts.append(state.score) or {"score": -3.0}, {})
print("results of the reducers:", seen, "the node sees", *starts)
raise SystemExit(not (seen == {"score": 0.0, "loss": 0.0, "chance": 0.0} and starts == [0.0]))
PYTHON
cd "$folder" && env/bin/python check.py
