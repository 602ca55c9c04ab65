"""What the page shows for a given state: results, requests and queue turned into HTML, figures and JSON."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from core.dataset import QueueRow, RequestAck
from core.errors import InputError, QuantcardError
from space import details, plots, tables
from space.data import SORTS, Entry, Results
from space.requests import repo_id_of, user_of
from space.text import esc, plural

Submit = Callable[[str, str | None], RequestAck]
Queue = Callable[[], list[QueueRow]]

log = logging.getLogger(__name__)

PAGE_SIZE = 50
#: Points in one plot; more is a cloud, and slow on a phone.
PLOT_LIMIT = 600
NO_SUBMIT = (
    "This page only shows results: it has no connection to a machine that measures. "
    "Requests are taken where the bot itself runs."
)
NO_QUEUE = "This page only shows results: the queue can be seen where the bot itself runs."
SORRY = "Something went wrong here. Try again in a moment."


@dataclass(frozen=True, slots=True)
class State:
    """What somebody looks at; all of it stands in the page's address. ``sort`` with a ``-``: descending."""

    model: str = ""
    owner: str = ""
    protocol: str = ""
    search: str = ""
    stale: bool = False
    sort: str = "model"
    page: int = 1
    row: str = ""

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> State:
        """The state that an address asks for; what can't be understood falls back to the default."""
        page = query.get("page", "1")
        sort = query.get("sort", "model")
        return cls(
            model=query.get("model", "")[:200],
            owner=query.get("owner", "")[:200],
            protocol=query.get("protocol", "")[:200],
            search=query.get("q", "")[:200],
            stale=query.get("stale", "") in {"1", "true"},
            sort=sort if sort.removeprefix("-") in SORTS else "model",
            page=max(1, int(page)) if page.isascii() and page.isdigit() and len(page) < 7 else 1,
            row=query.get("row", "")[:64],
        )

    @property
    def filters(self) -> dict[str, Any]:
        """The arguments of :meth:`Results.rows` and :meth:`Results.count`."""
        return {
            "base_model": self.model or None,
            "owner": self.owner or None,
            "protocol": self.protocol or None,
            "search": self.search,
            "include_stale": self.stale,
        }


def toggled(sort: str, column: str) -> str:
    """The order after a click on a heading: that column, the other way round if it was ascending already."""
    if column not in SORTS:
        return sort
    return f"-{column}" if sort == column else column


def entry_json(entry: Entry, *, whole: bool = False) -> dict[str, Any]:
    """A row as the API gives it; the JSON columns only with ``whole``."""
    row = entry.row.model_dump(mode="json")
    if not whole:
        row = {name: value for name, value in row.items() if not name.endswith("_json")}
    row["flags"] = [{"code": code, "detail": detail} for code, detail in tables.flags(entry.row)]
    return row | {"on_front": entry.on_front, "tied_with": entry.tied_with, "ranked_apart": entry.apart}


class Views:
    """Everything the page does, without Gradio: each method gives something to show and never raises."""

    def __init__(self, results: Results, submit: Submit | None = None, queue: Queue | None = None) -> None:
        self.results = results
        self._submit = submit
        self._queue = queue

    @property
    def hub_url(self) -> str:
        """Where links to repos lead."""
        return self.results.source.hub_url

    def table(self, state: State) -> tuple[str, str, int, int]:
        """The table, the pager's text, the page shown (from 1) and the number of pages."""
        total = self.results.count(**state.filters)
        pages = max(1, -(-total // PAGE_SIZE))
        page = min(state.page, pages)
        if total == 0:
            return tables.message(self._why_empty(state)), "", 1, 1
        entries = self.results.rows(
            **state.filters,
            sort=state.sort.removeprefix("-"),
            descending=state.sort.startswith("-"),
            limit=PAGE_SIZE,
            offset=(page - 1) * PAGE_SIZE,
        )
        html = tables.leaderboard(
            entries,
            hub_url=self.hub_url,
            environments=self.results.environments(),
            sort=state.sort.removeprefix("-"),
            descending=state.sort.startswith("-"),
            with_model=not state.model,
        )
        first = (page - 1) * PAGE_SIZE + 1
        pager = f"{first:,}–{first + len(entries) - 1:,} of {plural(total, 'file')}"
        return html, pager if pages == 1 else f"{pager} · page {page} of {pages}", page, pages

    def _why_empty(self, state: State) -> str:
        if self.results.count(include_stale=True) == 0:
            return self.results.error or "No results yet. They appear here as soon as the first are published."
        if not state.stale and self.results.count(**(state.filters | {"include_stale": True})):
            return "Only stale results match: tick 'Stale' to see them."
        return "No file matches. Fewer filters find more."

    def plot(self, state: State, figure: str) -> tuple[Any | None, str]:
        """The plot of everything that matches, and its caption (HTML)."""
        drawn: plots.Figure = cast(plots.Figure, figure if figure in plots.TITLES else "kld_mean")
        entries = self.results.rows(**state.filters, sort=drawn, limit=PLOT_LIMIT)
        plot = plots.size_vs_kld(entries, figure=drawn)
        more = self.results.count(**state.filters) - len(entries)
        cut = f" Only the {PLOT_LIMIT} closest are drawn." if more > 0 else ""
        return plot.figure, f'<div class="qc-legend">{esc(plot.caption + cut, limit=900)}</div>'

    def status(self) -> str:
        """The status line (HTML)."""
        return f'<div class="qc-status">{esc(self.results.status_line(), limit=500)}</div>'

    def measurement(self, row_id: str) -> str:
        """One row with all its figures (HTML)."""
        if not row_id:
            return tables.message("Choose a file in the leaderboard: its figures are shown here.")
        entry = self.results.row(row_id)
        if entry is None:
            return tables.message("There is no such measurement; it may have been withdrawn or renamed.", "no")
        return details.measurement(entry, hub_url=self.hub_url, now=datetime.now(UTC))

    def hint(self, text: str) -> str:
        """What the form says while somebody types (HTML)."""
        if not text.strip():
            return '<div class="qc-hint"></div>'
        try:
            return f'<div class="qc-hint">✓ {esc(repo_id_of(text, hub_url=self.hub_url))}</div>'
        except InputError as wrong:
            return f'<div class="qc-hint">{esc(wrong)}</div>'

    def request(self, text: str, user: str | None) -> RequestAck:
        """Ask for a benchmark; every failure is a refusal with a sentence."""
        if self._submit is None:
            return RequestAck(accepted=False, message=NO_SUBMIT)
        try:
            return self._submit(repo_id_of(text, hub_url=self.hub_url), user_of(user))
        except QuantcardError as refused:
            return RequestAck(accepted=False, message=str(refused))
        except Exception:
            log.exception("a request failed")
            return RequestAck(accepted=False, message=SORRY)

    def acknowledged(self, ack: RequestAck) -> str:
        """The answer to a request (HTML)."""
        ahead = ""
        if ack.accepted and ack.position is not None:
            ahead = f" {plural(ack.position, 'job')} ahead of it." if ack.position else " It is next."
        return tables.message(ack.message + ahead, "ok" if ack.accepted else "no")

    def queue_rows(self) -> list[QueueRow]:
        """The queue; raises :class:`QuantcardError` with a sentence."""
        if self._queue is None:
            raise InputError(NO_QUEUE)
        try:
            return self._queue()
        except QuantcardError:
            raise
        except Exception as failure:
            log.exception("the queue could not be read")
            raise QuantcardError("The queue can't be read just now.") from failure

    def queue(self) -> str:
        """The queue (HTML)."""
        try:
            return tables.queue(self.queue_rows(), hub_url=self.hub_url, now=datetime.now(UTC))
        except QuantcardError as refused:
            return tables.message(str(refused), "note" if self._queue is None else "no")
