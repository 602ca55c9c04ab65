"""Serves one page on this machine until it is stopped: the preview of a card."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOST = "127.0.0.1"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@contextmanager
def serving(page: str, *, port: int = 0) -> Iterator[str]:
    """The page's address while it is served; ``port`` 0: a free one.

    Raises:
        OSError: the port is taken.
    """
    whole = page.encode()

    class Handler(BaseHTTPRequestHandler):
        timeout = 20
        server_version, sys_version = "quantcard", ""

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            # Another name than ours in the address is a page elsewhere that wants to read this one.
            asked = urlsplit(f"//{self.headers.get('Host', '')}").hostname
            status = 200 if urlsplit(self.path).path == "/" and asked in (_HOST, "localhost") else 404
            data = whole if status == 200 else b"There is nothing here.\n"
            self.send_response(status)
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            kind = "text/html" if status == 200 else "text/plain"
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the person knows that they look at it."""

    server = ThreadingHTTPServer((_HOST, port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield f"http://{_HOST}:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
