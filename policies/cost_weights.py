"""Cost weights at which another strategy has the highest utility. Knows nothing about policies or traces."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from itertools import pairwise


@dataclass(frozen=True)
class CostWeightRange:
    """A range of cost weights in which one strategy has the highest utility."""

    strategy: str
    nearest: float
    """The bound towards the current cost weight."""
    farthest: float
    """The other bound: smaller than `nearest`, 0 at the least, or greater, possibly infinite."""

    def text(self, current: float) -> str:
        """The range in words. Both bounds are rounded into it, with as many digits as that takes, so that the sentence
        holds for the numbers as printed."""
        low, high = sorted((self.nearest, self.farthest))
        for digits in range(3, 18):
            first, last = _rounded(low, digits, ROUND_CEILING), _rounded(high, digits, ROUND_FLOOR)
            now = float(f"{current:.{digits}g}")
            if first < last and not first <= now <= last:
                break
        if self.farthest == 0:
            side = f"Below cost weight {last:.{digits}g}"
        elif self.farthest == math.inf:
            side = f"Above cost weight {first:.{digits}g}"
        else:
            side = f"Between cost weights {first:.{digits}g} and {last:.{digits}g}"
        return f"{side} (now {current:.{digits}g}) these estimates choose {self.strategy}"


def _rounded(number: float, digits: int, rounding: str) -> float:
    if number in (0, math.inf):
        return number
    step = Decimal(1).scaleb(math.floor(math.log10(number)) - digits + 1)
    return float(Decimal(number).quantize(step, rounding))


def cost_weight_ranges(
    scores: Mapping[str, float], costs: Mapping[str, float], chosen: str, current: float
) -> tuple[CostWeightRange, ...]:
    """The nearest ranges of cost weights below and above `current` in which another strategy than `chosen` has the
    highest utility (score minus weighted cost)."""
    pairs = [(a, b) for a in scores for b in scores if costs[a] != costs[b]]
    crossings = {(scores[a] - scores[b]) / (costs[a] - costs[b]) for a, b in pairs}
    below = [*sorted((c for c in crossings if 0 < c < current), reverse=True), 0.0]
    above = [*sorted(c for c in crossings if c > current), math.inf]
    ranges = (_first_other(_best_between(bounds, scores, costs), chosen) for bounds in (below, above))
    return tuple(one for one in ranges if one is not None)


def _best_between(
    bounds: Sequence[float], scores: Mapping[str, float], costs: Mapping[str, float]
) -> Iterator[CostWeightRange]:
    """The strategy with the highest utility between each crossing and the next one; crossings that differ by rounding
    errors count as one."""
    distinct = (pair for pair in pairwise(bounds) if not math.isclose(*pair, rel_tol=1e-9))
    for near, far in distinct:
        between = 2 * near if far == math.inf else (near + far) / 2
        yield CostWeightRange(max(scores, key=lambda s: scores[s] - between * costs[s]), near, far)


def _first_other(parts: Iterator[CostWeightRange], chosen: str) -> CostWeightRange | None:
    """The first range of another strategy, joined with the parts of that strategy that follow it."""
    first = next((part for part in parts if part.strategy != chosen), None)
    if first is None:
        return None
    farthest = first.farthest
    for part in parts:
        if part.strategy != first.strategy:
            break
        farthest = part.farthest
    return CostWeightRange(first.strategy, first.nearest, farthest)
