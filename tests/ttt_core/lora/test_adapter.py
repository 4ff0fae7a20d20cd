"""Adapters on disk and in memory: found again by the same key, bounded, safe beside other processes."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from autottt.controller.cli.main import app
from autottt.strategies.base import get_strategy, run
from autottt.ttt_core.errors import AdaptationError, ModelError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora import adapter as adapters
from autottt.ttt_core.lora.adapter import ABANDONED, Adapter, AdapterCache
from autottt.ttt_core.lora.cross_validation import CrossValidationResult
from autottt.ttt_core.lora.training import TrainingRecord
from autottt.ttt_core.lora.weights import LoraWeights
from autottt.ttt_core.model.context_window import ContextWindow
from autottt.ttt_core.model.loading import wrap_model
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.augmentation import leave_one_out
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import VOCABULARY, tiny_model, tiny_tokenizer

QUICK = Recipe(rank=2, alpha=4.0, dropout=0.0, max_steps=2, batch_size=2, target_modules=("q_proj", "v_proj"))


def adapter(seed: int = 0, count: int = 1, base: str = "base") -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    pairs = {
        f"layers.{i}.q": (torch.randn(count, 2, 8, generator=draw), torch.randn(count, 8, 2, generator=draw))
        for i in range(2)
    }
    evidence = CrossValidationResult((True, False), (True, True), (-1.0, -2.5), (-0.1, -0.2), 4) if count > 1 else None
    training = TrainingRecord(2, (1.0, 0.5), 0.1, 40, "finished")
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


def test_a_flipped_bit_anywhere_in_a_file_counts_as_none(tmp_path: Path) -> None:
    AdapterCache(folder=tmp_path).put("key", adapter())
    (file,) = tmp_path.glob("*.safetensors")
    whole = file.read_bytes()
    for place in [*range(0, len(whole), 41), len(whole) - 1]:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = AdapterCache(folder=tmp_path).get("key", "base")
        assert found is None or same(found, adapter()), f"byte {place}: read as another adapter"
    assert place == len(whole) - 1
    assert found is None, "a weight"
    with pytest.raises(ModelError, match=r"safetensors: cannot be read as an adapter \(ValueError: the checksum"):
        Adapter.load(file)


@pytest.mark.parametrize(
    "facts",
    [
        {"recipe": []}, {"recipe": None}, {"cross_validation": 3}, {"cross_validation": [1]}, {"training": None}, {"training": {}},
        {"scaling": ()}, None,
    ],
    ids=str,
)  # fmt: skip
def test_a_whole_file_that_says_something_else_counts_as_none(facts: dict[str, Any] | None, tmp_path: Path) -> None:
    AdapterCache(folder=tmp_path).put("key", adapter())
    (file,) = tmp_path.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a mapping)
        known = json.loads(opened.metadata()["adapter"])
    text = json.dumps([]) if facts is None else json.dumps({**known, **facts})
    if facts == {"scaling": ()}:
        del tensors["layers.0.q.up"]
    save_file(tensors, file, metadata={"adapter": text, "checksum": adapters._checksum(text, tensors)})
    cache = AdapterCache(folder=tmp_path)
    assert cache.get("key", "base") is None
    assert cache.most_recent(3, lambda _: True) == []
    with pytest.raises(ModelError, match="cannot be read as an adapter"):
        Adapter.load(file)


def test_files_of_another_format_count_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    AdapterCache(folder=tmp_path).put("key", adapter())
    monkeypatch.setattr(adapters, "FORMAT", adapters.FORMAT + 1)
    assert AdapterCache(folder=tmp_path).get("key", "base") is None
    assert AdapterCache(folder=tmp_path).most_recent(3, lambda _: True) == []


def test_memory_and_disk_let_go_of_what_was_used_longest_ago(tmp_path: Path) -> None:
    size = adapter().weights.nbytes
    cache = AdapterCache(memory_bytes=2 * size, folder=tmp_path, disk_bytes=10**9)
    for name in "abc":
        cache.put(name, adapter())
    for file in tmp_path.glob("*.safetensors"):
        os.utime(file, (time.time() - 1000,) * 2)
    file_size = next(tmp_path.glob("*.safetensors")).stat().st_size
    assert len(cache._kept) == 2
    for age, name in enumerate("bca"):  # b was used longest ago
        cache.clear()
        assert cache.get(name, "base")
        file = tmp_path / f"{adapters._digest(name, 'base')}.safetensors"
        assert time.time() - file.stat().st_mtime < 5, "reading it is using it"
        os.utime(file, (time.time() - 100 + age,) * 2)
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


def use(folder: Path, bound: int, seed: int) -> list[bool]:
    """Writes and reads eight keys in a folder with room for three; whether each was found."""
    cache, draw, found = AdapterCache(folder=folder, disk_bytes=bound), random.Random(seed), []
    for _ in range(40):
        written, read = draw.randrange(8), draw.randrange(8)
        cache.put(written, adapter(written))
        cache.clear()
        kept = cache.get(read, "base")
        assert kept is None or same(kept, adapter(read))
        found.append(kept is not None)
    return found


@pytest.fixture
def bound(tmp_path: Path) -> int:
    """Bytes for three files and a half."""
    adapter().save(tmp_path / "one")
    return int(3.5 * (tmp_path / "one").stat().st_size)


def within(folder: Path, bound: int) -> bool:
    """Whether there are whole files of eight possible ones, and no more than there is room for."""
    files = list(folder.iterdir())
    whole = all(any(same(Adapter.load(f), adapter(n)) for n in range(8)) for f in files)
    return whole and 0 < len(files) <= 3 and sum(f.stat().st_size for f in files) <= bound


def test_many_writers_of_one_folder_leave_whole_files_within_the_bound(tmp_path: Path, bound: int) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: use(tmp_path / "kept", bound, seed), range(4)))
    assert all(any(mine) and not all(mine) for mine in found), "some are kept and some had to go"
    assert within(tmp_path / "kept", bound)


WRITER = """
import sys
from pathlib import Path
from test_adapters import use
print("ready", flush=True)
sys.stdin.readline()
found = use(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
assert any(found) and not all(found), found
"""


def test_several_processes_keep_a_folder_within_its_bound(tmp_path: Path, bound: int) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "kept"), str(bound), str(seed)], cwd=Path(__file__).parent,
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for seed in range(3)
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
    assert within(tmp_path / "kept", bound)


@pytest.fixture
def often() -> Iterator[None]:
    """Threads take turns after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("often")
def test_threads_may_share_a_cache() -> None:
    made = [adapter(n) for n in range(8)]
    cache = AdapterCache(memory_bytes=3 * made[0].weights.nbytes)

    def mix(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(500):
            n = draw.randrange(8)
            cache.put(n, made[n])
            assert cache.get(n, "base") in (None, made[n])
            assert len(cache.most_recent(3, lambda _: True)) <= 3
            if n == 0:
                cache.clear()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(mix, range(4)))
    assert len(cache.clear()) <= 3


def test_a_folder_that_is_gone_is_told_once_and_memory_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = AdapterCache(folder=tmp_path / "kept")
    (tmp_path / "kept").rmdir()
    with caplog.at_level(logging.WARNING, "autottt"):
        for name in "ab":
            cache.put(name, adapter())
            assert same(cache.get(name, "base"), adapter())
    (said,) = caplog.messages
    assert f"adapters cannot be kept in {tmp_path / 'kept'} (" in said


def test_a_folder_that_cannot_be_made_is_told_once_and_memory_goes_on(
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


def test_an_adapter_belongs_to_how_its_prompts_were_written(tmp_path: Path, task: Task) -> None:
    def learner(prompt_format: str) -> Learner:
        model = wrap_model(tiny_model("llama"), tiny_tokenizer(), prompt_format=prompt_format)
        return Learner(model, adapters=AdapterCache(folder=tmp_path))

    def make() -> Adapter:
        return adapter(base=learner("compact").base_hash)

    assert learner("compact").base_hash == learner("standard").base_hash
    assert not learner("compact").get_or_train("key", make)[1]
    assert learner("compact").has_adapter("key")
    assert not learner("standard").has_adapter("key")
    assert not learner("standard").get_or_train("key", make)[1]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["ttt_in_context", "ttt_crossfit"])
def test_a_known_task_is_answered_without_training_in_a_new_process(
    name: str, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learner() -> Learner:
        model = wrap_model(tiny_model("llama"), tiny_tokenizer(), recipes={name: replace(QUICK, max_steps=3)})
        return Learner(model, adapters=AdapterCache(folder=tmp_path))

    monkeypatch.setattr(ContextWindow, "max_new_tokens", lambda self, task: 4)
    first = run(get_strategy(name), learner(), task)
    for door in ("adapt", "cross_validate"):
        monkeypatch.setattr(Learner, door, lambda *_, **__: pytest.fail("trained again"))
    again = run(get_strategy(name), learner(), replace(task, query=task.query))
    assert again.from_cache
    assert (again.value, again.text, again.cross_validation) == (first.value, first.text, first.cross_validation)
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
    pairs = zip(writer.most_recent(2, is_list), (3, 2), strict=True)
    assert all(same(a, replace(adapter(n), kind="list")) for a, n in pairs)
    reader = AdapterCache(folder=tmp_path)
    reader.put("mine", replace(adapter(9), kind="list"))
    found = reader.most_recent(2, is_list)
    assert same(found[0], replace(adapter(9), kind="list"))
    assert len(found) == 2
    assert len(AdapterCache(folder=tmp_path).most_recent(9, is_list)) == 4
    assert AdapterCache().most_recent(3, is_list) == []


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
    recipe = replace(QUICK, max_steps=30, learning_rate=1e-2, batch_size=4)
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
    assert one.get_or_train("key", lambda: trained) == (trained, False)
    assert one.has_adapter("key")
    assert not other.has_adapter("key")


def test_prepared_adapters_are_bounded_and_the_others_are_trained_when_they_are_asked_for(task: Task) -> None:
    model = tiny_model("llama")
    size = Learner.wrap(model, tiny_tokenizer()).adapt(leave_one_out(task), QUICK).weights.nbytes
    learner = Learner(wrap_model(model, tiny_tokenizer()), memory_bytes=4 * 3 * size + 16)
    learner.prefetch(list("abcdef"), [leave_one_out(task)] * 6, QUICK, list(range(6)))
    assert [learner.has_adapter(key) for key in "abcdef"] == [True] * 3 + [False] * 3


PEFT = [
    pytest.mark.usefixtures("one_thread"),
    # What PEFT 0.21 says beside transformers 5.23, whichever model it wraps.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`:UserWarning"),
]


def with_peft(test: Any) -> Any:
    for mark in PEFT:
        test = mark(test)
    return test


def around(architecture: str = "llama") -> Learner:
    return Learner.wrap(tiny_model(architecture), tiny_tokenizer())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(60).view(4, 15)).logits
    return found


def from_peft(folder: Path, architecture: str = "llama", **settings: Any) -> Any:
    """A model with an adapter of random weights that PEFT made and wrote."""
    torch.manual_seed(3)
    config = {"r": 3, "lora_alpha": 7, "init_lora_weights": False, "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(tiny_model(architecture), LoraConfig(**config)).eval()
    model.save_pretrained(str(folder))
    return model


@with_peft
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_peft_answers_as_the_learner_with_what_it_exports(architecture: str, task: Task, tmp_path: Path) -> None:
    learner = around(architecture)
    trained = learner.adapt(leave_one_out(task), replace(QUICK, target_modules=("all-linear",), learning_rate=1e-2))
    learner.export(trained, tmp_path / "new" / "folder")
    theirs = PeftModel.from_pretrained(tiny_model(architecture), str(tmp_path / "new" / "folder")).eval()
    with trained.weights.attached(learner.loaded.model):
        ours = logits(learner.loaded.model)
    assert torch.allclose(ours, logits(theirs), atol=1e-4)
    assert not torch.allclose(ours, logits(learner.loaded.model), atol=1e-2)
    back = learner.import_peft(tmp_path / "new" / "folder")
    assert all(map(torch.equal, back.weights.tensors, trained.weights.tensors))
    assert learner.answer([task], back) == learner.answer([task], trained)
    again = learner.adapt(leave_one_out(task), trained.recipe, start=back)
    assert again.training.steps == QUICK.max_steps, "it is one that training of the same recipe may begin as"


@with_peft
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]], ids=str)
def test_the_learner_answers_as_peft_with_what_peft_wrote(targets: Any, task: Task, tmp_path: Path) -> None:
    theirs = from_peft(tmp_path / "theirs", target_modules=targets, lora_dropout=0.1)
    learner = around()
    found = learner.import_peft(tmp_path / "theirs")
    recipe = found.recipe
    assert (recipe.rank, recipe.alpha, recipe.dropout) == (3, 7.0, 0.1)
    assert recipe.target_modules == (("all-linear",) if targets == "all-linear" else ("down_proj", "q_proj"))
    whole = Learner.wrap(theirs.merge_and_unload(), tiny_tokenizer())
    assert [a.text for a in learner.answer([task], found)] == [a.text for a in whole.answer([task])]
    assert learner.score([task], found)[0][-1].total == pytest.approx(whole.score([task])[0][-1].total, abs=1e-3)
    assert learner.score([task])[0][-1].total != pytest.approx(whole.score([task])[0][-1].total, abs=1e-2)
    learner.export(found, tmp_path / "ours")
    assert same(learner.import_peft(tmp_path / "ours"), found)


@with_peft
def test_a_peft_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    from_peft(tmp_path / "gpt2", "gpt2", target_modules="all-linear")
    with pytest.raises(
        ModelError, match=r"gpt2: adapts 'transformer.h.0.attn.c_attn', .* no linear layer of this Llama"
    ):
        around().import_peft(tmp_path / "gpt2")
    head = {"lm_head": (torch.ones(1, 2, 32), torch.ones(1, VOCABULARY, 2))}
    LoraWeights(head, 2.0).save(tmp_path / "head", QUICK)
    with pytest.raises(
        ModelError, match=r"adapts 'lm_head', .* below its head; .* 'model.layers.0.self_attn.q_proj' is"
    ):
        around().import_peft(tmp_path / "head")
    from_peft(tmp_path / "other", "qwen3", target_modules=["k_proj", "v_proj", "q_proj"])
    file = tmp_path / "other" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "r": 4}))
    with pytest.raises(
        ModelError, match=r"at rank 4, expected weights A and B of \(\(4, 32\), .*; received \(\(3, 32\)"
    ):
        around().import_peft(tmp_path / "other")


@with_peft
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter_config.json", "{"), ("adapter_config.json", "[]"), ("adapter_config.json", '{"peft_type": "NONE"}'),
        ("adapter_config.json", '{"peft_type": "LORA", "r": 0}'), ("adapter_model.safetensors", "not tensors"),
    ],
)  # fmt: skip
def test_a_peft_folder_that_cannot_be_read_is_refused(name: str, content: str, tmp_path: Path) -> None:
    from_peft(tmp_path, target_modules=["q_proj"])
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match="cannot be read as a PEFT adapter"):
        around().import_peft(tmp_path)
    with pytest.raises(ModelError, match=r"nothing: expected a folder with adapter_config\.json"):
        around().import_peft(tmp_path / "nothing")


def test_what_peft_cannot_hold_is_not_exported(tmp_path: Path) -> None:
    learner = around()
    several = adapter(count=3, base=learner.base_hash)
    with pytest.raises(ModelError, match=r"holds one adapter; this one is 3 that were cross-fitted"):
        learner.export(several, tmp_path)
    with pytest.raises(AdaptationError, match="another base model"):
        learner.export(adapter(), tmp_path)
    assert not list(tmp_path.iterdir())
    learner.export(replace(several, weights=several.weights.select(0)), tmp_path)
