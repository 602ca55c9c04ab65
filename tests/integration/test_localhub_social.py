"""Collections, owners, who wrote what, line merges, renames, dates, faults by plan: through the real client."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import get_session, httpx
from test_localhub_discussions import receiver
from test_localhub_world import CARD, World, add, open_world, status_of

from localhub import seed
from localhub.errors import BadRequest
from localhub.faults import Fault, Faults, Request

SLUG = "alice/good-quants-64f9a55bb3115b4f513ec026"
LONG = CARD + b"".join(b"Paragraph %d\r\n\r\n" % number for number in range(8)) + b"no newline at the end"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("hub"), faults=Faults()) as opened:
        yield opened


# collections


def test_a_collection_shows_what_the_caller_may_see(world: World) -> None:
    model, hidden, gone = world.repo(), world.repo(private=True), world.repo()
    data, moved = world.repo(repo_type="dataset"), world.repo()
    items = [("model", model, "the best"), ("dataset", data), ("model", hidden), ("model", moved), ("model", gone)]
    seed.create_collection(world.root, SLUG, title="Good quants", items=items, description="d")
    seed.delete_repo(world.root, gone)
    seed.move_repo(world.root, moved, "acme/moved-in-collection")
    found = world.nobody.get_collection(SLUG)
    assert (found.slug, found.title, found.description, found.private) == (SLUG, "Good quants", "d", False)
    assert [(item.item_type, item.item_id) for item in found.items] == [
        ("model", model),
        ("dataset", data),
        ("model", "acme/moved-in-collection"),
    ]
    assert found.items[0].note == "the best" and found.url == f"{world.url}/collections/{SLUG}"
    assert hidden in [item.item_id for item in world.alice.get_collection(SLUG).items]
    seed.create_collection(world.root, SLUG, title="Fewer", items=[("model", model)])
    assert [item.item_id for item in world.nobody.get_collection(SLUG).items] == [model]
    # an old slug: the id at its end still leads there, and only under its owner
    assert world.nobody.get_collection("alice/old-title-64f9a55bb3115b4f513ec026").title == "Fewer"
    seed.create_collection(world.root, "alice/secret", title="Secret", private=True)
    assert world.alice.get_collection("alice/secret").private
    for slug in ("alice/secret", "alice/none", "bob/x-64f9a55bb3115b4f513ec026"):
        with pytest.raises(HfHubHTTPError) as error:
            world.mallory.get_collection(slug)
        assert status_of(error) == 404
    for bad in ("alice", "alice/../x", "api/x", "alice/a/b"):
        with pytest.raises(BadRequest):
            seed.create_collection(world.root, bad, title="Bad")


def test_the_life_of_a_collection(world: World) -> None:
    one, two = world.repo(), world.repo()
    made = world.bob.create_collection("My  Picks!", namespace="acme", description="d")
    assert re.fullmatch(r"acme/my-picks-[0-9a-f]{24}", made.slug)
    assert world.bob.create_collection("My  Picks!", namespace="acme", exists_ok=True).slug == made.slug
    world.bob.add_collection_item(made.slug, one, "model")
    found = world.alice.add_collection_item(made.slug, two, "model", note="second")
    assert [item.item_id for item in found.items] == [one, two]
    world.alice.add_collection_item(made.slug, two, "model", exists_ok=True)
    world.bob.update_collection_item(made.slug, found.items[1].item_object_id, position=0, note="now first")
    found = world.nobody.get_collection(made.slug)
    assert [(item.item_id, item.note) for item in found.items] == [(two, "now first"), (one, None)]
    world.bob.delete_collection_item(made.slug, found.items[0].item_object_id)
    world.bob.delete_collection_item(made.slug, found.items[0].item_object_id, missing_ok=True)
    assert world.bob.update_collection_metadata(made.slug, title="Picks", private=True).private
    listed = list(world.bob.list_collections(owner="acme", item=f"models/{one}"))
    assert [(row.title, row.position, len(row.items)) for row in listed] == [("Picks", 0, 1)]
    assert list(world.mallory.list_collections(owner="acme")) == []
    for call, status in (
        (lambda: world.alice.add_collection_item(made.slug, "alice/none", "model"), 404),
        (lambda: world.alice.add_collection_item(made.slug, "2307.09288", "paper"), 400),
        (lambda: world.mallory.add_collection_item(made.slug, two, "model"), 404),
        (lambda: world.mallory.create_collection("Mine", namespace="acme"), 403),
        (lambda: world.reader.create_collection("Mine"), 403),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            call()
        assert status_of(error) == status
    world.alice.delete_collection(made.slug)
    world.alice.delete_collection(made.slug, missing_ok=True)


# owners


def test_owners_are_users_or_organizations(world: World) -> None:
    world.repo("mallory"), world.repo("mallory", private=True), world.repo("drifter")
    user = world.nobody.get_user_overview("mallory")
    assert (user.username, user.user_type, user.num_models, user.num_datasets) == ("mallory", "user", 1, 0)
    assert world.mallory.get_user_overview("mallory").num_models == 2
    assert [org.name for org in world.nobody.get_user_overview("bob").orgs] == ["acme"]
    org = world.nobody.get_organization_overview("acme")
    assert (org.name, org.num_users) == ("acme", 2)
    assert [member.username for member in world.nobody.list_organization_members("acme")] == ["alice", "bob"]
    assert world.nobody.get_user_overview("drifter").username == "drifter"  # owns a repo, is in no users.json
    for call in (
        lambda: world.nobody.get_user_overview("acme"),
        lambda: world.nobody.get_user_overview("nobody-at-all"),
        lambda: world.nobody.get_organization_overview("alice"),
        lambda: list(world.nobody.list_organization_members("alice")),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            call()
        assert status_of(error) == 404


def test_events_say_who_belongs_to_the_repo(world: World) -> None:
    def authors(repo_id: str) -> dict[str, set[str]]:
        rows = get_session().get(f"{world.url}/api/models/{repo_id}/discussions/1").json()["events"]
        return {row["author"]["name"]: {key for key in row["author"] if key.startswith("is")} for row in rows}

    for repo_id, want in (
        (world.repo("acme"), {"mallory": set(), "bob": {"isOrgMember"}, "alice": {"isOrgMember"}}),
        (world.repo("alice"), {"mallory": set(), "bob": set(), "alice": {"isOwner"}}),
    ):
        world.mallory.create_discussion(repo_id, "A question", description="?")
        for api in (world.bob, world.alice):
            api.comment_discussion(repo_id, 1, "An answer")
        assert authors(repo_id) == want


# merging by lines


def test_both_sides_of_one_card_are_merged(world: World) -> None:
    repo_id = world.repo(files={"README.md": LONG})
    ours, theirs = LONG.replace(b"Paragraph 1", b"Mine"), LONG.replace(b"no newline", b"Figures: no newline")
    world.bot.create_commit(repo_id, [add("README.md", theirs)], commit_message="Figures", create_pr=True)
    world.alice.upload_file(repo_id=repo_id, path_or_fileobj=ours, path_in_repo="README.md")
    details = world.nobody.get_discussion_details(repo_id, 1)
    assert details.conflicting_files == [] and details.diff is not None and "Mine" not in details.diff
    world.alice.merge_pull_request(repo_id, 1)
    path = world.nobody.hf_hub_download(repo_id, "README.md", cache_dir=world.root / "cache")
    assert Path(path).read_bytes() == ours.replace(b"no newline", b"Figures: no newline")
    head = world.nobody.list_repo_commits(repo_id)[0]
    details = world.nobody.get_discussion_details(repo_id, 1)
    assert (head.title, head.commit_id) == ("Figures (#1)", details.merge_commit_oid)


def test_the_same_lines_are_a_conflict(world: World) -> None:
    repo_id = world.repo(files={"README.md": LONG})
    for number, text in ((1, b"One way"), (2, b"Another")):
        content = LONG.replace(b"Paragraph 4", text)
        world.bot.create_commit(repo_id, [add("README.md", content)], commit_message="Figures", create_pr=True)
        assert world.nobody.get_discussion_details(repo_id, number).conflicting_files == []
    world.alice.merge_pull_request(repo_id, 1)
    assert world.nobody.get_discussion_details(repo_id, 2).conflicting_files == ["README.md"]
    with pytest.raises(HfHubHTTPError, match="conflicts"):
        world.alice.merge_pull_request(repo_id, 2)


# renames


def test_an_old_name_leads_to_the_new_one(world: World) -> None:
    old, new = world.repo(), "acme/new-name"
    first = world.bot.create_commit(old, [add("a.txt", b"a")], commit_message="A file", create_pr=True)
    seed.move_repo(world.root, old, "acme/between")
    seed.move_repo(world.root, "acme/between", new)
    assert world.bot.model_info(old, files_metadata=True).id == new
    assert world.bot.model_info(old, revision="refs/pr/1").sha == first.oid
    assert [item.repo_id for item in world.bot.get_repo_discussions(old, author="bot")] == [new]
    assert world.bot.get_discussion_details(old, 1).title == "A file"
    assert [item.path for item in world.bot.list_repo_tree(old)][-1] == "README.md"
    assert [item.path for item in world.bot.get_paths_info(old, ["README.md"])] == ["README.md"]
    assert Path(world.bot.hf_hub_download(old, "README.md", cache_dir=world.root / "cache")).read_bytes() == CARD
    world.bot.create_commit(
        old, [add("b.txt", b"b")], commit_message="B", revision="refs/pr/1", parent_commit=first.oid
    )
    world.bot.comment_discussion(old, 1, "by the old name")
    raw = get_session().get(f"{world.url}/api/models/{old}?blobs=True", follow_redirects=False)
    assert (raw.status_code, raw.headers["location"]) == (307, f"/api/models/{new}?blobs=True")
    with pytest.raises(RepositoryNotFoundError):  # the old name is in the body: nowhere to lead to
        world.alice.delete_repo(old)
    seed.set_repo(world.root, new, private=True)
    response = get_session().get(f"{world.url}/api/models/{old}", follow_redirects=False)
    assert response.status_code == 404 and new not in response.text
    seed.delete_repo(world.root, new)
    with pytest.raises(RepositoryNotFoundError):
        world.alice.model_info(old)


# dates


def test_last_modified_is_the_last_commit_to_main(world: World) -> None:
    repo_id = world.repo()
    seen = []
    for number in range(20):
        seed.upload_files(world.root, repo_id, {"n.txt": b"%d" % number}, durable=False)
        row = get_session().get(f"{world.url}/api/models/{repo_id}").json()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row["lastModified"])
        seen.append((row["lastModified"], row["sha"]))
    assert seen == sorted(seen) and len({date for date, _ in seen}) == 20
    assert len({sha for _, sha in seen}) == 20
    world.bot.create_commit(repo_id, [add("a.txt", b"a")], commit_message="A file", create_pr=True)
    world.alice.create_branch(repo_id, branch="b")
    world.alice.create_commit(repo_id, [add("a.txt", b"a")], commit_message="A file", revision="b")
    world.alice.update_repo_settings(repo_id, gated="auto")
    again = get_session().get(f"{world.url}/api/models/{repo_id}").json()
    assert (again["lastModified"], again["sha"]) == seen[-1]


def test_many_repos_are_seeded_listed_and_paged(world: World) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    names = [f"uploader/m-{number:02}-GGUF" for number in range(30)]
    gguf = b"GGUF" * 500
    made = seed.many_repos(
        world.root,
        ((name, {"README.md": b"---\nbase_model: b/b\n---\n", "m.gguf": gguf}) for name in names),
        dates={name: start + timedelta(hours=number // 3) for number, name in enumerate(names)},  # ties, as there are
    )
    assert list(made) == names
    blobs = {path.stat().st_ino for path in (world.root / "repos" / "models" / "uploader").glob("*/lfs/*/*")}
    assert len(blobs) == 1  # one file, thirty names
    want = sorted(names, key=lambda name: (names.index(name) // 3, name), reverse=True)
    api = world.nobody
    assert [row.id for row in api.list_models(author="Uploader", filter="gguf", sort="last_modified")] == want
    url, seen = f"{world.url}/api/models?author=uploader&sort=lastModified&limit=7&expand=sha", []
    while url:
        response = get_session().get(url)
        seen += response.json()
        url = response.links.get("next", {}).get("url", "")
    assert [row["id"] for row in seen] == want and {row["id"]: row["sha"] for row in seen} == made
    newer = seed.upload_files(world.root, names[0], {"x.txt": b"x"}, date=start + timedelta(days=9))
    first = next(iter(api.list_models(author="uploader", sort="last_modified", expand=["sha", "lastModified"])))
    assert (first.id, first.sha, first.last_modified) == (names[0], newer, start + timedelta(days=9))
    info = api.model_info(names[1], files_metadata=True)
    assert {item.rfilename: item.size for item in info.siblings or []}["m.gguf"] == len(gguf)


def test_settings_count_at_once(world: World) -> None:
    repo_id = world.repo()
    for number in range(5):
        seed.set_repo(world.root, repo_id, likes=number)
        assert world.nobody.model_info(repo_id).likes == number
    seed.set_repo(world.root, repo_id, discussions=False, gated="auto")
    info = world.nobody.model_info(repo_id)
    assert info.gated == "auto" and info.likes == 4
    with pytest.raises(HfHubHTTPError, match="disabled"):
        world.bot.create_discussion(repo_id, "Hello there")
    with pytest.raises(BadRequest):
        seed.set_repo(world.root, repo_id, secret=True)


# faults and the log of requests


def test_a_plan_decides_for_each_request(world: World) -> None:
    repo_id = world.repo()
    faults = world.server.faults
    answers: list[Fault | None] = [
        Fault(status=429, headers={"RateLimit": '"api";r=0;t=7', "Retry-After": "7"}),
        Fault(drop="before"),
        Fault(drop="after", delay=0.01),
        None,
    ]
    asked: list[tuple[str, str]] = []

    def decide(method: str, path: str) -> Fault | None:
        asked.append((method, path))
        return answers.pop(0) if "/commit/" in path else None

    def commit(content: bytes) -> None:
        world.alice.create_commit(repo_id, [add("f.txt", content)], commit_message="F")

    faults.plan(decide)
    with pytest.raises(HfHubHTTPError) as error:
        commit(b"1")
    assert status_of(error) == 429 and error.value.response.headers["ratelimit"] == '"api";r=0;t=7'
    with pytest.raises(httpx.TransportError):
        commit(b"2")
    assert "f.txt" not in world.nobody.list_repo_files(repo_id)  # nothing was done
    with pytest.raises(httpx.TransportError):
        commit(b"3")
    assert "f.txt" in world.nobody.list_repo_files(repo_id)  # it was done, and the answer lost
    commit(b"4")
    faults.clear()
    assert not answers and ("POST", f"/api/models/{repo_id}/commit/main") in asked
    faults.drop("/discussions$", method="POST", work=False)
    with pytest.raises(httpx.TransportError):
        world.bot.create_discussion(repo_id, "Hello there")
    assert list(world.nobody.get_repo_discussions(repo_id)) == []


def test_every_request_is_logged(world: World) -> None:
    repo_id, log = world.repo(), world.server.requests
    log.clear()
    list(world.nobody.list_models(author="alice", limit=3))
    world.nobody.model_info(repo_id)
    world.server.faults.fail("/refs$", status=500)
    with pytest.raises(HfHubHTTPError):
        world.nobody.list_repo_refs(repo_id)
    assert log.all() == [
        Request("GET", "/api/models", "author=alice&limit=3"),
        Request("GET", f"/api/models/{repo_id}", ""),
        Request("GET", f"/api/models/{repo_id}/refs", ""),
    ]
    assert len(log) == 3 and log.count(f"/{repo_id}") == 2 and log.count("/api/models", method="POST") == 0
    log.clear()
    assert len(log) == 0 and log.all() == []


# webhooks


def test_payloads_have_the_hubs_shape(world: World) -> None:
    repo_id = world.repo()
    with receiver() as there:
        hook = world.bot.create_webhook(url=there.url, watched=[{"type": "model", "name": repo_id}], secret="s")
        world.bot.disable_webhook(hook.id)
        world.alice.update_repo_settings(repo_id, gated="auto")  # not told
        world.bot.enable_webhook(hook.id)
        main = world.nobody.model_info(repo_id).sha
        done = world.bot.create_commit(repo_id, [add("a", b"a")], commit_message="A file", create_pr=True)
        world.alice.comment_discussion(repo_id, 1, "Hm")
        assert world.server.dispatcher.drain(10)
        world.bot.delete_webhook(hook.id)
    told = {body["event"]["scope"]: body for _, body in there.got}  # type: ignore[index]
    assert sorted(told) == ["discussion", "discussion.comment", "repo.content"]
    about = {
        "type": "model",
        "name": repo_id,
        "private": False,
        "headSha": main,
        "url": {"web": f"{world.url}/{repo_id}", "api": f"{world.url}/api/models/{repo_id}"},
    }
    for body in told.values():
        assert body["repo"].items() >= about.items() and body["webhook"] == {"id": hook.id, "version": 3}
        assert set(body["repo"]) == {*about, "id", "owner"} and set(body["repo"]["owner"]) == {"id"}
    assert told["repo.content"]["updatedRefs"] == [{"ref": "refs/pr/1", "oldSha": None, "newSha": done.oid}]
    discussion, comment = told["discussion.comment"]["discussion"], told["discussion.comment"]["comment"]
    web = f"{world.url}/{repo_id}/discussions/1"
    bot_id, alice_id = world.bot.whoami()["id"], world.alice.whoami()["id"]
    assert (discussion["num"], discussion["status"], discussion["isPullRequest"]) == (1, "open", True)
    assert discussion["author"] == {"id": bot_id} and discussion["changes"] == {"base": "refs/heads/main"}
    assert discussion["url"] == {"web": web, "api": f"{world.url}/api/models/{repo_id}/discussions/1"}
    assert (comment["author"], comment["content"], comment["hidden"]) == ({"id": alice_id}, "Hm", False)
    assert comment["url"] == {"web": f"{web}#{comment['id']}"}


def test_strange_names_are_not_found(world: World) -> None:
    for path in (
        "users/..%2f..%2fx/overview",
        "users/api/overview",
        "organizations/%00/members",
        "collections/a/b%2Fc",
    ):
        assert get_session().get(f"{world.url}/api/{path}").status_code in (400, 404), path
    with pytest.raises(BadRequestError):
        HfApi(endpoint=world.url, token=world.tokens["alice"]).create_collection("x" * 61, namespace="alice")
