#!/usr/bin/env bash
# LangGraph 1.2.24. What a node of a compiled graph writes with get_stream_writer() is dropped when that graph is a node
# of a parent that is streamed with stream_mode="custom"; it arrives only with subgraphs=True, wrapped in a pair.
# Expected: "custom" is data that user code sends to the stream, so the reader of the parent receives it.
# Seen: without subgraphs [], with subgraphs one event
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check langgraph==1.2.24
cat > "$folder/check.py" <<'PYTHON'
from typing import TypedDict

from langgraph.config import get_stream_writer
from langgraph.graph import START, StateGraph


class State(TypedDict, total=False):
    a: int


def node(state):
    get_stream_writer()({"progress": 1})
    return {"a": 2}


def graph_of(work):
    graph = StateGraph(State)
    graph.add_node("node", work)
    graph.add_edge(START, "node")
    return graph.compile()


child = graph_of(node)
parent = graph_of(child)
alone = list(child.stream({"a": 1}, stream_mode="custom"))
without = list(parent.stream({"a": 1}, stream_mode="custom"))
with_subgraphs = [event for _, event in parent.stream({"a": 1}, stream_mode="custom", subgraphs=True)]
print("alone", alone, "in a parent", without, "with subgraphs=True", with_subgraphs)
raise SystemExit((alone, without, with_subgraphs) != ([{"progress": 1}], [], [{"progress": 1}]))
PYTHON
cd "$folder" && env/bin/python check.py
