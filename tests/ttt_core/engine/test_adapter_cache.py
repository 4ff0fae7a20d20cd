"""The adapter cache: lookup by key, bounds on memory and disk, concurrent threads and processes."""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from autottt.controller.cli.main import app
from autottt.strategies.base import run
from autottt.strategies.registry import get_strategy
from autottt.ttt_core.engine import adapter_cache
from autottt.ttt_core.engine.adapter_cache import ABANDONED_AFTER, AdapterCache, _entry_name
from autottt.ttt_core.engine.adapter_plan import AdapterPlan, TrainingExamples
from autottt.ttt_core.errors import BaseChangedError, ModelError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora.adapter import FORMAT, Adapter, _checksum
from autottt.ttt_core.lora.weights import LoraWeights
from autottt.ttt_core.model.context_window import ContextWindow
from autottt.ttt_core.model.loading import wrap_model
from autottt.ttt_core.tasks.augmentation import leave_one_out
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer
from tests.ttt_core.lora.adapters import QUICK, adapter, same


def test_another_process_loads_an_adapter_by_an_equal_key_and_base(tmp_path: Path) -> None:
    key = ("ttt", QUICK, 3, ("text", "é"))
    AdapterCache(folder=tmp_path).put(key, adapter())
    other = AdapterCache(folder=tmp_path)
    assert same(other.get(("ttt", replace(QUICK), 3, ("text", "é")), "base"), adapter())
    assert other.get(key, "another base") is None
    assert other.get(("ttt", QUICK, 4, ("text", "é")), "base") is None
    assert other.get(("ttt", replace(QUICK, rank=3), 3, ("text", "é")), "base") is None
    other.clear()
    assert same(other.get(key, "base"), adapter()), "files stay when memory is cleared"


@pytest.mark.parametrize("damage", [b"", b"not tensors", None])
def test_a_damaged_file_is_ignored_and_overwritten(damage: bytes | None, tmp_path: Path) -> None:
    AdapterCache(folder=tmp_path).put("key", adapter())
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-7] if damage is None else damage)
    cache = AdapterCache(folder=tmp_path)
    assert cache.get("key", "base") is None
    cache.put("key", adapter())
    assert same(AdapterCache(folder=tmp_path).get("key", "base"), adapter())


def test_a_file_with_any_flipped_bit_is_ignored(tmp_path: Path) -> None:
    AdapterCache(folder=tmp_path).put("key", adapter())
    (file,) = tmp_path.glob("*.safetensors")
    content = file.read_bytes()
    for place in [*range(0, len(content), 41), len(content) - 1]:
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        loaded = AdapterCache(folder=tmp_path).get("key", "base")
        assert loaded is None or same(loaded, adapter()), f"byte {place}: read as another adapter"
    assert place == len(content) - 1
    assert loaded is None, "the last byte belongs to a weight"
    with pytest.raises(ModelError, match=r"safetensors: cannot be read as an adapter \(ValueError: the checksum"):
        Adapter.load(file)


@pytest.mark.parametrize(
    "metadata_change",
    [
        {"recipe": []}, {"recipe": None}, {"cross_validation": 3}, {"cross_validation": [1]}, {"training": None},
        {"training": {}}, {"scaling": ()}, None,
    ],
    ids=str,
)  # fmt: skip
def test_a_file_with_invalid_metadata_is_ignored(metadata_change: dict[str, Any] | None, tmp_path: Path) -> None:
    AdapterCache(folder=tmp_path).put("key", adapter())
    (file,) = tmp_path.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a mapping)
        original = json.loads(opened.metadata()["adapter"])
    text = json.dumps([]) if metadata_change is None else json.dumps({**original, **metadata_change})
    if metadata_change == {"scaling": ()}:
        del tensors["layers.0.q.up"]
    save_file(tensors, file, metadata={"format": str(FORMAT), "adapter": text, "checksum": _checksum(text, tensors)})
    cache = AdapterCache(folder=tmp_path)
    assert cache.get("key", "base") is None
    assert cache.most_recent(3, lambda _: True) == []
    with pytest.raises(ModelError, match="cannot be read as an adapter"):
        Adapter.load(file)


def test_files_of_another_format_are_ignored_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    AdapterCache(folder=tmp_path).put("key", adapter())
    monkeypatch.setattr("autottt.ttt_core.lora.adapter.FORMAT", FORMAT + 1)
    monkeypatch.setattr(adapter_cache, "FORMAT", FORMAT + 1)
    monkeypatch.setattr(adapter_cache, "_SUFFIX", f"-v{FORMAT + 1}")
    with caplog.at_level(logging.WARNING, "autottt"):
        cache = AdapterCache(folder=tmp_path)
    (message,) = caplog.messages
    assert f"1 adapters have another file format than {FORMAT + 1}" in message
    assert cache.get("key", "base") is None
    assert cache.most_recent(3, lambda _: True) == []
    (file,) = tmp_path.glob("*.safetensors")
    with pytest.raises(ModelError, match=rf"its format is {FORMAT}; this version reads format {FORMAT + 1}: train"):
        Adapter.load(file)


def test_the_least_recently_used_adapters_are_evicted_from_memory_and_disk(tmp_path: Path) -> None:
    size = adapter().weights.nbytes
    cache = AdapterCache(memory_bytes=2 * size, folder=tmp_path, disk_bytes=10**9)
    for name in "abc":
        cache.put(name, adapter())
    for file in tmp_path.glob("*.safetensors"):
        os.utime(file, (time.time() - 1000,) * 2)
    file_size = next(tmp_path.glob("*.safetensors")).stat().st_size
    assert len(cache._entries) == 2
    for age, name in enumerate("bca"):  # b is the least recently used
        cache.clear()
        assert cache.get(name, "base")
        file = tmp_path / f"{_entry_name(name, 'base')}.safetensors"
        assert time.time() - file.stat().st_mtime < 5, "a read marks the file as used"
        os.utime(file, (time.time() - 100 + age,) * 2)
    cache.disk_bytes = 3 * file_size + 10
    cache.put("d", adapter())
    fresh = AdapterCache(folder=tmp_path)
    assert [bool(fresh.get(name, "base")) for name in "abcd"] == [True, False, True, True]


def test_a_single_adapter_above_the_bounds_is_still_cached(tmp_path: Path) -> None:
    cache = AdapterCache(memory_bytes=1, folder=tmp_path, disk_bytes=1)
    cache.put("a", adapter())
    cache.put("b", adapter(1))
    assert same(cache.get("b", "base"), adapter(1))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_only_abandoned_partial_files_are_deleted(tmp_path: Path) -> None:
    old, new = (tmp_path / f".{_entry_name(key, 'base')}.safetensors.1.partial" for key in "xy")
    old.write_bytes(b"x")
    new.write_bytes(b"y")
    os.utime(old, (time.time() - ABANDONED_AFTER - 60,) * 2)
    AdapterCache(folder=tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == [new.name]


def test_a_file_that_was_renamed_to_another_key_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = AdapterCache(folder=tmp_path)
    cache.put("a", adapter(0))
    cache.put("b", adapter(1))
    one, other = (tmp_path / f"{_entry_name(key, 'base')}.safetensors" for key in "ab")
    one.rename(tmp_path / "x")
    other.rename(one)
    (tmp_path / "x").rename(other)
    fresh = AdapterCache(folder=tmp_path)
    assert fresh.get("a", "base") is None
    assert fresh.get("b", "base") is None
    assert fresh.most_recent(2, lambda _: True) == []
    assert "a renamed adapter file is not used" in caplog.text
    assert [entry.problem != "" for entry in adapter_cache.cached_files(tmp_path)] == [True, True]


def test_the_bound_of_the_disk_deletes_no_file_that_the_cache_did_not_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others = [tmp_path / name for name in ("model.safetensors", "a-v2.safetensors", ".weights.partial")]
    for file in others:
        file.write_bytes(bytes(1000))
        os.utime(file, (1, 1))
    with caplog.at_level(logging.WARNING, "autottt"):
        cache = AdapterCache(folder=tmp_path, disk_bytes=1)
        for seed in range(3):
            cache.put(seed, adapter(seed))
    assert [file for file in others if not file.exists()] == []
    assert not caplog.records, "they are no adapters"
    assert len(list(tmp_path.glob("*.safetensors"))) == 3, "of its own files, the newest stays"


def test_a_damaged_file_that_another_process_deletes_meanwhile_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = AdapterCache(folder=tmp_path)
    cache.put("key", adapter())
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(b"damaged")
    real = adapter_cache._load

    def load_then_delete(*args: Any, **named: Any) -> Adapter:
        try:
            return real(*args, **named)
        finally:
            file.unlink()

    monkeypatch.setattr(adapter_cache, "_load", load_then_delete)
    assert adapter_cache.set_aside_damaged(tmp_path) == []
    monkeypatch.setattr(adapter_cache, "_own_files", lambda *_: [file])
    assert adapter_cache.cached_files(tmp_path) == []


def test_folders_and_partial_files_do_not_stop_the_bound_of_the_disk(tmp_path: Path) -> None:
    adapter().save(tmp_path / "size")
    size = (tmp_path / "size").stat().st_size
    (tmp_path / f"{_entry_name('folder', 'base')}.safetensors").mkdir()
    cache = AdapterCache(folder=tmp_path, disk_bytes=int(3.5 * size))
    new, old = (tmp_path / f".{_entry_name(key, 'base')}.safetensors.1.partial" for key in "ab")
    new.write_bytes(bytes(size))
    old.write_bytes(b"x")
    os.utime(old, (time.time() - ABANDONED_AFTER - 60,) * 2)
    for key in range(6):
        cache.put(key, adapter(key))
    files = [f for f in tmp_path.glob("*.safetensors") if f.is_file()]
    assert len(files) == 2, "a partial file that another process writes counts"
    assert not old.exists()


def test_a_check_sets_damaged_files_aside_and_says_why(tmp_path: Path) -> None:
    cache = AdapterCache(folder=tmp_path)
    cache.put("a", adapter(0))
    cache.put("b", adapter(1))
    damaged, sound = (tmp_path / f"{_entry_name(key, 'base')}.safetensors" for key in "ab")
    damaged.write_bytes(b"x")
    (entry,) = adapter_cache.set_aside_damaged(tmp_path)
    assert entry.file == damaged
    assert "cannot be read as an adapter" in entry.problem
    (left,) = adapter_cache.cached_files(tmp_path)
    assert (left.file, left.key, left.base_hash, left.problem) == (sound, sound.stem, "base", "")
    assert left.size == sound.stat().st_size
    assert adapter_cache.delete_cached(tmp_path) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_named_and_stops_nothing(tmp_path: Path) -> None:
    cache = AdapterCache(folder=tmp_path)
    cache.put("a", adapter())
    names = [f"{number:040x}-v{FORMAT}.safetensors" for number in range(4)]
    folder, loop, dangling, pipe = (tmp_path / name for name in names)
    folder.mkdir()
    loop.symlink_to(loop)
    dangling.symlink_to(tmp_path / "nowhere")
    os.mkfifo(pipe)
    cache.clear()
    assert len(cache.most_recent(9, lambda _: True)) == 1
    problems = {entry.file for entry in adapter_cache.cached_files(tmp_path) if entry.problem}
    assert problems == {folder, loop, pipe}
    assert {entry.file for entry in adapter_cache.set_aside_damaged(tmp_path)} == problems
    assert [entry.problem for entry in adapter_cache.cached_files(tmp_path)] == [""]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("past_the_counter", [False, True])
def test_an_adapter_of_a_changed_base_is_never_cached(past_the_counter: bool, task: Task, tmp_path: Path) -> None:
    cache = AdapterCache(folder=tmp_path)
    learner = Learner(wrap_model(tiny_model("llama"), tiny_tokenizer()), adapters=cache)
    plan = AdapterPlan("key", task, QUICK, 0, lambda: TrainingExamples([leave_one_out(task)]))
    with torch.no_grad(), learner.guarded.full_proofs():
        weight = next(learner.loaded.model.parameters())
        (weight.data if past_the_counter else weight).view(-1)[-1].add_(1)
        with pytest.raises(BaseChangedError):
            learner.adapters.get_or_train(plan)
    assert list(tmp_path.iterdir()) == []
    assert cache.clear() == []


def use_cache(folder: Path, bound: int, seed: int) -> list[bool]:
    """Writes and reads eight keys in a folder that holds three; returns whether each read was a hit."""
    cache, draw, hits = AdapterCache(folder=folder, disk_bytes=bound), random.Random(seed), []
    for _ in range(40):
        write_key, read_key = draw.randrange(8), draw.randrange(8)
        cache.put(write_key, adapter(write_key))
        cache.clear()
        cached = cache.get(read_key, "base")
        assert cached is None or same(cached, adapter(read_key))
        hits.append(cached is not None)
    return hits


@pytest.fixture
def bound(tmp_path: Path) -> int:
    """Bytes for three files and a half."""
    adapter().save(tmp_path / "one")
    return int(3.5 * (tmp_path / "one").stat().st_size)


def within(folder: Path, bound: int) -> bool:
    """Whether the folder holds complete files of the eight adapters, one to three of them, within the bound."""
    files = list(folder.iterdir())
    complete = all(any(same(Adapter.load(f), adapter(n)) for n in range(8)) for f in files)
    return complete and 0 < len(files) <= 3 and sum(f.stat().st_size for f in files) <= bound


def test_threads_that_write_to_one_folder_leave_complete_files_within_the_bound(tmp_path: Path, bound: int) -> None:
    with ThreadPoolExecutor(4) as pool:
        hits = list(pool.map(lambda seed: use_cache(tmp_path / "kept", bound, seed), range(4)))
    assert all(any(mine) and not all(mine) for mine in hits), "some adapters are cached and some evicted"
    assert within(tmp_path / "kept", bound)


WRITER = """
import sys
sys.path.insert(0, tests)
from test_adapter_cache import use_cache
barrier.wait(120)
hits = use_cache(folder, bound, seed)
assert any(hits) and not all(hits), hits
"""


def test_processes_that_write_to_one_folder_leave_complete_files_within_the_bound(
    tmp_path: Path, bound: int, forkserver: ForkServerContext
) -> None:
    shared = {"tests": str(Path(__file__).parent), "folder": tmp_path / "kept", "bound": bound}
    shared["barrier"] = forkserver.Barrier(3)  # all start writing when the last is ready
    writers = [forkserver.Process(target=exec, args=(WRITER, {**shared, "seed": seed})) for seed in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert within(tmp_path / "kept", bound)


@pytest.fixture
def frequent_thread_switches() -> Iterator[None]:
    """Threads are switched after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("frequent_thread_switches")
def test_threads_may_share_a_cache() -> None:
    adapters = [adapter(n) for n in range(8)]
    cache = AdapterCache(memory_bytes=3 * adapters[0].weights.nbytes)

    def mix(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(500):
            n = draw.randrange(8)
            cache.put(n, adapters[n])
            assert cache.get(n, "base") in (None, adapters[n])
            assert len(cache.most_recent(3, lambda _: True)) <= 3
            if n == 0:
                cache.clear()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(mix, range(4)))
    assert len(cache.clear()) <= 3


def test_a_deleted_folder_is_reported_once_and_memory_is_still_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = AdapterCache(folder=tmp_path / "kept")
    (tmp_path / "kept").rmdir()
    with caplog.at_level(logging.WARNING, "autottt"):
        for name in "ab":
            cache.put(name, adapter())
            assert same(cache.get(name, "base"), adapter())
    (message,) = caplog.messages
    assert f"adapters cannot be saved in {tmp_path / 'kept'} (" in message


def test_a_folder_that_cannot_be_created_is_reported_once_and_memory_is_still_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, "autottt"):
        for folder in (tmp_path / "file", tmp_path / "file" / "kept"):
            cache = AdapterCache(folder=folder)
            cache.put("key", adapter())
            assert same(cache.get("key", "base"), adapter())
            assert cache.get("another", "base") is None
            assert len(cache.most_recent(3, lambda _: True)) == 1
    assert len(caplog.messages) == 2, "one for each folder"


def test_a_cached_adapter_is_specific_to_the_prompt_format(tmp_path: Path, task: Task, make_plan: Any) -> None:
    def learner(prompt_format: str) -> Learner:
        model = wrap_model(tiny_model("llama"), tiny_tokenizer(), prompt_format=prompt_format)
        return Learner(model, adapters=AdapterCache(folder=tmp_path))

    plan = make_plan("key", leave_one_out(task), QUICK)
    assert learner("compact").base_hash == learner("standard").base_hash
    assert not learner("compact").adapters.get_or_train(plan)[1]
    assert learner("compact").adapters.has_adapter(plan)
    assert not learner("standard").adapters.has_adapter(plan)
    assert not learner("standard").adapters.get_or_train(plan)[1]


@pytest.mark.usefixtures("one_thread")
def test_an_adapter_is_reused_in_its_own_scope_only(tmp_path: Path, task: Task, make_plan: Any) -> None:
    def learner() -> Learner:
        return Learner(wrap_model(tiny_model("llama"), tiny_tokenizer()), adapters=AdapterCache(folder=tmp_path))

    plan, first = make_plan("key", leave_one_out(task), QUICK), learner()
    with first.adapters.scoped("one"):
        trained, from_cache = first.adapters.get_or_train(plan)
        assert not from_cache
        assert trained.scope == "one"
    for each in (first, learner()):
        assert not each.adapters.has_adapter(plan), "the empty scope is one like all others"
        with each.adapters.scoped("two"):
            assert not each.adapters.has_adapter(plan)
            assert each.adapters.nearest(task, QUICK, 4) is None
        with each.adapters.scoped("one"):
            assert each.adapters.has_adapter(plan)
        assert each.adapters.scope == ""


@pytest.mark.usefixtures("one_thread")
def test_prefetched_adapters_and_warm_starts_stay_in_their_scope(task: Task, make_plan: Any) -> None:
    learner = Learner(wrap_model(tiny_model("llama"), tiny_tokenizer()), adapters=AdapterCache())
    plan = make_plan("key", leave_one_out(task), QUICK)
    with learner.adapters.scoped("one"):
        assert len(learner.adapters.prefetch([plan])) == 1
    with learner.adapters.scoped("two"):
        assert not learner.adapters.has_adapter(plan)
        assert len(learner.adapters.prefetch([plan])) == 1
    learner.adapters.release_prefetched()
    scopes = [kept.scope for kept in learner.adapters.cache.most_recent(9, lambda kept: True)]
    assert sorted(scopes) == ["one", "two"]


def test_each_scope_keeps_its_most_recent_adapters_only(tmp_path: Path) -> None:
    cache = AdapterCache(folder=tmp_path, per_scope=2)
    for scope in ("one", "two"):
        for number in range(3):
            cache.put((scope, number), replace(adapter(), scope=scope))
    for scope in ("one", "two"):
        kept = [cache.get((scope, number), "base") is not None for number in range(3)]
        assert kept == [False, True, True]
    assert len(list(tmp_path.glob("*.safetensors"))) == 4


@pytest.mark.parametrize("memory_bytes", [1, 1 << 27])
def test_the_adapters_of_a_scope_are_bounded_in_the_folder_whether_or_not_they_are_in_memory(
    tmp_path: Path, memory_bytes: int
) -> None:
    def names(count: int, scope: str = "one", base: str = "base") -> list[Path]:
        return [tmp_path / f"{_entry_name((scope, number), base)}.safetensors" for number in range(count)]

    others = AdapterCache(folder=tmp_path)
    others.put(("two", 0), replace(adapter(), scope="two"))
    for number in range(4):
        others.put(("one", number), replace(adapter(), scope="one", base_hash="another base"))
    unbounded = AdapterCache(folder=tmp_path)
    for number in range(4):
        unbounded.put(("one", number), replace(adapter(), scope="one"))
    for age, file in enumerate(names(4)):
        os.utime(file, (time.time() - 1000 + age,) * 2)
    (tmp_path / f"{'0' * 40}-v{FORMAT}.safetensors").write_bytes(b"damaged")
    cache = AdapterCache(folder=tmp_path, per_scope=2, memory_bytes=memory_bytes)
    assert cache.get(("one", 0), "base")
    cache.put(("one", 4), replace(adapter(), scope="one"))
    assert [file.exists() for file in names(5)] == [True, False, False, False, True]
    cache.put(("one", 3), replace(adapter(), scope="one"))
    assert [file.exists() for file in names(5)] == [False, False, False, True, True]
    assert all(file.exists() for file in [*names(1, "two"), *names(4, base="another base")])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["ttt_in_context", "ttt_crossfit"])
def test_a_task_with_a_cached_adapter_is_answered_without_training(
    name: str, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learner() -> Learner:
        model = wrap_model(tiny_model("llama"), tiny_tokenizer(), recipes={name: replace(QUICK, max_steps=3)})
        return Learner(model, adapters=AdapterCache(folder=tmp_path))

    monkeypatch.setattr(ContextWindow, "max_new_tokens", lambda self, task: 4)
    first = run(get_strategy(name), learner(), task)
    for method in ("adapt", "cross_validate"):
        monkeypatch.setattr(Learner, method, lambda *_, **__: pytest.fail("trained again"))
    again = run(get_strategy(name), learner(), replace(task, query=task.query))
    assert again.from_cache
    assert (again.value, again.text, again.cross_validation) == (first.value, first.text, first.cross_validation)
    assert again.cost.backward_tokens == 0 < first.cost.backward_tokens


def test_the_command_line_saves_and_reuses_adapters(tmp_path: Path) -> None:
    line = {
        "id": "t", "dataset": "d", "family": "f", "kind": "list",
        "demonstrations": [{"input": [i], "output": [i, i]} for i in range(3)],
        "queries": [{"input": [7], "output": [7, 7]}],
    }  # fmt: skip
    (tmp_path / "tasks.jsonl").write_text(json.dumps(line) + "\n")
    words = [
        "solve",
        str(tmp_path / "tasks.jsonl"),
        "--strategy",
        "ttt_in_context",
        "--adapters",
        str(tmp_path / "kept"),
    ]
    first, again = (json.loads(CliRunner().invoke(app, words).stdout) for _ in range(2))
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 1
    assert again["answer"] == first["answer"]
    assert again["cost"]["backward_tokens"] == 0 < first["cost"]["backward_tokens"]


def test_most_recent_searches_memory_and_then_the_folder(tmp_path: Path) -> None:
    writer = AdapterCache(folder=tmp_path)
    for n, kind in enumerate(["list", "grid", "list", "list"]):
        writer.put(n, replace(adapter(n), kind=kind))
        for at, file in enumerate(sorted(tmp_path.glob("*.safetensors"), key=lambda f: f.stat().st_mtime)):
            os.utime(file, (at, at))
    pairs = zip(writer.most_recent(2, is_list), (3, 2), strict=True)
    assert all(same(a, replace(adapter(n), kind="list")) for a, n in pairs)
    reader = AdapterCache(folder=tmp_path)
    reader.put("mine", replace(adapter(9), kind="list"))
    recent = reader.most_recent(2, is_list)
    assert same(recent[0], replace(adapter(9), kind="list"))
    assert len(recent) == 2
    assert len(AdapterCache(folder=tmp_path).most_recent(9, is_list)) == 4
    assert AdapterCache().most_recent(3, is_list) == []


def is_list(one: Adapter) -> bool:
    return one.kind == "list"


def test_the_nearest_adapter_gives_the_demonstrations_the_highest_likelihood(task: Task) -> None:
    learner = Learner(wrap_model(tiny_model("llama"), tiny_tokenizer()))
    recipe = replace(QUICK, max_steps=30, learning_rate=1e-2, batch_size=4)
    assert learner.adapters.nearest(task, recipe, 8) is None, "the cache is empty"
    examples = [task.leave_out(i) for i in range(len(task.demonstrations))]
    good = learner.adapt(examples, recipe)
    names = good.weights.pairs
    bad = replace(good, weights=LoraWeights({n: (a, -3 * b) for n, (a, b) in names.items()}, good.weights.scaling))
    learner.adapters.cache.put("bad", bad)
    assert learner.adapters.nearest(task, recipe, 8) is None, "the base does better"
    learner.adapters.cache.put("good", good)
    assert learner.adapters.nearest(task, recipe, 8) is good
    assert learner.adapters.nearest(task, replace(recipe, rank=3), 8) is None
    assert learner.adapters.nearest(replace(task, kind="grid1d"), recipe, 8) is None
    learner.adapters.cache.put("bad again", bad)
    assert learner.adapters.nearest(task, recipe, 1) is None, "only the most recently used adapter is compared"


def test_reading_from_memory_marks_the_file_as_recently_used(tmp_path: Path) -> None:
    cache = AdapterCache(folder=tmp_path)
    for name in "ab":
        cache.put(name, adapter())
    first, second = sorted(tmp_path.glob("*.safetensors"), key=lambda f: f.stat().st_mtime)
    for file in (first, second):
        os.utime(file, (1, 1))
    assert cache.get("a", "base") is cache._entries[first.stem][1]
    assert first.stat().st_mtime > second.stat().st_mtime == 1


def test_a_cached_adapter_is_specific_to_the_tokenizer(task: Task, make_plan: Any) -> None:
    cache = AdapterCache()
    model = tiny_model("llama")
    one, other = (Learner(wrap_model(model, tiny_tokenizer(bos=bos)), adapters=cache) for bos in (True, False))
    plan = make_plan("key", leave_one_out(task), QUICK)
    trained, from_cache = one.adapters.get_or_train(plan)
    assert not from_cache
    assert one.adapters.get_or_train(plan) == (trained, True)
    assert one.adapters.has_adapter(plan)
    assert not other.adapters.has_adapter(plan)


def test_prefetched_adapters_are_bounded_in_memory(task: Task, make_plan: Any) -> None:
    model = tiny_model("llama")
    size = Learner.wrap(model, tiny_tokenizer()).adapt(leave_one_out(task), QUICK).weights.nbytes
    learner = Learner(wrap_model(model, tiny_tokenizer()), memory_bytes=4 * 3 * size + 16)
    plans = [make_plan(key, leave_one_out(task), QUICK, seed) for seed, key in enumerate("abcdef")]
    learner.adapters.prefetch(plans)
    assert [learner.adapters.has_adapter(plan) for plan in plans] == [True] * 3 + [False] * 3
