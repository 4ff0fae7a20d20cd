"""What each feature means, its range and its cost: the table that docs/features.md is written from.

Knows nothing about how features are measured; a test holds it to the names and values of `features`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..ttt_core.model.generation import LOG_PROB_FLOOR
from .features import STAGE_1, VIEWS

FREE = "none"
"""The in-context answer yields it."""
LEFT_OUT = "D prompts scored"
ALONE = "2D prompts scored"
REPEATED = f"up to {VIEWS} prompts scored"


@dataclass(frozen=True)
class FeatureMeaning:
    """What is known of a feature."""

    meaning: str
    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    cost: str = FREE
    """What measuring it takes beyond the in-context answer; D is the number of demonstrations."""


def _flag(meaning: str, cost: str = FREE) -> FeatureMeaning:
    return FeatureMeaning(meaning, 0.0, 1.0, cost)


def _likelihood(meaning: str, cost: str = FREE) -> FeatureMeaning:
    return FeatureMeaning(f"{meaning}; nats per token", LOG_PROB_FLOOR, 0.0, cost)


def _size(meaning: str) -> FeatureMeaning:
    return FeatureMeaning(f"{meaning}; logarithm of 1 + the number", 0.0, math.inf)


def _difference(meaning: str) -> FeatureMeaning:
    return FeatureMeaning(f"{meaning}; a difference of logarithms, above 0 where it is larger", -math.inf, math.inf)


_NORMALISED = LOG_PROB_FLOOR / math.log(2)
"""Smallest share: `LOG_PROB_FLOOR` over the entropy of two equally likely tokens."""

GLOSSARY: Mapping[str, FeatureMeaning] = {
    "demonstrations": FeatureMeaning("number of demonstrations", 0.0, math.inf),
    "instruction": _flag("whether the task has an instruction"),
    "kind_grid": _flag("whether the task is of kind `grid`"),
    "kind_grid1d": _flag("whether the task is of kind `grid1d`"),
    "kind_list": _flag("whether the task is of kind `list`"),
    "kind_text": _flag("whether the task is of kind `text`"),
    "input_size": _size("mean size of the demonstrations' inputs, in cells, numbers or characters"),
    "output_size": _size("mean size of the demonstrations' outputs"),
    "query_size": _size("size of the query"),
    "growth": _difference("outputs compared with inputs"),
    "query_beyond": _difference("the query compared with the largest input"),
    "same_shape": _flag("share of demonstrations whose output has the dimensions of its input"),
    "answer_total": FeatureMeaning("log-probability of the whole in-context answer, in nats", -math.inf, 0.0),
    "answer_mean": _likelihood("mean log-probability of the answer's tokens"),
    "answer_q00": _likelihood("log-probability of the least likely token of the answer"),
    "answer_q10": _likelihood("10% quantile of the answer's log-probabilities"),
    "answer_q25": _likelihood("25% quantile of the answer's log-probabilities"),
    "answer_q50": _likelihood("median of the answer's log-probabilities"),
    "answer_entropy_max": FeatureMeaning(
        "largest entropy of the distributions that the answer's tokens were chosen from, in nats", 0.0, math.inf
    ),
    "answer_entropy_mean": FeatureMeaning(
        "mean entropy of the distributions that the answer's tokens were chosen from, in nats", 0.0, math.inf
    ),
    "answer_margin_min": FeatureMeaning(
        "smallest lead of a token of the answer over the second likeliest, in nats", 0.0, -LOG_PROB_FLOOR
    ),
    "answer_readable": _flag("whether the answer can be parsed"),
    "answer_ended": _flag("whether the answer ended by itself and not at its limit of tokens"),
    "answer_beyond": _difference("the answer compared with the largest output; 0 for one that cannot be parsed"),
    "answer_is_query": _flag("whether the answer repeats the query"),
    "answer_is_shown": _flag("whether the answer is the output of a demonstration"),
    "reading_hits": _flag("share of demonstrations that greedy decoding would answer right from those before them"),
    "reading_hits_late": _flag(
        "share of the second half of the demonstrations that greedy decoding would answer right from those before them"
    ),
    "reading_hit_last": _flag("whether the last demonstration would be answered right"),
    "reading_mean": _likelihood("mean log-probability of the demonstrations' outputs given those before them"),
    "reading_last": _likelihood("mean log-probability of the last demonstration's output given those before it"),
    "reading_slope": FeatureMeaning(
        "slope of the outputs' log-probabilities from the first demonstration to the last: above 0 where each helps",
        1.5 * LOG_PROB_FLOOR, -1.5 * LOG_PROB_FLOOR,
    ),
    "model_parameters": FeatureMeaning("parameters of the model; decimal logarithm", 0.0, math.inf),
    "model_vocabulary": FeatureMeaning("tokens of the vocabulary; decimal logarithm", 0.0, math.inf),
    "format_margin": FeatureMeaning(
        "lead of the chosen prompt format over the second best, in nats per token; 0 where none were compared",
        LOG_PROB_FLOOR, -LOG_PROB_FLOOR,
    ),
    "answer_tokens": _size("length of the answer in tokens"),
    "answer_mean_normalised": FeatureMeaning(
        "`answer_mean` as a share of the log-probability of a uniform choice; 0: certain, below -1: less likely than "
        "chance", _NORMALISED, 0.0,
    ),
    "answer_entropy_normalised": _flag("`answer_entropy_mean` as a share of that of a uniform distribution"),
    "reading_mean_normalised": FeatureMeaning(
        "`reading_mean` as a share of the log-probability of a uniform choice", _NORMALISED, 0.0
    ),
    "reading_rank": FeatureMeaning(
        "mean logarithm of the rank of the demonstrations' output tokens after the first demonstration; 0: all are the "
        "likeliest", 0.0, math.inf,
    ),
    "loo_possible": _flag("whether there are two demonstrations, so that one can be left out"),
    "loo_hits": _flag("leave-one-out accuracy: share of demonstrations answered right from all others", LEFT_OUT),
    "loo_mean": _likelihood("mean log-probability of the demonstrations' outputs from all others", LEFT_OUT),
    "loo_min": _likelihood(
        "log-probability of the least likely demonstration's output from all others", LEFT_OUT
    ),
    "shots_gain": FeatureMeaning(
        "`loo_mean` minus the log-probability without any demonstration: what the demonstrations are worth, in nats "
        "per token", LOG_PROB_FLOOR, -LOG_PROB_FLOOR, ALONE,
    ),
    "orders_hits": _flag(
        "share of other orders of the demonstrations under which greedy decoding gives the same answer", REPEATED
    ),
    "orders_mean": _likelihood("mean log-probability of the answer under other orders of the demonstrations", REPEATED),
    "orders_min": _likelihood(
        "log-probability of the answer under the least favourable order of the demonstrations", REPEATED
    ),
    "turns_hits": _flag(
        "share of invertible transformations of the task (of orders, where the kind has none) under which greedy "
        "decoding gives the same answer", REPEATED,
    ),
    "turns_mean": _likelihood(
        "mean log-probability of the answer under invertible transformations of the task", REPEATED
    ),
    "turns_min": _likelihood("log-probability of the answer under the least favourable transformation", REPEATED),
    "loo_mean_normalised": FeatureMeaning(
        "`loo_mean` as a share of the log-probability of a uniform choice", _NORMALISED, 0.0, LEFT_OUT
    ),
    "loo_rank": FeatureMeaning(
        "mean logarithm of the rank of the left-out outputs' tokens; 0: all are the likeliest", 0.0, math.inf, LEFT_OUT
    ),
}  # fmt: skip
"""Name -> what is known of it, in the order of `features.NAMES`."""


def stage_of(name: str) -> int:
    """The stage after which a feature is known: 0 for free features, 1 for those of the probe."""
    return int(name in STAGE_1)
