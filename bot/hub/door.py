"""What we ask of the Hub, in our own types."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from bot.hub.budget import Budget
from core.errors import HubError
from core.gguf_files import RepoFile

PullStatus = Literal["draft", "open", "closed", "merged"]


class FileTooLargeError(HubError):
    """A small file that we wanted to read whole is larger than its limit."""


@dataclass(frozen=True, slots=True)
class RepoSummary:
    """A model repo as a listing shows it; ``created_at`` (seconds since the epoch) is told of single repos only."""

    id: str
    sha: str | None
    last_modified: str | None
    private: bool = False
    gated: bool = False
    disabled: bool = False
    created_at: float | None = None


@dataclass(frozen=True, slots=True)
class RepoDetail:
    """A model repo with its files, and the base models that its card's front matter names, as of one commit."""

    summary: RepoSummary
    files: list[RepoFile]
    base_models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comment:
    """Something said on a pull.

    ``owner``: by the repo's owner or a member of the organisation that owns it. ``place``: among all that happened on
    the pull. ``at``, ``edited_at``: when it was said and last edited, in seconds since the epoch. Of what was
    ``hidden`` nobody can read the text any more, and it is empty here.
    """

    id: str
    author: str
    owner: bool
    text: str
    place: int = 0
    at: float = 0.0
    edited_at: float | None = None
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class StatusChange:
    """A pull was opened again, closed or merged; ``place`` as in :class:`Comment`."""

    place: int
    author: str
    status: str


@dataclass(frozen=True, slots=True)
class HubPull:
    """A pull on the Hub, or (not ``is_pull``) a discussion: ``body`` is its first comment, ``authors`` who committed.

    ``head`` is its last commit; ``comments`` what was said on it after the first; ``changes`` of its status;
    ``conflicts``: it can't be merged as it is; ``titles``: what it was ever called, and its commits' subjects. A
    listing knows none of these.
    """

    num: int
    title: str
    status: PullStatus
    url: str
    body: str = ""
    author: str = ""
    authors: frozenset[str] = frozenset()
    head: str | None = None
    comments: tuple[Comment, ...] = ()
    changes: tuple[StatusChange, ...] = ()
    conflicts: bool = False
    is_pull: bool = True
    body_hidden: bool = False
    titles: frozenset[str] = frozenset()

    def last(self, status: str) -> StatusChange | None:
        """The last change to a status, if there was one."""
        return next((change for change in reversed(self.changes) if change.status == status), None)


@dataclass(frozen=True, slots=True)
class Committed:
    """A commit we made; ``num`` and ``url`` name the pull it opened, None when the content was there already."""

    oid: str
    num: int | None = None
    url: str | None = None
    changed: bool = True


class HubDoor(Protocol):
    """Everything we ask of the Hub. All methods raise the HubErrors of :mod:`core.errors`."""

    endpoint: str
    dry_run: bool
    budget: Budget

    def whoami(self) -> str:
        """The name that our token belongs to."""
        ...

    def gguf_repos(self, owner: str) -> Iterator[RepoSummary]:
        """An owner's GGUF model repos, last modified first."""
        ...

    def collection(self, slug: str) -> list[RepoSummary]:
        """The model repos of a collection (``owner/title-id``); their commits are not told."""
        ...

    def repo(self, repo_id: str) -> RepoSummary:
        """One model repo; its ``id`` is another one where it was renamed."""
        ...

    def detail(self, repo_id: str) -> RepoDetail:
        """A model repo with its files and what its card names, as of one commit, in one request."""
        ...

    def files(self, repo_id: str, *, revision: str) -> list[RepoFile]:
        """All files of a model repo at a revision."""
        ...

    def read(self, repo_id: str, path: str, *, revision: str, limit: int) -> bytes | None:
        """A small file's bytes, or None if it is not there; more than ``limit`` bytes is an error."""
        ...

    def read_range(self, repo_id: str, path: str, *, revision: str, offset: int, length: int) -> bytes:
        """Bytes of a file; fewer only where it ends."""
        ...

    def download(self, repo_id: str, path: str, *, revision: str, folder: Path, repo_type: str = "model") -> Path:
        """Fetch a file into a folder and return where it lies."""
        ...

    def stream(
        self, repo_id: str, path: str, *, revision: str, offset: int, size: int, write: Callable[[bytes], object]
    ) -> None:
        """Hand a file's bytes from ``offset`` to its end at ``size`` to ``write``, in order and each once."""
        ...

    def my_pulls(self, repo_id: str) -> list[HubPull]:
        """Our pull requests in a model repo (without bodies)."""
        ...

    def pull(self, repo_id: str, num: int) -> HubPull:
        """One pull request whole."""
        ...

    def open_pull(
        self,
        repo_id: str,
        *,
        files: dict[str, bytes],
        title: str,
        body: str,
        parent: str | None,
        deleted: tuple[str, ...] = (),
    ) -> Committed:
        """Open a pull request with these files, and without those ``deleted``."""
        ...

    def update_pull(
        self,
        repo_id: str,
        num: int,
        *,
        files: dict[str, bytes],
        title: str,
        body: str,
        parent: str | None,
        deleted: tuple[str, ...] = (),
    ) -> Committed:
        """Commit to a pull of ours whose last commit is ``parent``, and bring its first comment up to date.

        ``deleted`` are files that are taken away.

        Raises:
            HubConflictError: somebody committed to it in between.
        """
        ...

    def edit_body(self, repo_id: str, num: int, body: str) -> None:
        """Bring the first comment of a pull of ours up to date, where the Hub lets us."""
        ...

    def comment(self, repo_id: str, num: int, text: str) -> None:
        """Say something on a pull of ours."""
        ...

    def close_pull(self, repo_id: str, num: int, text: str) -> None:
        """Close a pull of ours with a comment."""
        ...

    def reopen_pull(self, repo_id: str, num: int, text: str) -> None:
        """Open a closed pull of ours again with a comment."""
        ...

    def dataset_file(self, repo_id: str, path: str) -> bytes | None:
        """A file of a dataset repo, or None if there is none."""
        ...

    def publish_dataset(self, repo_id: str, *, files: dict[str, bytes], message: str) -> Committed:
        """Put files into a dataset repo in one commit, making the repo if need be."""
        ...
