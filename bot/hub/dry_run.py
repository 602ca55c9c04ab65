"""The Hub's dry-run twin: reads are real, writes are only told: the client's calls and the exact diffs on stdout.

The diffs can be applied with ``patch -p1`` or ``git apply``: the lines between them begin with ``# ``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

from bot.hub.client import Hub
from bot.hub.diff import unified
from bot.hub.door import Committed, FileTooLargeError, HubPull
from core.errors import HubAuthError

#: Bytes of a file on the Hub that is compared with what would be committed.
_LIMIT = 4 << 20
#: Who we are where nobody knows.
_NOBODY = "quantcard-dry-run"
#: Files of one commit (a dataset has thousands) whose changes are shown.
_MOST_DIFFS = 20


def print_exactly(text: str) -> None:
    """To stdout as it is, whatever it holds."""
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:
        sys.stdout.write(text)
        return
    sys.stdout.flush()
    buffer.write(text.encode("utf-8", "surrogateescape"))
    buffer.flush()


class DryRunHub(Hub):
    """A Hub that writes nothing.

    Args:
        tell: gets a sentence, for people, for every write that is left undone.
        show: gets the calls and diffs.
    """

    dry_run = True

    def __init__(
        self,
        *,
        endpoint: str,
        token: str | None,
        tell: Callable[[str], None],
        show: Callable[[str], None] = print_exactly,
    ) -> None:
        super().__init__(endpoint=endpoint, token=token)
        self._tell, self._show = tell, show
        self._nameless = False

    def whoami(self) -> str:
        """The token's name; without a token a name of nobody's, since nothing is written."""
        try:
            return super().whoami()
        except HubAuthError:
            self._nameless = True
            return _NOBODY

    def my_pulls(self, repo_id: str) -> list[HubPull]:
        """Our pulls; without a token nobody knows which they are, and it says so."""
        self.whoami()
        if not self._nameless:
            return super().my_pulls(repo_id)
        self._tell(
            f"Without a token (HF_TOKEN) the Hub can't be asked for our own pulls in {repo_id}: what follows takes it "
            "that there are none but those in the database."
        )
        return []

    def pull(self, repo_id: str, num: int) -> HubPull:
        """A pull; without a token one that is asked for by its number is ours, since the database has it."""
        found = super().pull(repo_id, num)
        self.whoami()
        if not self._nameless:
            return found
        ours = found.author
        return replace(
            found,
            author=_NOBODY,
            authors=found.authors - {ours},
            comments=tuple(replace(one, author=_NOBODY) if one.author == ours else one for one in found.comments),
            changes=tuple(replace(one, author=_NOBODY) if one.author == ours else one for one in found.changes),
        )

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
        """Tell which pull would be opened."""
        self._tell(f"Would open a pull in {repo_id}: {title} ({', '.join(files)})\n\n{body}")
        self._call("create_commit", repo_id, files, deleted, commit_message=title, create_pr=True, parent_commit=parent)
        self._diffs(files, lambda path: self.read(repo_id, path, revision=parent or "main", limit=_LIMIT), deleted)
        return Committed("dry-run")

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
        """Tell which pull would be updated."""
        ref = f"refs/pr/{num}"
        self._tell(f"Would update pull {num} in {repo_id}: {title} ({', '.join(files)})\n\n{body}")
        self._call("create_commit", repo_id, files, deleted, commit_message=title, revision=ref, parent_commit=parent)
        self._diffs(files, lambda path: self.read(repo_id, path, revision=parent or ref, limit=_LIMIT), deleted)
        self._edit_body(repo_id, num, body)
        return Committed("dry-run")

    def edit_body(self, repo_id: str, num: int, body: str) -> None:
        """Tell what a pull's first comment would become."""
        self._tell(f"Would edit the first comment of pull {num} in {repo_id}:\n\n{body}")
        self._edit_body(repo_id, num, body)

    def _edit_comment(self, repo_id: str, num: int, comment_id: str, text: str) -> None:
        self._call("edit_discussion_comment", repo_id, discussion_num=num, comment_id=comment_id, new_content=text)

    def comment(self, repo_id: str, num: int, text: str) -> None:
        """Tell what would be said."""
        self._tell(f"Would comment on pull {num} in {repo_id}: {text}")
        self._call("comment_discussion", repo_id, discussion_num=num, comment=text)

    def close_pull(self, repo_id: str, num: int, text: str) -> None:
        """Tell which pull would be closed."""
        self._tell(f"Would close pull {num} in {repo_id}: {text}")
        self._call("change_discussion_status", repo_id, discussion_num=num, new_status="closed", comment=text)

    def reopen_pull(self, repo_id: str, num: int, text: str) -> None:
        """Tell which pull would be reopened."""
        self._tell(f"Would reopen pull {num} in {repo_id}: {text}")
        self._call("change_discussion_status", repo_id, discussion_num=num, new_status="open", comment=text)

    def publish_dataset(self, repo_id: str, *, files: dict[str, bytes], message: str) -> Committed:
        """Tell what would be published."""
        self._tell(f"Would commit to the dataset {repo_id}: {message} ({', '.join(files)})")
        self._call("create_repo", repo_id, repo_type="dataset", exist_ok=True)
        self._call("create_commit", repo_id, files, commit_message=message, repo_type="dataset")
        self._diffs(files, lambda path: self.dataset_file(repo_id, path))
        return Committed("dry-run")

    def _call(
        self,
        method: str,
        repo_id: str,
        files: dict[str, bytes] | None = None,
        deleted: tuple[str, ...] = (),
        **arguments: object,
    ) -> None:
        """One line for a call of the client, and one for each file in it."""
        told = ", ".join(f"{name}={value!r}" for name, value in {"repo_id": repo_id, **arguments}.items())
        lines = [f"{method}({told})", *(f"  {path}: {len(data):,} bytes" for path, data in (files or {}).items())]
        lines += [f"  {path}: deleted" for path in deleted]
        self._show("".join(f"# {line}\n" for line in lines))

    def _diffs(
        self, files: dict[str, bytes], now: Callable[[str], bytes | None], deleted: tuple[str, ...] = ()
    ) -> None:
        shown: list[tuple[str, str | None]] = [(path, None) for path in deleted]
        shown += [(path, text) for path, data in files.items() if (text := _text(data)) is not None]
        for path, after in shown[:_MOST_DIFFS]:
            try:
                found = now(path)
            except FileTooLargeError:
                continue
            before = _text(found) if found is not None else None
            if found is None or before is not None:
                self._show("".join(unified(before, after, path=path)))
        if more := len(shown) - _MOST_DIFFS:
            self._show(f"# {more} more files are not compared here\n" if more > 0 else "")


class NoCard(Hub):
    """A Hub that nobody asks: no repo has a file. For what can be shown without it."""

    dry_run = True

    def read(self, repo_id: str, path: str, *, revision: str, limit: int) -> bytes | None:
        """None."""
        return None


def _text(data: bytes) -> str | None:
    """The text in a file, or None where it is binary."""
    try:
        return None if b"\0" in data else data.decode("utf-8")
    except UnicodeDecodeError:
        return None
