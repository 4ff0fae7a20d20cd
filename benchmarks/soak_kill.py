"""SIGKILLs at random times of commands that write files, and whether resumed runs complete those files.

A process that has imported everything, and computes nothing itself, forks the commands, so that they start at once.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from soak_models import write_model
from soak_state import Case

from autottt.controller.cli.main import main as autottt_main
from autottt.policies.outcome_check import check_outcomes
from autottt.policies.outcomes import OutcomeStore
from autottt.ttt_core.engine.adapter_cache import ABANDONED_AFTER, AdapterCache, cached_files

TASKS = 3
TASK_FILES = 2
MODELS = ("gpt2", "llama", "qwen3", "phi3")
STRATEGIES = "in_context,ttt_direct"
MAX_KILLS = 6
"""Kills before the run that goes to the end."""
TIMEOUT = 120.0
"""Seconds that a command may take."""
SCENARIOS = ("collect", "solve", "adapters", "store", "out")
"""One command that collects, or solves; two that share the folder of adapters, the store, or the file of answers."""
LOCKED = "another autottt process is writing it"
MODULES = "SOAK_MODULES"
"""Environment variable with a file to which a command writes the names of its modules."""
Folder = Path


def make_tasks(file: Path, seed: int) -> None:
    """Writes tasks with known answers."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdef", k=rng.randint(1, 3))) for _ in range(4 * TASKS)]
    with file.open("w", encoding="utf-8") as lines:
        for n in range(TASKS):
            *shown, query = words[4 * n : 4 * n + 4]
            examples = [{"input": w, "output": w[-1]} for w in shown]
            task = {"id": f"t{n}", "kind": "text", "demonstrations": examples, "query": query, "answer": query[-1]}
            lines.write(json.dumps(task) + "\n")


class Process:
    """A command in a forked process."""

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
            opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(opened, 1)
            os.dup2(opened, 2)
            sys.argv = ["autottt", *arguments]
            autottt_main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        finally:
            if MODULES in os.environ:
                Path(os.environ[MODULES]).write_text(json.dumps(sorted(sys.modules)))
            os._exit(status)

    def kill(self) -> bool:
        """Kills it, and says whether it still ran."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)  # no other process has this id before the call of waitpid
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status == -signal.SIGKILL

    def wait(self) -> int:
        """Its exit status; it is killed after `TIMEOUT`."""
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            if (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
                self.status = os.waitstatus_to_exitcode(ended[1])
                return self.status
            time.sleep(0.002)
        self.kill()
        assert self.status is not None
        return self.status


@dataclass(frozen=True)
class Setting:
    """What a case runs."""

    scenario: str
    model: Path
    tasks: Path

    def start(self, folder: Folder) -> list[Process]:
        """The processes, which write to `folder`."""
        common = [str(self.tasks), "--model", str(self.model)]
        collect = ["collect", *common, "--store", str(folder / "store"), "--strategies", STRATEGIES]
        out = [["--out", str(folder / f"answers{n}.jsonl"), "--resume"] for n in range(2)]
        trained = ["solve", *common, "--strategy", "ttt_direct"]
        shared = [*trained, "--adapters", str(folder / "adapters")]
        commands = {
            "collect": [collect],
            "solve": [[*trained, *out[0]]],
            "adapters": [[*shared, *out[0]], [*shared, *out[1]]],
            "store": [[*collect, "--seeds", "0"], [*collect, "--seeds", "1"]],
            "out": [[*trained, *out[0]], [*trained, *out[0]]],
        }
        return [Process(command, folder / f"log{n}.txt") for n, command in enumerate(commands[self.scenario])]

    def run(self, folder: Folder) -> tuple[float, list[str]]:
        """Runs to the end: seconds, and what went wrong."""
        begin = time.monotonic()
        processes = self.start(folder)
        statuses = [process.wait() for process in processes]
        return time.monotonic() - begin, self.problems(folder, statuses)

    def problems(self, folder: Folder, statuses: list[int | None]) -> list[str]:
        """The exit statuses that are neither 0, nor of a kill, nor of a file that another process writes."""
        problems = []
        for number, status in enumerate(statuses):
            if status in (0, -signal.SIGKILL):
                continue
            log = (folder / f"log{number}.txt").read_text("utf-8", errors="replace")
            if not (self.scenario == "out" and status == 2 and LOCKED in log.splitlines()[-1]):
                problems.append(f"{self.scenario}: ended with status {status}: {' | '.join(log.splitlines()[-3:])}")
        return problems


class KillPart:
    """Up to 1,000 kills."""

    name, goal, unit = "kill", 1000, "kills"

    def __init__(self, state: Path) -> None:
        self._work = state.resolve() / "work"
        self._work.mkdir(parents=True, exist_ok=True)
        self._seconds: dict[str, float] = {}
        """Scenario -> seconds of its last run without a kill."""
        self._references: dict[Setting, list[object]] = {}
        for name in MODELS:
            write_model(name, self._work / name)
        for seed in range(TASK_FILES):
            make_tasks(self._work / f"tasks{seed}.jsonl", seed)

    def run(self, seed: int) -> Case:
        """Kills the processes of a scenario some times, then runs them to the end and checks their files."""
        rng = random.Random(seed)
        setting = Setting(
            rng.choice(SCENARIOS),
            self._work / rng.choice(MODELS),
            self._work / f"tasks{rng.randrange(TASK_FILES)}.jsonl",
        )
        case = Case(Counter({f"scenario {setting.scenario}": 1, f"model {setting.model.name}": 1}))
        expected = self._reference(setting, case)
        folder = self._fresh(f"case-{seed}")
        for _ in range(MAX_KILLS):
            if not self._kill_once(setting, folder, rng, case):
                break
        case.failures += setting.run(folder)[1]
        case.failures += _differences(setting, expected, _checked(setting, folder))
        if not case.failures:
            shutil.rmtree(folder)
        return case

    def _fresh(self, name: str) -> Folder:
        folder = self._work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def _reference(self, setting: Setting, case: Case) -> list[object]:
        """What the files hold after a run without kills; the first run of all shows what has to be imported."""
        if not self._references:
            self._import_what_commands_import()
        if setting not in self._references:
            folder = self._fresh("reference")
            self._seconds[setting.scenario], problems = setting.run(folder)
            case.failures += problems
            self._references[setting] = _checked(setting, folder)
        return self._references[setting]

    def _import_what_commands_import(self) -> None:
        os.environ[MODULES] = str(self._work / "modules.json")
        for scenario in ("collect", "adapters"):
            for model in MODELS:
                Setting(scenario, self._work / model, self._work / "tasks0.jsonl").run(self._fresh("reference"))
                for name in json.loads(Path(os.environ[MODULES]).read_text()):
                    with suppress(ImportError):
                        importlib.import_module(name)
        del os.environ[MODULES]

    def _kill_once(self, setting: Setting, folder: Folder, rng: random.Random, case: Case) -> bool:
        """Starts the processes and kills them at random times; whether any still ran."""
        processes = setting.start(folder)
        waits = sorted(rng.uniform(0, self._seconds[setting.scenario]) for _ in processes)
        rng.shuffle(processes)
        killed = 0
        begin = time.monotonic()
        for process, wait in zip(processes, waits, strict=True):
            time.sleep(max(0.0, begin + wait - time.monotonic()))
            killed += process.kill()
        case.counts += Counter({"kills": killed, f"kills {setting.scenario}": killed})
        case.counts["ended before the kill"] += len(processes) - killed
        case.failures += setting.problems(
            folder, [process.status for process in sorted(processes, key=lambda p: p.pid)]
        )
        case.failures += _torn(folder)
        return killed > 0


def _checked(setting: Setting, folder: Folder) -> list[object]:
    """What the files of a scenario hold."""
    checks: dict[str, list[Callable[[Folder], object]]] = {
        "collect": [_outcomes, _raw_outcomes, _leftovers],
        "solve": [_answers],
        "adapters": [_answers, _adapters, _old_partial_files],
        "store": [_outcomes, _raw_outcomes, _leftovers],
        "out": [_answers],
    }
    values: list[object] = []
    for check in checks[setting.scenario]:
        try:
            values.append((check.__name__, check(folder)))
        except Exception as error:
            values.append((check.__name__, f"raised {type(error).__name__}: {error}"))
    return values


def _differences(setting: Setting, expected: list[object], received: list[object]) -> list[str]:
    return [
        f"{setting.scenario}: expected {one}; received {other}"
        for one, other in zip(expected, received, strict=True)
        if one != other
    ]


def _torn(folder: Folder) -> list[str]:
    """What a kill must not leave: damage other than an incomplete last line, a repeated answer, a damaged adapter."""
    failures = []
    if (folder / "store").is_dir():
        damages = check_outcomes(folder / "store").damages
        failures += [f"after a kill: {damage}" for damage in damages if damage.kind != "torn"]
    for file in folder.glob("answers*.jsonl"):
        *lines, _ = file.read_bytes().split(b"\n")
        ids = [json.loads(line)["id"] for line in lines]
        if len(set(ids)) < len(ids):
            failures.append(f"after a kill: {file.name} has the answers of {ids}")
    if (folder / "adapters").is_dir():
        damaged = [entry for entry in cached_files(folder / "adapters") if entry.problem]
        failures += [f"after a kill: {entry.file.name}: {entry.problem}" for entry in damaged]
    return failures


def _outcomes(folder: Folder) -> object:
    """The outcomes of a store, but for seconds; with damaged parts, of which there are none."""
    rows = [
        (o.key, o.status, o.correct, o.answer, o.token_equivalents, o.losses, dict(o.features), o.relative_cost)
        for o in OutcomeStore(folder / "store").read()
    ]
    return rows, check_outcomes(folder / "store").damages


def _raw_outcomes(folder: Folder) -> object:
    """Rows in the files of a store, in which each outcome stands once."""
    from pyarrow import parquet

    shards = sum(parquet.read_metadata(file).num_rows for file in (folder / "store").glob("*.parquet"))
    return shards + sum(len(file.read_bytes().splitlines()) for file in (folder / "store").glob("_*.jsonl"))


def _leftovers(folder: Folder) -> object:
    """Partial files and journals of a store."""
    return sorted(f.suffix for f in (folder / "store").iterdir() if f.suffix in (".partial", ".jsonl"))


def _answers(folder: Folder) -> object:
    """The answers of each file, in order, but for cost and time."""
    rows = [json.loads(line) for file in sorted(folder.glob("answers*")) for line in file.read_bytes().splitlines()]
    names = ("id", "status", "answer", "strategy", "scores", "adapted", "error", "seed")
    return [[row[name] for name in names] for row in rows]


def _adapters(folder: Folder) -> object:
    """The names of the adapters with what is wrong with each, which is nothing."""
    return sorted((entry.file.name, entry.problem) for entry in cached_files(folder / "adapters"))


def _old_partial_files(folder: Folder) -> object:
    """Partial files that stay although they are older than their age limit."""
    adapters = folder / "adapters"
    old = time.time() - ABANDONED_AFTER - 60
    for file in adapters.glob(".*.partial"):
        os.utime(file, (old, old))
    AdapterCache(folder=adapters)
    return sorted(file.name for file in adapters.glob(".*.partial"))
