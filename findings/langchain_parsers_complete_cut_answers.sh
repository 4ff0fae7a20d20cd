#!/usr/bin/env bash
# langchain-core 1.8.3. JsonOutputParser and PydanticOutputParser close the brackets and quotes of an incomplete JSON text themselves, also outside of
# streams: an answer that the server cut at its limit of tokens (finish_reason "length") passes as a complete one, with a number or a list that ends too early,
# and is validated against the schema. The finish reason is not looked at, so neither with_retry() nor with_fallbacks() sees a failure.
# Expected: OutputParserException, as json.loads() and model_validate_json() raise for such a text.
# Seen: JsonOutputParser 42, PydanticOutputParser 42 where the whole answer has 425; pydantic by itself ValidationError
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check langchain-core==1.8.3 pydantic==2.14.4
cat > "$folder/check.py" <<'PYTHON'
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from pydantic import BaseModel, ValidationError


class Answer(BaseModel):
    steps: list[str]
    result: int


whole = '{"steps": ["17 * 25", "= 425"], "result": 425}'
cut = AIMessage(whole[: whole.rindex("5")], response_metadata={"finish_reason": "length"})
by_json = JsonOutputParser().invoke(cut)["result"]
by_pydantic = PydanticOutputParser(pydantic_object=Answer).invoke(cut).result
try:
    alone = Answer.model_validate_json(cut.text).result
except ValidationError as error:
    alone = type(error).__name__
print(f"whole {whole}, cut {cut.text}: JsonOutputParser {by_json}, PydanticOutputParser {by_pydantic}, pydantic {alone}")
raise SystemExit(not (by_json == by_pydantic == 42 and alone == "ValidationError"))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
