"""The page in a real browser: what somebody sees and does, in light, dark and at phone width."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from core.dataset import MEASUREMENTS_PATH, QueueRow, RequestAck
from space.data import LocalSource, Results
from space.serve import serve

sys.path.insert(0, str(Path(__file__).parent))
import browser
from sample_rows import MODEL, hostile, row, sample, write

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(browser.missing() is not None, reason=browser.missing() or "a browser is here"),
]
asked: list[tuple[str, str | None]] = []


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("published")
    many = [
        row(repo_id="someone/Many-GGUF", label=f"X{i:02}", kld_mean=0.5 + i, base_model="m/many") for i in range(40)
    ]
    write(folder / MEASUREMENTS_PATH, [*sample(), hostile(), *many])

    def submit(repo: str, user: str | None) -> RequestAck:
        asked.append((repo, user))
        return RequestAck(accepted=True, message=f"{repo} will be measured.", position=2)

    job = QueueRow(
        id=1, kind="quality", repo_id="someone/Many-GGUF", variant="x.gguf", state="running", progress=0.4,
        updated_at=datetime.now(UTC),
    )  # fmt: skip
    app = serve(Results(LocalSource(folder)), port=0, submit=submit, queue=lambda: [job], block=False)
    yield app.url
    app.close()


def rows(page: Any) -> Any:
    return page.locator("#board tbody tr")


def loaded(page: Any, n: int | None = None) -> None:
    """Wait for the table, and for ``n`` rows in it."""
    rows(page).first.wait_for()
    if n is not None:
        page.wait_for_function(f"document.querySelectorAll('#board tbody tr').length === {n}")


def fine(page: Any, seen: browser.Seen) -> None:
    """Nothing wider than the window, nothing on the console, nothing asked of other hosts."""
    assert browser.overflow(page) <= 0
    assert seen.errors == [] and seen.outside == []


@pytest.mark.parametrize(("width", "dark"), [(1360, False), (1360, True), (390, False), (390, True)])
def test_table_and_plot_are_seen(url: str, width: int, dark: bool) -> None:
    with browser.page(f"{url}/?model={MODEL}", width=width, dark=dark) as (page, seen):
        loaded(page, 26)
        assert "70 results" in page.locator(".qc-status").inner_text()
        page.locator("#plot .scatterlayer .point").first.wait_for(state="attached")
        assert page.locator("#plot .scatterlayer .point").count() == 24
        assert page.locator("#board .qc-front").count() >= 8
        fine(page, seen)


def test_filters_sorting_paging_and_the_address(url: str) -> None:
    with browser.page(url) as (page, seen):
        loaded(page, 50)
        page.get_by_role("button", name="More ›").click()
        loaded(page, 19)
        page.wait_for_url("**page=2**")
        page.get_by_label("Search").fill("iq4 unsloth")
        loaded(page, 1)
        page.wait_for_url("**q=iq4+unsloth**")
        assert "page=" not in page.url
        page.get_by_label("Search").fill("unsloth")
        loaded(page, 8)
        page.locator("#board [data-sort=size]").click()
        page.wait_for_url("**sort=size**")
        page.locator("#board th[aria-sort=ascending] [data-sort=size]").wait_for()
        assert rows(page).first.locator("td a").first.inner_text() == "Q2_K"
        address = page.url
        fine(page, seen)
    with browser.page(address) as (page, seen):
        loaded(page, 8)
        assert rows(page).first.locator("td a").first.inner_text() == "Q2_K"
        assert page.get_by_label("Search").input_value() == "unsloth"
        fine(page, seen)


def test_a_measurement_opens_and_can_be_shared(url: str) -> None:
    with browser.page(url) as (page, seen):
        loaded(page)
        page.locator("#board [data-row]", has_text="Q6_K").first.click()
        page.locator(".qc-detail h2", has_text="Q6_K").wait_for()
        assert "quantcard measure quality" in page.locator(".qc-copy pre").inner_text()
        page.wait_for_url("**row=**")
        address = page.url
        page.get_by_role("tab", name="Leaderboard").click()
        page.wait_for_function("!window.location.search.includes('row=')")
        fine(page, seen)
    with browser.page(address, width=390) as (page, seen):
        page.locator(".qc-detail h2", has_text="Q6_K").wait_for()
        fine(page, seen)


def test_a_request_is_acknowledged(url: str) -> None:
    with browser.page(url, width=390) as (page, seen):
        loaded(page)
        page.get_by_role("tab", name="Request a benchmark").click()
        field = page.locator("#repo input, #repo textarea")
        field.fill("not a repo")
        page.locator(".qc-hint", has_text="one slash").wait_for()
        field.fill("https://huggingface.co/someone/New-GGUF/tree/main")
        page.locator(".qc-hint", has_text="✓ someone/New-GGUF").wait_for()
        page.locator("#ask").click()
        page.locator("#answer", has_text="someone/New-GGUF will be measured. 2 jobs ahead of it.").wait_for()
        assert asked[-1] == ("someone/New-GGUF", None)
        fine(page, seen)


def test_the_queue_and_the_explanations_are_seen(url: str) -> None:
    with browser.page(url, width=390, dark=True) as (page, seen):
        loaded(page)
        page.get_by_role("tab", name="Queue").click()
        page.locator("#queue td", has_text="someone/Many-GGUF").wait_for()
        fine(page, seen)
        page.get_by_role("tab", name="About").click()
        page.get_by_text("What KLD can't tell").wait_for()
        fine(page, seen)


def test_hostile_strings_stay_text(url: str) -> None:
    with browser.page(f"{url}/?row={hostile().id}") as (page, seen):
        dialogs: list[str] = []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.locator(".qc-detail h2", has_text="<script>alert(1)</script>").wait_for()
        assert page.locator(".qc-detail h2 small").inner_text().startswith("a|b`${alert(2)}`{{this}}")
        page.get_by_role("tab", name="Leaderboard").click()
        page.get_by_label("Search").fill("evil")
        loaded(page, 1)
        assert page.locator("#board img, .qc-detail img, #board script").count() == 0
        assert dialogs == []
        fine(page, seen)
