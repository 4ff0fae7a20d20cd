"""A policy that calibrates itself decides by a snapshot, which the trace records and a replay restores."""

from __future__ import annotations

from autottt.controller.controller import Controller
from autottt.controller.replay import replay
from autottt.controller.tracing.recorder import TraceRecorder
from autottt.policies.bundle import load_bundle
from autottt.policies.policy import ANY_MODEL_SHIPPED, AnyModelPolicy, LearnedPolicy
from autottt.ttt_core.tasks.kinds import make_task


class Kept:
    def __init__(self) -> None:
        self.traces = []

    def write(self, trace) -> None:
        self.traces.append(trace.as_stored())


def test_a_run_is_replayed_with_the_calibration_that_it_had(make_learner):
    kept, policy = Kept(), AnyModelPolicy(LearnedPolicy(load_bundle(ANY_MODEL_SHIPPED)))
    controller = Controller(make_learner(), policy, trace=TraceRecorder([kept]), budget="8x")
    tasks = [make_task([([n, 2], [2, n]), ([3, n], [n, 3]), ([n, n], [n, n])], [5, n]) for n in range(1, 5)]
    results = [controller.solve(task) for task in tasks]
    counts = [trace.decisions[0]["calibration"]["queries"] for trace in kept.traces]
    assert counts == sorted(counts)
    assert counts[0] == 0
    observed = policy.state.current.queries
    assert observed > counts[-1] >= 1
    for trace, result in zip(kept.traces, results, strict=True):
        repeated = replay(controller, trace)
        assert not [one for one in repeated.differences if one.name.startswith("decision")], "a budget cuts decodings"
        first, again = trace.decisions[0], repeated.trace.decisions[0]
        assert {key: first[key] for key in ("calibration", "scores", "strategy")} == {
            key: again[key] for key in ("calibration", "scores", "strategy")
        }
        assert repeated.result.strategy == result.strategy
    assert policy.state.current.queries == observed, "a replay observes nothing"
