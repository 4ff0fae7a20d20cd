#!/usr/bin/env bash
# langgraph 1.2.24. The cache of a node (CachePolicy) is looked up by the node's name, the qualified name of its function and its input. Two graphs with one
# cache whose nodes are made by the same factory share their entries, whatever the closures hold, and so do two runs with another context: the second gets
# the answer of the first, without a warning.
# Expected: a function that computes something else, or a run with another context, is computed.
# Seen: closures 6 6, contexts 6 6, without a cache 6 15
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check langgraph==1.2.24
cat > "$folder/check.py" <<'PYTHON'
from dataclasses import dataclass
from typing import TypedDict

from langgraph.cache.memory import InMemoryCache
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import CachePolicy


class State(TypedDict):
    number: int
    product: int


@dataclass
class Context:
    factor: int


def times(factor):
    return lambda state: {"product": state["number"] * factor}


def times_context(state: State, runtime: Runtime[Context]):
    return {"product": state["number"] * runtime.context.factor}


def product(node, cache, factor=1):
    graph = StateGraph(State, context_schema=Context).add_edge(START, "node")
    graph.add_node("node", node, cache_policy=CachePolicy())
    return graph.compile(cache=cache).invoke({"number": 3}, context=Context(factor))["product"]


cache, other = InMemoryCache(), InMemoryCache()
closures = [product(times(factor), cache) for factor in (2, 5)]
contexts = [product(times_context, other, factor) for factor in (2, 5)]
plain = [product(times(factor), None) for factor in (2, 5)]
print("closures", *closures, "contexts", *contexts, "without a cache", *plain)
raise SystemExit(not (closures == contexts == [6, 6] and plain == [6, 15]))
PYTHON
cd "$folder" && env/bin/python check.py
