#!/usr/bin/env bash
# LangGraph 1.2.24. A parent and a sub-graph share a key with the reducer operator.add, as message lists often do. The
# sub-graph starts with the list of the parent and returns its whole value, which the parent adds to its own: every entry
# from before the sub-graph stands twice.
# Expected: one state key, one list; the sub-graph adds what it added.
# Seen: ["parent", "parent", "child"]
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check langgraph==1.2.24
cat > "$folder/check.py" <<'PYTHON'
import operator
from typing import Annotated, TypedDict

from langgraph.graph import START, StateGraph


class State(TypedDict, total=False):
    log: Annotated[list, operator.add]


child = StateGraph(State)
child.add_node("work", lambda state: {"log": ["child"]})
child.add_edge(START, "work")
parent = StateGraph(State)
parent.add_node("first", lambda state: {"log": ["parent"]})
parent.add_node("child", child.compile())
parent.add_edge(START, "first")
parent.add_edge("first", "child")
seen = parent.compile().invoke({"log": []})["log"]
print(seen)
raise SystemExit(seen != ["parent", "parent", "child"])
PYTHON
cd "$folder" && env/bin/python check.py
