"""Numbers as text that a reader compares. Knows nothing about what they mean."""

from __future__ import annotations

MOST_DIGITS = 12


def told_apart(first: float, second: float, digits: int) -> tuple[str, str]:
    """Two numbers with at least `digits` decimal places, and with more where different numbers would look equal."""
    for places in range(digits, MOST_DIGITS):
        texts = f"{first:.{places}f}", f"{second:.{places}f}"
        if float(texts[0]) != float(texts[1]) or first == second:
            break
    return texts


def lead_text(first: float, second: float, digits: int) -> tuple[str, str, str]:
    """Two numbers as `told_apart` prints them, and the difference of the numbers as printed."""
    one, other = told_apart(first, second, digits)
    return one, other, f"{float(one) - float(other):.{len(one.partition('.')[2])}f}"


def signed_text(number: float, digits: int) -> str:
    """A number with its sign, and with as many decimal places as tell it from 0."""
    text = told_apart(number, 0.0, digits)[0]
    return text if text.startswith("-") else f"+{text}"
