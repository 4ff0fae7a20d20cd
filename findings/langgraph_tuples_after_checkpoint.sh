#!/usr/bin/env bash
# LangGraph 1.2.24, langgraph-checkpoint 4.3.2. The value that invoke returns and the value that the checkpointer gives
# back for the same state differ: tuples are lists, also inside a frozen dataclass whose field is annotated as a tuple, so
# it can no longer be hashed or compared equal.
# Expected: a serializer that restores the dataclass restores its fields.
# Seen: returned Point((1, 2)), stored Point([1, 2])
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check langgraph==1.2.24 langgraph-checkpoint==4.3.2
cat > "$folder/check.py" <<'PYTHON'
from dataclasses import dataclass
from typing import Any, TypedDict

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph


@dataclass(frozen=True)
class Point:
    place: tuple[int, int]


class State(TypedDict, total=False):
    point: Any


graph = StateGraph(State)
graph.add_node("node", lambda state: {"point": Point((1, 2))})
graph.add_edge(START, "node")
compiled = graph.compile(checkpointer=InMemorySaver())
config = {"configurable": {"thread_id": "1"}}
returned = compiled.invoke({}, config)["point"]
stored = compiled.get_state(config).values["point"]
print("returned", returned, "stored", stored)
same_class = type(stored) is Point
raise SystemExit(not (returned == Point((1, 2)) and same_class and stored.place == [1, 2] and stored != returned))
PYTHON
cd "$folder" && env/bin/python check.py
