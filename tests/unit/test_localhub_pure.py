"""The pure parts of localhub: names, git ids, merging, ranges, cards, limits."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localhub import card, gitobj, names, ranges, trees, uploads
from localhub.delivery import UnsafeTarget, resolve_target
from localhub.errors import InvalidName, RangeNotSatisfiable
from localhub.gitobj import Entry
from localhub.ratelimit import Quota, Windows
from localhub.web import split_revision

NASTY = st.sampled_from(["..", ".", "", "/", "\\", "\x00", "a", "b.c", "..a", "%2e%2e", "~", ".git", "C:", "\n", "é"])


# names


@given(st.lists(NASTY | st.text(max_size=5), max_size=6).map("/".join))
def test_no_accepted_path_leaves_its_folder(path: str) -> None:
    try:
        checked = names.check_path(path)
    except InvalidName:
        return
    assert checked == path
    base = Path("/base")
    joined = base / checked
    assert joined.parts[:2] == base.parts and ".." not in joined.parts and len(joined.parts) > 2
    assert not set(checked) & {"\\", "\0", "\n"}


@given(st.lists(NASTY | st.text(max_size=5), max_size=4).map("/".join))
def test_no_accepted_repo_id_leaves_its_folder(repo_id: str) -> None:
    try:
        owner, name = names.check_repo_id(repo_id).split("/")
    except InvalidName:
        return
    for part in (owner, name):
        assert part not in ("", ".", "..") and part.isascii() and not set(part) & set("/\\\0")


@given(st.text(max_size=30))
def test_no_accepted_branch_is_strange(name: str) -> None:
    try:
        names.check_branch(name)
    except InvalidName:
        return
    assert ".." not in name and not name.startswith(("/", "refs/")) and name.isascii() and " " not in name


@pytest.mark.parametrize("good", ["alice/Model-1.5B_GGUF", "a/b", "0x/_y_"])
def test_good_repo_ids(good: str) -> None:
    assert names.check_repo_id(good) == good


@pytest.mark.parametrize(
    "bad", ["a", "a/b/c", "../b", "a/..", "a/b--c", "a/b.git", "a/.b", "api/x", "Datasets/x", None, 3, "a/" + "x" * 97]
)
def test_bad_repo_ids(bad: object) -> None:
    with pytest.raises(InvalidName):
        names.check_repo_id(bad)


def test_revisions_in_a_url() -> None:
    assert split_revision("main/a/b") == ("main", "a/b")
    assert split_revision("refs\x1fpr\x1f7/a") == ("refs/pr/7", "a")
    assert split_revision("refs/pr/7/a/b") == ("refs/pr/7", "a/b")
    assert split_revision("main/a\x1fb") == ("main", "a/b")
    assert names.pr_number("refs/pr/07") is None and names.pr_number("refs/pr/12") == 12


# git ids


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_ids_are_gits_own(tmp_path: Path) -> None:
    files = {"b.txt": b"b\n", "a/x.txt": b"x", "a/deep/er/y": b"", "a.txt": b"dot", "a-b": b"dash", "é": b"e"}
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("-c", "core.autocrlf=false", "add", "-A")
    tree = {path: Entry(gitobj.blob_oid(content), len(content)) for path, content in files.items()}
    oids = gitobj.tree_oids(tree)
    root = git("write-tree")
    assert oids[""] == root
    assert oids["a/deep"] == git("rev-parse", f"{root}:a/deep")
    oid = gitobj.commit_oid(root, (), "alice", "Title", "body", "2026-01-02T03:04:05.678Z")
    raw = subprocess.run(
        ["git", "hash-object", "-t", "commit", "--stdin"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        input=(
            f"tree {root}\nauthor alice <alice@users.noreply.localhub> 1767323045 +0000\n"
            "committer alice <alice@users.noreply.localhub> 1767323045 +0000\n\nTitle\n\nbody\n"
        ).encode(),
    )
    assert oid == raw.stdout.decode().strip()


def test_pointer_is_the_lfs_format() -> None:
    sha256 = hashlib.sha256(b"x").hexdigest()
    assert gitobj.pointer(sha256, 1).decode().splitlines() == [
        "version https://git-lfs.github.com/spec/v1",
        f"oid sha256:{sha256}",
        "size 1",
    ]


# merging

PATHS = st.sampled_from(["a", "b", "c", "d/e", "d/f"])
TREES = st.dictionaries(PATHS, st.sampled_from([Entry("1" * 40, 1), Entry("2" * 40, 2), Entry("3" * 40, 3)]))


@given(TREES, TREES)
def test_merging_into_an_unmoved_main_gives_the_pull(base: dict[str, Entry], theirs: dict[str, Entry]) -> None:
    merged = trees.merge(base, base, theirs)
    assert merged.conflicts == () and merged.tree == theirs


@given(TREES, TREES, TREES)
def test_a_merge_is_symmetric_and_keeps_both_sides(
    base: dict[str, Entry], ours: dict[str, Entry], theirs: dict[str, Entry]
) -> None:
    merged, other = trees.merge(base, ours, theirs), trees.merge(base, theirs, ours)
    assert merged.conflicts == other.conflicts
    if not merged.conflicts:
        assert merged.tree == other.tree
        for side in (ours, theirs):
            for path, (_, entry) in trees.changed(base, side).items():
                assert merged.tree.get(path) == entry


def test_a_file_and_a_folder_of_one_name_conflict() -> None:
    one = Entry("1" * 40, 1)
    assert trees.merge({}, {"a": one}, {"a/b": one}).conflicts == ("a",)


def test_diff_applies(tmp_path: Path) -> None:
    contents: dict[str, bytes] = {}

    def entry(content: bytes) -> Entry:
        oid = gitobj.blob_oid(content)
        contents[oid] = content
        return Entry(oid, len(content))

    old = {"x": entry(b"1\n2\n3"), "gone": entry(b"g\n"), "same": entry(b"s")}
    new = {"x": entry(b"1\ntwo\n3\n"), "same": entry(b"s"), "new": entry(b"n"), "bin": entry(b"\0\1")}
    text = trees.unified(old, new, lambda item: contents[item.oid])
    assert "Binary files /dev/null and b/bin differ" in text and "+++ b/same" not in text
    if shutil.which("git"):
        for path, item in old.items():
            (tmp_path / path).write_bytes(contents[item.oid])
        kept = text[: text.index("diff --git a/bin")] + text[text.index("diff --git a/gone") :]
        subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=kept.encode(), check=True)
        assert (tmp_path / "x").read_bytes() == b"1\ntwo\n3\n" and not (tmp_path / "gone").exists()
        assert (tmp_path / "new").read_bytes() == b"n"


# ranges


@given(st.integers(0, 50), st.integers(0, 60), st.integers(1, 50))
def test_ranges_are_slices(start: int, last: int, size: int) -> None:
    data = bytes(range(size))
    try:
        part = ranges.parse(f"bytes={start}-{last}", size)
    except RangeNotSatisfiable:
        assert start >= size
        return
    if part is not None:
        assert data[part.start : part.end] == data[start : last + 1] != b""
    else:
        assert last < start


def test_odd_ranges() -> None:
    assert ranges.parse(None, 5) is None and ranges.parse("bytes=-", 5) is None
    assert ranges.parse("items=0-1", 5) is None and ranges.parse("bytes=0-1,2-3", 5) is None
    assert ranges.parse("bytes=-9", 5) == ranges.Part(0, 5)
    for header in ("bytes=-0", "bytes=5-"):
        with pytest.raises(RangeNotSatisfiable):
            ranges.parse(header, 5)


# cards


def test_tags_as_the_hub_derives_them() -> None:
    text = "---\nbase_model: [q/Base]\nlicense: mit\ntags: [imatrix]\nlanguage: en\ndate: 2024-01-01\n---\nbody"
    found = card.facts(text, ("m.gguf",), "model")
    assert found.library == "gguf" and found.data["date"] == "2024-01-01"
    assert found.tags == (
        *("gguf", "imatrix", "en", "base_model:q/Base", "base_model:quantized:q/Base", "license:mit", "region:us"),
    )
    assert "base_model:finetune:q/Base" in card.facts(text, ("model.safetensors",), "model").tags
    declared = text.replace("license", "base_model_relation: merge\nlicense")
    assert "base_model:merge:q/Base" in card.facts(declared, (), "model").tags


def test_validation() -> None:
    assert card.validate("no front matter", "model").warnings == (card.EMPTY_WARNING,)
    assert card.validate("---\nlicense: mit\n---\n", "model") == card.Findings()
    bomb = "---\na: &a [x,x]\n" + "".join(f"k{n}: [*a, *a]\n" for n in range(60)) + "---\n"
    for broken in (
        "---\na: [\n---\n",
        "---\n- a list\n---\n",
        "---\ntags: {a: b}\n---\n",
        "---\nbase_model: not an id\n---\n",
        "---\nmodel-index: [{name: x}]\n---\n",
        "---\nmodel-index:\n- name: x\n  results: [{metrics: [1]}]\n---\n",
        "---\n!!python/object/apply:os.system [ls]\n---\n",
        "---\nx: " + "[" * 5000 + "\n---\n",
        bomb,
    ):
        assert card.validate(broken, "model").errors, broken[:60]


@given(st.text(max_size=200))
def test_validation_never_fails(text: str) -> None:
    card.validate(f"---\n{text}\n---\n", "model")
    card.facts(f"---\n{text}\n---\n", ("a.gguf",), "model")


# the rest


def test_upload_modes() -> None:
    patterns = uploads.lfs_patterns("*.dat filter=lfs diff=lfs\n# *.txt filter=lfs\nbig/*.csv filter=lfs\n*.md text\n")
    assert patterns == ("*.dat", "big/*.csv")

    def mode(path: str, size: int = 5, sample: bytes = b"text") -> str:
        return uploads.upload_mode(path, size=size, sample=sample, patterns=patterns)

    assert [mode(path) for path in ("a.gguf", "x/A.PNG", "a.dat", "big/a.csv")] == ["lfs"] * 4
    assert [mode(path) for path in ("a.txt", "a.csv", "README.md", "a.md")] == ["regular"] * 4
    assert mode("a.txt", size=11 * 1024 * 1024) == "lfs" and mode("a.txt", sample=b"\0") == "lfs"
    assert mode("a.txt", sample="é".encode()[:1]) == "regular"  # cut in the middle of a character
    assert mode("empty.gguf", size=0) == "regular"


def test_windows_start_over() -> None:
    clock = [0.0]
    windows = Windows(Quota(api=2, resolvers=9, window_s=300), clock=lambda: clock[0])
    assert [windows.spend("a", "api").exceeded for _ in range(3)] == [False, False, True]
    assert not windows.spend("b", "api").exceeded and not windows.spend("a", "resolvers").exceeded
    clock[0] = 299.5
    assert windows.spend("a", "api").reset_s == 1
    clock[0] = 300.0
    assert windows.spend("a", "api").remaining == 1


def test_webhooks_stay_at_home() -> None:
    assert resolve_target("127.0.0.1", 80, allow_remote=False) == "127.0.0.1"
    for host in ("192.0.2.7", "10.0.0.1", "0.0.0.0", "169.254.169.254"):
        with pytest.raises(UnsafeTarget):
            resolve_target(host, 80, allow_remote=False)
    assert resolve_target("192.0.2.7", 80, allow_remote=True) == "192.0.2.7"
