#!/usr/bin/env bash
# OpenTelemetry's SDK 1.45.2. TracerProvider.force_flush(timeout_millis) and BatchSpanProcessor.force_flush wait until the
# exporter returns, however long that takes: a program that flushes before it ends waits for an endpoint that is slow.
# Expected: force_flush returns False after timeout_millis, as its documentation says.
# Seen: a flush of at most 0.1 s took 1.0 s and returned True
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check opentelemetry-sdk==1.45.2
cat > "$folder/check.py" <<'PYTHON'
import time

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult


class Slow(SpanExporter):
    def export(self, spans):
        time.sleep(1.0)
        return SpanExportResult.SUCCESS


provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(Slow()))
provider.get_tracer("check").start_span("span").end()
began = time.perf_counter()
in_time = provider.force_flush(timeout_millis=100)
seconds = time.perf_counter() - began
print(f"a flush of at most 0.1 s took {seconds:.1f} s and returned {in_time}")
raise SystemExit(not (in_time and seconds > 0.9))
PYTHON
cd "$folder" && env/bin/python check.py
