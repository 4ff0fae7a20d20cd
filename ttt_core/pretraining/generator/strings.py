"""Short texts: scenes and primitives. Knows nothing about families, splits, prompts or models.

Words are made of random syllables, so that their meaning does not help. Fields stand between separators; the separator
is the first run of characters that are not letters, digits, brackets or quotes. Values have 1-60 characters, no line
break and no space at either end; any other result is a `Reject`.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from itertools import groupby, pairwise
from string import ascii_lowercase, ascii_uppercase

from .core import Domain, Operation, Primitive, Reject

Op = Callable[[str], str]
Draw = Callable[[random.Random], Operation]
Sampler = Callable[[], str]
MAX_LENGTH = 60
VOWELS = frozenset("aeiouAEIOU")
SYLLABLES = [c + v + e for c in "bcdfghjklmnprstvwz" for v in "aeiou" for e in ("", "", "", "l", "n", "r", "s", "t")]
SEPARATORS = (" ", " ", ",", ", ", "-", "_", "/", ".", ";", ":", " | ", "+", "=", " - ")
SEPARATOR = re.compile(r"""[^0-9A-Za-z()\[\]{}<>"'*]+""")
NUMBER = re.compile(r"\d+")
WRAPPERS = (("(", ")"), ("[", "]"), ("{", "}"), ("<", ">"), ('"', '"'), ("'", "'"), ("*", "*"))
PREFIXES, SUFFIXES = ("un", "re", "pre", "mis", "sub", "over"), ("ed", "ing", "ly", "ness", "er", "ful")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July",
    "August", "September", "October", "November", "December",
)  # fmt: skip
DATES = (
    ("{y}-{m:02}-{d:02}", re.compile(r"(?P<y>\d{4})-(?P<m>\d\d)-(?P<d>\d\d)")),
    ("{m:02}/{d:02}/{y}", re.compile(r"(?P<m>\d\d)/(?P<d>\d\d)/(?P<y>\d{4})")),
    ("{d:02}.{m:02}.{y}", re.compile(r"(?P<d>\d\d)\.(?P<m>\d\d)\.(?P<y>\d{4})")),
    ("{d} {month} {y}", re.compile(r"(?P<d>\d+) (?P<month>[A-Z][a-z]+) (?P<y>\d{4})")),
    ("{month} {d}, {y}", re.compile(r"(?P<month>[A-Z][a-z]+) (?P<d>\d+), (?P<y>\d{4})")),
    ("{y}{m:02}{d:02}", re.compile(r"(?P<y>\d{4})(?P<m>\d\d)(?P<d>\d\d)")),
)
DATE_PARTS = ("{y}", "{month}", "{d:02}", "{month} {y}", "{m:02}/{y}", "{d}.{m}.", "{mon} {d}", "Q{q} {y}")
ROMAN = ((100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))


def _require(condition: object) -> None:
    if not condition:
        raise Reject


def _pseudo(rng: random.Random, low: int, high: int) -> str:
    """A word of `low` to `high` syllables."""
    return "".join(rng.choices(SYLLABLES, k=rng.randint(low, high)))


def _words(rng: random.Random, low: int, high: int) -> Sampler:
    """Words, of syllables in most tasks and of random letters in the others."""
    if rng.random() < 0.8:
        return lambda: _pseudo(rng, low, high)
    return lambda: "".join(rng.choices(ascii_lowercase, k=rng.randint(2 * low, 2 * high + 1)))


def _case(rng: random.Random) -> Op:
    return rng.choice((str.lower, str.lower, str.lower, str.upper, str.capitalize))


def _mixed_case(rng: random.Random) -> Op:
    mixed: Op = lambda s: "".join(c.upper() if rng.random() < 0.5 else c for c in s)  # noqa: E731
    return rng.choice((str.upper, str.capitalize, str.capitalize, mixed))


def _word_scene(case: Callable[[random.Random], Op]) -> Callable[[random.Random], Sampler]:
    def scene(rng: random.Random) -> Sampler:
        word, cased = _words(rng, rng.randint(1, 2), rng.randint(3, 4)), case(rng)
        return lambda: cased(word())

    return scene


def _joined(rng: random.Random, low: int, high: int, item: Callable[[random.Random], Sampler]) -> Sampler:
    """`low` to `high` items with one separator a task; in half the tasks always the same number of them."""
    separator, one = rng.choice(SEPARATORS), item(rng)
    if rng.random() < 0.5:
        low = high = rng.randint(low, high)
    return lambda: separator.join([one() for _ in range(rng.randint(low, high))])


def _cased_words(rng: random.Random) -> Sampler:
    word, cased = _words(rng, 1, 3), _case(rng)
    return lambda: cased(word())


def _integers(rng: random.Random) -> Sampler:
    top = rng.choice((20, 50, 100, 100, 1000))
    return lambda: str(rng.randint(1, top))


def _letters(rng: random.Random, defect: bool) -> Sampler:
    """Steps through the alphabet; with `defect`, one letter is replaced by another."""
    separator, width = rng.choice(("", " ", " ", ",", "-")), rng.choice((1, 1, 1, 2))
    alphabet = rng.choice((ascii_lowercase, ascii_lowercase, ascii_uppercase))
    step, low = rng.choice((1, 1, 1, 2, 3, -1, -2)), 5 if defect else 3

    def sample() -> str:
        count = rng.randint(low, low + 2)
        span = step * (count - 1)
        start = rng.randint(max(0, -span), 25 - max(0, span))
        items = [alphabet[start + step * i] for i in range(count)]
        if defect:
            i = rng.randrange(count)
            items[i] = rng.choice([c for c in alphabet if c not in items])
        return separator.join([c * width for c in items])

    return sample


def _runs(rng: random.Random) -> Sampler:
    """Letters, some of them several times in a row."""
    separator, alphabet, longest = rng.choice(("", "", " ", ",")), rng.sample(ascii_lowercase, 8), rng.randint(2, 4)

    def sample() -> str:
        items = [c for c in rng.sample(alphabet, rng.randint(2, 5)) for _ in range(rng.randint(1, longest))]
        return separator.join(items)

    return sample


def _date_text(template: str, y: int, m: int, d: int) -> str:
    month = MONTHS[m - 1]
    return template.format(y=y, m=m, d=d, month=month, mon=month[:3], q=(m + 2) // 3)


def _dates(rng: random.Random) -> Sampler:
    template = rng.choice(DATES)[0]
    return lambda: _date_text(template, rng.randint(1900, 2039), rng.randint(1, 12), rng.randint(1, 28))


def _names(rng: random.Random) -> Sampler:
    count = rng.choice((2, 2, 2, 3))
    return lambda: " ".join([_pseudo(rng, 1, 3).capitalize() for _ in range(count)])


def _key_values(rng: random.Random) -> Sampler:
    separator, key = rng.choice(("=", ":", ": ", " = ", " is ", "/")), _words(rng, 1, 3)
    value = rng.choice((_integers, _cased_words))(rng)
    return lambda: key() + separator + value()


def _mixed(rng: random.Random) -> Sampler:
    """Letters and digits: a word with its number before, after or between."""
    place, word, number = rng.randrange(3), _cased_words(rng), _integers(rng)
    shapes: tuple[Sampler, ...] = (
        lambda: number() + word(),
        lambda: word() + number(),
        lambda: word() + number() + word(),
    )
    return shapes[place]


def _bracketed(rng: random.Random) -> Sampler:
    (left, right), word = rng.choice(WRAPPERS), _words(rng, 1, 2)
    before, after = rng.choice(((True, True), (True, False), (False, True)))
    return lambda: before * f"{word()} " + left + word() + right + after * f" {word()}"


def _affixed(rng: random.Random) -> Sampler:
    before, affix, word = rng.random() < 0.5, rng.randrange(6), _words(rng, 1, 3)
    return lambda: PREFIXES[affix] + word() if before else word() + SUFFIXES[affix]


def _to_roman(n: int) -> str:
    _require(0 < n < 150)
    out = ""
    for value, sign in ROMAN:
        out += sign * (n // value)
        n %= value
    return out


def _from_roman(s: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}.get(c, 0) for c in s]
    number = sum(-a if a < b else a for a, b in pairwise([*values, 0]))
    _require(values and all(values) and _to_roman(number) == s)
    return number


def _romans(rng: random.Random) -> Sampler:
    top = rng.choice((20, 50, 100))
    return lambda: _to_roman(rng.randint(1, top))


SCENES: dict[str, Callable[[random.Random], Sampler]] = {
    "word": _word_scene(_case),
    "cased": _word_scene(_mixed_case),
    "words": lambda rng: _joined(rng, 2, 5, _cased_words),
    "cased_words": lambda rng: _joined(rng, 2, 4, _word_scene(_mixed_case)),
    "sequence": lambda rng: _letters(rng, False),
    "defect": lambda rng: _letters(rng, True),
    "runs": _runs,
    "number": _integers,
    "two_numbers": lambda rng: _joined(rng, 2, 2, _integers),
    "numbers": lambda rng: _joined(rng, 3, 5, _integers),
    "date": _dates,
    "name": _names,
    "key_value": _key_values,
    "mixed": _mixed,
    "bracketed": _bracketed,
    "affixed": _affixed,
    "roman": _romans,
}


def _fields(s: str) -> tuple[list[str], str]:
    """The fields (at least two, none empty) and their separator."""
    match = SEPARATOR.search(s)
    _require(match)
    separator = match[0] if match else ""
    parts = s.split(separator)
    _require(all(parts))
    return parts, separator


def _integer(s: str) -> int:
    _require(s.isdigit() and len(s) < 9)
    return int(s)


def _two(s: str) -> tuple[int, int]:
    numbers = NUMBER.findall(s)
    _require(len(numbers) == 2)
    return _integer(numbers[0]), _integer(numbers[1])


def _fixed(function: Op) -> Draw:
    """A primitive without parameters."""
    return lambda rng: function


def _with_int(low: int, high: int, make: Callable[[int], Op]) -> Draw:
    """A primitive with one integer parameter in [low, high]."""
    return lambda rng: make(rng.randint(low, high))


def _on_fields(draw: Callable[[random.Random], Callable[[list[str]], list[str]]]) -> Draw:
    """A primitive that changes the list of fields and keeps the separator."""

    def draw_operation(rng: random.Random) -> Operation:
        change = draw(rng)

        def operation(s: str) -> str:
            parts, separator = _fields(s)
            return separator.join(change(parts))

        return operation

    return draw_operation


def _at(s: str | list[str], i: int) -> str:
    _require(-len(s) <= i < len(s))
    return s[i]


def _place(rng: random.Random) -> int:
    return rng.choice((0, 0, 1, 2, -1, -1, -2))


def _shift(k: int) -> Op:
    turned = ascii_lowercase[k:] + ascii_lowercase[:k]
    table = str.maketrans(ascii_lowercase + ascii_uppercase, turned + turned.upper())
    return lambda s: s.translate(table)


def _wrap(rng: random.Random) -> Operation:
    left, right = rng.choice(WRAPPERS)
    return lambda s: left + s + right


def _affix(rng: random.Random) -> Operation:
    text = rng.choice((rng.choice("!?.#@$%&~" + ascii_lowercase), str(rng.randint(0, 99)), _pseudo(rng, 1, 2)))
    between, before = rng.choice(("", "", "", "-", "_", " ")), rng.random() < 0.5
    return lambda s: text + between + s if before else s + between + text


def _char_filter(rng: random.Random) -> Callable[[int, str], bool]:
    """A property of (position, character)."""
    k, letters = rng.randint(2, 3), set(rng.sample(ascii_lowercase, 6))
    table: list[Callable[[int, str], bool]] = [
        lambda i, c: c in VOWELS,
        lambda i, c: c.isalpha() and c not in VOWELS,
        lambda i, c: i % k == 0,
        lambda i, c: i % 2 == 1,
        lambda i, c: c.lower() in letters,
        lambda i, c: c.isalpha() and c.lower() < "n",
        lambda i, c: i == k - 1,
    ]
    return rng.choice(table)


def _map_where(rng: random.Random) -> Operation:
    where, sign = _char_filter(rng), rng.choice("*-#x0")
    f: Op = rng.choice((str.swapcase, str.upper, lambda c: c + c, lambda c: sign, lambda c: c + sign))
    return lambda s: "".join([f(c) if where(i, c) else c for i, c in enumerate(s)])


def _filter_chars(rng: random.Random) -> Operation:
    where, keep = _char_filter(rng), rng.random() < 0.5
    return lambda s: "".join([c for i, c in enumerate(s) if where(i, c) == keep])


def _replace_char(rng: random.Random) -> Operation:
    old = "".join(rng.sample("aeiou", 3) + rng.sample("nrstl", 2))
    new = rng.choice([*"*_-", *ascii_lowercase])
    pairs = str.maketrans(old, new * 5) if rng.random() < 0.4 else str.maketrans(old, "".join(rng.sample(old, 5)))
    return lambda s: s.translate(pairs)


def _word_op(rng: random.Random) -> Op:
    """A random operation on a single word."""
    k, end = rng.randint(1, 2), _pseudo(rng, 1, 1)
    table: list[Op] = [
        str.upper,
        str.capitalize,
        lambda s: s[::-1],
        lambda s: s[:k],
        lambda s: s[-k:],
        lambda s: s[k:],
        lambda s: s[:-k],
        lambda s: s + end,
        lambda s: s[k:] + s[:k],
        lambda s: s + s[-1:],
        lambda s: s[:1] + "." * k,
    ]
    return rng.choice(table)


def _change_one(rng: random.Random) -> Callable[[list[str]], list[str]]:
    i, f = _place(rng), _word_op(rng)

    def change(parts: list[str]) -> list[str]:
        new = f(_at(parts, i))
        return [new if j == i % len(parts) else p for j, p in enumerate(parts)]

    return change


def _change_each(rng: random.Random) -> Callable[[list[str]], list[str]]:
    f = _word_op(rng)
    return lambda parts: [f(p) for p in parts]


def _text_filter(rng: random.Random) -> Callable[[str], bool]:
    """A property of a text."""
    k, letter = rng.randint(4, 7), rng.choice("aeiounrst")
    table: list[Callable[[str], bool]] = [
        lambda s: s[:1] in VOWELS,
        lambda s: s[-1:] in VOWELS,
        lambda s: len(s) % 2 == 0,
        lambda s: len(s) > k,
        lambda s: letter in s.lower(),
        lambda s: s[:1].lower() < "m",
    ]
    return rng.choice(table)


def _branch(rng: random.Random) -> Operation:
    test, f, g = _text_filter(rng), _word_op(rng), rng.choice((str, str, _word_op(rng)))
    return lambda s: f(s) if test(s) else g(s)


def _labels(rng: random.Random, count: int) -> list[str]:
    if rng.random() < 0.5:
        return [_pseudo(rng, 1, 2) for _ in range(count)]
    return rng.sample(rng.choice((ascii_uppercase, "0123456789", ascii_lowercase)), count)


def _classify(rng: random.Random) -> Callable[[str], str]:
    """A label by the length, the first letter's place in the alphabet, or the number."""
    count = rng.randint(2, 5)
    labels, by_length = _labels(rng, count), rng.random() < 0.4

    def label(s: str) -> str:
        if s.isdigit():
            return labels[_integer(s) % count]
        _require(s[:1].isalpha())
        return labels[len(s) % count if by_length else (ord(s[0].lower()) - 97) * count // 26]

    return label


def _tag(rng: random.Random) -> Operation:
    label, between, before = _classify(rng), rng.choice((" ", ":", "-", ", ", "")), rng.random() < 0.5
    return lambda s: label(s) + between + s if before else s + between + label(s)


def _sorted_fields(rng: random.Random) -> Callable[[list[str]], list[str]]:
    """Sorts by length or by alphabet; numbers by size."""
    by_length, down = rng.random() < 0.4, rng.random() < 0.4

    def change(parts: list[str]) -> list[str]:
        if all(p.isdigit() for p in parts):
            return sorted(parts, key=int, reverse=down)
        return sorted(parts, key=len if by_length else str.lower, reverse=down)

    return change


def _extreme_field(rng: random.Random) -> Callable[[list[str]], list[str]]:
    order, i = _sorted_fields(rng), rng.choice((0, -1))
    return lambda parts: [order(parts)[i]]


def _swap_fields(rng: random.Random) -> Callable[[list[str]], list[str]]:
    i, j = rng.choice(((0, 1), (0, -1), (0, -1), (-2, -1)))

    def change(parts: list[str]) -> list[str]:
        parts = parts[:]
        parts[i], parts[j] = parts[j], parts[i]
        return parts

    return change


def _swap_chars(rng: random.Random) -> Operation:
    i, j = rng.choice(((0, 1), (0, -1), (-2, -1), (1, 2)))

    def operation(s: str) -> str:
        _require(len(s) > 2)
        chars = list(s)
        chars[i], chars[j] = chars[j], chars[i]
        return "".join(chars)

    return operation


def _move_char(rng: random.Random) -> Operation:
    k, end = rng.randint(1, 2), rng.choice(("", "", _pseudo(rng, 1, 1), "-" + _pseudo(rng, 1, 1)))
    return lambda s: s[k:] + s[:k] + end


def _insert(rng: random.Random) -> Operation:
    i, text = rng.choice((1, 2, 3, -1, -2)), rng.choice("-_.* " + ascii_lowercase)

    def operation(s: str) -> str:
        _require(len(s) > abs(i))
        return s[:i] + text + s[i:]

    return operation


def _separator(rng: random.Random) -> Operation:
    new = rng.choice((*SEPARATORS, "", " and ", " of ", "->"))
    return lambda s: new.join(_fields(s)[0])


def _camel(rng: random.Random) -> Operation:
    start = rng.choice((0, 1))
    return lambda s: "".join([p.capitalize() if i >= start else p.lower() for i, p in enumerate(_fields(s)[0])])


def _template(rng: random.Random) -> Operation:
    """The first and last field in a random frame."""
    frames = ("{b} ({a})", "{a}({b})", "{b}, {a}", "{i}. {b}", "{b} {i}.", "<{a}>{b}", '{a}: "{b}"', "{i}{b}")
    frame = rng.choice(frames)

    def operation(s: str) -> str:
        parts = _fields(s)[0]
        return frame.format(a=parts[0], b=parts[-1], i=parts[0][0])

    return operation


def _spaced(rng: random.Random) -> Operation:
    separator = rng.choice((" ", " ", "-", ",", ", ", "."))
    return lambda s: separator.join(s)


def _repeat(rng: random.Random) -> Operation:
    k, separator = rng.randint(2, 3), rng.choice(("", " ", "-", ", "))
    return lambda s: separator.join([s] * k)


def _letter_of_each(rng: random.Random) -> Operation:
    i, end = rng.choice((0, 0, -1)), rng.choice(("", "", ".", " "))
    f: Op = rng.choice((str, str.upper))
    return lambda s: "".join([f(p[i]) + end for p in _fields(s)[0]]).strip()


def _arithmetic(rng: random.Random) -> Operation:
    k = rng.randint(1, 9)
    table: list[Callable[[int, int], int]] = [
        lambda a, b: a + b,
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: abs(a - b),
        lambda a, b: a * b,
        lambda a, b: a + b + k,
        lambda a, b: b - a,
    ]
    f = rng.choice(table)
    return lambda s: str(f(*_two(s)))


def _compare(rng: random.Random) -> Operation:
    f, g = rng.choice(((max, min), (min, max)))
    frame = rng.choice(("{0}", "{0}", "{0} {1}", "{0}>{1}"))
    return lambda s: frame.format(f(_two(s)), g(_two(s)))


def _number_map(rng: random.Random) -> Operation:
    """Every number in the text is changed."""
    k, width = rng.randint(1, 10), rng.randint(3, 5)
    table: list[Callable[[int], int | str]] = [
        lambda n: n + 1,
        lambda n: n - 1,
        lambda n: n + k,
        lambda n: n * (k % 4 + 2),
        lambda n: n // 2,
        lambda n: str(n).zfill(width),
        lambda n: str(n)[::-1],
        lambda n: n + 1 - 2 * (n % 2),
        lambda n: n % (k + 2),
    ]
    f = rng.choice(table)
    return lambda s: NUMBER.sub(lambda m: str(f(_integer(m[0]))), s)


def _count(rng: random.Random) -> Operation:
    letter = rng.choice("aeinrst")
    table: list[Callable[[str], int]] = [
        lambda s: sum(c in VOWELS for c in s),
        lambda s: sum(c.isalpha() and c not in VOWELS for c in s),
        lambda s: s.lower().count(letter),
        lambda s: len(set(s.lower())),
        lambda s: len(_fields(s)[0]),
        lambda s: sum(c.isdigit() for c in s),
        lambda s: sum(c.isupper() for c in s),
    ]
    f = rng.choice(table)
    return lambda s: str(f(s))


def _parse_date(s: str) -> tuple[int, int, int]:
    for _, pattern in DATES:
        if match := pattern.fullmatch(s):
            parts = match.groupdict()
            month = parts.get("month")
            _require(month is None or month in MONTHS)
            m = MONTHS.index(month) + 1 if month else int(parts["m"])
            _require(1 <= m <= 12)
            return int(parts["y"]), m, int(parts["d"])
    raise Reject


def _date_format(templates: tuple[str, ...]) -> Draw:
    def draw(rng: random.Random) -> Operation:
        template = rng.choice(templates)
        return lambda s: _date_text(template, *_parse_date(s))

    return draw


def _inside(rng: random.Random) -> Operation:
    """What stands in brackets or quotes, what stands outside, or the text with other brackets."""
    (left, right), way = rng.choice(WRAPPERS), rng.randrange(3)
    pattern = re.compile(r"""[(\[{<"'*](\w+)[)\]}>"'*]""")

    def operation(s: str) -> str:
        match = pattern.search(s)
        _require(match)
        content = match[1] if match else ""
        if way == 0:
            return content
        return pattern.sub("" if way == 1 else left + content + right, s).strip()

    return operation


def _change_affix(rng: random.Random) -> Operation:
    """Removes the known prefix or suffix, or replaces it."""
    i = rng.randrange(-6, 6)
    new_start, new_end = (PREFIXES[i], SUFFIXES[i]) if i >= 0 else ("", "")

    def operation(s: str) -> str:
        for start, end in zip(PREFIXES, SUFFIXES, strict=True):
            if s.startswith(start):
                return new_start + s[len(start) :]
            if s.endswith(end):
                return s[: -len(end)] + new_end
        raise Reject

    return operation


def _run_length(rng: random.Random) -> Operation:
    frame = rng.choice(("{0}{1}", "{1}{0}", "{0}:{1} "))

    def operation(s: str) -> str:
        tokens = _fields(s)[0] if SEPARATOR.search(s) else list(s)
        return "".join([frame.format(c, len(list(run))) for c, run in groupby(tokens)]).strip()

    return operation


def _dedupe(rng: random.Random) -> Operation:
    """Removes repeated fields (characters, if there are no fields): adjacent ones, or all."""
    adjacent = rng.random() < 0.6

    def operation(s: str) -> str:
        tokens, separator = _fields(s) if SEPARATOR.search(s) else (list(s), "")
        return separator.join([c for c, _ in groupby(tokens)] if adjacent else list(dict.fromkeys(tokens)))

    return operation


def _elements(s: str) -> tuple[list[str], list[int], str]:
    """Elements of a sequence of letters (or runs of one letter) or numbers, their codes, and the separator."""
    parts, separator = _fields(s) if SEPARATOR.search(s) else (["".join(run) for _, run in groupby(s)], "")
    _require(len(parts) > 2)
    return parts, [_code(p) for p in parts], separator


def _code(element: str) -> int:
    if element.isdigit():
        return _integer(element)
    _require(element.isalpha() and len(set(element)) == 1)
    return ord(element[0].lower()) - 97


def _spell(code: int, like: str) -> str:
    if like.isdigit():
        _require(code >= 0)
        return str(code)
    _require(0 <= code < 26)
    return (ascii_uppercase if like.isupper() else ascii_lowercase)[code] * len(like)


def _extend(rng: random.Random) -> Operation:
    count, alone = rng.randint(1, 2), rng.random() < 0.4

    def operation(s: str) -> str:
        parts, codes, separator = _elements(s)
        step = codes[1] - codes[0]
        _require(step and all(b - a == step for a, b in pairwise(codes)))
        new = [_spell(codes[-1] + step * (i + 1), parts[-1]) for i in range(count)]
        return separator.join(new if alone else parts + new)

    return operation


def _step_element(rng: random.Random) -> Operation:
    """Moves one element forward or back in its order, as in abc -> abd."""
    i, step = rng.choice((-1, -1, 0, 1)), rng.choice((1, 1, -1, 2))

    def operation(s: str) -> str:
        parts, codes, separator = _elements(s)
        parts[i] = _spell(codes[i] + step, parts[i])
        return separator.join(parts)

    return operation


def _defect(s: str) -> tuple[list[str], int, str, str]:
    """Elements, the place of the only one that breaks the steps, what belongs there, and the separator."""
    parts, codes, separator = _elements(s)
    step = Counter(b - a for a, b in pairwise(codes)).most_common(1)[0][0]
    start = Counter(c - step * i for i, c in enumerate(codes)).most_common(1)[0][0]
    wrong = [i for i, c in enumerate(codes) if c != start + step * i]
    _require(len(wrong) == 1 and len(parts) > 4)
    i = wrong[0]
    return parts, i, _spell(start + step * i, parts[i]), separator


def _repair(s: str) -> str:
    parts, i, right, separator = _defect(s)
    return separator.join([*parts[:i], right, *parts[i + 1 :]])


def _odd_one(rng: random.Random) -> Operation:
    way, (left, right) = rng.randrange(3), rng.choice(WRAPPERS)

    def operation(s: str) -> str:
        parts, i, _, separator = _defect(s)
        if way == 0:
            return parts[i]
        return separator.join([*parts[:i], *([left + parts[i] + right] if way == 1 else []), *parts[i + 1 :]])

    return operation


def _alternate(rng: random.Random) -> Operation:
    first = rng.randrange(2)
    return lambda s: "".join([c.upper() if i % 2 == first else c.lower() for i, c in enumerate(s)])


def _sort_letters(rng: random.Random) -> Operation:
    down = rng.random() < 0.3
    return lambda s: "".join(sorted(s, reverse=down))


def _ends(rng: random.Random) -> Operation:
    k, inner = rng.randint(1, 2), rng.random() < 0.4
    return lambda s: s[k:-k] if inner else s[:k] + s[-k:]


def _mirror(rng: random.Random) -> Operation:
    way = rng.randrange(3)
    return lambda s: (s + s[::-1], s[::-1] + s, s + s[-2::-1])[way]


def _repeat_each(k: int) -> Op:
    return lambda s: "".join([c * k for c in s])


_EACH = "every character two or three times"
_W = ("word", "cased", "affixed", "mixed")
_T = (*_W, "words", "name", "runs")
_F = ("words", "cased_words", "name", "key_value", "numbers", "date")
_M = ("words", "cased_words", "numbers")
_FV, _II, _LS, _BB = "function_vectors", "instruction_induction", "letter_string_analogies", "big_bench"
PRIMITIVES = (
    Primitive("upper", _fixed(str.upper), ("word", "words", "name", "bracketed", "key_value"), also_benchmark=_FV),
    Primitive("lower", _fixed(str.lower), ("cased", "cased_words", "name"), also_benchmark=_FV),
    Primitive("capitalise", _fixed(str.capitalize), ("word", "cased", "words"), also_benchmark=_FV),
    Primitive("title", _fixed(str.title), ("words", "cased_words", "key_value", "bracketed")),
    Primitive("swap_case", _fixed(str.swapcase), ("cased", "cased_words", "name")),
    Primitive("alternate_case", _alternate, ("word", "cased", "words"), held_out=True),
    Primitive("map_where", _map_where, _T, weight=2.0),
    Primitive("filter_chars", _filter_chars, _T, weight=2.0),
    Primitive("reverse", _fixed(lambda s: s[::-1]), (*_T, "number", "sequence"), also_benchmark=_BB),
    Primitive("rotate", _with_int(1, 4, lambda k: lambda s: s[k - 5 :] + s[: k - 5] if k > 2 else s[k:] + s[:k]), _W),
    Primitive("mirror", _mirror, ("word", "number", "sequence", "roman")),
    Primitive("repeat", _repeat, ("word", "cased", "number", "mixed"), also_benchmark=_BB),
    Primitive("nth_char", lambda rng: (lambda i: lambda s: _at(s, i))(_place(rng)), _T, also_benchmark=_II),
    Primitive("first_chars", _with_int(1, 4, lambda k: lambda s: s[:k]), _T),
    Primitive("last_chars", _with_int(1, 4, lambda k: lambda s: s[-k:]), _T),
    Primitive("drop_first", _with_int(1, 3, lambda k: lambda s: s[k:]), _T),
    Primitive("drop_last", _with_int(1, 3, lambda k: lambda s: s[:-k]), _T),
    Primitive("ends", _ends, _T, held_out=True),
    Primitive("sort_letters", _sort_letters, ("word", "runs", "mixed", "number"), also_benchmark=_LS),
    Primitive("dedupe", _dedupe, ("runs",), also_benchmark=_LS),
    Primitive("run_length", _run_length, ("runs",), held_out=True),
    Primitive("replace_char", _replace_char, ("word", "words", "name")),
    Primitive("double", _with_int(2, 3, _repeat_each), ("word", "number", "roman"), about=_EACH),
    Primitive("caesar", _with_int(-3, 5, lambda k: _shift(k or 13)), _T),
    Primitive("insert", _insert, _W, held_out=True),
    Primitive("affix", _affix, weight=1.5),
    Primitive("change_affix", _change_affix, ("affixed",)),
    Primitive("swap_chars", _swap_chars, (*_W, "sequence")),
    Primitive("move_char", _move_char, ("word", "cased", "affixed", "mixed")),
    Primitive("spaced", _spaced, ("word", "cased", "number", "mixed"), also_benchmark=_II),
    Primitive("wrap", _wrap),
    Primitive("inside", _inside, ("bracketed",), weight=1.5),
    Primitive("length", _fixed(lambda s: str(len(s))), ("word", "cased", "runs", "words"), also_benchmark=_FV),
    Primitive("count", _count, ("word", "words", "cased", "runs")),
    Primitive("branch", _branch, ("word", "affixed", "name"), weight=1.5),
    Primitive("label", _classify, ("word", "cased", "name", "number"), weight=1.5),
    Primitive("tag", _tag, ("word", "cased", "name", "number"), held_out=True),
    Primitive("nth_word", lambda rng: (lambda i: lambda s: _at(_fields(s)[0], i))(_place(rng)), _F, also_benchmark=_FV),
    Primitive("drop_word", _on_fields(lambda rng: (lambda i: lambda p: p[1:] if i else p[:-1])(rng.randrange(2))), _F),
    Primitive("letter_of_each", _letter_of_each, _F, also_benchmark=_BB),
    Primitive("reverse_words", _on_fields(lambda rng: lambda p: p[::-1]), _F),
    Primitive("sort_words", _on_fields(_sorted_fields), _M, also_benchmark=_BB),
    Primitive("extreme_word", _on_fields(_extreme_field), _M, also_benchmark=_FV),
    Primitive("swap_fields", _on_fields(_swap_fields), (*_F, "two_numbers"), held_out=True),
    Primitive("change_word", _on_fields(_change_one), _F, weight=1.5),
    Primitive("change_each_word", _on_fields(_change_each), _F, weight=1.5),
    Primitive("repeat_word", _on_fields(lambda rng: (lambda i: lambda p: [*p, p[i]])(rng.choice((0, -1)))), _F, True),
    Primitive("separator", _separator, (*_F, "two_numbers", "sequence"), weight=1.5),
    Primitive("camel", _camel, ("words", "cased_words", "key_value"), held_out=True),
    Primitive("template", _template, ("name", "key_value", "words", "two_numbers")),
    Primitive("arithmetic", _arithmetic, ("two_numbers",), weight=2.0, also_benchmark=_II),
    Primitive("compare", _compare, ("two_numbers",), held_out=True, also_benchmark=_II),
    Primitive("number_map", _number_map, ("number", "two_numbers", "numbers", "mixed"), weight=2.0),
    Primitive("digits", _fixed(lambda s: "".join([c for c in s if c.isdigit()])), ("mixed", "date")),
    Primitive("digit_sum", _fixed(lambda s: str(sum(int(c) for c in s if c.isdigit()))), ("number", "mixed"), True),
    Primitive("date_format", _date_format(tuple(t for t, _ in DATES)), ("date",), weight=1.5),
    Primitive("date_part", _date_format(DATE_PARTS), ("date",), held_out=True),
    Primitive("roman_step", _with_int(1, 3, lambda k: lambda s: _to_roman(_from_roman(s) + k)), ("roman",)),
    Primitive("from_roman", _fixed(lambda s: str(_from_roman(s))), ("roman",)),
    Primitive("to_roman", _fixed(lambda s: _to_roman(_integer(s))), ("number",), held_out=True),
    Primitive("extend", _extend, ("sequence",), weight=1.5, also_benchmark=_LS),
    Primitive("step_element", _step_element, ("sequence",), also_benchmark=_LS),
    Primitive("repair", _fixed(_repair), ("defect",), also_benchmark=_LS),
    Primitive("odd_one", _odd_one, ("defect",), held_out=True),
)  # fmt: skip


def _valid(value: str) -> bool:
    return 0 < len(value) <= MAX_LENGTH and "\n" not in value and value == value.strip()


ORIGIN = (
    "The usual operations of string libraries and of text editing by example: case, slices, fields, numbers, dates. "
    "Operations on sequences of letters are those of letter-string analogies (Hofstadter's Copycat), and three scenes "
    "draw inputs of the form of that set."
)
INPUTS = {
    "word": "one word",
    "cased": "one word in upper or mixed case",
    "words": "2-5 words",
    "cased_words": "2-4 words in upper or mixed case",
    "sequence": "letters, or doubled letters, in equal steps through the alphabet",
    "defect": "a sequence with one letter replaced",
    "runs": "letters, some of them several times in a row",
    "number": "one number",
    "two_numbers": "two numbers",
    "numbers": "3-5 numbers",
    "date": "a date in one of six forms",
    "name": "2-3 capitalised words",
    "key_value": "two fields with a separator",
    "mixed": "a word with a number",
    "bracketed": "a word in brackets or quotes among other words",
    "affixed": "a word with a known prefix or suffix",
    "roman": "a Roman numeral",
}
ALSO_BENCHMARK = {
    "sequence": f"{_LS}: succ",
    "defect": f"{_LS}: fix_alphabet",
    "runs": f"{_LS}: remove_redundant",
}
SOLVES = {
    _LS: ("dedupe", "repair", "step_element"),
    _FV: ("affix", "branch", "capitalise", "nth_word", "title"),
    _II: ("affix", "arithmetic", "branch", "filter_chars", "first_chars", "nth_char", "spaced"),
}
STRINGS = Domain("strings", "text", SCENES, PRIMITIVES, str, _valid, ORIGIN, INPUTS, ALSO_BENCHMARK, SOLVES)
