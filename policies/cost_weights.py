"""Cost weights at which another strategy has the highest utility. Knows nothing about policies or traces."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal


def cost_weight_changes(
    scores: Mapping[str, float], costs: Mapping[str, float], chosen: str, current: float
) -> tuple[tuple[float, str], ...]:
    """The nearest cost weights below and above `current` beyond which another strategy than `chosen` has the highest
    utility (score minus weighted cost), each with that strategy."""
    pairs = [(a, b) for a in scores for b in scores if costs[a] != costs[b]]
    crossings = {(scores[a] - scores[b]) / (costs[a] - costs[b]) for a, b in pairs}
    changes = []
    for side in (
        sorted((c for c in crossings if 0 < c < current), reverse=True),
        sorted(c for c in crossings if c > current),
    ):
        for crossing in side:
            beyond = crossing * (1.0001 if crossing > current else 0.9999)
            best = max(scores, key=lambda s: scores[s] - beyond * costs[s])
            if best != chosen:
                changes.append((crossing, best))
                break
    return tuple(changes)


def change_text(crossing: float, strategy: str, current: float) -> str:
    """A change of choice in words. The crossing is rounded away from the current cost weight, so that the sentence
    holds for the number as printed; both have as many digits as tell them apart."""
    below = crossing < current
    digits = next((n for n in range(3, 17) if f"{crossing:.{n}g}" != f"{current:.{n}g}"), 17)
    step = Decimal(1).scaleb(math.floor(math.log10(crossing)) - digits + 1)
    printed = Decimal(crossing).quantize(step, ROUND_FLOOR if below else ROUND_CEILING)
    side = "Below" if below else "Above"
    return f"{side} cost weight {float(printed):.{digits}g} (now {current:.{digits}g}) the choice would be {strategy}"
