"""A real browser for tests of pages: Debian's Chromium, headless, driven by playwright.

def test_it_shows_the_answer(open_page):
    page = open_page("http://127.0.0.1:8000/").page    # playwright's Page
    page.get_by_role("button", name="Choose").click()
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Needs = Callable[[str, str], Path]

_ARGUMENTS = (
    "--no-sandbox",  # it needs rights that root in a container does not have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--force-color-profile=srgb",
    # Whatever a page asks of another host fails at once; the test sees the request, the host does not.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
_TIMEOUT_MS = 20_000


@dataclass
class Visit:
    """An open page and what it did since it was opened.

    Attributes:
        requests: method and URL of every request, in order; `data:` and `blob:` URLs are no requests.
        errors: what its scripts threw and what it wrote to the console as errors, refused requests among it.
            A test that expects some takes them out, for example with `errors.clear()`.
    """

    page: Page
    requests: list[tuple[str, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def foreign_requests(self) -> list[tuple[str, str]]:
        """The requests that went elsewhere than where the page came from."""
        own = urlsplit(self.page.url)
        return [
            (method, url)
            for method, url in self.requests
            if (urlsplit(url).scheme, urlsplit(url).netloc) != (own.scheme, own.netloc)
        ]


OpenPage = Callable[..., Visit]


# Not for the whole session: while playwright runs, no other event loop can run in this thread.
@pytest.fixture(scope="module")
def chromium(needs: Needs) -> Iterator[Browser]:
    """Headless Chromium; the test is skipped where it or playwright is missing, and fails under CI=true."""
    name = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), "chromium")
    program = needs(name, "apt-get install chromium")
    if importlib.util.find_spec("playwright") is None:
        message = "needs playwright, which is not installed: pip install playwright"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(_ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[OpenPage]:
    """open_page(url, **options) → the Visit of a fresh profile, options being those of `new_context`.

    For example `viewport={"width": 390, "height": 800}`, `color_scheme="dark"`, `locale="ar"`. When the test
    is over, it fails if a page has errors that the test did not take out, or asked anything of another host.
    """
    visits: list[Visit] = []
    contexts = []

    def open_(url: str, **options: Any) -> Visit:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        context.set_default_timeout(_TIMEOUT_MS)
        visit = Visit(context.new_page())
        visits.append(visit)
        visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
        visit.page.on(
            "console",
            lambda message: visit.errors.append(message.text) if message.type == "error" else None,
        )
        visit.page.on("request", lambda request: _record(visit, request.method, request.url))
        visit.page.goto(url)
        return visit

    yield open_
    foreign = [request for visit in visits for request in visit.foreign_requests()]
    errors = [error for visit in visits for error in visit.errors]
    for context in contexts:
        context.close()
    assert not foreign, "a page asked something of another host"
    assert not errors, "a page wrote errors to its console"


def _record(visit: Visit, method: str, url: str) -> None:
    if not url.startswith(("data:", "blob:")):
        visit.requests.append((method, url))
