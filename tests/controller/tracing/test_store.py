"""The store of traces: what it returns, its bounds, its permissions, and processes that share it."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import stat
import threading
import time
import zlib
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Group
from rich.table import Table

from autottt.controller.cli.trace_display import show_list, show_statistics
from autottt.controller.tracing.statistics import statistics_of
from autottt.controller.tracing.store import Filter, TraceStore
from autottt.controller.tracing.trace import TRACE_VERSION, Trace
from autottt.ttt_core.errors import TraceError


def trace_of(number: int, *, seconds: float = 0.1, age: float = 0.0, strategy: str = "in_context", text: str = ""):
    """A trace of a run that measured, decided and answered; `age` in days."""
    when = datetime.now(UTC) - timedelta(days=age)
    nodes = [
        {"name": "measure", "at": 0, "seconds": seconds, "status": "ok", "attributes": {"node": "measure"}},
        {
            "name": "decide", "at": 0, "seconds": 0.0, "status": "ok",
            "attributes": {"node": "decide", "decision": {"strategy": strategy}},
        },
        {
            "name": "judge", "at": 0, "seconds": 0.0, "status": "ok",
            "attributes": {"node": "judge", "verdict": {"action": "accept"}},
        },
    ]  # fmt: skip
    attributes = {
        "id": f"{number:012x}", "task": {"id": f"task {number}", "kind": "list", "text": text},
        "result": {"status": "answered", "strategy": strategy, "right": number % 2 == 0, "cost": {"seconds": seconds}},
    }  # fmt: skip
    root = {"name": "run", "at": 0, "seconds": seconds, "status": "ok", "attributes": attributes, "children": nodes}
    plain = {"version": TRACE_VERSION, "id": f"{number:012x}", "time": when.isoformat(), "content": True, "root": root}
    return Trace(plain)


@pytest.fixture
def store(tmp_path) -> TraceStore:
    return TraceStore(tmp_path / "folder" / "traces.sqlite")


def test_a_trace_is_read_as_it_was_written(store):
    trace = trace_of(7)
    store.write(trace)
    assert store.get("000000000007").plain == trace.plain
    assert store.get("last").id == trace.id
    (summary,) = store.summaries()
    assert (summary.task, summary.kind, summary.strategy, summary.is_right) == ("task 7", "list", "in_context", False)
    assert summary.stages["measure"] == pytest.approx(0.1)


def test_traces_are_found_by_the_beginning_of_their_id(store):
    store.write(trace_of(0xA00000000001))
    store.write(trace_of(0xB00000000002))
    assert store.get("a").id == "a00000000001"
    with pytest.raises(TraceError, match="no trace c"):
        store.get("c")
    store.write(trace_of(0xA00000000003))
    with pytest.raises(TraceError, match="several"):
        store.get("a")


def test_filters_select_traces(store):
    for number in range(4):
        store.write(trace_of(number, seconds=number, age=number, strategy="in_context" if number else "zero_shot"))
    assert [s.task for s in store.summaries()] == ["task 0", "task 1", "task 2", "task 3"]
    assert [s.task for s in store.summaries(Filter(wrong=True))] == ["task 1", "task 3"]
    assert [s.task for s in store.summaries(Filter(slower_than=1.5))] == ["task 2", "task 3"]
    assert [s.task for s in store.summaries(Filter(strategy="zero_shot"))] == ["task 0"]
    assert [s.task for s in store.summaries(Filter(since=time.time() - 1.5 * 86400))] == ["task 0", "task 1"]
    assert [s.task for s in store.summaries(Filter(until=time.time() - 1.5 * 86400), limit=1)] == ["task 2"]
    assert not store.summaries(Filter(fallbacks=True))


def test_a_run_that_waited_is_slow_by_its_duration_and_not_by_its_work(store):
    plain = trace_of(1, seconds=1.0).plain
    plain["root"]["seconds"] = 40.0
    plain["root"]["children"].append({"name": "wait", "at": 1, "seconds": 38.5, "status": "ok"})
    store.write(Trace(plain))
    store.write(trace_of(2, seconds=5.0))
    (slow,) = store.summaries(Filter(slower_than=30))
    assert (slow.task, slow.seconds, slow.duration) == ("task 1", 1.0, pytest.approx(40.0))
    assert slow.to_plain()["duration"] == 40.0
    assert statistics_of(store, Filter(slower_than=30)).runs == 1
    assert [summary.task for summary in store.summaries(Filter(slower_than=4))] == ["task 2", "task 1"]
    assert not store.summaries(Filter(slower_than=40))


def test_a_store_of_an_earlier_version_has_the_duration_of_its_runs(store):
    """Its columns are the same; what a run waited for is in the stage `graph`."""
    store.write(trace_of(1))
    with sqlite3.connect(store.file) as connection:
        connection.execute("UPDATE traces SET seconds = 1.1, stages = ?", ['{"graph": 38.9, "measure": 1.1}'])
    connection.close()
    (summary,) = store.summaries(Filter(slower_than=30))
    assert (summary.seconds, summary.duration) == (1.1, pytest.approx(40.0))


def test_only_the_owner_may_read_the_store(store):
    before = os.umask(0)
    try:
        store.write(trace_of(1))
    finally:
        os.umask(before)
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in store.file.parent.iterdir())
    assert stat.S_IMODE(store.file.parent.stat().st_mode) == 0o700


def test_old_traces_are_deleted(store):
    store.write(trace_of(1, age=31))
    store.write(trace_of(2, age=29))
    store.write(trace_of(3))
    assert [s.task for s in store.summaries()] == ["task 3", "task 2"]


def test_the_file_stays_within_its_bound_and_keeps_the_newest(tmp_path):
    store = TraceStore(tmp_path / "traces.sqlite", max_bytes=400_000)
    for number in range(200):
        store.write(trace_of(number, text=os.urandom(4000).hex()))
        assert store.file.stat().st_size <= 400_000 + 2 * 8192
    kept = [s.task for s in store.summaries()]
    assert kept == [f"task {n}" for n in range(199, 199 - len(kept), -1)]
    assert len(kept) > 40
    with pytest.raises(TraceError, match="not stored"):
        store.write(trace_of(999, text=os.urandom(40_000).hex()))


WRITER = """
from autottt.controller.tracing.store import TraceStore
import importlib.util, sys
spec = importlib.util.spec_from_file_location("writer_helpers", HELPERS)
helpers = importlib.util.module_from_spec(spec); spec.loader.exec_module(helpers)
store = TraceStore(FILE)
for number in range(BEGIN, BEGIN + 50):
    store.write(helpers.trace_of(number))
"""


def test_several_processes_write_to_one_store(store, forkserver):
    variables = [{"FILE": str(store.file), "HELPERS": __file__, "BEGIN": 100 * p} for p in range(3)]
    processes = [forkserver.Process(target=exec, args=(WRITER, each)) for each in variables]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(store.summaries()) == 150


@pytest.mark.parametrize("use", ["write", "read"])
def test_a_store_that_another_process_makes_while_it_is_opened_is_read_as_it_is_before_or_after(
    store, monkeypatch, use
):
    """The other one writes between the read of the version and the read of the tables, where it can."""
    others = []

    def make(statement):
        if "sqlite_master" in statement and not others:
            others.append(threading.Thread(target=TraceStore(store.file).write, args=[trace_of(2)]))
            others[0].start()
            others[0].join(0.5)

    def connect(*arguments, **options):
        connection = connect_to_database(*arguments, **options)
        if threading.current_thread() is threading.main_thread():
            connection.set_trace_callback(make)
        return connection

    store.file.parent.mkdir(parents=True, exist_ok=True)
    store.file.touch()
    connect_to_database = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", connect)
    if use == "write":
        store.write(trace_of(1))
    else:
        with pytest.raises(TraceError, match="there are no traces"):
            store.summaries()
    others[0].join()
    expected = {"task 1", "task 2"} if use == "write" else {"task 2"}
    assert {s.task for s in TraceStore(store.file).summaries()} == expected


def test_a_new_store_waits_for_another_process_that_makes_it_too(store):
    store.file.parent.mkdir(parents=True, exist_ok=True)
    other = sqlite3.connect(store.file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.2, other.execute, ["COMMIT"])
    timer.start()
    store.write(trace_of(1))
    timer.join()
    other.close()
    assert [s.task for s in store.summaries()] == ["task 1"]


def test_a_store_that_cannot_be_written_or_read_says_why(tmp_path):
    (tmp_path / "damaged.sqlite").write_bytes(b"no database" * 1000)
    damaged = TraceStore(tmp_path / "damaged.sqlite")
    with pytest.raises(TraceError, match=r"damaged\.sqlite: traces cannot be stored"):
        damaged.write(trace_of(1))
    with pytest.raises(TraceError, match=r"damaged\.sqlite: the traces cannot be read"):
        damaged.summaries()
    assert (tmp_path / "damaged.sqlite").read_bytes() == b"no database" * 1000
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceError, match="cannot be stored"):
        TraceStore(tmp_path / "file" / "traces.sqlite").write(trace_of(1))
    with pytest.raises(TraceError, match="there are no traces"):
        TraceStore(tmp_path / "none.sqlite").summaries()


def test_a_store_of_another_version_is_refused_and_unchanged(store):
    store.write(trace_of(1))
    store.close()
    with sqlite3.connect(store.file) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(TraceError, match="version 99"):
        TraceStore(store.file).write(trace_of(2))
    with sqlite3.connect(store.file) as connection:
        assert connection.execute("SELECT count(*) FROM traces").fetchone() == (1,)


def foreign(file, version=0):
    """A database of another program, which only this user's group may read as well."""
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE notes (text TEXT)")
        connection.execute("INSERT INTO notes VALUES ('precious')")
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    file.chmod(0o640)
    return file


@pytest.mark.parametrize("version", [0, 1, 7])
def test_a_database_of_another_program_is_refused_and_unchanged(tmp_path, version):
    file = foreign(tmp_path / "notes.db", version)
    before = file.read_bytes()
    for call in (TraceStore.summaries, TraceStore.size, TraceStore.clear, lambda store: store.write(trace_of(1))):
        with pytest.raises(TraceError, match=r"notes\.db: expected a store of traces.*SQLite file of another program"):
            call(TraceStore(file))
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (before, 0o640)
    assert [each.name for each in tmp_path.iterdir()] == ["notes.db"]


def test_reading_makes_no_store_and_writing_makes_one_in_an_empty_file(tmp_path):
    file = tmp_path / "empty.sqlite"
    file.touch(0o644)
    with pytest.raises(TraceError, match="there are no traces"):
        TraceStore(file).summaries()
    assert (file.stat().st_size, stat.S_IMODE(file.stat().st_mode)) == (0, 0o644)
    store = TraceStore(file)
    store.write(trace_of(1))
    assert len(store.summaries()) == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_store_is_read_and_then_written_by_one_object_and_read_while_another_writes(store):
    store.write(trace_of(1))
    other = TraceStore(store.file)
    assert len(other.summaries()) == 1
    store.write(trace_of(2))
    assert len(other.summaries()) == 2
    other.write(trace_of(3))
    assert len(store.summaries()) == len(other.summaries()) == 3


def test_a_store_is_read_where_sqlite_can_make_no_file_beside_it(store, monkeypatch):
    store.write(trace_of(1))
    store.close()
    connect = TraceStore._connect

    def fails(self, mode):
        if mode == "mode=ro":
            connection = sqlite3.connect(":memory:")
            connection.set_authorizer(lambda *arguments: sqlite3.SQLITE_DENY)
            return connection
        return connect(self, mode)

    monkeypatch.setattr(TraceStore, "_connect", fails)
    monkeypatch.setattr(sqlite3, "OperationalError", sqlite3.DatabaseError)  # what the authorizer raises
    assert len(TraceStore(store.file).summaries()) == 1


def test_damaged_traces_are_named_and_hide_no_others(store, caplog):
    for number in range(5):
        store.write(trace_of(number))
    with sqlite3.connect(store.file) as connection:
        keys = [key for (key,) in connection.execute("SELECT key FROM traces ORDER BY key")]
        connection.execute("UPDATE bodies SET body = ? WHERE key = ?", (b"torn", keys[0]))
        connection.execute("UPDATE bodies SET body = ? WHERE key = ?", (zlib.compress(b"[1]"), keys[1]))
        connection.execute("DELETE FROM bodies WHERE key = ?", (keys[2],))
        connection.execute("UPDATE traces SET stages = '{' WHERE key = ?", (keys[3],))
    connection.close()
    damaged: list[TraceError] = []
    assert [trace.id[-1] for trace in store.traces(on_damaged=damaged.append)] == ["4", "3"]
    assert [f"trace {2 - n:012x} is damaged" in str(error) for n, error in enumerate(damaged)] == [True] * 3
    assert [len(summary.stages) > 0 for summary in store.summaries()] == [True, False, True, True, True]
    assert "trace 000000000003 is damaged: expected its stages" in caplog.text
    assert statistics_of(store).stages["measure"] == pytest.approx(0.4)
    for number in range(3):
        with pytest.raises(TraceError, match=f"trace {number:012x} is damaged"):
            store.get(f"{number:012x}")
        with pytest.raises(TraceError, match=f"trace {number:012x} is damaged"):
            store.label(f"{number:012x}", {"right": True})
    assert len(list(store.traces())) == 2
    assert "000000000000 is damaged" in caplog.text


DAMAGED_COLUMNS = [
    ("id", None), ("time", "soon"), ("time", None), ("time", 1e300), ("task", b"torn"), ("strategy", None),
    ("status", None), ("seconds", "slow"), ("seconds", None), ("seconds", 9e999), ("fallbacks", "no"),
    ("fallbacks", None), ("is_right", "yes"), ("stages", None), ("bytes", -(2**63)),
]  # fmt: skip


@pytest.mark.parametrize(("column", "value"), DAMAGED_COLUMNS)
def test_a_damaged_column_of_a_trace_hides_no_other_and_its_trace_is_still_read(store, caplog, column, value):
    for number in range(2):
        store.write(trace_of(number, age=1 - number))
    with sqlite3.connect(store.file) as connection:
        connection.execute(f"UPDATE traces SET {column} = ? WHERE id = ?", (value, trace_of(0).id))
    connection.close()
    summaries = store.summaries()
    assert [summary.id for summary in summaries] == [trace_of(1).id]
    assert "is damaged (a column of row 1" in caplog.text
    assert isinstance(show_list(summaries), Table)
    assert isinstance(show_statistics(statistics_of(store)), Group)
    assert store.get("last").id == trace_of(1).id
    assert sorted(trace.id for trace in store.traces()) == [trace_of(0).id, trace_of(1).id]


def test_a_text_that_is_not_utf_8_hides_no_trace(store):
    for number in range(2):
        store.write(trace_of(number))
    with sqlite3.connect(store.file) as connection:
        connection.execute("UPDATE traces SET strategy = CAST(x'ff' AS TEXT) WHERE key = 1")
    connection.close()
    assert [summary.strategy for summary in store.summaries()][1:] == ["\ufffd"]
    assert len(list(store.traces())) == len(store.columns(["strategy"])) == 2


def test_traces_that_are_read_one_by_one_are_those_that_were_listed(store):
    for number in range(2):
        store.write(trace_of(number))
    reader = store.traces()
    newest = next(reader)
    store.clear()
    store.write(trace_of(7))
    assert [newest.id[-1], *reader] == ["1"], "though the new trace has the key of a deleted one"


@pytest.mark.parametrize("stages", ["{", "[1]", "5", "null", '{"measure": "long"}', '{"measure": null}'])
def test_statistics_leave_out_damaged_stages(store, stages):
    for number in range(2):
        store.write(trace_of(number))
    with sqlite3.connect(store.file) as connection:
        connection.execute("UPDATE traces SET stages = ? WHERE id = ?", (stages, trace_of(0).id))
    connection.close()
    assert statistics_of(store).stages["measure"] == pytest.approx(0.1)
    assert len(store.summaries()) == 2
    assert isinstance(show_statistics(statistics_of(store)), Group)


def test_a_store_with_a_damaged_size_stays_within_its_bound(tmp_path):
    store = TraceStore(tmp_path / "traces.sqlite", max_bytes=400_000)
    for number in range(3):
        store.write(trace_of(number, text=os.urandom(4000).hex()))
    with sqlite3.connect(store.file) as connection:
        connection.execute("UPDATE traces SET bytes = 'many' WHERE id = ?", (trace_of(0).id,))
        connection.execute("UPDATE traces SET bytes = NULL WHERE id = ?", (trace_of(1).id,))
    connection.close()
    for number in range(3, 100):
        store.write(trace_of(number, text=os.urandom(4000).hex()))
    assert store.summaries()[0].id == trace_of(99).id


def test_clearing_beside_another_process_deletes_and_warns(store, caplog, monkeypatch):
    monkeypatch.setattr("autottt.controller.tracing.store.BUSY_SECONDS", 0.05)
    store.write(trace_of(1))
    store.close()
    reader = sqlite3.connect(store.file, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM traces").fetchone()
    assert store.clear() == 1
    assert "what they held remains in the file" in caplog.text
    reader.close()
    assert store.summaries() == []
    caplog.clear()
    assert store.clear() == 0
    assert not caplog.records


def test_clearing_deletes_what_was_stored_from_the_file(store):
    store.write(trace_of(1))
    secret = trace_of(2).plain["root"]["attributes"]["task"]["id"].encode()
    store.write(trace_of(2))
    assert store.clear() == 2
    store.close()
    assert secret not in b"".join(file.read_bytes() for file in store.file.parent.iterdir())
    assert store.size()[0] == 0


def test_no_connection_of_a_parent_process_is_used_after_a_fork(store, monkeypatch):
    store.write(trace_of(1))
    opened = store._opened
    monkeypatch.setattr(os, "getpid", lambda: -1)
    store.write(trace_of(2))
    assert store._opened is not None
    assert opened is not None
    assert store._opened[1] is not opened[1]


def remove(file):
    for each in file.parent.glob(f"{file.name}*"):
        each.unlink()


def test_a_store_whose_file_was_removed_is_made_again_and_a_warning_says_so_once(store, caplog):
    for number in range(1, 4):
        store.write(trace_of(number))
        remove(store.file)
    store.write(trace_of(4))
    assert [summary.task for summary in TraceStore(store.file).summaries()] == ["task 4"]
    assert [record.getMessage().count("was removed or replaced") for record in caplog.records] == [1]


def test_a_store_whose_folder_was_removed_is_made_again(store):
    store.write(trace_of(1))
    shutil.rmtree(store.file.parent)
    store.write(trace_of(2))
    assert [summary.task for summary in store.summaries()] == ["task 2"]


def test_traces_are_written_to_and_read_from_the_file_that_replaced_an_open_one(store, tmp_path):
    store.write(trace_of(1))
    reader = TraceStore(store.file)
    assert len(reader.summaries()) == 1
    other = TraceStore(tmp_path / "other.sqlite")
    other.write(trace_of(2))
    other.close()
    remove(store.file)
    other.file.rename(store.file)
    assert [summary.task for summary in reader.summaries()] == ["task 2"]
    store.write(trace_of(3))
    assert {summary.task for summary in TraceStore(store.file).summaries()} == {"task 2", "task 3"}


def test_no_label_is_reported_as_stored_after_the_file_was_removed(store):
    store.write(trace_of(1))
    remove(store.file)
    assert not store.label(trace_of(1).id, {"right": True})


def test_reading_logs_nothing(store, caplog):
    store.write(trace_of(1))
    with caplog.at_level(logging.DEBUG, "autottt"):
        store.summaries()
    assert not caplog.records


def test_statistics_are_those_of_the_runs_that_a_filter_selects(store):
    for number in range(5):
        store.write(trace_of(number, seconds=number, strategy="in_context" if number else "zero_shot"))
    everything, slow = statistics_of(store), statistics_of(store, Filter(slower_than=2.5))
    assert (everything.runs, everything.statuses, everything.accepted) == (5, {"answered": 5}, 0)
    assert everything.stages["measure"] == pytest.approx(10.0)
    first, second = everything.strategies
    assert (first.strategy, first.runs, first.accuracy, first.median_seconds) == ("in_context", 4, 0.5, 2.5)
    assert (second.strategy, second.with_known_answer, second.accuracy) == ("zero_shot", 1, 1.0)
    assert (slow.runs, slow.stages["measure"]) == (2, pytest.approx(7.0))
    assert statistics_of(store, Filter(fallbacks=True)).strategies == ()
    with pytest.raises(ValueError, match="body"):
        store.columns(["body"])
