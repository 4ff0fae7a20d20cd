"""A headless Chromium without a network. Where it or Playwright is missing, the tests are skipped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Opened:
    """A page in the browser."""

    tab: Any
    """Playwright's page."""
    messages: list[str] = field(default_factory=list)
    """What the console said, and errors of scripts."""
    requests: list[str] = field(default_factory=list)
    """Addresses that the page asked for, its own file excepted."""

    def text(self) -> str:
        """What a person reads, with single spaces."""
        return " ".join(self.tab.evaluate("document.body.innerText").split())


Open = Callable[..., Opened]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is missing; run `make test-browser`")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("Chromium is not installed: `apt-get install chromium` on Debian")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # which Chromium demands of root
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any, tmp_path: Path) -> Iterator[Open]:
    """A function that opens an HTML text as a file, with the network off."""
    contexts = []

    def open_(text: str, width: int = 1600, scheme: str = "light") -> Opened:
        file = tmp_path / f"{len(contexts)}.html"
        file.write_text(text, "utf-8")
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        opened = Opened(context.new_page())
        opened.tab.on("console", lambda message: opened.messages.append(message.text))
        opened.tab.on("pageerror", lambda error: opened.messages.append(str(error)))
        opened.tab.on("request", lambda request: opened.requests.append(request.url))
        opened.tab.goto(file.as_uri())
        opened.requests = [url for url in opened.requests if url not in (file.as_uri(), "data:,")]
        return opened

    yield open_
    for context in contexts:
        context.close()
