"""Acceptance of attempts: when an adapter's answer gives way to the in-context answer, and how many attempts a query
gets.

Knows nothing about models, the graph or how answers come about.
"""

from __future__ import annotations

MAX_ATTEMPTS = 3
"""Strategies that are tried on one query while none of them gives an answer that can be parsed."""


def rejects_adapter(gain: float | None, confidence: float, in_context_probability: float) -> bool:
    """Whether the in-context answer replaces another answer after training.

    The adapters' answer stands if training raised the held-out accuracy (`gain` above 0, see
    `CrossValidationResult.gain`; None without cross-validation). Otherwise the answer with more certainty stands:
    `confidence` is the adapted model's probability of its answer, or the share of the votes for it,
    `in_context_probability` the model's probability of the in-context answer. Measured in benchmarks/LOG.md.
    """
    return (gain is None or gain <= 0) and confidence < in_context_probability
