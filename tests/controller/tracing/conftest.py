"""Runs that several tests of traces look at."""

from __future__ import annotations

import pytest

from autottt.controller.tracing.trace import Trace
from tests.controller.tracing.sample_traces import GRID, LIST, trace_of


@pytest.fixture(scope="module")
def runs() -> dict[str, Trace]:
    return {
        "crossfit": trace_of("ttt_crossfit", GRID), "vote": trace_of("in_context_vote", LIST),
        "probed": trace_of("heuristic", LIST),
    }  # fmt: skip
