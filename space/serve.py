"""Serve the leaderboard and keep its data fresh."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, field

import gradio as gr

from core.errors import QuantcardError
from space.app import build
from space.data import Results
from space.look import look
from space.views import Queue, Submit


class PortTakenError(QuantcardError):
    """Something else already listens on that port."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class RunningApp:
    """A page that is being served at ``url`` until :meth:`close`."""

    url: str
    _page: gr.Blocks
    _stop: threading.Event = field(default_factory=threading.Event)

    def close(self) -> None:
        """Stop serving and refreshing."""
        self._stop.set()
        self._page.close(verbose=False)

    def wait(self) -> None:
        """Serve until :meth:`close` or Ctrl-C."""
        try:
            self._stop.wait()
        except KeyboardInterrupt:
            self.close()


def serve(
    results: Results,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    submit: Submit | None = None,
    queue: Queue | None = None,
    title: str = "quantcard leaderboard",
    refresh_seconds: float = 300,
    block: bool = True,
) -> RunningApp:
    """Serve the page on ``host``:``port`` (0: any free port), refreshing the results every so often.

    With ``block``, returns only when it ends. Raises :class:`PortTakenError`.
    """
    results.refresh()
    page = build(results, submit=submit, queue=queue, title=title)
    page.queue(default_concurrency_limit=4, max_size=200)
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port or _free_port(host),
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            show_error=True,
            ssr_mode=False,  # would start Node where it is installed
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=["api"],
            max_file_size="1kb",  # nobody uploads here, but every Gradio app has an upload route
            state_session_capacity=1000,
            **look(),
        )
    except OSError as taken:
        raise PortTakenError(f"Port {port} on {host} can't be used: {taken}") from taken
    app = RunningApp(url.rstrip("/"), page)
    threading.Thread(target=_refresh, args=(results, refresh_seconds, app._stop), name="refresh", daemon=True).start()
    if block:
        app.wait()
    return app


def _free_port(host: str) -> int:
    """Gradio's own choice is the first free one of a hundred: two pages starting together would take the same."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _refresh(results: Results, seconds: float, stop: threading.Event) -> None:
    while not stop.wait(seconds):
        results.refresh()
