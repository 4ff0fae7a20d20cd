#!/usr/bin/env bash
# opentelemetry-sdk 1.45.2, openinference-semantic-conventions 0.1.42. A span that is given more than its 128 attributes keeps the last ones, so that a long
# chat loses the kind, model and input with which its span was started. OpenTelemetry's specification has the additional attribute discarded instead.
# Expected: what was set first is kept, the last messages are dropped. Seen: of 70 messages: kind None, model None, first message 6, last message 69
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check opentelemetry-sdk==1.45.2 openinference-semantic-conventions==0.1.42
cat > "$folder/check.py" <<'PYTHON'
import logging

from openinference.semconv.trace import MessageAttributes, OpenInferenceSpanKindValues, SpanAttributes
from opentelemetry.sdk.trace import TracerProvider

logging.disable()
MESSAGES = SpanAttributes.LLM_INPUT_MESSAGES
first = {
    SpanAttributes.OPENINFERENCE_SPAN_KIND: OpenInferenceSpanKindValues.LLM.value,
    SpanAttributes.LLM_MODEL_NAME: "model",
    SpanAttributes.INPUT_VALUE: "text",
}
span = TracerProvider().get_tracer("check").start_span("chat", attributes=first)
for number in range(70):
    span.set_attribute(f"{MESSAGES}.{number}.{MessageAttributes.MESSAGE_ROLE}", "user")
    span.set_attribute(f"{MESSAGES}.{number}.{MessageAttributes.MESSAGE_CONTENT}", "hello")
span.end()
kept = span.attributes
numbers = sorted({int(name.split(".")[2]) for name in kept if name.startswith(MESSAGES)})
kind, model = kept.get(SpanAttributes.OPENINFERENCE_SPAN_KIND), kept.get(SpanAttributes.LLM_MODEL_NAME)
print(f"of 70 messages: kind {kind}, model {model}, first message {numbers[0]}, last message {numbers[-1]}")
raise SystemExit(not (len(kept) == 128 and not any(name in kept for name in first) and numbers[0] == 6))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
