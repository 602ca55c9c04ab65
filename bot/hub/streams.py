"""Large files from the Hub, a piece at a time and from where an earlier try broke off.

Not ``hf_hub_download``: since its version 2 it begins a broken download anew, and plain requests for whole files end
at 50 GB. Ranges have neither limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from huggingface_hub import hf_hub_url
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from bot.hub.base import HubBase
from bot.hub.budget import FILES
from core.errors import HubUnreachableError

#: Bytes that one request asks for.
PIECE = 8 << 30
_PLACE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


class HubStreams(HubBase):
    """What is too large to be held in memory."""

    def stream(
        self, repo_id: str, path: str, *, revision: str, offset: int, size: int, write: Callable[[bytes], object]
    ) -> None:
        """Hand a file's bytes from ``offset`` to its end at ``size`` to ``write``, in order and each once.

        A cut connection is taken up where it broke as long as bytes arrive; three tries in a row without any are the
        last. What ``write`` raises ends it; what was written stays written.

        Raises:
            HubUnreachableError: it broke off, or what comes is not what was asked for.
            StorageError: ``write`` found the disk full.
        """
        at = offset

        def fetch() -> None:
            nonlocal at
            for piece in self._pieces(repo_id, path, revision=revision, start=at, end=min(size, at + PIECE)):
                write(piece)
                at += len(piece)

        while at < size:
            before = at
            try:
                self._ask(f"the download of {path} from {repo_id}", fetch, resource=FILES)
            except HubUnreachableError:
                if at == before:
                    raise

    def _pieces(self, repo_id: str, path: str, *, revision: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes of a range as they come; an error where fewer come."""
        url = hf_hub_url(repo_id, path, revision=revision, endpoint=self.endpoint)
        headers = build_hf_headers(token=self._token, library_name="quantcard")
        headers |= {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
            if response.status_code >= 400:
                response.read()
            hf_raise_for_status(response)
            left = end - start
            # A server that ignores Range sends the file from its start: skip what was not asked for.
            skip = start if response.status_code == 200 else 0
            if response.status_code != 200 and not _begins_at(response.headers.get("content-range", ""), start):
                raise TypeError("another part of the file than was asked for")
            for piece in response.iter_bytes():
                if skip:
                    piece, skip = piece[skip:], max(0, skip - len(piece))
                piece = piece[:left]
                left -= len(piece)
                if piece:
                    yield piece
                if not left:
                    return
        raise TypeError("fewer bytes than the file has")


def _begins_at(content_range: str, start: int) -> bool:
    found = _PLACE.fullmatch(content_range.strip())
    return found is not None and int(found[1]) == start
