"""The algorithm as a graph. All edges stand in `build_graph`; reading it is reading how a task is solved.

```mermaid
graph TD;
        __start__ --> measure;
        decide -.-> in_context;
        decide -.-> in_context_vote;
        decide -.-> ttt_augmented;
        decide -.-> ttt_crossfit;
        decide -.-> ttt_direct;
        decide -.-> ttt_in_context;
        decide -.-> ttt_race;
        decide -.-> ttt_warm;
        decide -.-> zero_shot;
        in_context --> judge;
        in_context_vote --> judge;
        judge -.-> decide;
        judge -.-> revert;
        measure --> decide;
        ttt_augmented --> judge;
        ttt_crossfit --> judge;
        ttt_direct --> judge;
        ttt_in_context --> judge;
        ttt_race --> judge;
        ttt_warm --> judge;
        zero_shot --> judge;
        revert --> __end__;
```
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from langgraph.graph import END, START, StateGraph

from ..strategies.registry import get_strategy, strategies
from .nodes import decide, judge, measure, revert, strategy_node
from .state import Context, State, TaskInput, TaskOutput
from .task_graph import TaskGraph


def build_graph(checkpointer: Any = None, context_of: Callable[[], Context] | None = None) -> TaskGraph:
    """The compiled graph. Its input is `{"task": ..., "seed": ...}` (`TaskInput`), its output `TaskOutput`.

    `checkpointer` is LangGraph's. The nodes work with the `Context` that a run is given as `context=`, else with that
    of `context_of`, which is called once a run.
    """
    graph = StateGraph(State, context_schema=Context, input_schema=TaskInput, output_schema=TaskOutput)
    graph.add_node("measure", measure)
    graph.add_node("decide", decide)
    graph.add_node("judge", judge)
    graph.add_node("revert", revert)
    graph.add_edge(START, "measure")
    graph.add_edge("measure", "decide")
    for name, strategy in strategies().items():
        graph.add_node(name, strategy_node(strategy))
        graph.add_edge(name, "judge")
    graph.add_conditional_edges("decide", chosen_strategy, list(strategies()))
    graph.add_conditional_edges("judge", after_judging, ["decide", "revert"])
    graph.add_edge("revert", END)
    return TaskGraph.of(graph.compile(checkpointer=checkpointer, name="autottt"), context_of)


def chosen_strategy(state: State) -> str:
    """From `decide` to the node of the strategy that it chose. Raises `StrategyError` for a name that a host wrote into
    the decision and that is unknown."""
    return get_strategy(str(state["decision"]["strategy"])).name


def after_judging(state: State) -> Literal["decide", "revert"]:
    """From `judge`: an accepted attempt ends; escalating and falling back decide anew."""
    return "revert" if state["verdict"]["action"] == "accept" else "decide"
