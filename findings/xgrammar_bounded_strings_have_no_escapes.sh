#!/usr/bin/env bash
# xgrammar 0.2.9, torch 2.13.0. A string with minLength or maxLength in a JSON schema, as Field(min_length=1) of pydantic gives it, is held to another grammar
# than a plain one: no backslash is allowed in it, so that a model cannot write a quotation mark, a line end or a tab in the only forms that JSON has, while a
# bare tab, which JSON forbids, is let through. Code and quotations are bent or cut, and nothing is warned about.
# Expected: the strings of JSON, counted by their characters. Seen: line end, quotation mark, bare tab: plain string yes yes no, minLength 1 no no yes,
# maxLength 100 no no yes; json.loads yes yes no
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check xgrammar==0.2.9 torch==2.13.0 transformers==5.24.0 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import json

import xgrammar

END = 256
tokens = [bytes([number]) for number in range(END)] + [b"</s>"]
options = {"vocab_type": xgrammar.VocabType.RAW, "vocab_size": END + 1, "stop_token_ids": [END]}
compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(tokens, **options))


def allowed(schema, text):
    matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(json.dumps(schema)))
    return all(matcher.accept_token(byte) for byte in text.encode()) and matcher.accept_token(END)


def is_json(text):
    try:
        return isinstance(json.loads(text), str)
    except ValueError:
        return False


texts = [json.dumps("a\nb"), json.dumps('say "a"'), '"a\tb"']
bounds = {"plain string": {}, "minLength 1": {"minLength": 1}, "maxLength 100": {"maxLength": 100}}
seen = {name: [allowed({"type": "string", **bound}, text) for text in texts] for name, bound in bounds.items()}
seen["json.loads"] = [is_json(text) for text in texts]
print(", ".join(" ".join([name] + ["yes" if value else "no" for value in values]) for name, values in seen.items()))
right, wrong = [True, True, False], [False, False, True]
raise SystemExit(list(seen.values()) != [right, wrong, wrong, right])
PYTHON
cd "$folder" && env OMP_NUM_THREADS=1 env/bin/python -W ignore check.py
