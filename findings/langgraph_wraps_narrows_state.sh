#!/usr/bin/env bash
# LangGraph 1.2.24. A node that is a decorated function, where the decorator uses functools.wraps, receives only the keys
# of the state that the annotation of the *wrapped* function names, although the wrapper has no annotation itself.
# Expected: the wrapper is what is called, so it receives the whole state (as it does without functools.wraps).
# Seen: {"wrapped": ["a"], "plain": ["a", "b"]}
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check langgraph==1.2.24
cat > "$folder/check.py" <<'PYTHON'
import functools
from typing import TypedDict

from langgraph.graph import START, StateGraph


class State(TypedDict, total=False):
    a: int
    b: int
    keys: list


class View(TypedDict):
    a: int


def work(view: View):
    return {}


@functools.wraps(work)
def wrapped(state):
    return {"keys": sorted(state)}


def plain(state):
    return {"keys": sorted(state)}


def keys_seen_by(node):
    graph = StateGraph(State)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    return graph.compile().invoke({"a": 1, "b": 2})["keys"]


seen = {"wrapped": keys_seen_by(wrapped), "plain": keys_seen_by(plain)}
print(seen)
raise SystemExit(seen != {"wrapped": ["a"], "plain": ["a", "b"]})
PYTHON
cd "$folder" && env/bin/python check.py
