"""The HTTP server as a part of a process that has other things to end too."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from core.errors import SettingsError

#: Seconds for open connections to end; pages that listen for events never close theirs.
_GRACE_S = 3


class Server(uvicorn.Server):
    """uvicorn without signals of its own: they are the service's, which ends more than the server.

    Its records go where all others go.
    """

    def __init__(self, app: FastAPI) -> None:
        super().__init__(uvicorn.Config(app, log_config=None, log_level="warning", timeout_graceful_shutdown=_GRACE_S))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """A socket at the address that was set; refused in a sentence, before anything else is started.

    Raises:
        SettingsError: the address or the port can't be used.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise SettingsError(f"The address {host} can't be used ({error.strerror}). Set another with --host.") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(512)
    except OSError as error:
        sock.close()
        raise SettingsError(
            f"Port {port} of {host} can't be used ({error.strerror}). Set another with --port."
        ) from None
    return sock
