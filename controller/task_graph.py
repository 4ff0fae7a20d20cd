"""A compiled graph whose runs are checked, bound to a context, and cancelled when nobody reads them any more.

What LangGraph lacks for a graph that other programs embed. Knows nothing about the nodes.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import Any, cast

from langchain_core.runnables.config import var_child_runnable_config
from langgraph.config import get_stream_writer
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import get_runtime
from langgraph.types import Command
from pydantic import BaseModel, create_model

from ..ttt_core.errors import TaskError
from ..ttt_core.tasks.fields import check_seed
from .plain_tasks import checked_task, task_to_plain
from .session import session_of
from .state import Context, State, TaskInput, TaskOutput


class TaskGraph(CompiledStateGraph[State, Context, TaskInput, TaskOutput]):
    """The compiled graph of `build_graph`, to run by itself or as a node of another graph.

    Its input is checked before a node runs: `TaskError` names the field that is missing or invalid. A run whose reader
    is closed, or whose coroutine is cancelled, stops before its next training step or token. As a node of a parent
    graph that streams with `stream_mode="custom"`, its training steps arrive in the parent's stream.
    """

    def __init__(self, *, context_of: Callable[[], Context] | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.context_of = context_of

    @classmethod
    def of(
        cls, compiled: CompiledStateGraph[Any, Any, Any, Any], context_of: Callable[[], Context] | None
    ) -> TaskGraph:
        """Makes a task graph of what `StateGraph.compile` returned, which has no hook for a class of one's own."""
        compiled.__class__ = cls
        graph = cast(TaskGraph, compiled)
        graph.context_of = context_of
        return graph

    def get_input_schema(self, config: Any = None) -> type[BaseModel]:
        """The input for tools, such as `as_tool` makes. The seed has a default, which LangGraph's schema lacks; the
        task is any value, since Pydantic would build a `Task` without checking it."""
        return create_model(self.get_name("Input"), task=(Any, ...), seed=(int, 0))

    def get_context_jsonschema(self) -> None:
        """None: a context holds a model and a policy, which no JSON describes."""

    def stream(self, input: Any, config: Any = None, *, context: Any = None, **options: Any) -> Any:
        """See LangGraph's `Pregel.stream`."""
        closed = threading.Event()
        context = self._context_of_run(context, closed, options.get("stream_mode"))
        given = _checked_input(input)
        context, finish = recorded_run(context, config)
        events: Any = super().stream(given, config, context=context, **options)
        error: BaseException | None = None
        try:
            for event in events:  # noqa: UP028 - `yield from` would close `events` before `closed` is set
                yield event
        except BaseException as raised:
            error = raised
            raise
        finally:
            closed.set()  # first: closing LangGraph's generator waits for the node that runs
            events.close()
            finish(error)

    async def astream(self, input: Any, config: Any = None, *, context: Any = None, **options: Any) -> Any:
        """See LangGraph's `Pregel.astream`."""
        closed = threading.Event()
        context = self._context_of_run(context, closed, options.get("stream_mode"))
        given = _checked_input(input)
        context, finish = recorded_run(context, config)
        events: AsyncIterator[Any] = super().astream(given, config, context=context, **options)
        error: BaseException | None = None
        try:
            async for event in events:
                yield event
        except BaseException as raised:
            error = raised
            raise
        finally:
            closed.set()
            finish(error)

    def _context_of_run(self, context: Any, closed: threading.Event, modes: Any) -> Any:
        """The context of one run: what the caller gave, else `context_of`, else that of the parent graph. Servers of
        LangGraph give an empty mapping where there is none."""
        if not context:
            context = self.context_of() if self.context_of is not None else parent_context()
        if not isinstance(context, Context):
            return context
        context = replace(context, stops=(*context.stops, closed))
        if context.on_event is None and "custom" not in ([modes] if isinstance(modes, str) else modes or []):
            context = replace(context, on_event=parent_stream_writer())
        return context


Finish = Callable[[BaseException | None], None]
"""Ends the record of a run, with what it raised."""


def recorded_run(context: Context | None, config: Any) -> tuple[Context | None, Finish]:
    """The context of a run that is recorded, and what ends its record. A run whose caller has begun the record, or that
    is not recorded, stays as it is. `config` is LangGraph's configuration of the run."""
    if not isinstance(context, Context) or context.recorder is None or context.root is not None:
        return context, lambda error: None
    begun = context.recorder.begin(replace(context, session=session_of(config)))
    return begun, partial(context.recorder.finish, begun)


def parent_config() -> Any:
    """LangGraph's configuration of a surrounding run; None outside of one."""
    return var_child_runnable_config.get()


def parent_context() -> Context | None:
    """The context of a surrounding graph; None outside of graphs."""
    try:
        context = get_runtime().context
    except (RuntimeError, KeyError):
        return None
    return context if isinstance(context, Context) else None


def parent_stream_writer() -> Callable[[Any], None] | None:
    """Where a node of a surrounding graph sends its custom events; None outside of graphs. It may be called inside
    `no_parent_run`: LangGraph's own writer reads the surrounding run's configuration at every call."""
    try:
        write = get_stream_writer()
    except (RuntimeError, KeyError, AttributeError):  # the last in servers of LangGraph, whose runtime has no writer
        return None
    surrounding = copy_context()
    return lambda event: surrounding.copy().run(write, event)


@contextmanager
def no_parent_run() -> Iterator[None]:
    """Inside, a graph that is run is no sub-graph of a surrounding LangGraph or LangChain run: that run's checkpointer,
    thread, recursion limit and callbacks do not reach it."""
    token = var_child_runnable_config.set(None)
    try:
        yield
    finally:
        var_child_runnable_config.reset(token)


def _checked_input(given: Any) -> Any:
    """The input with its task as plain data. None and commands, which resume a run, are passed on."""
    if given is None or isinstance(given, Command):
        return given
    if not isinstance(given, Mapping):
        raise TaskError(f'expected the input {{"task": ..., "seed": ...}}; received a {type(given).__name__}')
    if given.get("task") is None:
        raise TaskError('task: the input has no task; expected {"task": a Task or its plain form, "seed": an integer}')
    seed = check_seed(given.get("seed", 0))
    return {"task": task_to_plain(checked_task(given["task"])), "seed": seed}
