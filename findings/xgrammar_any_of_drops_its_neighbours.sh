#!/usr/bin/env bash
# xgrammar 0.2.9, torch 2.13.0, jsonschema 4.26.0. Where a JSON schema has anyOf beside other keywords, as in "an object with the fields a and b, at least one
# of them", only the anyOf is compiled: type, properties and additionalProperties are dropped without a warning, and a number, a list or an object with other
# fields passes. With strict_mode=False it is the same.
# Expected: what a validator accepts, or an error or a warning, as multipleOf and other keywords that are not supported give one.
# Seen (validator, xgrammar): {"a": 1} yes yes, {"a": "x"} no yes, {"z": 1} no yes, {} no yes, 3 no yes; without anyOf {"a": 1} yes, 3 no; no warning
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check xgrammar==0.2.9 torch==2.13.0 transformers==5.24.0 numpy==2.4.6 jsonschema==4.26.0
cat > "$folder/check.py" <<'PYTHON'
import json

import xgrammar
from jsonschema import Draft202012Validator

END = 256
tokens = [bytes([number]) for number in range(END)] + [b"</s>"]
options = {"vocab_type": xgrammar.VocabType.RAW, "vocab_size": END + 1, "stop_token_ids": [END]}
compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(tokens, **options))
fields = {"a": {"type": "integer"}, "b": {"type": "integer"}}
plain = {"type": "object", "properties": fields, "additionalProperties": False}
schema = {**plain, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}


def allowed(schema, text, strict):
    matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(json.dumps(schema), strict_mode=strict))
    return all(matcher.accept_token(byte) for byte in text.encode()) and matcher.accept_token(END)


def words(values):
    return " ".join("yes" if value else "no" for value in values)


seen = []
for text in ('{"a": 1}', '{"a": "x"}', '{"z": 1}', "{}", "3"):
    valid = Draft202012Validator(schema).is_valid(json.loads(text))
    seen.append((text, valid, allowed(schema, text, True), allowed(schema, text, False)))
alone = allowed(plain, '{"a": 1}', True), allowed(plain, "3", True)
print("; ".join(f"{text} {words(values)}" for text, *values in seen), "; without anyOf", words(alone))
valid, strict, loose = list(zip(*seen))[1:]
raise SystemExit(not (valid == (True, False, False, False, False) and all(strict) and all(loose) and alone == (True, False)))
PYTHON
cd "$folder" && env OMP_NUM_THREADS=1 env/bin/python -W ignore check.py 2> "$folder/log"; ! grep -i "converter.*warning" "$folder/log"
