#!/usr/bin/env bash
# langchain-core 1.8.3, langchain-openai 1.7.4, pydantic 2.14.4. The cache of a chat model knows the schema of with_structured_output() only by the repr of
# its class, which has no fields: after the class has changed, or for another one of that name and module, the answer to the old schema is returned.
# Expected: a request with another JSON schema is another request. Seen: with a cache [Answer(number=1), Answer(number=1)], 1 requests;
#   without [Answer(number=1), Answer(number=1, unit='m')], 2 requests
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check langchain-core==1.8.3 langchain-openai==1.7.4 pydantic==2.14.4
cat > "$folder/check.py" <<'PYTHON'
import json

import httpx
from langchain_core.caches import InMemoryCache
from langchain_openai import ChatOpenAI
from pydantic import create_model

VALUES = {"number": 1, "unit": "m"}
OLD = create_model("Answer", number=(int, ...))
NEW = create_model("Answer", number=(int, ...), unit=(str | None, None))
requests = []


def respond(request):
    body = json.loads(request.content)
    requests.append(body)
    asked = body["response_format"]["json_schema"]["schema"]["properties"]
    message = {"role": "assistant", "content": json.dumps({name: VALUES[name] for name in asked})}
    choices = [{"index": 0, "finish_reason": "stop", "message": message}]
    answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}
    return httpx.Response(200, json=answer)


client = httpx.Client(transport=httpx.MockTransport(respond))
seen = {}
for name, cache in {"with a cache": InMemoryCache(), "without": False}.items():
    requests.clear()
    model = ChatOpenAI(model="m", api_key="none", base_url="http://server/v1", http_client=client, cache=cache)
    answers = [model.with_structured_output(schema, method="json_schema").invoke("hi") for schema in (OLD, NEW)]
    seen[name] = (str(answers), len(requests))
print("; ".join(f"{name} {answers}, {count} requests" for name, (answers, count) in seen.items()))
old, new = "Answer(number=1)", "Answer(number=1, unit='m')"
raise SystemExit(seen != {"with a cache": (f"[{old}, {old}]", 1), "without": (f"[{old}, {new}]", 2)})
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
