#!/usr/bin/env bash
# LangGraph 1.2.24 with pydantic 2.14.4 on Python 3.11. A graph over a state of typing.TypedDict, as in the tutorials,
# runs, but get_input_jsonschema(), which tools that draw forms call, raises PydanticUserError; with
# typing_extensions.TypedDict it works.
# Expected: a state class that the graph accepts has a JSON schema. (On Python 3.12 and later both work.)
# Seen on 3.11: "PydanticUserError", then the schema with the property a
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check langgraph==1.2.24 pydantic==2.14.4 typing_extensions
cat > "$folder/check.py" <<'PYTHON'
import sys
import typing

import typing_extensions
from langgraph.graph import START, StateGraph

if sys.version_info >= (3, 12):
    raise SystemExit("this behaviour is that of Python 3.11; run it with that version")


class Plain(typing.TypedDict):
    a: int


class Extended(typing_extensions.TypedDict):
    a: int


def schema_of(state):
    graph = StateGraph(state)
    graph.add_node("node", lambda values: {"a": 2})
    graph.add_edge(START, "node")
    compiled = graph.compile()
    assert compiled.invoke({"a": 1}) == {"a": 2}
    try:
        return sorted(compiled.get_input_jsonschema()["properties"])
    except Exception as error:
        return type(error).__name__


seen = [schema_of(Plain), schema_of(Extended)]
print(seen)
raise SystemExit(seen != ["PydanticUserError", ["a"]])
PYTHON
cd "$folder" && env/bin/python check.py
