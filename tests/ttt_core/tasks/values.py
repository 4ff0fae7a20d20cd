"""Values of every kind, drawn at random, for tests of properties that hold for all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autottt.ttt_core.tasks.kinds import KINDS


def for_all(**strategies: st.SearchStrategy[object]):
    """`given`, with few examples and the same ones every time."""
    few = settings(max_examples=30, deadline=None, derandomize=True, database=None)
    return lambda test: few(given(**strategies)(test))


every_kind = pytest.mark.parametrize("kind", list(KINDS))

cells = st.integers(0, 9)


@st.composite
def grids(draw: st.DrawFn, max_rows: int = 5) -> list[list[int]]:
    width = draw(st.integers(1, 5))
    return draw(st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=max_rows))


VALUES: dict[str, st.SearchStrategy[object]] = {
    "grid": grids(),
    "grid1d": grids(max_rows=1),
    "list": st.lists(st.integers(-20, 20) | st.integers(1 - 2**63, 2**63 - 1), max_size=6),
    "text": st.text(max_size=20) | st.text("\\n\n\r /[],", max_size=12),
}
