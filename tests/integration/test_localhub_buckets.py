"""Buckets through the real client, which knows no other way to their bytes than Xet."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import BucketBatchError, EntryNotFoundError, HfHubHTTPError
from huggingface_hub.utils import get_session

from localhub import seed
from localhub.server import HubServer

#: What packs well, what does not, and numbers, which are packed in groups.
DATA = (
    random.Random(1).randbytes(200_000)
    + b"hello world " * 30_000
    + b"".join((i * 1000).to_bytes(4, "little") for i in range(60_000))
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    root = tmp_path_factory.mktemp("hub")
    for name in ("alice", "bob"):
        seed.create_user(root, name, token=f"hf_{name}")
    seed.create_user(root, "alice", token="hf_read", role="read")
    seed.create_user(root, "lab", is_org=True, members=("alice",))
    with HubServer(root) as server:
        yield server


@pytest.fixture
def alice(hub: HubServer) -> HfApi:
    return HfApi(endpoint=hub.url, token="hf_alice")


@pytest.fixture
def bob(hub: HubServer) -> HfApi:
    return HfApi(endpoint=hub.url, token="hf_bob")


def files_of(hub: HubServer, bucket: str) -> Path:
    """Where a bucket's files lie, as a Job sees them."""
    return hub.root / "buckets" / bucket / "files"


def refused(status: int) -> pytest.RaisesExc[HfHubHTTPError]:
    return pytest.RaisesExc(HfHubHTTPError, check=lambda error: error.response.status_code == status)


def test_files_go_in_and_out(hub: HubServer, alice: HfApi, tmp_path: Path) -> None:
    url = alice.create_bucket("alice/in-and-out", private=True)
    assert url.bucket_id == "alice/in-and-out"
    source = tmp_path / "source.bin"
    source.write_bytes(DATA)
    alice.batch_bucket_files("alice/in-and-out", add=[(source, "a/b.bin"), (b"{}", "c.json"), (b"", "a/empty")])
    assert (files_of(hub, "alice/in-and-out") / "a" / "b.bin").read_bytes() == DATA
    listed = {item.path: item for item in alice.list_bucket_tree("alice/in-and-out")}
    assert list(listed) == ["a", "c.json"] and listed["a"].type == "directory"
    deep = {item.path: item.size for item in alice.list_bucket_tree("alice/in-and-out", prefix="a/b", recursive=True)}  # type: ignore[union-attr]
    assert deep == {"a/b.bin": len(DATA)}
    out = tmp_path / "out"
    alice.download_bucket_files("alice/in-and-out", [(path, out / path) for path in ("a/b.bin", "c.json", "a/empty")])
    assert (out / "a" / "b.bin").read_bytes() == DATA and (out / "c.json").read_bytes() == b"{}"
    assert (out / "a" / "empty").read_bytes() == b""
    info = alice.bucket_info("alice/in-and-out")
    assert (info.size, info.total_files, info.private) == (len(DATA) + 2, 3, True)
    # The same bytes again: the client sends none of them, and the file is there all the same.
    alice.batch_bucket_files("alice/in-and-out", add=[(source, "again.bin")], delete=["a/b.bin", "not/there"])
    assert (files_of(hub, "alice/in-and-out") / "again.bin").read_bytes() == DATA
    assert not (files_of(hub, "alice/in-and-out") / "a" / "b.bin").exists()
    with pytest.raises(EntryNotFoundError):
        alice.download_bucket_files("alice/in-and-out", [("a/b.bin", out / "x")], raise_on_missing_files=True)


def test_what_a_job_wrote_is_read_and_links_are_not_followed(hub: HubServer, alice: HfApi, tmp_path: Path) -> None:
    alice.create_bucket("alice/job")
    folder = files_of(hub, "alice/job")
    (folder / "out").mkdir()
    (folder / "out" / "made.bin").write_bytes(DATA * 50)
    (folder / "users").symlink_to(hub.root / "users.json")
    (folder / "up").symlink_to(hub.root)
    os.mkfifo(folder / "pipe")
    assert [item.path for item in alice.list_bucket_tree("alice/job", recursive=True)] == ["out/made.bin"]
    alice.download_bucket_files("alice/job", [("out/made.bin", tmp_path / "made.bin")])
    assert (tmp_path / "made.bin").read_bytes() == DATA * 50
    for path in ("users", "up/users.json", "pipe"):
        with pytest.raises(EntryNotFoundError):
            alice.download_bucket_files("alice/job", [(path, tmp_path / "x")], raise_on_missing_files=True)
    with pytest.raises(BucketBatchError, match="can't be written"):
        alice.batch_bucket_files("alice/job", add=[(b"x", "up/users.json")])
    assert "hf_alice" in (hub.root / "users.json").read_text()
    alice.batch_bucket_files("alice/job", delete=["users"])
    assert (hub.root / "users.json").exists() and not (folder / "users").is_symlink()


def test_only_the_owner_and_members_write_and_see_what_is_private(alice: HfApi, bob: HfApi, hub: HubServer) -> None:
    alice.create_bucket("lab/private", private=True)
    alice.create_bucket("lab/public")
    alice.batch_bucket_files("lab/public", add=[(b"words", "x.txt")])
    assert [item.id for item in alice.list_buckets("lab")] == ["lab/private", "lab/public"]
    assert [item.id for item in bob.list_buckets("lab")] == ["lab/public"]
    assert [item.path for item in bob.list_bucket_tree("lab/public")] == ["x.txt"]
    with refused(404):
        bob.bucket_info("lab/private")
    with refused(403):
        bob.create_bucket("lab/another")
    with pytest.raises((HfHubHTTPError, OSError)):
        bob.batch_bucket_files("lab/public", add=[(b"mine", "x.txt")])
    with refused(403):
        bob.batch_bucket_files("lab/public", delete=["x.txt"])
    with refused(403):
        HfApi(endpoint=hub.url, token="hf_read").batch_bucket_files("lab/public", delete=["x.txt"])
    alice.update_bucket_settings("lab/public", private=True)
    with refused(404):
        bob.bucket_info("lab/public")
    assert alice.create_bucket("lab/public", exist_ok=True).bucket_id == "lab/public"
    with refused(409):
        alice.create_bucket("lab/public")
    alice.delete_bucket("lab/public")
    with refused(404):
        alice.bucket_info("lab/public")
    alice.delete_bucket("lab/public", missing_ok=True)


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "a//b", ".git/x", "x" * 2000])
def test_paths_stay_inside(alice: HfApi, path: str) -> None:
    alice.create_bucket("alice/paths", exist_ok=True)
    with pytest.raises(HfHubHTTPError):
        alice.batch_bucket_files("alice/paths", delete=[path])


def test_a_key_opens_one_bucket_and_an_unknown_one_none(hub: HubServer, alice: HfApi) -> None:
    alice.create_bucket("alice/keys", exist_ok=True)
    session = get_session()
    given = session.get(
        f"{hub.url}/api/buckets/alice/keys/xet-read-token", headers={"authorization": "Bearer hf_alice"}
    ).json()
    for token in ("x", "e30", given["accessToken"][:-3], "hf_alice"):
        answer = session.get(
            f"{given['casUrl']}/v1/reconstructions/{'0' * 64}", headers={"authorization": f"Bearer {token}"}
        )
        assert answer.status_code == 401
    reading = {"authorization": f"Bearer {given['accessToken']}"}
    assert session.get(f"{given['casUrl']}/v1/reconstructions/{'0' * 64}", headers=reading).status_code == 404
    assert session.post(f"{given['casUrl']}/v1/shards", headers=reading, content=b"x").status_code == 401
    assert session.post(f"{given['casUrl']}/v1/xorbs/default/{'0' * 64}", headers=reading).status_code == 401
