#!/usr/bin/env bash
# langgraph 1.2.24. With a dataclass as context_schema all of whose fields have defaults, a run without `context` gives
# the node None; only `context={}` makes an object with the defaults.
# Expected: a run without `context` gets the schema's defaults.
# Seen: without context: None; with an empty context: Settings(limit=3)
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check langgraph==1.2.24
cat > "$folder/check.py" <<'PYTHON'
from dataclasses import dataclass

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from typing_extensions import TypedDict


class State(TypedDict):
    seen: str


@dataclass
class Settings:
    limit: int = 3


def look(state: State, runtime: Runtime[Settings]) -> State:
    return {"seen": repr(runtime.context)}


builder = StateGraph(State, context_schema=Settings)
builder.add_node("look", look)
builder.add_edge(START, "look")
builder.add_edge("look", END)
graph = builder.compile()
without, empty = graph.invoke({"seen": ""})["seen"], graph.invoke({"seen": ""}, context={})["seen"]
print(f"without context: {without}; with an empty context: {empty}")
raise SystemExit((without, empty) != ("None", "Settings(limit=3)"))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
