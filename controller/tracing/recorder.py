"""Records runs: begins the tree of spans of each, and stores it as a trace when the run ends.

Recording never changes an answer: a trace that cannot be stored is a warning, once. Knows nothing about the graph.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, Protocol, runtime_checkable

from ...policies.policy import Policy
from ...ttt_core.errors import AutotttError, SettingsError
from ...ttt_core.learner import Learner
from ...ttt_core.spans import Span
from ..caller import name_trace, remote_carrier
from ..plain_tasks import task_from_plain
from ..run_facts import RunFacts
from ..state import Context
from . import OTLP, named_targets
from .content import without_content
from .store import TraceStore, local_store
from .trace import Trace

_LOG = logging.getLogger("autottt")


class Target(Protocol):
    """Where traces go."""

    def write(self, trace: Trace) -> None:
        """Keeps a trace. What it raises is logged as a warning."""
        ...


@runtime_checkable
class CallerTarget(Target, Protocol):
    """A target that reads something of the caller when a run begins."""

    def of_caller(self) -> Mapping[str, Any]:
        """Attributes for the root of a run that begins now. It raises nothing."""
        ...


class TraceRecorder:
    """Records the runs of controllers and gives their traces to targets."""

    def __init__(self, targets: Sequence[Target], *, content: bool = True) -> None:
        """Without `content` traces have no demonstrations, queries, prompts or answers."""
        self.targets = tuple(targets)
        self.content = content
        self._caller_targets = [target for target in self.targets if isinstance(target, CallerTarget)]
        self._facts: tuple[Learner, Policy, Mapping[str, Any]] | None = None
        self._warned: set[Target] = set()

    @classmethod
    def of(cls, setting: str | os.PathLike[str], *, content: bool = True) -> TraceRecorder:
        """The recorder of the targets that a setting names, see `named_targets`. Raises `SettingsError` where it names
        none, or where a library that one of them needs is missing."""
        try:
            names = named_targets(setting)
        except ValueError as error:
            raise SettingsError(f"trace: {error}") from None
        return cls([_target(name) for name in names], content=content)

    def begin(self, context: Context) -> Context:
        """The context of a new run, with the root of its tree."""
        root = Span("run")
        time = datetime.now(UTC).isoformat(timespec="microseconds")
        root.set(id=os.urandom(6).hex(), time=time, budget=str(context.budget), edges=[])
        if carrier := remote_carrier():
            root.set(caller=dict(carrier))
        for target in self._caller_targets:
            root.set(**target.of_caller())  # a span of this process is nearer than one of another
        if context.session:
            root.set(session=context.session)
        root.set(**self._facts_of(context.learner, context.policy))
        return replace(context, root=root)

    def finish(self, context: Context, error: BaseException | None = None) -> None:
        """Ends the run of a context, with what it raised, and stores its trace; once."""
        root = context.root
        if root is None or root.seconds is not None:
            return
        root.end(error)
        if error is not None:
            name_trace(error, context.trace_id)
        try:
            root.set(peak_bytes=context.learner.guarded.peak_bytes, sizes=_sizes(root))
            trace = Trace.of(root)
            trace = trace if self.content else without_content(trace)
        except Exception as problem:  # whose text may quote the task
            _LOG.warning("a trace cannot be made (%s); the answer is not affected", type(problem).__name__)
            _LOG.debug("why a trace cannot be made", exc_info=True)
            return
        for target in self.targets:
            self._write(target, trace)

    def label(self, trace_id: str, label: Mapping[str, Any]) -> bool:
        """Adds what is known of an answer afterwards to its stored trace; see `Trace.label`. A trace without content
        gets no `answer`. False where no store has the trace; raises `TraceError` for a store that cannot be read.
        """
        stores = [target for target in self.targets if isinstance(target, TraceStore) and target.exists()]
        labelled = [store.label(trace_id, label) for store in stores]
        return any(labelled)

    def stored(self, trace_id: str) -> Trace | None:
        """The trace of a run; None where no store has it. Raises `TraceError` for a store that cannot be read."""
        for store in self.targets:
            if isinstance(store, TraceStore) and store.exists() and (trace := store.find(trace_id)):
                return trace
        return None

    def _write(self, target: Target, trace: Trace) -> None:
        try:
            target.write(trace)
        except Exception as problem:
            level = logging.DEBUG if target in self._warned else logging.WARNING
            self._warned.add(target)
            is_known = isinstance(problem, (AutotttError, OSError))  # what others say may quote the task
            _LOG.log(level, "%s; answers are not affected", problem if is_known else type(problem).__name__)
            _LOG.debug("why a trace cannot be stored", exc_info=True)

    def _facts_of(self, learner: Learner, policy: Policy) -> Mapping[str, Any]:
        """Model, policy and versions; those of the last learner and policy are cached."""
        if self._facts is None or self._facts[0] is not learner or self._facts[1] is not policy:
            self._facts = learner, policy, asdict(RunFacts.of(learner, policy))
        return self._facts[2]


def _target(name: str) -> Target:
    """The target of a name. Raises `SettingsError` where a library that it needs is missing."""
    if name == "local":
        return local_store()
    kind, _, endpoint = name.partition(":")
    if kind != OTLP:
        return TraceStore(name)
    try:
        from .telemetry import TelemetryTarget  # not at the top: most programs have no OpenTelemetry
    except ImportError as error:
        raise SettingsError(f"trace: {name} needs OpenTelemetry ({error}): pip install 'autottt[trace]'") from None
    return TelemetryTarget(endpoint or None)


def _sizes(root: Span) -> Mapping[str, Any]:
    """The number of demonstrations, and the digest of the task; nothing for a run without a task."""
    if "task" not in root.attributes:
        return {}
    task = task_from_plain(root.attributes["task"])
    return {"demonstration_count": len(task.demonstrations), "digest": task.digest}
