"""Acceptance of attempts: when an adapter's answer gives way to the in-context answer, and how many attempts a query
gets.

Knows nothing about models, the graph or how answers come about.
"""

from __future__ import annotations

MAX_ATTEMPTS = 3
"""Strategies that are tried on one query while none of them gives an answer that can be parsed."""


def rejects_adapter(gain: float, vote_share: float, in_context_probability: float) -> bool:
    """Whether the in-context answer replaces the answer of cross-validated adapters.

    The adapters' answer stands if training raised the held-out accuracy (`gain` above 0, see
    `CrossValidationResult.gain`). Otherwise the answer with more certainty stands: `vote_share` is the share of the
    votes for the adapters' answer, `in_context_probability` the model's probability of the in-context answer.
    """
    return gain <= 0 and vote_share < in_context_probability
