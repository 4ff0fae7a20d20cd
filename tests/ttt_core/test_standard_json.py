from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from autottt.ttt_core.standard_json import dumps, finite_or_none

scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.floats())
plain = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not in the standard")


def null_for_non_finite(value: Any) -> Any:
    if isinstance(value, list):
        return [null_for_non_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: null_for_non_finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value - value) else value


@given(plain)
def test_output_is_standard_json_with_null_for_numbers_that_are_not_finite(value: Any) -> None:
    assert json.loads(dumps(value), parse_constant=refuse) == null_for_non_finite(value)


@given(plain)
def test_finite_data_is_written_as_by_the_standard_library(value: Any) -> None:
    finite = null_for_non_finite(value)
    assert dumps(finite) == json.dumps(finite)


def test_tuples_stay_tuples() -> None:
    assert finite_or_none((1.0, (math.inf, [math.nan]))) == (1.0, (None, [None]))


def test_a_number_that_is_not_finite_beside_a_named_tuple_is_null() -> None:
    class Pair(NamedTuple):
        first: float
        second: float

    assert dumps([Pair(1.0, 2.0), math.nan]) == "[[1.0, 2.0], null]"
