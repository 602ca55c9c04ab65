"""A real headless Chromium for the acceptance tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def missing() -> str | None:
    """Why no browser can be started here, or None."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed (pip install playwright)"
    if executable() is None:
        return "chromium is not installed (apt-get install chromium)"
    return None


def executable() -> str | None:
    """The browser on this machine."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@dataclass
class Seen:
    """What went wrong in the page while it was open."""

    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)


@contextmanager
def page(url: str, *, width: int = 1360, height: int = 900, dark: bool = False) -> Iterator[tuple[Any, Seen]]:
    """Open ``url``; gives playwright's page, and what the console and the network complained about.

    Requests to other hosts are refused and noted: the page must work without them.
    """
    from playwright.sync_api import sync_playwright

    seen = Seen()
    host = "{0.scheme}://{0.netloc}/".format(urlsplit(url))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=ARGUMENTS)
        try:
            opened = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
            )

            def route(request: Any) -> None:
                if request.request.url.startswith((host, "data:", "blob:")):
                    request.continue_()
                else:
                    seen.outside.append(request.request.url)
                    request.abort()

            opened.route("**/*", route)
            opened.on("pageerror", lambda error: seen.errors.append(str(error)))
            opened.on(
                "console",
                lambda message: seen.errors.append(message.text) if message.type == "error" else None,
            )
            opened.set_default_timeout(30_000)
            opened.goto(url)
            yield opened, seen
        finally:
            browser.close()


def overflow(opened: Any) -> int:
    """By how many pixels the page is wider than the window."""
    return int(opened.evaluate("document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"))
