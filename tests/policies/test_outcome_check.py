"""A store of outcomes survives damaged rows and files: they are named, set aside, and hide no others."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from autottt.policies.csv_import import import_csv
from autottt.policies.outcome_check import check_outcomes
from autottt.policies.outcome_files import VERSION_KEY, journal_line
from autottt.policies.outcomes import Outcome, OutcomeStore
from autottt.ttt_core.errors import PolicyError
from tests.controller.cli.commands import call

OUTCOME = Outcome(
    "t1", "t1", "f", "d", "list", "in_context", 0, "answered", 1.0, 0.1, 10, 1.0, "base", {"a": 0.5}, 1, 2.0,
    losses=(0.5, 0.25), vote_shares={"x": 0.75},
)  # fmt: skip


def numbered(*seeds: int) -> list[Outcome]:
    return [dataclasses.replace(OUTCOME, seed=seed) for seed in seeds]


def plain(**changes: Any) -> dict[str, Any]:
    return {**dataclasses.asdict(OUTCOME), **changes}


def text_line(**changes: Any) -> bytes:
    """A line of a journal without a checksum."""
    return json.dumps({"version": 2, **plain(**changes)}).encode() + b"\n"


def journal(folder: Path, *lines: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "_1-dead.journal.jsonl"
    file.write_bytes(b"".join(lines))
    return file


def sealed(folder: Path, *seeds: int) -> Path:
    store = OutcomeStore(folder)
    for outcome in numbered(*seeds):
        store.append(outcome)
    before = set(folder.glob("*.parquet"))
    store.seal()
    (shard,) = set(folder.glob("*.parquet")) - before
    return shard


INVALID = [
    ("seed", 2**63, "an integer of 64 bits"),
    ("seed", -(2**63), "an integer of 64 bits"),
    ("seed", 2**70, "an integer of 64 bits"),
    ("seed", 1.5, "an integer of 64 bits"),
    ("seed", True, "an integer of 64 bits"),
    ("seed", "1", "an integer of 64 bits"),
    ("seed", None, "an integer of 64 bits"),
    ("token_equivalents", 10**400, "an integer of 64 bits"),
    ("features_version", [], "an integer of 64 bits"),
    ("task_id", "a\ud800", "a text that can be written as UTF-8"),
    ("family", 7, "a text that can be written as UTF-8"),
    ("prompt_format", {}, "a text that can be written as UTF-8"),
    ("status", "done", "one of answered, unreadable"),
    ("status", [], "one of answered, unreadable"),
    ("correct", "yes", "a number from 0 to 1"),
    ("correct", 1.5, "a number from 0 to 1"),
    ("seconds", 10**400, "a finite number"),
    ("seconds", float("nan"), "a finite number"),
    ("seconds", True, "a finite number"),
    ("confidence", None, "a finite number"),
    ("losses", 1.0, "a list of finite numbers"),
    ("losses", "12", "a list of finite numbers"),
    ("losses", [0.5, None], "a list of finite numbers"),
    ("losses", [float("inf")], "a list of finite numbers"),
    ("features", [1], "an object with texts"),
    ("features", {"a": "b"}, "an object with texts"),
    ("features", {"\udfff": 1.0}, "an object with texts"),
    ("features", None, "an object with texts"),
    ("vote_shares", {"a": [[]]}, "an object with texts"),
]


@pytest.mark.parametrize(("field", "value", "expected"), INVALID)
def test_a_value_that_a_store_cannot_hold_is_refused_when_it_is_appended(
    tmp_path: Path, field: str, value: Any, expected: str
) -> None:
    store = OutcomeStore(tmp_path)
    store.append(OUTCOME)
    bad = dataclasses.replace(OUTCOME, **{"seed": 1, field: value})
    with pytest.raises(PolicyError, match=f"cannot be stored: {field}: expected {expected}.*; received "):
        store.append(bad)
    store.append(dataclasses.replace(OUTCOME, seed=2))
    store.seal()
    assert store.read() == numbered(0, 2)
    assert check_outcomes(tmp_path).damages == ()


@pytest.mark.parametrize(("field", "value", "expected"), INVALID)
def test_a_damaged_row_of_a_journal_is_named_and_prevents_neither_reading_nor_sealing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, field: str, value: Any, expected: str
) -> None:
    file = journal(tmp_path, journal_line(plain()), text_line(**{"seed": 1, field: value}), text_line(seed=2))
    store = OutcomeStore(tmp_path)
    assert store.read() == numbered(0, 2)
    assert f"{file}:2: not an outcome ({field}: expected {expected}" in caplog.text
    store.seal()
    assert store.read() == numbered(0, 2)
    (damage,) = check_outcomes(tmp_path, mend=True).damages
    assert (damage.file, damage.row) == (file, 2)
    assert check_outcomes(tmp_path).damages == ()
    store.seal()
    assert OutcomeStore(tmp_path).read() == numbered(0, 2)
    assert not list(tmp_path.glob("*.jsonl"))
    assert (tmp_path / "damaged" / file.name).read_bytes().count(b"\n") == 3, "nothing is deleted"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"\xff\xfe\n", "not JSON"),
        (b"[]\n", r"expected a JSON object; received \[\]"),
        (b"\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "nested too deeply"),
        (b"9" * 5000 + b"\n", "not JSON"),
        (text_line()[:40] + text_line(seed=1), "not JSON"),
        (text_line(seed=1, other=1), "the unknown field 'other'"),
        (text_line(seed=1).replace(b'"seed": 1', b'"seed": 1, "seed": 3'), "'seed' occurs twice"),
        (text_line(seed=1).replace(b', "seed": 1', b""), "seed: expected .* received nothing: the field is missing"),
        (journal_line(plain(seed=1)).replace(b'"seed": 1', b'"seed": 3'), "its checksum is not that of its content"),
        (text_line(seed=1).replace(b'"version": 2', b'"version": "2"'), "version: expected 2; received '2'"),
        (text_line(seed=1).replace(b'"version": 2', b'"version": 3'), "in version 3 of the format"),
        (text_line(correct=0.0), "the key occurs again with other values"),
        (text_line(), "the key occurs again with the same values"),
    ],
)  # fmt: skip
def test_check_names_every_damaged_line_and_mends_the_store(tmp_path: Path, line: bytes, problem: str) -> None:
    file = journal(tmp_path, text_line(), line, text_line(seed=2))
    report = check_outcomes(tmp_path)
    assert (report.outcomes, len(report.damages), report.mended) == (2, 1, ())
    assert re.search(rf"journal\.jsonl:2: .*{problem}", str(report.damages[0]))
    assert file.exists()
    assert check_outcomes(tmp_path, mend=True).mended == report.damages
    assert check_outcomes(tmp_path).damages == ()
    assert OutcomeStore(tmp_path).read() == numbered(0, 2)
    entry = json.loads((tmp_path / "damaged" / "_report.jsonl").read_text())
    assert (entry["file"], entry["row"]) == (file.name, 2)
    assert (tmp_path / "damaged" / entry["moved_to"]).read_bytes() == text_line() + line + text_line(seed=2)


def test_an_incomplete_last_line_is_set_aside(tmp_path: Path) -> None:
    journal(tmp_path, text_line(), b'{"task_id": "t')
    (damage,) = check_outcomes(tmp_path, mend=True).damages
    assert (damage.row, damage.kind) == (2, "torn")
    assert check_outcomes(tmp_path).damages == ()
    assert OutcomeStore(tmp_path).read() == [OUTCOME]


def test_the_journal_of_a_running_writer_stays(tmp_path: Path) -> None:
    store = OutcomeStore(tmp_path)
    store.append(OUTCOME)
    (file,) = tmp_path.glob("*.journal.jsonl")
    file.write_bytes(file.read_bytes() + b"{}\n")
    report = check_outcomes(tmp_path, mend=True)
    assert (len(report.damages), report.mended) == (1, ())
    store.append(dataclasses.replace(OUTCOME, seed=1))
    store.close()
    assert len(check_outcomes(tmp_path, mend=True).mended) == 1
    assert OutcomeStore(tmp_path).read() == numbered(0, 1)


def test_a_row_that_was_sealed_before_its_journal_was_removed_is_sound(tmp_path: Path) -> None:
    sealed(tmp_path, 0)
    journal(tmp_path, text_line())
    assert check_outcomes(tmp_path).damages == ()


def replaced_bytes(shard: Path, old: bytes, new: bytes) -> None:
    """Replaces bytes of a text in a shard that is neither compressed nor protected by checksums."""
    pyarrow.parquet.write_table(
        pyarrow.parquet.read_table(shard), shard, compression="none", use_dictionary=False, write_statistics=False
    )
    data = shard.read_bytes()
    assert data.count(old) == 1
    shard.write_bytes(data.replace(old, new))


def test_a_text_with_bad_bytes_in_a_shard_hides_no_other_row(tmp_path: Path) -> None:
    store = OutcomeStore(tmp_path)
    for seed in range(3):
        store.append(dataclasses.replace(OUTCOME, seed=seed, task_id="marked" if seed == 1 else "t1"))
    store.seal()
    (shard,) = tmp_path.glob("*.parquet")
    replaced_bytes(shard, b"marked", b"mark\xff\xfe")
    assert OutcomeStore(tmp_path).read() == numbered(0, 2)
    (damage,) = check_outcomes(tmp_path, mend=True).damages
    assert "not an outcome" in str(damage)
    assert check_outcomes(tmp_path).damages == ()
    assert OutcomeStore(tmp_path).read() == numbered(0, 2)
    assert (tmp_path / "damaged" / f"_{shard.name}").exists()


@pytest.mark.parametrize("name", ["seed", "task_id", "features", "losses"])
def test_a_shard_with_a_column_of_another_type_is_read_row_by_row(tmp_path: Path, name: str) -> None:
    shard = sealed(tmp_path, 0, 1)
    good = sealed(tmp_path, 2)
    table = pyarrow.parquet.read_table(shard)
    place = table.schema.get_field_index(name)
    pyarrow.parquet.write_table(table.set_column(place, name, pyarrow.array([None, 1.5])), shard)
    sound = {0, 2} if name == "losses" else {2}  # null is an empty list
    assert {outcome.seed for outcome in OutcomeStore(tmp_path).read()} == sound
    report = check_outcomes(tmp_path, mend=True)
    assert {damage.file for damage in report.damages} == {shard}
    assert good.exists()
    assert check_outcomes(tmp_path).damages == ()
    assert {outcome.seed for outcome in OutcomeStore(tmp_path).read()} == sound


def test_pyarrow_reads_a_shard_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of pyarrow that held a Python file while the process ended aborted it, now and then."""
    sealed(tmp_path, 0)
    sources: list[object] = []
    plain = pyarrow.parquet.ParquetFile

    def noted(source: object, **settings: object) -> object:
        sources.append(source)
        return plain(source, **settings)

    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", noted)
    assert check_outcomes(tmp_path).damages == ()
    assert [type(source) for source in sources] == [pyarrow.BufferReader]


@pytest.mark.parametrize("many", ["rows", "losses"])
def test_a_small_shard_of_very_many_values_is_refused_before_they_are_read(tmp_path: Path, many: str) -> None:
    shard, count = sealed(tmp_path, 0), 40_000_000
    table = pyarrow.parquet.read_table(shard)
    if many == "rows":
        names = ["seed"]
        columns = [pyarrow.array(np.broadcast_to(np.int64(0), count))]
    else:
        names = ["losses"]
        columns = [pyarrow.ListArray.from_arrays([0, count], np.zeros(count, np.float32))]
    pyarrow.parquet.write_table(
        pyarrow.table(columns, names).replace_schema_metadata(table.schema.metadata), shard, compression="zstd"
    )
    assert shard.stat().st_size < 1 << 20
    with pytest.raises(PolicyError, match="expected at most 33,554,432 values"):
        OutcomeStore(tmp_path).read()


@pytest.mark.parametrize("damage", ["flipped", "short", "folder", "version", "empty"])
def test_a_damaged_shard_is_named_and_set_aside(tmp_path: Path, damage: str) -> None:
    shard, _ = sealed(tmp_path, 0, 1), sealed(tmp_path, 2)
    data = shard.read_bytes()
    if damage == "version":
        table = pyarrow.parquet.read_table(shard)
        pyarrow.parquet.write_table(table.replace_schema_metadata({VERSION_KEY: "9"}), shard)
    elif damage == "folder":
        shard.unlink()
        shard.mkdir()
    else:
        flipped = bytes([*data[:60], data[60] ^ 1, *data[61:]])
        shard.write_bytes({"flipped": flipped, "short": data[:-20], "empty": b""}[damage])
    with pytest.raises(PolicyError, match=rf"{shard.name}: .*outcomes check .* --mend"):
        OutcomeStore(tmp_path).read()
    journal(tmp_path, text_line(seed=3))
    OutcomeStore(tmp_path).seal()
    report = check_outcomes(tmp_path, mend=True)
    assert [(d.file, d.row) for d in report.mended] == [(shard, None)]
    assert OutcomeStore(tmp_path).read() == numbered(2, 3)


def test_a_table_of_parquet_files_does_not_include_what_was_set_aside(tmp_path: Path) -> None:
    sealed(tmp_path, 0, 1)
    sealed(tmp_path, 2).write_bytes(b"damaged")
    check_outcomes(tmp_path, mend=True)
    assert pyarrow.parquet.read_table(tmp_path)["seed"].to_pylist() == [0, 1]


HEADER = "task,seed,strategy,accuracy,cost\n"
ROW = "t,1,in_context,1,2\n"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (f"t,{2**63},in_context,1,2\n", "seed: expected an integer of 64 bits; received 9223372036854775808"),
        ("t,9" + "0" * 5000 + ",in_context,1,2\n", "expected numbers in seed"),
        ("t,2,in_context,1,2,3\n", r"expected 5 cells \(task, seed, strategy, accuracy, cost\); received 6"),
        ("t,2,in_context,1\n", "expected 5 cells .*; received 4"),
        ("t\udcff,2,in_context,1,2\n", "task_id: expected a text that can be written as UTF-8"),
        ("t,2,in_context,nan,2\n", "an accuracy of 0 to 1"),
        ("t,2,in_context,1,1e999\n", "a cost above 0"),
        ("t,x,in_context,1,2\n", "expected numbers in seed"),
        ("t,1_0,in_context,1,2\n", "expected numbers in seed"),
        ("t,2,in_context,1,1_0\n", "expected numbers in seed"),
        (ROW, "is in line 2 as well"),
    ],
)
def test_a_damaged_row_of_a_table_is_named_and_set_aside(tmp_path: Path, row: str, problem: str) -> None:
    file = tmp_path / "table.csv"
    content = (HEADER + ROW + row + "u,1,in_context,0,3\n").encode("utf-8", "surrogateescape")
    file.write_bytes(content)
    with pytest.raises(PolicyError, match=rf"table\.csv:3: .*{problem}.*outcomes check"):
        import_csv(file)
    (damage,) = check_outcomes(file, mend=True).mended
    assert damage.row == 3
    assert [o.task_id for o in import_csv(file)] == ["t", "u"]
    assert (tmp_path / "damaged" / "_table.csv").read_bytes() == content
    assert check_outcomes(file).damages == ()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (HEADER.replace("cost", "cost,seed") + "t,1,in_context,1,2,3\n", "'seed' twice"),
        (HEADER + "t,1,in_context,1,1e-308\nt,1,other,1,1e308\n", "no finite multiple"),
        (HEADER + "t,1,in_context,1,1.7e308\nt,2,in_context,1,1.7e308\nt,3,other,1,1\n", "no finite multiple"),
        ("\x00", "expected columns"),
        ((HEADER + ROW).replace(",", ";"), "expected columns, separated by commas, .*'task;seed;strategy"),
        (
            "task,seed,strategy,accuracy,fit_seconds,eval_seconds\nt,1,in_context,1,-1,5\n",
            "received 1.0 and -1.0 . 5.0",
        ),
    ],
)
def test_a_table_that_cannot_be_imported_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    file = tmp_path / "table.csv"
    file.write_text(content)
    with pytest.raises(PolicyError, match=problem):
        import_csv(file)


def test_lines_before_the_header_may_be_blank(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("\n\n" + HEADER + ROW)
    assert [o.task_id for o in import_csv(file)] == ["t"]


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for file in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(PolicyError, match="the table cannot be read"):
            import_csv(file)
    with pytest.raises(PolicyError, match="expected the folder of a store, or a CSV file"):
        check_outcomes(tmp_path / "none")


def test_the_command_exits_with_1_for_damage_and_with_0_for_a_sound_store(tmp_path: Path) -> None:
    store = tmp_path / "store"
    journal(store, text_line(), text_line(seed=1, task_id="a\x1b[31m"), text_line(seed=[]))
    code, out, err = call("outcomes", "check", str(store))
    assert code == 1
    assert "2 outcomes can be read; 1 parts are damaged" in out
    assert "journal.jsonl:3: not an outcome (seed: expected" in err
    code, out, _ = call("outcomes", "check", str(store), "--mend")
    assert code == 1
    assert "1 damaged parts were moved to" in out
    code, out, err = call("outcomes", "check", str(store))
    assert (code, err) == (0, "")
    assert "2 outcomes can be read; 0 parts are damaged" in out
