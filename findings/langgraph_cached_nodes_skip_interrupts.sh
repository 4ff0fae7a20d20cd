#!/usr/bin/env bash
# langgraph 1.2.24. A node with a cache_policy that asks a person by interrupt() stores the result that followed from the person's answer. Another thread with
# the same input takes that result out of the cache and never asks: one approval, or one refusal, decides for all later threads and users. The interrupted
# run itself is not cached, so the first thread asks as it should. There is no warning.
# Expected: every thread asks, as it does without a cache, because the answer is no part of the node's input.
# Seen: with a cache questions [1, 0], answers ['yes of alice', 'yes of alice']; without questions [1, 1], answers ['yes of alice', 'no of bob']
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check langgraph==1.2.24
cat > "$folder/check.py" <<'PYTHON'
import warnings
from typing import TypedDict

from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import CachePolicy, Command, interrupt


class State(TypedDict):
    action: str
    answer: str


def ask(state):
    return {"answer": interrupt(f"May I {state['action']}?")}


def threads(cache):
    """How many questions each of two threads asks about one action, and with which answer it ends."""
    graph = StateGraph(State).add_node("ask", ask, cache_policy=CachePolicy()).add_edge(START, "ask")
    graph = graph.compile(checkpointer=InMemorySaver(), cache=cache)
    questions, answers = [], []
    for user, answer in (("alice", "yes"), ("bob", "no")):
        config = {"configurable": {"thread_id": user}}
        result = graph.invoke({"action": "delete the file"}, config)
        questions.append(len(result.get("__interrupt__", [])))
        if questions[-1]:
            result = graph.invoke(Command(resume=f"{answer} of {user}"), config)
        answers.append(result["answer"])
    return questions, answers


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    cached = threads(InMemoryCache())
plain = threads(None)
about = [str(entry.message) for entry in caught if "cache" in str(entry.message) or "interrupt" in str(entry.message)]
print("with a cache questions {}, answers {}; without questions {}, answers {}".format(*cached, *plain), *about)
expected = ([1, 0], ["yes of alice"] * 2), ([1, 1], ["yes of alice", "no of bob"]), []
raise SystemExit((cached, plain, about) != expected)
PYTHON
cd "$folder" && env/bin/python check.py
