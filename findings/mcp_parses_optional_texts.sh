#!/usr/bin/env bash
# mcp 2.3.0. A server parses a text argument as JSON before it is validated unless the parameter is annotated as exactly `str`: a parameter `text: str | None`
# refuses every text that is a JSON object or list, such as a program's output or a grid, and the text "null" arrives as None. With `Any` the tool gets a
# list for a text. The published schema of the tool says that such a text is valid.
# Expected: the tool receives the text that the client sent, as with `str`.
# Seen: required '[[1, 2]]' '{"a": 1}' 'null'; optional ToolError ToolError None; anything [[1, 2]] {'a': 1} None
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check mcp==2.3.0
cat > "$folder/check.py" <<'PYTHON'
import asyncio
from typing import Any

from mcp.server import MCPServer

server = MCPServer("texts")


@server.tool()
def required(text: str) -> str:
    return repr(text)


@server.tool()
def optional(text: str | None = None) -> str:
    return repr(text)


@server.tool()
def anything(text: Any) -> str:
    return repr(text)


async def received(tool, text):
    try:
        return (await server.call_tool(tool, {"text": text})).content[0].text
    except Exception as error:
        return type(error).__name__


texts = ["[[1, 2]]", '{"a": 1}', "null"]
seen = {tool: [asyncio.run(received(tool, text)) for text in texts] for tool in ("required", "optional", "anything")}
print("; ".join(" ".join([tool, *values]) for tool, values in seen.items()))
right = seen["required"] == [repr(text) for text in texts]
raise SystemExit(not (right and seen["optional"] == ["ToolError", "ToolError", "None"] and seen["anything"][2] == "None"))
PYTHON
cd "$folder" && env/bin/python check.py
