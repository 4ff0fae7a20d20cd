"""The HTML of a trace's page: it is well-formed and small, loads nothing, and nothing in a task is code in it.

What a browser makes of it is tested in tests/browser.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from autottt.controller import tracing
from autottt.controller.tracing.trace import Trace
from autottt.policies.policy import FixedPolicy
from autottt.ttt_core.errors import TraceError
from autottt.ttt_core.tasks.html import ARC_COLOURS
from tests.controller.tracing.sample_traces import (
    GRID,
    HOSTILE,
    failed_trace,
    long_trace,
    page,
    small_learner,
    span,
    trace_with,
    traces_of,
)

VOID = {"meta", "link", "br"}


class Checker(HTMLParser):
    """Collects the elements with their texts, and refuses one that is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


def parsed(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert not checker.open
    return checker


def data_of(text: str) -> dict:
    """What the script of a page draws."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """The page of a run of a task, by its kind."""
    traces = traces_of(small_learner(), FixedPolicy("ttt_crossfit"), [GRID, HOSTILE])
    return {kind: page(trace) for kind, trace in zip(("grid", "text"), traces, strict=True)}


@pytest.mark.parametrize("kind", ["grid", "text"])
def test_a_page_is_well_formed_and_loads_nothing(pages, kind):
    elements = parsed(pages[kind]).elements
    assert not [tag for tag, attributes in elements if "src" in attributes or tag in ("img", "iframe")]
    links = [a["href"] for tag, a in elements if tag == "link"]
    assert links == ["data:,"]
    assert [a for tag, a in elements if tag == "script"] == [{"type": "application/json", "id": "data"}, {}]


@pytest.mark.parametrize("kind", ["grid", "text"])
def test_the_policy_of_a_page_allows_its_own_script_and_style_and_no_network(pages, kind):
    checker = parsed(pages[kind])
    policy = next(a["content"] for _, a in checker.elements if a.get("http-equiv") == "Content-Security-Policy")
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert directives.keys() == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}
    assert directives["default-src"] == directives["base-uri"] == directives["form-action"] == "'none'"
    assert directives["img-src"] == "data:"
    for name, text in (("script-src", checker.texts["script"][-1]), ("style-src", "".join(checker.texts["style"]))):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert directives[name] == f"'sha256-{digest}'"


@pytest.mark.parametrize("kind", ["grid", "text"])
def test_no_element_has_code_or_style_of_its_own(pages, kind):
    attributes = {name for _, a in parsed(pages[kind]).elements for name in a}
    assert not [name for name in attributes if name.startswith("on") or name == "style"]


def test_texts_of_a_task_are_no_code(pages):
    assert "<script>alert" not in pages["text"]
    assert "<b>" not in pages["text"]
    data = data_of(pages["text"])
    assert data["task"]["query"] == "</pre><img src=x>"
    assert data["task"]["demonstrations"][0]["input"] == "<script>alert(1)</script>"


def test_a_page_says_in_words_what_happened_without_its_script(pages):
    text = unescape(re.sub("<script.*?</script>", "", pages["grid"], flags=re.DOTALL))
    assert "Path: measure -> decide -> ttt_crossfit -> judge" in text
    assert "held-out demonstrations right" in text
    assert "The weights are unchanged" in text


def test_half_of_a_surrogate_pair_can_be_written():
    task = {"kind": "text", "demonstrations": [], "query": "\ud83d", "answer": None, "id": "\ud83d"}
    text = page(trace_with(span("run", attributes={"task": task, "edges": []})))
    assert data_of(text.encode("utf-8").decode("utf-8"))["task"]["query"] == "\ud83d"


def test_a_number_that_is_not_finite_is_null():
    node = span("measure", attributes={"node": "measure", "difficulty": float("nan")})
    assert "NaN" not in page(trace_with(span("run", attributes={"edges": []}, children=[node])))


def test_a_page_of_a_long_run_is_below_two_megabytes():
    text = page(long_trace())
    assert len(text.encode()) < 2 << 20
    assert text.count("word word") >= 10
    parsed(text)


def test_a_page_of_very_long_prompts_is_below_two_megabytes_and_says_what_is_left_out():
    text = page(long_trace(prompts=60))
    assert len(text.encode()) < 2 << 20
    assert "characters are left out; `autottt trace export` has them" in text
    assert {f"prompt{number} " in text for number in range(60)} == {True}


def test_a_trace_without_content_has_no_page():
    with pytest.raises(TraceError, match="without the content"):
        page(trace_with(span("run"), content=False))


def test_a_run_that_failed_before_its_task_was_read_has_a_page():
    data = data_of(page(failed_trace()))
    assert data["summary"][0]["headline"] == "Refused"
    assert data["task"] == {}


def test_both_drawings_of_grids_have_the_same_colours():
    code = (Path(tracing.__file__).parent / "components.js").read_text("utf-8")
    assert tuple(json.loads(re.search(r"ARC_COLOURS = (\[.*?\])", code)[1])) == ARC_COLOURS


def test_the_page_of_a_trace_as_recorded_is_that_of_the_trace_as_stored():
    trace = long_trace()
    assert page(Trace(trace.plain)) == page(trace.as_stored())
