"""Tasks and values as notebooks show them."""

from __future__ import annotations

from autottt.ttt_core.tasks.html import ARC_COLOURS, value_html
from autottt.ttt_core.tasks.kinds import make_task


def test_a_grid_is_a_picture_with_its_cells_as_text():
    drawn = value_html("grid", ((0, 4), (4, 4)))
    assert 'aria-label="grid 2 by 2: 0 4 / 4 4"' in drawn
    assert drawn.count("h1v1h-1z") == 4
    assert drawn.count(ARC_COLOURS[4]) == 1


def test_texts_are_escaped_and_lists_are_text():
    assert "&lt;b&gt;" in value_html("text", "<b>")
    assert value_html("list", (1, 2)) == "<code>1, 2</code>"
    assert value_html("list", None) == "<em>none</em>"


def test_a_task_shows_its_instruction_demonstrations_and_query():
    task = make_task([("a", "b"), ("c", "d")], "e<", instruction="next & last")
    shown = task._repr_html_()
    assert shown.count("<tr>") == 3
    assert "next &amp; last" in shown
    assert "e&lt;" in shown
