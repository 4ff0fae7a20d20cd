"""Where an answer begins and ends, and when two answers are the same. Knows nothing about models.

One rule for training targets, scoring, decoding and evaluation: `canonical_output`. Instruction-tuned models write
introductions, quotation marks and explanations around an answer; base models go on with the next line.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from decimal import Context, Decimal

from ..errors import TaskError, shortened
from .task import Task, Value

_INTRODUCTION = re.compile(
    r"\A(?:(?:so|thus|therefore|hence),?\s+)?(?:the\s+|my\s+)?(?:(?:final\s+|correct\s+)?answer\s*(?:is\b\s*:?|:)|output\s*:)"
    r"\s*",
    re.IGNORECASE,
)
"""What many models write before an answer."""
_WRAPPINGS = (
    ("**", "**"), ("`", "`"), ('"', '"'), ("'", "'"), ("\u201c", "\u201d"), ("\u2018", "\u2019"), ("*", "*"),
    ("\\boxed{", "}"),
)  # fmt: skip
"""Marks that many models write around an answer."""


def canonical_output(kind: str, value: Value, shown: Sequence[Value] = ()) -> Value:
    """The form in which an output is trained on, scored, compared and returned; `shown` are the task's other outputs.

    Of a text, what no shown output has is removed, in this order: white space around it, all lines but the first where
    every shown output is one line, an introduction such as "The answer is", marks around it such as quotation marks,
    and a full stop at its end. All other values are as they are.

    >>> canonical_output("text", 'The answer is: "(A)".\\n\\nExplanation: ...', ["(B)", "(C)"])
    '(A)'
    """
    if kind != "text":
        return value
    outputs = [str(output).strip() for output in shown]
    text = str(value).strip()
    if outputs == [text] and "\n" not in text:
        return text  # nothing of an output is an addition to itself; there may be 100,000 of them
    if outputs and not any("\n" in output for output in outputs):
        text = _first_line(text, outputs)
    while (shorter := _without_additions(text, outputs)) != text:
        text = shorter
    return text


def _first_line(text: str, outputs: Sequence[str]) -> str:
    """The first line with content; code fences, and lines that announce the next one with a colon, have none."""
    lines = [line.strip() for line in text.split("\n")]  # `splitlines` also splits at form feeds and the like
    lines = [line for line in lines if line and not line.startswith("```")] or [text]
    if not any(output.endswith(":") for output in outputs):
        while len(lines) > 1 and lines[0].endswith(":"):
            del lines[0]
    return lines[0]


def _without_additions(text: str, outputs: Sequence[str]) -> str:
    """The text without an introduction, or else without marks around it, or else without its full stop, where no shown
    output has one; never empty unless it was."""
    if not any(map(_INTRODUCTION.match, outputs)) and (rest := _INTRODUCTION.sub("", text, count=1).strip()) != text:
        return rest or text
    for opening, closing in _WRAPPINGS:
        if _is_wrapped(text, opening, closing) and not any(_is_wrapped(o, opening, closing) for o in outputs):
            return text[len(opening) : -len(closing)].strip() or text
    ends_with_stop = text.endswith(".") and not text.endswith("..")
    if outputs and ends_with_stop and not any(output.endswith(".") for output in outputs):
        return text[:-1].rstrip() or text
    return text


def _is_wrapped(text: str, opening: str, closing: str) -> bool:
    """Whether a text stands between two marks that it does not contain."""
    if not (text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing)):
        return False
    inner = text[len(opening) : -len(closing)]
    return opening not in inner and closing not in inner


# --- when an answer is right -----------------------------------------------------------------------------------------


def _folded(text: str) -> str:
    """Lower case, white space as single spaces, accents in one encoding (NFC)."""
    return " ".join(unicodedata.normalize("NFC", text.casefold()).split())


def _words(text: str) -> str:
    """Lower case, without punctuation, articles and repeated white space (Rajpurkar et al. 2016, SQuAD); a text of
    nothing else, such as `+`, in lower case."""
    folded = _folded(text)
    letters = "".join(" " if unicodedata.category(c)[0] in "PS" else c for c in folded)
    return " ".join(word for word in letters.split() if word not in ("a", "an", "the")) or folded


def _number(text: str) -> str:
    """The number that a text is, in one form; a text that is none as it is."""
    digits = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.strip())
    try:
        number = Decimal(digits).normalize(Context(prec=max(1, len(digits))))
    except ArithmeticError:  # no number, or an exponent out of range
        return text
    return str(number or Decimal(0)) if number.is_finite() else text


COMPARISONS: Mapping[str, Callable[[str], str]] = {
    "exact": str,
    "ignore_case": _folded,
    "words": _words,
    "number": _number,
}
"""Name -> the form of a text in which answers are compared, after `canonical_output`."""


def check_comparison(name: object, kind: str) -> str:
    """The name of a comparison; `exact` for None. Raises `TaskError`."""
    if name is None:
        return "exact"
    if not isinstance(name, str) or name not in COMPARISONS:
        raise TaskError(f"comparison: expected one of {', '.join(COMPARISONS)}; received {shortened(name)}")
    if kind != "text" and name != "exact":
        raise TaskError(f"comparison: only texts are compared by {name!r}; received a task of the kind {kind!r}")
    return name


def is_right(task: Task, value: Value | None) -> bool:
    """Whether a value is the task's answer by the task's comparison; false for None, and where no answer is known."""
    return value is not None and task.answer is not None and same_answer(value, task.answer, task.comparison)


def same_answer(one: object, other: object, comparison: str = "exact") -> bool:
    """Whether two canonical answers are the same by a comparison, which is `exact` for all but texts."""
    if isinstance(one, str) and isinstance(other, str):
        form = COMPARISONS[comparison]
        return form(one) == form(other)
    return one == other
