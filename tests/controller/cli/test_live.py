"""Progress on a terminal while tasks are solved: phases and training steps, and nothing off a terminal."""

from __future__ import annotations

import json
import re
import shutil
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from autottt.controller.cli import live
from autottt.controller.cli.console import SafeConsole
from autottt.controller.cli.live import LiveProgress
from autottt.strategies.registry import strategies
from tests.controller.cli.commands import on_a_terminal, piped, task, tasks_file
from tests.controller.cli.test_solve import plain

STEPS = 50
WORDS = ["--strategy", "ttt_in_context"]
TRAINING = re.compile(r"ttt_in_context: training.*?(\d+)/50.*?loss \d+\.\d+, \d+ s left")


@pytest.fixture(scope="module")
def slow_model(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that trains long enough for several pictures of the bar."""
    folder = tmp_path_factory.mktemp("slow") / "model"
    shutil.copytree(model, folder)
    quick = {"rank": 2, "alpha": 2, "dropout": 0, "max_steps": STEPS, "batch_size": 2, "early_stop_loss": 0.0}
    settings = {"prompt_format": "compact", "recipes": dict.fromkeys(strategies(), quick)}
    (folder / "autottt.json").write_text(json.dumps(settings))
    return str(folder)


def other(number: int) -> dict[str, object]:
    """A task with demonstrations of its own."""
    pairs = [{"input": [number, 1], "output": [1, number]}, {"input": [3, number], "output": [number, 3]}]
    return task(f"t{number}", demonstrations=pairs)


def test_the_steps_of_a_training_move_on_a_terminal(
    tmp_path: Path, slow_model: str, forkserver: ForkServerContext
) -> None:
    file = tasks_file(tmp_path, task("swap"))
    printed = plain(on_a_terminal(forkserver, ["solve", file, "--model", slow_model, *WORDS], columns=150))
    steps = [int(step) for step in TRAINING.findall(printed)]
    assert len(set(steps)) > 1
    assert steps == sorted(steps)
    assert "swap: ttt_in_context: training" in printed


def test_a_training_of_several_tasks_says_of_how_many(
    tmp_path: Path, slow_model: str, forkserver: ForkServerContext
) -> None:
    file = tasks_file(tmp_path, other(5), other(6))
    printed = plain(on_a_terminal(forkserver, ["solve", file, "--model", slow_model, *WORDS], columns=150))
    assert re.search(r"ttt_in_context: training for 2 tasks.*?/50.*?loss \d", printed)


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_quiet_and_json_show_no_progress_on_a_terminal(
    tmp_path: Path, model: str, option: str, forkserver: ForkServerContext
) -> None:
    file = tasks_file(tmp_path, task("swap"))
    printed = plain(on_a_terminal(forkserver, ["solve", file, "--model", model, *WORDS, option], columns=150))
    assert "solving" not in printed
    assert not any(shown in printed for shown in (": training", ": measuring", "s left"))


def test_off_a_terminal_nothing_is_shown(tmp_path: Path, model: str, forkserver: ForkServerContext) -> None:
    file = tasks_file(tmp_path, task("swap"))
    words = ["solve", file, "--model", model, *WORDS]
    code, _, errors = piped(forkserver, words)
    assert (code, errors) == (0, "")


def test_an_evaluation_shows_the_steps_of_each_strategy(
    tmp_path: Path, slow_model: str, forkserver: ForkServerContext
) -> None:
    file = tasks_file(tmp_path, task("swap"))
    words = ["evaluate", file, "--model", slow_model, "--strategies", "ttt_in_context"]
    printed = plain(on_a_terminal(forkserver, words, columns=150))
    assert len(set(TRAINING.findall(printed))) > 1
    assert "evaluating" in printed


def test_phases_of_a_run_are_shown_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Written:
        def __init__(self) -> None:
            self.text = ""

        def write(self, text: str) -> int:
            self.text += text
            return len(text)

        def flush(self) -> None:
            pass

    written = Written()
    console = SafeConsole(file=written, force_terminal=True, width=150, markup=False, highlight=False)  # type: ignore[arg-type]
    monkeypatch.setattr(live, "errors", console)
    phases = ("measure", "decide", "ttt_direct", "training", "answering", "judge", "revert")
    words = ("measuring", "deciding", "ttt_direct: answering", "ttt_direct: training", "ttt_direct: answering",
             "judging", "proving the weights unchanged")  # fmt: skip
    with LiveProgress(3) as progress:
        for phase, expected in zip(phases, words, strict=True):
            progress.on_event({"event": "phase", "tasks": ["one"], "phase": phase, "expected_seconds": 90.0})
            written.text = ""
            progress.refresh()
            assert f"one: {expected}" in plain(written.text)
            assert "at most about 90 s" in plain(written.text)
