"""Pre-training: the stream, resuming, exporting. Tiny models, few steps."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from autottt.ttt_core.learner import Learner
from autottt.ttt_core.pretraining import pretrain
from autottt.ttt_core.pretraining.data import IGNORED, Phase, PretrainConfig, Stream, packed_mask
from autottt.ttt_core.pretraining.pretrain import Trainer, build_model, checkpoint_metadata, main, weights_digest
from autottt.ttt_core.pretraining.tokenizer import build_tokenizer

TINY = ["--hidden", "32", "--layers", "1", "--heads", "2", "--kv-heads", "1", "--intermediate", "32"]
QUICK = [*TINY, "--tokens", "192", "--workers", "0", "--device", "cpu"]
SMALL = PretrainConfig(hidden=32, layers=1, heads=2, kv_heads=1, intermediate=32, tokens=192)


def run(folder: Path, *words: str) -> None:
    main(["--run", str(folder), *QUICK, *words])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint.safetensors")


def test_a_resumed_run_ends_with_the_same_weights_as_an_uninterrupted_one(tmp_path):
    run(tmp_path / "whole", "--steps", "6")
    run(tmp_path / "parts", "--steps", "3")
    run(tmp_path / "parts", "--steps", "6")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_the_exported_model_loads_with_its_format_and_recipes(tmp_path):
    run(tmp_path / "run", "--steps", "2", "--export", str(tmp_path / "model"))
    learner = Learner.load(tmp_path / "model", device="cpu")
    assert learner.loaded.format.name == "compact"
    assert learner.loaded.context_length == 1024
    assert learner.loaded.recipes["ttt_in_context"].max_steps < 100
    (facts,) = json.loads((tmp_path / "model" / "autottt.json").read_text())["pretraining"]
    assert (facts["steps"], facts["batch_tokens"], facts["init"]) == (2, 192, None)
    assert facts["tokens"] > 0


def test_training_continues_from_exported_weights_and_records_their_digest(tmp_path):
    run(tmp_path / "first", "--steps", "2", "--export", str(tmp_path / "model"))
    run(tmp_path / "second", "--init", str(tmp_path / "model"), "--steps", "1", "--lr", "0", "--seed", "1")
    exported = load_file(tmp_path / "model" / "model.safetensors")
    second = weights(tmp_path / "second")
    assert all(torch.equal(second[f"param.{k}"], v.float()) for k, v in exported.items())
    config = json.loads(checkpoint_metadata(tmp_path / "second")["config"])
    assert config["init"] == weights_digest(tmp_path / "model")
    with pytest.raises(ValueError, match="is not a model of this shape"):
        run(tmp_path / "third", "--init", str(tmp_path / "model"), "--steps", "1", "--layers", "2")


def test_a_log_is_plotted(tmp_path):
    rows = [
        {"step": 50, "tokens": 1e6, "loss": 2.0},
        {"step": 500, "tokens": 1e7, "loss": 1.0, "accuracy": {"lists": 0.5}},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    main(["--run", str(tmp_path), "--picture", str(tmp_path / "curve.svg")])
    assert "</svg>" in (tmp_path / "curve.svg").read_text()
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(SystemExit, match="is empty"):
        main(["--run", str(tmp_path), "--picture", str(tmp_path / "curve.svg")])


def test_several_runs_are_exported_as_their_mean(tmp_path):
    run(tmp_path / "first", "--steps", "1", "--export", str(tmp_path / "model"))
    for name, seed in (("a", "0"), ("b", "1")):
        run(tmp_path / name, "--init", str(tmp_path / "model"), "--steps", "2", "--seed", seed)
    run(tmp_path / "a", "--export", str(tmp_path / "mean"), "--average", str(tmp_path / "b"))
    a, b, mean = weights(tmp_path / "a"), weights(tmp_path / "b"), load_file(tmp_path / "mean" / "model.safetensors")
    for name, value in mean.items():
        torch.testing.assert_close(value, ((a[f"param.{name}"] + b[f"param.{name}"]) / 2).bfloat16())
    assert len(json.loads((tmp_path / "mean" / "autottt.json").read_text())["pretraining"]) == 2


def test_a_branch_continues_from_a_checkpoint_and_can_be_averaged_with_its_run(tmp_path):
    run(tmp_path / "whole", "--steps", "6")
    run(tmp_path / "trunk", "--steps", "3")
    for name, words in (("same", ()), ("other", ("--seed", "7"))):
        for steps in ("4", "6"):  # interrupted, and gone on with by the same command
            run(tmp_path / name, "--branch", str(tmp_path / "trunk"), "--steps", steps, *words)
    whole, same, other = (weights(tmp_path / name) for name in ("whole", "same", "other"))
    assert all(torch.equal(whole[k], same[k]) for k in whole)
    assert any(not torch.equal(whole[k], other[k]) for k in whole)
    run(tmp_path / "same", "--export", str(tmp_path / "mean"), "--average", str(tmp_path / "other"))
    first, second = json.loads((tmp_path / "mean" / "autottt.json").read_text())["pretraining"]
    assert (first["branch_point"], first["seed"], second["branch_point"], second["seed"]) == ([3, 0], 0, [3, 0], 7)


def test_a_branch_without_a_checkpoint_of_another_shape_or_into_an_existing_run_is_refused(tmp_path):
    run(tmp_path / "trunk", "--steps", "1")
    with pytest.raises(SystemExit, match="no checkpoint"):
        run(tmp_path / "a", "--branch", str(tmp_path / "nothing"), "--steps", "2")
    with pytest.raises(SystemExit, match="cannot change the shape of the model: layers"):
        run(tmp_path / "a", "--branch", str(tmp_path / "trunk"), "--steps", "2", "--layers", "2")
    with pytest.raises(SystemExit, match="branch_point is none, not a branch"):
        run(tmp_path / "trunk", "--branch", str(tmp_path / "trunk"), "--steps", "2")


def test_a_strict_run_reads_other_tasks_and_stays_strict(tmp_path):
    run(tmp_path / "strict", "--steps", "1", "--strict")
    assert json.loads(checkpoint_metadata(tmp_path / "strict")["config"])["strict"]
    strict, loose = (Stream(replace(SMALL, strict=s), build_tokenizer()) for s in (True, False))
    assert any(not torch.equal(strict.batch(k).ids, loose.batch(k).ids) for k in range(4))


def test_runs_with_different_initial_weights_cannot_be_averaged(tmp_path):
    for name, seed in (("a", "0"), ("b", "1")):
        run(tmp_path / name, "--steps", "1", "--seed", seed)
    with pytest.raises(ValueError, match="with the same initial weights"):
        run(tmp_path / "a", "--export", str(tmp_path / "mean"), "--average", str(tmp_path / "b"))


def test_a_resumed_run_refuses_other_settings(tmp_path):
    run(tmp_path / "a", "--steps", "1")
    for words in (["--lr", "0.5"], ["--meta"], ["--seed", "3"], ["--fp32"], ["--stage", "longer"]):
        with pytest.raises(SystemExit, match="is a run with other settings"):
            run(tmp_path / "a", "--steps", "2", *words)


def test_a_run_in_fp32_stays_in_fp32(tmp_path):
    run(tmp_path / "whole", "--steps", "4", "--fp32")
    run(tmp_path / "parts", "--steps", "2", "--fp32")
    run(tmp_path / "parts", "--steps", "4")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_a_resumed_run_refuses_other_initial_weights(tmp_path):
    for name in "ab":
        run(tmp_path / name, "--steps", "1", "--seed", str(ord(name)), "--export", str(tmp_path / name / "model"))
    words = ["--run", str(tmp_path / "run"), *QUICK, "--steps", "1"]
    main([*words, "--init", str(tmp_path / "a" / "model")])
    main([*words, "--init", str(tmp_path / "a" / "model")])
    with pytest.raises(SystemExit, match="other settings: init is"):
        main([*words, "--init", str(tmp_path / "b" / "model")])


def test_a_decay_in_progress_cannot_be_changed(tmp_path):
    run(tmp_path / "whole", "--steps", "6", "--decay", "4")
    main(["--run", str(tmp_path / "parts"), *QUICK, "--steps", "6", "--decay", "4", "--minutes", "0"])
    trainer = Trainer(SMALL, tmp_path / "parts", "cpu", torch.bfloat16, compiled=False)
    trainer.load()
    stream = Stream(SMALL, trainer.tokenizer)
    for step in range(4):
        trainer.train_step(stream.batch(step), trainer.rate(step, 2, 6))
    trainer.decay = [2, 6]
    trainer.save()
    for words in (["--steps", "8", "--decay", "4"], ["--steps", "6", "--decay", "3"], ["--steps", "6"]):
        with pytest.raises(SystemExit, match=r"since step 2, until step 6.*resume with --steps 6 --decay 4"):
            run(tmp_path / "parts", *words)
    run(tmp_path / "parts", "--steps", "6", "--decay", "4")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_a_decay_does_not_begin_before_the_step_of_the_run(tmp_path):
    run(tmp_path / "run", "--steps", "3")
    with pytest.raises(SystemExit, match=r"has had a constant learning rate; a decay from step 1 to 4 was requested"):
        run(tmp_path / "run", "--steps", "4", "--decay", "3")
    run(tmp_path / "run", "--steps", "4", "--decay", "1")
    assert checkpoint_metadata(tmp_path / "run")["decay"] == "[3, 4]"


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_log_of_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "LOG_EVERY", 4)
    run(tmp_path / "whole", "--steps", "8")
    run(tmp_path / "parts", "--steps", "3")
    with (tmp_path / "parts" / "log.jsonl").open("a") as log:  # as if it had gone on, and then been killed
        log.write('{"step": 4, "tokens": 1, "loss": 9.0, "seconds": 1.0}\n{"step": 8, "tok')
    before = float(checkpoint_metadata(tmp_path / "parts")["seconds"])
    run(tmp_path / "parts", "--steps", "8")
    whole, parts = log_of(tmp_path / "whole"), log_of(tmp_path / "parts")
    assert [{**row, "seconds": 0} for row in parts] == [{**row, "seconds": 0} for row in whole]
    assert [row["step"] for row in parts] == [4, 8]
    assert parts[0]["seconds"] > before > 0


# --- interruptions ---------------------------------------------------------------------------------------------------


def test_workers_make_the_same_batches_in_order():
    draw = partial(Stream(SMALL, build_tokenizer()).batch)
    made = list(islice(pretrain._batches(draw, 3, workers=2), 5))
    for number, batch in enumerate(made, start=3):
        assert all(torch.equal(a, b) for a, b in zip(batch, draw(number), strict=True))


def test_a_signal_to_the_whole_group_stops_resumably(tmp_path):
    """As supervisors and `timeout` send it: to the process that makes batches as well."""
    words = [sys.executable, "-m", "autottt.ttt_core.pretraining.pretrain", "--run", str(tmp_path), *QUICK]
    words += ["--steps", "100000", "--workers", "1"]
    process = subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)
    try:
        for _ in range(3000):  # a session of its own may get little of a busy machine
            if (tmp_path / "log.jsonl").exists() and log_of(tmp_path):
                break
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
    step = int(checkpoint_metadata(tmp_path)["step"])
    assert 50 <= step < 100000
    run(tmp_path, "--steps", str(step + 1))
    assert checkpoint_metadata(tmp_path)["step"] == str(step + 1)


def test_a_checkpoint_is_saved_after_an_error(tmp_path, monkeypatch):
    batch = Stream.batch

    def fails(stream, step, shard=0):
        if step == 2:
            raise OSError("no more")
        return batch(stream, step, shard)

    monkeypatch.setattr(Stream, "batch", fails)
    handlers = [signal.getsignal(s) for s in pretrain.STOP_SIGNALS]
    with pytest.raises(OSError, match="no more"):
        run(tmp_path, "--steps", "4")
    assert [signal.getsignal(s) for s in pretrain.STOP_SIGNALS] == handlers
    assert checkpoint_metadata(tmp_path)["step"] == "2"


def test_an_incomplete_step_is_not_saved(tmp_path, monkeypatch):
    run(tmp_path, "--steps", "1")
    before = weights(tmp_path)

    def fails(trainer):
        raise MemoryError

    monkeypatch.setattr(Trainer, "_copy_masters", lambda trainer: None if trainer.step == 0 else fails(trainer))
    with pytest.raises(MemoryError):
        run(tmp_path, "--steps", "2")
    after = weights(tmp_path)
    assert checkpoint_metadata(tmp_path)["step"] == "1"
    assert all(torch.equal(before[k], after[k]) for k in before)


# --- what is watched -------------------------------------------------------------------------------------------------


def test_the_accuracy_is_that_of_the_last_answer_of_a_row():
    labels = torch.tensor([[IGNORED, 5, 5, IGNORED, 6, 6, IGNORED]] * 3)
    right = torch.tensor([[0, 0, 0, 0, 1, 1, 0], [1, 1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 0, 1]]).bool()
    assert pretrain._last_answer_accuracy(right, labels) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("shift", "share"), [(1, 1.0), (2, 0.0)])
def test_the_accuracy_is_of_the_next_token(tmp_path, shift, share):
    """A model that knows the text gets every last answer right, and one that is a token ahead none."""
    trainer = Trainer(SMALL, tmp_path, "cpu", torch.float32, compiled=False)
    size = len(trainer.tokenizer)

    def knows(ids):
        return SimpleNamespace(logits=torch.nn.functional.one_hot(ids.roll(-shift, 1), size).float())

    trainer.model = knows
    assert trainer.evaluate(rows=3) == dict.fromkeys(("lists", "rows", "grids", "strings"), share)
    trainer = Trainer(SMALL, tmp_path, "cpu", torch.float32, compiled=False)
    assert set(trainer.evaluate(rows=1).values()) <= {0.0, 1.0}


# --- the stream ------------------------------------------------------------------------------------------------------


def test_the_batches_of_a_seed_do_not_change():
    """Whoever changes this does so on purpose: the shipped weights and the policy's outcomes are of these tasks."""
    stream = Stream(PretrainConfig(tokens=1024), build_tokenizer())
    digest = hashlib.sha256()
    for step in (0, 1, 2, 1752, 1753):
        for part in stream.batch(step):
            digest.update(part.numpy().tobytes())
    assert digest.hexdigest() == "6aa078f845126e016c9ca2b562c1c777e27de0da72eb2c89622d022e682ef095"


def test_a_batch_depends_on_its_number_and_the_seed_alone():
    tokenizer = build_tokenizer()
    stream = Stream(PretrainConfig(tokens=384), tokenizer)
    again = Stream(PretrainConfig(tokens=384), tokenizer)
    other = Stream(PretrainConfig(tokens=384, seed=1), tokenizer)
    assert torch.equal(stream.batch(5)[0], again.batch(5)[0])
    assert not torch.equal(stream.batch(5)[0], stream.batch(6)[0])
    assert stream.batch(5)[0].shape != other.batch(5)[0].shape or not torch.equal(stream.batch(5)[0], other.batch(5)[0])


def test_only_answers_after_the_first_are_labelled():
    tokenizer = build_tokenizer()
    rows = Stream(PretrainConfig(), tokenizer)
    ids, labels = (torch.tensor([x]) for x in rows.row(random.Random(0), 192, {"lists": 1.0}))
    text = tokenizer.decode([i for i, y in zip(ids[0].tolist(), labels[0].tolist(), strict=True) if y != IGNORED])
    whole = tokenizer.decode([i for i in ids[0].tolist() if i != tokenizer.pad_token_id])
    answers = [line[1:] for line in whole.splitlines() if line.startswith("O")]
    assert text.splitlines() == answers[1 : 1 + len(text.splitlines())]
    assert len(text.splitlines()) >= 2
    assert bool((labels[labels != IGNORED] == ids[labels != IGNORED]).all())


def test_tasks_of_one_row_do_not_attend_to_each_other():
    tokenizer = build_tokenizer()
    config = PretrainConfig(hidden=32, layers=2, heads=2, kv_heads=1, intermediate=32, tokens=4096)
    batch = Stream(config, tokenizer).batch(1)
    filled = (batch.ids != tokenizer.pad_token_id).float().mean()
    assert filled > 0.9
    row = int((batch.positions == 0).logical_and(batch.ids == tokenizer.bos_token_id).sum(1).argmax())
    starts = (batch.ids[row] == tokenizer.bos_token_id).nonzero()[:, 0].tolist()
    assert len(starts) > 1
    model = build_model(config, tokenizer).eval()
    ids, positions = batch.ids[row][None], batch.positions[row][None]
    with torch.no_grad():
        packed = model(ids, attention_mask=packed_mask(positions, torch.float32), position_ids=positions).logits[0]
        for begin, end in zip(starts, [*starts[1:], None], strict=True):
            alone = ids[:, begin:end][ids[:, begin:end] != tokenizer.pad_token_id][None]
            logits = packed[begin:end][: alone.shape[1]]
            torch.testing.assert_close(logits, model(alone).logits[0], atol=1e-5, rtol=1e-4)


def test_a_later_phase_changes_the_rows():
    phases = (Phase(0, ((192, 1.0),), (("lists", 1.0),)), Phase(10, ((320, 1.0),), (("rows", 1.0),)))
    stream = Stream(PretrainConfig(tokens=640, phases=phases), build_tokenizer())
    assert stream.batch(9).ids.shape == (3, 192)
    assert stream.batch(10).ids.shape == (2, 320)


def test_a_meta_run_resumes_exactly(tmp_path):
    run(tmp_path / "whole", "--meta", "--steps", "2")
    run(tmp_path / "parts", "--meta", "--steps", "1")
    run(tmp_path / "parts", "--steps", "2")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_adapters_of_meta_tasks_are_trained_on_demonstrations_only():
    tokenizer = build_tokenizer()
    stream = Stream(PretrainConfig(), tokenizer)
    tasks = stream.meta_tasks(0)
    assert tasks == stream.meta_tasks(0) != stream.meta_tasks(1)

    def lines(ids: list[int]) -> list[str]:
        return tokenizer.decode(ids[1:]).splitlines()

    for task in tasks:
        shown = {tuple(sorted(lines(ids))) for ids, _ in task.inner}
        assert len(shown) == 1, "every inner row holds the same demonstrations"
        (demonstrations,) = shown
        for ids, labels in task.outer:
            assert set(lines(ids)) > set(demonstrations)
            learned = tokenizer.decode([y for y in labels if y != IGNORED]).splitlines()
            new = [line for line in lines(ids)[len(demonstrations) :] if line.startswith("O")]
            assert learned == [line[1:] for line in new]


def test_the_learning_rate_warms_up_stays_constant_and_decays(tmp_path):
    config = replace(PretrainConfig(), hidden=32, layers=1, heads=2, kv_heads=1, intermediate=32, warmup=10, lr=1.0)
    trainer = Trainer(config, tmp_path, "cpu", torch.float32, compiled=False)
    assert trainer.rate(0, None, 0) == pytest.approx(0.1)
    assert trainer.rate(50, None, 0) == 1.0
    assert trainer.rate(75, 50, 100) == pytest.approx(0.5)
    assert trainer.rate(100, 50, 100) == pytest.approx(0.02)


# --- several processes ----------------------------------------------------------------------------------------------


def test_processes_read_different_tasks_in_rows_of_one_length():
    stream = Stream(PretrainConfig(tokens=384, shards=2), build_tokenizer())
    for step in range(4):
        first, second = stream.batch(step), stream.batch(step, 1)
        assert first.ids.shape == second.ids.shape
        assert not torch.equal(first.ids, second.ids)
        assert torch.equal(second.ids, stream.batch(step, 1).ids)


def test_a_step_uses_the_mean_gradient_of_all_processes(tmp_path, monkeypatch):
    """The other process is simulated with three times the gradient: the mean is twice the own gradient."""
    tokenizer = build_tokenizer()
    config = PretrainConfig(hidden=32, layers=1, heads=2, kv_heads=1, intermediate=32, tokens=192)
    seen = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, _: seen.append([x.grad.clone() for x in p]))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.mul_(4))
    for shards in (1, 2):
        trainer = Trainer(replace(config, shards=shards), tmp_path, "cpu", torch.float32, False)
        trainer.train_step(Stream(config, tokenizer).batch(0), 0.0)
    assert trainer.tokens == 2 * 192
    for alone, mean in zip(*seen, strict=True):
        torch.testing.assert_close(mean, 2 * alone)


RANK = """
import os
import torch
from autottt.ttt_core.pretraining.pretrain import main
os.environ.update(environment)
torch.set_num_threads(1)
main(words)
"""


def test_two_processes_train_one_model_and_resume(tmp_path, forkserver):
    def both(steps: int) -> list[int]:
        free = socket.socket()
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        words = ["--run", str(tmp_path), *QUICK, "--steps", str(steps), "--seed", "0"]
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes = [
            forkserver.Process(target=exec, args=(RANK, {"words": words, "environment": {**shared, "RANK": rank}}))
            for rank in "01"
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        return [process.exitcode for process in processes]

    assert both(2) == [0, 0]
    facts = checkpoint_metadata(tmp_path)
    assert (facts["step"], json.loads(facts["config"])["shards"]) == ("2", 2)
    first = weights(tmp_path)
    assert both(3) == [0, 0]
    assert checkpoint_metadata(tmp_path)["step"] == "3"
    assert not torch.equal(
        first["param.model.embed_tokens.weight"], weights(tmp_path)["param.model.embed_tokens.weight"]
    )
    with pytest.raises(SystemExit, match="other settings"):
        run(tmp_path, "--steps", "4")
