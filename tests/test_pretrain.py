"""Pre-training: the stream, resuming, exporting. Tiny models, few steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from autottt.ttt_core.learner import Learner
from autottt.ttt_core.pretrain import IGNORED, Phase, PretrainConfig, Stream, Trainer, main
from autottt.ttt_core.tokenizer import build_tokenizer

TINY = ["--hidden", "32", "--layers", "1", "--heads", "2", "--kv-heads", "1", "--intermediate", "32"]
QUICK = [*TINY, "--tokens", "192", "--workers", "0", "--device", "cpu"]


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
    assert learner.loaded.context == 1024
    assert learner.recipe("ttt_in_context").steps < 100
    facts = json.loads((tmp_path / "model" / "autottt.json").read_text())["pretraining"]
    assert facts["steps"] == 2
    assert facts["tokens"] > 0


def test_a_batch_depends_on_its_number_and_the_seed_alone():
    tokenizer = build_tokenizer()
    stream = Stream(PretrainConfig(tokens=384), tokenizer)
    again = Stream(PretrainConfig(tokens=384), tokenizer)
    other = Stream(PretrainConfig(tokens=384, seed=1), tokenizer)
    assert torch.equal(stream.batch(5)[0], again.batch(5)[0])
    assert not torch.equal(stream.batch(5)[0], stream.batch(6)[0])
    assert stream.batch(5)[0].shape != other.batch(5)[0].shape or not torch.equal(stream.batch(5)[0], other.batch(5)[0])


def test_every_answer_but_the_first_is_learned_and_nothing_else():
    tokenizer = build_tokenizer()
    ids, labels = Stream(PretrainConfig(tokens=192), tokenizer).batch(0)
    text = tokenizer.decode([i for i, y in zip(ids[0].tolist(), labels[0].tolist(), strict=True) if y != IGNORED])
    whole = tokenizer.decode([i for i in ids[0].tolist() if i != tokenizer.pad_token_id])
    answers = [line[1:] for line in whole.splitlines() if line.startswith("O")]
    assert text.splitlines() == answers[1 : 1 + len(text.splitlines())]
    assert len(text.splitlines()) >= 2
    assert bool((labels[labels != IGNORED] == ids[labels != IGNORED]).all())


def test_a_later_phase_changes_the_rows():
    phases = (Phase(0, ((192, 1.0),), (("lists", 1.0),)), Phase(10, ((320, 1.0),), (("rows", 1.0),)))
    stream = Stream(PretrainConfig(tokens=640, phases=phases), build_tokenizer())
    assert stream.batch(9)[0].shape == (3, 192)
    assert stream.batch(10)[0].shape == (2, 320)


def test_the_rate_warms_up_stays_and_decays(tmp_path):
    config = replace(PretrainConfig(), hidden=32, layers=1, heads=2, kv_heads=1, intermediate=32, warmup=10, lr=1.0)
    trainer = Trainer(config, tmp_path, "cpu", torch.float32, compiled=False)
    assert trainer.rate(0, None, 0) == pytest.approx(0.1)
    assert trainer.rate(50, None, 0) == 1.0
    assert trainer.rate(75, 50, 100) == pytest.approx(0.5)
    assert trainer.rate(100, 50, 100) == pytest.approx(0.02)
