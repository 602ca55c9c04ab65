"""The preview of a card in a real browser: as it would look, inert, from nowhere else; light, dark and phone width."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.intake.repo_config import RepoConfig
from bot.publish.drawing import draw
from bot.publish.plots import pictures
from bot.publish.preview_page import ANCHOR, Page, render_page
from bot.publish.section import make_section
from bot.web.preview import serving

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "unit"))
import browser
from rows import LADDER, LINKS, row

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(browser.missing() is not None, reason=browser.missing() or "a browser is here"),
]
CARD = (
    "---\nlicense: mit\n---\n# A card\n\n"
    "<img src='https://elsewhere.example/x.png' alt='far away' onerror='alert(1)'>\n"
    "<script>alert(2)</script>\n\n| a | b |\n|---|---|\n" + f"| {'word ' * 60}| `{'x' * 300}` |\n\n" + "y" * 400 + "\n"
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    rows = [row(label) for label in LADDER]
    drawn = {found.plot: draw(found) for found in pictures(rows, RepoConfig())}
    made = make_section(rows, RepoConfig(), project_url="https://q.example", plots=tuple(drawn), **LINKS)
    page = Page(
        "owner/Model-GGUF",
        LINKS["endpoint"],
        CARD,
        made.on(CARD).card,
        "[bot] quantcard: measurements",
        "**Adds** a section",
        {plot.path: data for plot, data in drawn.items()},
        "A preview.",
    )
    with serving(render_page(page)) as address:
        yield address


@pytest.mark.parametrize(("width", "dark"), [(1400, False), (1400, True), (390, False), (390, True)])
def test_the_preview_is_seen_and_inert(url: str, width: int, dark: bool) -> None:
    with browser.page(url, width=width, dark=dark) as (page, seen):
        dialogs: list[str] = []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.get_by_role("heading", name="Which file should I pick?").wait_for()
        plot = page.locator("img[src^='data:image/png']").first
        assert plot.evaluate("one => one.complete && one.naturalWidth") == 1280
        box = plot.bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
        assert page.get_by_alt_text("far away").count() == 1
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") is not dark
        assert page.locator(".diff .add").count() > 20 and page.locator("script").count() == 0
        assert browser.overflow(page) <= 0
        # Side by side where there is room, else below.
        card, diff = (page.locator(name).bounding_box() for name in ("#card", "#diff"))
        assert card and diff and (diff["x"] > card["x"] + card["width"] - 1) is (width > 1240)
        page.get_by_role("link", name="Section", exact=True).click()
        assert page.evaluate("scrollY") > 100 and page.locator(f"#{ANCHOR}").count() == 1
        assert seen.errors == [] and seen.outside == [] and dialogs == []
