"""The page: layout and wiring. What is shown is decided in :mod:`space.views`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from space import tables
from space.about import ABOUT
from space.api import add_api
from space.data import Count, Results
from space.look import ADDRESS_JS, COPY_JS, LEAVE_ROW_JS, READY_JS, TABLE_JS
from space.text import clean, esc
from space.views import NO_QUEUE, NO_SUBMIT, SORRY, Queue, State, Submit, Views, log, toggled

#: Readers run side by side; each is some milliseconds of DuckDB.
READERS = 8
_PRIVATE: dict[str, Any] = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "concurrency_limit": READERS,
}
_QUEUE_SECONDS = 10


def build(
    results: Results,
    *,
    submit: Submit | None = None,
    queue: Queue | None = None,
    title: str = "quantcard leaderboard",
) -> gr.Blocks:
    """The leaderboard over ``results``.

    ``submit`` takes a repo id and a user name or None and says what happens; ``queue`` lists the jobs. Without
    them, the tabs say why they are closed. ``launch()`` it with :func:`space.look.look`.
    """
    views = Views(results, submit, queue)
    # delete_cache: uploads are never wanted here, yet every Gradio app takes them.
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True) as page:
        add_api(views, READERS)  # first: Gradio renames whoever comes second, private handlers included
        _html(
            f'<div class="qc-head"><h1>{esc(title)}</h1>'
            "<p>Every GGUF quantization, measured the same way against the model it was made from.</p></div>"
        )
        status = _html(views.status())
        with gr.Tabs(selected="leaderboard", overflow_behavior="wrap") as tabs:
            with gr.Tab("Leaderboard", id="leaderboard") as first:
                board = _Board(views, status)
            with gr.Tab("Measurement", id="measurement"):
                measurement = _html(views.measurement(""), js_on_load=COPY_JS, elem_id="measurement")
            with gr.Tab("Request a benchmark", id="request"):
                _request_form(views, enabled=submit is not None)
            with gr.Tab("Queue", id="queue") as queue_tab:
                _queue_table(views, queue_tab, enabled=queue is not None)
            with gr.Tab("About", id="about"):
                gr.Markdown(ABOUT, elem_classes="qc-about")
        board.wire(page, tabs, first, measurement)
    return page


def _html(value: str = "", **more: Any) -> gr.HTML:
    # Gradio's own prose style would draw borders around every cell and pad every link.
    return gr.HTML(value, apply_default_css=False, **more)


class _Board:
    """The leaderboard tab: filters, table, pager, plot."""

    def __init__(self, views: Views, status: gr.HTML) -> None:
        self._views, self._status = views, status
        with gr.Row(equal_height=True, elem_classes="qc-filters"):
            self.model = _filter("Base model", "All base models", scale=2)
            self.owner = _filter("Uploader", "All uploaders")
            self.protocol = _filter("Protocol", "All protocols")
            self.search = gr.Textbox(label="Search", placeholder="repo, file, quant", max_lines=1, min_width=150)
            self.stale = gr.Checkbox(label="Stale", info="old files too", min_width=100)
        self.table = _html(js_on_load=TABLE_JS, elem_id="board")
        with gr.Row(equal_height=True):
            self.back = gr.Button("‹ Back", size="sm", min_width=80, scale=0, interactive=False, visible=False)
            self.pager = _html(min_width=160)
            self.forward = gr.Button("More ›", size="sm", min_width=80, scale=0, interactive=False, visible=False)
        self.figure = gr.Radio(
            [("Mean KLD", "kld_mean"), ("99.9 % KLD", "kld_p99_9")],
            value="kld_mean", label="Plot", show_label=False, container=False, elem_id="figure",
        )  # fmt: skip
        self.plot = gr.Plot(show_label=False, container=False, elem_id="plot")
        self.caption = _html()
        # Hidden boxes instead of gr.State: the script that keeps the address must see them.
        self.sort = gr.Textbox("model", visible="hidden")
        self.page = gr.Number(1, visible="hidden", precision=0)
        self.row = gr.Textbox("", visible="hidden")
        self.searched = gr.State("")
        self._state = [
            self.model,
            self.owner,
            self.protocol,
            self.search,
            self.stale,
            self.sort,
            self.page,
            self.row,
        ]
        self._table = [self.table, self.pager, self.page, self.back, self.forward]
        self._plot = [self.plot, self.caption]

    def wire(self, page: gr.Blocks, tabs: gr.Tabs, first: gr.Tab, measurement: gr.HTML) -> None:
        """Connect what people do to what they see."""
        boxes = (self.model, self.owner, self.protocol, self.stale)
        gr.on(
            [box.input for box in boxes],
            self._filtered,
            [*self._state, self.figure],
            [*self._table, *self._plot, self._status],
            trigger_mode="always_last",
            **_PRIVATE,
        ).then(None, self._state, None, js=ADDRESS_JS, api_visibility="private")
        # A paste is a change, but no input; and a change comes from loading the page, too: see _searched.
        self.search.change(
            self._searched,
            [*self._state, self.figure, self.searched],
            [self.searched, *self._table, *self._plot, self._status],
            trigger_mode="always_last",
            **_PRIVATE,
        ).then(None, self._state, None, js=ADDRESS_JS, api_visibility="private")
        for button, step in ((self.back, -1), (self.forward, 1)):
            button.click(
                self._turner(step), self._state, self._table, trigger_mode="multiple", **_PRIVATE
            ).then(None, self._state, None, js=ADDRESS_JS, api_visibility="private")  # fmt: skip
        self.table.sortby(self._sorted, self._state, [self.sort, *self._table], **_PRIVATE).then(
            None, self._state, None, js=ADDRESS_JS, api_visibility="private"
        )
        self.table.openrow(self._opened, None, [self.row, measurement, tabs], **_PRIVATE).then(
            None, self._state, None, js=ADDRESS_JS, api_visibility="private"
        )
        # Back at the table the address is the table's again.
        first.select(None, None, self.row, js=LEAVE_ROW_JS, api_visibility="private")
        self.figure.input(self._drawn, [*self._state, self.figure], self._plot, **_PRIVATE)
        loaded = page.load(
            self._loaded,
            None,
            [*self._state, self.searched, *self._table, *self._plot, self._status, measurement, tabs],
            **_PRIVATE,
        )
        loaded.then(None, None, None, js=READY_JS, api_visibility="private")

    def _show_table(self, state: State) -> list[Any]:
        try:
            html, pager, page, pages = self._views.table(state)
        except Exception:
            log.exception("the table failed")
            html, pager, page, pages = tables.message(SORRY, "no"), "", 1, 1
        return [
            html,
            f'<div class="qc-pager">{esc(pager)}</div>',
            page,
            gr.Button(interactive=page > 1, visible=pages > 1),
            gr.Button(interactive=page < pages, visible=pages > 1),
        ]

    def _show_plot(self, state: State, figure: str) -> list[Any]:
        try:
            drawing, caption = self._views.plot(state, figure)
        except Exception:
            log.exception("the plot failed")
            drawing, caption = None, tables.message(SORRY, "no")
        return [gr.Plot(drawing, visible=drawing is not None), caption]

    def _filtered(self, *values: Any) -> list[Any]:
        *boxes, figure = values
        state = _state(*boxes, page=1)
        return [*self._show_table(state), *self._show_plot(state, figure), self._views.status()]

    def _searched(self, *values: Any) -> list[Any]:
        *rest, searched = values
        search = rest[3] or ""
        if search == searched:
            return [gr.skip()] * (1 + len(self._table) + len(self._plot) + 1)
        return [search, *self._filtered(*rest)]

    def _turner(self, step: int) -> Callable[..., list[Any]]:
        def turn(*boxes: Any) -> list[Any]:
            state = _state(*boxes)
            return self._show_table(_state(*boxes, page=state.page + step))

        return turn

    def _sorted(self, event: gr.EventData, *boxes: Any) -> list[Any]:
        state = _state(*boxes, page=1)
        sort = toggled(state.sort, str(_told(event, "sort")))
        return [sort, *self._show_table(replace(state, sort=sort))]

    def _opened(self, event: gr.EventData) -> list[Any]:
        row = str(_told(event, "row"))[:64]
        return [row, self._show_measurement(row), gr.Tabs(selected="measurement")]

    def _show_measurement(self, row: str) -> str:
        try:
            return self._views.measurement(row)
        except Exception:
            log.exception("the measurement failed")
            return tables.message(SORRY, "no")

    def _drawn(self, *values: Any) -> list[Any]:
        *boxes, figure = values
        return self._show_plot(_state(*boxes), figure)

    def _loaded(self, request: gr.Request) -> list[Any]:
        """The first look: what the address asks for, with the choices that the data holds now."""
        state = State.from_query(dict(request.query_params))
        results = self._views.results
        return [
            _choices("All base models", results.models(), state.model),
            _choices("All uploaders", results.owners(), state.owner),
            _choices("All protocols", results.protocols(), state.protocol),
            state.search,
            state.stale,
            state.sort,
            state.page,
            state.row,
            state.search,
            *self._show_table(state),
            *self._show_plot(state, "kld_mean"),
            self._views.status(),
            self._show_measurement(state.row),
            gr.Tabs(selected="measurement" if state.row else "leaderboard"),
        ]


def _state(
    model: Any, owner: Any, protocol: Any, search: Any, stale: Any, sort: Any, number: Any, row: Any,
    *, page: int | None = None,
) -> State:  # fmt: skip
    """The boxes' values as a state; read like an address, since a browser can send anything."""
    texts = {"model": model, "owner": owner, "protocol": protocol, "q": search, "sort": sort, "row": row}
    query = {name: str(value) for name, value in texts.items() if value}
    wanted = page if page is not None else number
    return State.from_query({**query, "stale": "1" if stale else "", "page": str(max(1, int(wanted or 1)))})


def _told(event: gr.EventData, name: str) -> Any:
    return (event._data or {}).get(name, "")


def _filter(label: str, everything: str, scale: int = 1) -> gr.Dropdown:
    # Custom values allowed: a choice that is gone after a refresh then finds nothing instead of failing.
    return gr.Dropdown([(everything, "")], value="", label=label, allow_custom_value=True, min_width=150, scale=scale)


def _choices(everything: str, counts: list[Count], chosen: str) -> gr.Dropdown:
    known: list[tuple[str, str | int | float]] = [(f"{clean(c.label)} ({c.n:,})", c.key) for c in counts]
    return gr.Dropdown([(everything, ""), *known], value=chosen)


def _request_form(views: Views, *, enabled: bool) -> None:
    """Ask for a benchmark. On a Space with OAuth the signed-in name counts, elsewhere the one typed in."""
    if not enabled:
        _html(tables.message(NO_SUBMIT))
    signed_in = enabled and bool(os.environ.get("OAUTH_CLIENT_ID"))
    with gr.Column(elem_classes="qc-form"):
        repo = gr.Textbox(
            label="Repo with GGUF files", placeholder="owner/repo, or paste its address", max_lines=1,
            interactive=enabled, elem_id="repo",
        )  # fmt: skip
        hint = _html(views.hint(""))
        user = gr.Textbox(
            label="Your Hub name (optional)", max_lines=1, interactive=enabled, visible=not signed_in,
            info="So that limits are counted for you and not for everybody.",
        )  # fmt: skip
        if signed_in:
            gr.LoginButton()
        ask = gr.Button("Request a benchmark", variant="primary", interactive=enabled, elem_id="ask")
        answer = _html(elem_id="answer")

    def asked(text: str, name: str, profile: gr.OAuthProfile | None) -> str:
        if signed_in and profile is None:
            return tables.message("Sign in first: requests are counted per person.", "no")
        return views.acknowledged(views.request(text, profile.username if profile else name))

    repo.change(views.hint, repo, hint, trigger_mode="always_last", **_PRIVATE)
    if enabled:
        gr.on(
            [ask.click, repo.submit], asked, [repo, user], answer,
            api_visibility="private", concurrency_limit=1, concurrency_id="request",
        )  # fmt: skip


def _queue_table(views: Views, tab: gr.Tab, *, enabled: bool) -> None:
    table = _html(tables.message(NO_QUEUE) if not enabled else "", elem_id="queue")
    if not enabled:
        return
    with gr.Row():
        again = gr.Button("Refresh", size="sm", min_width=80, scale=0)
    # Ticks only in pages whose queue was opened once: most visitors never do.
    timer = gr.Timer(_QUEUE_SECONDS, active=False)
    tab.select(lambda: (views.queue(), gr.Timer(active=True)), None, [table, timer], **_PRIVATE)
    gr.on([again.click, timer.tick], views.queue, None, table, **_PRIVATE)
