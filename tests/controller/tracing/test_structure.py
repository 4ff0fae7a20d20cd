"""The structure of traces that were read, and how readers say that it is damaged."""

from __future__ import annotations

import copy
import json
import zlib

import pytest

from autottt.controller.tracing.store import read_trace
from autottt.controller.tracing.structure import MAX_DEPTH, check_structure
from autottt.ttt_core.errors import TraceError

REMOVED = object()
DAMAGES = [
    (["root"], REMOVED, "root is missing"),
    (["root"], None, "root: expected an object; received None"),
    (["time"], "yesterday", "time: expected a time in ISO 8601; received 'yesterday'"),
    (["content"], 1, "content: expected true or false"),
    (["root", "seconds"], None, "root.seconds: expected a number; received None"),
    (["root", "seconds"], True, "root.seconds: expected a number or null; received True"),
    (["root", "seconds"], float("inf"), "root.seconds: expected a number or null; received inf"),
    (["root", "children"], 5, "root.children: expected a list of objects; received 5"),
    (["root", "children", 0], None, "root.children: expected a list of objects"),
    (["root", "children", 0, "name"], REMOVED, "root.children[0].name is missing"),
    (["root", "children", 0, "at"], "0", "root.children[0].at: expected a number"),
    (["root", "children", 0, "events"], [1], "root.children[0].events: expected a list of objects"),
    (["root", "children", 0, "attributes"], [], "root.children[0].attributes: expected an object"),
    (["root", "children", 0, "attributes", "node"], 5, "root.children[0].attributes.node: expected a text"),
    (["root", "children", 0, "attributes", "in_context"], [], "attributes.in_context: expected an object"),
    (["root", "attributes", "edges"], [["measure"]], "root.attributes.edges: expected a list of pairs of texts"),
    (["root", "attributes", "result"], None, "root.attributes.result: expected an object"),
    (["root", "attributes", "result", "cost"], REMOVED, "root.attributes.result.cost is missing"),
    (["root", "attributes", "policy"], "mine", "root.attributes.policy: expected an object"),
]


def damaged(plain, path, value):
    """The plain form of a trace in which the value of a path is another one, or missing."""
    plain = copy.deepcopy(plain)
    *parents, last = path
    inner = plain
    for name in parents:
        inner = inner[name]
    if value is REMOVED:
        del inner[last]
    else:
        inner[last] = value
    return plain


def stored(plain):
    return zlib.compress(json.dumps(plain).encode())


@pytest.mark.parametrize(("path", "value", "words"), DAMAGES)
def test_a_trace_of_damaged_structure_is_refused_with_the_field(runs, path, value, words):
    body = stored(damaged(runs["vote"].plain, path, value))
    with pytest.raises(TraceError) as raised:
        read_trace(body, "traces.sqlite: trace 7")
    assert str(raised.value).startswith("traces.sqlite: trace 7 is damaged (")
    assert words in str(raised.value)


@pytest.mark.parametrize("name", ["crossfit", "vote", "probed"])
def test_traces_of_runs_are_whole(runs, name):
    assert read_trace(stored(runs[name].plain), "").plain == runs[name].plain


@pytest.mark.parametrize("plain", [[], "trace", None, 5, {}])
def test_json_that_is_no_trace_is_refused(plain):
    with pytest.raises(TraceError, match="is damaged"):
        read_trace(stored(plain), "traces.sqlite: trace 7")


def test_a_tree_that_is_too_deep_to_walk_is_refused(runs):
    plain = copy.deepcopy(runs["vote"].plain)
    span = plain["root"]
    for _ in range(MAX_DEPTH + 1):
        span["children"] = [{"name": "read", "at": 0, "seconds": 0, "status": "ok"}]
        span = span["children"][0]
    with pytest.raises(ValueError, match=f"at most {MAX_DEPTH} deep"):
        check_structure(plain)
