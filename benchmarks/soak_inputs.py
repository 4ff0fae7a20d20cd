"""Mutations of valid files, given to the readers of the package: every exception must be an `AutotttError`."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from soak_state import Case

from autottt.controller.cli.options import settings
from autottt.controller.cli.settings import CONFIG_VARIABLE, read_config
from autottt.policies.bundle_card import BUNDLES, CARD, read_card
from autottt.policies.imported import import_csv
from autottt.ttt_core.errors import AutotttError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora.adapter import Adapter
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.readers import read_lines, read_tasks
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

PAIR = {"input": [1, 2], "output": [2, 1]}
GRID = {"input": [[0, 1], [2, 3]], "output": [[1, 0], [3, 2]]}
CHAT = [{"role": "system", "content": "Reverse."}, {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "ba"}, {"role": "user", "content": [{"type": "text", "text": "cd"}]}]  # fmt: skip  # noqa: E501
DOCUMENTS: dict[str, list[Any]] = {
    "jsonl": [
        {"id": "a", "kind": "list", "demonstrations": [PAIR, PAIR], "query": [3, 4], "answer": [4, 3]},
        {"demonstrations": [{"input": "ab", "output": "ba"}], "queries": [{"input": "xy", "output": "yx"}]},
    ],
    "messages": [{"messages": CHAT}],
    "arc": [{"train": [GRID, GRID], "test": [GRID]}, {"t1": {"train": [GRID], "test": [GRID]}}],
    "bbh": [{"canary": "none", "examples": [{"input": f"q{n}", "target": "yes"} for n in range(4)]}],
    "recipe": [{"rank": 4, "alpha": 4.0, "target_modules": ["all-linear"], "loss": "all", "max_steps": 3}],
}
CSV = b"task,seed,strategy,accuracy,cost\na,0,in_context,0.5,1.0\na,0,ttt_direct,1.0,20\nb,1,in_context,0,2\n"
TOML = b'model = "gpt2"\ndtype = "fp32"\nbudget = "20x"\nseed = 3\n'
ODD: tuple[Any, ...] = (
    None, True, -1, 10**30, 1e308, float("nan"), float("inf"), "", "\ud800", "\x00", "a" * 5000, [], {}, [[]], [None],
    {"role": "user"}, 0.5,
)  # fmt: skip
SNIPPETS = (b"\x00", b"\xff", b"NaN", b"1e999", b"[" * 3000, b'"', b"{", b",", b"\n", b"9" * 5000, b"\\ud800", b"=")
WEIGHTS = {"jsonl": 50, "messages": 15, "arc": 8, "bbh": 7, "recipe": 8, "csv": 6, "toml": 5, "card": 0.2,
           "adapter": 0.8}  # fmt: skip


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to three damages: bits, deletions, repetitions, insertions, truncation."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        to = min(len(data), at + rng.randint(1, 20))
        middle = rng.choice((b"", data[at:to] * 2, rng.choice(SNIPPETS), rng.randbytes(2)))
        data = data[:at] if rng.random() < 0.05 else data[:at] + middle + data[to:]
    return data


def mutated_value(value: Any, rng: random.Random) -> Any:
    """The value, with one part replaced by an odd one, removed, renamed or doubled."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return rng.choice(ODD)
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    action = rng.random()
    if action < 0.1:
        del value[key]
    elif action < 0.2 and isinstance(value, dict):
        value[str(key)[:-1]] = value.pop(key)
    elif action < 0.2:
        value.append(copy.deepcopy(value[key]))
    else:
        value[key] = mutated_value(value[key], rng)
    return value


class InputsPart:
    """Up to 10 million inputs."""

    name, goal, unit = "inputs", 10_000_000, "inputs"

    def __init__(self, state: Path) -> None:
        logging.getLogger("autottt").setLevel(logging.CRITICAL)  # warnings of misspelled fields
        self._folder = state.resolve() / "inputs"
        self._folder.mkdir(parents=True, exist_ok=True)
        os.environ[CONFIG_VARIABLE] = str(self._folder / "config.toml")
        self._card = (BUNDLES / "bundled" / CARD).read_bytes()
        self._settings = settings()
        self._adapter = self._valid_adapter()

    def _valid_adapter(self) -> bytes:
        """The bytes of an adapter file."""
        learner = Learner.wrap(tiny_model("gpt2"), tiny_tokenizer(), prompt_format="compact")
        (loaded,) = read_lines([json.dumps(DOCUMENTS["jsonl"][0])])
        task: Task = loaded.tasks[0]
        file = self._folder / "valid.safetensors"
        learner.adapt([task], Recipe(rank=1, max_steps=1)).save(file)
        return file.read_bytes()

    def run(self, seed: int) -> Case:
        """Reads one damaged input."""
        rng = random.Random(seed)
        (reader,) = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
        case = Case(Counter({"inputs": 1, f"reader {reader}": 1}))
        if reader == "adapter":
            case.counts["binary inputs"] += 1
        try:
            self._reader(reader, rng)()
            case.counts["read"] += 1
        except AutotttError as error:
            case.counts[f"raised {type(error).__name__}"] += 1
        except Exception as error:
            case.failures.append(f"{reader}: {type(error).__name__}: {str(error)[:200]}")
        return case

    def _reader(self, reader: str, rng: random.Random) -> Callable[[], object]:
        """A reader with a damaged input."""
        if reader in DOCUMENTS:
            document = rng.choice(DOCUMENTS[reader])
            if reader == "recipe":
                value = mutated_value(copy.deepcopy(document), rng)
                return lambda: Recipe.from_settings(value)
            if rng.random() < 0.5:
                data = json.dumps(mutated_value(copy.deepcopy(document), rng)).encode()
            else:
                data = mutated_bytes(json.dumps(document).encode(), rng)
            if reader in ("jsonl", "messages"):
                return lambda: list(read_lines([data]))
            return lambda: read_tasks(self._file("tasks.json", data))
        if reader == "csv":
            return lambda: import_csv(self._file("table.csv", mutated_bytes(CSV, rng)))
        if reader == "toml":
            return lambda: (self._file("config.toml", mutated_bytes(TOML, rng)), read_config(self._settings))
        if reader == "card":
            return lambda: read_card(self._file(CARD, mutated_bytes(self._card, rng)).parent)
        return lambda: Adapter.load(self._file("a.safetensors", mutated_bytes(self._adapter, rng)))

    def _file(self, name: str, data: bytes) -> Path:
        file = self._folder / name
        file.write_bytes(data)
        return file


def measure_coverage(state: Path, count: int) -> dict[str, Any]:
    """Branch coverage of the readers over inputs of the seeds from 0, in percent by file. Needs coverage.py."""
    try:
        import coverage
    except ImportError:
        raise SystemExit("--coverage needs coverage.py: pip install coverage") from None
    names = ("tasks/readers", "tasks/formats", "tasks/messages", "tasks/fields", "recipes", "imported", "cli/settings",
             "bundle_card", "lora/adapter")  # fmt: skip
    part = InputsPart(state)
    measured = coverage.Coverage(branch=True, data_file=None, include=[f"*/{name}.py" for name in names])
    measured.start()
    for seed in range(count):
        part.run(seed)
    measured.stop()
    shares = {}
    for file in sorted(measured.get_data().measured_files()):
        numbers = measured._analyze(file).numbers
        shares["/".join(Path(file).parts[-2:])] = {"branches": numbers.n_branches, "taken": numbers.n_executed_branches}
    return {"inputs": count, "files": shares}
