"""The real Hub: huggingface_hub's client with timeouts, a budget, our types and our errors; here what writes.

The client retries listings and downloads itself. What it does not retry and what is safe to ask twice is retried
in :mod:`bot.hub.base`; commits and comments never are: after a lost response a second one would open a second pull.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.community import DiscussionComment

from bot.hub.door import Committed
from bot.hub.reads import HubReads
from core.errors import HubError

logger = logging.getLogger(__name__)


class Hub(HubReads):
    """The real Hub behind one endpoint and one token.

    Args:
        allowed: asked before every write; it raises where writing is switched off.
    """

    def __init__(self, *, endpoint: str, token: str | None, allowed: Callable[[], None] = lambda: None) -> None:
        super().__init__(endpoint=endpoint, token=token)
        self._allowed = allowed

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
        """Open a pull request with these files; never retried (see the module's first words)."""
        self._allowed()
        info = self._ask(
            f"a pull request in {repo_id}",
            lambda: self._api.create_commit(
                repo_id,
                _operations(files, deleted),
                commit_message=title,
                commit_description=body,
                create_pr=True,
                parent_commit=parent,
            ),
            again=False,
        )
        return Committed(info.oid, info.pr_num, info.pr_url)

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
        """Commit to a pull request of ours, and bring its first comment up to date where the Hub lets us."""
        self._allowed()
        info = self._ask(
            f"an update of pull {num} in {repo_id}",
            lambda: self._api.create_commit(
                repo_id,
                _operations(files, deleted),
                commit_message=title,
                revision=f"refs/pr/{num}",
                parent_commit=parent,
            ),
            again=False,
        )
        self._edit_body(repo_id, num, body)
        return Committed(info.oid, num, self._pull_url(repo_id, num))

    def edit_body(self, repo_id: str, num: int, body: str) -> None:
        """Bring the first comment of a pull of ours up to date, where the Hub lets us."""
        self._allowed()
        self._edit_body(repo_id, num, body)

    def _edit_body(self, repo_id: str, num: int, body: str) -> None:
        """The figures are in the commit; a first comment that can't be edited is only less fresh."""
        doing = f"the words of pull {num} in {repo_id}"
        try:
            details = self._ask(doing, lambda: self._api.get_discussion_details(repo_id, num))
            first = next((event for event in details.events if isinstance(event, DiscussionComment)), None)
            if first is not None and first.content.strip() != body.strip():
                self._edit_comment(repo_id, num, first.id, body)
        except HubError as error:
            logger.info("%s", error)

    def _edit_comment(self, repo_id: str, num: int, comment_id: str, text: str) -> None:
        self._ask(
            f"the words of pull {num} in {repo_id}",
            lambda: self._api.edit_discussion_comment(repo_id, num, comment_id, text),
            again=False,
        )

    def comment(self, repo_id: str, num: int, text: str) -> None:
        """Say something on a pull of ours; never retried."""
        self._allowed()
        self._ask(
            f"a comment on pull {num} in {repo_id}",
            lambda: self._api.comment_discussion(repo_id, num, text),
            again=False,
        )

    def close_pull(self, repo_id: str, num: int, text: str) -> None:
        """Close a pull of ours with a comment."""
        self._set_status(repo_id, num, open_=False, text=text)

    def reopen_pull(self, repo_id: str, num: int, text: str) -> None:
        """Open a closed pull of ours again with a comment."""
        self._set_status(repo_id, num, open_=True, text=text)

    def _set_status(self, repo_id: str, num: int, *, open_: bool, text: str) -> None:
        self._allowed()
        self._ask(
            f"the {'reopening' if open_ else 'closing'} of pull {num} in {repo_id}",
            lambda: self._api.change_discussion_status(
                repo_id, num, new_status="open" if open_ else "closed", comment=text
            ),
            again=False,
        )

    def publish_dataset(self, repo_id: str, *, files: dict[str, bytes], message: str) -> Committed:
        """Put files into a dataset repo in one commit, making the repo if need be."""
        self._allowed()
        self._ask(
            f"the dataset {repo_id}",
            lambda: self._api.create_repo(repo_id, repo_type="dataset", exist_ok=True),
        )
        before = self._ask(f"the dataset {repo_id}", lambda: self._api.dataset_info(repo_id)).sha
        info = self._ask(
            f"a commit to the dataset {repo_id}",
            lambda: self._api.create_commit(
                repo_id,
                _operations(files),
                commit_message=message,
                repo_type="dataset",
            ),
            again=False,
        )
        return Committed(info.oid, changed=info.oid != before)


def _operations(
    files: dict[str, bytes], deleted: tuple[str, ...] = ()
) -> list[CommitOperationAdd | CommitOperationDelete]:
    added = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=data) for path, data in files.items()]
    return [*added, *(CommitOperationDelete(path_in_repo=path) for path in deleted)]
