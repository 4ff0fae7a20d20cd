"""SIGKILLs at random times of commands that write files, and whether a resumed run completes them.

A process that has imported everything forks the commands, so that they start at once.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from soak_state import Case

from autottt.controller.cli.main import main as autottt_main
from autottt.policies import outcomes, training  # noqa: F401 - imported before processes are forked
from autottt.policies.outcomes import OutcomeStore
from autottt.strategies.registry import strategies
from autottt.ttt_core import learner  # noqa: F401
from autottt.ttt_core.engine.adapter_cache import ABANDONED_AFTER, AdapterCache
from autottt.ttt_core.errors import AutotttError
from autottt.ttt_core.lora.adapter import Adapter
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

TASKS = 5
STRATEGIES = "in_context,ttt_direct,ttt_in_context"
MAX_KILLS = 5
"""Kills before the run that goes to the end."""
TIMEOUT = 120.0
"""Seconds that a command may take."""
QUICK = {"rank": 2, "alpha": 2, "dropout": 0, "max_steps": 2, "batch_size": 2, "views": 2, "transformations": 1}


def make_model(folder: Path) -> None:
    """Writes a tiny model with quick recipes."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_model("gpt2").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    settings = {"prompt_format": "compact", "recipes": dict.fromkeys(strategies(), QUICK)}
    (folder / "autottt.json").write_text(json.dumps(settings))


def make_tasks(file: Path, seed: int) -> None:
    """Writes tasks with known answers."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdef", k=rng.randint(2, 4))) for _ in range(4 * TASKS)]
    with file.open("w", encoding="utf-8") as lines:
        for n in range(TASKS):
            *shown, query = words[4 * n : 4 * n + 4]
            examples = [{"input": w, "output": w[::-1]} for w in shown]
            task = {"id": f"t{n}", "kind": "text", "demonstrations": examples, "query": query, "answer": query[::-1]}
            lines.write(json.dumps(task) + "\n")


class Process:
    """A command in a forked process, in a group of its own."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._run(arguments, log)

    def _run(self, arguments: list[str], log: Path) -> None:
        """The command, in the child. Never returns."""
        status = 70
        try:
            os.setpgid(0, 0)
            opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(opened, 1)
            os.dup2(opened, 2)
            sys.argv = ["autottt", *arguments]
            autottt_main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        finally:
            os._exit(status)

    def poll(self) -> int | None:
        """The exit status, or None while it runs; -9 after a kill."""
        if self.status is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.status = os.waitstatus_to_exitcode(ended[1])
        return self.status

    def kill(self) -> bool:
        """Kills it, and says whether it still ran."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status == -signal.SIGKILL

    def wait(self) -> int:
        """Its exit status; it is killed after `TIMEOUT`."""
        end = time.monotonic() + TIMEOUT
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        self.kill()
        assert self.status is not None
        return self.status


class KillPart:
    """Up to 1,000 kills."""

    name, goal, unit = "kill", 1000, "kills"

    def __init__(self, state: Path) -> None:
        self._work = state.resolve() / "work"
        self._model = self._work / "model"
        self._seconds: dict[str, float] = {}
        """Scenario -> seconds of its last run to the end."""
        if not (self._model / "autottt.json").exists():
            make_model(self._model)

    def run(self, seed: int) -> Case:
        """Kills a scenario's processes some times, then runs them to the end and checks their files."""
        rng = random.Random(seed)
        scenario = rng.choice(("collect", "solve", "shared"))
        folder = self._work / f"case-{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "reference").mkdir(parents=True)
        make_tasks(folder / "tasks.jsonl", seed)
        case = Case(Counter({f"scenario {scenario}": 1}))
        self._to_the_end(scenario, folder / "reference", folder, case)
        for _ in range(rng.randint(1, MAX_KILLS)):
            processes = self._start(scenario, folder, folder)
            time.sleep(rng.uniform(0, self._seconds[scenario]))
            killed = sum([process.kill() for process in processes])
            case.counts += Counter({"kills": killed, f"kills {scenario}": killed})
            case.counts["ended before the kill"] += len(processes) - killed
            wrong = [p.status for p in processes if p.status not in (0, -signal.SIGKILL)]
            case.failures += [f"{scenario}: a resumed run ended with status {status}" for status in wrong]
        self._to_the_end(scenario, folder, folder, case)
        self._check(scenario, folder, case)
        if not case.failures:
            shutil.rmtree(folder)
        return case

    def _start(self, scenario: str, folder: Path, top: Path) -> list[Process]:
        """The scenario's processes, which write to `folder`."""
        common = [str(top / "tasks.jsonl"), "--model", str(self._model)]
        trained = ["--strategy", "ttt_direct", "--adapters", str(folder / "adapters")]
        out = [["--out", str(folder / f"answers{n}.jsonl"), "--resume"] for n in range(2)]
        commands = {
            "collect": [["collect", *common, "--store", str(folder / "store"), "--strategies", STRATEGIES]],
            "solve": [["solve", *common, *out[0], "--strategy", "ttt_direct"]],
            "shared": [["solve", *common, *out[n], *trained] for n in range(2)],
        }
        return [Process(command, folder / "log.txt") for command in commands[scenario]]

    def _to_the_end(self, scenario: str, folder: Path, top: Path, case: Case) -> None:
        """Runs a scenario without kills."""
        begin = time.monotonic()
        statuses = [process.wait() for process in self._start(scenario, folder, top)]
        self._seconds[scenario] = time.monotonic() - begin
        if any(statuses):
            last = (folder / "log.txt").read_text("utf-8", errors="replace").splitlines()[-3:]
            case.failures.append(f"{scenario}: ended with status {statuses}: {' | '.join(last)}")

    def _check(self, scenario: str, folder: Path, case: Case) -> None:
        """Compares what was written with the run without kills."""
        checks: dict[str, list[Callable[[Path], object]]] = {
            "collect": [_outcomes, _raw_outcomes, _leftovers],
            "solve": [_answers],
            "shared": [_answers, _adapters, _old_partial_files],
        }
        for check in checks[scenario]:
            try:
                expected, received = check(folder / "reference"), check(folder)
            except Exception as error:
                case.failures.append(f"{scenario}: {check.__name__} raised {type(error).__name__}: {error}")
                continue
            if expected != received:
                case.failures.append(f"{scenario}: {check.__name__}: expected {expected}; received {received}")


def _outcomes(folder: Path) -> object:
    """The outcomes of a store, but for seconds."""
    return [
        (o.key, o.status, o.correct, o.answer, o.token_equivalents, o.losses, dict(o.features), o.relative_cost)
        for o in OutcomeStore(folder / "store").read()
    ]


def _raw_outcomes(folder: Path) -> object:
    """Rows in the files of a store, in which each outcome stands once."""
    from pyarrow import parquet

    shards = sum(parquet.read_metadata(file).num_rows for file in (folder / "store").glob("*.parquet"))
    return shards + sum(len(file.read_bytes().splitlines()) for file in (folder / "store").glob("_*.jsonl"))


def _leftovers(folder: Path) -> object:
    """Partial files and journals of a store."""
    return sorted(f.suffix for f in (folder / "store").iterdir() if f.suffix in (".partial", ".jsonl"))


def _answers(folder: Path) -> object:
    """The answers of each file, in order, but for cost and time."""
    rows = [json.loads(line) for file in sorted(folder.glob("answers*")) for line in file.read_bytes().splitlines()]
    names = ("id", "status", "answer", "strategy", "scores", "adapted", "error", "seed")
    return [[row[name] for name in names] for row in rows]


def _adapters(folder: Path) -> object:
    """The names of the adapters, each of which is valid, and their numbers of steps."""
    files = sorted((folder / "adapters").glob("*.safetensors"))
    valid = []
    for file in files:
        try:
            valid.append((file.name, Adapter.load(file).training.steps))
        except AutotttError as error:
            valid.append((file.name, str(error)))
    return valid


def _old_partial_files(folder: Path) -> object:
    """Partial files that stay although they are older than their age limit."""
    adapters = folder / "adapters"
    old = time.time() - ABANDONED_AFTER - 60
    for file in adapters.glob(".*.partial"):
        os.utime(file, (old, old))
    AdapterCache(folder=adapters)
    return sorted(file.name for file in adapters.glob(".*.partial"))
