#!/usr/bin/env bash
# langchain-core 1.8.3, langchain-openai 1.7.4. The cache of a chat model is looked up by a description of the model that is computed once and kept in the
# object: model_copy(update=...) copies it too, so that a copy with another model or temperature gets the cached answers of the original.
# Expected: the copy asks the server, as a new object with the same settings does. Seen: original small 0.0, copy small 0.0, new object large 1.0; 2 requests
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check langchain-core==1.8.3 langchain-openai==1.7.4
cat > "$folder/check.py" <<'PYTHON'
import json

import httpx
from langchain_core.caches import InMemoryCache
from langchain_openai import ChatOpenAI

requests = []


def respond(request):
    body = json.loads(request.content)
    requests.append(body)
    message = {"role": "assistant", "content": f"{body['model']} {body['temperature']}"}
    choices = [{"index": 0, "finish_reason": "stop", "message": message}]
    answer = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": choices}
    return httpx.Response(200, json=answer)


client = httpx.Client(transport=httpx.MockTransport(respond))
common = {"api_key": "none", "base_url": "http://server/v1", "http_client": client, "cache": InMemoryCache()}
original = ChatOpenAI(model="small", temperature=0, **common)
answers = {"original": original.invoke("hi").content}
copy = original.model_copy(update={"model_name": "large", "temperature": 1.0})
assert (copy.model_name, copy.temperature) == ("large", 1.0)
answers["copy"] = copy.invoke("hi").content
answers["new object"] = ChatOpenAI(model="large", temperature=1.0, **common).invoke("hi").content
print(", ".join(f"{name} {text}" for name, text in answers.items()), end=f"; {len(requests)} requests\n")
raise SystemExit(not (answers["copy"] == answers["original"] != answers["new object"] and len(requests) == 2))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
