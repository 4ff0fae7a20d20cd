#!/usr/bin/env bash
# LangGraph 1.2.24. Running a compiled graph, without a checkpointer and without anything random in its nodes, draws from
# Python's global random generator (for the ids of its tasks), so a program that seeded it gets other numbers afterwards.
# Expected: a library draws ids from a generator of its own and leaves the global state as it is.
# Seen: the state of random differs after invoke: True
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check langgraph==1.2.24
cat > "$folder/check.py" <<'PYTHON'
import random
from typing import TypedDict

from langgraph.graph import START, StateGraph


class State(TypedDict, total=False):
    a: int


graph = StateGraph(State)
graph.add_node("node", lambda state: {"a": 2})
graph.add_edge(START, "node")
compiled = graph.compile()
random.seed(0)
before = random.getstate()
compiled.invoke({"a": 1})
changed = random.getstate() != before
print("the state of random differs after invoke:", changed)
raise SystemExit(not changed)
PYTHON
cd "$folder" && env/bin/python check.py
