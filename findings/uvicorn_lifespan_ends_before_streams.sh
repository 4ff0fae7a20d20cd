#!/usr/bin/env bash
# uvicorn 0.54.0, starlette 1.10.0. When a stream is still open past timeout_graceful_shutdown, Uvicorn cancels its task and runs the lifespan's
# shutdown before the stream's finally: resources that the lifespan frees are gone while the stream still gives them back.
# Expected: the stream's finally runs first. Seen: order of events: lifespan shutdown, stream finally
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check uvicorn==0.54.0 starlette==1.10.0
cat > "$folder/check.py" <<'PYTHON'
import asyncio
import contextlib
import socket

import uvicorn
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

events = []


@contextlib.asynccontextmanager
async def lifespan(app):
    yield
    events.append("lifespan shutdown")


async def numbers():
    try:
        while True:
            yield "x\n"
            await asyncio.sleep(0.01)
    finally:
        events.append("stream finally")


async def stream(request):
    return StreamingResponse(numbers())


async def main():
    listening = socket.create_server(("127.0.0.1", 0))
    app = Starlette(routes=[Route("/", stream)], lifespan=lifespan)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started:
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection(*listening.getsockname())
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.readline()
    server.should_exit = True
    await serving
    await asyncio.sleep(0.1)
    writer.close()


asyncio.run(main())
print("order of events:", ", ".join(events))
assert events == ["lifespan shutdown", "stream finally"], "the behaviour has changed"
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
