#!/usr/bin/env bash
# langgraph 1.2.24, numpy 2.4.6. A checkpoint keeps of an array its memory, shape and type code: a masked array comes back without its mask, so that the
# values behind the mask count, and an array with named fields without their names (reported upstream: issue 8746). There is no warning, and a run that is
# not interrupted sees the arrays as they were.
# Expected: the node behind an interrupt reads what it reads without one, or storing the checkpoint raises.
# Seen: mean without and with an interrupt 1.5 334.0; fields ('step', 'loss') None
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check langgraph==1.2.24 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
from typing import Any, TypedDict

import numpy as np
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph


class State(TypedDict):
    losses: np.ndarray
    result: Any


def result(losses, function, interrupt):
    graph = StateGraph(State).add_edge(START, "read").add_edge("read", "use")
    graph.add_node("read", lambda state: {"losses": losses})
    graph.add_node("use", lambda state: {"result": function(state["losses"])})
    graph = graph.compile(checkpointer=InMemorySaver(), interrupt_before=["use"] if interrupt else [])
    config = {"configurable": {"thread_id": "1"}}
    state = graph.invoke({"result": "not computed"}, config)
    return (graph.invoke(None, config) if interrupt else state)["result"]


masked = np.ma.masked_array([1.0, 2.0, 999.0], mask=[False, False, True])
named = np.array([(1, 0.5), (2, 0.25)], dtype=[("step", "i8"), ("loss", "f8")])
means = [result(masked, lambda losses: float(losses.mean()), interrupt) for interrupt in (False, True)]
fields = [result(named, lambda losses: losses.dtype.names, interrupt) for interrupt in (False, True)]
print("mean without and with an interrupt", *means, "fields", *fields)
raise SystemExit(not (means == [1.5, 334.0] and fields == [("step", "loss"), None]))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
