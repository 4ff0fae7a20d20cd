"""Pictures of a trace as SVG: the graph with the path taken, and curves. Knows nothing about pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

BOX_WIDTH, BOX_HEIGHT, GAP = 150, 30, 14
COLUMN = 205
"""Pixels between the left sides of neighbouring columns."""


def graph_svg(strategies: Sequence[str], edges: Sequence[tuple[str, str]], spans: Mapping[str, int]) -> str:
    """The graph, with the edges that were taken marked. `spans` are the numbers of the spans of visited nodes."""
    height = max(len(strategies), 3) * (BOX_HEIGHT + GAP) + GAP
    middle = height / 2
    columns = {"__start__": 0, "measure": 1, "decide": 2, "judge": 4, "revert": 5, "__end__": 6}
    places = {name: (column * COLUMN, middle) for name, column in columns.items()}
    for row, name in enumerate(strategies):
        places[name] = 3 * COLUMN, GAP + BOX_HEIGHT / 2 + row * (BOX_HEIGHT + GAP)
    possible = [("__start__", "measure"), ("measure", "decide"), ("judge", "revert"), ("revert", "__end__")]
    possible += [("judge", "decide"), *(("decide", n) for n in strategies), *((n, "judge") for n in strategies)]
    taken = [edge for edge in edges if edge in possible]
    lines = [_edge(places, edge, edge in taken, height) for edge in sorted(possible, key=lambda e: e in taken)]
    visited = {name for edge in edges for name in edge}
    boxes = [_box(name, place, name in visited, spans.get(name)) for name, place in places.items()]
    path = " to ".join([edges[0][0], *(target for _, target in edges)]) if edges else "none"
    return (
        f'<svg class="graph" data-keys viewBox="-4 -4 {6 * COLUMN + BOX_WIDTH + 8} {height + 40}" role="group" '
        f'aria-label="graph; path taken: {escape(path)}">{"".join(lines)}{"".join(boxes)}</svg>'
    )


def _edge(
    places: Mapping[str, tuple[float, float]], edge: tuple[str, str], taken: bool, height: float
) -> str:  # fmt: skip
    (x, y), (to_x, to_y) = places[edge[0]], places[edge[1]]
    if to_x < x:
        below = height + 30
        half = BOX_WIDTH / 2
        curve = f"M{x + half} {y + BOX_HEIGHT / 2}C{x + half} {below} {to_x + half} {below} {to_x + half} "
        curve += f"{to_y + BOX_HEIGHT / 2}"
    else:
        bend = (x + BOX_WIDTH + to_x) / 2
        curve = f"M{x + BOX_WIDTH} {y}C{bend} {y} {bend} {to_y} {to_x} {to_y}"
    return f'<path class="edge{" taken" if taken else ""}" d="{curve}"/>'


def _box(name: str, place: tuple[float, float], visited: bool, span: int | None) -> str:
    x, y = place
    button = f' tabindex="0" role="button" data-span="{span}" aria-label="{escape(name)}"' if span is not None else ""
    return (
        f'<g class="node{" taken" if visited else ""}"{button}><rect class="box" x="{x}" y="{y - BOX_HEIGHT / 2}" '
        f'width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/><text x="{x + BOX_WIDTH / 2}" y="{y + 5}" '
        f'text-anchor="middle">{escape(name.strip("_"))}</text></g>'
    )


def curve_svg(name: str, points: Sequence[tuple[float, float]], unit: str = "") -> str:
    """A curve of (step, value), with its first and last value; at most 1,000 points are drawn."""
    if not points:
        return ""
    every = max(1, len(points) // 1000)
    shown = [*points[::every], points[-1]]
    xs, ys = [x for x, _ in shown], [y for _, y in shown]
    width, height, left = 560, 170, 60
    low, high = min(ys), max(ys)
    across, up = (max(xs) - min(xs)) or 1, (high - low) or 1
    line = " ".join(
        f"{left + (x - min(xs)) / across * (width - left - 10):.1f},{10 + (high - y) / up * (height - 40):.1f}"
        for x, y in shown
    )
    label = f"{name}: {points[0][1]:.3g} at step {points[0][0]:g} to {points[-1][1]:.3g} at step {points[-1][0]:g}"
    return (
        f'<figure style="margin:0"><svg class="curve" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}"><polyline points="{line}" fill="none" stroke="var(--accent)" stroke-width="2"/>'
        f'<text x="{left - 6}" y="16" text-anchor="end">{high:.3g}{unit}</text>'
        f'<text x="{left - 6}" y="{height - 28}" text-anchor="end">{low:.3g}{unit}</text>'
        f'<text x="{left}" y="{height - 6}">{min(xs):g}</text>'
        f'<text x="{width - 10}" y="{height - 6}" text-anchor="end">{max(xs):g}</text></svg>'
        f"<figcaption>{escape(label)}</figcaption></figure>"
    )
