#!/usr/bin/env bash
# langgraph 1.2.24, langgraph-checkpoint-sqlite 3.1.2. SqliteStore.search(filter=...) compares numbers as 64-bit floats: an item with an integer beyond 2**53,
# such as a snowflake id, is not found by its own value, and another one's value finds it where that rounds to it. And "$ne" leaves out the items that
# lack the field or hold None there. InMemoryStore answers both as written; get() gives the stored integer unharmed. (Integers: in the thread of issue 7684.)
# Expected: the same items from both stores. Seen: id of a: memory a, sqlite b; id of c: memory c, sqlite none; status not done: memory bc, sqlite b
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check langgraph==1.2.24 langgraph-checkpoint-sqlite==3.1.2
cat > "$folder/check.py" <<'PYTHON'
from langgraph.store.memory import InMemoryStore
from langgraph.store.sqlite import SqliteStore

ITEMS = {
    "a": {"id": 9007199254740993, "status": "done"},
    "b": {"id": 9007199254740992, "status": "open"},
    "c": {"id": 1234567890123456789},
}
FILTERS = {
    "id of a": {"id": 9007199254740993},
    "id of c": {"id": 1234567890123456789},
    "status not done": {"status": {"$ne": "done"}},
}


def found(store):
    for key, value in ITEMS.items():
        store.put(("items",), key, value)
    assert all(store.get(("items",), key).value == value for key, value in ITEMS.items())
    return ["".join(sorted(item.key for item in store.search(("items",), filter=f))) for f in FILTERS.values()]


memory = found(InMemoryStore())
with SqliteStore.from_conn_string(":memory:") as store:
    store.setup()
    sqlite = found(store)
print("; ".join(f"{n}: memory {m or 'none'}, sqlite {s or 'none'}" for n, m, s in zip(FILTERS, memory, sqlite)))
raise SystemExit((memory, sqlite) != (["a", "c", "bc"], ["b", "", "b"]))
PYTHON
cd "$folder" && env/bin/python -W ignore check.py
