"""The preview's server: this machine only, one page, nothing else."""

from __future__ import annotations

import http.client
import socket
from urllib.parse import urlsplit

import pytest

from bot.web.preview import serving


def ask(address: str, path: str = "/", *, method: str = "GET", host: str | None = None) -> tuple[int, str, str]:
    at = urlsplit(address)
    connection = http.client.HTTPConnection(str(at.hostname), at.port, timeout=10)
    try:
        connection.request(method, path, headers={"Host": host} if host else {})
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Content-Security-Policy", ""), answer.read().decode()
    finally:
        connection.close()


def test_one_page_is_served_until_it_ends() -> None:
    with serving("<p>é</p>") as address:
        assert urlsplit(address).hostname == "127.0.0.1"
        status, policy, body = ask(address)
        assert (status, body) == (200, "<p>é</p>") and policy.startswith("default-src 'none'")
        assert ask(address, "/?x=1")[0] == 200 and ask(address, method="HEAD") == (200, policy, "")
        assert ask(address, "/../etc/passwd")[0] == 404 and ask(address, "/other")[0] == 404
        assert ask(address, method="POST")[0] == 501
        port = urlsplit(address).port
        assert ask(address, host=f"localhost:{port}")[0] == 200
        assert ask(address, host="evil.example")[0] == 404, "a name that somebody else made lead here"
    with pytest.raises(OSError):
        ask(address)


def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError), serving("x", port=taken.getsockname()[1]):
            pass
