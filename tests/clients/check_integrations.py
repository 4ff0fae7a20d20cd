"""Programs that call the package in their own process: LangChain's standard tests, `langgraph dev`, harnesses, Ray.

    python tests/clients/check_integrations.py [NAME ...] [--environments FOLDER]

Not part of the tests: each program is installed into an environment of its own, which sees the packages of this one.
All are pinned, run unchanged and offline with the bundled model, and the exit status is 1 when one sees something else
than it should.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from check_clients import INSPECT, SHOTS, write_tasks
from environments import ROOT, Environment, running, running_server

sys.path.insert(0, str(ROOT / "examples"))
import agent

PORT, RAY_PORT, RAY_NODES_PORT = 8123, 8124, 8125
TASK = {
    "demonstrations": [
        {"input": [3, 1, 4], "output": [4, 1, 3]},
        {"input": [2, 7], "output": [7, 2]},
        {"input": [5, 0, 8], "output": [8, 0, 5]},
    ],
    "query": [1, 6, 8],
}


def call(url: str, body: object = None) -> Any:
    """What a server answers to a GET, or to a POST with a body."""
    with urllib.request.urlopen(request_of(url, body), timeout=300) as response:
        return json.load(response)


def request_of(url: str, body: object = None) -> urllib.request.Request:
    content = None if body is None else json.dumps(body).encode()
    return urllib.request.Request(url, content, {"content-type": "application/json"})


def wait_for(url: str, log: Path, seconds: float = 120) -> None:
    """Waits until a server answers. Raises `AssertionError` with its log."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        try:
            call(url)
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url} does not answer: {log.read_text(errors='replace')[-2000:]}")


def check_langchain(environment: Environment, folder: Path) -> str:
    tests = str(ROOT / "tests" / "clients" / "langchain_standard.py")
    options = ("-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "--rootdir", str(folder), "-c", "/dev/null")
    printed = environment.run("python", "-m", "pytest", *options, tests, folder=folder)
    return next(line for line in reversed(printed.splitlines()) if " passed" in line)


def check_langgraph(environment: Environment, folder: Path) -> str:
    log, url = folder / "langgraph.log", f"http://127.0.0.1:{PORT}"
    shutil.copy(ROOT / "langgraph.json", folder)  # a copy: the server writes into its folder
    shutil.copytree(ROOT / "examples", folder / "examples")
    options = ("dev", "--port", str(PORT), "--no-browser", "--no-reload")
    with running([str(environment.binaries / "langgraph"), *options], folder, log):
        wait_for(f"{url}/ok", log)
        graphs = {each["graph_id"]: each["assistant_id"] for each in call(f"{url}/assistants/search", {})}
        assert graphs.keys() == {"agent", "solve"}, graphs
        nodes = {node["id"] for node in call(f"{url}/assistants/{graphs['solve']}/graph")["nodes"]}
        assert {"measure", "decide", "judge", "revert"} <= nodes, nodes
        task = {"kind": "text", **agent.EASY}
        solved = call(f"{url}/runs/wait", {"assistant_id": "solve", "input": {"task": task}})
        assert solved.get("answer") == "xof", solved
        thread = f"{url}/threads/{call(f'{url}/threads', {})['thread_id']}/runs/wait"
        asked = call(thread, {"assistant_id": "agent", "input": {"puzzle": agent.HARD}})
        question = asked["__interrupt__"][0]["value"]
        trained = call(thread, {"assistant_id": "agent", "command": {"resume": True}})
        assert trained["result"]["strategy"] == question["strategy"], trained["result"]["reason"]
        assert trained["result"]["proof"], trained["result"]
    return f"graphs {sorted(graphs)}; waits for a person, then {question['strategy']} answers {trained['answer']}"


def check_lm_eval(environment: Environment, folder: Path) -> str:
    write_tasks(folder)
    command = ("-m", "autottt.controller.integrations.lm_eval", "--model", "autottt", "--tasks", "reverse")
    shots = ("--include_path", str(folder), "--num_fewshot", str(SHOTS), "--output_path")
    scores = {}
    for name, options in {"turns": ("--apply_chat_template", "--batch_size", "8"), "texts": ()}.items():
        environment.run("python", *command, *shots, str(folder / name), *options, folder=folder)
        (results,) = (folder / name).rglob("results_*.json")
        scores[name] = json.loads(results.read_text())["results"]["reverse"]["exact_match,none"]
    assert scores["turns"] == 1.0, scores
    return f"exact match {scores['turns']} with examples as turns, {scores['texts']} with one text a request"


def check_inspect(environment: Environment, folder: Path) -> str:
    write_tasks(folder)
    decisions = {}
    for few_shot in (True, False):
        arguments = json.dumps({"few_shot": few_shot})
        code = INSPECT.replace('model="openai-api/autottt/MODEL"', 'model="autottt/bundled", model_args=ARGUMENTS')
        (folder / "inspect_task.py").write_text(f"ARGUMENTS = {json.loads(arguments)}\n{code}\n{DECISIONS}")
        *_, report, seen = environment.run("python", "inspect_task.py", folder=folder).splitlines()
        assert json.loads(report)["status"] == "success", report
        assert json.loads(report)["mean"] == 1.0, report
        decisions[few_shot] = json.loads(seen)
    assert "not_few_shot" not in decisions[True], decisions
    assert set(decisions[False]) == {"not_few_shot"}, decisions
    return f"accuracy 1.0; decisions {sorted(set(decisions[True]))} with few_shot, else not_few_shot"


def check_ray(environment: Environment, folder: Path) -> str:
    log, task = folder / "ray.log", {**TASK, "strategy": "ttt_direct"}
    options = ("--ray", "local", "--replicas", "2", "--port", str(RAY_PORT), "--trace-store", "off")
    command = [str(environment.binaries / "autottt"), "serve", *options, "--adapters", str(folder / "adapters")]
    url = f"http://127.0.0.1:{RAY_PORT}"
    with running(command, folder, log) as process:
        wait_for(f"{url}/readyz", log)
        answers = [call(f"{url}/v1/solve", task) for _ in range(12)]
        assert {str(answer["answer"]) for answer in answers} == {"[8, 6, 1]"}, answers
        trained = [answer["autottt"]["adaptation"]["from_cache"] for answer in answers].count(False)
        counts = {served_by(url) for _ in range(24)}
        assert len(counts - {0}) > 0, counts
        assert trained == 1, f"{trained} replicas have trained, though the folder of adapters is shared"
        with urllib.request.urlopen(request_of(f"{url}/v1/solve", {**task, "stream": True}), timeout=300) as response:
            events = response.read().decode()
        assert '"autottt.progress"' in events, events
        assert events.endswith("data: [DONE]\n\n"), events
        refusal = subprocess.run([*command[:-2], "--replicas", "1"], capture_output=True, text=True, check=False)
        assert refusal.returncode == 2, refusal
        assert "cannot listen there" in refusal.stderr, refusal
        lost = [*command[:3], "127.0.0.1:1", "--port", "0"]
        nowhere = subprocess.run(lost, capture_output=True, text=True, check=False)
        assert nowhere.returncode == 2, nowhere
        assert "nothing answers there" in nowhere.stderr, nowhere
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(50) == 0, log.read_text(errors="replace")[-2000:]
        assert not (left := session_of(process.pid)), left
    return f"2 replicas, decisions by replica {sorted(counts)}, one adapter trained and shared, streams, stops with 0"


def check_ray_signals(environment: Environment, folder: Path) -> str:
    """SIGTERM to every process, also to Ray's: the cluster ends before the replicas are stopped."""
    log = folder / "ray.log"
    command = [str(environment.binaries / "autottt"), "serve", "--ray", "local", "--port", str(RAY_PORT)]
    with running(command, folder, log) as process:
        wait_for(f"http://127.0.0.1:{RAY_PORT}/readyz", log)
        for each in session_of(process.pid):
            os.kill(each, signal.SIGTERM)
        assert process.wait(50) == 1, log.read_text(errors="replace")[-2000:]
    assert "has ended" in log.read_text(errors="replace"), log.read_text(errors="replace")[-2000:]
    assert not (left := session_of(process.pid)), left
    return "exits with 1 and says why, nothing is left"


def check_ray_nodes(environment: Environment, folder: Path) -> str:
    """Two nodes of one CPU each, as two machines have them: each gets a replica."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    ray = [str(environment.binaries / "python"), "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1"]
    options = ("--replicas", "2", "--port", str(RAY_PORT), "--trace-store", "off", "--adapters", str(folder / "shared"))
    address, log, url = f"127.0.0.1:{RAY_NODES_PORT}", folder / "ray.log", f"http://127.0.0.1:{RAY_PORT}"
    head = [*ray, "--head", "--port", str(RAY_NODES_PORT), "--include-dashboard=false", "--disable-usage-stats"]
    serve = [str(environment.binaries / "autottt"), "serve", "--ray", address, *options]
    tasks = [{**TASK, "strategy": strategy} for strategy in ("in_context", "ttt_direct")]
    log.touch()
    with running_server() as alone:
        wait_for(f"{alone}/readyz", log)
        expected = [str(call(f"{alone}/v1/solve", task)["answer"]) for task in tasks]
    with ExitStack() as stack:
        nodes = []
        for name, command in (("head", head), ("other", [*ray, "--address", address])):
            nodes.append(stack.enter_context(running(command, folder, folder / f"{name}.log", token)))
            wait_for_text("Ray runtime started", folder / f"{name}.log")
        process = stack.enter_context(running(serve, folder, log, token))
        wait_for_text("listening on", log)
        places = replicas_by_node([node.pid for node in nodes])
        assert [len(replicas) for replicas in places] == [1, 1], places
        answers = [[call(f"{url}/v1/solve", task) for task in tasks] for _ in range(8)]
        assert all([str(each["answer"]) for each in both] == expected for both in answers), answers
        trained = [both[1]["autottt"]["adaptation"]["from_cache"] for both in answers].count(False)
        assert trained == 1, f"{trained} replicas have trained, though the folder of adapters is shared"
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text(errors="replace")[-2000:]
        assert not any(replicas_by_node([node.pid for node in nodes])), "replicas are left on the cluster"
        with suppress(urllib.error.URLError):
            raise AssertionError(f"{url} still answers: {call(f'{url}/healthz')}")
        for node in reversed(nodes):
            node.terminate()
            node.wait(60)
    return "a replica on each of two nodes, answers as without Ray, one adapter trained and shared, nothing is left"


def replicas_by_node(nodes: list[int]) -> list[list[int]]:
    """The replicas that run below each process of `ray start`."""
    every = processes()
    raylets = {pid: parent for pid, (_, parent, _) in every.items() if parent in nodes}
    found: list[list[int]] = [[] for _ in nodes]
    for pid, (state, parent, _) in every.items():
        with suppress(OSError):
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
            if state != "Z" and parent in raylets and title.startswith(b"ray::ServeReplica"):
                found[nodes.index(raylets[parent])].append(pid)
    return found


def wait_for_text(text: str, log: Path, seconds: float = 120) -> None:
    """Waits until a program has printed a text. Raises `AssertionError` with its log."""
    ends = time.monotonic() + seconds
    while text not in log.read_text(errors="replace"):
        assert time.monotonic() < ends, log.read_text(errors="replace")[-2000:]
        time.sleep(0.5)


def session_of(leader: int) -> list[int]:
    """The processes of a session that run, after those that are ending have had some seconds."""
    found: list[int] = []
    for _ in range(20):
        found = [pid for pid, (state, _, session) in processes().items() if session == leader and state != "Z"]
        if not found or leader in found:
            break
        time.sleep(0.5)
    return found


def processes() -> dict[int, tuple[str, int, int]]:
    """Every process: its state, its parent and its session."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent, _, session = file.read_text().rpartition(")")[2].split()[:4]
            found[int(file.parent.name)] = (state, int(parent), int(session))
    return found


def served_by(url: str) -> int:
    """How many decisions the replica has made that answers this time."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as response:
        lines = response.read().decode().splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("autottt_decisions_total{"))


DECISIONS = "print(json.dumps([sample.output.metadata['decision'] for sample in log.samples]))"
RAY = ("ray[serve]==2.60.0",)
HARNESSES = ("lm-eval==0.4.13", "inspect-ai==0.3.285")
CHECKS: dict[str, tuple[tuple[str, ...], Callable[[Environment, Path], str]]] = {
    "langchain": (("langchain-tests==1.1.9",), check_langchain),
    "lm-eval": (HARNESSES, check_lm_eval),
    "inspect-ai": (HARNESSES, check_inspect),
    "ray": (RAY, check_ray),
    "ray-signals": (RAY, check_ray_signals),
    "ray-nodes": (RAY, check_ray_nodes),
    "langgraph": (("langgraph-cli[inmem]==0.4.40",), check_langgraph),
}
"""By name: the packages of the environment, and the check."""


def main() -> int:
    """Prints what each program saw; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"checks to run, of {', '.join(CHECKS)}; default: all")
    parser.add_argument("--environments", type=Path, help="folder of the environments, which are kept and used again")
    arguments = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as temporary:
        environments = (arguments.environments or Path(temporary) / "environments").resolve()
        environments.mkdir(parents=True, exist_ok=True)
        for name in arguments.names or CHECKS:
            packages, check = CHECKS[name]
            folder = Path(temporary) / name
            folder.mkdir()
            try:
                environment = Environment(environments / packages[0].partition("=")[0], packages, inherit=True)
                print(f"ok      {name} ({', '.join(packages)}): {check(environment, folder)}", flush=True)
            except (AssertionError, urllib.error.HTTPError, subprocess.SubprocessError) as error:
                failures += 1
                print(f"FAILED  {name}: {error}", flush=True)
    return min(failures, 1)


if __name__ == "__main__":
    raise SystemExit(main())
