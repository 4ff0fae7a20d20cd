#!/usr/bin/env bash
# opentelemetry-sdk 1.45.2. start_as_current_span() records an exception and the status ERROR for subclasses of Exception only. A task that is cancelled, as by
# asyncio.wait_for() or by a client that goes away, leaves a span without an error or an event, which looks like one that succeeded after that time.
# `with tracer.start_span()` does record it. Reported upstream (pull request 4406).
# Expected: a body that was left by an exception is marked alike in both forms.
# Seen: start_as_current_span: ValueError ERROR, cancelled UNSET with 0 events; start_span: ValueError ERROR, cancelled ERROR with 1 event
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check opentelemetry-sdk==1.45.2
cat > "$folder/check.py" <<'PYTHON'
import asyncio

from opentelemetry.sdk.trace import TracerProvider

tracer = TracerProvider().get_tracer("check")
seen = {}


async def answer(start, fails):
    with start("answer") as span:
        seen[start.__name__, fails] = span
        if fails:
            raise ValueError("no model")
        await asyncio.sleep(60)


async def main():
    for start in (tracer.start_as_current_span, tracer.start_span):
        for fails in (True, False):
            try:
                await asyncio.wait_for(answer(start, fails), 0.1)
            except (ValueError, TimeoutError):
                continue
            raise AssertionError("no exception")


asyncio.run(main())
states = {key: (span.status.status_code.name, len(span.events)) for key, span in seen.items()}
for (start, fails), state in states.items():
    print(start, "ValueError" if fails else "cancelled", *state)
wanted = [("ERROR", 1), ("UNSET", 0), ("ERROR", 1), ("ERROR", 1)]
raise SystemExit(list(states.values()) != wanted)
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
