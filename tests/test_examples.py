"""The programs in examples/ run, and show what they promise."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str) -> str:
    """What an example prints."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


@pytest.fixture
def load(monkeypatch) -> Callable[[str], Any]:
    """A function that imports an example, which is then run in this process: torch is imported once."""

    def module_of(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return module_of


@pytest.mark.filterwarnings("ignore:This API is in beta")
def test_an_agent_trains_only_after_a_person_has_approved(load, capsys):
    example = load("agent")
    example.main([])
    easy, *hard = capsys.readouterr().out.split("easy: ")[1].splitlines()
    assert easy.startswith("fox -> xof (in_context")
    assert [line for line in hard if line.strip().startswith("step 1 of at most ")]
    assert hard[-1].startswith("hard: [0, 3, 4, 5, 0, 0, 5] -> [9, 6, 3, 8, 5, 0, 3, 4, 5, 0, 0, 5] (ttt_in_context")
    example.main(["--refuse"])
    refused = capsys.readouterr().out
    assert "step" not in refused
    assert "finished: answer_at_once" in refused
    assert "(in_context, " in refused.splitlines()[-1]
    check_that_langgraph_json_names_graphs(example)


def check_that_langgraph_json_names_graphs(example: Any) -> None:
    graphs = json.loads((EXAMPLES.parent / "langgraph.json").read_text("utf-8"))["graphs"]
    assert {place.split(":")[0] for place in graphs.values()} == {"./examples/agent.py"}
    agent, solver = (asyncio.run(getattr(example, graphs[name].split(":")[1])()) for name in ("agent", "solve"))
    assert {"plan", "approve", "solve", "answer_at_once"} <= set(agent.nodes)
    assert {"measure", "decide", "revert"} <= set(solver.nodes)
    assert agent.checkpointer is None
    assert solver.checkpointer is None


def test_a_server_is_started_asked_and_stopped():
    printed = run("serve_and_ask.py").splitlines()
    assert printed[0].startswith("1 6 8 -> 8 6 1   (in_context: ")
    assert [line for line in printed if line.startswith("step 1 of at most ")]
    assert printed[-1].startswith("the base model is what was loaded: ")
