"""Merging by lines: what each side changed is there, git decides the same, and nothing else is touched."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localhub import merge, pulls, seed, trees
from localhub.auth import Identity
from localhub.commits import CommitRequest, Operation
from localhub.disk import Locks
from localhub.gitobj import Entry, blob_oid, lfs_entry
from localhub.names import MAIN
from localhub.repos import Repos

LINES = st.lists(st.sampled_from([b"a", b"b", b"", b"c\r", b"\xc3\xa9", b"\r"]), max_size=9)
TEXTS = st.tuples(LINES, st.booleans()).map(lambda pair: b"\n".join(pair[0]) + (b"\n" if pair[1] else b""))
BYTES = TEXTS | st.binary(max_size=30)


@given(BYTES, BYTES)
def test_one_side_alone_is_taken_as_it_is(base: bytes, changed: bytes) -> None:
    assert merge.merge(base, changed, base) == changed
    assert merge.merge(base, base, changed) == changed
    assert merge.merge(base, changed, changed) == changed


@given(TEXTS, TEXTS)
def test_edits_make_the_new_text_of_the_old(old: bytes, new: bytes) -> None:
    before, after = merge.split(old), merge.split(new)
    assert b"".join(before) == old
    built, done = [], 0
    for edit in merge.edits(before, after):
        assert edit.start >= done and (not built or edit.start > done)
        built += [*before[done : edit.start], *after[edit.new_start : edit.new_end]]
        done = edit.end
    assert built + before[done:] == after


@given(TEXTS, TEXTS, TEXTS)
def test_sides_can_be_swapped(base: bytes, ours: bytes, theirs: bytes) -> None:
    assert merge.merge(base, ours, theirs) == merge.merge(base, theirs, ours)


@given(
    st.integers(1, 4), st.lists(st.sampled_from(["keep", "put", "drop", "both"]), min_size=1, max_size=8), st.booleans()
)
def test_edits_apart_from_each_other_are_both_there(gap: int, kinds: list[str], final: bool) -> None:
    """Places `gap` lines apart, changed by one side in turn (or by both in the same way)."""
    base, ours, theirs, want = [], [], [], []
    for number, kind in enumerate(kinds):
        kept = [b"%d.%d" % (number, line) for line in range(gap)]
        old, new = [b"old %d" % number], [b"new %d" % number, b"more"]
        mine = {"keep": old, "put": new, "drop": [], "both": new}[kind]
        yours = mine if kind == "both" else old
        if number % 2 and kind != "both":
            mine, yours = yours, mine
        base += kept + old
        ours += kept + mine
        theirs += kept + yours
        want += kept + (mine if mine != old else yours)
    end = [b"end"] + ([b""] if final else [])

    def text(lines: list[bytes]) -> bytes:
        return b"\r\n".join(lines + end)

    assert merge.merge(text(base), text(ours), text(theirs)) == text(want)


@given(st.integers(0, 8), st.integers(0, 8))
def test_edits_that_touch_are_a_conflict(mine: int, yours: int) -> None:
    base = [b"%d\n" % number for number in range(10)]
    ours, theirs = list(base), list(base)
    ours[mine], theirs[yours] = b"mine\n", b"yours\n"
    merged = merge.merge(b"".join(base), b"".join(ours), b"".join(theirs))
    if abs(mine - yours) < 2:
        assert merged is None
    else:
        assert merged is not None and merged.count(b"\n") == 10 and b"mine\n" in merged and b"yours\n" in merged


def _git(folder: Path, base: bytes, ours: bytes, theirs: bytes) -> bytes | None:
    for name, content in (("base", base), ("ours", ours), ("theirs", theirs)):
        (folder / name).write_bytes(content)
    done = subprocess.run(["git", "merge-file", "-p", "ours", "base", "theirs"], cwd=folder, capture_output=True)
    return None if done.returncode else done.stdout


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_git_decides_the_same(data: st.DataObject) -> None:
    """Lines are distinct: where they repeat there is more than one right alignment."""
    base = [b"line %d" % number for number in range(data.draw(st.integers(0, 8)))]

    def side() -> bytes:
        lines = list(base)
        for step in range(data.draw(st.integers(0, 3))):
            at = data.draw(st.integers(0, len(lines)))
            lines[at : at + data.draw(st.integers(0, 2))] = [b"new %d" % step] * data.draw(st.integers(0, 1))
        return b"\n".join(lines) + data.draw(st.sampled_from([b"", b"\n"]))

    texts = (b"\n".join(base) + b"\n", side(), side())
    with tempfile.TemporaryDirectory() as folder:
        assert merge.merge(*texts) == _git(Path(folder), *texts)


def test_what_is_no_text_is_taken_whole() -> None:
    base = b"1\n2\n3\n4\n5\n"
    ours, theirs = base.replace(b"1", b"one"), base.replace(b"5", b"five")
    assert merge.merge(base, ours, theirs) == b"one\n2\n3\n4\nfive\n"
    for odd in (b"\xff", b"\0"):
        assert merge.merge(base + odd, ours + odd, theirs + odd) is None
    assert merge.merge(base, ours + b"x" * merge.MAX_BYTES, theirs) is None


def test_many_changes_count_as_one() -> None:
    """The bound on work: beyond it a side is one edit from its first to its last difference."""
    base = [b"%d\n" % number for number in range(5000)]
    ours = [b"0 changed\n", *base[1:]]
    theirs = [*base[:10], *(b"x%d\n" % number for number in range(4980)), *base[-10:]]
    merged = merge.merge(b"".join(base), b"".join(ours), b"".join(theirs))
    assert merged == b"".join([*ours[:1], *theirs[1:]])
    assert len(merge.edits(base, theirs)) == 1
    inside = [*base[:2500], b"changed\n", *base[2501:]]
    assert merge.merge(b"".join(base), b"".join(inside), b"".join(theirs)) is None


def test_trees_merge_texts_and_nothing_else() -> None:
    kept: dict[str, bytes] = {}

    def entry(content: bytes) -> Entry:
        oid = blob_oid(content)
        kept[oid] = content
        return Entry(oid, len(content))

    def read(item: Entry) -> bytes:
        return kept[item.oid]

    text = b"1\n2\n3\n4\n"
    base = {"README.md": entry(text), "gone": entry(b"g\n"), "big": lfs_entry("1" * 64, 1)}
    ours = {**base, "README.md": entry(b"one\n2\n3\n4\n"), "gone": entry(b"h\n"), "big": lfs_entry("2" * 64, 1)}
    theirs = {**base, "README.md": entry(b"1\n2\n3\n4\nfive\n"), "big": lfs_entry("3" * 64, 1), "new": entry(b"n")}
    del theirs["gone"]
    found = trees.merge(base, ours, theirs, read)
    assert found.conflicts == ("big", "gone")
    assert found.texts == {"README.md": b"one\n2\n3\n4\nfive\n"}
    assert found.tree["README.md"] == entry(b"one\n2\n3\n4\nfive\n") and found.tree["new"] == entry(b"n")
    added = trees.merge({}, {"x": entry(b"1\n")}, {"x": entry(b"2\n")}, read)
    assert added.conflicts == ("x",)


def test_a_merge_cut_in_half_is_the_same_again(tmp_path: Path) -> None:
    """Main has the merged text already, the pull request is open still: merging again changes nothing."""
    text = b"".join(b"%d\r\n" % number for number in range(9)) + b"end"
    seed.upload_files(tmp_path, "alice/m", {"README.md": text})
    repo, locks = Repos(tmp_path, Locks(tmp_path)).get("model", "alice/m"), Locks(tmp_path)
    change = Operation("file", "README.md", {"path": "README.md"}, text.replace(b"2", b"two"))
    made = pulls.commit_as_pull(
        locks, repo, Identity("bot", "write"), "main", CommitRequest("Change", "", None, [change])
    )
    assert made.opened is not None
    ours = text.replace(b"end", b"the end")
    seed.upload_files(tmp_path, "alice/m", {"README.md": ours})
    assert pulls.conflicts(repo, made.opened) == []
    owner = Identity("alice", "write")
    pulls.merge(locks, repo, owner, 1, None)
    both = repo.store.tree(repo.store.resolve(MAIN))["README.md"]
    assert repo.store.read(both) == ours.replace(b"2", b"two")
    reopened = {**made.opened, "status": "open"}
    again = trees.merge(
        repo.store.tree(made.opened["baseOid"]),
        repo.store.tree(repo.store.resolve(MAIN)),
        repo.store.tree(pulls.head_of(repo, reopened)),
        repo.store.read,
    )
    assert again.conflicts == () and again.tree["README.md"] == both
