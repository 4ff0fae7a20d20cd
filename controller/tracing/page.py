"""A trace as one HTML page: no network, no framework, readable by keyboard and by screen readers.

Knows nothing about where traces are stored, and little about what they contain: view.py says what a page shows, and
components.js and page.js draw it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...policies.policy import Policy
from .feature_rows import explained_decision
from .html_page import TRACE_FILES, as_html, html_page
from .trace import Trace
from .view import view_of


def page_of(trace: Trace, strategies: Sequence[str], policy: Policy | None = None) -> str:
    """The page of a trace; `strategies` are the nodes that the graph could choose.

    Contributions of features are those of `policy`, where it decided the run, else of the installed policy that did.
    Raises `TraceError` for a trace without content.
    """
    trace.require_content("the page")
    view = view_of(trace, strategies, explained_decision(trace, policy))
    words = "".join(f"<p>{as_html(sentence)}</p>" for sentence in view.pop("words"))
    return html_page(str(view["title"]), view, f'<section id="words"><h2>In words</h2>{words}</section>', TRACE_FILES)
