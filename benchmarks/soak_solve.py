"""Solves with a fault at a random line of the package: an exception, a cancellation, or a budget that runs out."""

from __future__ import annotations

import hashlib
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from soak_state import Case

import autottt
from autottt import Controller, make_task
from autottt.controller.results import Result
from autottt.policies.policy import HeuristicPolicy
from autottt.strategies.registry import strategies
from autottt.ttt_core.errors import AdaptationError, AutotttError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.model.loading import wrap_model
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

ARCHITECTURES = ("llama", "qwen3", "gpt2", "gemma2")
BUNDLED_SHARE = 0.03
EASY_SHARE = 0.25
EXCEPTIONS = (RuntimeError, MemoryError, KeyboardInterrupt, torch.OutOfMemoryError, AdaptationError)
FAULTS = (*(e.__name__ for e in EXCEPTIONS), "cancel", "budget")
TRAINED = ("ttt_direct", "ttt_in_context", "ttt_augmented", "ttt_crossfit", "ttt_warm")
PACKAGE = str(Path(autottt.__file__).parent)
QUICK = Recipe(rank=2, alpha=2, dropout=0, max_steps=2, batch_size=2, views=2, transformations=1)
TEXTS = (
    make_task([("ab", "ba"), ("cde", "edc"), ("xy", "yx")], "pq"),
    make_task([("one", "ONE"), ("two", "TWO"), ("six", "SIX"), ("ten", "TEN")], "red"),
)
LISTS = (make_task([([1, 2], [2, 1]), ([3, 4, 5], [5, 4, 3]), ([7, 7, 8], [8, 7, 7])], [6, 9]),)


class LineFault:
    """While active, counts the lines of the package that are executed, in every thread, and acts at one of them."""

    def __init__(self, line: int = 0, act: Callable[[], None] = lambda: None) -> None:
        self.lines = 0
        self.place = ""
        """File, line and function at which it acted; empty if the line was not reached."""
        self._line, self._act = line, act

    def __enter__(self) -> LineFault:
        self._before = sys.gettrace(), threading.gettrace()
        threading.settrace(self._call)
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before[0])
        threading.settrace(self._before[1])  # type: ignore[arg-type]

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._trace if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self._line:
                code = frame.f_code
                self.place = f"{code.co_filename[len(PACKAGE) + 1 :]}:{frame.f_lineno} {code.co_qualname}"
                self._act()
        return self._trace


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
        "numpy random": repr(np.random.get_state()),
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


class Solver:
    """A controller with its reference answers."""

    def __init__(self, name: str) -> None:
        if name == "bundled":
            self.controller = Controller.from_pretrained()
            self.tasks = LISTS
        else:
            loaded = wrap_model(tiny_model(name), tiny_tokenizer(), prompt_format="compact")
            learner = Learner(replace(loaded, recipes=dict.fromkeys(strategies(), QUICK)))
            self.controller = Controller(learner, HeuristicPolicy(), budget="1000x")
            self.tasks = TEXTS
        self.learner = self.controller.learner
        self.digest = weights_digest(self.learner.loaded.model)
        self._references: dict[tuple[int, str], tuple[dict[str, object], int, float]] = {}

    def reference(self, number: int, strategy: str) -> tuple[dict[str, object], int, float]:
        """Outcome, executed lines and seconds of a solve without fault."""
        key = number, strategy
        if key not in self._references:
            self.controller.solve(self.tasks[number], strategy=strategy)  # imports everything
            self.learner.clear()
            with LineFault() as counter:
                result = self.controller.solve(self.tasks[number], strategy=strategy)
            self._references[key] = outcome_of(result), counter.lines, result.cost.seconds
        return self._references[key]


class SolvePart:
    """Up to 10,000 solves with a fault."""

    name, goal, unit = "solve", 10_000, "faulted solves"

    def __init__(self, state: Path) -> None:
        self._solvers: dict[str, Solver] = {}

    def run(self, seed: int) -> Case:
        """One solve with a fault, everything that must hold afterwards, and a solve without fault."""
        rng = random.Random(seed)
        name = "bundled" if rng.random() < BUNDLED_SHARE else rng.choice(ARCHITECTURES)
        strategy = "in_context" if rng.random() < EASY_SHARE else rng.choice(TRAINED)
        if name not in self._solvers:
            self._solvers[name] = Solver(name)
        solver = self._solvers[name]
        number = rng.randrange(len(solver.tasks))
        fault = rng.choice(FAULTS)
        reference, lines, seconds = solver.reference(number, strategy)
        line, clears = rng.randint(1, lines), rng.random() < 0.5
        if clears:
            solver.learner.clear()
        case = Case(Counter({"faulted solves": 1, f"model {name}": 1, f"strategy {strategy}": 1, f"fault {fault}": 1}))
        before = snapshot(solver.learner.loaded.model)
        place, raised = self._faulted(solver, solver.tasks[number], strategy, fault, line, rng.random() * seconds, case)
        case.counts[f"raised {raised}"] += 1
        self._check(solver, before, case)
        if not case.failures:
            if rng.random() < 0.5:
                solver.learner.clear()
            self._check_next(solver, number, strategy, reference, case)
        case.failures = [f"{f} (model {name}, {strategy}, {fault} at {place or 'no line'})" for f in case.failures]
        if case.failures:
            del self._solvers[name]
        return case

    def _faulted(
        self, solver: Solver, task: Task, strategy: str, fault: str, line: int, seconds: float, case: Case
    ) -> tuple[str, str]:
        """Solves with a fault; where it happened, and the exception that came of it."""
        cancel = threading.Event()
        types = {e.__name__: e for e in EXCEPTIONS}

        def act() -> None:
            if fault == "cancel":
                cancel.set()
            elif fault != "budget":
                raise types[fault]("injected by the soak")

        tracer = LineFault(line, act)
        budget = max(seconds, 1e-3) if fault == "budget" else None
        try:
            with tracer:
                solver.controller.solve(task, strategy=strategy, budget=budget, cancel=cancel)
            return tracer.place, "nothing"
        except AutotttError as error:
            return tracer.place, type(error).__name__
        except EXCEPTIONS as error:
            if type(error).__name__ != fault:
                case.failures.append(f"{type(error).__name__} where {fault} was injected: {error}")
            return tracer.place, type(error).__name__
        except BaseException as error:
            case.failures.append(f"another exception: {type(error).__name__}: {error}")
            return tracer.place, type(error).__name__

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
