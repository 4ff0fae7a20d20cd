#!/usr/bin/env bash
# LangGraph 1.2.24. Cancelling ainvoke, here by asyncio.wait_for, returns at once, but a synchronous node goes on in its
# thread to its end, with its side effects; nothing tells it that nobody waits.
# Expected: a cancelled run has ended when the awaiting code continues, or the node can find out.
# Seen: ended at the timeout False, ended a second later True
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check langgraph==1.2.24
cat > "$folder/check.py" <<'PYTHON'
import asyncio
import threading
import time
from typing import TypedDict

from langgraph.graph import START, StateGraph


class State(TypedDict, total=False):
    a: int


ended = threading.Event()


def node(state):
    time.sleep(1.0)
    ended.set()
    return {"a": 2}


graph = StateGraph(State)
graph.add_node("node", node)
graph.add_edge(START, "node")
compiled = graph.compile()


async def limited():
    try:
        await asyncio.wait_for(compiled.ainvoke({"a": 1}), 0.2)
    except TimeoutError:
        return ended.is_set()


seen = [asyncio.run(limited()), ended.wait(5)]
print("ended at the timeout", seen[0], "ended later", seen[1])
raise SystemExit(seen != [False, True])
PYTHON
cd "$folder" && env/bin/python check.py
