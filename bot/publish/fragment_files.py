"""Every repo's fragments as files: ``cards/OWNER/NAME/…`` in the local export and in the results dataset.

The local copy is brought up to date first, rendering only what changed; the dataset gets from it what it lacks. A
repo that is gone keeps its last files: figures stay visible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from bot.publish.card import SECTION_VERSION
from bot.publish.fragments import BADGE, FIGURES, HIDDEN, SECTION, Links, current, fragments, told
from bot.publish.own_template import digest_of
from bot.publish.repo_figures import VERSION
from bot.store import Store
from bot.store.files import PublishedFile
from bot.store.repos import Repo
from core.canonical import canonical_json, write_atomic
from core.dataset import DatasetRow
from core.repo_names import is_repo_id

FOLDER = "cards"
NAMES = (SECTION, FIGURES, BADGE)
#: Files that one commit may carry, and their bytes; the rest follows with the next export.
MAX_FILES = 300
MAX_BYTES = 192 << 20
#: The local copy's name in the store.
LOCAL = ""
_EPOCH = datetime.fromtimestamp(0, UTC)


def folder_of(repo_id: str) -> str:
    """Where a repo's fragments stand in the dataset.

    Raises:
        ValueError: this can't be a repo's name.
    """
    if not is_repo_id(repo_id):
        raise ValueError(f"{repo_id!r} is no repo's name")
    return f"{FOLDER}/{repo_id}"


def refresh(store: Store, rows: Sequence[DatasetRow], links: Links, *, export: Path) -> list[str]:
    """Bring the local copy under ``export`` up to date; returns the paths of all fragments that may be published.

    Raises:
        StorageError: a file can't be written.
    """
    known = store.files.known(LOCAL)
    look = _look(links)
    paths: list[str] = []
    for repo, its_rows in _by_repo(rows, {repo.id: repo for repo in store.repos.repos()}):
        folder = folder_of(repo.id)
        its_paths = [f"{folder}/{name}" for name in NAMES]
        source = _source(its_rows, repo, look)
        if not all(
            (file := known.get(path)) and file.source == source and (export / path).is_file() for path in its_paths
        ):
            made = fragments(its_rows, links, config=repo.config)
            for name, content in made.items():
                _write(export / folder / name, content)
            store.files.save(
                LOCAL, [PublishedFile(f"{folder}/{name}", _sha256(content), source) for name, content in made.items()]
            )
        paths += its_paths
    store.files.forget(LOCAL, {path for path in known if path.startswith(f"{FOLDER}/")} - set(paths))
    return paths


def due(store: Store, where: str, paths: Iterable[str], *, export: Path, most: int = MAX_FILES) -> dict[str, bytes]:
    """What the dataset ``where`` lacks of these files, or has in another state: at most ``most``, new ones first.

    It ends with the file that passes :data:`MAX_BYTES`.
    """
    local, there = store.files.known(LOCAL), store.files.known(where)
    lacking = [path for path in paths if path in local and _sha256_of(there, path) != local[path].sha256]
    found: dict[str, bytes] = {}
    n_bytes = 0
    for path in sorted(lacking, key=lambda path: (path in there, path)):
        if len(found) == most or n_bytes > MAX_BYTES:
            break
        try:
            content = (export / path).read_bytes()
        except OSError:
            content = b""
        if _sha256(content) == local[path].sha256:
            found[path] = content
            n_bytes += len(content)
        else:
            # Somebody else's bytes are not ours to publish; the next export writes the file anew.
            store.files.forget(LOCAL, [path])
    return found


def note(store: Store, where: str, published: Mapping[str, bytes]) -> None:
    """Remember what was committed to the dataset ``where``."""
    store.files.save(where, [PublishedFile(path, _sha256(content)) for path, content in published.items()])


def _by_repo(rows: Sequence[DatasetRow], repos: Mapping[str, Repo]) -> list[tuple[Repo, list[DatasetRow]]]:
    """Repos that have something to tell to everyone, with their current rows.

    Of two that differ in case only (the Hub knows one; it was renamed) the one measured last.
    """
    grouped: dict[str, list[DatasetRow]] = {}
    for row in rows:
        grouped.setdefault(row.repo_id, []).append(row)
    found: dict[str, tuple[Repo, list[DatasetRow]]] = {}
    for repo_id, its_rows in sorted(grouped.items(), key=lambda item: (_newest(item[1]), item[0])):
        repo = repos.get(repo_id)
        if repo is None or repo.state in HIDDEN or not is_repo_id(repo_id):
            continue
        if told(shown := current(its_rows, repo.config)):
            found[repo_id.lower()] = repo, shown
    return sorted(found.values(), key=lambda item: item[0].id)


def _newest(rows: Sequence[DatasetRow]) -> datetime:
    return max((row.measured_at for row in rows if row.measured_at), default=_EPOCH)


def _look(links: Links) -> str:
    """What fragments are made with besides rows: when it changes, all are made anew."""
    texts = [
        files("templates").joinpath(name).read_text(encoding="utf-8")
        for name in ("section.md.j2", "metrics.md.j2", "badge.svg.j2")
    ]
    addresses = [links.endpoint, links.project_url, links.leaderboard_url, links.dataset]
    return canonical_json([VERSION, SECTION_VERSION, *addresses, digest_of(links.templates), *texts])


def _source(rows: Sequence[DatasetRow], repo: Repo, look: str) -> str:
    """The fingerprint of what a repo's fragments are made from."""
    digest = hashlib.sha256(look.encode())
    digest.update(canonical_json(repo.config).encode("utf-8", "surrogatepass"))
    for row in sorted(rows, key=lambda row: row.id):
        digest.update(repr(row).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _write(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        write_atomic(path, content)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sha256_of(known: Mapping[str, PublishedFile], path: str) -> str | None:
    file = known.get(path)
    return file.sha256 if file else None
