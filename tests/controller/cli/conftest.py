"""A tiny model on disk, and an environment without settings of the user."""

from __future__ import annotations

import json
import os
import sys

import pytest

from autottt.policies.training import train_policy
from autottt.strategies.registry import strategies
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    quick = {"rank": 2, "alpha": 2, "dropout": 0, "max_steps": 2, "batch_size": 2, "views": 2, "transformations": 1}
    settings = {"prompt_format": "compact", "recipes": dict.fromkeys(strategies(), quick)}
    (folder / "autottt.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch, tmp_path_factory) -> None:
    """The environment and the configuration file of the user do not change what tests see."""
    for name in os.environ:
        if name.startswith("AUTOTTT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture(autouse=True)
def quick_training(monkeypatch) -> None:
    """Policies are trained with few draws of the folds, few bootstrap resamples, and without a tracking server, whose
    import takes seconds."""
    defaults = train_policy.__kwdefaults__ or {}
    monkeypatch.setattr(train_policy, "__kwdefaults__", {**defaults, "repeats": 1})
    monkeypatch.setattr("autottt.policies.scorecard.INTERVAL_RESAMPLES", 40)
    monkeypatch.setitem(sys.modules, "mlflow", None)
