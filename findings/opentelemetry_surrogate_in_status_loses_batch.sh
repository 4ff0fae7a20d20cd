#!/usr/bin/env bash
# opentelemetry-sdk 1.45.2, opentelemetry-exporter-otlp-proto-http 1.45.2. A span whose status description holds half of a surrogate pair, as texts from JSON
# such as "\ud83d" do, cannot be encoded, and all other spans of its batch are lost with it; force_flush() returns True. In an attribute only that is lost.
# Expected: the other spans are sent. Seen: attribute ['before', 'during', 'after'], status: [], force_flush True
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check opentelemetry-sdk==1.45.2 opentelemetry-exporter-otlp-proto-http==1.45.2
cat > "$folder/check.py" <<'PYTHON'
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

logging.disable()
names = []


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        received = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        names.extend(span.name for one in received.resource_spans for two in one.scope_spans for span in two.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def sent(raised):
    names.clear()
    provider = TracerProvider()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url)))
    tracer = provider.get_tracer("check")
    tracer.start_span("before").end()
    text = json.loads(r'"no answer in \ud83d"')
    try:
        with tracer.start_as_current_span("during") as span:
            span.set_attribute("text", text)
            if raised:
                raise ValueError(text)
    except ValueError:
        pass
    tracer.start_span("after").end()
    return provider.force_flush(), list(names)


server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
(_, attribute), (flushed, status) = sent(raised=False), sent(raised=True)
print(f"attribute {attribute}, status: {status}, force_flush {flushed}")
raise SystemExit(not (attribute == ["before", "during", "after"] and status == [] and flushed))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
