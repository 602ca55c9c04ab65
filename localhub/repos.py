"""All repos in the folder: make, find, delete, rename, and each one's settings."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .disk import Locks, now, random_id, read_json, read_json_cached, sync_dir, write_json
from .errors import Conflict, RepoMoved, RepoNotFound
from .names import MAIN, REPO_TYPES, RepoType, check_repo_id
from .store import RepoStore

GITATTRIBUTES = "".join(
    f"*.{ext} filter=lfs diff=lfs merge=lfs -text\n"
    for ext in (  # noqa: SIM905
        "7z arrow bin bz2 ckpt gguf gz h5 imatrix joblib jpg jpeg kld mlmodel model msgpack npy npz onnx ot"
        " parquet pb pdf pickle pkl png pt pth rar safetensors tar tflite tgz wasm webp xz zip zst"
    ).split()
)


@dataclass(frozen=True)
class Repo:
    """One repo: its name, its store and its settings file."""

    repo_type: RepoType
    repo_id: str
    path: Path

    @property
    def owner(self) -> str:
        """The user or organisation it belongs to."""
        return self.repo_id.split("/")[0]

    @property
    def lock(self) -> str:
        """The name of its lock."""
        return lock_name(self.repo_type, self.repo_id)

    @property
    def store(self) -> RepoStore:
        """Its objects, commits and refs."""
        return RepoStore(self.path)

    @property
    def web_path(self) -> str:
        """Its path on the web, `owner/name` or `datasets/owner/name`."""
        return self.repo_id if self.repo_type == "model" else f"{self.repo_type}s/{self.repo_id}"

    @property
    def api_path(self) -> str:
        """Its path in the API."""
        return f"api/{self.repo_type}s/{self.repo_id}"

    def meta(self) -> dict[str, Any]:
        """Its settings: private, gated, disabled, discussionsDisabled, likes, downloads, access, sdk, ..."""
        meta = read_json_cached(self.path / "repo.json")
        if meta is None:
            raise RepoNotFound()
        return dict(meta)

    def update_meta(self, changes: dict[str, Any]) -> None:
        """Change settings; the caller holds the lock."""
        write_json(self.path / "repo.json", {**self.meta(), **changes})

    def count_download(self) -> None:
        """One byte appended: atomic, without a lock, and a kill loses nothing."""
        with (self.path / "downloads.count").open("ab", buffering=0) as file:
            file.write(b".")

    def downloads(self, meta: dict[str, Any]) -> int:
        """Seeded downloads plus those counted here."""
        try:
            counted = os.stat(f"{self.path}/downloads.count").st_size  # noqa: PTH116 (lists ask this of every repo)
        except FileNotFoundError:
            counted = 0
        return int(meta.get("downloads", 0)) + counted


def lock_name(repo_type: RepoType, repo_id: str) -> str:
    """The name of a repo's lock."""
    return f"{repo_type}s/{repo_id}"


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 (names are all that is needed)
    except (FileNotFoundError, NotADirectoryError):
        return []


class Repos:
    """The `repos/` folder."""

    def __init__(self, root: Path, locks: Locks) -> None:
        self._root = root
        self._locks = locks

    def _path(self, repo_type: RepoType, repo_id: str) -> Path:
        owner, name = check_repo_id(repo_id).split("/")
        return self._root / "repos" / f"{repo_type}s" / owner / name

    def get(self, repo_type: RepoType, repo_id: str) -> Repo:
        """The repo; `RepoMoved` if it was renamed, `RepoNotFound` if there is none."""
        path = self._path(repo_type, repo_id)
        if not (path / "repo.json").exists():
            moved = self._redirects().get(lock_name(repo_type, repo_id))
            if moved is not None:
                raise RepoMoved(repo_id, moved)
            raise RepoNotFound()
        return Repo(repo_type, repo_id, path)

    def all(self, repo_type: RepoType | None = None, *, owner: str | None = None) -> Iterator[Repo]:
        """Every repo of a type (or of all types), private ones too; only an owner's (in any case) if one is given."""
        for kind in [repo_type] if repo_type else REPO_TYPES:
            folder = self._root / "repos" / f"{kind}s"
            for name in _names(folder):
                if owner is None or name.lower() == owner.lower():
                    yield from self._of(kind, folder / name)

    def _of(self, kind: RepoType, folder: Path) -> Iterator[Repo]:
        for name in _names(folder):
            path = folder / name
            if os.path.exists(f"{path}/repo.json"):  # noqa: PTH110 (as above: ten thousand of them)
                yield Repo(kind, f"{folder.name}/{name}", path)

    def create(
        self,
        repo_type: RepoType,
        repo_id: str,
        *,
        author: str,
        settings: dict[str, Any] | None = None,
        date: str | None = None,
    ) -> Repo:
        """Make a repo with git's first commit in it, made now or at `date`; `Conflict` if it exists."""
        path = self._path(repo_type, repo_id)
        with self._locks.hold(lock_name(repo_type, repo_id), "redirects"):
            if path.exists():
                raise Conflict(f"You already created this {repo_type} repo: {repo_id}")
            # built aside and renamed, so that a crash never leaves half a repo
            building = self._root / "tmp" / f"create-{uuid.uuid4().hex}"
            building.mkdir(parents=True)
            store = RepoStore(building)
            tree = {".gitattributes": store.put_blob(GITATTRIBUTES.encode())}
            first = store.put_commit(tree, parents=(), author=author, title="initial commit", message="", date=date)
            store.set_refs({MAIN: first.oid})
            meta = {"id": random_id(), "createdAt": date or now(), "private": False, "gated": False, "likes": 0}
            write_json(building / "repo.json", {**meta, **(settings or {})})
            path.parent.mkdir(parents=True, exist_ok=True)
            building.rename(path)
            sync_dir(path.parent)
            redirects = self._redirects()
            if redirects.pop(lock_name(repo_type, repo_id), None) is not None:
                write_json(self._root / "redirects.json", redirects)
        return Repo(repo_type, repo_id, path)

    def delete(self, repo: Repo) -> None:
        """Delete a repo and all it holds."""
        with self._locks.hold(repo.lock):
            trash = self._root / "tmp" / f"deleted-{uuid.uuid4().hex}"
            trash.parent.mkdir(parents=True, exist_ok=True)
            try:
                repo.path.rename(trash)
            except FileNotFoundError:
                raise RepoNotFound() from None
        shutil.rmtree(trash, ignore_errors=True)

    def move(self, repo: Repo, new_id: str) -> Repo:
        """Rename or transfer a repo; its old name redirects from then on."""
        target = self._path(repo.repo_type, new_id)
        with self._locks.hold(repo.lock, lock_name(repo.repo_type, new_id), "redirects"):
            if target.exists():
                raise Conflict(f"There is already a {repo.repo_type} named {new_id}")
            if not repo.path.exists():
                raise RepoNotFound()
            target.parent.mkdir(parents=True, exist_ok=True)
            prefix = f"{repo.repo_type}s/"
            redirects = {
                old: new_id if old.startswith(prefix) and new == repo.repo_id else new
                for old, new in self._redirects().items()
            }
            redirects.pop(lock_name(repo.repo_type, new_id), None)
            redirects[repo.lock] = new_id
            repo.path.rename(target)
            sync_dir(target.parent)
            write_json(self._root / "redirects.json", redirects)
        return Repo(repo.repo_type, new_id, target)

    def _redirects(self) -> dict[str, str]:
        return dict(read_json(self._root / "redirects.json") or {})
