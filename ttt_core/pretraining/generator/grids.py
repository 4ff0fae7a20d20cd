"""Grids of coloured cells: scenes and primitives. Knows nothing about families, splits, prompts or models.

A grid is a list of rows of colours 0-9 with background 0. An object is a connected set of cells of one colour other
than 0; cells that touch at a corner are connected.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from .core import Domain, Operation, Primitive, Reject

Grid = list[list[int]]
Cell = tuple[int, int]
Object = list[Cell]
Sampler = Callable[[], Grid]
Draw = Callable[[random.Random], Operation]
MAX_SIDE = 14
NEIGHBOURS_8 = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]
NEIGHBOURS_4 = [(-1, 0), (1, 0), (0, -1), (0, 1)]


def _require(condition: bool) -> None:
    if not condition:
        raise Reject


def _blank(h: int, w: int, colour: int = 0) -> Grid:
    return [[colour] * w for _ in range(h)]


def _paint(g: Grid, cells: Iterable[Cell], colour: int) -> Grid:
    """Sets the cells of `g` in place; cells outside the grid are ignored."""
    h, w = len(g), len(g[0])
    for i, j in cells:
        if 0 <= i < h and 0 <= j < w:
            g[i][j] = colour
    return g


def _copy(g: Grid) -> Grid:
    return [r[:] for r in g]


def _transpose(g: Grid) -> Grid:
    return [list(r) for r in zip(*g, strict=True)]


def _turn(g: Grid, times: int) -> Grid:
    """Rotated clockwise by quarter turns."""
    for _ in range(times % 4):
        g = [list(r) for r in zip(*g[::-1], strict=True)]
    return g


def _cells(g: Grid) -> list[Cell]:
    """The cells that are not background."""
    return [(i, j) for i, row in enumerate(g) for j, c in enumerate(row) if c]


def _objects(g: Grid) -> list[Object]:
    """The objects, in the order of their first cell."""
    remaining, objects = {(i, j): g[i][j] for i, j in _cells(g)}, []
    while remaining:
        first, colour = next(iter(remaining.items()))
        del remaining[first]
        cells = [first]
        for i, j in cells:
            for a, b in NEIGHBOURS_8:
                if remaining.get((i + a, j + b)) == colour:
                    del remaining[i + a, j + b]
                    cells.append((i + a, j + b))
        objects.append(cells)
    return objects


def _box(cells: Iterable[Cell]) -> tuple[int, int, int, int]:
    """Top, left, bottom and right; the last two are exclusive."""
    rows, columns = zip(*cells, strict=True)
    return min(rows), min(columns), max(rows) + 1, max(columns) + 1


def _crop(g: Grid, cells: list[Cell]) -> Grid:
    _require(bool(cells))
    a, b, c, d = _box(cells)
    return [row[b:d] for row in g[a:c]]


# Scenes


def _sides(rng: random.Random, low: int = 3, high: int = 7) -> Callable[[], Cell]:
    """A sampler of heights and widths: one size for the whole task, or a range."""
    top = rng.choice([5, 5, high, high, max(high, 10 if rng.random() < 0.8 else 12)])
    top = max(top, low)
    h, w = rng.randint(low, top), rng.randint(low, top)
    if rng.random() < 0.5:
        w = h
    more = rng.choice([0, 0, 1, 2])
    return lambda: (h + rng.randint(0, more), w + rng.randint(0, more))


def _dense(rng: random.Random) -> Sampler:
    sides, palette = _sides(rng, 2), rng.sample(range(10), rng.randint(2, 5))

    def sample() -> Grid:
        h, w = sides()
        return [[rng.choice(palette) for _ in range(w)] for _ in range(h)]

    return sample


def _small(rng: random.Random, largest: int = 4) -> Sampler:
    h, w = rng.randint(2, largest), rng.randint(2, largest)
    palette = [*rng.sample(range(1, 10), rng.randint(1, 3)), 0]
    return lambda: [[rng.choice(palette) for _ in range(w)] for _ in range(h)]


def _sparse(rng: random.Random) -> Sampler:
    sides, palette, most = _sides(rng, 4), rng.sample(range(1, 10), rng.randint(1, 4)), rng.randint(2, 6)

    def sample() -> Grid:
        h, w = sides()
        g = _blank(h, w)
        for _ in range(rng.randint(1, most)):
            g[rng.randrange(h)][rng.randrange(w)] = rng.choice(palette)
        return g

    return sample


def _aligned(rng: random.Random) -> Sampler:
    """Pairs of pixels of one colour in one row or one column."""
    sides, palette, most = _sides(rng, 5), rng.sample(range(1, 10), rng.randint(1, 3)), rng.randint(1, 3)

    def sample() -> Grid:
        h, w = sides()
        g = _blank(h, w)
        for i in rng.sample(range(h), min(h, most)):
            a, b = rng.sample(range(w), 2)
            g[i][a] = g[i][b] = rng.choice(palette)
        return g if rng.random() < 0.5 else _transpose(g)

    return sample


def _shape(rng: random.Random, h: int, w: int, form: int) -> Object:
    """Cells of a shape within h x w: a rectangle, a frame, or a connected blob."""
    if form < 2:
        inside = range(1, h - 1), range(1, w - 1)
        return [(i, j) for i in range(h) for j in range(w) if form == 0 or i not in inside[0] or j not in inside[1]]
    cells = [(rng.randrange(h), rng.randrange(w))]
    for _ in range(h * w):
        i, j = rng.choice(cells)
        a, b = rng.choice(NEIGHBOURS_4)
        cell = (i + a, j + b)
        if 0 <= cell[0] < h and 0 <= cell[1] < w and cell not in cells:
            cells.append(cell)
    return cells


def _shapes(forms: tuple[int, ...], smallest: int, pixels: int = 0) -> Callable[[random.Random], Sampler]:
    """Shapes that do not touch, and up to `pixels` single cells of a colour that no shape has."""

    def scene(rng: random.Random) -> Sampler:
        sides = _sides(rng, max(5, smallest + 2), 8)
        largest, most = rng.randint(smallest, smallest + 2), rng.randint(1, 4)
        mark, *palette = rng.sample(range(1, 10), rng.randint(2, 5))
        form = rng.choice(forms)

        def sample() -> Grid:
            h, w = sides()
            g, free = _blank(h, w), {(i, j) for i in range(h) for j in range(w)}
            marks = rng.randint(1, pixels) if pixels else 0
            for index in range(2 * (1 if pixels else most) + 2 * marks):
                single = index >= 2 and pixels > 0
                a, b = (1, 1) if single else (rng.randint(smallest, largest), rng.randint(smallest, largest))
                i, j = rng.randint(0, max(0, h - a)), rng.randint(0, max(0, w - b))
                cells = [(i + y, j + x) for y, x in _shape(rng, a, b, form)]
                if free.issuperset(cells) and not (index == 1 and pixels and any(map(any, g))):
                    _paint(g, cells, mark if single else rng.choice(palette))
                    free.difference_update((y + u, x + v) for y, x in cells for u in (-1, 0, 1) for v in (-1, 0, 1))
            return g

        return sample

    return scene


def _noisy(rng: random.Random) -> Sampler:
    """Rectangles with cells of noise in the background or in them."""
    base, colour, inside, most = _shapes((0,), 3)(rng), rng.randint(1, 9), rng.random() < 0.5, rng.randint(1, 4)

    def sample() -> Grid:
        g = base()
        free = [(i, j) for i, r in enumerate(g) for j, c in enumerate(r) if _alike(g, i, j) and (c > 0) == inside]
        chosen: list[Cell] = []
        for i, j in rng.sample(free, min(len(free), 8)):
            if len(chosen) < most and all(max(abs(i - y), abs(j - x)) > 1 for y, x in chosen):
                chosen.append((i, j))
        return _paint(g, chosen, colour)

    return sample


def _alike(g: Grid, i: int, j: int) -> bool:
    """Whether all cells around one have its colour."""
    h, w, c = len(g), len(g[0]), g[i][j]
    return all(g[i + a][j + b] == c for a, b in NEIGHBOURS_8 if 0 <= i + a < h and 0 <= j + b < w)


def _lines(rng: random.Random) -> Sampler:
    sides, palette, both = _sides(rng, 4), rng.sample(range(1, 10), rng.randint(1, 4)), rng.random() < 0.5

    def sample() -> Grid:
        h, w = sides()
        g = _blank(h, w)
        for _ in range(rng.randint(1, 3)):
            colour, across = rng.choice(palette), not both or rng.random() < 0.5
            i, j = rng.randrange(h), rng.randrange(w)
            size = rng.randint(2, w if across else h)
            _paint(g, [(i, j + k) if across else (i + k, j) for k in range(size)], colour)
        return g

    return sample


def _halves(rng: random.Random) -> Sampler:
    """Two patterns of equal size, with or without a line between."""
    w = rng.randint(2, 5)
    h = rng.randint(2, min(5, 2 * w - 1))
    a, b, line = rng.sample(range(1, 10), 3)
    b, bar, down, p = rng.choice([a, b]), rng.random() < 0.6, rng.random() < 0.5, rng.uniform(0.3, 0.6)

    def sample() -> Grid:
        parts = [[[c if rng.random() < p else 0 for _ in range(w)] for _ in range(h)] for c in (a, b)]
        g = [x + [line] * bar + y for x, y in zip(*parts, strict=True)]
        return _transpose(g) if down else g

    return sample


def _repeated(symmetric: bool) -> Callable[[random.Random], Sampler]:
    """A symmetric or a periodic grid with a rectangle missing."""

    def scene(rng: random.Random) -> Sampler:
        sides, palette = _sides(rng, 5), rng.sample(range(1, 10), rng.randint(2, 4))
        way = rng.randint(0, 2)

        def sample() -> Grid:
            h, w = sides()
            a, b = (h, w) if symmetric else (rng.randint(1, 3), rng.randint(2, 3))
            unit = [[rng.choice(palette) for _ in range(b)] for _ in range(a)]
            fold = (h if way == 1 else 0, w if way != 1 else 0)
            if symmetric and way == 2:
                fold = (h, w)
            y = [min(i, fold[0] - 1 - i) if fold[0] else i for i in range(h)]
            x = [min(j, fold[1] - 1 - j) if fold[1] else j for j in range(w)]
            g = [[unit[y[i]][x[j]] if symmetric else unit[i % a][j % b] for j in range(w)] for i in range(h)]
            i, j, s, t = rng.randrange(h // 2), rng.randrange(w // 2), rng.randint(1, h // 2), rng.randint(1, w // 2)
            return _paint(g, [(i + u, j + v) for u in range(s) for v in range(t)], 0)

        return sample

    return scene


SCENES: dict[str, Callable[[random.Random], Sampler]] = {
    "dense": _dense, "small": _small, "tiny": partial(_small, largest=3), "sparse": _sparse, "aligned": _aligned,
    "rectangles": _shapes((0,), 2),
    "frames": _shapes((1,), 3), "blobs": _shapes((2,), 2), "objects": _shapes((0, 2, 2), 1), "noisy": _noisy,
    "marked": _shapes((0, 2), 2, 3), "lines": _lines, "halves": _halves,
    "symmetric": _repeated(True), "periodic": _repeated(False),
}  # fmt: skip


# Ways to make a primitive


def _fixed(function: Operation) -> Draw:
    return lambda rng: function


def _either(*functions: Operation) -> Draw:
    """A primitive that is one of a few operations."""
    return lambda rng: rng.choice(functions)


def _turned(draw: Draw) -> Draw:
    """A primitive that works in any of the four directions."""

    def turned(rng: random.Random) -> Operation:
        operation, k = draw(rng), rng.randrange(4)
        return lambda g: _turn(operation(_turn(g, k)), -k)

    return turned


def _choose(rng: random.Random) -> Callable[[Grid, list[Object]], list[Object]]:
    """A random rule that selects objects: by size, place, shape or contact with the border."""
    t, k = rng.randint(2, 5), rng.randint(0, 1)

    def border(g: Grid, o: Object) -> bool:
        a, b, c, d = _box(o)
        return a == 0 or b == 0 or c == len(g) or d == len(g[0])

    def full(o: Object) -> bool:
        a, b, c, d = _box(o)
        return (c - a) * (d - b) == len(o)

    def wide(o: Object) -> bool:
        a, b, c, d = _box(o)
        return d - b > c - a if k else c - a > d - b

    table: list[Callable[[Grid, list[Object]], list[Object]]] = [
        lambda g, os: [o for o in os if len(o) == max(map(len, os))],
        lambda g, os: [o for o in os if len(o) == min(map(len, os))],
        lambda g, os: [o for o in os if len(o) > t],
        lambda g, os: [o for o in os if len(o) < t],
        lambda g, os: os[-1:] if k else os[:1],
        lambda g, os: [o for o in os if border(g, o) == bool(k)],
        lambda g, os: [o for o in os if wide(o)],
        lambda g, os: [o for o in os if full(o) == bool(k)],
    ]
    return rng.choice(table)


def _each(make: Callable[[random.Random], Callable[[Grid, Object], Iterable[tuple[Cell, int]]]]) -> Draw:
    """A primitive that draws cells for each object on a copy of the grid."""

    def draw(rng: random.Random) -> Operation:
        change = make(rng)

        def operation(g: Grid) -> Grid:
            out, h, w = _copy(g), len(g), len(g[0])
            for o in _objects(g):
                for (i, j), c in change(g, o):
                    if 0 <= i < h and 0 <= j < w:
                        out[i][j] = c
            return out

        return operation

    return draw


def _cellwise(make: Callable[[random.Random], Callable[[Grid, int, int], int]]) -> Draw:
    """A primitive that computes each cell from the grid and the position of the cell."""

    def draw(rng: random.Random) -> Operation:
        f = make(rng)
        return lambda g: [[f(g, i, j) for j in range(len(g[0]))] for i in range(len(g))]

    return draw


def _colour(rng: random.Random) -> int:
    return rng.randint(1, 9)


# Moving


def _translate(rng: random.Random) -> Callable[[Grid, int, int], int]:
    a, b = rng.choice([(0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, 1), (0, 2), (2, 0)])
    wrap = rng.random() < 0.4

    def f(g: Grid, i: int, j: int) -> int:
        h, w = len(g), len(g[0])
        return g[(i - a) % h][(j - b) % w] if wrap or (0 <= i - a < h and 0 <= j - b < w) else 0

    return f


def _fall(g: Grid) -> Grid:
    """Every cell falls to the right."""
    return [[0] * r.count(0) + [c for c in r if c] for r in g]


def _fall_objects(g: Grid) -> Grid:
    """Every object falls down until it touches the floor or another."""
    out, h = _blank(len(g), len(g[0])), len(g)
    for o in sorted(_objects(g), key=lambda o: -max(o)[0]):
        k = 0
        while all(i + k + 1 < h and not out[i + k + 1][j] for i, j in o):
            k += 1
        _paint(out, [(i + k, j) for i, j in o], g[o[0][0]][o[0][1]])
    return out


def _to_wall(g: Grid) -> Grid:
    """Everything moves down as one until it touches the floor."""
    k = 0
    while k < len(g) and not any(g[-1 - k]):
        k += 1
    return _blank(k, len(g[0])) + _copy(g[: len(g) - k])


def _shear(rng: random.Random) -> Operation:
    k = rng.choice([1, -1])
    return lambda g: [r[-k * i % len(r) :] + r[: -k * i % len(r)] for i, r in enumerate(g)]


def _stamp(rng: random.Random) -> Operation:
    """A copy of the largest object centred on every single cell, in its own colour or the cell's."""
    own = rng.random() < 0.6

    def operation(g: Grid) -> Grid:
        objects = _objects(g)
        _require(len(objects) > 1)
        big = max(objects, key=len)
        _require(len(big) > 1)
        a, b, c, d = _box(big)
        y, x, out = (a + c - 1) // 2, (b + d - 1) // 2, _copy(g)
        for o in objects:
            if len(o) == 1:
                (i, j) = o[0]
                _paint(out, [(u - y + i, v - x + j) for u, v in big], g[big[0][0]][big[0][1]] if own else g[i][j])
        return out

    return operation


def _flip_objects(g: Grid) -> Grid:
    """Every object is mirrored in place, left to right."""
    out = _blank(len(g), len(g[0]))
    for o in _objects(g):
        _, b, _, d = _box(o)
        _paint(out, [(i, b + d - 1 - j) for i, j in o], g[o[0][0]][o[0][1]])
    return out


# Colours


def _map_colours(rng: random.Random) -> Callable[[Grid, int, int], int]:
    table = [0, *rng.sample(range(1, 10), 9)]
    return lambda g, i, j: table[g[i][j]]


def _common(rng: random.Random) -> Callable[[Grid], int]:
    """The commonest or the rarest colour, without background."""
    place = rng.choice([0, -1])

    def pick(g: Grid) -> int:
        counts = Counter(c for r in g for c in r if c).most_common()
        _require(bool(counts) and [n for _, n in counts].count(counts[place][1]) == 1)
        return counts[place][0]

    return pick


def _by_colour(kind: int) -> Draw:
    """Replaces (0), keeps (1), deletes (2), fills the grid with (3) or crops to (4) the commonest or rarest colour."""

    def draw(rng: random.Random) -> Operation:
        pick, c = _common(rng), _colour(rng)

        def operation(g: Grid) -> Grid:
            v = pick(g)
            if kind == 4:
                return _crop(g, [(i, j) for i, j in _cells(g) if g[i][j] == v])
            return [[(c if x == v else x, x if x == v else 0, 0 if x == v else x, v)[kind] for x in r] for r in g]

        return operation

    return draw


def _swap(g: Grid) -> Grid:
    """Swaps the two commonest colours."""
    counts = Counter(c for r in g for c in r if c).most_common(3)
    _require(len(counts) == 2 or (len(counts) == 3 and counts[1][1] > counts[2][1]))
    (a, _), (b, _) = counts[:2]
    return [[b if c == a else a if c == b else c for c in r] for r in g]


def _invert(rng: random.Random) -> Callable[[Grid, int, int], int]:
    c = _colour(rng)
    return lambda g, i, j: 0 if g[i][j] else c


def _recolour_all(rng: random.Random) -> Callable[[Grid, int, int], int]:
    c = _colour(rng)
    return lambda g, i, j: c if g[i][j] else 0


def _chosen(kind: int) -> Draw:
    """Recolours (0), deletes (1), keeps (2) or crops to (3) chosen objects."""

    def draw(rng: random.Random) -> Operation:
        choose, c = _choose(rng), _colour(rng)

        def operation(g: Grid) -> Grid:
            cells = [cell for o in choose(g, _objects(g))[: 1 if kind == 3 else None] for cell in o]
            if kind == 3:
                return _crop(g, cells)
            if kind < 2:
                return _paint(_copy(g), cells, 0 if kind else c)
            cell_set = set(cells)
            return [[c if (i, j) in cell_set else 0 for j, c in enumerate(r)] for i, r in enumerate(g)]

        return operation

    return draw


def _by_size(rng: random.Random) -> Callable[[Grid, Object], Iterable[tuple[Cell, int]]]:
    colours = rng.sample(range(1, 10), rng.randint(2, 5))
    parity = rng.random() < 0.3
    return lambda g, o: [(x, colours[len(o) % 2 if parity else min(len(o), len(colours)) - 1]) for x in o]


def _by_form(rng: random.Random) -> Callable[[Grid, Object], Iterable[tuple[Cell, int]]]:
    """Wide, tall and square objects get three colours."""
    colours = rng.sample(range(1, 10), 3)

    def change(g: Grid, o: Object) -> Iterable[tuple[Cell, int]]:
        a, b, c, d = _box(o)
        return [(x, colours[(d - b > c - a) - (d - b < c - a)]) for x in o]

    return change


def _by_rank(rng: random.Random) -> Operation:
    """The largest object gets one colour, the next another, and so on."""
    colours = rng.sample(range(1, 10), 5)
    down = rng.random() < 0.6

    def operation(g: Grid) -> Grid:
        out, objects = _copy(g), _objects(g)
        sizes = sorted({len(o) for o in objects}, reverse=down)
        _require(len(objects) > 1 and len(sizes) <= 5)
        for o in objects:
            _paint(out, o, colours[sizes.index(len(o))])
        return out

    return operation


def _mark_colour(g: Grid) -> Grid:
    """All objects take the colour of the smallest one."""
    objects = _objects(g)
    _require(len(objects) > 1)
    i, j = min(objects, key=len)[0]
    return [[g[i][j] if c else 0 for c in r] for r in g]


# Drawing


def _halo(rng: random.Random) -> Callable[[Grid, int, int], int]:
    """Background next to a coloured cell takes a colour, or the colour of the cell."""
    c, near = rng.choice([0, _colour(rng)]), rng.choice([NEIGHBOURS_8, NEIGHBOURS_4])

    def f(g: Grid, i: int, j: int) -> int:
        h, w = len(g), len(g[0])
        own = g[i][j]
        if own:
            return own
        neighbours = [g[i + a][j + b] for a, b in near if 0 <= i + a < h and 0 <= j + b < w]
        return (c or max(neighbours)) if any(neighbours) else 0

    return f


def _inside(rng: random.Random) -> Callable[[Grid, int, int], int]:
    """Cells whose four neighbours have their colour become background or another colour; or only those are kept."""
    c, keep = rng.choice([0, _colour(rng)]), rng.random() < 0.3

    def f(g: Grid, i: int, j: int) -> int:
        h, w, v = len(g), len(g[0]), g[i][j]
        inner = v > 0 and all(0 <= i + a < h and 0 <= j + b < w and g[i + a][j + b] == v for a, b in NEIGHBOURS_4)
        return (v if inner else 0) if keep else c if inner else v

    return f


def _fill_holes(rng: random.Random) -> Operation:
    """Background that is not connected to the border takes a colour."""
    c, outside = _colour(rng), rng.random() < 0.25

    def operation(g: Grid) -> Grid:
        h, w = len(g), len(g[0])
        queue = [(i, j) for i in range(h) for j in range(w) if not g[i][j] and (i in (0, h - 1) or j in (0, w - 1))]
        reached = set(queue)
        for i, j in queue:
            for a, b in NEIGHBOURS_4:
                x = (i + a, j + b)
                if 0 <= x[0] < h and 0 <= x[1] < w and not g[x[0]][x[1]] and x not in reached:
                    reached.add(x)
                    queue.append(x)
        return [[v or (c if ((i, j) in reached) == outside else 0) for j, v in enumerate(r)] for i, r in enumerate(g)]

    return operation


def _fill_box(rng: random.Random) -> Callable[[Grid, Object], Iterable[tuple[Cell, int]]]:
    """Background in an object's bounding box takes a colour."""
    fill = rng.choice([0, _colour(rng)])

    def change(g: Grid, o: Object) -> Iterable[tuple[Cell, int]]:
        a, b, c, d = _box(o)
        colour = fill or g[o[0][0]][o[0][1]]
        return [((i, j), colour) for i in range(a, c) for j in range(b, d) if not g[i][j]]

    return change


def _corners(rng: random.Random) -> Callable[[Grid, Object], Iterable[tuple[Cell, int]]]:
    """The corners of an object's bounding box, or those one step outside, take a colour."""
    colour, k = _colour(rng), rng.randint(0, 1)

    def change(g: Grid, o: Object) -> Iterable[tuple[Cell, int]]:
        a, b, c, d = _box(o)
        return [((i, j), colour) for i in (a - k, c - 1 + k) for j in (b - k, d - 1 + k)]

    return change


def _middle(rng: random.Random) -> Callable[[Grid, Object], Iterable[tuple[Cell, int]]]:
    """The middle of an object's bounding box takes a colour."""
    colour = _colour(rng)

    def change(g: Grid, o: Object) -> Iterable[tuple[Cell, int]]:
        a, b, c, d = _box(o)
        return [(((a + c - 1) // 2, (b + d - 1) // 2), colour)] if len(o) > 1 else []

    return change


def _connect(rng: random.Random) -> Operation:
    """Background between two cells of one colour in a row takes that colour or another."""
    colour = rng.choice([0, _colour(rng)])

    def rows(g: Grid) -> Grid:
        out = _copy(g)
        for r, o in zip(g, out, strict=True):
            last = -1
            for j, c in enumerate(r):
                if c:
                    if last >= 0 and r[last] == c:
                        o[last + 1 : j] = [colour or c] * (j - last - 1)
                    last = j
        return out

    def both(g: Grid) -> Grid:
        down = _transpose(rows(_transpose(g)))
        return [[x or y for x, y in zip(*p, strict=True)] for p in zip(rows(g), down, strict=True)]

    return rng.choice([rows, both, both])


def _rays(g: Grid) -> Grid:
    """Every cell's colour runs right until another cell or the wall."""
    out = []
    for r in g:
        last, row = 0, []
        for c in r:
            last = c or last
            row.append(last)
        out.append(row)
    return out


def _through(rng: random.Random) -> Operation:
    """Lines through every cell: across, down, both, or diagonal."""
    ways = rng.choice([[(0, 1)], [(1, 0)], [(0, 1), (1, 0)], [(1, 1)], [(1, -1)], [(1, 1), (1, -1)]])

    def operation(g: Grid) -> Grid:
        out, n = _copy(g), max(len(g), len(g[0]))
        cells = _cells(g)
        for i, j in cells:
            for a, b in ways:
                _paint(out, [(i + a * k, j + b * k) for k in range(-n, n + 1)], g[i][j])
        for i, j in cells:
            out[i][j] = g[i][j]
        return out

    return operation


def _mask(rng: random.Random) -> Callable[[Grid, int, int], int]:
    """Cells at certain places take a colour or become background: a checkerboard, stripes, a border or a triangle."""
    c, k, only = rng.choice([0, _colour(rng)]), rng.randint(0, 1), rng.random() < 0.3
    table: list[Callable[[Grid, int, int], bool]] = [
        lambda g, i, j: (i + j) % 2 == k,
        lambda g, i, j: i % 2 == k,
        lambda g, i, j: j % 2 == k,
        lambda g, i, j: i in (0, len(g) - 1) or j in (0, len(g[0]) - 1),
        lambda g, i, j: i > j if k else j > i,
        lambda g, i, j: i == j or (k == 1 and i + j == len(g[0]) - 1),
        lambda g, i, j: 2 * i < len(g) if k else 2 * j < len(g[0]),
    ]
    at = rng.choice(table)
    return lambda g, i, j: (g[i][j] or c if only else c) if at(g, i, j) else g[i][j]


def _pad(rng: random.Random) -> Operation:
    c = rng.choice([0, _colour(rng)])
    return lambda g: [[c] * (len(g[0]) + 2), *([c, *r, c] for r in g), [c] * (len(g[0]) + 2)]


# Repairing


def _complete_symmetry(rng: random.Random) -> Operation:
    """Background takes the colour of the mirrored cell; the axis is fixed, or is one that the grid agrees with."""
    mirrors: list[Operation] = [lambda g: [r[::-1] for r in g], lambda g: g[::-1]]
    fixed_mirror = rng.choice([None, *mirrors])

    def operation(g: Grid) -> Grid:
        out = g
        for m in [fixed_mirror] if fixed_mirror else mirrors:
            pairs = list(zip(out, m(out), strict=True))
            if fixed_mirror or all(x == y for p, q in pairs for x, y in zip(p, q, strict=True) if x and y):
                out = [[x or y for x, y in zip(p, q, strict=True)] for p, q in pairs]
        return _copy(out)

    return operation


def _complete_period(g: Grid) -> Grid:
    """Fills background so that the grid has the smallest tile that fits."""
    h, w = len(g), len(g[0])
    tiles = [(a, b) for a in range(1, min(4, h) + 1) for b in range(1, min(4, w) + 1)]
    for a, b in sorted(tiles, key=lambda t: t[0] * t[1]):
        sets = [[{c for r in g[i::a] for c in r[j::b] if c} for j in range(b)] for i in range(a)]
        if all(len(s) == 1 for r in sets for s in r):
            return [[next(iter(sets[i % a][j % b])) for j in range(w)] for i in range(h)]
    raise Reject


def _denoise(rng: random.Random) -> Callable[[Grid, int, int], int]:
    """Single cells take the colour that most of the cells around them have."""

    def f(g: Grid, i: int, j: int) -> int:
        h, w = len(g), len(g[0])
        neighbours = [g[i + a][j + b] for a, b in NEIGHBOURS_8 if 0 <= i + a < h and 0 <= j + b < w]
        return g[i][j] if g[i][j] in neighbours or not neighbours else max(neighbours, key=neighbours.count)

    return f


# Outputs of another size


def _tile(rng: random.Random) -> Operation:
    a, b = rng.choice([(1, 2), (2, 1), (2, 2), (3, 3), (1, 3), (3, 1)])
    return lambda g: [r * b for _ in range(a) for r in g]


def _mirror_tile(rng: random.Random) -> Operation:
    down, first, both = rng.random() < 0.5, rng.random() < 0.3, rng.random() < 0.4

    def operation(g: Grid) -> Grid:
        right = [r[::-1] + r if first else r + r[::-1] for r in g]
        return right + right[::-1] if both else _copy(g) + _copy(g)[::-1] if down else right

    return operation


def _scale(rng: random.Random) -> Operation:
    a, b = rng.choice([(2, 2), (2, 2), (3, 3), (1, 2), (2, 1)])
    return lambda g: [[c for c in r for _ in range(b)] for r in g for _ in range(a)]


def _self_tile(g: Grid) -> Grid:
    """The grid in place of each of its coloured cells."""
    return [[c if m else 0 for m in big for c in small] for big in g for small in g]


def _combine(rng: random.Random) -> Operation:
    """The two halves along the longer side, cell by cell; a middle line is left out."""
    c = _colour(rng)
    table: list[Callable[[int, int], int]] = [
        lambda x, y: c if x and y else 0, lambda x, y: c if x or y else 0, lambda x, y: 0 if x or y else c,
        lambda x, y: c if bool(x) != bool(y) else 0, lambda x, y: x or y, lambda x, y: c if x and not y else 0,
    ]  # fmt: skip
    f = rng.choice(table)

    def operation(g: Grid) -> Grid:
        t = g if len(g) > len(g[0]) else _transpose(g)
        n = len(t) // 2
        out = [[f(x, y) for x, y in zip(p, q, strict=True)] for p, q in zip(t[:n], t[len(t) - n :], strict=True)]
        return out if len(g) > len(g[0]) else _transpose(out)

    return operation


def _count(rng: random.Random) -> Operation:
    """A bar with one cell for each object, colour or coloured cell."""
    c, down = _colour(rng), rng.random() < 0.3
    table: list[Callable[[Grid], int]] = [
        lambda g: len(_objects(g)), lambda g: len({c for r in g for c in r if c}), lambda g: len(_cells(g))
    ]  # fmt: skip
    f = rng.choice(table)
    return lambda g: [[c]] * f(g) if down else [[c] * f(g)]


def _histogram(rng: random.Random) -> Operation:
    """The colours from the commonest to the rarest, ties by colour, as a row, or as bars of their counts."""
    bars = rng.random() < 0.5

    def operation(g: Grid) -> Grid:
        counts = sorted(Counter(c for r in g for c in r if c).items(), key=lambda p: (-p[1], p[0]))
        _require(bool(counts))
        return [[c] * n + [0] * (counts[0][1] - n) for c, n in counts] if bars else [[c for c, _ in counts]]

    return operation


def _sort_rows(rng: random.Random) -> Operation:
    key: Operation = rng.choice([lambda r: len(r) - r.count(0), lambda r: r, lambda r: r[0], lambda r: len(set(r))])
    return lambda g: [r[:] for r in sorted(g, key=key)]


def _dedupe(g: Grid) -> Grid:
    """Leaves out rows that equal the row before."""
    return [r[:] for i, r in enumerate(g) if i == 0 or r != g[i - 1]]


def _full_rows(g: Grid) -> Grid:
    """Leaves out empty rows and columns."""
    return _transpose([r for r in _transpose([r for r in g if any(r)]) if any(r)])


def _overlay(rng: random.Random) -> Operation:
    """The grid over its own mirror image, or over itself rotated by 180 degrees."""
    mirror: Operation = rng.choice([lambda g: [r[::-1] for r in g], lambda g: g[::-1], lambda g: _turn(g, 2)])
    return lambda g: [[x or y for x, y in zip(p, q, strict=True)] for p, q in zip(g, mirror(g), strict=True)]


def _row_colour(rng: random.Random) -> Operation:
    """Every row takes its commonest colour, or its first one."""
    key: Operation = rng.choice([lambda r: max(r, key=r.count), lambda r: r[0]])
    return lambda g: [[key(r)] * len(r) for r in g]


_ANY = ("dense", "small", "sparse", "blobs", "lines", "objects")
_SOL = ("objects", "rectangles", "blobs", "objects")
_OBJ = (*_SOL, "frames")
_PIX = ("sparse", "aligned")
_A, _C = "ARC", "ConceptARC"
_FILL = "fills the grid with its commonest colour, or with its rarest"
_TABLE = (
    Primitive("flip", _either(lambda g: [r[::-1] for r in g], lambda g: _copy(g[::-1])), _ANY, weight=2.0),
    Primitive("rotate", _either(*(partial(_turn, times=k) for k in (1, 2, 3))), _ANY, weight=2.0, also_benchmark=_A),
    Primitive("transpose", _either(_transpose, lambda g: _turn(_transpose(g), 2)), _ANY),
    Primitive("translate", _cellwise(_translate), _ANY, weight=1.5),
    Primitive("fall", _turned(_fixed(_fall)), ("sparse", "objects"), weight=1.5),
    Primitive("fall_objects", _turned(_fixed(_fall_objects)), _OBJ, weight=1.5),
    Primitive("to_wall", _turned(_fixed(_to_wall)), ("objects", "blobs", "sparse"), also_benchmark=_C),
    Primitive("shear", _shear, ("dense", "lines", "rectangles"), held_out=True),
    Primitive("stamp", _stamp, ("marked",), weight=2.0, also_benchmark=_C),
    Primitive("flip_objects", _either(_flip_objects, lambda g: _flip_objects(g[::-1])[::-1]), _SOL[2:3], held_out=True),
    Primitive("map_colours", _cellwise(_map_colours), _ANY, weight=1.5, also_benchmark=_A),
    Primitive("replace_colour", _by_colour(0), ("dense", "sparse", "objects")),
    Primitive("keep_colour", _by_colour(1), ("dense", "sparse", "objects")),
    Primitive("delete_colour", _by_colour(2), ("dense", "sparse", "objects")),
    Primitive("majority", _by_colour(3), ("dense", "sparse", "objects"), about=_FILL),
    Primitive("crop_colour", _by_colour(4), ("objects", "rectangles", "marked"), held_out=True),
    Primitive("swap_colours", _fixed(_swap), ("dense", "marked"), held_out=True),
    Primitive("invert", _cellwise(_invert), ("lines", "sparse", "blobs", "small")),
    Primitive("recolour_all", _cellwise(_recolour_all), _OBJ),
    Primitive("recolour_chosen", _chosen(0), _SOL, weight=2.0, also_benchmark=_C),
    Primitive("delete_chosen", _chosen(1), _SOL, weight=1.5),
    Primitive("keep_chosen", _chosen(2), _SOL, weight=1.5),
    Primitive("crop_chosen", _chosen(3), _OBJ, weight=1.5, also_benchmark=_C),
    Primitive("recolour_by_size", _each(_by_size), ("objects", "lines", "blobs")),
    Primitive("recolour_by_form", _each(_by_form), ("objects", "rectangles", "lines"), also_benchmark=_C),
    Primitive("recolour_by_rank", _by_rank, ("objects", "rectangles", "blobs"), held_out=True),
    Primitive("mark_colour", _fixed(_mark_colour), ("marked",)),
    Primitive("halo", _cellwise(_halo), ("sparse", "objects", "lines"), weight=1.5),
    Primitive("inside", _cellwise(_inside), ("rectangles", "noisy"), weight=1.5),
    Primitive("fill_holes", _fill_holes, ("frames",), weight=2.0, also_benchmark=_C),
    Primitive("fill_box", _each(_fill_box), ("blobs", "frames")),
    Primitive("corners", _each(_corners), ("rectangles", "frames", "objects"), held_out=True),
    Primitive("middle", _each(_middle), ("rectangles", "frames"), held_out=True, also_benchmark=_C),
    Primitive("connect", _connect, ("aligned",), weight=2.0),
    Primitive("rays", _turned(_fixed(_rays)), _PIX, weight=1.5, also_benchmark=_C),
    Primitive("through", _through, _PIX, weight=1.5),
    Primitive("mask", _cellwise(_mask), ("dense", "small", "rectangles"), weight=1.5),
    Primitive("pad", _pad, ("dense", "small", "objects")),
    Primitive("trim", _fixed(lambda g: [r[1:-1] for r in g[1:-1]]), ("dense",)),
    Primitive("complete_symmetry", _complete_symmetry, ("symmetric",), weight=1.5, also_benchmark=_C),
    Primitive("complete_period", _fixed(_complete_period), ("periodic",), weight=1.5),
    Primitive("denoise", _cellwise(_denoise), ("noisy",), weight=1.5, also_benchmark=_C),
    Primitive("crop", _fixed(lambda g: _crop(g, _cells(g))), ("blobs", "sparse", "marked")),
    Primitive("tile", _tile, ("small",)),
    Primitive("mirror_tile", _mirror_tile, ("small",)),
    Primitive("scale", _scale, ("small",)),
    Primitive("self_tile", _fixed(_self_tile), ("tiny",), weight=0.7, held_out=True),
    Primitive("downscale", _either(lambda g: [r[::2] for r in g[::2]], lambda g: _copy(g[::2])), ("dense", "periodic")),
    Primitive("half", _turned(_fixed(lambda g: _copy(g[: (len(g) + 1) // 2]))), ("dense", "lines", "halves")),
    Primitive("quadrant", _turned(_fixed(lambda g: [r[: len(r) // 2] for r in g[: len(g) // 2]])), ("dense",)),
    Primitive("edge", _turned(_either(lambda g: [g[0][:]], lambda g: [g[len(g) // 2][:]])), ("dense",)),
    Primitive("combine", _combine, ("halves",), weight=2.5, also_benchmark=_A),
    Primitive("count", _count, ("sparse", "objects"), also_benchmark=_C),
    Primitive("histogram", _histogram, ("sparse", "small"), held_out=True),
    Primitive("sort_rows", _turned(_sort_rows), ("dense", "lines")),
    Primitive("dedupe", _turned(_fixed(_dedupe)), ("rectangles", "lines", "frames"), held_out=True),
    Primitive("full_rows", _fixed(_full_rows), ("sparse", "objects", "lines")),
    Primitive("overlay", _overlay, ("sparse", "blobs", "small"), held_out=True),
    Primitive("row_colour", _turned(_row_colour), ("dense",), held_out=True),
)  # fmt: skip


def _bounded(draw: Draw) -> Draw:
    """Rejects results that are empty or too large."""

    def bounded(rng: random.Random) -> Operation:
        operation = draw(rng)

        def checked(g: Grid) -> Grid:
            out: Grid = operation(g)
            _require(0 < len(out) <= 2 * MAX_SIDE and 0 < len(out[0]) <= 2 * MAX_SIDE)
            return out

        return checked

    return bounded


PRIMITIVES = tuple(replace(p, draw=_bounded(p.draw)) for p in _TABLE)


def _to_value(g: Grid) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, g))


def _valid(g: Grid) -> bool:
    return 1 <= len(g) <= MAX_SIDE and 1 <= len(g[0]) <= MAX_SIDE


ORIGIN = (
    "Symmetries, moving, recolouring, drawing, repairing and cropping of objects on a grid: the operations that "
    "collections of grid puzzles (ARC, ConceptARC, Mini-ARC) share."
)
INPUTS = {
    "dense": "random cells",
    "small": "random cells with background, 2-4 cells a side",
    "tiny": "random cells with background, 2-3 cells a side",
    "sparse": "1-6 single cells",
    "aligned": "pairs of cells of one colour in a row or a column",
    "rectangles": "filled rectangles that do not touch",
    "frames": "outlines of rectangles",
    "blobs": "connected shapes",
    "objects": "rectangles or connected shapes, single cells among them",
    "noisy": "rectangles, and single cells next to or inside them",
    "marked": "one or two shapes, and single cells of a colour of their own",
    "lines": "1-3 straight lines",
    "halves": "two patterns of one size, with or without a line between",
    "symmetric": "a symmetric pattern with a rectangle missing",
    "periodic": "a repeated tile with a rectangle missing",
}
SOLVES = {
    "ARC": (
        "combine", "connect", "crop", "crop_chosen", "crop_colour", "delete_chosen", "denoise", "fall",
        "fall_objects", "fill_box", "fill_holes", "flip", "full_rows", "inside", "mask", "mirror_tile", "rays",
        "rotate", "scale", "self_tile", "through", "tile", "translate", "transpose",
    ),
    "ConceptARC": (
        "complete_symmetry", "crop_chosen", "delete_chosen", "edge", "histogram", "keep_chosen", "mirror_tile",
        "overlay", "through", "tile",
    ),
    "Mini-ARC": (
        "corners", "fall", "fall_objects", "flip", "flip_objects", "halo", "rotate", "row_colour", "swap_colours",
        "through",
    ),
}  # fmt: skip
GRIDS = Domain("grids", "grid", SCENES, PRIMITIVES, _to_value, _valid, ORIGIN, INPUTS, {}, SOLVES)
