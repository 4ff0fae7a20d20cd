#!/usr/bin/env bash
# openai 3.57.0. The helper chat.completions.stream() puts every text of a chunk behind that of the chunks before and adds every number, also where a server
# repeats a value, as several do with the role and the name of a tool, or adds a field of its own, such as a progress. No error is raised.
# Expected: the role is "assistant", the tool "search", the progress the last one, 1.0. Seen: role assistantassistant, tool searchsearch, progress 1.5
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check openai==3.57.0
cat > "$folder/check.py" <<'PYTHON'
import json

import httpx2
from openai import OpenAI

TOOL = {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}


def chunk(arguments, progress, reason):
    function = {"name": "search", "arguments": arguments}
    calls = [{"index": 0, "id": "call_1", "type": "function", "function": function}]
    delta = {"role": "assistant", "tool_calls": calls, "progress": progress}
    choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
    return {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": choices}


def respond(request):
    chunks = [chunk('{"a": ', 0.5, None), chunk("1}", 1.0, "tool_calls")]
    text = "".join(f"data: {json.dumps(one)}\n\n" for one in chunks) + "data: [DONE]\n\n"
    return httpx2.Response(200, text=text, headers={"content-type": "text/event-stream"})


client = httpx2.Client(transport=httpx2.MockTransport(respond))
openai = OpenAI(api_key="none", base_url="http://server/v1", http_client=client)
asked = [{"role": "user", "content": "hi"}]
with openai.chat.completions.stream(model="m", messages=asked, tools=[TOOL]) as stream:
    message = stream.get_final_completion().choices[0].message
seen = (message.role, message.tool_calls[0].function.name, message.progress)
print("role {}, tool {}, progress {}".format(*seen))
raise SystemExit(seen != ("assistantassistant", "searchsearch", 1.5))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
