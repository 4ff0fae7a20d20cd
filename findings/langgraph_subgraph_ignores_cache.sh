#!/usr/bin/env bash
# langgraph 1.2.24. The cache that a graph is compiled with is not handed to its sub-graphs, as the checkpointer and the store are: a node of a sub-graph runs
# every time, whatever its cache_policy says, and nothing is warned about. Sub-graphs look for a cache in their configuration, but no graph puts its own there.
# Expected: the node of the sub-graph is cached as it is in the graph itself. Seen: calls in two runs: in the graph 1, in a sub-graph 2,
# in a sub-graph that was compiled with the cache as well 1; a store of the parent is seen in the sub-graph: True
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check langgraph==1.2.24
cat > "$folder/check.py" <<'PYTHON'
import warnings
from typing import TypedDict

from langgraph.cache.memory import InMemoryCache
from langgraph.config import get_store
from langgraph.graph import START, StateGraph
from langgraph.store.memory import InMemoryStore
from langgraph.types import CachePolicy


class State(TypedDict):
    number: int
    square: int


def calls(place):
    """How often a node with a cache policy runs in two runs of a graph with a cache, and whether it has the graph's store."""
    stores = []

    def square(state):
        stores.append(get_store())
        return {"square": state["number"] ** 2}

    cache, store = InMemoryCache(), InMemoryStore()
    graph = StateGraph(State).add_node("square", square, cache_policy=CachePolicy()).add_edge(START, "square")
    if place != "graph":
        inner = graph.compile(cache=cache if place == "given" else None)
        graph = StateGraph(State).add_node("inner", inner).add_edge(START, "inner")
    graph = graph.compile(cache=cache, store=store)
    assert [graph.invoke({"number": 3})["square"] for _ in range(2)] == [9, 9]
    return len(stores), all(seen is store for seen in stores)


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    alone, inner, given = calls("graph"), calls("sub-graph"), calls("given")
about = [str(entry.message) for entry in caught if "cache" in str(entry.message).lower()]
print(
    f"calls in two runs: in the graph {alone[0]}, in a sub-graph {inner[0]}, in a sub-graph that was compiled with the cache as well {given[0]}; "
    f"a store of the parent is seen in the sub-graph: {inner[1]}", *about
)
raise SystemExit((alone, inner, given, about) != ((1, True), (2, True), (1, True), []))
PYTHON
cd "$folder" && env/bin/python check.py
