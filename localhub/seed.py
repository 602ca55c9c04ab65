"""Filling a folder without HTTP: users, repos, files. The server may run: the locks are the same."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import card, gitobj
from .auth import Role, Users
from .disk import Locks, sync_dir
from .errors import BadRequest, InvalidName, NotFound
from .gitobj import Entry
from .names import MAIN, RepoType, check_path, check_repo_type
from .repos import Repo, Repos
from .store import RepoStore
from .trees import path_clashes
from .uploads import lfs_patterns, upload_mode

Source = Path | bytes
_SAMPLE = 512
_SKIPPED = {".git", ".cache", "__pycache__"}


def create_user(
    root: Path,
    name: str,
    *,
    token: str | None = None,
    role: Role = "write",
    is_org: bool = False,
    members: tuple[str, ...] = (),
) -> str:
    """Make a user and return the token (a random one unless given); again: one more token.

    With `is_org` an organisation of these members, which has no token of its own (`""` comes back).
    """
    root = Path(root)
    return Users(root, Locks(root)).create(name, token=token, role=role, is_org=is_org, members=members)


def create_repo(
    root: Path,
    repo_id: str,
    *,
    repo_type: RepoType = "model",
    private: bool = False,
    gated: bool | str = False,
    discussions: bool = True,
    likes: int = 0,
    downloads: int = 0,
    exist_ok: bool = True,
) -> None:
    """Make an empty repo. Its owner need not be a user: then nobody can write to it over HTTP."""
    root = Path(root)
    locks = Locks(root)
    settings: dict[str, Any] = {
        "private": private,
        "gated": gated,
        "discussionsDisabled": not discussions,
        "likes": likes,
        "downloads": downloads,
    }
    kind = check_repo_type(repo_type)
    repos = Repos(root, locks)
    try:
        repo = repos.get(kind, repo_id)
    except NotFound:
        repos.create(kind, repo_id, author=repo_id.split("/")[0], settings=settings)
        return
    if not exist_ok:
        raise BadRequest(f"{repo_id} exists already")
    with locks.hold(repo.lock):
        repo.update_meta(settings)


def upload_files(
    root: Path,
    repo_id: str,
    files: Mapping[str, Source],
    *,
    message: str = "Upload files",
    repo_type: RepoType = "model",
    author: str | None = None,
) -> str:
    """Commit files to main, making the repo where it is missing; the commit's id.

    Large files are hard-linked where they can be (the same disk) and copied otherwise. A linked file must not
    be written to afterwards: replace it instead.
    """
    root = Path(root)
    locks = Locks(root)
    kind = check_repo_type(repo_type)
    repos = Repos(root, locks)
    author = author or repo_id.split("/")[0]
    try:
        repo = repos.get(kind, repo_id)
    except NotFound:
        repo = repos.create(kind, repo_id, author=author)
    if not files:
        raise BadRequest("There are no files to upload")
    with locks.hold(repo.lock):
        return _commit(root, repo, files, message=message, author=author)


def _commit(root: Path, repo: Repo, files: Mapping[str, Source], *, message: str, author: str) -> str:
    store = repo.store
    head = store.resolve(MAIN)
    tree = dict(store.tree(head))
    attributes = tree.get(".gitattributes")
    patterns = lfs_patterns(store.read(attributes).decode("utf-8", "replace") if attributes else "")
    for path, source in files.items():
        tree[check_path(path)] = _put(root, store, path, source, patterns)
    if path_clashes(tree):
        raise BadRequest(f"{min(path_clashes(tree))} cannot be a file and a folder at once")
    if "README.md" in files:
        findings = card.validate(store.read(tree["README.md"]).decode("utf-8", "replace"), repo.repo_type)
        if findings.errors:
            raise BadRequest("Invalid metadata in README.md: " + "; ".join(findings.errors))
    title, _, rest = message.partition("\n")
    commit = store.put_commit(tree, parents=(head,), author=author, title=title, message=rest.strip())
    store.set_refs({MAIN: commit.oid})
    return commit.oid


def _put(root: Path, store: RepoStore, path: str, source: Source, patterns: tuple[str, ...]) -> Entry:
    if isinstance(source, bytes):
        size, sample = len(source), source[:_SAMPLE]
    else:
        with source.open("rb") as file:
            sample = file.read(_SAMPLE)
        size = source.stat().st_size
    if upload_mode(path, size=size, sample=sample, patterns=patterns) == "regular":
        return store.put_blob(source if isinstance(source, bytes) else source.read_bytes())
    return _put_lfs(root, store, source, size)


def _put_lfs(root: Path, store: RepoStore, source: Source, size: int) -> Entry:
    if isinstance(source, bytes):
        sha256 = hashlib.sha256(source).hexdigest()
    else:
        with source.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    target = store.lfs_path(sha256)
    if store.lfs_size(sha256) != size:
        target.parent.mkdir(parents=True, exist_ok=True)
        temp = root / "tmp" / f"seed-{uuid.uuid4().hex}"
        temp.parent.mkdir(parents=True, exist_ok=True)
        _place(source, temp)
        temp.replace(target)
        sync_dir(target.parent)
    return gitobj.lfs_entry(sha256, size)


def _place(source: Source, temp: Path) -> None:
    if isinstance(source, bytes):
        temp.write_bytes(source)
    else:
        try:
            temp.hardlink_to(source.resolve())
        except OSError:
            shutil.copyfile(source, temp)
    with temp.open("rb") as file:
        os.fsync(file.fileno())


def import_folder(
    root: Path,
    folder: Path,
    repo_id: str,
    *,
    message: str = "Import folder",
    repo_type: RepoType = "model",
    author: str | None = None,
) -> str:
    """Commit all files of a folder to main; the commit's id.

    `.git`, caches and links that lead outside are left out.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise InvalidName(f"{folder} is not a folder")
    files: dict[str, Source] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not _SKIPPED & set(inside.parts) and path.resolve().is_relative_to(folder):
            files[inside.as_posix()] = path
    return upload_files(root, repo_id, files, message=message, repo_type=repo_type, author=author)
