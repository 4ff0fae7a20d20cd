"""The fields of a bundle's card and what each has to be. Knows nothing about estimators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..ttt_core.errors import shortened
from ..ttt_core.tasks.fields import MISSING
from .trained_policy import NEVER_SURE, NO_MARGINS, Evidence, Familiarity, ProbePlan

Reader = Callable[[Any], Any]
"""Returns the value of a field; raises `TypeError` or `ValueError` for a value of another form."""


def read_field(card: Mapping[str, Any], name: str) -> Any:
    """The value of a field. Raises `ValueError` naming the field, what was expected and what was received."""
    expected, read = FIELDS[name]
    received = card.get(name, MISSING)
    try:
        return read(received)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}: expected {expected}; received {shortened(received)}") from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError
    return float(value)


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError
    return value


def _list_of(read: Reader) -> Reader:
    def read_list(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise TypeError
        return tuple(map(read, value))

    return read_list


def _object_of(read: Reader) -> Reader:
    def read_object(value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise TypeError
        return {name: read(item) for name, item in value.items()}

    return read_object


def _two_numbers(value: object) -> tuple[float, float]:
    first, second = _list_of(_number)(value)
    return first, second


def _optional_text(value: object) -> str:
    return "" if value is MISSING else _text(value)


def _number_or_null(value: object) -> float | None:
    return None if value is None else _number(value)


def _scorecard(value: object) -> dict[str, Any]:
    """The scorecard, with the gains on which a release depends checked."""
    card: dict[str, Any] = _object_of(lambda item: item)(value)
    for gain in (card.get("gain_over_sbs"), card.get("gain_over_best_fixed"), card.get("gain_over_rule_of_thumb")):
        interval = None if gain is None else _object_of(lambda item: item)(gain).get("interval_90")
        if interval is not None and not all(map(math.isfinite, _two_numbers(interval))):
            raise ValueError
    return card


def _optional_number(value: object) -> float:
    return 0.0 if value is MISSING else _number(value)


def _optional_number_or_null(value: object) -> float | None:
    return None if value is MISSING else _number_or_null(value)


def _true_unless_false(value: object) -> bool:
    if value is MISSING:
        return True
    if not isinstance(value, bool):
        raise TypeError
    return value


def _plan(value: object) -> ProbePlan:
    if not isinstance(value, list) or len(value) != 3 or not isinstance(value[2], bool):
        raise TypeError
    cost = _number(value[0])
    if cost <= 0:
        raise TypeError
    return ProbePlan(cost, _number_or_null(value[1]), value[2])


def _optional_pair(default: tuple[float, float]) -> Reader:
    return lambda value: default if value is MISSING else _two_numbers(value)


def _optional_plans(value: object) -> tuple[ProbePlan, ...]:
    return () if value is MISSING else _list_of(_plan)(value)


def _optional_record(kind: type, read: Mapping[str, Reader]) -> Reader:
    """Reads an object with exactly these fields as a value of `kind`; null, or a field that is missing, as None."""

    def read_record(value: object) -> Any:
        if value is MISSING or value is None:
            return None
        if not isinstance(value, dict) or value.keys() != read.keys():
            raise TypeError
        return kind(**{name: each(value[name]) for name, each in read.items()})

    return read_record


def _optional_texts(value: object) -> tuple[str, ...]:
    return () if value is MISSING else _texts(value)


_numbers, _texts = _list_of(_number), _list_of(_text)
_familiarity = _optional_record(
    Familiarity,
    {"names": _texts, "mean": _numbers, "scale": _numbers, "precision": _list_of(_numbers), "threshold": _number},
)
_evidence = _optional_record(
    Evidence,
    {
        "names": _texts, "weights": _numbers, "intercept": _number, "fixes": _numbers, "breaks": _numbers,
        "sure": _number,
    },
)  # fmt: skip
_TEXTS, _NUMBERS = ("a list of texts", _list_of(_text)), ("a list of numbers", _list_of(_number))
_NINE = ("a list of lists of numbers", _list_of(_list_of(_number)))
FIELDS: Mapping[str, tuple[str, Reader]] = {
    "base_hash": ("a text", _text),
    "strategies": _TEXTS,
    "calibration": ("an object of lists of two numbers", _object_of(_two_numbers)),
    "mean_costs": ("an object of lists of numbers", _object_of(_list_of(_number))),
    "cost_weight": ("a number", _number),
    "skip_probe_threshold": ("a number", _number),
    "probe_margin": ("a number or null", _optional_number_or_null),
    "probe_cost": ("a number", _optional_number),
    "ranking": _TEXTS,
    "feature_min": _NUMBERS,
    "feature_max": _NUMBERS,
    "deciles": _NINE,
    "cdf": _NINE,
    "families": _TEXTS,
    "datasets": _TEXTS,
    "seed": ("an integer", _integer),
    "keep_threshold": ("a number", _number),
    "risk": ("a number or null", _number_or_null),
    "prompt_format": ("a text", _text),
    "starting_adapter": ("a text", _optional_text),
    "recipes": ("an object of texts", _object_of(_text)),
    "familiarity": ("an object of names, means, scales, precisions and a threshold, or null", _familiarity),
    "evidence": ("an object of names, weights, an intercept and shares, or null", _evidence),
    "probes_unfamiliar": ("true or false", _true_unless_false),
    "probe_plans": ("a list of costs, each with a number or null, and true or false", _optional_plans),
    "probe_answers": ("a number", _optional_number),
    "models": ("a list of texts", _optional_texts),
    "accurate": ("a text", _optional_text),
    "accuracy_margin": ("a number", _optional_number),
    "utility_margins": ("a list of two numbers", _optional_pair(NO_MARGINS)),
    "sure_thresholds": ("a list of two numbers", _optional_pair(NEVER_SURE)),
    "scorecard": ("an object in which interval_90 of the gains is a list of two finite numbers", _scorecard),
}
"""Field -> what it has to be, in words and as a function; all but `calibration` are fields of `TrainedPolicy`."""
