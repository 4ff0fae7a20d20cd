"""Adapters on disk and in memory: found again by the same key, bounded, safe beside other processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from autottt.controller.cli import app
from autottt.strategies.base import get_strategy, run
from autottt.ttt_core.adapters import ABANDONED, Adapter, AdapterCache
from autottt.ttt_core.crossfit import Evidence
from autottt.ttt_core.errors import AdaptationError
from autottt.ttt_core.examples import leave_one_out
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora import LoraWeights
from autottt.ttt_core.model import wrap_model
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks import Task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer
from autottt.ttt_core.training import Training

QUICK = Recipe(rank=2, alpha=4.0, dropout=0.0, steps=2, batch=2, targets=("q_proj", "v_proj"))


def adapter(seed: int = 0, count: int = 1, base: str = "base") -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    pairs = {
        f"layers.{i}.q": (torch.randn(count, 2, 8, generator=draw), torch.randn(count, 8, 2, generator=draw))
        for i in range(2)
    }
    evidence = Evidence((True, False), (True, True), (-1.0, -2.5), (-0.1, -0.2), 4) if count > 1 else None
    training = Training(2, (1.0, 0.5), 0.1, 40, "finished")
    return Adapter(LoraWeights(pairs, 0.5), QUICK, training, base, evidence)


def same(a: Adapter | None, b: Adapter) -> bool:
    assert a is not None
    equal = all(map(torch.equal, a.weights.tensors, b.weights.tensors))
    return equal and replace(a, weights=b.weights) == b and list(a.weights.pairs) == list(b.weights.pairs)


@pytest.mark.parametrize("count", [1, 3])
def test_an_adapter_comes_back_from_its_file_as_it_was(count: int, tmp_path: Path) -> None:
    one = adapter(count=count)
    one.save(tmp_path / "one.safetensors")
    back = Adapter.load(tmp_path / "one.safetensors")
    assert same(back, one)
    assert back.weights.scaling == 0.5
    assert [f.name for f in tmp_path.iterdir()] == ["one.safetensors"]


def test_another_process_finds_it_by_an_equal_key_for_the_same_base_only(tmp_path: Path) -> None:
    key = ("ttt", QUICK, 3, ("text", "é"))
    AdapterCache(folder=tmp_path).put(key, adapter())
    other = AdapterCache(folder=tmp_path)
    assert same(other.get(("ttt", replace(QUICK), 3, ("text", "é")), "base"), adapter())
    assert other.get(key, "another base") is None
    assert other.get(("ttt", QUICK, 4, ("text", "é")), "base") is None
    assert other.get(("ttt", replace(QUICK, rank=3), 3, ("text", "é")), "base") is None
    other.clear()
    assert same(other.get(key, "base"), adapter()), "a folder outlives memory"


@pytest.mark.parametrize("damage", [b"", b"not tensors", None])
def test_a_damaged_file_counts_as_none_and_is_written_anew(damage: bytes | None, tmp_path: Path) -> None:
    AdapterCache(folder=tmp_path).put("key", adapter())
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-7] if damage is None else damage)
    cache = AdapterCache(folder=tmp_path)
    assert cache.get("key", "base") is None
    cache.put("key", adapter())
    assert same(AdapterCache(folder=tmp_path).get("key", "base"), adapter())


def test_memory_and_disk_let_go_of_what_was_used_longest_ago(tmp_path: Path) -> None:
    size = adapter().weights.nbytes
    cache = AdapterCache(memory_bytes=2 * size, folder=tmp_path, disk_bytes=10**9)
    for name in "abc":
        cache.put(name, adapter())
    file_size = next(tmp_path.glob("*.safetensors")).stat().st_size
    assert len(cache._kept) == 2
    for age, name in enumerate("bca"):  # b was used longest ago
        cache.clear()
        assert cache.get(name, "base")
        newest = max(tmp_path.glob("*.safetensors"), key=lambda f: f.stat().st_mtime)
        os.utime(newest, (time.time() - 100 + age,) * 2)
    cache.disk_bytes = 3 * file_size + 10
    cache.put("d", adapter())
    fresh = AdapterCache(folder=tmp_path)
    assert [bool(fresh.get(name, "base")) for name in "abcd"] == [True, False, True, True]


def test_what_is_larger_than_the_bounds_is_still_kept_alone(tmp_path: Path) -> None:
    cache = AdapterCache(memory_bytes=1, folder=tmp_path, disk_bytes=1)
    cache.put("a", adapter())
    cache.put("b", adapter(1))
    assert same(cache.get("b", "base"), adapter(1))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_only_abandoned_parts_of_files_are_cleared_away(tmp_path: Path) -> None:
    old, new = tmp_path / ".x.safetensors.1.partial", tmp_path / ".y.safetensors.2.partial"
    old.write_bytes(b"x")
    new.write_bytes(b"y")
    os.utime(old, (time.time() - ABANDONED - 60,) * 2)
    AdapterCache(folder=tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == [new.name]


def test_many_writers_of_one_folder_leave_whole_files(tmp_path: Path) -> None:
    caches = [AdapterCache(folder=tmp_path, disk_bytes=20_000) for _ in range(4)]

    def use(index: int) -> None:
        for round_ in range(10):
            caches[index].put(round_ % 3, adapter(round_ % 3))
            caches[index].clear()
            found = caches[index].get((round_ + 1) % 3, "base")
            assert found is None or same(found, adapter((round_ + 1) % 3))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert not list(tmp_path.glob(".*"))


WRITER = """
import sys
from pathlib import Path
from test_adapters import AdapterCache, adapter, same
cache = AdapterCache(folder=Path(sys.argv[1]), disk_bytes=20_000)
print("ready", flush=True)
sys.stdin.readline()
for round_ in range(30):
    cache.put(round_ % 3, adapter(round_ % 3))
    cache.clear()
    found = cache.get((round_ + 1) % 3, "base")
    assert found is None or same(found, adapter((round_ + 1) % 3))
"""


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], cwd=Path(__file__).parent, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    for writer in writers:  # all begin once the last is ready
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        _, said = writer.communicate(timeout=120)
        assert writer.returncode == 0, said
    assert not list(tmp_path.glob(".*"))
    assert 0 < len(list(tmp_path.glob("*.safetensors"))) <= 3


def test_a_folder_that_is_gone_is_no_error(tmp_path: Path) -> None:
    cache = AdapterCache(folder=tmp_path / "kept")
    (tmp_path / "kept").rmdir()
    cache.put("key", adapter())
    assert same(cache.get("key", "base"), adapter())


def test_an_adapter_belongs_to_how_its_prompts_were_written(tmp_path: Path, task: Task) -> None:
    def learner(prompt_format: str) -> Learner:
        model = wrap_model(tiny_model("llama"), tiny_tokenizer(), prompt_format=prompt_format)
        return Learner(model, adapters=AdapterCache(folder=tmp_path))

    def make() -> Adapter:
        return adapter(base=learner("compact").base_hash)

    assert learner("compact").base_hash == learner("standard").base_hash
    assert not learner("compact").remembered("key", make)[1]
    assert learner("compact").knows("key")
    assert not learner("standard").knows("key")
    assert not learner("standard").remembered("key", make)[1]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["ttt_in_context", "ttt_crossfit"])
def test_a_known_task_is_answered_without_training_in_a_new_process(
    name: str, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learner() -> Learner:
        model = wrap_model(tiny_model("llama"), tiny_tokenizer(), recipes={name: replace(QUICK, steps=3)})
        return Learner(model, adapters=AdapterCache(folder=tmp_path))

    monkeypatch.setattr(Learner, "room", lambda self, task: 4)
    first = run(get_strategy(name), learner(), task)
    for door in ("adapt", "crossfit"):
        monkeypatch.setattr(Learner, door, lambda *_, **__: pytest.fail("trained again"))
    again = run(get_strategy(name), learner(), replace(task, query=task.query))
    assert again.reused
    assert (again.value, again.text, again.evidence) == (first.value, first.text, first.evidence)
    assert again.cost.backward_tokens == 0 < first.cost.backward_tokens


def test_the_command_line_keeps_adapters_in_a_folder(tmp_path: Path) -> None:
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


def test_an_adapter_of_another_base_is_refused_even_from_a_file(task: Task, tmp_path: Path) -> None:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer())
    adapter(base="another").save(tmp_path / "a.safetensors")
    with pytest.raises(AdaptationError, match="another base model"):
        learner.answer([task], Adapter.load(tmp_path / "a.safetensors"))


def test_the_newest_that_suit_are_found_in_memory_and_then_in_the_folder(tmp_path: Path) -> None:
    writer = AdapterCache(folder=tmp_path)
    for n, kind in enumerate(["list", "grid", "list", "list"]):
        writer.put(n, replace(adapter(n), kind=kind))
        for at, file in enumerate(sorted(tmp_path.glob("*.safetensors"), key=lambda f: f.stat().st_mtime)):
            os.utime(file, (at, at))
    pairs = zip(writer.newest(2, is_list), (3, 2), strict=True)
    assert all(same(a, replace(adapter(n), kind="list")) for a, n in pairs)
    reader = AdapterCache(folder=tmp_path)
    reader.put("mine", replace(adapter(9), kind="list"))
    found = reader.newest(2, is_list)
    assert same(found[0], replace(adapter(9), kind="list"))
    assert len(found) == 2
    assert len(AdapterCache(folder=tmp_path).newest(9, is_list)) == 4
    assert AdapterCache().newest(3, is_list) == []


def is_list(one: Adapter) -> bool:
    return one.kind == "list"


def test_training_may_begin_as_another_adapter_and_leaves_that_one_alone(task: Task) -> None:
    learner = Learner(wrap_model(tiny_model("llama"), tiny_tokenizer()))
    examples = [task.leave_out(i) for i in range(len(task.demonstrations))]
    first = learner.adapt(examples, QUICK)
    kept = first.weights.copied()
    assert first.kind == task.kind
    second = learner.adapt(examples, QUICK, start=first)
    assert second.training.losses[0] == pytest.approx(loss_under(learner, examples, first), abs=0.5)
    assert all(map(torch.equal, kept.tensors, first.weights.tensors))
    assert not all(map(torch.equal, second.weights.tensors, first.weights.tensors))
    with pytest.raises(AdaptationError, match="cannot begin as 1 of rank 2"):
        learner.adapt(examples, replace(QUICK, rank=3), start=first)
    with pytest.raises(AdaptationError, match="cannot begin"):
        learner.adapt(examples, replace(QUICK, alpha=1.0), start=first)
    with pytest.raises(AdaptationError, match="another base model"):
        learner.adapt(examples, QUICK, start=replace(first, base_hash="other"))


def loss_under(learner: Learner, examples: list[Task], adapter: Adapter) -> float:
    scores = [s for of_prompt in learner.score(examples, adapter) for s in of_prompt[1:]]
    return -sum(s.total for s in scores) / sum(len(s.log_probs) for s in scores)


def test_the_nearest_adapter_is_that_under_which_the_demonstrations_are_likeliest(task: Task) -> None:
    learner = Learner(wrap_model(tiny_model("llama"), tiny_tokenizer()))
    recipe = replace(QUICK, steps=30, learning_rate=1e-2, batch=4)
    assert learner.nearest(task, recipe, 8) is None, "nothing is known"
    examples = [task.leave_out(i) for i in range(len(task.demonstrations))]
    good = learner.adapt(examples, recipe)
    names = good.weights.pairs
    bad = replace(good, weights=LoraWeights({n: (a, -3 * b) for n, (a, b) in names.items()}, good.weights.scaling))
    learner.adapters.put("bad", bad)
    assert learner.nearest(task, recipe, 8) is None, "the base does better"
    learner.adapters.put("good", good)
    assert learner.nearest(task, recipe, 8) is good
    assert learner.nearest(task, replace(recipe, rank=3), 8) is None
    assert learner.nearest(replace(task, kind="grid1d"), recipe, 8) is None
    learner.adapters.put("bad again", bad)
    assert learner.nearest(task, recipe, 1) is None, "one is looked at, that which was used last"


def test_what_is_in_use_in_memory_is_not_what_the_folder_lets_go_of(tmp_path: Path) -> None:
    cache = AdapterCache(folder=tmp_path)
    for name in "ab":
        cache.put(name, adapter())
    first, second = sorted(tmp_path.glob("*.safetensors"), key=lambda f: f.stat().st_mtime)
    for file in (first, second):
        os.utime(file, (1, 1))
    assert cache.get("a", "base") is cache._kept[first.stem][1]
    assert first.stat().st_mtime > second.stat().st_mtime == 1


def test_an_adapter_belongs_to_the_tokenizer_that_cut_its_prompts(task: Task) -> None:
    cache = AdapterCache()
    model = tiny_model("llama")
    one, other = (Learner(wrap_model(model, tiny_tokenizer(bos=bos)), adapters=cache) for bos in (True, False))
    trained = one.adapt(leave_one_out(task), QUICK)
    assert one.remembered("key", lambda: trained) == (trained, False)
    assert one.knows("key")
    assert not other.knows("key")


def test_prepared_adapters_are_bounded_and_the_others_are_trained_when_they_are_asked_for(task: Task) -> None:
    model = tiny_model("llama")
    size = Learner.wrap(model, tiny_tokenizer()).adapt(leave_one_out(task), QUICK).weights.nbytes
    learner = Learner(wrap_model(model, tiny_tokenizer()), memory_bytes=4 * 3 * size + 16)
    learner.prepare(list("abcdef"), [leave_one_out(task)] * 6, QUICK, list(range(6)))
    assert [learner.knows(key) for key in "abcdef"] == [True] * 3 + [False] * 3
