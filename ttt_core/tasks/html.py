"""Values and tasks as HTML: grids as pictures in ARC's colours, the rest as text. Knows nothing about pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, Protocol


class Pair(Protocol):
    """A demonstration."""

    @property
    def input(self) -> Any: ...

    @property
    def output(self) -> Any: ...


ARC_COLOURS = (
    "#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25",
)  # fmt: skip
"""Colours of the cells 0-9 as the public viewers of ARC draw them."""
CELL = 12
"""Pixels of a cell's side; fewer in large grids."""
MOST_PIXELS = 240
"""Pixels of the longer side of a grid."""


def value_html(kind: str, value: Any) -> str:
    """A value: grids and rows of grids as an SVG picture, anything else as text."""
    if value is None:
        return "<em>none</em>"
    if kind in ("grid", "grid1d"):
        return grid_svg(value)
    if isinstance(value, str):
        return f'<span style="white-space:pre-wrap;overflow-wrap:anywhere">{escape(value)}</span>'
    return f"<code>{escape(', '.join(map(str, value)))}</code>"


def grid_svg(grid: Sequence[Sequence[int]]) -> str:
    """A grid as a picture, one path for each colour; its rows are the text for screen readers."""
    height, width = len(grid), max(map(len, grid), default=0)
    cell = max(3, min(CELL, MOST_PIXELS // max(height, width, 1)))
    cells: dict[int, list[str]] = {}
    for y, row in enumerate(grid):
        for x, colour in enumerate(row):
            cells.setdefault(colour, []).append(f"M{x} {y}h1v1h-1z")
    paths = "".join(
        f'<path fill="{ARC_COLOURS[colour % len(ARC_COLOURS)]}" d="{"".join(parts)}"/>'
        for colour, parts in sorted(cells.items())
    )
    rows = " / ".join(" ".join(map(str, row)) for row in grid)
    return (
        f'<svg role="img" aria-label="grid {height} by {width}: {rows}" viewBox="0 0 {width} {height}" '
        f'width="{width * cell}" height="{height * cell}" style="max-width:100%;outline:1px solid #888" '
        f'shape-rendering="crispEdges" stroke="#555" stroke-width=".04">{paths}</svg>'
    )


def demonstrations_html(kind: str, demonstrations: Sequence[Pair]) -> str:
    """Demonstrations as the rows of a table: input and output."""
    rows = "".join(
        f"<tr><td>{value_html(kind, d.input)}</td><td>{value_html(kind, d.output)}</td></tr>" for d in demonstrations
    )
    return f"<table><thead><tr><th>input</th><th>output</th></tr></thead><tbody>{rows}</tbody></table>"


def task_html(kind: str, instruction: str | None, demonstrations: Sequence[Pair], query: Any) -> str:
    """The instruction, the demonstrations and the query."""
    head = f"<p>{escape(instruction)}</p>" if instruction else ""
    return f"<div>{head}{demonstrations_html(kind, demonstrations)}<p><b>query</b></p>{value_html(kind, query)}</div>"
