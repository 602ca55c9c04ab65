"""The Hub's dry-run twin: reads are real, writes are only told."""

from __future__ import annotations

from collections.abc import Callable

from bot.hub.client import Hub
from bot.hub.door import Committed
from core.errors import HubAuthError


class DryRunHub(Hub):
    """A Hub that writes nothing; ``tell`` gets a sentence for every write it leaves undone."""

    dry_run = True

    def __init__(self, *, endpoint: str, token: str | None, tell: Callable[[str], None]) -> None:
        super().__init__(endpoint=endpoint, token=token)
        self._tell = tell

    def whoami(self) -> str:
        """The token's name; without a token a name that owns nothing, since nothing is written."""
        try:
            return super().whoami()
        except HubAuthError:
            return "quantcard-dry-run"

    def open_pull(
        self, repo_id: str, *, files: dict[str, bytes], title: str, body: str, parent: str | None
    ) -> Committed:
        """Say which pull would be opened."""
        self._tell(f"Would open a pull in {repo_id}: {title} ({', '.join(files)})")
        return Committed("dry-run")

    def update_pull(
        self, repo_id: str, num: int, *, files: dict[str, bytes], title: str, body: str, parent: str | None
    ) -> Committed:
        """Say which pull would be updated."""
        self._tell(f"Would update pull {num} in {repo_id}: {title} ({', '.join(files)})")
        return Committed("dry-run")

    def comment(self, repo_id: str, num: int, text: str) -> None:
        """Say what would be said."""
        self._tell(f"Would comment on pull {num} in {repo_id}: {text}")

    def close_pull(self, repo_id: str, num: int, text: str) -> None:
        """Say which pull would be closed."""
        self._tell(f"Would close pull {num} in {repo_id}: {text}")

    def reopen_pull(self, repo_id: str, num: int, text: str) -> None:
        """Say which pull would be reopened."""
        self._tell(f"Would reopen pull {num} in {repo_id}: {text}")

    def publish_dataset(self, repo_id: str, *, files: dict[str, bytes], message: str) -> Committed:
        """Say what would be published."""
        self._tell(f"Would commit to the dataset {repo_id}: {message} ({', '.join(files)})")
        return Committed("dry-run")
