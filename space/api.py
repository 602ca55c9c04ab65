"""The page's named API endpoints, for scripts and ``gradio_client``: plain JSON in and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import gradio as gr

from core.errors import QuantcardError
from space.data import MAX_LIMIT
from space.views import SORRY, State, Views, entry_json, log

T = TypeVar("T")


def add_api(views: Views, readers: int) -> None:
    """Register the endpoints on the page being built; ``readers`` of them may run at once."""

    def leaderboard(
        model: str = "",
        owner: str = "",
        protocol: str = "",
        search: str = "",
        sort: str = "model",
        include_stale: bool = False,
        limit: int = 50,
        offset: int = 0,
    ) -> dict:
        """Rows that match, with the number of all that do. A '-' before the sort column: descending."""

        def answer() -> dict[str, Any]:
            filters = State(model, owner, protocol, search[:200], include_stale).filters
            entries = views.results.rows(
                **filters,
                sort=sort.removeprefix("-"),
                descending=sort.startswith("-"),
                limit=min(limit, MAX_LIMIT),
                offset=offset,
            )
            return {
                "status": views.results.status_line(),
                "revision": views.results.revision,
                "total": views.results.count(**filters),
                "rows": [entry_json(entry) for entry in entries],
            }

        return _spoken(answer)

    def measurement(id: str) -> dict:
        """One row with everything that is known of it."""

        def answer() -> dict[str, Any]:
            entry = views.results.row(id)
            if entry is None:
                raise QuantcardError("There is no such measurement.")
            return entry_json(entry, whole=True)

        return _spoken(answer)

    def request(repo: str, user: str = "") -> dict:
        """Ask for a benchmark of a repo: whether it was accepted, and a sentence."""
        return _spoken(lambda: views.request(repo, user).model_dump(mode="json"))

    def queue() -> list:
        """The jobs that run, wait or failed."""
        return _spoken(lambda: [row.model_dump(mode="json") for row in views.queue_rows()])

    for read in (leaderboard, measurement, queue):
        gr.api(read, api_name=read.__name__, concurrency_limit=readers)
    # One at a time: whoever asks writes into a database.
    gr.api(request, api_name="request", concurrency_limit=1, concurrency_id="request")


def _spoken(answer: Callable[[], T]) -> T:
    """Errors reach the caller as a sentence, not as a traceback."""
    try:
        return answer()
    except QuantcardError as refused:
        raise gr.Error(str(refused)) from refused
    except Exception as failure:
        log.exception("an API call failed")
        raise gr.Error(SORRY) from failure
