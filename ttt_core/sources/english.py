"""English text tasks of the package's own making: rules on words, and knowledge that short word lists hold."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from .base import (
    REFERENCE_PAIRS,
    REFERENCE_SEED,
    DrawnTask,
    Pair,
    SourceFamily,
    derived_seed,
    splits_of,
    take_distinct,
)
from .english_words import (
    ADJECTIVES,
    AGENTS,
    ANTONYMS,
    BABIES,
    CAPITALS,
    CATEGORIES,
    COLORS,
    COMPARATIVES,
    CONTINENTS,
    FEMININE,
    FRENCH,
    GERUNDS,
    IRREGULAR_PAST,
    IRREGULAR_PLURALS,
    MONTHS,
    NAMES,
    NEGATIVE,
    NOUNS,
    NUMBERS,
    POSITIVE,
    SPANISH,
    SURNAMES,
    TENS,
    THINGS,
    WEEKDAYS,
)

VERSION = 1
"""Changes with every change of what a seed gives."""
Rule = Callable[[], Sequence[tuple[str, str]]]


def _words(rule: Callable[[str], str], words: Sequence[str] = NOUNS) -> Rule:
    """A family that applies a rule to single words."""
    return lambda: [(word, rule(word)) for word in words]


def _phrases(rule: Callable[[list[str]], str], *parts: Sequence[str]) -> Rule:
    """A family that applies a rule to phrases with one word of each part: as many phrases as the longest part."""

    def pairs() -> list[tuple[str, str]]:
        rng = random.Random(0)
        size = max(map(len, parts))
        columns = [rng.sample(part, len(part)) * (size // len(part) + 1) for part in parts]
        phrases = [list(row) for row in zip(*(column[:size] for column in columns), strict=True)]
        return [(" ".join(words), rule(words)) for words in phrases]

    return pairs


def _numbers(rule: Callable[[int], str], low: int = 1, high: int = 99) -> Rule:
    return lambda: [(str(n), rule(n)) for n in range(low, high + 1)]


def number_word(n: int) -> str:
    """The English words of a number from 0 to 99.

    >>> number_word(42)
    'forty-two'
    """
    if n < 20:
        return NUMBERS[n]
    return TENS[n // 10 - 2] + (f"-{NUMBERS[n % 10]}" if n % 10 else "")


def _ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _reviews() -> list[tuple[str, str]]:
    return [
        (f"The {thing} was {word}.", label)
        for thing in THINGS
        for words, label in ((POSITIVE, "positive"), (NEGATIVE, "negative"))
        for word in words
    ]


def _calendar(steps: int) -> Rule:
    """The day or month some steps later."""
    return lambda: [
        (names[i], names[(i + steps) % len(names)]) for names in (WEEKDAYS, MONTHS) for i in range(len(names))
    ]


def _sums() -> list[tuple[str, str]]:
    return [(f"{a} + {b}", str(a + b)) for a in range(2, 40, 3) for b in range(3, 40, 4)]


def _longer_words() -> list[tuple[str, str]]:
    phrases = _phrases(lambda words: max(words, key=len), ADJECTIVES, NOUNS)()
    return [(phrase, word) for phrase, word in phrases if 2 * len(word) != len(phrase) - 1]


RULES: Mapping[str, Rule] = {
    "antonym": lambda: ANTONYMS,
    "capital_city": lambda: CAPITALS,
    "continent": lambda: CONTINENTS,
    "category": lambda: CATEGORIES,
    "typical_color": lambda: COLORS,
    "english_to_french": lambda: FRENCH,
    "english_to_spanish": lambda: SPANISH,
    "spanish_to_english": lambda: [(target, source) for source, target in SPANISH],
    "young_animal": lambda: BABIES,
    "feminine": lambda: FEMININE,
    "comparative": lambda: COMPARATIVES,
    "past_tense": lambda: IRREGULAR_PAST,
    "present_of_past": lambda: [(target, source) for source, target in IRREGULAR_PAST],
    "gerund": lambda: GERUNDS,
    "irregular_plural": lambda: IRREGULAR_PLURALS,
    "occupation": lambda: AGENTS,
    "sentiment": _reviews,
    "opposite_sentiment": lambda: [(s, "negative" if t == "positive" else "positive") for s, t in _reviews()],
    "plural": _words(
        lambda w: f"{w}s", [w for w in NOUNS if w[-1] not in "syhxf" and w not in ("sheep", "potato", "tomato")]
    ),
    "upper_case": _words(str.upper),
    "capitalised": _words(str.capitalize),
    "lower_case": _words(str.lower, [word.upper() for word in NOUNS]),
    "repeated": _words(lambda w: f"{w} {w}"),
    "in_quotes": _words(lambda w: f'"{w}"'),
    "with_article": _words(_article),
    "first_letter": _words(lambda w: w[0]),
    "second_letter": _words(lambda w: w[1]),
    "last_letter": _words(lambda w: w[-1]),
    "first_two_letters": _words(lambda w: w[:2]),
    "reversed_word": _words(lambda w: w[::-1]),
    "spelled": _words(lambda w: "-".join(w)),
    "without_first_letter": _words(lambda w: w[1:]),
    "without_vowels": _words(lambda w: "".join(c for c in w if c not in "aeiou")),
    "word_length": _words(lambda w: str(len(w))),
    "sorted_letters": _words(lambda w: "".join(sorted(w)), [w for w in NOUNS if len(w) < 7]),
    "first_word": _phrases(lambda w: w[0], ADJECTIVES, NOUNS),
    "last_word": _phrases(lambda w: w[-1], ADJECTIVES, NOUNS),
    "middle_word": _phrases(lambda w: w[1], NAMES, ADJECTIVES, NOUNS),
    "swapped_words": _phrases(lambda w: f"{w[1]} {w[0]}", ADJECTIVES, NOUNS),
    "joined_words": _phrases(lambda w: "_".join(w), ADJECTIVES, NOUNS),
    "longer_word": _longer_words,
    "first_in_alphabet": _phrases(min, ADJECTIVES, NOUNS),
    "initials": _phrases(lambda w: f"{w[0][0]}.{w[1][0]}.", NAMES, SURNAMES),
    "surname_first": _phrases(lambda w: f"{w[1]}, {w[0]}", NAMES, SURNAMES),
    "second_word_upper": _phrases(lambda w: w[1].upper(), ADJECTIVES, NOUNS),
    "word_to_number": lambda: [(number_word(n), str(n)) for n in range(1, 100)],
    "number_to_word": _numbers(number_word),
    "ordinal": _numbers(_ordinal),
    "next_number": _numbers(lambda n: str(n + 1)),
    "double": _numbers(lambda n: str(2 * n)),
    "square": _numbers(lambda n: str(n * n), 2, 50),
    "even_or_odd": _numbers(lambda n: "odd" if n % 2 else "even"),
    "above_fifty": _numbers(lambda n: "high" if n > 50 else "low"),
    "digit_sum": _numbers(lambda n: str(sum(map(int, str(n)))), 10, 99),
    "reversed_number": _numbers(lambda n: str(n)[::-1], 10, 99),
    "sum": _sums,
    "next_in_calendar": _calendar(1),
    "two_later_in_calendar": _calendar(2),
    "previous_in_calendar": _calendar(-1),
}
"""Family -> all of its pairs, in a fixed order."""


@cache
def pairs_of(family: str) -> tuple[tuple[str, str], ...]:
    """The pairs of a family, each input once."""
    return tuple(dict(RULES[family]()).items())


def halves(family: str, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """Two disjoint halves of a family's pairs, by the seed: one to measure a model on, and one to show."""
    pairs = pairs_of(family)
    order: list[Pair] = list(random.Random(derived_seed("halves", seed)).sample(pairs, len(pairs)))
    middle = (len(order) + 1) // 2
    return order[:middle], order[middle:]


class English:
    """English rules on words and numbers, and knowledge in short word lists; a task has no pair twice."""

    name = "english"

    @property
    def version(self) -> str:
        return f"english {VERSION}"

    def families(self) -> Mapping[str, SourceFamily]:
        return _families()

    def draw(
        self, family: str, difficulty: str, tasks: int, demonstrations: int, queries: int, seed: int
    ) -> list[DrawnTask]:
        return draw_from(pairs_of(family), tasks, demonstrations, queries, seed, family)


def draw_from(
    pairs: Sequence[Pair], tasks: int, demonstrations: int, queries: int, seed: int, family: str
) -> list[DrawnTask]:
    """Tasks of which each has pairs of its own, sampled from `pairs`. Raises `TaskError` where those are too few."""
    drawn = []
    for number in range(tasks):
        order = random.Random(derived_seed(seed, number)).sample(pairs, len(pairs))
        chosen = take_distinct(order, demonstrations + queries, f"english:{family}")
        drawn.append(DrawnTask(tuple(chosen[:demonstrations]), tuple(chosen[demonstrations:])))
    return drawn


@cache
def _families() -> Mapping[str, SourceFamily]:
    references = {name: _reference(name) for name in RULES}
    splits = splits_of(references)
    return {
        name: SourceFamily(name, "text", splits[name][1], about=f"{len(pairs_of(name))} pairs") for name in RULES
    }  # fmt: skip


def _reference(name: str) -> list[Pair]:
    pairs = pairs_of(name)
    return list(random.Random(REFERENCE_SEED).sample(pairs, min(REFERENCE_PAIRS, len(pairs))))
