"""The status page in a real browser: nothing but text, in light, dark and at phone width."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI

from bot.settings import load_settings
from bot.store import Store
from bot.web import status

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
import browser
from web_helpers import serving

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(browser.missing() is not None, reason=browser.missing() or "a browser is here"),
]
NOW = 1_800_000_000.0
EVIL = '</td><img src="http://elsewhere.example/x.png" onerror="alert(1)"><script>alert(2)</script>'


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = load_settings(db=tmp_path_factory.mktemp("status") / "q.db")
    with Store(settings.db) as store:
        store.repos.follow("someone", consented=False, now=NOW)
        store.watching.note_poll("someone", cursor=None, swept=False, error=f"The Hub said {EVIL}", now=NOW)
        for n in range(40):
            repo_id = f"someone/A-Repo-With-A-Rather-Long-Name-That-Has-To-Be-Broken-Somewhere-{n}-GGUF"
            store.watching.mark_due(repo_id, sha=None, now=NOW, follow="someone")
            store.watching.put_off(repo_id, error=f"{repo_id}: {EVIL}", now=NOW, first=0.0)
            store.results.save_pull(repo_id, n, key="k", status="open", url=f"javascript:{EVIL}", now=NOW)
            store.publishing.note(
                repo_id, key="", sha=None, action="wait", reason=f"{n} waits.", num=n, now=NOW, next_at=None, touched=0
            )
    app = FastAPI()
    app.include_router(status.router(settings))
    with serving(app) as address:
        yield f"{address}/status"


@pytest.mark.parametrize(("width", "dark"), [(1360, False), (1360, True), (390, False), (390, True)])
def test_the_page_is_seen_and_inert(url: str, width: int, dark: bool) -> None:
    with browser.page(url, width=width, dark=dark) as (page, seen):
        dialogs: list[str] = []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.get_by_role("heading", name="quantcard status").wait_for()
        assert page.locator("td", has_text=EVIL).count() >= 2, "what is hostile is text"
        assert page.locator("script, img").count() == 0 and dialogs == []
        assert page.locator("tbody a").first.get_attribute("href").startswith("https://")
        assert page.locator("a[href^=javascript]").count() == 0
        # The style is the page's own, let in by its hash.
        dark_now = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark_now is dark
        assert page.locator("thead").first.is_visible() is (width > 1000)
        assert page.get_by_text("and 15 more").count() >= 2
        assert browser.overflow(page) <= 0
        assert seen.errors == [] and seen.outside == []
