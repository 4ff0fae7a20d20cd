import math

import pytest

from autottt.controller.budget import Budget
from autottt.ttt_core.errors import BudgetError


def test_seconds_and_multiples_are_distinguished():
    assert Budget.parse("10s") == Budget(seconds=10.0)
    assert Budget.parse(" 2.5x ") == Budget(multiples=2.5)


@pytest.mark.parametrize("text", ["10", "x", "-1s", "0s", "ten seconds", "", "1e3s"])
def test_other_texts_are_refused_with_what_was_received(text):
    with pytest.raises(BudgetError, match="such as 10s"):
        Budget.parse(text)


def test_the_total_is_the_smaller_limit():
    assert Budget(seconds=3.0, multiples=10.0).total(0.1) == pytest.approx(1.0)
    assert Budget(seconds=0.5, multiples=10.0).total(0.1) == 0.5
    assert Budget().total(0.1) == math.inf


@pytest.mark.parametrize("amount", [0.0, -1.0, math.nan])
def test_a_budget_is_above_zero(amount):
    with pytest.raises(BudgetError, match="above 0"):
        Budget(seconds=amount)
