"""Numbers that differ look different."""

from __future__ import annotations

import pytest

from autottt.policies.rounding import lead_text, signed_text, told_apart


@pytest.mark.parametrize(
    ("first", "second", "texts"),
    [(0.4961, 0.5, ("0.496", "0.500")), (0.25, 0.75, ("0.25", "0.75")), (0.5, 0.5, ("0.50", "0.50"))],
)
def test_numbers_that_differ_have_as_many_digits_as_show_it(first, second, texts):
    assert told_apart(first, second, 2) == texts


def test_a_lead_is_the_difference_of_the_numbers_as_printed():
    assert lead_text(0.4006, 0.3864, 3) == ("0.401", "0.386", "0.015")
    assert lead_text(0.4007, 0.4006, 3) == ("0.4007", "0.4006", "0.0001")


@pytest.mark.parametrize(("number", "text"), [(0.1812, "+0.18"), (-0.0004, "-0.0004"), (0.0, "+0.00")])
def test_a_number_that_is_not_0_does_not_look_like_0(number, text):
    assert signed_text(number, 2) == text
