"""Mutations of valid files, given to the readers of the package: every exception must be an `AutotttError`, in time.

A case is a block of inputs: 500 for readers of text, in this process, or 25 for readers of binary files and templates,
in a forked one.
"""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import Any

import gguf  # noqa: F401 - imported before processes are forked
import skops.io  # noqa: F401
from pyarrow import parquet  # noqa: F401
from soak_readers import BinaryReaders, Reader, RenderingTooLongError, TextReaders
from soak_state import Case

from autottt.controller.cli.settings import CONFIG_VARIABLE
from autottt.ttt_core.errors import AutotttError

TEXT_BLOCK, BINARY_BLOCK = 500, 25
BINARY_EVERY = 10
"""One block in this number of blocks is binary: 1 input in 181."""
MAX_SECONDS = 1.0
"""Processor time that a reader of text may take for an input."""
MAX_BINARY_SECONDS = 10.0
"""Processor time of a reader of binary files; that of a template is limited by the process that renders it."""
MEMORY = 2 << 30
"""Bytes by which the address space of a process of binary readers may grow."""
READERS = (
    "tasks/readers", "tasks/formats", "tasks/messages", "tasks/fields", "tasks/kinds", "ttt_core/recipes",
    "policies/csv_import", "policies/outcome_files", "policies/outcomes", "policies/serving_logs",
    "policies/bundle_card", "policies/card_fields", "policies/bundle", "cli/settings", "cli/answer_files",
    "lora/adapter", "lora/weights", "model/gguf_files", "model/templates", "model/template_process",
    "model/chat_prompts",
)  # fmt: skip
"""The files whose coverage is reported."""


class InputsPart:
    """Up to 10 million inputs."""

    name, goal, unit = "inputs", 10_000_000, "inputs"

    def __init__(self, state: Path) -> None:
        logging.disable(logging.CRITICAL)  # warnings of misspelled fields
        warnings.simplefilter("ignore")  # of libraries about odd values
        valid = state.resolve() / "valid"
        if not (valid / "complete").exists():
            script = Path(__file__).with_name("soak_files.py")
            subprocess.run([sys.executable, str(script), str(valid)], check=True, stdout=subprocess.DEVNULL)
        memory = Path("/dev/shm")
        self._temporary = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="soak-")
        scratch = Path(self._temporary.name)
        os.environ[CONFIG_VARIABLE] = str(scratch / "config.toml")
        self.text, self.binary = TextReaders(valid, scratch).readers, BinaryReaders(valid, scratch).readers
        self._failures = state.resolve() / "failed inputs"

    def run(self, seed: int) -> Case:
        """Reads a block of damaged inputs."""
        return self.read_text(seed) if seed % BINARY_EVERY < BINARY_EVERY - 1 else self._in_fork(seed)

    def read_text(self, seed: int) -> Case:
        """Reads a block of texts."""
        return self._read_block(seed, self.text, TEXT_BLOCK, MAX_SECONDS)

    def read_binary(self, seed: int) -> Case:
        """Reads a block of binary files and templates, in this process."""
        case = self._read_block(seed, self.binary, BINARY_BLOCK, MAX_BINARY_SECONDS)
        case.counts["binary inputs"] = BINARY_BLOCK
        return case

    def _read_block(self, seed: int, readers: dict[str, Reader], size: int, limit: float) -> Case:
        rng = random.Random(seed)
        sums = list(accumulate(reader.weight for reader in readers.values()))
        names = rng.choices(list(readers), cum_weights=sums, k=size)
        case = Case(Counter(f"reader {name}" for name in names))
        case.counts["inputs"] = size
        results: list[str] = []
        for number, name in enumerate(names):
            reader = readers[name]
            data = reader.damaged(rng)
            begin = time.process_time()
            try:
                reader.read(data)
                results.append("read")
            except AutotttError as error:
                results.append(f"raised {type(error).__name__}")
            except RenderingTooLongError:
                results.append("raised the time limit of a template")
            except Exception as error:
                self._failed(case, seed, number, name, data, f"{type(error).__name__}: {str(error)[:200]}")
            if (seconds := time.process_time() - begin) > limit:
                self._failed(case, seed, number, name, data, f"took {seconds:.1f} seconds")
        case.counts += Counter(results)
        return case

    def _failed(self, case: Case, seed: int, number: int, name: str, data: bytes, what: str) -> None:
        self._failures.mkdir(exist_ok=True)
        (self._failures / f"{seed}-{number}-{name}").write_bytes(data)
        case.failures.append(f"{name}, input {number}: {what}")

    def _in_fork(self, seed: int) -> Case:
        """Reads a block in a forked process, whose end by a signal is a failure."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                limit_memory()
                case = self.read_binary(seed)
                os.write(writing, json.dumps([case.counts, case.failures])[:60000].encode())
                os._exit(0)
            finally:
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading, "rb") as answer:
            text = answer.read()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status or not text:
            return Case(Counter({"inputs": BINARY_BLOCK, "binary inputs": BINARY_BLOCK}), [f"ended with {status}"])
        counts, failures = json.loads(text)
        return Case(Counter(counts), failures)


def limit_memory() -> None:
    """Limits the address space of this process to what it has and `MEMORY`."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def measure_coverage(state: Path, blocks: int) -> dict[str, Any]:
    """Branch coverage of the readers over the given numbers of blocks of texts and of binary files. Needs coverage.py.

    Counted are the functions that reading enters: the files of the readers write as well.
    """
    try:
        import coverage
    except ImportError:
        raise SystemExit("--coverage needs coverage.py: pip install coverage") from None
    part = InputsPart(state)
    measured = coverage.Coverage(branch=True, data_file=None, include=[f"*/{name}.py" for name in READERS])
    measured.start()
    cases = [read(seed) for seed in range(blocks) for read in (part.read_text, part.read_binary)]
    measured.stop()
    report = state / "coverage report.json"
    measured.json_report(outfile=str(report))
    files: dict[str, dict[str, int]] = {}
    for name, file in json.loads(report.read_text("utf-8"))["files"].items():
        entered = [f["summary"] for f in file["functions"].values() if f["executed_lines"]]
        branches, taken = (sum(f[key] for f in entered) for key in ("num_branches", "covered_branches"))
        if entered:
            files[name] = {"functions": len(entered), "branches": branches, "taken": taken}
    branches, taken = (sum(file[key] for file in files.values()) for key in ("branches", "taken"))
    share = round(taken / branches, 3) if branches else None
    inputs = sum(case.counts["inputs"] for case in cases)
    return {"inputs": inputs, "branches": branches, "taken": taken, "share": share, "files": files}
