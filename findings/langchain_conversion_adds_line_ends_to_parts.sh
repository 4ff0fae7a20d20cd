#!/usr/bin/env bash
# langchain-core 1.8.3. convert_to_openai_messages() joins the text parts of a message with line ends, while the property `text` of the same message joins
# them without: a text in several parts, as for prompt caching or after streaming, is another text for a model that is asked through the conversion.
# Expected: both give the same text, the parts one after the other.
# Seen: text 'fox', converted 'fo\nx', converted with text_format="block" ['fo', 'x']
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check langchain-core==1.8.3
cat > "$folder/check.py" <<'PYTHON'
from langchain_core.messages import HumanMessage, convert_to_openai_messages

message = HumanMessage([{"type": "text", "text": "fo"}, {"type": "text", "text": "x"}])
converted = convert_to_openai_messages(message)["content"]
blocks = [part["text"] for part in convert_to_openai_messages(message, text_format="block")["content"]]
print(f'text {str(message.text)!r}, converted {converted!r}, converted with text_format="block" {blocks}')
raise SystemExit(not (message.text == "fox" and converted == "fo\nx" and blocks == ["fo", "x"]))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
