"""Files in and out: commits, LFS, trees and downloads, through the real client."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationCopy, CommitOperationDelete, RepoFile, RepoFolder
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RemoteEntryNotFoundError
from huggingface_hub.utils import get_session
from test_localhub_world import CARD, World, add, open_world, status_of

from localhub import seed

WEIGHTS = bytes(range(256)) * 9000  # 2.3 MB


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("hub")) as opened:
        yield opened


def test_commit_regular_and_lfs_and_download(world: World, tmp_path: Path) -> None:
    repo_id = world.repo(files={})
    local = tmp_path / "m.gguf"
    local.write_bytes(WEIGHTS)
    done = world.alice.create_commit(
        repo_id,
        [add("README.md", CARD), add("sub/m.gguf", WEIGHTS), add("empty.txt", b"")],
        commit_message="Add all",
        commit_description="with words",
    )
    assert done.oid == world.alice.model_info(repo_id).sha
    info = world.nobody.model_info(repo_id, files_metadata=True)
    by_name = {item.rfilename: item for item in info.siblings or []}
    lfs = by_name["sub/m.gguf"].lfs
    assert lfs is not None and lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert lfs.size == by_name["sub/m.gguf"].size == len(WEIGHTS) and lfs.pointer_size == 132
    git_blob = hashlib.sha1(b"blob %d\0" % len(CARD) + CARD).hexdigest()
    assert by_name["README.md"].blob_id == git_blob and by_name["README.md"].lfs is None
    path = world.nobody.hf_hub_download(repo_id, "sub/m.gguf", cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == WEIGHTS
    assert Path(path).resolve().name == lfs.sha256  # the cache is keyed by the etag
    folder = world.nobody.snapshot_download(repo_id, cache_dir=tmp_path / "cache", revision=done.oid)
    assert (Path(folder) / "README.md").read_bytes() == CARD
    assert Path(folder).name == done.oid
    assert (Path(folder) / "empty.txt").read_bytes() == b""
    world.alice.verify_repo_checksums(repo_id, cache_dir=tmp_path / "cache", revision=done.oid)
    downloads = world.nobody.model_info(repo_id).downloads
    assert downloads is not None and downloads >= 3


def test_upload_folder_and_file(world: World, tmp_path: Path) -> None:
    repo_id = world.repo(files={})
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "a.txt").write_text("a")
    (tmp_path / "in" / "deep" / "b.bin").write_bytes(b"\0\1")
    world.alice.upload_folder(repo_id=repo_id, folder_path=tmp_path / "in", commit_message="Folder")
    world.alice.upload_file(repo_id=repo_id, path_or_fileobj=b"\x89PNG\0", path_in_repo="plot.png")
    rows = {item.path: item for item in world.nobody.list_repo_tree(repo_id, recursive=True)}
    assert isinstance(rows["deep"], RepoFolder)
    deep, text = rows["deep/b.bin"], rows["a.txt"]
    assert isinstance(deep, RepoFile) and deep.lfs is not None
    assert isinstance(text, RepoFile) and text.lfs is None
    again = world.alice.upload_folder(repo_id=repo_id, folder_path=tmp_path / "in")
    assert again.oid == world.alice.model_info(repo_id).sha  # nothing changed: no commit


def test_delete_copy_and_folders(world: World) -> None:
    repo_id = world.repo(files={"a/x.txt": b"x", "a/y.txt": b"y", "b.txt": b"b", "w.gguf": b"GGUF w"})
    world.alice.create_commit(
        repo_id,
        [
            CommitOperationCopy("b.txt", "c/b2.txt"),
            CommitOperationCopy("w.gguf", "c/w2.gguf"),
            CommitOperationDelete("a/"),
            CommitOperationDelete("b.txt"),
        ],
        commit_message="Tidy",
    )
    files = sorted(world.nobody.list_repo_files(repo_id))
    assert files == [".gitattributes", "c/b2.txt", "c/w2.gguf", "w.gguf"]
    for operation in (CommitOperationDelete("nope.txt"), CommitOperationDelete("nope/")):
        with pytest.raises(RemoteEntryNotFoundError):
            world.alice.create_commit(repo_id, [operation], commit_message="Delete what is not there")


def test_stale_parent_is_412(world: World) -> None:
    repo_id = world.repo()
    old = world.alice.model_info(repo_id).sha
    new = world.alice.create_commit(repo_id, [add("a", b"a")], commit_message="one", parent_commit=old)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        world.alice.create_commit(repo_id, [add("b", b"b")], commit_message="two", parent_commit=old)
    assert status_of(error) == 412
    assert world.alice.model_info(repo_id).sha == new.oid


def test_only_owners_commit_to_main(world: World) -> None:
    repo_id = world.repo("acme")
    world.bob.create_commit(repo_id, [add("bob.gguf", b"GGUF bob")], commit_message="a member")
    for content in (b"text", b"\0binary"):
        with pytest.raises(HfHubHTTPError, match="create_pr=1") as error:
            world.mallory.create_commit(repo_id, [add("m", content)], commit_message="a stranger")
        assert status_of(error) == 403


def test_concurrent_commits_lose_nothing(world: World) -> None:
    repo_id = world.repo()
    errors: list[Exception] = []

    def push(number: int) -> None:
        try:
            world.alice.create_commit(repo_id, [add(f"{number}.txt", b"%d" % number)], commit_message=f"{number}")
        except Exception as error:  # collected: an assert in a thread is lost
            errors.append(error)

    threads = [threading.Thread(target=push, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert {f"{number}.txt" for number in range(12)} <= set(world.nobody.list_repo_files(repo_id))
    assert len(world.nobody.list_repo_commits(repo_id)) == 12 + 2


def test_broken_card_is_refused(world: World) -> None:
    repo_id = world.repo()
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        world.alice.upload_file(
            repo_id=repo_id, path_or_fileobj=b"---\ntags: [a\nb: : c\n---\n", path_in_repo="README.md"
        )
    with pytest.raises(ValueError, match="license"):
        world.alice.upload_file(repo_id=repo_id, path_or_fileobj=b"---\nlicense: 3\n---\n", path_in_repo="README.md")
    with pytest.warns(UserWarning, match="empty or missing yaml"):
        world.alice.upload_file(repo_id=repo_id, path_or_fileobj=b"# no metadata\n", path_in_repo="README.md")


# the protocol, where the client would never send it


def _post(world: World, path: str, who: str = "alice", **kwargs: object) -> tuple[int, dict[str, object]]:
    headers = {"Authorization": f"Bearer {world.tokens[who]}"}
    response = get_session().post(f"{world.url}/{path}", headers=headers, **kwargs)  # type: ignore[arg-type]
    return response.status_code, response.json()


def test_commit_refuses_what_makes_no_sense(world: World) -> None:
    repo_id = world.repo(files={"f": b"f"})
    path = f"api/models/{repo_id}/commit/main"
    head = '{"key":"header","value":{"summary":"s"}}\n'
    lfs = '{"key":"lfsFile","value":{"path":"a.gguf","algo":"sha256","oid":"%s","size":3}}'
    cases = {
        head + lfs % ("0" * 64): 422,
        head + lfs % "zz": 400,
        head: 400,
        "not json": 400,
        head + '{"key":"file","value":{"path":"../x","content":""}}': 400,
        head + '{"key":"file","value":{"path":"/x","content":""}}': 400,
        head + '{"key":"file","value":{"path":"a/.git/x","content":""}}': 400,
        head + '{"key":"file","value":{"path":"f/inside","content":""}}': 400,
        head + '{"key":"file","value":{"path":"x","content":"!!","encoding":"base64"}}': 400,
        head + '{"key":"file","value":{"path":"big","content":"%s"}}' % ("a" * (11 * 1024 * 1024)): 413,
        head + '{"key":"strange","value":{"path":"x"}}': 400,
        '{"key":"header","value":{"summary":""}}\n': 400,
    }
    before = world.alice.model_info(repo_id).sha
    for body, status in cases.items():
        got, answer = _post(world, path, content=body.encode())
        assert (got, "error" in answer) == (status, True), body[:200]
    assert world.alice.model_info(repo_id).sha == before
    copy = head + '{"key":"copyFile","value":{"path":"g","srcPath":"f"}}'
    assert _post(world, path, content=copy.encode())[0] == 200
    assert "g" in world.alice.list_repo_files(repo_id)


def test_lfs_upload_is_checked(world: World) -> None:
    repo_id = world.repo(files={"have.gguf": b"GGUF have"})
    good, have = b"the content", hashlib.sha256(b"GGUF have").hexdigest()
    oid = hashlib.sha256(good).hexdigest()
    batch = f"{repo_id}.git/info/lfs/objects/batch"
    asked = {"operation": "upload", "objects": [{"oid": oid, "size": 11}, {"oid": have, "size": 9}]}
    status, answer = _post(world, batch, json=asked)
    rows = answer["objects"]
    assert status == 200 and isinstance(rows, list) and "actions" not in rows[1]
    href, session = rows[0]["actions"]["upload"]["href"], get_session()
    assert session.put(href, content=b"the CONTENT").status_code == 400  # another hash
    assert session.put(href, content=b"short").status_code == 413
    assert session.put(href, content=good + b"!").status_code == 413
    assert session.put(href.replace("size=11", "size=12"), content=good + b"!").status_code == 403
    verify = f"{repo_id}.git/info/lfs/verify"
    assert _post(world, verify, json={"oid": oid, "size": 11})[0] == 404
    assert session.put(href, content=good).status_code == 200
    assert _post(world, verify, json={"oid": oid, "size": 11})[0] == 200
    assert _post(world, batch, json={**asked, "ref": {"name": "main"}}, who="mallory")[0] == 403
    assert _post(world, batch, json=asked, who="mallory")[0] == 200  # for a pull request
    assert not list((world.root / "tmp").glob("upload-*"))


# reading


def test_tree_pages_folders_and_last_commits(world: World) -> None:
    repo_id = world.repo(files={f"many/{number:04}.txt": b"same" for number in range(1200)})
    seed.upload_files(world.root, repo_id, {"many/0007.txt": b"changed", "top.txt": b"t"}, message="later")
    rows = list(world.nobody.list_repo_tree(repo_id, recursive=True))
    assert len(rows) == 1200 + 1 + 2  # files, the folder, top.txt and .gitattributes
    assert [row.path for row in world.nobody.list_repo_tree(repo_id)] == [".gitattributes", "many", "top.txt"]
    inside = list(world.nobody.list_repo_tree(repo_id, "many", expand=True))
    assert len(inside) == 1200
    assert {row.path for row in inside if row.last_commit and row.last_commit.title == "later"} == {"many/0007.txt"}
    with pytest.raises(RemoteEntryNotFoundError):
        list(world.nobody.list_repo_tree(repo_id, "nothing"))
    found = world.nobody.get_paths_info(repo_id, ["many", "top.txt", "missing"], expand=True)
    assert [row.path for row in found] == ["many", "top.txt"]
    assert all(row.last_commit and row.last_commit.title == "later" for row in found)


def test_ranges_and_headers(world: World) -> None:
    repo_id = world.repo(files={"w.gguf": WEIGHTS, "t.txt": "ünïcode".encode()})
    url, session = f"{world.url}/{repo_id}/resolve/main/w.gguf", get_session()
    head = session.head(url)
    assert head.status_code == 200 and head.content == b""
    sha256, commit = hashlib.sha256(WEIGHTS).hexdigest(), world.alice.model_info(repo_id).sha
    assert head.headers["etag"] == head.headers["x-linked-etag"] == f'"{sha256}"'
    assert head.headers["x-repo-commit"] == commit and head.headers["accept-ranges"] == "bytes"
    assert head.headers["x-linked-size"] == head.headers["content-length"] == str(len(WEIGHTS))
    size = len(WEIGHTS)
    for wanted, start, end in (("0-9", 0, 10), ("100-", 100, size), ("-5", size - 5, size), ("5-99999999", 5, size)):
        part = session.get(url, headers={"Range": f"bytes={wanted}"})
        assert part.status_code == 206 and part.content == WEIGHTS[start:end]
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    beyond = session.get(url, headers={"Range": f"bytes={size}-"})
    assert beyond.status_code == 416 and beyond.headers["content-range"] == f"bytes */{size}"
    assert session.get(url, headers={"Range": "bytes=0-1,3-4"}).status_code == 200
    assert session.get(url, headers={"If-None-Match": f'"{sha256}"'}).status_code == 304
    other = session.get(url, headers={"Range": "bytes=0-1", "If-Range": '"old"'})
    assert other.status_code == 200 and len(other.content) == size
    text = session.get(f"{world.url}/{repo_id}/resolve/main/t.txt")
    assert text.text == "ünïcode" and "x-linked-size" not in text.headers
    missing = session.get(f"{world.url}/{repo_id}/resolve/main/none.txt")
    assert missing.status_code == 404 and missing.headers["x-error-code"] == "EntryNotFound"
    gone = session.get(f"{world.url}/{repo_id}/resolve/nowhere/t.txt")
    assert gone.status_code == 404 and gone.headers["x-error-code"] == "RevisionNotFound"


def test_a_page_of_a_strangers_file_is_not_ours(world: World) -> None:
    repo_id = world.repo(files={"evil.html": b"<script>alert(1)</script>"})
    response = get_session().get(f"{world.url}/{repo_id}/resolve/main/evil.html")
    assert response.headers["content-type"].startswith("text/plain")
    assert response.headers["x-content-type-options"] == "nosniff"


def test_entry_errors(world: World, tmp_path: Path) -> None:
    repo_id = world.repo()
    with pytest.raises(RemoteEntryNotFoundError):
        world.nobody.hf_hub_download(repo_id, "missing.txt", cache_dir=tmp_path)
    assert not world.nobody.file_exists(repo_id, "missing.txt")
    with pytest.raises(BadRequestError):
        world.alice.create_commit(repo_id, [add("a\\b.txt", b"x")], commit_message="a backslash")


def test_gguf_facts(world: World) -> None:
    gguf = pytest.importorskip("gguf")
    import numpy as np

    path = world.root / "made.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(2048)
    writer.add_token_list(["<s>", "</s>", "a"])
    writer.add_bos_token_id(0)
    writer.add_tensor("t", np.zeros((3, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    repo_id = world.repo(files={"bad.gguf": b"GGUF\3\0\0\0" + b"\xff" * 64})
    seed.upload_files(world.root, repo_id, {"made.gguf": path})
    facts = world.nobody.model_info(repo_id, expand=["gguf"]).gguf
    assert facts == {"total": 96, "architecture": "llama", "context_length": 2048, "bos_token": "<s>"}
