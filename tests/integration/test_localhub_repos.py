"""Users, repos, permissions, lists and refs, through the real client."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    BadRequestError,
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session
from test_localhub_world import CARD, World, add, open_world, status_of

from localhub import seed
from localhub.ratelimit import Quota


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("hub")) as opened:
        yield opened


# who is asking


def test_whoami(world: World) -> None:
    me = world.alice.whoami()
    assert (me["type"], me["name"], [org["name"] for org in me["orgs"]]) == ("user", "alice", ["acme"])
    assert me["auth"]["accessToken"]["role"] == "write"
    assert world.reader.whoami()["auth"]["accessToken"]["role"] == "read"


def test_an_unknown_token_is_401_everywhere(world: World) -> None:
    stranger = HfApi(endpoint=world.url, token="hf_nobody")
    repo_id = world.repo()
    for call in (stranger.whoami, lambda: stranger.model_info(repo_id)):
        with pytest.raises(HfHubHTTPError) as error:
            call()
        assert status_of(error) == 401
        assert not isinstance(error.value, RepositoryNotFoundError)


def test_nobody_reads_what_is_public_and_writes_nothing(world: World) -> None:
    repo_id = world.repo()
    assert world.nobody.model_info(repo_id).id == repo_id
    with pytest.raises(HfHubHTTPError) as error:
        world.nobody.create_discussion(repo_id, "Hello there", token=False)
    assert status_of(error) == 401


def test_a_read_token_cannot_write(world: World) -> None:
    repo_id = world.repo()
    calls = (
        lambda: world.reader.create_discussion(repo_id, "Hello there"),
        lambda: world.reader.create_repo("reader/x"),
        lambda: world.reader.create_commit(repo_id, [add("a.txt", b"a")], commit_message="try", create_pr=True),
        lambda: world.reader.create_webhook(url="http://127.0.0.1:1/", watched=[{"type": "user", "name": "x"}]),
    )
    for call in calls:
        with pytest.raises(HfHubHTTPError, match="write token") as error:
            call()
        assert status_of(error) == 403


# making, deleting, renaming


def test_create_and_delete(world: World) -> None:
    url = world.alice.create_repo("alice/made", private=True)
    assert (url.repo_id, url.repo_type) == ("alice/made", "model")
    with pytest.raises(HfHubHTTPError) as error:
        world.alice.create_repo("alice/made")
    assert status_of(error) == 409
    assert world.alice.create_repo("alice/made", exist_ok=True).repo_id == "alice/made"
    assert world.alice.create_repo("made-here").repo_id == "alice/made-here"
    assert world.bob.create_repo("acme/shared").repo_id == "acme/shared"
    with pytest.raises(HfHubHTTPError, match="namespace") as error:
        world.mallory.create_repo("alice/stolen")
    assert status_of(error) == 403
    world.alice.delete_repo("alice/made")
    with pytest.raises(RepositoryNotFoundError):
        world.alice.delete_repo("alice/made")
    world.alice.delete_repo("alice/made", missing_ok=True)
    assert not world.alice.repo_exists("alice/made")


def test_datasets_and_spaces_are_apart(world: World) -> None:
    for repo_type in ("dataset", "space"):
        url = world.alice.create_repo("alice/apart", repo_type=repo_type, space_sdk="gradio")
        assert url.repo_type == repo_type
        assert world.alice.repo_info("alice/apart", repo_type=repo_type).id == "alice/apart"
        world.alice.upload_file(
            path_or_fileobj=b"x,y\n", path_in_repo="d/t.csv", repo_id="alice/apart", repo_type=repo_type
        )
        assert world.nobody.file_exists("alice/apart", "d/t.csv", repo_type=repo_type)
    assert not world.alice.repo_exists("alice/apart")
    assert "alice/apart" in [space.id for space in world.alice.list_spaces(author="alice")]
    assert world.alice.space_info("alice/apart").sdk == "gradio"


def test_a_renamed_repo_redirects(world: World) -> None:
    repo_id = world.repo()
    world.alice.move_repo(repo_id, "acme/renamed")
    assert world.bob.model_info(repo_id).id == "acme/renamed"
    assert world.nobody.file_exists(repo_id, "README.md")
    world.bob.create_commit(repo_id, [add("b.txt", b"b")], commit_message="by the old name")
    assert "b.txt" in world.bob.list_repo_files("acme/renamed")
    with pytest.raises(HfHubHTTPError):
        world.mallory.move_repo("acme/renamed", "mallory/mine")
    world.alice.create_repo(repo_id)  # the old name can be used again
    assert world.alice.model_info(repo_id).id == repo_id


# what others may see


def test_private_looks_missing(world: World) -> None:
    repo_id = world.repo(private=True)
    assert world.alice.model_info(repo_id).private
    for api in (world.mallory, world.nobody):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(repo_id)
        with pytest.raises(RepositoryNotFoundError):
            api.hf_hub_download(repo_id, "README.md", cache_dir=world.root / "nowhere")
        assert repo_id not in [model.id for model in api.list_models(author="alice")]
    with pytest.raises(RepositoryNotFoundError):
        world.mallory.create_discussion(repo_id, "Hello there")
    world.alice.update_repo_settings(repo_id, private=False)
    assert world.nobody.model_info(repo_id).id == repo_id


def test_gated_shows_itself_but_not_its_files(world: World, tmp_path: Path) -> None:
    repo_id = world.repo()
    world.alice.update_repo_settings(repo_id, gated="manual")
    assert world.mallory.model_info(repo_id).gated == "manual"
    with pytest.raises(GatedRepoError):
        world.mallory.hf_hub_download(repo_id, "README.md", cache_dir=tmp_path)
    with pytest.raises(GatedRepoError):
        world.mallory.auth_check(repo_id)
    seed.create_user(world.root, "guest", token="hf_guest")
    world.alice.grant_access(repo_id, "guest")
    guest = HfApi(endpoint=world.url, token="hf_guest")
    assert Path(guest.hf_hub_download(repo_id, "README.md", cache_dir=tmp_path)).read_bytes() == CARD
    assert repo_id in [model.id for model in world.nobody.list_models(gated=True)]


def test_a_disabled_repo(world: World) -> None:
    repo_id = world.repo()
    seed.set_repo(world.root, repo_id, disabled=True)
    assert world.alice.model_info(repo_id).disabled and not world.alice.model_info(world.repo()).disabled
    calls = (
        lambda: list(world.alice.list_repo_tree(repo_id)),
        lambda: world.alice.get_paths_info(repo_id, ["README.md"]),
        lambda: world.alice.create_commit(repo_id, [add("x", b"x")], commit_message="no"),
        lambda: world.bot.create_commit(repo_id, [add("x", b"x")], commit_message="no", create_pr=True),
        lambda: list(world.bot.get_repo_discussions(repo_id)),
    )
    for call in calls:
        with pytest.raises(DisabledRepoError):
            call()
    response = get_session().get(f"{world.url}/{repo_id}/resolve/main/README.md")
    assert (response.status_code, response.headers["x-error-code"]) == (403, "DisabledRepo")
    listed = next(iter(world.alice.list_models(author="alice", search=repo_id.split("/")[1], full=True)))
    assert listed.disabled
    seed.set_repo(world.root, repo_id, disabled="all")
    with pytest.raises(DisabledRepoError):
        world.alice.model_info(repo_id)
    seed.set_repo(world.root, repo_id, disabled=False)
    assert world.nobody.file_exists(repo_id, "README.md")


def test_settings_are_the_owners(world: World) -> None:
    repo_id = world.repo()
    with pytest.raises(HfHubHTTPError) as error:
        world.mallory.update_repo_settings(repo_id, private=True)
    assert status_of(error) == 403
    world.alice.auth_check(repo_id, write=True)
    with pytest.raises(HfHubHTTPError):
        world.mallory.auth_check(repo_id, write=True)


# lists


def test_list_models_filters_sorts_and_pages(world: World) -> None:
    seed.create_user(world.root, "cook", token="hf_cook")
    for number in range(5):
        card = f"---\nbase_model: base/B{number % 2}\ntags: [imatrix]\nlicense: mit\n---\n".encode()
        files = {"README.md": card, **({"m.Q4_K_M.gguf": b"GGUF%d" % number} if number < 4 else {})}
        seed.create_repo(world.root, f"cook/Model-{number}-GGUF", likes=number, downloads=100 - number)
        seed.upload_files(world.root, f"cook/Model-{number}-GGUF", files)
    api = world.nobody

    def ids(**kwargs: object) -> list[str]:
        return [model.id[-6] for model in api.list_models(author="cook", **kwargs)]  # type: ignore[arg-type]

    assert ids(filter="gguf", sort="likes") == ["3", "2", "1", "0"]
    assert ids(filter=["gguf", "base_model:quantized:base/B1"], sort="downloads") == ["1", "3"]
    assert ids(filter="base_model:base/B0", sort="last_modified") == ["4", "2", "0"]
    assert ids(search="model-3", filter="license:mit") == ["3"]
    assert ids(sort="created_at", limit=2) == ["4", "3"]
    found = next(iter(api.list_models(author="cook", search="Model-2", expand=["tags", "sha", "lastModified"])))
    assert "imatrix" in (found.tags or []) and found.sha and found.last_modified and found.downloads is None
    full = next(iter(api.list_models(author="cook", search="Model-2", full=True, cardData=True)))
    assert [item.rfilename for item in full.siblings or []] == [".gitattributes", "README.md", "m.Q4_K_M.gguf"]
    assert full.card_data is not None and full.card_data.base_model == "base/B0"
    assert full.library_name == "gguf"
    with pytest.raises(BadRequestError):
        list(api.list_models(expand=["nonsense"]))  # type: ignore[list-item]
    # pages are followed: two a page, five in all
    session, seen, url = get_session(), [], f"{world.url}/api/models?author=cook&limit=2&sort=likes&expand=likes"
    pages = 0
    while url:
        response = session.get(url)
        seen += [row["likes"] for row in response.json()]
        pages += 1
        url = response.links.get("next", {}).get("url", "")
    assert (seen, pages) == ([4, 3, 2, 1, 0], 3)


def test_list_datasets_by_tag(world: World) -> None:
    files = {"README.md": b"---\nlicense: cc0-1.0\nlanguage: [en]\n---\n", "data/x.parquet": b"PAR1"}
    repo_id = world.repo(files=files, repo_type="dataset")
    api = world.nobody
    assert [item.id for item in api.list_datasets(filter="format:parquet", search=repo_id)] == [repo_id]
    assert [item.id for item in api.list_datasets(language="en", author="alice")] == [repo_id]
    info = api.dataset_info(repo_id, files_metadata=True)
    assert info.card_data is not None and info.card_data.license == "cc0-1.0"
    assert {item.rfilename for item in info.siblings or [] if item.lfs} == {"data/x.parquet"}


# refs


def test_branches_tags_and_commit_ids(world: World) -> None:
    repo_id = world.repo()
    first = world.alice.model_info(repo_id).sha
    world.alice.create_tag(repo_id, tag="v1.0", revision="main")
    world.alice.create_branch(repo_id, branch="exp/one")
    world.alice.create_commit(repo_id, [add("x.txt", b"x")], commit_message="on a branch", revision="exp/one")
    assert "x.txt" in world.nobody.list_repo_files(repo_id, revision="exp/one")
    assert "x.txt" not in world.nobody.list_repo_files(repo_id, revision="v1.0")
    assert world.nobody.model_info(repo_id, revision=first).sha == first
    assert world.nobody.model_info(repo_id, revision=(first or "")[:10]).sha == first
    refs = world.nobody.list_repo_refs(repo_id, include_pull_requests=True)
    assert [ref.name for ref in refs.branches] == ["exp/one", "main"]
    assert [ref.name for ref in refs.tags] == ["v1.0"] and refs.pull_requests == []
    with pytest.raises(HfHubHTTPError) as error:
        world.alice.create_branch(repo_id, branch="exp/one")
    assert status_of(error) == 409
    world.alice.create_branch(repo_id, branch="exp/one", exist_ok=True)
    for bad in ("refs/pr/5", "../up", "a..b"):
        with pytest.raises(BadRequestError):
            world.alice.create_branch(repo_id, branch=bad)
    world.alice.delete_branch(repo_id, branch="exp/one")
    world.alice.delete_tag(repo_id, tag="v1.0")
    for gone in ("exp/one", "v1.0", "0" * 40, "refs/pr/9"):
        with pytest.raises(RevisionNotFoundError):
            world.nobody.model_info(repo_id, revision=gone)
        assert not world.nobody.revision_exists(repo_id, gone)
    with pytest.raises(HfHubHTTPError):
        world.alice.delete_branch(repo_id, branch="main")
    with pytest.raises(HfHubHTTPError):
        world.mallory.create_tag(repo_id, tag="mine")


def test_commits_are_paged(world: World) -> None:
    repo_id = world.repo(files={})
    for number in range(55):
        seed.upload_files(world.root, repo_id, {"n.txt": b"%d" % number}, message=f"n {number}\n\nbody")
    found = world.nobody.list_repo_commits(repo_id)
    assert [item.title for item in found] == [*(f"n {n}" for n in reversed(range(55))), "initial commit"]
    assert found[0].authors == ["alice"] and found[0].message == "body"


# limits and the rest


def test_rate_limit_headers_and_429(tmp_path: Path) -> None:
    with open_world(tmp_path, quota=Quota(api=5, resolvers=100, window_s=3600)) as small:
        repo_id = small.repo()
        session = get_session()
        first = session.get(f"{small.url}/api/models/{repo_id}")
        assert first.headers["ratelimit"].startswith('"api";r=4;t=')
        assert first.headers["ratelimit-policy"] == '"fixed window";"api";q=5;w=3600'
        for _ in range(4):
            small.nobody.model_info(repo_id)
        with pytest.raises(HfHubHTTPError, match="rate limit") as error:
            small.nobody.model_info(repo_id)
        assert status_of(error) == 429
        assert small.alice.model_info(repo_id)  # a token has a window of its own
        assert session.head(f"{small.url}/{repo_id}/resolve/main/README.md").status_code == 200


def test_unknown_addresses_are_json_404(world: World) -> None:
    session = get_session()
    for path in ("api/agent-harnesses", "api/nothing/here/at/all", "api/models/no-owner", "x", "a/b/c/d"):
        response = session.get(f"{world.url}/{path}")
        assert response.status_code == 404 and "error" in response.json(), path
    with pytest.raises(RepositoryNotFoundError):
        world.nobody.model_info("alice/missing")


@pytest.mark.parametrize(
    "path",
    [
        "..%2f..%2fusers.json/x",
        "api/models/..%2f..%2f/users.json",
        "alice/..%5c..%5cx",
        "alice/x%00y",
        "api/models/alice/%2e%2e",
        "%2e%2e/users.json",
        "alice/m/resolve/main/%2e%2e/%2e%2e/users.json",
        "api/models/alice/%ff",
    ],
)
def test_nothing_leads_out_of_the_folder(world: World, path: str) -> None:
    # a raw request: the client's own normalisation must not help
    import http.client

    host, port = world.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request("GET", f"/{path}")
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status in (400, 404), body
    assert b"tokens" not in body
