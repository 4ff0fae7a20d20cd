"""Lists of integers: scenes and primitives. Knows nothing about families, splits, prompts or models.

Values stay within 0-99, as most few-shot work on lists does; a result outside is a `Reject`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby, pairwise

from .core import Domain, Operation, Primitive, Reject

Ints = Sequence[int]
Scalar = Callable[[int], int]
Predicate = Callable[[int], bool]
Combination = Callable[[int, int], int]
Sampler = Callable[[], list[int]]
MAX_VALUE = 99
MAX_LENGTH = 16


def _scene(low: int, high: int, shortest: int, longest: int, repeats: float) -> Callable[[random.Random], Sampler]:
    """Lists with entries in [low, high]; with probability `repeats` an entry repeats an earlier one."""

    def scene(rng: random.Random) -> Sampler:
        def sample() -> list[int]:
            values: list[int] = []
            for _ in range(rng.randint(shortest, longest)):
                again = values and rng.random() < repeats
                values.append(rng.choice(values) if again else rng.randint(low, high))
            return values

        return sample

    return scene


SCENES = {
    "digits": _scene(0, 9, 2, 10, 0.15),
    "numbers": _scene(0, 99, 2, 10, 0.1),
    "repeats": _scene(0, 30, 3, 10, 0.5),
    "long": _scene(0, 9, 6, 14, 0.2),
    "short": _scene(0, 50, 1, 5, 0.1),
}


def _scalar(rng: random.Random) -> Scalar:
    """A function of one number with a random constant."""
    k = rng.randint(1, 9)
    table: list[Scalar] = [
        lambda x: x + k,
        lambda x: x + k,
        lambda x: x - k,
        lambda x: x * (1 + k % 4),
        lambda x: x % (k + 1),
        lambda x: x // (k % 4 + 2),
        lambda x: min(x, 5 * k),
        lambda x: max(x, 3 * k),
        lambda x: MAX_VALUE - x,
        lambda x: 10 * k - x if x <= 10 * k else x,
        lambda x: x // 10 + x % 10,
        lambda x: 10 * (x % 10) + x // 10,
        lambda x: x + 1 if x % 2 else x - 1 if x else x,
        lambda x: abs(x - 3 * k),
    ]
    return rng.choice(table)


def _predicate(rng: random.Random) -> Predicate:
    """A property of one number with a random constant."""
    k, t = rng.randint(2, 5), rng.choice([3, 4, 5, 6, 10, 20, 30, 40, 50, 60])
    digit = rng.randint(0, 9)
    table: list[Predicate] = [
        lambda x: x % 2 == 0,
        lambda x: x % 2 == 1,
        lambda x: x > t,
        lambda x: x < t,
        lambda x: x % k == 0,
        lambda x: str(digit) in str(x),
        lambda x: x >= 10,
        lambda x: x % 10 == digit,
        lambda x: t // 2 < x < 2 * t,
    ]
    return rng.choice(table)


def _positions(rng: random.Random) -> Callable[[int, int], bool]:
    """A property of (position, length)."""
    k = rng.randint(2, 4)
    r = rng.randrange(k)
    table: list[Callable[[int, int], bool]] = [
        lambda i, n: i % k == r,
        lambda i, n: i < k,
        lambda i, n: i >= n - k,
        lambda i, n: i < n // 2,
        lambda i, n: i in (0, n - 1),
        lambda i, n: i not in (0, n - 1),
    ]
    return rng.choice(table)


def _require(condition: bool) -> None:
    if not condition:
        raise Reject


def _head(x: Ints) -> int:
    _require(len(x) > 0)
    return x[0]


def _fixed(function: Operation) -> Callable[[random.Random], Operation]:
    """A primitive without parameters."""
    return lambda rng: function


def _with_int(low: int, high: int, make: Callable[[int], Operation]) -> Callable[[random.Random], Operation]:
    """A primitive with one integer parameter in [low, high]."""
    return lambda rng: make(rng.randint(low, high))


def _filter(rng: random.Random) -> Operation:
    p = _predicate(rng)
    return lambda x: [v for v in x if p(v)]


def _filter_positions(rng: random.Random) -> Operation:
    p = _positions(rng)
    return lambda x: [v for i, v in enumerate(x) if p(i, len(x))]


def _map(rng: random.Random) -> Operation:
    f = _scalar(rng)
    return lambda x: [f(v) for v in x]


def _map_where(rng: random.Random) -> Operation:
    f, p = _scalar(rng), _predicate(rng)
    return lambda x: [f(v) if p(v) else v for v in x]


def _map_positions(rng: random.Random) -> Operation:
    f, p = _scalar(rng), _positions(rng)
    return lambda x: [f(v) if p(i, len(x)) else v for i, v in enumerate(x)]


def _partition(rng: random.Random) -> Operation:
    p = _predicate(rng)
    return lambda x: [v for v in x if p(v)] + [v for v in x if not p(v)]


def _take_while(rng: random.Random) -> Operation:
    p, drop = _predicate(rng), rng.random() < 0.5

    def operation(x: Ints) -> Ints:
        end = next((i for i, v in enumerate(x) if not p(v)), len(x))
        return x[end:] if drop else x[:end]

    return operation


def _insert(rng: random.Random) -> Operation:
    i, v = rng.randint(1, 4), rng.randint(0, MAX_VALUE)

    def operation(x: Ints) -> Ints:
        _require(len(x) >= i)
        return [*x[:i], v, *x[i:]]

    return operation


def _replace_at(rng: random.Random) -> Operation:
    i, v = rng.randint(0, 4), rng.randint(0, MAX_VALUE)

    def operation(x: Ints) -> Ints:
        _require(len(x) > i)
        return [*x[:i], v, *x[i + 1 :]]

    return operation


def _remove_at(i: int) -> Operation:
    def operation(x: Ints) -> Ints:
        _require(len(x) > i)
        return [*x[:i], *x[i + 1 :]]

    return operation


def _swap(rng: random.Random) -> Operation:
    i, j = rng.choice([(0, 1), (0, -1), (1, -2), (0, 2), (1, 2), (-1, -2), (2, 3), (1, 3), (0, 3)])

    def operation(x: Ints) -> Ints:
        _require(len(x) >= 4)
        y = list(x)
        y[i], y[j] = y[j], y[i]
        return y

    return operation


def _replace_value(rng: random.Random) -> Operation:
    a, b = rng.sample(range(10), 2)
    return lambda x: [b if v == a else v for v in x]


def _surround(rng: random.Random) -> Operation:
    before, after = ([rng.randint(0, MAX_VALUE) for _ in range(rng.randint(0, 2))] for _ in range(2))
    if not before and not after:
        before = [rng.randint(0, MAX_VALUE)]
    return lambda x: [*before, *x, *after]


def _interleave(rng: random.Random) -> Operation:
    k = rng.randint(0, MAX_VALUE)
    ends = rng.random() < 0.5

    def operation(x: Ints) -> Ints:
        mixed = [w for v in x for w in (v, k)]
        return mixed if ends else mixed[:-1]

    return operation


def _pick(rng: random.Random) -> Operation:
    order = [rng.choice([0, 1, 2, 3, -1, -2]) for _ in range(rng.randint(1, 4))]

    def operation(x: Ints) -> Ints:
        _require(len(x) >= 4)
        return [x[i] for i in order]

    return operation


def _slice(rng: random.Random) -> Operation:
    a = rng.randint(0, 3)
    b = a + rng.randint(1, 4)
    inside = rng.random() < 0.6

    def operation(x: Ints) -> Ints:
        _require(len(x) > a)
        return x[a:b] if inside else [*x[:a], *x[b:]]

    return operation


def _blocks(rng: random.Random) -> Operation:
    """Cuts into blocks of k, and reverses each, or the order of them."""
    k, each = rng.randint(2, 3), rng.random() < 0.5

    def operation(x: Ints) -> Ints:
        parts = [x[i : i + k] for i in range(0, len(x), k)]
        parts = [p[::-1] for p in parts] if each else parts[::-1]
        return [v for p in parts for v in p]

    return operation


def _occurring(rng: random.Random) -> Operation:
    """Keeps the values that occur once, or more than once, or at least three times."""
    tests: list[Operation] = [lambda c: c == 1, lambda c: c > 1, lambda c: c == 2, lambda c: c >= 3]
    test = rng.choice(tests)
    return lambda x: [v for v in x if test(x.count(v))]


def _neighbours(rng: random.Random) -> Operation:
    """Keeps the entries that are greater, or smaller, than the one before, or than the first."""
    greater, first, keep = rng.random() < 0.5, rng.random() < 0.4, rng.random() < 0.6

    def operation(x: Ints) -> Ints:
        _require(len(x) > 1)
        pairs = [(x[0], v) for v in x[1:]] if first else list(pairwise(x))
        entries = [b for a, b in pairs if (b > a if greater else b < a)]
        return [x[0], *entries] if keep else entries

    return operation


def _pairs(rng: random.Random) -> Operation:
    table: list[Combination] = [
        lambda a, b: a + b, lambda a, b: abs(a - b), max, min, lambda a, b: b - a, lambda a, b: (a + b) // 2
    ]  # fmt: skip
    f = rng.choice(table)
    return lambda x: [f(a, b) for a, b in pairwise(x)]


def _scan(rng: random.Random) -> Operation:
    table: list[Combination] = [lambda a, b: a + b, max, min, lambda a, b: abs(a - b)]
    f = rng.choice(table)
    return lambda x: list(accumulate(x, f))


def _with_index(rng: random.Random) -> Operation:
    k = rng.randint(0, 2)
    table: list[Combination] = [
        lambda i, v: v + i + k, lambda i, v: v - i, lambda i, v: v * (i + 1), lambda i, v: i + k, lambda i, v: max(i, v)
    ]  # fmt: skip
    f = rng.choice(table)
    return lambda x: [f(i, v) for i, v in enumerate(x)]


def _combine_scalar(rng: random.Random) -> Operation:
    """Combines every entry with one number of the list: its first, last, maximum, minimum or length."""
    picks: list[Operation] = [_head, lambda x: x[-1], max, min, len]
    pick = rng.choice(picks)
    table: list[Combination] = [
        lambda v, s: v + s, lambda v, s: abs(v - s), lambda v, s: s, max, min, lambda v, s: v * s, lambda v, s: s - v
    ]  # fmt: skip
    f = rng.choice(table)

    def operation(x: Ints) -> Ints:
        _require(len(x) > 0)
        s = pick(x)
        return [f(v, s) for v in x]

    return operation


def _zip_reversed(rng: random.Random) -> Operation:
    table: list[Combination] = [lambda a, b: a + b, max, min, lambda a, b: abs(a - b)]
    f = rng.choice(table)
    return lambda x: [f(a, b) for a, b in zip(x, x[::-1], strict=True)]


def _sort_by(rng: random.Random) -> Operation:
    keys: list[Operation] = [lambda v: v % 10, lambda v: v // 10, lambda v: v % 2, lambda v: v % 3, lambda v: -v]
    key = rng.choice(keys)
    return lambda x: sorted(x, key=key)


def _condition(rng: random.Random) -> Callable[[Ints], bool]:
    """A property of a whole list."""
    k, v = rng.randint(3, 6), rng.randint(0, 9)
    table: list[Callable[[Ints], bool]] = [
        lambda x: len(x) > k,
        lambda x: _head(x) % 2 == 0,
        lambda x: x[-1] > _head(x),
        lambda x: v in x,
        lambda x: len(x) % 2 == 0,
        lambda x: sum(x) % 2 == 0,
        lambda x: max(x, default=0) > 8 * k,
        lambda x: len(set(x)) < len(x),
    ]
    return rng.choice(table)


def _branch(rng: random.Random) -> Operation:
    """If a property of the list holds, one simple operation; otherwise another."""
    simple: list[Operation] = [
        lambda x: x, lambda x: x[::-1], sorted, lambda x: x[1:], lambda x: x[:-1], lambda x: [*x, *x][:MAX_LENGTH],
        lambda x: x[:1], lambda x: [], lambda x: [len(x)], lambda x: x[-2:], lambda x: [*x[1:], *x[:1]],
    ]  # fmt: skip
    test = _condition(rng)
    yes, no = rng.sample(simple, 2)

    def operation(x: Ints) -> Ints:
        _require(len(x) > 0)
        result: Ints = yes(x) if test(x) else no(x)
        return result

    return operation


def _reduce(rng: random.Random) -> Operation:
    """One number from the list, as a list of one."""
    p, k = _predicate(rng), rng.randint(0, 3)

    def nth(x: Ints) -> int:
        _require(len(x) > k)
        return sorted(x)[k]

    table: list[Operation] = [
        len, sum, max, min, lambda x: len(set(x)), lambda x: sum(map(p, x)), lambda x: max(x) - min(x),
        lambda x: x.index(max(x)), lambda x: x.index(min(x)), lambda x: Counter(x).most_common(1)[0][0], nth,
        lambda x: _head(x) + x[-1], lambda x: len(x) - len(set(x)), lambda x: sum(x[:2]), lambda x: x.count(_head(x)),
    ]  # fmt: skip
    f = rng.choice(table)

    def operation(x: Ints) -> Ints:
        _require(len(x) > 0)
        return [f(x)]

    return operation


def _count_value(v: int) -> Operation:
    return lambda x: [x.count(v)]


def _append_statistic(rng: random.Random) -> Operation:
    table: list[Operation] = [len, max, min, _head, lambda x: x[-1], lambda x: len(set(x)), sum]
    f = rng.choice(table)
    front = rng.random() < 0.5

    def operation(x: Ints) -> Ints:
        _require(len(x) > 0)
        return [f(x), *x] if front else [*x, f(x)]

    return operation


def _move(rng: random.Random) -> Operation:
    """Moves the largest, the smallest or the most frequent entry to the front or the end."""
    table: list[Operation] = [max, min, lambda x: Counter(x).most_common(1)[0][0], lambda x: x[len(x) // 2]]
    f = rng.choice(table)
    front = rng.random() < 0.5

    def operation(x: Ints) -> Ints:
        _require(len(x) > 1)
        i = x.index(f(x))
        rest = [*x[:i], *x[i + 1 :]]
        return [x[i], *rest] if front else [*rest, x[i]]

    return operation


def _iota(rng: random.Random) -> Operation:
    """Consecutive numbers up to, or down from, one number of the list."""
    table: list[Operation] = [len, _head, lambda x: x[-1], min, lambda x: len(set(x))]
    f = rng.choice(table)
    makes: list[Operation] = [lambda n: range(n), lambda n: range(1, n + 1), lambda n: range(n, 0, -1)]
    make = rng.choice(makes)

    def operation(x: Ints) -> Ints:
        _require(len(x) > 0 and f(x) <= MAX_LENGTH)
        return list(make(f(x)))

    return operation


def _repeat_each(k: int) -> Operation:
    return lambda x: [v for v in x for _ in range(k)]


def _head_count(x: Ints) -> Ints:
    """As many copies of the second entry as the first says."""
    _require(len(x) > 1 and x[0] <= MAX_LENGTH)
    return [x[1]] * x[0]


def _mirror(rng: random.Random) -> Operation:
    """The list and its reverse, either first."""
    return (lambda x: [*x, *x[::-1]]) if rng.random() < 0.5 else (lambda x: [*x[::-1], *x])


def _by_index(x: Ints) -> Ints:
    """The entry that the first entry points to."""
    _require(len(x) > 0 and 0 <= x[0] < len(x))
    return [x[x[0]]]


def _runs(rng: random.Random) -> Operation:
    table: list[Callable[[int, int], Ints]] = [
        lambda v, n: [v], lambda v, n: [n], lambda v, n: [v, n], lambda v, n: [v] * (n + 1)
    ]  # fmt: skip
    f = rng.choice(table)
    return lambda x: [w for v, g in groupby(x) for w in f(v, len(list(g)))]


def _rotate_to(rng: random.Random) -> Operation:
    table: list[Operation] = [max, min]
    f = rng.choice(table)

    def operation(x: Ints) -> Ints:
        _require(len(x) > 1)
        i = x.index(f(x))
        return [*x[i:], *x[:i]]

    return operation


def _constant_tail(rng: random.Random) -> Operation:
    """One number, repeated; the length, first entry or number of distinct values of the list gives the count."""
    v = rng.randint(0, MAX_VALUE)
    table: list[Operation] = [len, lambda x: x[0] % 8, lambda x: len(set(x))]
    f = rng.choice(table)

    def operation(x: Ints) -> Ints:
        _require(len(x) > 0)
        return [v] * f(x)

    return operation


def _dedupe(rng: random.Random) -> Operation:
    last = rng.random() < 0.3
    return lambda x: list(dict.fromkeys(x[::-1]))[::-1] if last else list(dict.fromkeys(x))


def _remove_value(rng: random.Random) -> Operation:
    table: list[Operation] = [max, min, _head, lambda x: x[-1]]
    f = rng.choice(table)

    def operation(x: Ints) -> Ints:
        _require(len(x) > 1)
        removed = f(x)
        return [v for v in x if v != removed]

    return operation


_R = ("repeats", "digits", "long")
_CONSTANT = "one number, repeated; the length, first entry or number of distinct values of the input gives the count"
PRIMITIVES = (
    Primitive("reverse", _fixed(lambda x: x[::-1]), also_benchmark="list functions"),
    Primitive("sort", lambda rng: (lambda x: sorted(x)) if rng.random() < 0.6 else (lambda x: sorted(x, reverse=True))),
    Primitive("sort_by", _sort_by, held_out=True),
    Primitive("rotate", _with_int(-3, 3, lambda k: lambda x: [*x[k or 1 :], *x[: k or 1]])),
    Primitive("rotate_to", _rotate_to, held_out=True),
    Primitive("take", _with_int(1, 5, lambda k: lambda x: x[:k]), also_benchmark="list functions"),
    Primitive("drop", _with_int(1, 4, lambda k: lambda x: x[k:]), also_benchmark="list functions"),
    Primitive("take_last", _with_int(1, 5, lambda k: lambda x: x[-k:])),
    Primitive("drop_last", _with_int(1, 4, lambda k: lambda x: x[:-k])),
    Primitive("take_while", _take_while, about="takes, or drops, while a property holds"),
    Primitive("slice", _slice),
    Primitive("pick", _pick),
    Primitive("dedupe", _dedupe, _R, also_benchmark="list functions"),
    Primitive("occurring", _occurring, _R, held_out=True),
    Primitive("runs", _runs, _R),
    Primitive("filter", _filter, weight=2.5, also_benchmark="list functions"),
    Primitive("filter_positions", _filter_positions, weight=1.5),
    Primitive("neighbours", _neighbours),
    Primitive("partition", _partition, held_out=True),
    Primitive("map", _map, weight=2.5, also_benchmark="list functions"),
    Primitive("map_where", _map_where, weight=1.5),
    Primitive("map_positions", _map_positions),
    Primitive("pairs", _pairs),
    Primitive("scan", _scan, weight=0.7),
    Primitive("with_index", _with_index),
    Primitive("combine_scalar", _combine_scalar, weight=1.5),
    Primitive("zip_reversed", _zip_reversed, held_out=True),
    Primitive("surround", _surround, weight=1.5, also_benchmark="list functions"),
    Primitive("insert", _insert),
    Primitive("replace_at", _replace_at),
    Primitive("remove_at", _with_int(0, 4, _remove_at)),
    Primitive("swap", _swap),
    Primitive("replace_value", _replace_value, ("digits", "long")),
    Primitive("remove_value", _remove_value),
    Primitive("interleave", _interleave, held_out=True),
    Primitive("repeat", _with_int(2, 3, lambda k: lambda x: [*x] * k), ("short",)),
    Primitive("repeat_each", _with_int(2, 3, _repeat_each), ("short",)),
    Primitive("mirror", _mirror, ("short",)),
    Primitive("blocks", _blocks),
    Primitive("branch", _branch, weight=2.0),
    Primitive("reduce", _reduce, weight=2.5, also_benchmark="list functions"),
    Primitive("count_value", _with_int(0, 5, _count_value), ("digits", "long")),
    Primitive("append_statistic", _append_statistic),
    Primitive("move", _move),
    Primitive("iota", _iota, ("digits", "long")),
    Primitive("head_count", _fixed(_head_count), ("digits",), weight=0.5, held_out=True),
    Primitive("by_index", _fixed(_by_index), ("long",), weight=0.5),
    Primitive("constant_tail", _constant_tail, ("digits", "long"), weight=0.7, about=_CONSTANT),
)  # fmt: skip


def _valid(value: Ints) -> bool:
    return len(value) <= MAX_LENGTH and all(0 <= v <= MAX_VALUE for v in value)


ORIGIN = (
    "The usual operations on sequences: slices, map, filter, folds and scans, sorting, counting. The public set "
    "of list functions is made of the same, and many of its rules are single primitives here."
)
INPUTS = {
    "digits": "2-10 numbers 0-9",
    "numbers": "2-10 numbers 0-99",
    "repeats": "3-10 numbers 0-30, half of them repeated",
    "long": "6-14 numbers 0-9",
    "short": "1-5 numbers 0-50",
}
SOLVES = {
    "list functions": (
        "append_statistic", "branch", "by_index", "combine_scalar", "count_value", "drop", "drop_last", "filter",
        "filter_positions", "insert", "map", "neighbours", "occurring", "pairs", "pick", "reduce", "remove_at",
        "remove_value", "reverse", "rotate", "scan", "slice", "surround", "swap", "take", "take_last", "with_index",
        "zip_reversed",
    )
}  # fmt: skip
LISTS = Domain("lists", "list", SCENES, PRIMITIVES, tuple, _valid, ORIGIN, INPUTS, {}, SOLVES)
