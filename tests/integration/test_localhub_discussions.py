"""Discussions, pull requests, merging, webhooks, pages and lost responses, through the real client."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import WebhookPayload
from huggingface_hub.community import DiscussionCommit, DiscussionStatusChange, DiscussionTitleChange
from huggingface_hub.errors import BadRequestError, HfHubHTTPError
from huggingface_hub.utils import get_session, httpx
from test_localhub_world import CARD, World, add, open_world, status_of

from localhub import seed
from localhub.faults import Faults


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("hub"), faults=Faults()) as opened:
        opened.server.dispatcher.waits_s = (0.02, 0.02)
        yield opened


def open_pull(world: World, repo_id: str, content: bytes = CARD + b"from the bot\n", path: str = "README.md") -> int:
    done = world.bot.create_commit(
        repo_id, [add(path, content)], commit_message="Add figures", commit_description="<!-- mark -->", create_pr=True
    )
    assert done.pr_num is not None
    return done.pr_num


# pull requests


def test_a_stranger_opens_updates_and_the_owner_merges(world: World) -> None:
    repo_id = world.repo()
    base = world.alice.model_info(repo_id).sha
    first = world.bot.create_commit(
        repo_id,
        [add("README.md", CARD + b"one\n"), add("plots/p.png", b"\x89PNG\0")],
        commit_message="Add figures",
        commit_description="<!-- mark -->",
        create_pr=True,
        parent_commit=base,
    )
    assert first.pr_url == f"{world.url}/{repo_id}/discussions/1" and first.pr_revision == "refs/pr/1"
    assert world.alice.model_info(repo_id).sha == base
    second = world.bot.create_commit(
        repo_id,
        [add("README.md", CARD + b"two\n")],
        commit_message="Update figures",
        revision="refs/pr/1",
        parent_commit=first.oid,
    )
    details = world.nobody.get_discussion_details(repo_id, 1)
    assert (details.title, details.status, details.author) == ("Add figures", "open", "bot")
    assert (details.target_branch, details.conflicting_files) == ("refs/heads/main", [])
    assert details.events[0].content == "<!-- mark -->"  # type: ignore[attr-defined]
    assert [item.oid for item in details.events if isinstance(item, DiscussionCommit)] == [first.oid, second.oid]
    assert details.diff is not None and "+two\n" in details.diff and "+one\n" not in details.diff
    assert "+oid sha256:" in details.diff  # LFS files show as pointers
    refs = world.nobody.list_repo_refs(repo_id, include_pull_requests=True)
    assert [(ref.ref, ref.target_commit) for ref in refs.pull_requests or []] == [("refs/pr/1", second.oid)]
    assert world.nobody.model_info(repo_id, revision="refs/pr/1").sha == second.oid
    with pytest.raises(HfHubHTTPError) as error:
        world.bot.merge_pull_request(repo_id, 1)
    assert status_of(error) == 403
    world.alice.upload_file(repo_id=repo_id, path_or_fileobj=b"x", path_in_repo="other.txt")
    world.alice.merge_pull_request(repo_id, 1, comment="Thanks!")
    details = world.nobody.get_discussion_details(repo_id, 1)
    assert details.status == "merged" and details.merge_commit_oid == world.alice.model_info(repo_id).sha
    files = world.nobody.list_repo_files(repo_id)
    assert {"other.txt", "plots/p.png"} <= set(files)
    assert world.nobody.list_repo_commits(repo_id)[0].title == "Add figures (#1)"
    for call in (
        lambda: world.alice.merge_pull_request(repo_id, 1),
        lambda: world.bot.create_commit(repo_id, [add("x", b"x")], commit_message="late", revision="refs/pr/1"),
        lambda: world.alice.change_discussion_status(repo_id, 1, "open"),
    ):
        with pytest.raises(HfHubHTTPError):
            call()


def test_a_conflict_is_told_and_refused(world: World) -> None:
    repo_id = world.repo()
    num = open_pull(world, repo_id)
    world.alice.upload_file(repo_id=repo_id, path_or_fileobj=CARD + b"mine\n", path_in_repo="README.md")
    assert world.nobody.get_discussion_details(repo_id, num).conflicting_files == ["README.md"]
    main = world.alice.model_info(repo_id).sha
    with pytest.raises(HfHubHTTPError, match="conflicts") as error:
        world.alice.merge_pull_request(repo_id, num)
    assert status_of(error) == 409
    assert world.alice.model_info(repo_id).sha == main
    assert world.nobody.get_discussion_details(repo_id, num).status == "open"


def test_who_may_touch_a_pull(world: World) -> None:
    repo_id = world.repo()
    num = open_pull(world, repo_id)
    revision = f"refs/pr/{num}"
    for call in (
        lambda: world.mallory.create_commit(repo_id, [add("m", b"m")], commit_message="no", revision=revision),
        lambda: world.mallory.change_discussion_status(repo_id, num, "closed"),
        lambda: world.mallory.rename_discussion(repo_id, num, "Mine now"),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            call()
        assert status_of(error) == 403
    world.alice.create_commit(repo_id, [add("o", b"o")], commit_message="the owner helps", revision=revision)
    with pytest.raises(HfHubHTTPError) as error:
        world.bot.create_commit(
            repo_id, [add("z", b"z")], commit_message="stale", revision=revision, parent_commit="0" * 40
        )
    assert status_of(error) == 412
    closed = world.bot.change_discussion_status(repo_id, num, "closed", comment="never mind")
    assert isinstance(closed, DiscussionStatusChange) and closed.new_status == "closed"
    with pytest.raises(HfHubHTTPError) as error:
        world.bot.create_commit(repo_id, [add("z", b"z")], commit_message="closed", revision=revision)
    assert status_of(error) == 403
    assert world.bot.change_discussion_status(repo_id, num, "open").new_status == "open"


def test_a_draft_has_to_be_opened_before_it_is_merged(world: World) -> None:
    repo_id = world.repo()
    draft = world.bot.create_pull_request(repo_id, "A draft", description="soon")
    assert draft.status == "draft" and draft.diff == "" and draft.is_pull_request
    world.bot.create_commit(repo_id, [add("d.txt", b"d")], commit_message="work", revision=draft.git_reference)
    with pytest.raises(BadRequestError):
        world.alice.merge_pull_request(repo_id, draft.num)
    world.bot.change_discussion_status(repo_id, draft.num, "open")
    world.alice.merge_pull_request(repo_id, draft.num)
    assert "d.txt" in world.nobody.list_repo_files(repo_id)


def test_nothing_changed_opens_nothing(world: World) -> None:
    repo_id = world.repo()
    done = world.bot.create_commit(repo_id, [add("README.md", CARD)], commit_message="same", create_pr=True)
    assert done.pr_url is None and list(world.nobody.get_repo_discussions(repo_id)) == []


# discussions


def test_the_life_of_a_discussion(world: World) -> None:
    repo_id = world.repo()
    opened = world.mallory.create_discussion(repo_id, "  A question ", description="Why <b>?")
    assert (opened.num, opened.title, opened.status, opened.is_pull_request) == (1, "A question", "open", False)
    assert opened.events[0].rendered == "<p>Why &lt;b&gt;?</p>"  # type: ignore[attr-defined]
    comment = world.bot.comment_discussion(repo_id, 1, "An answer")
    edited = world.bot.edit_discussion_comment(repo_id, 1, comment.id, "A better answer")
    assert (edited.content, edited.edited, edited.number_of_edits) == ("A better answer", True, 1)
    with pytest.raises(HfHubHTTPError):
        world.alice.edit_discussion_comment(repo_id, 1, comment.id, "words in a mouth")
    with pytest.raises(HfHubHTTPError), pytest.warns(UserWarning):
        world.mallory.hide_discussion_comment(repo_id, 1, comment.id)
    with pytest.warns(UserWarning):
        hidden = world.alice.hide_discussion_comment(repo_id, 1, comment.id)
    assert hidden.hidden and "better" not in json.dumps(hidden._event)
    renamed = world.mallory.rename_discussion(repo_id, 1, "The question")
    assert isinstance(renamed, DiscussionTitleChange) and renamed.old_title == "A question"
    world.alice.change_discussion_status(repo_id, 1, "closed")
    kinds = [event.type for event in world.nobody.get_discussion_details(repo_id, 1).events]
    assert kinds == ["comment", "comment", "title-change", "status-change"]
    for bad in ("ab", "x" * 201):
        with pytest.raises(BadRequestError):
            world.bot.create_discussion(repo_id, bad)
    with pytest.raises(BadRequestError):
        world.bot.comment_discussion(repo_id, 1, "x" * 65_537)
    with pytest.raises(HfHubHTTPError) as error:
        world.bot.get_discussion_details(repo_id, 99)
    assert status_of(error) == 404


def test_lists_are_filtered_and_paged(world: World) -> None:
    repo_id = world.repo()
    hub_path = world.root / "repos" / "models" / repo_id / "discussions"
    world.mallory.create_discussion(repo_id, "Number one")
    template = json.loads((hub_path / "1.json").read_text())
    for num in range(2, 61):  # written by hand: the folder is meant to be
        (hub_path / f"{num}.json").write_text(json.dumps({**template, "num": num, "title": f"Number {num}"}))
    pull = open_pull(world, repo_id)
    world.alice.change_discussion_status(repo_id, 1, "closed")
    find = world.nobody.get_repo_discussions
    assert [item.num for item in find(repo_id)] == list(range(61, 0, -1))
    assert [item.num for item in find(repo_id, discussion_type="pull_request")] == [pull] == [61]
    assert [item.num for item in find(repo_id, author="bot", discussion_status="open")] == [61]
    assert [item.num for item in find(repo_id, discussion_status="closed")] == [1]
    assert len(list(find(repo_id, discussion_type="discussion", author="mallory"))) == 60


def test_discussions_can_be_switched_off(world: World) -> None:
    repo_id = world.repo(discussions=False)
    calls = (
        lambda: world.bot.create_discussion(repo_id, "Hello there"),
        lambda: open_pull(world, repo_id),
        lambda: list(world.bot.get_repo_discussions(repo_id)),
    )
    for call in calls:
        with pytest.raises(HfHubHTTPError, match="Discussions are disabled") as error:
            call()
        assert status_of(error) == 403


def test_datasets_have_pulls_too(world: World) -> None:
    repo_id = world.repo(repo_type="dataset")
    done = world.bot.create_commit(
        repo_id, [add("r.csv", b"a,b\n")], commit_message="Add rows", create_pr=True, repo_type="dataset"
    )
    assert done.pr_url == f"{world.url}/datasets/{repo_id}/discussions/1"
    world.alice.merge_pull_request(repo_id, 1, repo_type="dataset")
    assert world.nobody.file_exists(repo_id, "r.csv", repo_type="dataset")


# lost responses and other faults


def test_a_lost_response_leaves_the_pull_behind(world: World) -> None:
    repo_id = world.repo()
    world.server.faults.drop(f"/{repo_id}/commit/", method="POST")
    with pytest.raises(httpx.RemoteProtocolError):
        open_pull(world, repo_id)
    found = list(world.bot.get_repo_discussions(repo_id, author="bot", discussion_type="pull_request"))
    assert [(item.num, item.status) for item in found] == [(1, "open")]


def test_a_failing_hub(world: World) -> None:
    repo_id = world.repo()
    world.server.faults.fail(f"/api/models/{repo_id}", status=503, times=2, headers={"Retry-After": "1"})
    for _ in range(2):
        with pytest.raises(HfHubHTTPError) as error:
            world.bot.model_info(repo_id)
        assert status_of(error) == 503
    assert world.bot.model_info(repo_id).id == repo_id
    world.server.faults.delay(f"/api/models/{repo_id}", seconds=0.5)
    with pytest.raises(httpx.TimeoutException):
        world.bot.model_info(repo_id, timeout=0.1)
    world.server.faults.clear()


# webhooks


class Receiver:
    """A little server that keeps what it is sent; `answers` are its next statuses (200 after that)."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], dict[str, object]]] = []
        self.answers: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                receiver.got.append((dict(self.headers), body))
                self.send_response(receiver.answers.pop(0) if receiver.answers else 200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?x=1"


@contextmanager
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()
        thread.join()


def test_webhooks_are_kept(world: World) -> None:
    made = world.bot.create_webhook(
        url="http://localhost:1/x", watched=[{"type": "user", "name": "alice"}], domains=["repo"], secret="s"
    )
    assert [item.id for item in world.bot.list_webhooks()] == [made.id]
    assert world.bot.get_webhook(made.id).secret == "s"
    assert world.bot.update_webhook(made.id, domains=["discussion"]).domains == ["discussion"]
    assert world.bot.get_webhook(made.id).watched[0].name == "alice"
    assert world.bot.disable_webhook(made.id).disabled
    assert not world.bot.enable_webhook(made.id).disabled
    with pytest.raises(HfHubHTTPError):
        world.mallory.get_webhook(made.id)
    world.bot.delete_webhook(made.id)
    assert world.bot.list_webhooks() == []
    for url in ("http://192.0.2.1/x", "ftp://127.0.0.1/x", "http://u:p@127.0.0.1/"):
        with pytest.raises(BadRequestError):
            world.bot.create_webhook(url=url, watched=[{"type": "user", "name": "alice"}])


def test_webhooks_are_delivered(world: World) -> None:
    with receiver() as there:
        hook = world.bot.create_webhook(
            url=there.url, watched=[{"type": "user", "name": "alice"}, {"type": "org", "name": "acme"}], secret="xyz"
        )
        there.answers = [500]  # the first delivery is tried again
        world.alice.create_repo("alice/hooked")
        main = world.alice.model_info("alice/hooked").sha
        num = open_pull(world, "alice/hooked")
        world.mallory.comment_discussion("alice/hooked", num, "@bot hello")
        world.alice.merge_pull_request("alice/hooked", num)
        world.bob.create_repo("acme/secret", private=True)  # bot may not see it
        world.alice.create_repo("acme/open")
        assert world.server.dispatcher.drain(10)
        world.bot.delete_webhook(hook.id)
        world.alice.delete_repo("alice/hooked")
        assert world.server.dispatcher.drain(10)
    told = [(body["event"]["scope"], body["event"]["action"]) for _, body in there.got]  # type: ignore[index]
    assert sorted(told) == sorted(
        [
            *[("repo", "create")] * 3,
            ("discussion", "create"),
            ("repo.content", "update"),
            ("discussion.comment", "create"),
            ("discussion", "update"),
            ("repo.content", "update"),
        ]
    )
    for headers, body in there.got:
        assert headers["X-Webhook-Secret"] == "xyz"
        payload = WebhookPayload.model_validate(body)
        assert payload.webhook.id == hook.id and payload.webhook.version == 3
        assert payload.repo.name in ("alice/hooked", "acme/open")
    pushed = [body for _, body in there.got if body["event"]["scope"] == "repo.content"]  # type: ignore[index]
    refs = {body["updatedRefs"][0]["ref"]: body["updatedRefs"][0] for body in pushed}  # type: ignore[index]
    assert set(refs) == {"refs/pr/1", "refs/heads/main"}
    assert refs["refs/pr/1"]["oldSha"] is None and refs["refs/heads/main"]["oldSha"] == main
    comment = next(body for _, body in there.got if body["event"]["scope"] == "discussion.comment")  # type: ignore[index]
    assert comment["comment"]["content"] == "@bot hello"  # type: ignore[index]
    assert comment["discussion"]["num"] == num and comment["discussion"]["isPullRequest"]  # type: ignore[index]
    assert comment["repo"]["url"]["api"] == f"{world.url}/api/models/alice/hooked"  # type: ignore[index]


def test_delivery_gives_up(world: World) -> None:
    with receiver() as there:
        there.answers = [503] * 10
        repo_id = world.repo()
        hook = world.bot.create_webhook(url=there.url, watched=[{"type": "model", "name": repo_id}])
        world.mallory.create_discussion(repo_id, "Hello there")
        assert world.server.dispatcher.drain(10)
        assert len(there.got) == 3
        world.bot.delete_webhook(hook.id)
    attempts = [item.attempt for item in world.server.dispatcher.outcomes if item.webhook_id == hook.id]
    assert attempts == [1, 2, 3]


# pages


def test_pages_show_a_pull_and_escape_it(world: World) -> None:
    repo_id = world.repo(files={"README.md": CARD + b"<script>card</script>\n"})
    num = open_pull(world, repo_id, content=CARD + b"<img src=x onerror=alert(1)>\n")
    world.mallory.comment_discussion(repo_id, num, "</pre><script>alert(2)</script>")
    session = get_session()
    page = session.get(f"{world.url}/{repo_id}/discussions/{num}")
    assert page.headers["content-type"].startswith("text/html") and "script-src" not in page.headers
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "Add figures" in page.text and "&lt;img src=x" in page.text and "<script" not in page.text
    front = session.get(f"{world.url}/{repo_id}").text
    assert "&lt;script&gt;card" in front and "<script" not in front and f"/{repo_id}/discussions/{num}" in front
    data = world.repo(repo_type="dataset")
    assert session.get(f"{world.url}/datasets/{data}").status_code == 200
    hidden = world.repo(private=True)
    index = session.get(world.url).text
    assert repo_id in index and data in index and hidden not in index
    assert session.get(f"{world.url}/{hidden}").status_code == 404
    commit = session.get(f"{world.url}/{repo_id}/commit/{world.alice.model_info(repo_id).sha}")
    assert "+&lt;script&gt;card" in commit.text


def test_seeding_while_the_hub_runs(world: World) -> None:
    repo_id = world.repo()
    seed.upload_files(world.root, repo_id, {"late.txt": b"late"})
    assert "late.txt" in world.nobody.list_repo_files(repo_id)
