#!/usr/bin/env bash
# openai 3.57.0. Server-sent events with a name of their own arrive in a stream of chat completions as chunks whose `choices` is None, although the
# type says that it is a list: the usual loop over chunk.choices raises TypeError.
# Expected: events with a name are skipped, or chunks have a list. Seen: choices of the chunks: [None, [...]]
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check openai==3.57.0
cat > "$folder/check.py" <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from openai import OpenAI

CHUNK = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [
    {"index": 0, "delta": {"content": "hello"}, "finish_reason": "stop"}]}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b'event: progress\ndata: {"step": 1}\n\n')
        self.wfile.write(f"data: {json.dumps(CHUNK)}\n\ndata: [DONE]\n\n".encode())

    def log_message(self, *arguments):
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = OpenAI(base_url=f"http://127.0.0.1:{server.server_address[1]}", api_key="none")
chunks = list(client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True))
print("choices of the chunks:", [chunk.choices if chunk.choices is None else "[...]" for chunk in chunks])
assert [chunk.choices is None for chunk in chunks] == [True, False], "the behaviour has changed"
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
