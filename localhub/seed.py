"""Filling a folder without HTTP: users, repos, files. The server may run: the locks are the same."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

from . import card, gitobj
from .auth import Role, Users
from .disk import Locks, stamp, sync_dir, sync_file, without_fsync
from .errors import BadRequest, InvalidName, NotFound
from .gitobj import Entry
from .names import MAIN, RepoType, check_path, check_repo_id, check_repo_type
from .repo_collections import Collections, new_item
from .repos import Repo, Repos
from .store import RepoStore
from .trees import path_clashes
from .uploads import lfs_patterns, upload_mode

Source = Path | bytes
Files = Mapping[str, Source]
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
    fine_grained: Mapping[str, Any] | None = None,
) -> str:
    """Make a user and return the token (a random one unless given); again: one more token.

    With `is_org` an organisation of these members, which has no token of its own (`""` comes back).
    """
    root = Path(root)
    return Users(root, Locks(root)).create(
        name, token=token, role=role, is_org=is_org, members=members, fine_grained=fine_grained
    )


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


def set_repo(root: Path, repo_id: str, *, repo_type: RepoType = "model", **settings: Any) -> None:
    """Change settings of a repo and leave the others: those of `repo.json`, and `discussions` as in `create_repo`.

    With `disabled=True` the repo is listed and described as disabled and its files are refused with 403;
    with `disabled="all"` its description is refused too.
    """
    unknown = settings.keys() - _SETTINGS
    if unknown:
        raise BadRequest(f"A repo has no setting {min(unknown)!r}")
    if "discussions" in settings:
        settings["discussionsDisabled"] = not settings.pop("discussions")
    root = Path(root)
    locks = Locks(root)
    repo = Repos(root, locks).get(check_repo_type(repo_type), repo_id)
    with locks.hold(repo.lock):
        repo.update_meta(settings)


_SETTINGS = {"private", "gated", "access", "disabled", "discussions", "likes", "downloads", "createdAt", "sdk"}


def move_repo(root: Path, old_id: str, new_id: str, *, repo_type: RepoType = "model") -> None:
    """Rename or transfer a repo; its old name redirects from then on."""
    repos = Repos(Path(root), Locks(Path(root)))
    repos.move(repos.get(check_repo_type(repo_type), old_id), check_repo_id(new_id))


def delete_repo(root: Path, repo_id: str, *, repo_type: RepoType = "model") -> None:
    """Delete a repo and all it holds."""
    repos = Repos(Path(root), Locks(Path(root)))
    repos.delete(repos.get(check_repo_type(repo_type), repo_id))


def create_collection(
    root: Path,
    slug: str,
    *,
    title: str,
    items: Sequence[tuple[str, str] | tuple[str, str, str]] = (),
    description: str | None = None,
    private: bool = False,
) -> None:
    """Make the collection `owner/slug`, or replace what it holds.

    Items are (`"model"`, `"dataset"` or `"space"`; repo id; a note, if any). The repos need not exist: who
    looks at the collection sees those that they may see.
    """
    root = Path(root)
    rows = [new_item(*item) for item in items]
    Collections(root, Locks(root)).put(slug, title=title, items=rows, description=description, private=private)


def upload_files(
    root: Path,
    repo_id: str,
    files: Files,
    *,
    message: str = "Upload files",
    repo_type: RepoType = "model",
    author: str | None = None,
    date: datetime | None = None,
    durable: bool = True,
) -> str:
    """Commit files to main, making the repo where it is missing; the commit's id.

    Large files are hard-linked where they can be (the same disk) and copied otherwise. A linked file must not
    be written to afterwards: replace it instead. `date` is the commit's (with a time zone), which otherwise is
    made now. Without `durable` nothing waits for the disk: much faster, and a power cut may leave half of it.
    """
    root = Path(root)
    with nullcontext() if durable else without_fsync():
        return _upload(
            root, Locks(root), repo_id, files, message=message, repo_type=repo_type, author=author, date=date, seen={}
        )


def many_repos(
    root: Path,
    repos: Mapping[str, Files] | Iterable[tuple[str, Files]],
    *,
    message: str = "Upload files",
    repo_type: RepoType = "model",
    dates: Mapping[str, datetime] | None = None,
    durable: bool = False,
) -> dict[str, str]:
    """`upload_files` for thousands of small repos: the commit of each by its id.

    `repos` gives each repo's files; an iterator is taken one by one. Equal large files are stored once and
    hard-linked. `dates` are those of the commits, by repo id.
    """
    root, done = Path(root), {}
    locks, seen = Locks(root), dict[str, Path]()
    with nullcontext() if durable else without_fsync():
        for repo_id, files in repos.items() if isinstance(repos, Mapping) else repos:
            date = dates.get(repo_id) if dates else None
            done[repo_id] = _upload(
                root, locks, repo_id, files, message=message, repo_type=repo_type, author=None, date=date, seen=seen
            )
    return done


def _upload(
    root: Path,
    locks: Locks,
    repo_id: str,
    files: Files,
    *,
    message: str,
    repo_type: RepoType,
    author: str | None,
    date: datetime | None,
    seen: dict[str, Path],
) -> str:
    kind = check_repo_type(repo_type)
    repos = Repos(root, locks)
    author = author or repo_id.split("/")[0]
    when = stamp(date) if date else None
    try:
        repo = repos.get(kind, repo_id)
    except NotFound:
        repo = repos.create(kind, repo_id, author=author, date=when)
    if not files:
        raise BadRequest("There are no files to upload")
    with locks.hold(repo.lock):
        return _commit(root, repo, files, message=message, author=author, date=when, seen=seen)


def _commit(
    root: Path, repo: Repo, files: Files, *, message: str, author: str, date: str | None, seen: dict[str, Path]
) -> str:
    store = repo.store
    head = store.resolve(MAIN)
    tree = dict(store.tree(head))
    attributes = tree.get(".gitattributes")
    patterns = lfs_patterns(store.read(attributes).decode("utf-8", "replace") if attributes else "")
    for path, source in files.items():
        tree[check_path(path)] = _put(root, store, path, source, patterns, seen)
    if path_clashes(tree):
        raise BadRequest(f"{min(path_clashes(tree))} cannot be a file and a folder at once")
    if "README.md" in files:
        findings = card.validate(store.read(tree["README.md"]).decode("utf-8", "replace"), repo.repo_type)
        if findings.errors:
            raise BadRequest("Invalid metadata in README.md: " + "; ".join(findings.errors))
    title, _, rest = message.partition("\n")
    commit = store.put_commit(tree, parents=(head,), author=author, title=title, message=rest.strip(), date=date)
    store.set_refs({MAIN: commit.oid})
    return commit.oid


def _put(
    root: Path, store: RepoStore, path: str, source: Source, patterns: tuple[str, ...], seen: dict[str, Path]
) -> Entry:
    if isinstance(source, bytes):
        size, sample = len(source), source[:_SAMPLE]
    else:
        with source.open("rb") as file:
            sample = file.read(_SAMPLE)
        size = source.stat().st_size
    if upload_mode(path, size=size, sample=sample, patterns=patterns) == "regular":
        return store.put_blob(source if isinstance(source, bytes) else source.read_bytes())
    return _put_lfs(root, store, source, size, seen)


def _put_lfs(root: Path, store: RepoStore, source: Source, size: int, seen: dict[str, Path]) -> Entry:
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
        _place(seen.get(sha256, source), temp)
        temp.replace(target)
        sync_dir(target.parent)
    seen[sha256] = target
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
        sync_file(file.fileno())


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
