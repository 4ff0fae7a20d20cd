"""Solves with a fault at a random line of the package: an exception, a cancellation, or a budget that runs out.

A first solve without fault records every line that is executed. A fault acts at one of them; only the function with
this line is traced.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import logging
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch
from soak_models import CLASSES, QUICK, smallest_model
from soak_state import Case

import autottt
from autottt import Controller, make_task
from autottt.controller.results import Result
from autottt.policies.policy import HeuristicPolicy
from autottt.strategies.registry import strategies
from autottt.ttt_core.engine.adapter_cache import AdapterCache, cached_files
from autottt.ttt_core.errors import AdaptationError, AutotttError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.model.loading import wrap_model
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.testing import tiny_tokenizer

BUNDLED_SHARE = 0.005
EASY_SHARE = 0.25
WITH_FOLDER = ("gpt2", "phi3")
"""Models whose adapters are in a folder as well."""
EXCEPTIONS = (RuntimeError, MemoryError, KeyboardInterrupt, torch.OutOfMemoryError, AdaptationError)
FAULTS = (*(e.__name__ for e in EXCEPTIONS), "cancel", "budget")
TRAINED = ("ttt_direct", "ttt_in_context", "ttt_augmented", "ttt_crossfit", "ttt_warm")
PACKAGE = str(Path(autottt.__file__).parent)
TEXTS = (
    make_task([("ab", "b"), ("cd", "d"), ("xy", "y")], "pq"),
    make_task([("one", "O"), ("two", "T"), ("six", "S"), ("ten", "T")], "red"),
)
LISTS = (make_task([([1, 2], [2, 1]), ([3, 4, 5], [5, 4, 3]), ([7, 7, 8], [8, 7, 7])], [6, 9]),)


@functools.cache
def harmless_offsets(code: CodeType) -> frozenset[int]:
    """The offsets at which nothing can be raised, although the tracer sees a line there: `try:`, and the end of a
    `with` block, between which and `__exit__` nothing is executed."""
    instructions = list(dis.get_instructions(code))
    names = [one.opname for one in instructions]
    offsets = set()
    for at, one in enumerate(instructions):
        if one.opname == "NOP":
            offsets.add(one.offset)
        if one.opname == "SWAP":  # a value that the block returns is on the stack
            at += 1
        constants = [i.argval for i in instructions[at : at + 3] if i.opname == "LOAD_CONST"]
        called = names[at + 3 : at + 4] in (["PRECALL"], ["CALL"])
        if (constants == [None] * 3 and called) or names[at : at + 2] == ["PUSH_EXC_INFO", "WITH_EXCEPT_START"]:
            offsets.add(one.offset)
    return frozenset(offsets)


@dataclass(frozen=True)
class Place:
    """One executed line: the `number`th, from 1, of those of a function."""

    code: CodeType
    number: int


class Recording:
    """While active, records the lines of the package that are executed, in every thread."""

    def __init__(self) -> None:
        self._codes: list[CodeType] = []

    def __enter__(self) -> Recording:
        _trace_with(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        _trace_with(None)

    def __len__(self) -> int:
        return len(self._codes)

    def place(self, line: int) -> Place:
        """The place of the line of a number, from 0."""
        code = self._codes[line]
        return Place(code, sum(one is code for one in self._codes[: line + 1]))

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line" and frame.f_lasti not in harmless_offsets(frame.f_code):
            self._codes.append(frame.f_code)
        return self._line


class LineFault:
    """While active, acts at one line, in whatever thread it is executed."""

    def __init__(self, place: Place, act: Callable[[], None]) -> None:
        self.acted_at = ""
        """File, line and function at which it acted; empty if the line was not reached."""
        self._code, self._left, self._act = place.code, place.number, act

    def __enter__(self) -> LineFault:
        _trace_with(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        _trace_with(None)

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._line if frame.f_code is self._code and self._left else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line" and self._left and frame.f_lasti not in harmless_offsets(frame.f_code):
            self._left -= 1
            if not self._left:
                _trace_with(None)
                file = frame.f_code.co_filename[len(PACKAGE) + 1 :]
                self.acted_at = f"{file}:{frame.f_lineno} {frame.f_code.co_qualname}"
                self._act()
        return self._line


def _trace_with(function: Any) -> None:
    threading.settrace(function)
    sys.settrace(function)


def snapshot(model: torch.nn.Module) -> dict[str, object]:
    """What a solve must leave as it was, besides the weights. Without the state of Python's `random`, from which
    LangGraph draws the ids of runs."""
    modules, parameters = list(model.modules()), list(model.parameters())
    return {
        "modes": [m.training for m in modules],
        "hooks": [(k, list(v)) for m in modules for k, v in vars(m).items() if k.endswith("_hooks") and v],
        "requires_grad": [p.requires_grad for p in parameters],
        "gradients": [p.grad is None for p in parameters],
        "gradient mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "numpy random": [np.asarray(part).tobytes() for part in np.random.get_state()],
        "torch random": torch.get_rng_state().numpy().tobytes(),
    }


def weights_digest(model: torch.nn.Module) -> str:
    """A digest of every parameter and buffer, computed without the package."""
    digest = hashlib.blake2b()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def outcome_of(result: Result) -> dict[str, object]:
    """What two solves of a task have in common: everything but the cost."""
    plain = result.to_plain()
    return {name: repr(plain[name]) for name in ("status", "answer", "strategy", "adapted", "difficulty", "scores")}


@dataclass(frozen=True)
class Reference:
    """A solve without fault."""

    outcome: dict[str, object]
    lines: Recording
    seconds: float


class Solver:
    """A controller with its reference answers."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder / name if name in WITH_FOLDER else None
        if name == "bundled":
            self.controller = Controller.from_pretrained()
            self.tasks = LISTS
        else:
            loaded = wrap_model(smallest_model(name), tiny_tokenizer(), prompt_format="compact")
            loaded = replace(loaded, recipes=dict.fromkeys(strategies(), Recipe.from_settings(QUICK)))
            learner = Learner(loaded, adapters=AdapterCache(folder=self.folder))
            self.controller = Controller(learner, HeuristicPolicy(), budget="1000x")
            self.tasks = TEXTS
        self.learner = self.controller.learner
        self.digest = weights_digest(self.learner.loaded.model)
        self._references: dict[tuple[int, str], Reference] = {}

    def clear(self) -> None:
        """Drops all adapters and prefixes, those in the folder as well."""
        self.learner.clear()
        for file in self.folder.glob("*") if self.folder else ():
            file.unlink()

    def reference(self, number: int, strategy: str) -> Reference:
        """Outcome and executed lines of a solve without fault."""
        key = number, strategy
        if key not in self._references:
            self.controller.solve(self.tasks[number], strategy=strategy)  # imports everything
            self.clear()
            with Recording() as lines:
                result = self.controller.solve(self.tasks[number], strategy=strategy)
            self._references[key] = Reference(outcome_of(result), lines, result.cost.seconds)
        return self._references[key]


class SolvePart:
    """Up to 10,000 solves with a fault."""

    name, goal, unit = "solve", 10_000, "faulted solves"

    def __init__(self, state: Path) -> None:
        logging.getLogger("autottt").setLevel(logging.CRITICAL)
        self._solvers: dict[str, Solver] = {}
        self._folder = state.resolve() / "adapters"
        for name in (*CLASSES, "bundled"):  # at once, so that memory does not grow later
            self._solvers[name] = Solver(name, self._folder)
            self._solvers[name].reference(0, "in_context")

    def run(self, seed: int) -> Case:
        """One solve with a fault, everything that must hold afterwards, and a solve without fault."""
        rng = random.Random(seed)
        name = "bundled" if rng.random() < BUNDLED_SHARE else rng.choice(CLASSES)
        strategy = "in_context" if rng.random() < EASY_SHARE else rng.choice(TRAINED)
        if name not in self._solvers:
            self._solvers[name] = Solver(name, self._folder)
        solver = self._solvers[name]
        number, fault = rng.randrange(len(solver.tasks)), rng.choice(FAULTS)
        reference = solver.reference(number, strategy)
        line, seconds = rng.randrange(len(reference.lines)), rng.random() * reference.seconds
        if rng.random() < 0.8:  # else what earlier solves cached is used
            solver.clear()
        case = Case(Counter({"faulted solves": 1, f"model {name}": 1, f"strategy {strategy}": 1, f"fault {fault}": 1}))
        before = snapshot(solver.learner.loaded.model)
        place, raised = self._faulted(solver, number, strategy, fault, reference.lines.place(line), seconds, case)
        case.counts[f"raised {raised}"] += 1
        case.counts["line not reached"] += not place
        self._check(solver, before, case)
        if not case.failures:
            if rng.random() < 0.2:
                solver.clear()
            self._check_next(solver, number, strategy, reference.outcome, case)
        case.failures = [f"{f} (model {name}, {strategy}, {fault} at {place or 'no line'})" for f in case.failures]
        if case.failures:
            del self._solvers[name]
        return case

    def _faulted(
        self, solver: Solver, number: int, strategy: str, fault: str, place: Place, seconds: float, case: Case
    ) -> tuple[str, str]:
        """Solves with a fault; where it happened, and the exception that came of it."""
        cancel = threading.Event()
        types = {e.__name__: e for e in EXCEPTIONS}

        def act() -> None:
            if fault == "cancel":
                cancel.set()
            elif fault != "budget":
                raise types[fault]("injected by the soak")

        tracer = LineFault(place, act)
        budget = max(seconds, 1e-3) if fault == "budget" else None
        try:
            with tracer:
                solver.controller.solve(solver.tasks[number], strategy=strategy, budget=budget, cancel=cancel)
            return tracer.acted_at, "nothing"
        except AutotttError as error:
            return tracer.acted_at, type(error).__name__
        except EXCEPTIONS as error:
            if type(error).__name__ != fault:
                case.failures.append(f"{type(error).__name__} where {fault} was injected: {error}")
            return tracer.acted_at, type(error).__name__
        except BaseException as error:
            case.failures.append(f"another exception: {type(error).__name__}: {error}")
            return tracer.acted_at, type(error).__name__

    def _check(self, solver: Solver, before: dict[str, object], case: Case) -> None:
        """Locks, everything that a solve must leave, and every bit of the base."""
        if not locks_are_free(solver.learner):
            case.failures.append("a lock of the model is held after the solve")
            return
        model = solver.learner.loaded.model
        after = snapshot(model)
        case.failures += [f"changed: {name}" for name in before if before[name] != after[name]]
        torch.set_grad_enabled(True)
        if weights_digest(model) != solver.digest:
            case.failures.append("the weights of the base changed")
        for entry in cached_files(solver.folder) if solver.folder else ():
            if entry.problem:
                case.failures.append(f"a damaged adapter in the folder: {entry.problem}")
        try:
            solver.learner.verify(full=True)
        except AutotttError as error:
            case.failures.append(f"verification: {type(error).__name__}: {error}")

    def _check_next(self, solver: Solver, number: int, strategy: str, reference: dict[str, object], case: Case) -> None:
        """Solves without fault, and compares with the reference."""
        try:
            outcome = outcome_of(solver.controller.solve(solver.tasks[number], strategy=strategy))
        except Exception as error:
            case.failures.append(f"the next solve raised {type(error).__name__}: {error}")
            return
        case.counts["next solves"] += 1
        case.failures += [
            f"the next solve has another {name}: {outcome[name]} for {reference[name]}"
            for name in reference
            if outcome[name] != reference[name]
        ]


def locks_are_free(learner: Learner) -> bool:
    """Whether another thread gets both locks of the model."""
    free: list[bool] = []

    def refuse() -> None:
        raise TimeoutError

    def take() -> None:
        lock = learner.guarded.lock
        try:
            with lock.exclusive(refuse):
                if lock.compute.acquire(timeout=1):
                    lock.compute.release()
                    free.append(True)
        except TimeoutError:
            pass

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return bool(free)
