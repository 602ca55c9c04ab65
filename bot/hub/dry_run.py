"""The Hub's dry-run twin: reads are real, writes are only told: the client's calls and the exact diffs on stdout.

The diffs can be applied with ``patch -p1`` or ``git apply``: the lines between them begin with ``# ``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from bot.hub.client import Hub
from bot.hub.diff import unified
from bot.hub.door import Committed, FileTooLargeError
from core.errors import HubAuthError

#: Bytes of a file on the Hub that is compared with what would be committed.
_LIMIT = 4 << 20
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

    def whoami(self) -> str:
        """The token's name; without a token a name that owns nothing, since nothing is written."""
        try:
            return super().whoami()
        except HubAuthError:
            return "quantcard-dry-run"

    def open_pull(
        self, repo_id: str, *, files: dict[str, bytes], title: str, body: str, parent: str | None
    ) -> Committed:
        """Tell which pull would be opened."""
        self._tell(f"Would open a pull in {repo_id}: {title} ({', '.join(files)})\n\n{body}")
        self._call("create_commit", repo_id, files, commit_message=title, create_pr=True, parent_commit=parent)
        self._diffs(files, lambda path: self.read(repo_id, path, revision=parent or "main", limit=_LIMIT))
        return Committed("dry-run")

    def update_pull(
        self, repo_id: str, num: int, *, files: dict[str, bytes], title: str, body: str, parent: str | None
    ) -> Committed:
        """Tell which pull would be updated."""
        ref = f"refs/pr/{num}"
        self._tell(f"Would update pull {num} in {repo_id}: {title} ({', '.join(files)})\n\n{body}")
        self._call("create_commit", repo_id, files, commit_message=title, revision=ref, parent_commit=parent)
        self._diffs(files, lambda path: self.read(repo_id, path, revision=parent or ref, limit=_LIMIT))
        return Committed("dry-run")

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

    def _call(self, method: str, repo_id: str, files: dict[str, bytes] | None = None, **arguments: object) -> None:
        """One line for a call of the client, and one for each file in it."""
        told = ", ".join(f"{name}={value!r}" for name, value in {"repo_id": repo_id, **arguments}.items())
        lines = [f"{method}({told})", *(f"  {path}: {len(data):,} bytes" for path, data in (files or {}).items())]
        self._show("".join(f"# {line}\n" for line in lines))

    def _diffs(self, files: dict[str, bytes], now: Callable[[str], bytes | None]) -> None:
        shown = [(path, text) for path, data in files.items() if (text := _text(data)) is not None]
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


def _text(data: bytes) -> str | None:
    """The text in a file, or None where it is binary."""
    try:
        return None if b"\0" in data else data.decode("utf-8")
    except UnicodeDecodeError:
        return None
