"""Metrics of the server in Prometheus' format. Knows nothing about HTTP or how tasks are solved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from ..results import Result

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Bounds of the histograms, in seconds."""


class Metrics:
    """What the server has done since it was started."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._queue = Gauge("autottt_queue_length", "Requests that wait for the model.", registry=self.registry)
        self._running = Gauge("autottt_running", "Requests that the model works on.", registry=self.registry)
        self._requests = self._counter("requests", "Responses by path and status.", "path", "status")
        self._decisions = self._counter("decisions", "First decisions by strategy.", "strategy")
        self._answers = self._counter("answers", "Answers by the strategy that gave them, and status.", "strategy",
                                      "status")  # fmt: skip
        self._stages = Histogram(
            "autottt_stage_seconds", "Seconds by stage of a run.", ["stage"], buckets=SECONDS, registry=self.registry
        )
        self._waits = Histogram(
            "autottt_wait_seconds", "Seconds that requests wait in the queue.", buckets=SECONDS, registry=self.registry
        )
        self._adapters = self._counter("adapter_uses", "Adapters by source: cached or trained.", "source")
        self._cached = Gauge("autottt_cached_adapters", "Adapters in memory.", registry=self.registry)
        self._cached_bytes = Gauge("autottt_cached_adapter_bytes", "Bytes of adapters in memory.",
                                   registry=self.registry)  # fmt: skip
        self._reverts = self._counter("reverts", "Checks that the base model is unchanged, by outcome.", "outcome")
        self._failures = self._counter("failures", "Requests without an answer, by the class of the error.", "error")
        self._labels = self._counter("feedback", "Labels of answers: right or wrong.", "label")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"autottt_{name}", text, labels, registry=self.registry)

    def page(self) -> bytes:
        """All metrics as text."""
        return generate_latest(self.registry)

    def watch(self, waiting: Callable[[], float], running: Callable[[], float]) -> None:
        """Reads the lengths of the queue whenever the metrics are."""
        self._queue.set_function(waiting)
        self._running.set_function(running)

    def watch_cache(self, count: Callable[[], float], size: Callable[[], float]) -> None:
        """Reads the number and bytes of the cached adapters whenever the metrics are."""
        self._cached.set_function(count)
        self._cached_bytes.set_function(size)

    def response(self, path: str, status: int) -> None:
        """Counts a response."""
        self._requests.labels(path, str(status)).inc()

    def waited(self, seconds: float) -> None:
        """Records how long a request was in the queue."""
        self._waits.observe(seconds)

    def decided(self, strategy: str) -> None:
        """Counts a decision."""
        self._decisions.labels(strategy).inc()

    def answered(self, strategy: str, status: str, stages: Mapping[str, float]) -> None:
        """Counts an answer; `stages` are seconds."""
        self._answers.labels(strategy, status).inc()
        for stage, seconds in stages.items():
            self._stages.labels(stage).observe(seconds)

    def result(self, result: Result) -> None:
        """Counts everything about a solved task."""
        stages: dict[str, float] = {}
        for event in result.trace:
            stages[event["node"]] = stages.get(event["node"], 0.0) + event["seconds"]
        self.decided(str(result.decision.get("strategy", result.strategy)))
        self.answered(result.strategy, result.status, stages)
        for attempt in result.attempts:
            if attempt.training_record is not None:
                self._adapters.labels("cached" if attempt.from_cache else "trained").inc()
        if result.proof is not None:
            self.reverted(True)

    def reverted(self, proven: bool) -> None:
        """Counts a check that the base model is unchanged."""
        self._reverts.labels("proven" if proven else "failed").inc()

    def failed(self, error: BaseException) -> None:
        """Counts a request without an answer."""
        self._failures.labels(type(error).__name__).inc()

    def labelled(self, right: bool) -> None:
        """Counts feedback."""
        self._labels.labels("right" if right else "wrong").inc()
