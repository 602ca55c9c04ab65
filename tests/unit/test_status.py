"""The status report: what it counts, what strangers may see of it, and that ten thousand repos change nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bot.commands.status import _summary, _tables
from bot.cycle import CycleReport
from bot.hub.budget import Budget
from bot.intake.watch import PollReport
from bot.settings import Settings, load_settings
from bot.status import LISTED, public_report, remember_cycle, status_report
from bot.status_report import StatusReport, WebhookCounts, ago, scrub
from bot.store import Store
from bot.store.switch import pause
from bot.tables import out
from bot.web.status import policy, render
from core.errors import HubAuthError, HubError, HubNotFoundError

NOW = 1_800_000_000.0
EVIL = '<img src=x onerror="alert(1)">'
#: Elements of the page that say nothing of their own.
VOID = {"meta", "link", "br"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(db=tmp_path / "q.db", hf_token="hf_secretsecret", webhook_secret="long random text")


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with Store(settings.db) as found:
        yield found


class Door:
    """What remember_cycle asks of a Hub."""

    def __init__(self, windows: dict[str, tuple[int, int, int]]) -> None:
        self.budget = Budget(clock=lambda: 0.0)
        for resource, (limit, left, seconds) in windows.items():
            said = f'"{resource}";r={left};t={seconds}'
            window = f'"fixed window";"{resource}";q={limit};w=300'
            self.budget.note("GET", "/api/x", {"ratelimit": said, "ratelimit-policy": window})


def remember(store: Store, report: CycleReport, *, windows: dict[str, tuple[int, int, int]] | None = None) -> None:
    door: Any = Door(windows or {})
    remember_cycle(store, report, door, started=NOW - 100, now=NOW - 60)


def look_into(store: Store, repo_id: str, **config: Any) -> None:
    store.watching.mark_due(repo_id, sha="a" * 40, now=NOW, follow=repo_id.split("/")[0])
    store.repos.save_repo(
        repo_id, sha="a" * 40, last_modified=None, source="follow", note=None, base_model=None, config=config, now=NOW
    )


def decide(store: Store, repo_id: str, action: str, reason: str) -> None:
    store.publishing.note(
        repo_id, key="", sha=None, action=action, reason=reason, num=None, now=NOW, next_at=None, touched=0
    )


def busy(store: Store) -> None:
    """Something of everything."""
    for owner in ("up", "org"):
        store.repos.follow(owner, consented=owner == "org", now=NOW)
    store.watching.note_poll("up", cursor=None, swept=True, error=None, now=NOW - 300)
    store.watching.note_poll("org", cursor=None, swept=False, error=f"The Hub said {EVIL}", now=NOW)
    for name in ("up/a", "up/b", "up/c", "up/d", "org/a"):
        look_into(store, name)
    look_into(store, "org/no", enabled=False)
    look_into(store, "org/bad", enabled=False, problem=f"line 3: {EVIL}")
    store.watching.mark_due("up/new", sha=None, now=NOW - 30, follow="up")
    store.watching.set_state("up/d", "private", note="It is private.", now=NOW)
    store.watching.put_off("up/new", error="The Hub refused up/new.", now=NOW, first=3600.0)
    store.results.save_pull("up/a", 1, key="k", status="open", url="https://hub/up/a/discussions/1", now=NOW - 7200)
    store.results.save_pull("up/b", 2, key="k", status="closed", url=None, now=NOW)
    store.results.save_pull("org/a", 3, key="k", status="merged", url=None, now=NOW)
    decide(store, "up/a", "nothing", f"Pull 1 is as it should be {EVIL}.")
    for name in ("up/b", "up/c", "up/d"):
        decide(store, name, "wait", "The introduction to up is open.")
    store.results.add_request("some/one", "person", now=NOW)
    report = CycleReport(poll=PollReport(seen=7, changed=["up/a"]), jobs_done=3)
    report.errors = [(f"up/{n}", HubError(f"Failed at /var/lib/quantcard/x-{n}.db with hf_abcdef.")) for n in range(60)]
    remember(store, report, windows={"api": (1000, 400, 200), "resolvers": (5000, 10, 30)})


def test_an_empty_database_has_a_status(store: Store, settings: Settings) -> None:
    report = status_report(store, settings, NOW)
    assert report.follows == [] and report.repos == {} and report.last_cycle is None and report.more == {}
    assert report.publishing and report.webhooks.open and report.webhooks.taken == 0
    assert "Nothing is followed yet." in render(report, endpoint="https://hub")


def test_everything_is_counted(store: Store, settings: Settings) -> None:
    busy(store)
    report = status_report(store, settings, NOW, webhooks=WebhookCounts(open=True, taken=5, last_at=NOW))
    assert [(one.name, one.kind, one.consented, bool(one.error)) for one in report.follows] == [
        ("org", "owner", True, True),
        ("up", "owner", False, False),
    ]
    assert report.follows[1].polled_at == report.last_poll == NOW - 300
    assert report.follows[1].repos == 4, "a private one is not watched, one to be looked into is"
    assert report.repos == {"live": 7, "private": 1}
    assert (report.repos_due, report.headers_waiting, report.requests_waiting) == (1, 0, 1)
    assert [(one.repo_id, one.until) for one in report.repo_errors] == [("up/new", NOW + 3600)]
    assert report.pull_counts == {"closed": 1, "merged": 1, "open": 1}
    assert [(one.repo_id, one.num) for one in report.pulls] == [("up/a", 1)]
    assert [(one.action, one.repos, one.repo_id) for one in report.reasons] == [
        ("wait", 3, "up/b"),
        ("nothing", 1, "up/a"),
    ]
    assert [(one.repo_id, one.how, one.num) for one in report.refusals] == [
        ("org/no", "disabled", None),
        ("up/b", "closed", 2),
    ]
    assert [one.repo_id for one in report.config_problems] == ["org/bad"]
    assert report.last_cycle and report.last_cycle.seconds == 40 and report.last_cycle.repos_changed == 1
    assert report.last_cycle.errors_total == 60 and len(report.last_cycle.errors) == 50
    assert report.webhooks.taken == 5
    assert {one.resource: (one.remaining, one.resets_at) for one in report.budget} == {"api": (400, NOW + 140)}, (
        "a window that is over says nothing"
    )
    assert report.paused is None
    pause(store, reason="", now=NOW)
    paused = status_report(store, settings, NOW).paused
    assert paused and paused.at == NOW


def test_a_pull_after_a_closed_one_is_no_refusal(store: Store, settings: Settings) -> None:
    look_into(store, "up/a")
    store.results.save_pull("up/a", 1, key="k", status="closed", url=None, now=NOW)
    store.results.save_pull("up/a", 2, key="k", status="open", url=None, now=NOW)
    assert status_report(store, settings, NOW).refusals == []
    store.db.conn.execute("UPDATE repos SET stopped = 'owner'")
    assert [one.by for one in status_report(store, settings, NOW).refusals] == ["owner"]


def test_strangers_see_no_secret_no_path_and_no_private_repo(store: Store, settings: Settings) -> None:
    busy(store)
    remember(
        store,
        CycleReport(errors=[
            ("up/d", HubNotFoundError("It is gone.")),
            ("polling", HubError("The Hub has nothing for https://hub/api/models/UP/D/tree/main.")),
            ("token", HubAuthError(f"hf_secretsecret, {settings.webhook_secret}, {settings.db.absolute()} ~/.cache/x")),
        ]),
    )  # fmt: skip
    told = public_report(store, settings, NOW)
    text = told.model_dump_json()
    assert not re.search(r"up/d\b", text, re.IGNORECASE)
    for secret in (settings.webhook_secret, "secretsecret", str(settings.db.parent), ".cache"):
        assert secret not in text
    assert told.last_cycle and [one.what for one in told.last_cycle.errors] == ["token"]
    assert told.repos["private"] == 1, "how many there are is no secret"
    full = status_report(store, settings, NOW).model_dump_json()
    assert "up/d" in full.lower() and ".cache" in full, "the operator sees it"


def test_what_is_hidden_is_counted(store: Store, settings: Settings) -> None:
    for name in ("up/a", "up/d"):
        look_into(store, name)
        store.results.save_pull(name, 1, key="k", status="open", url=None, now=NOW)
    store.watching.set_state("up/d", "private", note=None, now=NOW)
    told = public_report(store, settings, NOW)
    assert [one.repo_id for one in told.pulls] == ["up/a"] and told.more["pulls"] == 1


def test_lists_are_bounded_and_say_so(store: Store, settings: Settings) -> None:
    for n in range(LISTED + 7):
        look_into(store, f"up/r{n:03}", problem="p" * 5000)
        store.repos.follow(f"o{n:03}", consented=False, now=NOW)
        store.results.save_pull(f"up/r{n:03}", 1, key="k", status="open", url=None, now=NOW)
    report = status_report(store, settings, NOW)
    assert len(report.pulls) == len(report.follows) == len(report.config_problems) == LISTED
    assert report.more == {"pulls": 7, "follows": 7, "config_problems": 7}
    assert all(len(one.problem) <= 400 for one in report.config_problems)
    assert render(report, endpoint="https://hub").count("and 7 more") == 3


def test_controls_never_reach_a_terminal_or_the_page(store: Store, settings: Settings) -> None:
    look_into(store, "up/a", problem="a\x1b[2Jb\u202ec\nd")
    [one] = status_report(store, settings, NOW).config_problems
    assert one.problem == "a [2Jb c d"


@pytest.mark.parametrize(
    "value", ["", "null", "[]", "{", '{"at": "soon"}', '{"budget": {"windows": {"api": 3}}, "at": 1}']
)
def test_what_another_version_wrote_breaks_nothing(store: Store, settings: Settings, value: str) -> None:
    for name in ("last_cycle", "webhooks"):
        store.results.put(name, value)
    assert status_report(store, settings, NOW).budget == []


def test_the_terminal_tells_the_same(store: Store, settings: Settings) -> None:
    busy(store)
    pause(store, reason="wrong figures", now=NOW - 120)
    with out.capture() as shown:
        report = status_report(store, settings, NOW)
        _summary(report)
        _tables(report)
    text = shown.get()
    for said in (
        "Writing is paused (2 min ago): wrong figures", "Following 2; last poll 5 min ago", "7 live, 1 private",
        "Request budget (api): 400 of 1000 left", "The introduction to up is open.", "closed pull 2", "and 10 more",
    ):  # fmt: skip
        assert said in text, said


class Reader(HTMLParser):
    """Tags and addresses of a page; fails where tags do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("href", "src")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_the_page_is_inert(store: Store, settings: Settings) -> None:
    busy(store)
    page = render(public_report(store, settings, NOW), endpoint="https://hub")
    found = read(page)
    assert not {"script", "img", "iframe", "form", "input"} & set(found.tags)
    assert "&lt;img src=x" in page and EVIL not in page
    assert all(link == "data:," or link.startswith("https://hub/") for link in found.links)
    assert found.tags.count("th") > 10 and "progress" not in found.tags
    assert "script-src" not in policy(page) and "default-src 'none'" in policy(page) and "unsafe" not in policy(page)
    assert re.search(r"style-src 'sha256-[A-Za-z0-9+/]{43}='", policy(page))


def test_the_json_is_the_report(store: Store, settings: Settings) -> None:
    busy(store)
    report = status_report(store, settings, NOW)
    assert StatusReport.model_validate(json.loads(report.model_dump_json())) == report


@pytest.mark.parametrize(
    ("then", "said"),
    [(None, "never"), (NOW, "0 s ago"), (NOW - 89, "89 s ago"), (NOW - 90, "2 min ago"), (NOW - 7200, "2 h ago"),
     (NOW - 86400 * 3, "3 d ago"), (NOW + 120, "in 2 min")],
)  # fmt: skip
def test_ago(then: float | None, said: str) -> None:
    assert ago(then, NOW) == said


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("The database /var/lib/q/x.db can't", "The database … can't"),
        ("owner/name/file.gguf is https://hub/owner/name", "owner/name/file.gguf is https://hub/owner/name"),
        ("token hf_AbC123 is", "token hf_… is"),
        ("(~/.cache/x/y)", "(…)"),
        ("file:///etc/passwd!", "…"),
        ("1/2 and a / b", "1/2 and a / b"),
    ],
)
def test_scrub(text: str, kept: str) -> None:
    assert scrub(text) == kept


def test_a_held_queue_and_the_months_money_are_told(store: Store, settings: Settings, capsys: Any) -> None:
    store.jobs.pause("a new disk")
    settings = settings.model_copy(update={"runners": ["local", "hf-jobs"], "hf_jobs_monthly_usd": 40.0})
    report = status_report(store, settings, NOW)
    assert report.queue_paused == "a new disk" and report.money
    assert (report.money.spent, report.money.reserved, report.money.limit) == (0.0, 0.0, 40.0)
    assert status_report(store, settings.model_copy(update={"runners": ["local"]}), NOW).money is None
