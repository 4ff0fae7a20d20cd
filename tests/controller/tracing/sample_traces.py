"""Traces that tests share: runs of a tiny model, a long one, and one that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from autottt.controller.controller import Controller
from autottt.controller.tracing.page import page_of
from autottt.controller.tracing.recorder import TraceRecorder
from autottt.controller.tracing.trace import TRACE_VERSION, Trace
from autottt.policies.policy import FixedPolicy, HeuristicPolicy, Policy
from autottt.strategies.registry import strategies
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

QUICK = Recipe(rank=2, alpha=2.0, dropout=0.0, max_steps=3, batch_size=2, transformations=2, views=3)
GRID = make_task([([[1, 2], [0, 3]], [[2, 1], [3, 0]])] * 3, [[5, 6], [7, 8]], answer=[[6, 5], [8, 7]], id="mirror/3")
LIST = make_task([([1, 2, 3], [3, 2, 1]), ([4, 5], [5, 4]), ([7, 8, 9], [9, 8, 7])], [6, 2], answer=[2, 6], id="rev")
HOSTILE = make_task(
    [("<script>alert(1)</script>", "b"), ("</script><b>", "d"), ("e", "f")], "</pre><img src=x>", id="<b>"
)
"""A task whose texts would be code in a page that does not escape them."""


def small_learner(recipe: Recipe = QUICK) -> Learner:
    """A tiny model that every strategy trains with a recipe, by default for three steps."""
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer(), prompt_format="compact")
    learner.loaded = replace(learner.loaded, recipes=dict.fromkeys(strategies(), recipe))
    return learner


def traces_of(learner: Learner, policy: Policy, tasks: Sequence[Task], *, together: bool = False) -> list[Trace]:
    """The traces of runs, as a store returns them; `together`: of one call."""
    traces: list[Trace] = []

    class Target:
        def write(self, trace: Trace) -> None:
            traces.append(trace.as_stored())

    controller = Controller(learner, policy, trace=TraceRecorder([Target()]))
    if together:
        controller.solve_many(tasks)
    else:
        for task in tasks:
            controller.solve(task)
    return traces


def trace_of(strategy: str, task: Task) -> Trace:
    """The trace of one run by a strategy, or as a rule of thumb decides for `heuristic`."""
    policy = HeuristicPolicy() if strategy == "heuristic" else FixedPolicy(strategy)
    return traces_of(small_learner(), policy, [task])[0]


def page(trace: Trace) -> str:
    """The page of a trace."""
    return page_of(trace, list(strategies()))


def span(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "at": 0.0, "seconds": 1.0, "status": "ok", **more}


def trace_with(root: dict[str, Any], *, content: bool = True) -> Trace:
    return Trace({"version": TRACE_VERSION, "id": "1", "time": "2026-01-31", "content": content, "root": root})


def long_trace(prompts: int = 10, words: int = 8000) -> Trace:
    """250 training steps, and long prompts that all differ."""
    losses = [{"at": n / 100, "step": n, "loss": 1 / n} for n in range(1, 251)]
    texts = [f"prompt{number} " + "word " * words for number in range(prompts)]
    decoding = span("decode", attributes={"prompts": texts, "texts": ["x"] * prompts})
    evaluations = [span("evaluate", attributes={"step": n, "right": n // 90, "of": 3}) for n in range(10, 251, 10)]
    train = span("train", events=losses, children=evaluations)
    adapter = span("adapter", attributes={"strategy": "ttt_direct"}, children=[train])
    node = span("ttt_direct", attributes={"node": "ttt_direct"}, children=[adapter, decoding])
    task = {
        "kind": "text", "demonstrations": [{"input": p, "output": "x"} for p in texts[:3]], "query": "q",
        "answer": None, "instruction": None, "id": "long",
    }  # fmt: skip
    edges = [["__start__", "measure"], ["measure", "decide"], ["decide", "ttt_direct"]]
    return trace_with(span("run", attributes={"task": task, "edges": edges}, children=[node]))


def failed_trace() -> Trace:
    """A run that ended with an exception while it was measured, before anything was decided."""
    measure = span("measure", attributes={"node": "measure"}, status="error", error="TooLongError: 9000 tokens")
    verify = span("verify", attributes={"method": "pointers", "tensors": 58, "hash": "0bbf"})
    root = span(
        "run", attributes={"id": "1", "edges": [["__start__", "measure"]]}, status="error",
        error="TooLongError: 9000 tokens", children=[measure, verify],
    )  # fmt: skip
    return trace_with(root)
