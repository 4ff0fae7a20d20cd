"""A LangGraph agent that answers puzzles: it trains on one only after a person has approved.

    python examples/agent.py [--refuse]

The controller is used twice: as a node, which may train, and as a tool, which answers in context. A checkpointer keeps
the run while the agent waits for the person. `langgraph dev` opens the same graph (langgraph.json).
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import asdict
from functools import cache
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, interrupt
from typing_extensions import TypedDict

from autottt import Controller, Result, make_task

EASY = {"demonstrations": [["cat", "tac"], ["dog", "god"], ["owl", "lwo"]], "query": "fox"}
HARD = {  # in context the model gets the prefix wrong
    "demonstrations": [
        [[8, 3, 7, 9], [9, 6, 3, 8, 5, 8, 3, 7, 9]],
        [[4, 6, 7, 0, 7, 7, 1, 9], [9, 6, 3, 8, 5, 4, 6, 7, 0, 7, 7, 1, 9]],
        [[6], [9, 6, 3, 8, 5, 6]],
        [[], [9, 6, 3, 8, 5]],
        [[5, 2, 0, 2, 4, 0, 3, 2, 4], [9, 6, 3, 8, 5, 5, 2, 0, 2, 4, 0, 3, 2, 4]],
    ],
    "query": [0, 3, 4, 5, 0, 0, 5],
}


class Work(TypedDict, total=False):
    """The state of the agent."""

    puzzle: dict[str, Any]
    """`demonstrations`, pairs of an input and its output, and a `query`."""
    task: Any
    decision: dict[str, Any]
    """What the policy would do: `strategy`, `reason`, and `cost` in multiples of the in-context answer."""
    approved: bool
    answer: Any
    result: dict[str, Any]


def build(controller: Controller, checkpointer: BaseCheckpointSaver[Any] | None = None) -> CompiledStateGraph[Any]:
    """The agent around a controller. Its state is plain data, which every checkpointer can store."""
    at_once = controller.as_node(strategy="in_context").as_tool(
        name="answer_at_once", description="Answers a task in context, without training."
    )

    def plan(state: Work) -> Work:
        """Reads the puzzle and asks the policy, which is not followed yet."""
        puzzle = state["puzzle"]
        task = make_task([(pair[0], pair[1]) for pair in puzzle["demonstrations"]], puzzle["query"])
        decision, _ = controller.decide(task)
        cost = decision.costs.get(decision.strategy, 1.0)
        facts = {"strategy": decision.strategy, "reason": decision.reason, "cost": cost}
        return {"task": asdict(task), "decision": facts}

    def approve(state: Work) -> Work:
        """Asks a person; the run stops here until `Command(resume=True)`, or False, continues it."""
        return {"approved": bool(interrupt({"question": "Train on this task?", **state["decision"]}))}

    def ask_tool(state: Work) -> Work:
        output = at_once.invoke({"task": state["task"]})
        return {"answer": output["answer"], "result": output["result"]}

    def after_plan(state: Work) -> str:
        return "approve" if state["decision"]["strategy"].startswith("ttt") else "solve"

    def after_approval(state: Work) -> str:
        return "solve" if state["approved"] else "answer_at_once"

    graph = StateGraph(Work)
    graph.add_node("plan", plan)
    graph.add_node("approve", approve)
    graph.add_node("solve", controller.as_node())
    graph.add_node("answer_at_once", ask_tool)
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", after_plan, ["approve", "solve"])
    graph.add_conditional_edges("approve", after_approval, ["solve", "answer_at_once"])
    graph.add_edge("solve", END)
    graph.add_edge("answer_at_once", END)
    return graph.compile(checkpointer=checkpointer)


@cache
def default_controller() -> Controller:
    return Controller.from_pretrained()


# `langgraph dev` asks for a graph at each run, brings its own checkpointer, and refuses work in its event loop.


@cache
def _agent() -> CompiledStateGraph[Any]:
    return build(default_controller())


@cache
def _solver() -> CompiledStateGraph[Any, Any, Any, Any]:
    return default_controller().as_node()


async def make_graph() -> CompiledStateGraph[Any]:
    """The agent for `langgraph dev`."""
    return await asyncio.to_thread(_agent)


async def make_solver() -> CompiledStateGraph[Any, Any, Any, Any]:
    """The controller's own graph for `langgraph dev`; its input has a `task` in plain form."""
    return await asyncio.to_thread(_solver)


def run(agent: CompiledStateGraph[Any], name: str, puzzle: dict[str, Any], approved: bool) -> None:
    """Runs the agent on a puzzle, in a thread of its own, and answers its question."""
    thread: Any = {"configurable": {"thread_id": name}}
    start: Any = {"puzzle": puzzle}
    while start is not None:
        asked = show(agent.stream(start, thread, stream_mode=["updates", "custom"]))
        start = Command(resume=approved) if asked else None
    state = agent.get_state(thread).values
    result = Result.from_plain(state["result"])
    print(f"{name}: {puzzle['query']} -> {state['answer']} ({result.strategy}, {result.cost.seconds:.1f} s)")


def show(events: Any) -> bool:
    """Prints the events of a run as they happen; returns whether it has stopped to ask."""
    for mode, event in events:
        if mode == "custom":  # a step of the training in the node
            print(f"  step {event['step']} of at most {event['max_steps']}: loss {event['loss']:.3f}")
        elif "__interrupt__" in event:
            question = event["__interrupt__"][0].value
            print(f"  {question['question']} {question['strategy']}: {question['reason']}")
            return True
        else:
            print(f"  finished: {', '.join(event)}")
    return False


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--refuse", action="store_true", help="answer the agent's question with no")
    approved = not parser.parse_args(arguments).refuse
    agent = build(default_controller(), InMemorySaver())
    run(agent, "easy", EASY, approved)
    run(agent, "hard", HARD, approved)


if __name__ == "__main__":
    main()
