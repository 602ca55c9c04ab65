"""Webhooks: what a payload means, what is written of it, how many get through, and what is registered at the Hub."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.bell import Bell
from bot.hub.webhooks import Hook, Item, Plan, hook_url, plan_sync, watch_items
from bot.intake.webhook import Wake, act, read_payload
from bot.store import Store
from bot.web.hooks import Bucket
from core.errors import SettingsError

REPO, A, B = "up/M-GGUF", "a" * 40, "b" * 40
NOW = 1_800_000_000.0


def told(scope: str, *, kind: str = "model", name: Any = REPO, refs: Any = None, **more: Any) -> dict[str, Any]:
    repo = {"type": kind, "name": name, "private": more.pop("private", False)}
    return {"event": {"action": "update", "scope": scope}, "repo": repo, "updatedRefs": refs, **more}


def main(sha: Any = A) -> list[dict[str, Any]]:
    return [{"ref": "refs/pr/3", "newSha": B}, {"ref": "refs/heads/main", "oldSha": B, "newSha": sha}]


def pull(num: Any = 3, *, is_pull: Any = True, said_by: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"discussion": {"num": num, "isPullRequest": is_pull, "author": {"id": "bot"}}}
    return found | ({"comment": {"author": {"id": said_by}}} if said_by else {})


@pytest.mark.parametrize(
    ("payload", "wake"),
    [
        (told("repo.content", refs=main()), Wake("content", REPO, sha=A)),
        (told("repo.content", refs=main(), private=True), Wake("content", REPO, sha=A, private=True)),
        (told("repo.content", refs=main(None)), Wake("content", REPO)),
        (told("repo.content", refs=main("../../etc")), Wake("content", REPO)),
        (told("repo.content.lfs", refs=main()), Wake("content", REPO, sha=A)),
        (told("repo.content", refs=[{"ref": "refs/pr/1", "newSha": A}]), None),
        (told("repo.content", refs=[{"ref": "refs/heads/mainly", "newSha": A}]), None),
        (told("repo.content", refs="refs/heads/main"), None),
        (told("repo.content", refs=[1, None]), None),
        (told("repo.content", refs=main(), kind="dataset"), None),
        (told("repo.content", refs=main(), name="no-owner"), None),
        (told("repo.content", refs=main(), name="../../x"), None),
        (told("repo.content", refs=main(), name=["a/b"]), None),
        (told("repo"), Wake("repo", REPO)),
        (told("repo.config"), None),
        (told("repo.config", updatedConfig={"private": True}, private=True), Wake("repo", REPO, private=True)),
        (told("repo.config", updatedConfig={"xetEnabled": True}), None),
        (told("discussion", **pull()), Wake("pull", REPO, num=3)),
        (told("discussion.comment", **pull(said_by="owner")), Wake("pull", REPO, num=3)),
        (told("discussion.comment", **pull(said_by="bot")), None),
        (told("discussion", **pull(is_pull=False)), None),
        (told("discussion", **pull(is_pull=1)), None),
        (told("discussion", **pull(True)), None),
        (told("discussion", **pull(0)), None),
        (told("discussion", **pull(1 << 70)), None),
        (told("discussion", **pull("3")), None),
        (told("discussion"), None),
        (told("discussions"), None),
        ({"event": 1, "repo": {"type": "model", "name": REPO}}, None),
        ({"event": {"scope": "repo"}, "repo": []}, None),
        ({}, None),
        ([], None),
        ("repo", None),
        (None, None),
    ],
)
def test_read_payload(payload: object, wake: Wake | None) -> None:
    assert read_payload(payload) == wake


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(["repo", "repo.content", "discussion", "discussion.comment", "repo.config"]),
    st.dictionaries(st.sampled_from(["updatedRefs", "discussion", "comment", "updatedConfig", "repo"]), JSON),
)
def test_no_payload_breaks_us(scope: str, parts: dict[str, Any]) -> None:
    found = read_payload(told(scope) | parts)
    assert found is None or (found.repo_id == REPO and (found.num is None or found.num > 0))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "q.db") as found:
        found.repos.follow("up", consented=False, now=NOW)
        yield found


def due(store: Store) -> dict[str, str | None]:
    return {one.id: one.due_sha for one in store.watching.due(now=NOW + 1, limit=100)}


def looked_at(store: Store, repo_id: str, sha: str) -> None:
    store.repos.save_repo(
        repo_id, sha=sha, last_modified=None, source="follow", note=None, base_model=None, config={}, now=NOW
    )


def test_a_push_marks_a_followed_repo_once(store: Store) -> None:
    assert act(store, Wake("content", REPO, sha=A), now=NOW)
    assert act(store, Wake("content", REPO, sha=A), now=NOW)
    assert due(store) == {REPO: A}
    looked_at(store, REPO, A)
    assert due(store) == {}
    assert not act(store, Wake("content", REPO, sha=A), now=NOW), "a replay of what was looked into"
    assert due(store) == {}
    assert act(store, Wake("content", REPO, sha=B), now=NOW) and due(store) == {REPO: B}


def test_a_push_is_looked_into_before_a_backlog(store: Store) -> None:
    store.watching.mark_due("up/old", sha=A, now=NOW, follow="up", last_modified="2020-01-01T00:00:00+00:00")
    act(store, Wake("content", REPO, sha=A), now=NOW)
    assert list(due(store)) == [REPO, "up/old"]


@pytest.mark.parametrize(
    ("follow", "repo_id", "covered"),
    [
        ("Up2", "up2/x", True),
        ("other/One-GGUF", "other/one-gguf", True),
        ("other/One-GGUF", "other/Two-GGUF", False),
        ("someone", "someone-else/x", False),
        ("%", "any/x", False),
    ],
)
def test_only_what_is_followed_is_written(store: Store, follow: str, repo_id: str, covered: bool) -> None:
    store.repos.follow(follow, consented=False, now=NOW)
    assert act(store, Wake("content", repo_id, sha=A), now=NOW) is covered
    assert (store.repos.repo(repo_id) is not None) is covered


def test_a_collections_repo_is_known_by_having_been_in_it(store: Store) -> None:
    store.repos.follow("collections/c/t-1", consented=False, now=NOW)
    assert not act(store, Wake("content", "else/x", sha=A), now=NOW)
    store.watching.mark_due("else/x", sha=None, now=NOW, follow="collections/c/t-1")
    looked_at(store, "else/x", A)
    assert act(store, Wake("content", "else/x", sha=B), now=NOW)
    store.repos.unfollow("collections/c/t-1")
    looked_at(store, "else/x", A)
    assert not act(store, Wake("content", "else/x", sha=B), now=NOW)


def test_a_private_repos_name_is_not_kept(store: Store) -> None:
    assert not act(store, Wake("content", "up/secret", sha=A, private=True), now=NOW)
    assert store.repos.repo("up/secret") is None
    looked_at(store, REPO, A)
    assert act(store, Wake("repo", REPO, private=True), now=NOW), "one that was public is looked at: it is not any more"
    store.repos.follow("up/mine", consented=True, now=NOW)
    assert act(store, Wake("content", "up/mine", sha=A, private=True), now=NOW), "it was asked for by name"


def test_only_our_own_pulls_are_decided_anew(store: Store) -> None:
    looked_at(store, REPO, A)
    store.results.save_pull(REPO, 3, key="k" * 12, status="open", url=None, now=NOW)
    assert not act(store, Wake("pull", REPO, num=4), now=NOW)
    assert not act(store, Wake("pull", "up/other", num=3), now=NOW)
    assert store.publishing.due(now=NOW) == []
    for _ in range(100):
        assert act(store, Wake("pull", REPO, num=3), now=NOW)
    assert store.publishing.due(now=NOW) == [REPO] and len(store.publishing.all()) == 1
    assert due(store) == {}


class Ticks:
    """A clock that goes forward when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_happens_to_a_pull_while_it_is_decided_about_is_not_lost(store: Store) -> None:
    store.results.save_pull(REPO, 3, key="k", status="open", url=None, now=NOW)
    store.publishing.touch(REPO, now=NOW)
    begun = store.publishing.touches(REPO)
    assert act(store, Wake("pull", REPO, num=3), now=NOW + 1)
    store.publishing.note(
        REPO, key="k", sha=None, action="update", reason="", num=3, now=NOW + 2, next_at=NOW + 3600, touched=begun
    )
    assert store.publishing.due(now=NOW + 3) == [REPO]


def test_the_bucket_lets_a_burst_and_then_its_rate_through() -> None:
    clock = Ticks()
    bucket = Bucket(50, clock)
    assert sum(bucket.take() for _ in range(200)) == 50
    clock.now = 0.1
    assert sum(bucket.take() for _ in range(200)) == 5
    clock.now = 1000.0
    assert sum(bucket.take() for _ in range(200)) == 50


def test_the_bell_spaces_what_is_due_and_never_a_poll() -> None:
    clock = Ticks()
    bell = Bell(spacing=5, clock=clock)
    assert not bell.rung() and bell.take() is None
    for _ in range(1000):
        bell.ring(poll=False)
    assert bell.rung() and bell.take() is False and bell.take() is None, "however many ring, it is one cycle"
    clock.now = 1.0
    bell.ring(poll=False)
    assert not bell.rung() and bell.take() is None
    bell.ring(poll=True)
    assert bell.rung() and bell.take() is True, "a poll begins at once, and does what is due too"
    bell.ring(poll=False)
    clock.now = 5.9
    assert bell.take() is None
    clock.now = 6.0
    assert bell.take() is False


def test_the_bell_wakes_and_ends() -> None:
    bell = Bell(spacing=0)
    heard: list[bool | None] = []

    def listen() -> None:
        while not heard or heard[-1] is not None:
            heard.append(bell.wait())
            answered.set()

    answered = threading.Event()
    thread = threading.Thread(target=listen)
    thread.start()
    for poll in (True, False):
        bell.ring(poll=poll)
        assert answered.wait(10)
        answered.clear()
    bell.end()
    thread.join(10)
    assert heard == [True, False, None] and bell.take() is None


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("https://q.example", "https://q.example/webhooks/hub"),
        (" https://q.example/bot/ ", "https://q.example/bot/webhooks/hub"),
        ("http://127.0.0.1:7860/webhooks/hub", "http://127.0.0.1:7860/webhooks/hub"),
        ("", None),
        ("q.example", None),
        ("ftp://q.example", None),
        ("https://user:pw@q.example", None),
        ("https://q.example/?secret=x", None),
        ("https://q.example:0", None),
        ("https://[::1", None),
    ],
)
def test_hook_url(address: str, url: str | None) -> None:
    if url is None:
        with pytest.raises(SettingsError, match="QUANTCARD_PUBLIC_URL"):
            hook_url(address)
    else:
        assert hook_url(address) == url


URL = "https://q.example/webhooks/hub"
UP, ORG, ONE = Item("user", "up"), Item("org", "Org"), Item("model", "x/y")


def hook(hook_id: str = "h", url: str | None = URL, watched: tuple[Item, ...] = (UP, ORG), **more: Any) -> Hook:
    return Hook(hook_id, url, frozenset(watched), secret=more.pop("secret", "s"), **more)


def planned(*hooks: Hook, wanted: tuple[Item, ...] = (UP, ORG), remembered: str | None = None) -> Plan:
    return plan_sync(hooks, url=URL, wanted=wanted, secret="s", remembered=remembered)


def test_one_webhook_is_made_and_then_kept() -> None:
    assert planned() == Plan("create", None, added=(ORG, UP))
    assert planned(hook("else", "https://else.example/x")).action == "create"
    assert planned(hook("job", None)).action == "create"
    assert planned(hook()).action == "keep"
    assert planned(hook(watched=(Item("user", "UP"), ORG))).action == "keep", "the Hub's own spelling"
    assert planned(hook(secret=None)).action == "keep"


def test_what_differs_is_told_and_changed() -> None:
    plan = planned(hook(watched=(UP, Item("org", "gone"))), wanted=(UP, ONE))
    assert (plan.action, plan.added, plan.removed) == ("update", (ONE,), (Item("org", "gone"),))
    plan = planned(hook(domains=frozenset({"repo"}), secret="old-secret", disabled=True))
    assert plan.action == "update" and plan.enable and len(plan.reasons) == 2
    assert "old-secret" not in str(plan), "nobody's secret is told"
    moved = planned(hook(url="https://old.example/webhooks/hub"), remembered="h")
    assert moved.action == "update" and moved.hook and "old.example" in moved.reasons[0]


def test_never_two_webhooks_of_ours() -> None:
    old = hook("old", "https://old.example/webhooks/hub")
    plan = planned(hook("a"), hook("b"), old, hook("else", "https://else.example/x"), remembered="old")
    assert plan.action == "keep" and [one.id for one in plan.doubles] == ["b", "old"]


def test_nothing_followed_is_nothing_watched() -> None:
    assert planned(wanted=()).action == "nothing"
    plan = planned(hook(), wanted=())
    assert plan.action == "remove" and plan.removed == (ORG, UP)


def test_owners_come_first_and_cover_their_repos() -> None:
    items, left = watch_items([("Up", "user")], ["up/a", "x/y", "x/y", "z/z"], limit=2)
    assert items == {Item("user", "Up"), ONE} and left == (Item("model", "z/z"),)
