"""The rows of the results dataset: every repo where something was measured, repo by repo."""

from __future__ import annotations

from collections.abc import Iterator

from bot.intake.view import View
from bot.publish.rows import current_rows, stale_rows
from bot.store import Store
from core.dataset import DatasetRow
from core.protocol import Protocol


def told_rows(store: Store, seen: View, protocol: Protocol) -> Iterator[DatasetRow]:
    """Rows of current files, and of measured ones that were replaced or removed, of repos where a job has ended.

    What only waits to be measured is the queue's to show: a first sync of ten thousand repos is no result yet.
    """
    for repo_id in store.repos.measured():
        yield from current_rows(store, seen, protocol, repo_id=repo_id)
        yield from stale_rows(store, seen, protocol, repo_id=repo_id)
