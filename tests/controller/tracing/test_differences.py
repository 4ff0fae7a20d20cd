"""Where an answer differs from the right one."""

from __future__ import annotations

import pytest

from autottt.controller.tracing.differences import MOST, difference_text, size_text


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [("grid", [[1, 2, 3], [4, 5, 6]], "2 rows x 3 columns"), ("list", [7], "1 number"), ("text", "abc", ""),
     ("grid", [], "0 rows x 0 columns"), ("list", None, "")],
)  # fmt: skip
def test_a_size_is_in_rows_and_columns_or_numbers(kind, value, text):
    assert size_text(kind, value) == text


def test_cells_that_differ_are_named():
    text = difference_text("grid", [[1, 2], [3, 4]], [[1, 2], [3, 9]])
    assert text == "2 rows x 2 columns, as the right answer; 1 of 4 cells differs (row 2 column 2: 4, right 9)"


def test_grids_of_other_sizes_have_both_sizes():
    text = difference_text("grid", [[1, 2]], [[1, 2], [3, 9]])
    assert text == "1 row x 2 columns; the right answer has 2 rows x 2 columns"


def test_of_many_differences_only_the_number_is_given():
    text = difference_text("list", [0] * (MOST + 1), [1] * (MOST + 1))
    assert text == f"{MOST + 1} numbers, as the right answer; {MOST + 1} of {MOST + 1} numbers differ"


def test_a_right_answer_differs_nowhere():
    assert difference_text("list", [1, 2], [1, 2]) == "2 numbers, as the right answer; no number differs"


def test_nothing_is_said_of_texts_and_of_what_is_not_known():
    assert (
        difference_text("text", "a", "b")
        == difference_text("list", None, [1])
        == difference_text("list", [1], None)
        == ""
    )
