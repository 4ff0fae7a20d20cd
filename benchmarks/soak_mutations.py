"""Damages valid files: single bytes, or whole values of JSON, CSV and TOML. Knows nothing about readers."""

from __future__ import annotations

import random
import re

_TOKEN = re.compile(rb'"(?:[^"\\\n]|\\.)*"|[\[\]{}]|[^\s\[\]{}:,;="]+')
ODD_VALUES = (
    b"null", b"true", b"-1", b"0", b"1" + b"0" * 30, b"9223372036854775808", b"1e308", b"1e999", b"NaN", b"-Infinity",
    b'""', b'"\\ud800"', b'"\\u0000"', b'"\\u001b[31m"', b'"\xff"', b'"' + b"a" * 5000 + b'"', b"[]", b"{}", b"[[]]",
    b"[null]", b'{"role": "user"}', b"0.5", b"[" * 3000, b"9" * 5000, b'{"a": 1, "a": 2}', b"1979-05-27", b"'", b"",
    b'" "', b"[1, 2]", b"[[0, 1], [1]]", b"[[0, 1], [1, 0]]", b"[" + b"[0], " * 31 + b"[0]]", b"9" * 4100, b"2",
    b'"grid"', b'"list"', b'"text"', b'"user"', b'"assistant"', b'"tool"', b'"refused"', b"\n",
)  # fmt: skip
_SNIPPETS = (b"\x00", b"\xff", b"NaN", b"1e999", b"[" * 3000, b'"', b"{", b",", b"\n", b"9" * 5000, b"\\ud800", b"=")


class Damager:
    """A valid file with the places of its values, which `damaged` damages one or two of."""

    def __init__(self, data: bytes, values_share: float = 0.6) -> None:
        self.data = data
        self._values_share = values_share
        self._spans: list[tuple[int, int]] = []
        opened: list[int] = []
        for token in _TOKEN.finditer(data) if values_share else ():
            start, end = token.span()
            if token[0] in b"[{":
                opened.append(start)
            elif token[0] in b"]}" and opened:
                self._spans.append((opened.pop(), end))
            else:
                self._spans.append((start, end))

    def damaged(self, rng: random.Random) -> bytes:
        """The bytes with other values, or with damaged bytes."""
        if not self._spans or rng.random() >= self._values_share:
            return damaged_bytes(self.data, rng)
        data = self._with_another_value(self.data, rng, len(self.data))
        return data

    def _with_another_value(self, data: bytes, rng: random.Random, before: int) -> bytes:
        draw = rng.random
        start, end = self._spans[int(draw() * len(self._spans))]
        action = draw()
        if action < 0.6:
            value = ODD_VALUES[int(draw() * len(ODD_VALUES))]
        elif action < 0.8:
            other = self._spans[int(draw() * len(self._spans))]
            value = self.data[other[0] : other[1]]
        elif action < 0.9:
            value = data[start:end] + b", " + data[start:end]
        else:
            value = data[start : end - 2] + data[end - 1 : end]
        data = data[:start] + value + data[end:]
        return self._with_another_value(data, rng, start) if start < before and draw() < 0.2 else data


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to three damages: bits, deletions, repetitions, insertions, truncation."""
    draw = rng.random
    for _ in range(1 + int(draw() * 3)):
        at = int(draw() * (len(data) + 1))
        to = min(len(data), at + 1 + int(draw() * 20))
        kind = int(draw() * 21)
        if kind == 0:
            data = data[:at]
        elif kind < 6:
            data = data[:at] + data[to:]
        elif kind < 11:
            data = data[:at] + data[at:to] * 2 + data[to:]
        elif kind < 16:
            data = data[:at] + _SNIPPETS[int(draw() * len(_SNIPPETS))] + data[to:]
        elif at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << int(draw() * 8)]) + data[at + 1 :]
    return data
