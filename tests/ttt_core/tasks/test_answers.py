"""One form of an answer for training, scoring, decoding and evaluation, and when two answers are the same."""

from __future__ import annotations

import json
import time

import pytest

from autottt.controller.plain_tasks import checked_task, task_to_plain
from autottt.ttt_core.errors import TaskError
from autottt.ttt_core.tasks.answers import COMPARISONS, canonical_output, is_right, same_answer
from autottt.ttt_core.tasks.formats import ReadSettings, read_object
from autottt.ttt_core.tasks.kinds import STANDARD, make_task
from autottt.ttt_core.tasks.prompts import STANDARD_FORMAT, read_answer


@pytest.mark.parametrize(
    ("kind", "value", "shown", "expected"),
    [
        ("text", " (A)\n", [], "(A)"),
        ("text", "The answer is (A).", ["(B)"], "(A)"),
        ("text", "the final answer is: 7", ["8"], "7"),
        ("text", "Answer: yes.", ["No."], "yes."),
        ("text", "Answer: yes.", ["No"], "yes"),
        ("text", "The answer is (A).", ["The answer is (B)."], "The answer is (A)."),
        ("text", "Answering is hard", ["x"], "Answering is hard"),
        ("text", "The answer island", ["x"], "The answer island"),
        ("text", "Answer:", ["x"], "Answer:"),
        ("text", "So, the answer is: Answer: 4.", ["5"], "4"),
        ("text", " **a**. ", [" **a**. "], "**a**."),
        ("text", "The answer is 4", ["The answer is 4"], "The answer is 4"),
        ("text", "a\rb", ["a\rb"], "a\rb"),
        ("text", "page one\x0cpage two", ["one\x0ctwo"], "page one\x0cpage two"),
        ("text", "a\u2028b\nExplanation: it is.", ["c\u2028d"], "a\u2028b"),
        ("text", " \n", [], ""),
        ("text", '"cat"', ["dog"], "cat"),
        ("text", '"cat"', ['"dog"'], '"cat"'),
        ("text", "**cat**.", ["dog"], "cat"),
        ("text", "`a` and `b`", ["c"], "`a` and `b`"),
        ("text", "\u201ccat\u201d", ["dog"], "cat"),
        ("text", "\\boxed{42}", ["41"], "42"),
        ("text", "'tis", ["so"], "'tis"),
        ("text", "''", ["x"], "''"),
        ("text", "cat.", ["dog"], "cat"),
        ("text", "cat.", ["A dog."], "cat."),
        ("text", "cat.", [], "cat."),
        ("text", "wait...", ["go"], "wait..."),
        ("text", ".", ["x"], "."),
        ("text", "Output: cat", ["dog"], "cat"),
        ("text", "cat\n\nExplanation: it meows.", ["dog"], "cat"),
        ("text", "cat\nInput: a bird", ["dog"], "cat"),
        ("text", "Sure! Here is the answer:\n\ncat", ["dog"], "cat"),
        ("text", "```\ncat\n```", ["dog"], "cat"),
        ("text", "The answer is:\ncat", ["dog"], "cat"),
        ("text", "Note:", ["x"], "Note:"),
        ("text", "time:\nnoon", ["place:"], "time:"),
        ("text", "one\ntwo", ["three\nfour"], "one\ntwo"),
        ("text", "one\ntwo", [], "one\ntwo"),
        ("text", 'The answer is "**(A)**".', ["(B)"], "(A)"),
        ("grid", ((1,),), [], ((1,),)),
        ("list", (1, 2), [], (1, 2)),
    ],
)
def test_an_output_has_one_form(kind, value, shown, expected):
    form = canonical_output(kind, value, shown)
    assert form == expected
    assert canonical_output(kind, form, shown) == form


@pytest.mark.parametrize(
    ("comparison", "one", "other", "same"),
    [
        ("exact", "Cat", "cat", False),
        ("ignore_case", "Cat  sat", "cat sat", True),
        ("ignore_case", "cat!", "cat", False),
        ("words", "The cat, sat!", "a cat sat", True),
        ("words", "the cats", "the cat", False),
        ("words", "$5", "5", True),
        ("words", "+", "-", False),
        ("words", "The", "a", False),
        ("words", "!", "! ", True),
        ("words", "caf\u00e9", "Cafe\u0301.", True),
        ("ignore_case", "caf\u00e9", "Cafe\u0301", True),
        ("number", "1,000.0", "1000", True),
        ("number", "1e3", "1000", True),
        ("number", "-0", "0", True),
        ("number", "1/2", "0.5", False),
        ("number", "ten", "ten", True),
        ("number", "nan", "nan", True),
        ("number", "7", "8", False),
        ("number", "1,2", "12", False),
        ("number", "1" * 40, "1" * 39 + "2", False),
    ],
)
def test_texts_are_compared_as_the_task_says(comparison, one, other, same):
    assert same_answer(one, other, comparison) is same
    task = make_task([("q", "a")], "x", answer=other, comparison=comparison)
    assert is_right(task, one) is same
    line = {"demonstrations": [{"input": "q", "output": "a"}], "query": "x", "answer": other, "comparison": comparison}
    (read,) = read_object(json.loads(json.dumps(line)), ReadSettings(), id="t", dataset="")
    assert read.comparison == comparison
    assert checked_task(task_to_plain(task)).comparison == comparison


def test_no_answer_is_never_right():
    assert not is_right(make_task([("q", "a")], "x", answer="y"), None)
    assert not is_right(make_task([("q", "a")], "x"), "y")
    assert is_right(make_task([([1], [1])], [2], answer=[2]), (2,))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"comparison": "fuzzy"}, "comparison: expected one of exact, ignore_case, words, number; received 'fuzzy'"),
        ({"comparison": 3}, "comparison: expected one of"),
        ({"comparison": "words", "query": [1], "demonstrations": [([1], [1])]}, "comparison: only texts are compared"),
    ],
)
def test_an_unknown_comparison_is_refused(fields, message):
    with pytest.raises(TaskError, match=message):
        make_task(**{"demonstrations": [("q", "a")], "query": "x", **fields})


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_comparison_form_is_stable(name):
    form = COMPARISONS[name]
    for text in ("", " ", "The", "Cat sat.", "1,0", "\u0130", "-0", "1e999999999", "x" * 1000, "+ ", "E\u0301"):
        assert form(form(text)) == form(text)


def test_decoded_text_is_read_by_the_same_rule():
    task = make_task([("big", "large"), ("tiny", "small")], "quick", answer="fast")
    assert STANDARD_FORMAT.read(task, ' "fast".\nInput: slow') == "fast"
    assert is_right(task, STANDARD_FORMAT.read(task, "Output: **fast**"))


@pytest.mark.parametrize("pair", [("a", "b"), ([1], [2])])
def test_a_hundred_thousand_demonstrations_are_checked_in_less_than_a_second(pair: object) -> None:
    seconds = []
    for _ in range(3):
        began = time.process_time()
        task = make_task([pair] * 100_000, "c" if isinstance(pair[0], str) else [3])  # type: ignore[index]
        seconds.append(time.process_time() - began)
    assert min(seconds) < 1
    assert len(task.demonstrations) == 100_000


@pytest.mark.parametrize("separator", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_outputs_keep_characters_at_which_only_python_splits_lines(separator: str) -> None:
    pairs = [(f"{a}{separator}{b}", f"{b}{separator}{a}") for a, b in ("ab", "cd", "ef")]
    task = make_task(pairs, f"g{separator}h", answer=f"h{separator}g")
    assert [d.output for d in task.demonstrations] == [output for _, output in pairs]
    assert task.answer == f"h{separator}g"
    assert not is_right(task, "h")
    assert read_answer(task, f"```\nh{separator}g\n```\n", STANDARD) == task.answer
