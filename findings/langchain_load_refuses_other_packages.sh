#!/usr/bin/env bash
# langchain-core 1.8.3. `load(dumpd(model), valid_namespaces=[...], allowed_objects="all")` refuses a serializable class of a package that LangChain does
# not list, although its namespace is given: "all" means the classes of LangChain's own list. So `test_serdes` of langchain-tests fails for such packages.
# Expected: the class is loaded, as its namespace is valid. Seen: ValueError, "Deserialization of ('mine', 'Mine') is not allowed"; a list of classes works.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check langchain-core==1.8.3
cat > "$folder/mine.py" <<'PYTHON'
from langchain_core.load.serializable import Serializable


class Mine(Serializable):
    size: int = 1

    @classmethod
    def is_lc_serializable(cls):
        return True
PYTHON
cat > "$folder/check.py" <<'PYTHON'
from langchain_core.load import dumpd, load
from mine import Mine

plain = dumpd(Mine(size=3))
try:
    load(plain, valid_namespaces=["mine"], allowed_objects="all")
    seen = "loaded"
except ValueError as error:
    seen = str(error).split(". ")[0]
print("with 'all':", seen)
print("with a list:", load(plain, valid_namespaces=["mine"], allowed_objects=[Mine]))
assert "is not allowed" in seen, "the behaviour has changed"
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
