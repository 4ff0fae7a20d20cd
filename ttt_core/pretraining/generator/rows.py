"""Rows of coloured cells: scenes and primitives. Knows nothing about families, splits, prompts or models.

A row is a list of colours 0-9 with background 0. An object is a maximal run of one colour other than 0; a segment is a
maximal stretch without background.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from itertools import groupby, pairwise

from .core import Domain, Operation, Primitive, Reject

Row = list[int]
Run = tuple[int, int, int]
"""Start, stop, colour."""
Sampler = Callable[[], Row]
Draw = Callable[[random.Random], Operation]
MAX_LENGTH = 40


def _require(condition: bool) -> None:
    if not condition:
        raise Reject


def _runs(row: Row) -> list[Run]:
    """The objects, from left to right."""
    runs, start = [], 0
    for colour, cells in groupby(row):
        stop = start + len(list(cells))
        if colour:
            runs.append((start, stop, colour))
        start = stop
    return runs


def _segments(row: Row) -> list[tuple[int, int]]:
    """The stretches without background, as (start, stop)."""
    segments: list[tuple[int, int]] = []
    for start, stop, _ in _runs(row):
        if segments and segments[-1][1] == start:
            segments[-1] = (segments[-1][0], stop)
        else:
            segments.append((start, stop))
    return segments


def _paint(length: int, runs: Iterable[Run], base: Row | None = None) -> Row:
    """A row with the runs drawn on `base` or background. Runs outside are cut at the wall."""
    row = [0] * length if base is None else base[:]
    for start, stop, colour in runs:
        for i in range(max(start, 0), min(stop, length)):
            row[i] = colour
    return row


# Scenes


def _lengths(rng: random.Random, low: int = 6, high: int = 34) -> Callable[[], int]:
    """A sampler of row lengths: one length for the whole task, or a range."""
    a = rng.randint(low, high)
    b = a if rng.random() < 0.5 else min(high, a + rng.randint(2, 8))
    return lambda: rng.randint(a, b)


def _place(rng: random.Random, n: int, sizes: list[int]) -> list[int]:
    """Starts of objects of these sizes, with at least one cell between, or as many of them as fit."""
    while sizes and n < sum(sizes) + len(sizes) - 1:
        sizes.pop()
    spare = n - sum(sizes) - len(sizes) + 1
    cuts = sorted(rng.randint(0, spare) for _ in sizes)
    return [cut + sum(sizes[:i]) + i for i, cut in enumerate(cuts)]


def _one_run(rng: random.Random) -> Sampler:
    length, fixed, palette = _lengths(rng), rng.random() < 0.4, rng.sample(range(1, 10), 5)

    def sample() -> Row:
        n = length()
        size = rng.randint(2, max(2, n // 2))
        start = rng.randint(0, n - size)
        return _paint(n, [(start, start + size, palette[0] if fixed else rng.choice(palette))])

    return sample


def _several(colours: int, smallest: int = 1) -> Callable[[random.Random], Sampler]:
    """Several runs with gaps, in up to `colours` colours."""

    def scene(rng: random.Random) -> Sampler:
        length, most, largest = _lengths(rng, 10), rng.randint(2, 5), rng.randint(max(3, smallest + 1), 7)
        palette = rng.sample(range(1, 10), min(colours, rng.randint(2, 6)))

        def sample() -> Row:
            sizes = [rng.randint(smallest, largest) for _ in range(rng.randint(2, most))]
            n = length()
            starts = _place(rng, n, sizes)
            return _paint(n, [(a, a + s, rng.choice(palette)) for a, s in zip(starts, sizes, strict=True)])

        return sample

    return scene


def _markers(rng: random.Random) -> Sampler:
    """One run, and one or more single cells of another colour."""
    length, most = _lengths(rng, 8), rng.choice([1, 1, 2, 3])
    mark, *palette = rng.sample(range(1, 10), rng.randint(2, 4))

    def sample() -> Row:
        n = length()
        sizes = [rng.randint(2, max(2, n // 3))] + [1] * rng.randint(1, most)
        rng.shuffle(sizes)
        starts = _place(rng, n, sizes)
        body = rng.choice(palette)
        return _paint(n, [(a, a + s, mark if s == 1 else body) for a, s in zip(starts, sizes, strict=True)])

    return sample


def _headed(rng: random.Random) -> Sampler:
    """One or two runs with a cell of another colour at one end."""
    length, count = _lengths(rng, 8), rng.choice([1, 1, 2])
    head, *palette = rng.sample(range(1, 10), rng.randint(2, 4))
    side = rng.choice([0, 1, 2])

    def sample() -> Row:
        n = length()
        sizes = [rng.randint(3, max(3, n // (2 * count))) for _ in range(count)]
        row, body = [0] * n, rng.choice(palette)
        for start, size in zip(_place(rng, n, sizes), sizes, strict=True):
            row[start : start + size] = [body] * size
            row[start if side == 0 or (side == 2 and rng.random() < 0.5) else start + size - 1] = head
        return row

    return sample


def _pivot(rng: random.Random) -> Sampler:
    """A short segment on one side of a single cell, with room on the other side."""
    length = _lengths(rng, 11)
    mark, *palette = rng.sample(range(1, 10), rng.randint(2, 5))
    mixed = len(palette) > 1 and rng.random() < 0.4

    def sample() -> Row:
        n = length()
        size = rng.randint(2, max(2, n // 4))
        gap = rng.randint(1, max(1, (n - 1) // 2 - size))
        at = rng.randint(size + gap, n - 1 - size - gap)
        colour, row = rng.choice(palette), [0] * n
        row[at] = mark
        start = at - gap - size if rng.random() < 0.5 else at + gap + 1
        row[start : start + size] = [rng.choice(palette) if mixed else colour for _ in range(size)]
        return row

    return sample


def _stamps(rng: random.Random) -> Sampler:
    """A segment of odd length, then single cells with room around them."""
    length, size = _lengths(rng, 16), rng.choice([3, 3, 5])
    mark, *palette = rng.sample(range(1, 10), rng.randint(2, 5))
    mixed = rng.random() < 0.5

    def sample() -> Row:
        n = length()
        sizes = [size] * (1 + rng.randint(1, max(1, n // (size + 1) - 1)))
        colour, row = rng.choice(palette), [0] * n
        for i, start in enumerate(_place(rng, n, sizes)):
            cells = [rng.choice(palette) if mixed else colour for _ in range(size)]
            row[start : start + size] = cells if i == 0 else _paint(size, [(size // 2, size // 2 + 1, mark)])
        return row

    return sample


def _noise(rng: random.Random) -> Sampler:
    """Long runs with single cells of noise next to or inside them."""
    base, inside, own = _several(2, 4)(rng), rng.random() < 0.4, rng.random() < 0.5
    noise = rng.randint(1, 9)

    def sample() -> Row:
        row = base()
        free = [
            i
            for i in range(1, len(row) - 1)
            if (row[i - 1] == row[i] == row[i + 1] > 0 if inside else not any(row[i - 1 : i + 2]))
        ]
        rng.shuffle(free)
        chosen: list[int] = []
        for i in free:
            if len(chosen) < 3 and all(abs(i - j) > 2 for j in chosen):
                chosen.append(i)
        colour = max(row) if own and not inside else noise
        return _paint(len(row), [(i, i + 1, colour) for i in chosen], row)

    return sample


def _dense(rng: random.Random) -> Sampler:
    length, palette = _lengths(rng, 6, 20), rng.sample(range(10), rng.randint(2, 5))
    return lambda: [rng.choice(palette) for _ in range(length())]


def _periodic(rng: random.Random) -> Sampler:
    """A pattern repeated over the row, with cells missing at the end or at random places."""
    length, palette, tail = _lengths(rng, 12), rng.sample(range(1, 10), rng.randint(2, 4)), rng.random() < 0.4

    def sample() -> Row:
        n, period = length(), rng.randint(2, 4)
        unit = rng.sample(palette, 2) + [rng.choice(palette) for _ in range(period - 2)]
        row = [unit[i % period] for i in range(n)]
        hole = rng.randint(1, max(1, n // 4))
        start = n - hole if tail else rng.randint(2, n - hole)
        return _paint(n, [(start, start + hole, 0)], row)

    return sample


SCENES = {
    "one_run": _one_run,
    "same": _several(1),
    "runs": _several(6),
    "long_runs": _several(6, 3),
    "markers": _markers,
    "headed": _headed,
    "pivot": _pivot,
    "stamps": _stamps,
    "noise": _noise,
    "dense": _dense,
    "periodic": _periodic,
}


# Random choices of primitives


def _colour(rng: random.Random) -> int:
    return rng.randint(1, 9)


def _size(run: Run) -> int:
    return run[1] - run[0]


def _choose(rng: random.Random) -> Callable[[Row, list[Run]], list[Run]]:
    """A random rule that selects objects: by size, place, colour or contact with a wall."""
    t, k = rng.randint(2, 4), rng.randint(0, 1)
    table: list[Callable[[Row, list[Run]], list[Run]]] = [
        lambda row, runs: [r for r in runs if _size(r) == max(map(_size, runs))],
        lambda row, runs: [r for r in runs if _size(r) == min(map(_size, runs))],
        lambda row, runs: [r for r in runs if _size(r) % 2 == k],
        lambda row, runs: [r for r in runs if _size(r) > t],
        lambda row, runs: [r for r in runs if _size(r) < t],
        lambda row, runs: runs[-1:] if k else runs[:1],
        lambda row, runs: runs[k::2],
        lambda row, runs: [r for r in runs if r[2] == runs[-k][2]],
        lambda row, runs: [r for r in runs if r[0] == 0 or r[1] == len(row)],
        lambda row, runs: runs[1:-1],
    ]
    return rng.choice(table)


def _fixed(function: Operation) -> Draw:
    """A primitive without parameters."""
    return lambda rng: function


def _either(*functions: Operation) -> Draw:
    """A primitive that is one of a few operations."""
    return lambda rng: rng.choice(functions)


def _each(make: Callable[[random.Random], Callable[[Run, int], Iterable[Run]]]) -> Draw:
    """A primitive that redraws every object as runs that depend on it and on its index alone."""

    def draw(rng: random.Random) -> Operation:
        change = make(rng)
        return lambda row: _paint(len(row), [new for i, r in enumerate(_runs(row)) for new in change(r, i)])

    return draw


# Moving


def _shift(row: Row, k: int) -> Row:
    """The row moved right by k; rejects when cells fall off."""
    n = len(row)
    _require(abs(k) < n)
    dropped, shifted = (row[n - k :], [0] * k + row[: n - k]) if k > 0 else (row[:-k], row[-k:] + [0] * -k)
    _require(not any(dropped))
    return shifted


def _translate(rng: random.Random) -> Operation:
    k = rng.choice([-4, -3, -2, -1, 1, 1, 2, 2, 3, 3, 4])
    return lambda row: _shift(row, k)


def _rotate(rng: random.Random) -> Operation:
    k = rng.choice([-3, -2, -1, 1, 2, 3])
    return lambda row: row[k:] + row[:k]


def _rightwards(operation: Operation) -> Draw:
    """A primitive with a direction: the operation to the right, or its mirror image to the left."""

    def draw(rng: random.Random) -> Operation:
        return operation if rng.random() < 0.5 else lambda row: operation(row[::-1])[::-1]

    return draw


def _slide_to_wall(row: Row) -> Row:
    """Everything moves right until it touches the wall."""
    runs = _runs(row)
    _require(bool(runs))
    return _shift(row, len(row) - runs[-1][1]) if runs[-1][1] < len(row) else row


def _slide_to_contact(row: Row) -> Row:
    """The first object moves right until it touches the next."""
    runs = _runs(row)
    _require(len(runs) > 1)
    (a, b, colour), move = runs[0], runs[1][0] - runs[0][1]
    return _paint(len(row), [(a, b, 0), (a + move, b + move, colour)], row)


def _extend_to_contact(row: Row) -> Row:
    """The first object grows right until it touches the next."""
    runs = _runs(row)
    _require(len(runs) > 1)
    return _paint(len(row), [(runs[0][1], runs[1][0], runs[0][2])], row)


def _pack(row: Row) -> Row:
    cells = [c for c in row if c]
    return [0] * (len(row) - len(cells)) + cells


def _arrange(segments: list[Row], n: int) -> Row:
    """Segments from the left with one cell between."""
    row = [c for s in segments for c in [*s, 0]][:-1]
    _require(0 < len(row) <= n)
    return row + [0] * (n - len(row))


def _pack_objects(row: Row) -> Row:
    return _arrange([row[a:b] for a, b in _segments(row)][::-1], len(row))[::-1]


def _sort_objects(rng: random.Random) -> Operation:
    """Objects in the order of their size or colour, each size or colour put where objects are, packed left."""
    key, down = rng.choice([_size, lambda r: r[2]]), rng.random() < 0.4

    def operation(row: Row) -> Row:
        runs = sorted(_runs(row), key=key, reverse=down)
        return _arrange([[r[2]] * _size(r) for r in runs], len(row))

    return operation


def _reverse_segments(row: Row) -> Row:
    out = row[:]
    for a, b in _segments(row):
        out[a:b] = row[a:b][::-1]
    return out


def _reflect_over_pivot(copy: bool) -> Operation:
    """The other cells, mirrored across the only segment of one cell."""

    def operation(row: Row) -> Row:
        single = [a for a, b in _segments(row) if b - a == 1]
        _require(len(single) == 1)
        out = row[:] if copy else _paint(len(row), [(single[0], single[0] + 1, row[single[0]])])
        for i, c in enumerate(row):
            if c:
                _require(0 <= 2 * single[0] - i < len(row))
                out[2 * single[0] - i] = c
        return out

    return operation


def _by_own_size(row: Row) -> Row:
    """The first object moves right by its size."""
    runs = _runs(row)
    _require(bool(runs) and 2 * runs[0][1] - runs[0][0] <= len(row))
    a, b, colour = runs[0]
    return _paint(len(row), [(b, 2 * b - a, colour)], _paint(len(row), [(a, b, 0)], row))


def _copy(rng: random.Random) -> Operation:
    """A copy of every object at an offset, on background only."""
    k = rng.choice([-6, -5, -4, -3, -2, 2, 3, 4, 5, 6])

    def operation(row: Row) -> Row:
        n = len(row)
        return [c or (row[i - k] if 0 <= i - k < n else 0) for i, c in enumerate(row)]

    return operation


def _stamp(recolour: bool) -> Operation:
    """A copy of the longest segment centred on every single cell, in its own colours or in the cell's."""

    def operation(row: Row) -> Row:
        segments = _segments(row)
        _require(len(segments) > 1)
        a, b = max(segments, key=lambda s: s[1] - s[0])
        _require(b - a > 1)
        out, half = row[:], (b - a) // 2
        for s, t in segments:
            if t - s == 1:
                for j in range(b - a):
                    if 0 <= s - half + j < len(row):
                        out[s - half + j] = row[s] if recolour else row[a + j]
        return out

    return operation


# Colours


def _recolour_all(rng: random.Random) -> Operation:
    c = _colour(rng)
    return lambda row: [c if v else 0 for v in row]


def _recolour_chosen(rng: random.Random) -> Operation:
    c, choose = _colour(rng), _choose(rng)
    return lambda row: _paint(len(row), [(a, b, c) for a, b, _ in choose(row, _runs(row))], row)


def _delete_chosen(rng: random.Random) -> Operation:
    choose = _choose(rng)
    return lambda row: _paint(len(row), [(a, b, 0) for a, b, _ in choose(row, _runs(row))], row)


def _keep_chosen(rng: random.Random) -> Operation:
    choose = _choose(rng)
    return lambda row: _paint(len(row), choose(row, _runs(row)))


def _by_parity(rng: random.Random) -> Callable[[Run, int], Iterable[Run]]:
    colours = rng.sample(range(1, 10), 2)
    return lambda r, i: [(r[0], r[1], colours[_size(r) % 2])]


def _by_size(rng: random.Random) -> Callable[[Run, int], Iterable[Run]]:
    colours = rng.sample(range(1, 10), rng.randint(3, 5))
    return lambda r, i: [(r[0], r[1], colours[min(_size(r), len(colours)) - 1])]


def _by_order(rng: random.Random) -> Callable[[Run, int], Iterable[Run]]:
    colours = rng.sample(range(1, 10), rng.randint(2, 4))
    return lambda r, i: [(r[0], r[1], colours[i % len(colours)])]


def _by_rank(rng: random.Random) -> Operation:
    """The longest objects get one colour, all others another."""
    top, rest = rng.sample(range(1, 10), 2)
    small = rng.random() < 0.4

    def operation(row: Row) -> Row:
        runs = _runs(row)
        _require(len(runs) > 1)
        best = (min if small else max)(map(_size, runs))
        return _paint(len(row), [(a, b, top if b - a == best else rest) for a, b, _ in runs])

    return operation


def _spread_colour(rng: random.Random) -> Operation:
    """All objects take the colour of the first, the last, the longest or the shortest."""
    pick: Operation = rng.choice(
        [lambda r: r[0], lambda r: r[-1], lambda r: max(r, key=_size), lambda r: min(r, key=_size)]
    )

    def operation(row: Row) -> Row:
        runs = _runs(row)
        _require(len(runs) > 1)
        return [pick(runs)[2] if c else 0 for c in row]

    return operation


def _swap_colours(row: Row) -> Row:
    """Swaps the colours of the first and the last object."""
    runs = _runs(row)
    _require(len(runs) > 1 and runs[0][2] != runs[-1][2])
    table = {runs[0][2]: runs[-1][2], runs[-1][2]: runs[0][2]}
    return [table.get(c, c) for c in row]


def _map_colours(rng: random.Random) -> Operation:
    table = [0, *rng.sample(range(1, 10), 9)]
    return lambda row: [table[c] for c in row]


def _replace_colour(rng: random.Random) -> Operation:
    """The commonest or the rarest colour becomes another."""
    c, place = _colour(rng), rng.choice([0, -1])

    def operation(row: Row) -> Row:
        counts = Counter(v for v in row if v).most_common()
        _require(bool(counts) and [n for _, n in counts].count(counts[place][1]) == 1)
        return [c if v == counts[place][0] else v for v in row]

    return operation


def _invert(rng: random.Random) -> Operation:
    c = _colour(rng)
    return lambda row: [0 if v else c for v in row]


# Shapes


def _grow(rng: random.Random) -> Callable[[Run, int], Iterable[Run]]:
    left, right = rng.choice([(1, 1), (0, 1), (1, 0), (0, 2), (2, 0), (2, 2)])
    return lambda r, i: [(r[0] - left, r[1] + right, r[2])]


def _shrink(rng: random.Random) -> Callable[[Run, int], Iterable[Run]]:
    left, right = rng.choice([(1, 1), (0, 1), (1, 0), (0, 2), (2, 0)])
    return lambda r, i: [(r[0] + left, r[1] - right, r[2])]


def _inside(rng: random.Random) -> Callable[[Run, int], Iterable[Run]]:
    """Interiors become background or another colour."""
    c = rng.choice([0, 0, _colour(rng)])
    return lambda r, i: [r, (r[0] + 1, r[1] - 1, c)]


def _ends(rng: random.Random) -> Callable[[Run, int], Iterable[Run]]:
    """One end or both ends of every object take a colour."""
    c, which = _colour(rng), rng.choice([(0,), (1,), (0, 1)])
    return lambda r, i: [r, *((r[1] - 1, r[1], c) if e else (r[0], r[0] + 1, c) for e in which)]


def _stripe(rng: random.Random) -> Callable[[Run, int], Iterable[Run]]:
    """Every second cell of an object takes a colour."""
    c, phase = _colour(rng), rng.randint(0, 1)
    return lambda r, i: [r, *((j, j + 1, c) for j in range(r[0] + phase, r[1], 2))]


def _point(rng: random.Random) -> Callable[[Run, int], Iterable[Run]]:
    """Every object shrinks to its first or last cell."""
    last = rng.random() < 0.5
    return lambda r, i: [(r[1] - 1, r[1], r[2]) if last else (r[0], r[0] + 1, r[2])]


def _halo(rng: random.Random) -> Operation:
    """Background next to an object takes a colour."""
    c = _colour(rng)

    def operation(row: Row) -> Row:
        padded = [0, *row, 0]
        return [v or (c if padded[i] or padded[i + 2] else 0) for i, v in enumerate(row)]

    return operation


def _fill_gaps(rng: random.Random) -> Operation:
    """Gaps between neighbouring objects of one colour are filled: all, or every second one."""
    step, own, c = rng.choice([1, 1, 2]), rng.random() < 0.6, _colour(rng)

    def operation(row: Row) -> Row:
        gaps = list(pairwise(_runs(row)))[::step]
        return _paint(len(row), [(p[1], q[0], p[2] if own else c) for p, q in gaps if p[2] == q[2]], row)

    return operation


def _fill_span(rng: random.Random) -> Operation:
    """Background between the first and the last object takes a colour."""
    c = _colour(rng)

    def operation(row: Row) -> Row:
        runs = _runs(row)
        _require(len(runs) > 1)
        return [v or (c if runs[0][0] < i < runs[-1][1] else 0) for i, v in enumerate(row)]

    return operation


def _tails(row: Row) -> Row:
    """Every object's colour runs right until the next object or the wall."""
    out, last = [], 0
    for c in row:
        last = c or last
        out.append(last)
    return out


def _tail_of_singles(row: Row) -> Row:
    """Single cells draw a tail to the right until the next object or the wall."""
    runs = _runs(row)
    _require(bool(runs))
    stops = [r[0] for r in runs[1:]] + [len(row)]
    return _paint(len(row), [(r[1], s, r[2]) for r, s in zip(runs, stops, strict=True) if _size(r) == 1], row)


def _denoise(row: Row) -> Row:
    """Single cells take the colour of both neighbours, where these agree."""
    padded = [0, *row, 0]
    return [padded[i] if padded[i] == padded[i + 2] != c else c for i, c in enumerate(row)]


def _repair(row: Row) -> Row:
    """Fills background so that the row has the smallest period that fits."""
    for period in range(1, len(row) // 2 + 1):
        sets = [{c for c in row[i::period] if c} for i in range(period)]
        if all(len(s) == 1 for s in sets):
            return [next(iter(sets[i % period])) for i in range(len(row))]
    raise Reject


# Outputs of another size


def _count(rng: random.Random) -> Operation:
    """As many cells as there are objects, colours or coloured cells."""
    c = _colour(rng)
    f: Operation = rng.choice([lambda r: len(_runs(r)), lambda r: len(set(r) - {0}), lambda r: len(r) - r.count(0)])
    return lambda row: [c] * f(row)


def _crop(row: Row) -> Row:
    """The longest segment."""
    segments = _segments(row)
    _require(bool(segments))
    a, b = max(segments, key=lambda s: s[1] - s[0])
    return row[a:b]


def _strip(row: Row) -> Row:
    runs = _runs(row)
    _require(bool(runs))
    return row[runs[0][0] : runs[-1][1]]


def _compress(row: Row) -> Row:
    return [c for c, _ in groupby(row)]


def _scale(k: int, row: Row) -> Row:
    return [c for c in row for _ in range(k)]


def _combine_halves(rng: random.Random) -> Operation:
    c = _colour(rng)
    table: list[Callable[[int, int], int]] = [
        lambda p, q: c if p and q else 0, lambda p, q: c if bool(p) != bool(q) else 0, lambda p, q: c if p or q else 0,
        lambda p, q: 0 if p or q else c, lambda p, q: p or q, lambda p, q: c if p == q else 0,
    ]  # fmt: skip
    f = rng.choice(table)

    def operation(row: Row) -> Row:
        half = len(row) // 2
        return [f(p, q) for p, q in zip(row[:half], row[len(row) - half :], strict=True)]

    return operation


_O = ("same", "runs", "long_runs", "markers")
_L = ("one_run", "long_runs", "headed", "noise")
_A = ("one_run", "same", "runs", "markers", "headed", "dense")
_H = ("dense", "runs")
_D = "1D-ARC"
_TWICE = "the row twice, or the row and its mirror image"
PRIMITIVES = (
    Primitive("translate", _translate, ("one_run", "one_run", "same", "runs", "headed"), weight=2.5, also_benchmark=_D),
    Primitive("rotate", _rotate, _A),
    Primitive("slide_to_wall", _rightwards(_slide_to_wall), ("one_run", "headed", "runs", "same")),
    Primitive("slide_to_contact", _rightwards(_slide_to_contact), ("markers", "runs"), weight=1.5, also_benchmark=_D),
    Primitive("extend_to_contact", _rightwards(_extend_to_contact), ("markers", "runs"), also_benchmark=_D),
    Primitive("pack", _rightwards(_pack), ("same", "runs", "markers")),
    Primitive("pack_objects", _rightwards(_pack_objects), ("same", "runs", "headed"), held_out=True),
    Primitive("sort_objects", _sort_objects, ("same", "runs", "long_runs")),
    Primitive("mirror", _fixed(lambda row: row[::-1]), _A),
    Primitive("reverse_segments", _fixed(_reverse_segments), ("headed",), weight=1.5, also_benchmark=_D),
    Primitive("reflect_over_pivot", _either(*map(_reflect_over_pivot, (False, True))), ("pivot",), also_benchmark=_D),
    Primitive("by_own_size", _rightwards(_by_own_size), ("one_run", "runs"), held_out=True),
    Primitive("copy", _copy, ("one_run", "same", "runs", "headed"), held_out=True),
    Primitive("stamp", _either(_stamp(False), _stamp(False), _stamp(True)), ("stamps",), weight=1.5, also_benchmark=_D),
    Primitive("recolour_all", _recolour_all, _O),
    Primitive("recolour_chosen", _recolour_chosen, _O, weight=2.5, also_benchmark=_D),
    Primitive("delete_chosen", _delete_chosen, _O, weight=1.5),
    Primitive("keep_chosen", _keep_chosen, _O, weight=1.5),
    Primitive("recolour_by_parity", _each(_by_parity), ("same", "long_runs"), also_benchmark=_D),
    Primitive("recolour_by_size", _each(_by_size), ("same", "runs"), weight=1.5, also_benchmark=_D),
    Primitive("recolour_by_order", _each(_by_order), ("same", "runs"), held_out=True),
    Primitive("recolour_by_rank", _by_rank, ("same", "long_runs"), also_benchmark=_D),
    Primitive("spread_colour", _spread_colour, ("runs", "long_runs", "markers")),
    Primitive("swap_colours", _fixed(_swap_colours), ("runs", "markers", "headed")),
    Primitive("map_colours", _map_colours, ("runs", "dense", "headed")),
    Primitive("replace_colour", _replace_colour, ("runs", "dense", "noise"), held_out=True),
    Primitive("invert", _invert, ("same", "one_run")),
    Primitive("grow", _each(_grow), ("one_run", "same", "runs")),
    Primitive("shrink", _each(_shrink), ("one_run", "long_runs")),
    Primitive("inside", _each(_inside), ("one_run", "long_runs"), weight=2.0, also_benchmark=_D),
    Primitive("ends", _each(_ends), _L),
    Primitive("stripe", _each(_stripe), ("one_run", "long_runs"), held_out=True),
    Primitive("point", _each(_point), ("one_run", "long_runs", "runs")),
    Primitive("halo", _halo, ("one_run", "same", "runs"), held_out=True),
    Primitive("fill_gaps", _fill_gaps, ("same", "same", "runs"), weight=2.5, also_benchmark=_D),
    Primitive("fill_span", _fill_span, _O),
    Primitive("tails", _rightwards(_tails), ("same", "runs", "markers")),
    Primitive("tail_of_singles", _rightwards(_tail_of_singles), ("markers", "stamps")),
    Primitive("denoise", _fixed(_denoise), ("noise",), weight=2.5, also_benchmark=_D),
    Primitive("repair", _fixed(_repair), ("periodic",), weight=1.5),
    Primitive("count", _count, ("same", "runs", "markers")),
    Primitive("crop", _fixed(_crop), ("runs", "headed", "noise", "stamps")),
    Primitive("strip", _fixed(_strip), ("runs", "one_run", "headed")),
    Primitive("compress", _fixed(_compress), ("runs", "same", "dense"), held_out=True),
    Primitive("double", _either(lambda r: r + r, lambda r: r + r[::-1], lambda r: r[::-1] + r), _H[:1], about=_TWICE),
    Primitive("scale", _either(*(partial(_scale, k) for k in (2, 3))), ("dense",)),
    Primitive("half", _either(lambda r: r[: len(r) // 2], lambda r: r[len(r) // 2 :], lambda r: r[::2]), _H),
    Primitive("combine_halves", _combine_halves, ("dense", "same")),
    Primitive("sort_cells", _either(sorted, lambda r: sorted(r, reverse=True)), ("dense", "runs"), held_out=True),
)  # fmt: skip


def _to_value(row: Row) -> tuple[tuple[int, ...]]:
    return (tuple(row),)


def _valid(row: Row) -> bool:
    return 1 <= len(row) <= MAX_LENGTH


ORIGIN = (
    "Moving, recolouring, growing and cleaning of objects on a line. This domain is the nearest to a benchmark: all "
    "nine open families of 1D-ARC are single primitives here, and seven scenes draw inputs of its families' form."
)
INPUTS = {
    "one_run": "one object",
    "same": "2-5 objects of one colour",
    "runs": "2-5 objects of up to six colours",
    "long_runs": "2-5 objects of up to six colours, each of three cells or more",
    "markers": "one object, and single cells of another colour",
    "headed": "one or two objects with another colour at one end",
    "pivot": "a short segment on one side of a single cell",
    "stamps": "a segment of odd length, then single cells",
    "noise": "long objects, and single cells next to or inside them",
    "dense": "random cells",
    "periodic": "a repeated pattern with a gap",
}
ALSO_BENCHMARK = {
    "one_run": "1D-ARC: move, hollow",
    "same": "1D-ARC: fill, recolour",
    "markers": "1D-ARC: move and scale to a cell",
    "headed": "1D-ARC: flip",
    "pivot": "1D-ARC: mirror",
    "stamps": "1D-ARC: pattern copy",
    "noise": "1D-ARC: denoise",
}
SOLVES = {"1D-ARC": ("inside", "reverse_segments", "rotate", "slide_to_contact", "stamp", "translate")}
ROWS = Domain("rows", "grid1d", SCENES, PRIMITIVES, _to_value, _valid, ORIGIN, INPUTS, ALSO_BENCHMARK, SOLVES)
