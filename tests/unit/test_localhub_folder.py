"""The folder on disk: seeding, crashes in the middle, locks."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from localhub import discussions, pulls, seed
from localhub.auth import Identity, Users
from localhub.commits import CommitRequest, Operation
from localhub.disk import Locks, read_json, read_json_cached, stamp, write_atomic
from localhub.errors import BadRequest, Conflict, InvalidName, RevisionNotFound, Unauthorized
from localhub.names import MAIN
from localhub.repos import Repo, Repos

ALICE = Identity("alice", "write")


def repo_of(root: Path, repo_id: str = "alice/m") -> Repo:
    return Repos(root, Locks(root)).get("model", repo_id)


def request(path: str, content: bytes) -> CommitRequest:
    return CommitRequest("title", "", None, [Operation("file", path, {"path": path}, content)])


def test_users_and_tokens(tmp_path: Path) -> None:
    token = seed.create_user(tmp_path, "alice")
    assert token.startswith("hf_")
    assert seed.create_user(tmp_path, "alice", token="hf_two", role="read") == "hf_two"
    assert seed.create_user(tmp_path, "acme", is_org=True, members=("alice",)) == ""
    users = Users(tmp_path, Locks(tmp_path))
    assert users.identify(f"Bearer {token}").role == "write"
    assert users.identify("Bearer hf_two").role == "read"
    assert users.identify(f"Bearer {token}").orgs == ("acme",)
    assert users.identify(None).name is None
    for bad in ("Bearer hf_none", "Basic x", token):
        with pytest.raises(Unauthorized):
            users.identify(bad)
    with pytest.raises(Conflict):
        seed.create_user(tmp_path, "bob", token="hf_two")
    with pytest.raises(Conflict):
        seed.create_user(tmp_path, "acme")
    for name in ("../x", "api", "", "a b"):
        with pytest.raises(InvalidName):
            seed.create_user(tmp_path, name)
    assert stat.S_IMODE((tmp_path / "users.json").stat().st_mode) == 0o600


def test_upload_files_links_and_copies(tmp_path: Path) -> None:
    source = tmp_path / "big.gguf"
    source.write_bytes(b"GGUF" * 1000)
    root = tmp_path / "hub"
    oid = seed.upload_files(root, "alice/m", {"x/big.gguf": source, "README.md": b"---\nlicense: mit\n---\n"})
    repo = repo_of(root)
    entry = repo.store.tree(oid)["x/big.gguf"]
    assert entry.lfs == hashlib.sha256(source.read_bytes()).hexdigest()
    assert repo.store.content_path(entry).samefile(source)  # a link: no second copy
    assert repo.store.resolve(None) == oid
    for files, error in (
        ({"../x": b""}, InvalidName),
        ({"README.md": b"---\na: [\n---\n"}, BadRequest),
        ({}, BadRequest),
    ):
        with pytest.raises(error):
            seed.upload_files(root, "alice/m", files)
    assert repo.store.resolve(None) == oid


def test_import_folder(tmp_path: Path) -> None:
    folder, secret = tmp_path / "in", tmp_path / "secret.txt"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("no")
    (folder / "a" / "b" / "c.txt").write_text("c")
    secret.write_text("s")
    (folder / "link.txt").symlink_to(secret)
    oid = seed.import_folder(tmp_path / "hub", folder, "alice/data", repo_type="dataset")
    found = Repos(tmp_path / "hub", Locks(tmp_path / "hub")).get("dataset", "alice/data").store.tree(oid)
    assert sorted(found) == [".gitattributes", "a/b/c.txt"]
    with pytest.raises(InvalidName):
        seed.import_folder(tmp_path / "hub", tmp_path / "missing", "alice/data")


def test_leftovers_of_a_crash_do_no_harm(tmp_path: Path) -> None:
    seed.upload_files(tmp_path, "alice/m", {"f.txt": b"f"})
    repo, locks = repo_of(tmp_path), Locks(tmp_path)
    # killed after the ref of a pull request was written, before its discussion was
    repo.store.set_refs({"refs/pr/1": repo.store.resolve(None)})
    # killed while a file was written, and while a repo was made
    (repo.path / "commits" / ".half.tmp").write_text('{"oid": ')
    (tmp_path / "tmp" / "create-dead").mkdir(parents=True)
    assert list(discussions.every(repo)) == []
    made = pulls.commit_as_pull(locks, repo, Identity("bot", "write"), "main", request("g.txt", b"g"))
    assert made.opened is not None and made.opened["num"] == 2
    assert [item.repo_id for item in Repos(tmp_path, locks).all()] == ["alice/m"]


def test_a_merge_cut_in_half_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seed.upload_files(tmp_path, "alice/m", {"f.txt": b"f"})
    repo, locks = repo_of(tmp_path), Locks(tmp_path)
    made = pulls.commit_as_pull(locks, repo, Identity("bot", "write"), "main", request("g.txt", b"g"))
    num = made.opened["num"] if made.opened else 0

    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(discussions, "save", killed)
        with pytest.raises(SystemExit):
            pulls.merge(locks, repo, ALICE, num, None)
    assert "g.txt" in repo.store.tree(repo.store.resolve(MAIN))
    assert discussions.load(repo, num)["status"] == "open"
    pulls.merge(locks, repo, ALICE, num, None)
    assert discussions.load(repo, num)["status"] == "merged"


def test_commit_ids_are_per_repo(tmp_path: Path) -> None:
    oid = seed.upload_files(tmp_path, "alice/m", {"f.txt": b"f"})
    seed.create_repo(tmp_path, "alice/other")
    with pytest.raises(RevisionNotFound):
        repo_of(tmp_path, "alice/other").store.resolve(oid)
    with pytest.raises(BadRequest):
        pulls.commit(Locks(tmp_path), repo_of(tmp_path), ALICE, oid, request("g.txt", b"g"))


def test_a_commit_is_younger_than_the_one_before(tmp_path: Path) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=1)
    seed.upload_files(tmp_path, "alice/m", {"f.txt": b"1"}, date=ahead, durable=False)
    for number in range(3):
        seed.upload_files(tmp_path, "alice/m", {"f.txt": b"%d" % number}, durable=False)
    store = repo_of(tmp_path).store
    dates = [commit.date for commit in store.history(store.resolve(None))]
    want = [stamp(ahead + timedelta(milliseconds=step)) for step in (3, 2, 1, 0)]
    assert dates[:4] == want and dates[4] == want[-1]  # the last: the repo was made then too


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for age in (0, 60):  # young, and old enough to be kept
        path.write_text("[1]")
        moment = time.time_ns() - age * 10**9
        os.utime(path, ns=(moment, moment))
        assert read_json_cached(path) == [1]
        path.write_text("[2]")  # in place: the same file, the same size
        os.utime(path, ns=(moment, moment) if not age else (moment, moment + 1))
        assert read_json_cached(path) == [2]
    path.unlink()
    assert read_json_cached(path) is None


def test_writes_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_atomic(path, b"{}")
    stop = threading.Event()
    errors: list[Exception] = []

    def read() -> None:
        while not stop.is_set():
            try:
                read_json(path)
            except ValueError as error:
                errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(50):
        write_atomic(path, json.dumps(["x" * 5000] * (number % 7)).encode())
    stop.set()
    reader.join()
    assert not errors and [item.name for item in tmp_path.iterdir()] == ["x.json"]


def test_locks_are_reentrant_and_exclusive(tmp_path: Path) -> None:
    mine, theirs = Locks(tmp_path), Locks(tmp_path)  # as of two processes
    order: list[str] = []

    def other() -> None:
        with theirs.hold("a"):
            order.append("theirs")

    with mine.hold("a", "b"), mine.hold("a"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.1)
        order.append("mine")
    thread.join(5)
    assert order == ["mine", "theirs"]
