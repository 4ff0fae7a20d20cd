#!/usr/bin/env bash
# gguf 0.19.0. GGUFWriter.add_array() stores a list of lists as such, but GGUFReader gives one flat list of it: pairs of merges, or the layers of each stage,
# come back without their borders. An empty text or list is not stored at all, so that the key is missing when the file is read. Neither warns.
# Expected: what was written, or an error. Seen: pairs [['a', 'b'], ['c', 'd']] read as ['a', 'b', 'c', 'd'], stages [[1, 2], [3]] read as [1, 2, 3];
# system "" missing, stops [] missing
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
from gguf import GGUFReader, GGUFWriter

NESTED = {"pairs": [["a", "b"], ["c", "d"]], "stages": [[1, 2], [3]]}
writer = GGUFWriter("file.gguf", "llama")
for key, value in NESTED.items():
    writer.add_array(key, value)
writer.add_string("system", "")
writer.add_array("stops", [])
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

fields = GGUFReader("file.gguf").fields
seen = {key: fields[key].contents() for key in NESTED}
missing = [key not in fields for key in ("system", "stops")]
print(", ".join(f"{key} {value} read as {seen[key]}" for key, value in NESTED.items()), end="; ")
print(f'system "" {"missing" if missing[0] else "kept"}, stops [] {"missing" if missing[1] else "kept"}')
raise SystemExit(seen != {"pairs": ["a", "b", "c", "d"], "stages": [1, 2, 3]} or missing != [True, True])
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
