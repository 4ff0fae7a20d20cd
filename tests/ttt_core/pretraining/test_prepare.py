"""A starting adapter is trained on some families, judged on others, and a killed training continues."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from autottt.ttt_core.errors import FileError, ModelError, TaskError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora.starting_adapter import CARD, read_card
from autottt.ttt_core.pretraining.prepare import RECIPE, Preparation, Round, _identity, prepare
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.task import Task

SETTINGS = Preparation(
    replace(RECIPE, rank=4, alpha=4.0, max_steps=3, batch_size=2, learning_rate=3e-2, target_modules=("all-linear",)),
    rounds=4, patience=4,
)  # fmt: skip


def tasks_of(*families: int) -> list[Task]:
    """Families that all answer with 1, 1: learning one helps on the others."""
    return [
        make_task(
            [([n, n + 1 + k], [1, 1]) for n in range(family, family + 4)], [k, family], answer=[1, 1],
            id=f"{family}-{k}", family=f"f{family}",
        )
        for family in families
        for k in range(2)
    ]  # fmt: skip


def test_the_adapter_helps_on_families_that_it_never_saw_and_the_base_is_untouched(make_learner, tmp_path, unchanged):
    learner, reports = make_learner(), []
    with unchanged(learner.loaded.model):
        result = prepare(
            learner,
            tasks_of(1, 2, 3),
            tasks_of(5, 6),
            tmp_path / "adapter",
            SETTINGS,
            lambda so_far: reports.append(so_far),
        )
    assert [len(report.curve) for report in reports] == [1, 2, 3, 4, 5]
    assert result.curve[result.best].log_prob > result.curve[0].log_prob
    card = read_card(tmp_path / "adapter")
    assert card["base_hash"] == learner.base_hash
    assert (card["families"], card["held_out_families"]) == (["f1", "f2", "f3"], ["f5", "f6"])
    assert card["best_round"] == result.best
    started = Learner.wrap(
        learner.loaded.model, learner.loaded.tokenizer, prompt_format="standard",
        starting_adapter=tmp_path / "adapter", read_with_adapter=True,
    )  # fmt: skip
    scores = [rows[-1].total for rows in started.score(tasks_of(5, 6))]
    assert sum(scores) / len(scores) == pytest.approx(result.curve[result.best].log_prob, abs=1e-3)


def test_a_killed_run_continues_after_its_last_round_with_the_same_result(make_learner, tmp_path):
    sides = tasks_of(1, 2), tasks_of(5)
    whole = prepare(make_learner(), *sides, tmp_path / "whole", SETTINGS)

    def kill(so_far: Preparation) -> None:
        if len(so_far.curve) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(make_learner(), *sides, tmp_path / "killed", SETTINGS, kill)
    assert not (tmp_path / "killed").exists()
    rounds: list[int] = []
    again = prepare(
        make_learner(), *sides, tmp_path / "killed", SETTINGS, lambda so_far: rounds.append(len(so_far.curve))
    )
    assert rounds == [3, 4, 5]
    assert [one.steps for one in again.curve] == [one.steps for one in whole.curve]
    logs = [[one.log_prob for one in run.curve] for run in (again, whole)]
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)
    (file,) = (tmp_path / ".killed.state").glob("*/round-4.safetensors")
    file.write_bytes(b"torn")
    rounds.clear()
    prepare(make_learner(), *sides, tmp_path / "killed", SETTINGS, lambda so_far: rounds.append(len(so_far.curve)))
    assert rounds[0] == 1, "a damaged state is no state"
    rounds.clear()
    other = replace(SETTINGS, seed=1)
    prepare(make_learner(), *sides, tmp_path / "killed", other, lambda so_far: rounds.append(len(so_far.curve)))
    assert rounds[0] == 1, "another run does not continue this one"
    rounds.clear()
    prepare(make_learner(), *sides, tmp_path / "killed", SETTINGS, lambda so_far: rounds.append(len(so_far.curve)))
    assert rounds == [5], "and does not lose it"


def test_fewer_rounds_than_an_earlier_run_had_give_the_adapter_of_fewer_rounds(make_learner, tmp_path):
    sides, short = (tasks_of(1, 2), tasks_of(5)), replace(SETTINGS, rounds=2)
    longer = prepare(make_learner(), *sides, tmp_path / "adapter", SETTINGS)
    assert longer.best > 2
    fresh = prepare(make_learner(), *sides, tmp_path / "fresh", short)
    for _ in range(2):
        assert prepare(make_learner(), *sides, tmp_path / "adapter", short) == fresh
    files = [tmp_path / folder / "adapter_model.safetensors" for folder in ("adapter", "fresh")]
    assert files[0].read_bytes() == files[1].read_bytes()
    rounds: list[int] = []
    again = prepare(make_learner(), *sides, tmp_path / "adapter", SETTINGS, lambda so_far: rounds.append(1))
    assert (again, rounds) == (longer, [1]), "the longer run is not lost"


def test_an_adapter_may_be_read_by_whoever_may_read_a_new_file(make_learner, tmp_path):
    prepare(make_learner(), tasks_of(1, 2), tasks_of(5), tmp_path / "adapter", SETTINGS)
    (tmp_path / "new").touch()
    modes = {file.name: file.stat().st_mode for file in [*(tmp_path / "adapter").iterdir(), tmp_path / "new"]}
    assert len(set(modes.values())) == 1, modes


def test_a_full_disk_leaves_the_adapter_of_an_earlier_run(make_learner, tmp_path, monkeypatch):
    folder, sides = tmp_path / "adapter", (tasks_of(1, 2), tasks_of(5))
    prepare(make_learner(), *sides, folder, SETTINGS)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    other = replace(SETTINGS, seed=1)
    for name in ("adapter_config.json", "adapter_model.safetensors", CARD):
        real = Path.write_text

        def full(self, *arguments, name=name, real=real):
            if name in self.name:
                raise OSError(28, "No space left on device")
            return real(self, *arguments)

        def save(tensors, file, name=name, **more):
            full(Path(file), "")
            save_file(tensors, file, **more)

        def write_config(config, place, name=name, **more):
            full(Path(place) / "adapter_config.json", "")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", full)
            patch.setattr("autottt.ttt_core.lora.tensor_files.save_file", save)
            patch.setattr("peft.LoraConfig.save_pretrained", write_config)
            with pytest.raises(FileError, match=r"adapter cannot be written \(No space.*the same command continues"):
                prepare(make_learner(), *sides, folder, other)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before, name
    prepare(make_learner(), *sides, folder, other)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} != before


def test_a_run_that_failed_while_it_wrote_ends_like_one_that_did_not(make_learner, tmp_path, monkeypatch):
    sides = tasks_of(1, 2), tasks_of(5)
    settings = replace(SETTINGS, rounds=2)
    whole = prepare(make_learner(), *sides, tmp_path / "whole", settings)
    steps = 0

    def failing(function, at):
        """The function, which fails before or after it has done its work at the given steps."""

        def wrapped(*arguments):
            nonlocal steps
            steps += 1
            if steps == at:
                raise OSError(28, "No space left on device")
            result = function(*arguments)
            steps += 1
            if steps == at:
                raise KeyboardInterrupt
            return result

        return wrapped

    at, failures = 0, 0
    while failures == at:
        at, steps = at + 1, 0
        folder = tmp_path / f"run{at}"
        with monkeypatch.context() as patch:
            patch.setattr("autottt.ttt_core.file_writing.os.replace", failing(os.replace, at))
            try:
                prepare(make_learner(), *sides, folder, settings)
            except (FileError, KeyboardInterrupt):
                failures += 1
        again = prepare(make_learner(), *sides, folder, settings)
        assert len(again.curve) == len(whole.curve), at
        for one, other in zip(again.curve, whole.curve, strict=True):  # scores are rounded as their batches are
            assert (one.steps, one.right) == (other.steps, other.right), at
            assert (one.loss, one.log_prob) == pytest.approx((other.loss, other.log_prob), rel=1e-5), at
        weights = [load_file(place / "adapter_model.safetensors") for place in (folder, tmp_path / "whole")]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.allclose(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-6) for name in weights[0]), at
        files = {file.name for file in (tmp_path / f".run{at}.state").glob("*/*")}
        assert files == {"state.json", *(f"round-{number}.safetensors" for number in {2, again.best})}
    assert failures >= 10


def test_what_a_kill_left_half_written_is_deleted_by_the_next_run(make_learner, tmp_path):
    sides, out = (tasks_of(1, 2), tasks_of(5)), tmp_path / "adapter"
    prepare(make_learner(), *sides, out, SETTINGS)
    (state,) = (tmp_path / ".adapter.state").iterdir()
    (out / ".0a1b2c3d.partial").mkdir()
    for half in (
        out / ".0a1b2c3d.partial" / "adapter_model.safetensors",
        state / ".round-2.safetensors.0a1b2c3d.partial",
    ):
        half.write_bytes(b"half")
    (out / ".download.partial").write_bytes(b"of another program")
    prepare(make_learner(), *sides, out, SETTINGS)
    assert [file.name for folder in (out, state) for file in folder.glob(".*")] == [".download.partial"]


def test_a_state_of_an_earlier_version_is_no_state(make_learner, tmp_path):
    sides = tasks_of(1, 2), tasks_of(5)
    prepare(make_learner(), *sides, tmp_path / "a", replace(SETTINGS, rounds=1))
    (file,) = (tmp_path / ".a.state").glob("*/state.json")
    file.write_text(json.dumps({"curve": json.loads(file.read_text())["curve"]}))
    rounds: list[int] = []
    prepare(
        make_learner(), *sides, tmp_path / "a", replace(SETTINGS, rounds=1), lambda now: rounds.append(len(now.curve))
    )
    assert rounds == [1, 2]


def test_training_stops_after_rounds_without_improvement_and_the_best_counts():
    def after(*right: int) -> Preparation:
        return replace(SETTINGS, rounds=9, patience=2, curve=tuple(Round(n, 0.0, r, 0.0) for n, r in enumerate(right)))

    assert not after(1).is_finished
    assert not after(1, 0).is_finished
    assert after(1, 0, 0).is_finished
    assert not after(1, 2, 1).is_finished
    assert after(1, 2, 1, 2).best == 1
    assert after(*range(10)).is_finished


def test_what_cannot_be_prepared_is_refused(make_learner, tmp_path):
    with pytest.raises(TaskError, match="received 0 and 1 families"):
        prepare(make_learner(), [], tasks_of(1), tmp_path / "a", SETTINGS)
    with pytest.raises(TaskError, match="f1: this family is both"):
        prepare(make_learner(), tasks_of(1), tasks_of(1), tmp_path / "a", SETTINGS)
    useless = replace(SETTINGS, recipe=replace(SETTINGS.recipe, alpha=0.0), rounds=1)
    with pytest.raises(ModelError, match="no round of 3 steps was better on held-out families"):
        prepare(make_learner(), tasks_of(1), tasks_of(5), tmp_path / "a", useless)
    assert not (tmp_path / "a").exists()
    bare = [replace(task, demonstrations=()) for task in tasks_of(1)]
    with pytest.raises(TaskError, match="1-0: training an adapter needs demonstrations; this task has none"):
        prepare(make_learner(), [*tasks_of(2), *bare], tasks_of(5), tmp_path / "a", SETTINGS)
    learner = make_learner()
    learner.answerer.reading = learner.adapt(tasks_of(1), SETTINGS.recipe)
    with pytest.raises(ModelError, match="a learner without a starting adapter"):
        prepare(learner, tasks_of(1), tasks_of(5), tmp_path / "a", SETTINGS)


@pytest.mark.parametrize("changed", [{"answer": (2, 2)}, {"comparison": "ignore_case"}])
def test_corrected_tasks_do_not_continue_the_run_of_those_before(make_learner, tmp_path, changed):
    held_out, learner = tasks_of(5), make_learner()
    names = {
        _identity(learner, tasks_of(1), held_out, SETTINGS),
        _identity(learner, tasks_of(1), [replace(held_out[0], **changed), held_out[1]], SETTINGS),
        _identity(learner, [replace(task, **changed) for task in tasks_of(1)], held_out, SETTINGS),
        _identity(learner, tasks_of(1)[::-1], held_out, SETTINGS),
    }
    assert len(names) == 4
    assert _identity(make_learner(), tasks_of(1), tasks_of(5), SETTINGS) in names
