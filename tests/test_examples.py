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

from autottt import Controller

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


@pytest.fixture(scope="module")
def bundled() -> Controller:
    return Controller.from_pretrained()


@pytest.fixture(autouse=True)
def load_once(bundled, monkeypatch) -> None:
    """Examples that run in this process share the bundled model; they start with an empty cache of adapters."""

    def from_pretrained(model=None, *, budget=None) -> Controller:
        assert model is None
        bundled.learner.clear()
        return Controller(bundled.learner, bundled.policy, budget=budget)

    monkeypatch.setattr(Controller, "from_pretrained", from_pretrained)


def test_a_batch_job_that_was_killed_continues_where_it_stopped(load, tmp_path, capsys):
    shown = [{"input": [a, b], "output": [b, a]} for a, b in [(1, 2), (3, 4), (5, 6)]]
    queries = {"one": [7, 8, 9], "two": [2, 5], "three": [4, 4, 1], "too long": [1] * 5000}
    lines = [{"id": name, "kind": "list", "demonstrations": shown, "query": query} for name, query in queries.items()]
    tasks, answers = tmp_path / "tasks.jsonl", tmp_path / "answers.jsonl"
    tasks.write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = load("batch")
    job.main([str(tasks), str(answers)])
    assert "0 of 4 tasks were answered before" in capsys.readouterr().out
    whole = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [each["status"] for each in whole][3] == "refused"
    first, second, *_ = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(first + second[:20])  # as a kill leaves it
    job.main([str(tasks), str(answers), "--batch-size", "2"])
    assert "1 of 4 tasks were answered before" in capsys.readouterr().out
    again = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [(each["key"], each["answer"]) for each in again] == [(each["key"], each["answer"]) for each in whole]
    job.main([str(tasks), str(answers)])
    assert "4 of 4 tasks" in capsys.readouterr().out
    answers.write_bytes(first)
    tasks.write_text(json.dumps(lines[1]) + "\n")
    with pytest.raises(SystemExit, match="other tasks"):
        job.main([str(tasks), str(answers)])
    tasks.write_text(json.dumps(lines[1]) + '\n{"id": "no task"}\n')
    with pytest.raises(SystemExit, match=r"tasks\.jsonl:2: "):
        job.main([str(tasks), str(answers)])


def test_the_tour_runs_with_the_bundled_model(load, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["notebook.py", "bundled"])
    load("notebook")
    printed = capsys.readouterr().out
    assert "in_context: 'the garden!', right: True" in printed
    assert "ttt_direct: 'the garden!', right: True" in printed
    first, *_, last = printed.split(" steps: ")[1].splitlines()[0].split()
    assert float(last) < float(first)
    assert printed.splitlines()[-1] == "not_few_shot"


def test_every_example_is_run():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"agent", "batch", "notebook", "serve_and_ask"}


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
