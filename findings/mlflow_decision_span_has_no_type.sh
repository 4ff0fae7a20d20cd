#!/usr/bin/env bash
# MLflow 3.17.2. Spans that its OTLP endpoint receives get a type from OpenInference's attribute openinference.span.kind,
# except for the kind DECISION, which OpenInference's conventions have since 0.1.42: such a span has no type.
# Expected: every kind of the conventions has a type, at least UNKNOWN.
# Seen: the types of CHAIN and DECISION: CHAIN None
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check mlflow-skinny==3.17.2 openinference-semantic-conventions==0.1.42
cat > "$folder/check.py" <<'PYTHON'
from mlflow.tracing.otel.translation.open_inference import OpenInferenceTranslator
from openinference.semconv.trace import OpenInferenceSpanKindValues, SpanAttributes

kinds = OpenInferenceSpanKindValues.CHAIN, OpenInferenceSpanKindValues.DECISION
translator = OpenInferenceTranslator()
types = [translator.translate_span_type({SpanAttributes.OPENINFERENCE_SPAN_KIND: kind.value}) for kind in kinds]
print("the types of CHAIN and DECISION:", *types)
raise SystemExit(types != ["CHAIN", None])
PYTHON
cd "$folder" && env/bin/python check.py
